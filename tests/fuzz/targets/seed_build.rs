//! Seeds that are made of any user-data, meta-data, keys, interfaces and manifests.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::build_seed(input));
