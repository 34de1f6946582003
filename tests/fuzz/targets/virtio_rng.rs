//! The entropy device.
#![no_main]

use bootyard_fuzz::machine::drive;
use bootyard_vmm::virtio::Entropy;

libfuzzer_sys::fuzz_target!(|input: &[u8]| drive(Entropy::new(), input, &mut |_| {}));
