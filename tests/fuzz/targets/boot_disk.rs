//! Whole disks under the boot loader: partitions, file systems, menus.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::boot::boot_disk(input));
