//! Boot menus: GRUB's script and environment, entries of the Boot Loader Specification, extlinux.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::boot::boot_menu(input));
