//! VHDX with its log.
#![no_main]

use bootyard_fuzz::{check_mended, sums};

libfuzzer_sys::fuzz_target!(|input: &[u8]| check_mended(input, b"vhdxfile", sums::vhdx));
