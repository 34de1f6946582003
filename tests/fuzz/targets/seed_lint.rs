//! The linter of seeds: files of every kind, in every format that cloud-init takes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::lint_seed(input));
