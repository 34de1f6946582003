//! Tests of reading and writing: headers that are refused, `qemu-img` as the judge, damaged files.

mod besides;
mod damaged;
mod header;
mod oracle;
mod subclusters;

use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U64;

/// An image built by hand: clusters of 64 KiB in the order header, refcount table, refcount block,
/// L1 table, L2 table, data. The one cluster of data is the disk's first.
#[derive(Clone)]
struct Built {
    file: Vec<u8>,
}

const CLUSTER: usize = 1 << 16;
const L1: usize = 3 * CLUSTER;
const L2: usize = 4 * CLUSTER;
const DATA: usize = 5 * CLUSTER;
const COPIED: u64 = 1 << 63;

impl Built {
    fn new() -> Self {
        let mut built = Self { file: vec![0; DATA] };
        built.file.extend([0xda; CLUSTER]);
        built.put(0, b"QFI\xfb\0\0\0\x03");
        built.u32(20, 16);
        built.u64(24, 1 << 20);
        built.u32(36, 1);
        built.u64(40, L1 as u64);
        built.u64(48, CLUSTER as u64);
        built.u32(56, 1);
        built.u32(96, 4);
        built.u32(100, 104);
        built.u64(CLUSTER, 2 * CLUSTER as u64);
        (0..6).for_each(|index| built.put(2 * CLUSTER + 2 * index, &[0, 1]));
        built.u64(L1, L2 as u64 | COPIED);
        built.u64(L2, DATA as u64 | COPIED);
        built
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.put(at, U64::new(value).as_bytes());
    }

    fn extension(&mut self, at: usize, kind: u32, data: &[u8]) {
        self.u32(at, kind);
        self.u32(at + 4, data.len() as u32);
        self.put(at + 8, data);
    }
}
