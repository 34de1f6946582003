//! What a header says, and what of it is refused.

use std::io;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::{Built, CLUSTER, COPIED, DATA, L1, L2};
use crate::conformance::read_all;
use crate::support::decode;
use crate::{Error, ErrorKind, Format, ReadAt, inspect, open};

/// Opens the image and reads all of it, by random access and as a stream. Both must agree.
fn read(file: &[u8]) -> Result<Vec<u8>, Error> {
    let opened = open(file.to_vec()).and_then(|disk| {
        let mut whole = vec![0; disk.virtual_size().min(64 << 20) as usize];
        disk.read_at(&mut whole, 0)?;
        Ok(whole)
    });
    let streamed = decode(file, &[100_000]).map(|(disk, _)| disk);
    match (&opened, &streamed) {
        (Ok(opened), Ok(streamed)) => assert!(opened == streamed),
        (Err(opened), Err(streamed)) => assert_eq!(opened.kind(), streamed.kind()),
        (opened, streamed) => panic!("{opened:?} but {streamed:?}"),
    }
    opened
}

#[test]
fn a_plain_image_is_read() {
    let disk = read(&Built::new().file).unwrap();
    assert!(disk[..CLUSTER].iter().all(|byte| *byte == 0xda));
    assert!(disk[CLUSTER..].iter().all(|byte| *byte == 0));
}

#[test]
fn headers_that_ask_for_more_are_refused_by_name() {
    use ErrorKind::{Corrupt, Encrypted, NeedsOtherFile, TooLarge, Unsupported};
    type Change = fn(&mut Built);
    let cases: &[(Change, ErrorKind, &str)] = &[
        (|b| b.u32(4, 4), Unsupported, "expected qcow2 version 2 or 3, got 4 (at offset 0x4)"),
        (
            |b| b.u32(20, 8),
            Corrupt,
            "expected clusters of 2^9 to 2^21 bytes, got 2^8 (at offset 0x14)",
        ),
        (
            |b| b.u32(20, 99),
            Corrupt,
            "expected clusters of 2^9 to 2^21 bytes, got 2^99 (at offset 0x14)",
        ),
        (
            |b| b.u64(24, u64::MAX),
            TooLarge,
            "a disk of 18446744073709551615 bytes is beyond 2^63 - 1 (at offset 0x18)",
        ),
        (
            |b| b.u64(24, 1 << 40),
            Corrupt,
            "the L1 table maps 536870912 bytes of a disk of 1099511627776 (at offset 0x24)",
        ),
        (|b| b.u32(32, 1), Encrypted, "the disk is encrypted with AES (at offset 0x20)"),
        (|b| b.u32(32, 2), Encrypted, "the disk is encrypted with LUKS (at offset 0x20)"),
        (|b| b.u32(32, 9), Unsupported, "unknown encryption method 9 (at offset 0x20)"),
        (
            |b| b.u32(36, u32::MAX),
            TooLarge,
            "expected an L1 table of at most 33554432 bytes, got 34359738360 (at offset 0x24)",
        ),
        (
            |b| b.u64(40, L1 as u64 + 8),
            Corrupt,
            "the L1 table at 0x30008 is not on a cluster (at offset 0x28)",
        ),
        (|b| b.u64(40, 0), Corrupt, "the L1 table overlaps the header (at offset 0x28)"),
        (
            |b| b.u64(40, !0xffff),
            Corrupt,
            "the L1 table at 0xffffffffffff0000 ends beyond 2^63 - 1 (at offset 0x28)",
        ),
        (
            |b| b.u64(48, 512),
            Corrupt,
            "the refcount table at 0x200 is not on a cluster (at offset 0x30)",
        ),
        (|b| b.u32(56, 0), Corrupt, "the image has no refcount table (at offset 0x38)"),
        (
            |b| b.u32(56, u32::MAX),
            TooLarge,
            "expected a refcount table of at most 8388608 bytes, got 281474976645120 (at offset 0x38)",
        ),
        (
            |b| b.u32(60, 1 << 20),
            TooLarge,
            "expected at most 65536 snapshots, got 1048576 (at offset 0x3c)",
        ),
        (|b| b.u64(72, 1 << 1), Corrupt, "the image is marked as corrupt (at offset 0x48)"),
        (
            |b| b.u64(72, 1 << 2),
            NeedsOtherFile,
            "the guest's data is in another file, whose name is missing (at offset 0x48)",
        ),
        (
            |b| {
                b.u32(20, 13);
                b.u64(72, 1 << 4);
            },
            Corrupt,
            "expected clusters of 2^14 bytes or more with extended L2 entries, got 2^13 (at offset 0x14)",
        ),
        (
            |b| b.u64(72, 1 << 63 | 1 << 5),
            Unsupported,
            "unknown incompatible feature bit 5, bit 63 (at offset 0x48)",
        ),
        (|b| b.u32(96, 7), Corrupt, "expected a refcount order up to 6, got 7 (at offset 0x60)"),
        (
            |b| b.u32(100, 72),
            Corrupt,
            "expected a header of 104 to 65536 bytes, got 72 (at offset 0x64)",
        ),
        (
            |b| b.u64(72, 1 << 3),
            Corrupt,
            "the compression type contradicts the feature bits (at offset 0x68)",
        ),
        (
            |b| {
                b.u32(100, 112);
                b.put(104, &[1]);
            },
            Corrupt,
            "the compression type contradicts the feature bits (at offset 0x68)",
        ),
        (
            |b| {
                b.u32(100, 112);
                b.put(104, &[7]);
            },
            Unsupported,
            "expected compression type 0 (zlib) or 1 (zstd), got 7 (at offset 0x68)",
        ),
        (
            |b| {
                b.u64(8, 1024);
                b.u32(16, 5);
                b.put(1024, b"/a\x1bb\n");
            },
            NeedsOtherFile,
            "the image is an overlay over another file, `/a\\u{1b}b\\n` (at offset 0x8)",
        ),
        (
            |b| {
                b.u64(8, 1024);
                b.u32(16, 1024);
            },
            Corrupt,
            "expected a backing file name of at most 1023 bytes, got 1024 (at offset 0x10)",
        ),
        (
            |b| {
                b.u64(8, u64::MAX);
                b.u32(16, 9);
            },
            Corrupt,
            "the backing file name at 0xffffffffffffffff is not in the header (at offset 0x8)",
        ),
        (
            |b| {
                b.u64(72, 1 << 2);
                b.extension(104, 0x4441_5441, b"disk.raw");
            },
            NeedsOtherFile,
            "the guest's data is in another file, `disk.raw` (at offset 0x48)",
        ),
        (
            |b| {
                b.u64(72, 1 << 9);
                b.extension(104, 0x6803_f857, &feature(0, 9, b"warp\x07"));
            },
            Unsupported,
            "unknown incompatible feature `warp\\u{7}` (bit 9) (at offset 0x48)",
        ),
        (
            |b| {
                b.u64(72, 1 << 9);
                b.extension(104, 0x6803_f857, &feature(1, 9, b"other"));
            },
            Unsupported,
            "unknown incompatible feature bit 9 (at offset 0x48)",
        ),
        (
            |b| {
                b.u32(104, 77);
                b.u32(108, u32::MAX);
            },
            Corrupt,
            "header extension 0x0000004d of 4294967295 bytes does not fit (at offset 0x68)",
        ),
        (
            |b| {
                b.u64(88, 1);
                b.extension(104, 0x2385_2875, &[0xff; 24]);
            },
            TooLarge,
            "expected at most 65535 bitmaps, got 4294967295 (at offset 0x70)",
        ),
        (
            |b| b.put(0x8001, b"CD001"),
            ErrorKind::NotAnImage,
            "the file claims to be both qcow2 and ISO 9660 (at offset 0x8001)",
        ),
    ];
    for (change, kind, message) in cases {
        let mut built = Built::new();
        change(&mut built);
        let error = read(&built.file).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (*message, *kind));
    }
}

