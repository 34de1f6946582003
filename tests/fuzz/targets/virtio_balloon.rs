//! The balloon, whose owner changes his mind and asks for figures.
#![no_main]

use std::time::Duration;

use bootyard_fuzz::machine::drive;
use bootyard_vmm::virtio::{Balloon, BalloonControl};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let control = BalloonControl::new(1 << 20).expect("descriptors");
    drive(Balloon::new(&control).expect("descriptors"), input, &mut |bytes| {
        let wish = bytes.iter().fold(0, |wish, byte| wish << 8 | u64::from(*byte));
        let figures = control.figures(Duration::ZERO);
        assert!(control.set_target(wish) <= 1 << 20);
        assert!(figures.is_none_or(|figures| figures.iter().count() <= 16));
    });
});
