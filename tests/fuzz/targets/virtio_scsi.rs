//! The SCSI bus with a disk and a CD-ROM drive, whose owner changes discs.
#![no_main]

use std::sync::Arc;

use bootyard_fuzz::machine::drive;
use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::Disk;
use bootyard_vmm::scsi::Drive;
use bootyard_vmm::virtio::Scsi;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(64 << 10).expect("a file");
    let disk = RawDisk::new(FileAt::new(file).expect("a file"));
    let disc = || Arc::new(RawDisk::read_only(vec![7_u8; 9000])) as Arc<dyn Disk>;
    let disk = Drive::disk(Arc::new(disk), false, "disk").expect("descriptors");
    let cdrom = Arc::new(Drive::cdrom(Some(disc()), "disc").expect("descriptors"));
    let device = Scsi::new(vec![Arc::new(disk), Arc::clone(&cdrom)]).expect("descriptors");
    drive(device, input, &mut |bytes| {
        let _ = match bytes.first() {
            Some(byte) if byte & 1 == 0 => cdrom.eject(byte & 2 != 0).map(drop),
            _ => cdrom.insert(disc()),
        };
    });
});
