//! qcow2, versions 2 and 3.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::check(input, b"QFI\xfb\0\0\0"));
