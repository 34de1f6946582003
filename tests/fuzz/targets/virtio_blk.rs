//! The block device with several virtqueues, over a raw disk or a qcow2 image.
#![no_main]

use std::sync::Arc;

use bootyard_fuzz::machine::drive;
use bootyard_image::qcow2::{Create, create, edit};
use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::Disk;
use bootyard_vmm::virtio::Block;

/// Bytes of the disk.
const SIZE: u64 = 64 << 10;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((first, script)) = input.split_first() else { return };
    let file = tempfile::tempfile().expect("a file");
    let disk: Arc<dyn Disk> = if first & 1 == 0 {
        file.set_len(SIZE).expect("a file");
        Arc::new(RawDisk::new(FileAt::new(file).expect("a file")))
    } else {
        let file = FileAt::new(file).expect("a file");
        create(&file, &Create { cluster_bits: 9, ..Create::new(SIZE) }).expect("an image");
        Arc::new(edit(file, None).expect("an image"))
    };
    let block = Block::new(disk, first & 2 != 0, "fuzz").queues(u32::from(first >> 2 & 3));
    drive(block.io_uring(first & 0x10 == 0), script, &mut |_| {});
});
