//! Tests of reading: `qemu-img` as the judge, images built by hand, hostile files.

use bootyard_testkit::require_tool;

use crate::oracle::Oracle;
use crate::support::decode;
use crate::{Error, ErrorKind, Format, conformance, hostile, inspect, open};

#[test]
fn reads_what_qemu_img_makes() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Vdi, "vdi", true);
    for len in [512, 1 << 20, (12 << 20) + 512 * 77] {
        for (options, variant) in [(&[][..], "dynamic"), (&["-o", "static=on"], "fixed")] {
            let info = oracle.check(&oracle.convert(len, options));
            assert_eq!(info.variant.as_deref(), Some(variant));
            assert_eq!(info.cluster_size, Some(1 << 20));
        }
    }
    let writes = ["write -P 7 9M 1k", "write -P 8 5M 2500k", "write -P 9 0 1", "write -z 5M 1M"];
    let info = oracle.check(&oracle.create("20M", &[], &writes));
    assert_eq!(info.allocated, Some(5 << 20));
}

#[test]
fn hostile_files_are_refused() {
    hostile::check("vdi/*", &[]);
}

/// A disk of five blocks of 4 KiB, of which the last is not whole, with `extra` bytes in each.
struct Built {
    file: Vec<u8>,
    extra: usize,
}

const BLOCK: usize = 4096;
const SIZE: u64 = 4 * 4096 + 700;

impl Built {
    fn new(extra: usize) -> Self {
        let mut built = Self { file: vec![0; 1024], extra };
        for (at, value) in [
            (64, 0xbeda_107f),
            (68, 0x1_0001),
            (72, 400),
            (76, 1),
            (340, 512),
            (344, 1024),
            (360, 512),
            (368, SIZE as u32),
            (376, BLOCK as u32),
            (380, extra as u32),
            (384, 5),
            (388, 2),
        ] {
            built.u32(at, value);
        }
        // The disk's blocks: host block 1, never written, zeros, host block 0, host block 2.
        for (index, entry) in [1, u32::MAX, u32::MAX - 1, 0, 2].into_iter().enumerate() {
            built.u32(512 + 4 * index, entry);
        }
        for fill in [0xb0, 0xb1, 0xb2] {
            built.file.extend(vec![0xee; extra]);
            built.file.extend([fill; BLOCK]);
        }
        built
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Both ways of reading must refuse the file for the same reason. Returns it.
    fn refused(&self) -> Error {
        let error = open(self.file.clone()).map(drop).unwrap_err();
        assert_eq!(decode(&self.file, &[1000]).unwrap_err().to_string(), error.to_string());
        error
    }
}

#[test]
fn blocks_are_where_the_map_says() {
    for extra in [0, 512] {
        let mut built = Built::new(extra);
        // The last block need not be whole in the file.
        built.file.truncate(1024 + 3 * (BLOCK + extra) - BLOCK + 1024);
        let disk = open(built.file.clone()).unwrap();
        conformance::check(&*disk, SIZE.next_multiple_of(512));
        let mut expected = vec![0; SIZE.next_multiple_of(512) as usize];
        expected[..BLOCK].fill(0xb1);
        expected[3 * BLOCK..4 * BLOCK].fill(0xb0);
        expected[4 * BLOCK..].fill(0xb2);
        assert!(conformance::read_all(&*disk) == expected);
        assert!(decode(&built.file, &[999]).unwrap().0 == expected);
        built.file.truncate(built.file.len() - 1);
        assert_eq!(built.refused().kind(), ErrorKind::Truncated);
    }
}

#[test]
fn images_that_need_a_parent_are_refused_by_name() {
    for (at, value, what) in [
        (76, 3, "the disk is a VDI of the undo kind, over another one (at offset 0x4c)"),
        (76, 4, "the disk is a VDI of the differencing kind, over another one (at offset 0x4c)"),
        (424, 7, "the disk is linked to a parent VDI (at offset 0x1a8)"),
    ] {
        let mut built = Built::new(0);
        built.u32(at, value);
        let error = built.refused();
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::NeedsOtherFile, what));
        let info = inspect(&built.file).unwrap();
        assert_eq!(info.refused.as_deref(), Some(what));
        assert_eq!(info.virtual_size, Some(SIZE.next_multiple_of(512)));
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_its_place() {
    for (at, value, what) in [
        (68, 0x1_0000, "expected VDI version 1.1, got 1.0 (at offset 0x44)"),
        (76, 5, "expected a VDI image type of 1 to 4, got 5 (at offset 0x4c)"),
        (340, 100, "the block map overlaps the header (at offset 0x154)"),
        (344, 531, "the data area begins before the end of the block map (at offset 0x158)"),
        (376, 8192 + 512, "expected blocks of 2^9 to 2^28 bytes, got 8704 (at offset 0x178)"),
        (
            380,
            7,
            "expected extra data of whole sectors in each block, got 7 bytes (at offset 0x17c)",
        ),
        (384, 4, "the block map is for 16384 bytes of a disk of 17408 (at offset 0x180)"),
        (516, 1, "block 1 at 0x1400 shares bytes with another block (at offset 0x204)"),
        (524, 3, "block 3 at 0x3400 ends beyond the file of 13312 (at offset 0x20c)"),
    ] {
        let mut built = Built::new(0);
        assert_eq!(built.extra, 0);
        built.u32(at, value);
        assert_eq!(built.refused().to_string(), what);
    }
}
