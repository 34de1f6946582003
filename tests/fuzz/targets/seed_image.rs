//! Seeds and other small disks: ISO 9660 and FAT, and what cloud-init takes from them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::read_seed(input));
