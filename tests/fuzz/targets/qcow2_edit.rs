//! Writing to a qcow2.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::edit(input, b"QFI\xfb\0\0\0"));