fn feature(kind: u8, bit: u8, name: &[u8]) -> Vec<u8> {
    let mut entry = vec![kind, bit];
    entry.extend(name);
    entry.resize(48, 0);
    entry
}

#[test]
fn features_that_do_not_matter_for_reading_are_ignored() {
    let expected = read(&Built::new().file).unwrap();
    for change in [
        |b: &mut Built| b.u64(72, 1),
        |b: &mut Built| b.u64(80, u64::MAX),
        |b: &mut Built| b.u64(88, u64::MAX),
        |b: &mut Built| b.u32(96, 0),
        |b: &mut Built| b.extension(104, 0x1234_5678, &[1; 33]),
        |b: &mut Built| b.u64(CLUSTER, 0),
        |b: &mut Built| b.u64(L1, L2 as u64),
        |b: &mut Built| b.u64(L2, DATA as u64),
    ] {
        let mut built = Built::new();
        change(&mut built);
        assert!(read(&built.file).unwrap() == expected);
    }
}

#[test]
fn tables_that_break_the_rules_are_refused() {
    use ErrorKind::{Corrupt, Truncated};
    type Change = fn(&mut Built);
    let cases: &[(Change, ErrorKind)] = &[
        (|b| b.u64(L1, L2 as u64 | 1), Corrupt),
        (|b| b.u64(L1, L2 as u64 + 512), Corrupt),
        (|b| b.u64(L1, L1 as u64), Corrupt),
        (|b| b.u64(L1, CLUSTER as u64), Corrupt),
        (|b| b.u64(L1, 1 << 40), Truncated),
        (|b| b.u64(L2, DATA as u64 | 2), Corrupt),
        (|b| b.u64(L2, DATA as u64 + 512), Corrupt),
        (|b| b.u64(L2, L1 as u64), Corrupt),
        (|b| b.u64(L2, 1 << 40 | COPIED), Truncated),
        (|b| b.u64(L2, 1 << 62), Corrupt),
        (|b| b.u64(L2, 1 << 62 | DATA as u64), Corrupt),
        (|b| b.u64(L2, 1 << 62 | 1 << 40), Truncated),
        (|b| b.u64(40, 1 << 40), Truncated),
        (|b| b.u64(48, 1 << 40), Truncated),
        (
            |b| {
                b.u32(4, 2);
                b.u64(L2, 1);
            },
            Corrupt,
        ),
    ];
    for (index, (change, kind)) in cases.iter().enumerate() {
        let mut built = Built::new();
        change(&mut built);
        assert_eq!(read(&built.file).unwrap_err().kind(), *kind, "case {index}");
    }
}

