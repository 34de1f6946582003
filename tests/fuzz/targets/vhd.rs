//! VHD, dynamic and fixed.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::check(input, b""));
