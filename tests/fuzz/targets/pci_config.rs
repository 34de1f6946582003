//! Configuration spaces, BARs that move, MSI-X: three functions on one bus.
#![no_main]

use bootyard_fuzz::machine::drive_bus;
use bootyard_vmm::virtio::{Entropy, VirtioDevice};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let device = || Box::new(Entropy::new()) as Box<dyn VirtioDevice>;
    drive_bus((0..3).map(|_| device()).collect(), input);
});