#[test]
fn a_shared_cluster_is_read_at_every_place() {
    let mut built = Built::new();
    for index in [1, 2, 9] {
        built.u64(L2 + 8 * index, DATA as u64);
    }
    let disk = read(&built.file).unwrap();
    for (index, cluster) in disk.chunks(CLUSTER).enumerate() {
        let byte = if [0, 1, 2, 9].contains(&index) { 0xda } else { 0 };
        assert!(cluster.iter().all(|b| *b == byte), "cluster {index}");
    }
}

/// A file in which data is only read by two threads at once.
struct Together {
    file: Vec<u8>,
    there: Mutex<usize>,
    arrived: Condvar,
}

impl ReadAt for Together {
    fn len(&self) -> u64 {
        ReadAt::len(&self.file)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset >= DATA as u64 {
            let mut there = self.there.lock().unwrap();
            *there += 1;
            self.arrived.notify_all();
            let wait = Duration::from_secs(20);
            let (there, _) =
                self.arrived.wait_timeout_while(there, wait, |there| *there < 2).unwrap();
            assert!(*there >= 2, "a reader waits for another one");
        }
        self.file.read_exact_at(buf, offset)
    }
}

#[test]
fn compressed_clusters_are_read_by_several_threads_at_once() {
    let mut built = Built::new();
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    for index in 0..2 {
        let mut packed = vec![0; 1024];
        compressor.deflate_compress(&[index as u8 + 1; CLUSTER], &mut packed).unwrap();
        built.put(DATA + index * 1024, &packed);
        built.u64(L2 + 8 * index, (1 << 62) | (1 << 54) | (DATA + index * 1024) as u64);
    }
    let (there, arrived) = (Mutex::new(0), Condvar::new());
    let disk = open(Together { file: built.file, there, arrived }).unwrap();
    std::thread::scope(|scope| {
        for index in 0..2 {
            let disk = &disk;
            scope.spawn(move || {
                let mut part = [0; 100];
                disk.read_at(&mut part, (index * CLUSTER + 7) as u64).unwrap();
                assert_eq!(part, [index as u8 + 1; 100]);
            });
        }
    });
}

#[test]
fn a_table_behind_its_data_is_read_from_what_was_held() {
    let mut built = Built::new();
    let tables = built.file[L1..DATA].to_vec();
    built.file.extend(tables);
    built.u64(40, DATA as u64 + CLUSTER as u64);
    built.u64(DATA + CLUSTER, (DATA + 2 * CLUSTER) as u64);
    built.file[L1..DATA].fill(0x77);
    assert!(read(&built.file).unwrap() == read(&Built::new().file).unwrap());
}

#[test]
fn every_cut_is_noticed() {
    let file = Built::new().file;
    for len in (0..file.len()).step_by(4093) {
        let error = read(&file[..len]).unwrap_err();
        let expected = if len == 0 { ErrorKind::NotAnImage } else { ErrorKind::Truncated };
        assert_eq!(error.kind(), expected, "{len}: {error}");
    }
}

#[test]
fn inspect_describes_what_open_refuses() {
    let mut built = Built::new();
    built.u64(8, 1024);
    built.u32(16, 8);
    built.put(1024, b"base.img");
    built.extension(104, 0xe279_2aca, b"raw");
    built.u64(72, 1);
    let info = inspect(&built.file).unwrap();
    assert_eq!(
        (info.format, info.virtual_size, info.version),
        (Format::Qcow2, Some(1 << 20), Some(3))
    );
    assert_eq!((info.cluster_size, info.compression), (Some(1 << 16), Some("zlib")));
    assert_eq!(info.features, ["dirty"]);
    assert_eq!(info.backing_file.as_deref(), Some("base.img"));
    assert_eq!(info.backing_format.as_deref(), Some("raw"));
    assert_eq!(
        info.refused.as_deref(),
        Some("the image is an overlay over another file, `base.img` (at offset 0x8)")
    );
    assert!(inspect(&Built::new().file).unwrap().refused.is_none());
    let raw = inspect(&vec![0_u8; 513]).unwrap();
    assert_eq!((raw.format, raw.virtual_size), (Format::Raw, Some(1024)));
    assert!(inspect(&b"Bochs Virtual HD Image\0".to_vec()).unwrap().refused.is_some());
    assert_eq!(read_all(&*open(vec![0_u8; 513]).unwrap()).len(), 1024);
}
