//! Compressed files and archives, as they are: not encoded, since they have no holes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::check_container(input.to_vec()));
