//! The small formats: qcow1, QED, Parallels; and raw disks.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bootyard_fuzz::check(input, b""));
