//! Tests of reading: `qemu-img` as the judge, images built by hand, damaged and hostile files.

use bootyard_testkit::{qemu_img, require_tool, sparse_image};
use libdeflater::{CompressionLvl, Compressor};
use proptest::prelude::*;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U64;

use super::{COMPRESSED, open, open_with};
use crate::oracle::Oracle;
use crate::raw::RawDisk;
use crate::support::{check_damaged, decode, read};
use crate::{Error, ErrorKind, Format, OpenOptions, conformance, hostile, inspect};

#[test]
fn reads_what_qemu_img_makes() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Qcow1, "qcow", true);
    for len in [512, 1 << 20, (6 << 20) + 512 * 77] {
        let info = oracle.check(&oracle.convert(len, &[]));
        assert_eq!((info.version, info.cluster_size), (Some(1), Some(4096)));
    }
    let writes = ["write -P 7 9M 1k", "write -P 8 5M 2500k", "write -P 9 0 1", "write -z 5M 1M"];
    let info = oracle.check(&oracle.create("20M", &[], &writes));
    assert_eq!(info.allocated, Some(4096 + 4096 + (2500 << 10)));
}

/// `qemu-img` 7 fails to convert to this, but `qemu-io` writes single clusters.
#[test]
fn reads_compressed_clusters_of_qemu_io() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Qcow1, "qcow", true);
    let noise = oracle.dir.path().join("noise");
    sparse_image(&noise, 1 << 20, 3);
    let noise = noise.to_str().unwrap();
    let write = |index: u64| match index {
        0..40 => format!("write -c -P {index} {}k 4k", index * 36),
        40..50 => format!("write -c -s {noise} {}k 4k", index * 36),
        _ => format!("write -P {index} {}k 3k", index * 36),
    };
    let writes: Vec<String> = (0..60).map(write).collect();
    let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
    let info = oracle.check(&oracle.create("5M", &[], &writes));
    assert_eq!((info.allocated, info.compression), (Some(60 * 4096), Some("zlib")));
}

#[test]
fn an_overlay_is_read_over_the_disk_that_is_given() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Qcow1, "qcow", true);
    let base = oracle.dir.path().join("base");
    sparse_image(&base, 3 << 20, 5);
    let path = oracle.dir.path().join("overlay");
    let (base_name, name) = (base.to_str().unwrap(), path.to_str().unwrap());
    qemu_img(["create", "-q", "-f", "qcow", "-b", base_name, "-F", "raw", name, "4M"]);
    oracle.change(&path, &["write -P 7 1M 700", "write -P 8 3500k 3k"]);
    let raw = path.with_extension("raw");
    qemu_img(["convert", "-f", "qcow", "-O", "raw", name, raw.to_str().unwrap()]);
    let file = fs_err::read(&path).unwrap();
    let backing = RawDisk::read_only(fs_err::read(&base).unwrap());
    let options = OpenOptions { backing: Some(Box::new(backing)), ..OpenOptions::default() };
    let disk = open_with(file.clone(), options).unwrap();
    conformance::check(&disk, 4 << 20);
    assert!(conformance::read_all(&disk) == fs_err::read(&raw).unwrap());

    let what = format!("the image is an overlay over another file, `{base_name}` (at offset 0x8)");
    let error = refused(&file);
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NeedsOtherFile, what.clone()));
    let info = inspect(&file).unwrap();
    assert_eq!((info.backing_file.as_deref(), info.refused), (Some(base_name), Some(what)));
}

#[test]
fn hostile_files_are_refused() {
    hostile::check("qcow1/*", &[]);
}

/// An image built by hand, with clusters of 512 bytes and L2 tables of 64 entries: the L1 table
/// behind the header, one L2 table, a cluster of data that is the disk's first, one that is
/// compressed and the disk's third.
#[derive(Clone)]
struct Built {
    file: Vec<u8>,
}

const CLUSTER: usize = 512;
const L1: usize = 48;
const L2: usize = 512;
const DATA: usize = 1024;
const PACKED: usize = 1536;
/// Four L2 tables map it, and a part of a fifth.
const SIZE: u64 = 4 * 64 * 512 + 1024;

impl Built {
    fn new() -> Self {
        let mut packed = vec![0; CLUSTER];
        let len = Compressor::new(CompressionLvl::default())
            .deflate_compress(&[0xcc; CLUSTER], &mut packed)
            .unwrap();
        let mut built = Self { file: vec![0; DATA] };
        built.file.extend([0xda; CLUSTER]);
        built.file.extend(&packed[..len]);
        built.put(0, b"QFI\xfb\0\0\0\x01");
        built.u64(24, SIZE);
        built.put(32, &[9, 6]);
        built.u64(40, L1 as u64);
        built.u64(L1 + 16, L2 as u64);
        built.u64(L2, DATA as u64);
        built.u64(L2 + 16, Self::packed(len));
        built
    }

    /// The entry for `len` compressed bytes at their place.
    fn packed(len: usize) -> u64 {
        COMPRESSED | (len as u64) << 54 | PACKED as u64
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.put(at, U64::new(value).as_bytes());
    }
}

/// Both ways of reading must refuse the file for the same reason. Returns it.
fn refused(file: &[u8]) -> Error {
    let error = read(file).unwrap_err();
    assert_eq!(decode(file, &[1000]).unwrap_err().to_string(), error.to_string());
    error
}

#[test]
fn clusters_are_where_the_tables_say() {
    let mut built = Built::new();
    // The last sector is not whole.
    built.u64(24, SIZE + 511);
    let mut expected = vec![0; SIZE as usize];
    let first = 2 * 64 * CLUSTER;
    expected[first..first + CLUSTER].fill(0xda);
    expected[first + 2 * CLUSTER..first + 3 * CLUSTER].fill(0xcc);
    conformance::check(&open(built.file.clone()).unwrap(), SIZE);
    assert!(read(&built.file).unwrap() == expected);
    assert!(decode(&built.file, &[7]).unwrap().0 == expected);
    let info = inspect(&built.file).unwrap();
    assert_eq!(info.allocated, Some(2 * CLUSTER as u64));
    built.file.pop();
    assert_eq!(refused(&built.file).kind(), ErrorKind::Truncated);
}

#[test]
fn what_contradicts_itself_is_refused_with_its_place() {
    for (at, value, what) in [
        (32, 8 << 56 | 6 << 48, "expected clusters of 2^9 to 2^16 bytes, got 2^8 (at offset 0x20)"),
        (
            32,
            9 << 56 | 14 << 48,
            "expected L2 tables of 2^6 to 2^13 entries, got 2^14 (at offset 0x21)",
        ),
        (32, 9 << 56 | 6 << 48 | 1, "the disk is encrypted with AES (at offset 0x24)"),
        (32, 9 << 56 | 6 << 48 | 7, "unknown encryption method 7 (at offset 0x24)"),
        (
            24,
            1 << 40,
            "expected a disk with an L1 table of at most 33554432 bytes, got 268435456 (at offset 0x18)",
        ),
        (40, 40, "the L1 table overlaps the header (at offset 0x28)"),
        (40, u64::MAX, "the L1 table at 0xffffffffffffffff is beyond any file (at offset 0x28)"),
        (40, 1 << 20, "the L1 table of 40 bytes ends beyond the file of 1544 (at offset 0x100000)"),
        (L1, L2 as u64, "the L2 table at 0x200 overlaps another (at offset 0x40)"),
        (L1 + 24, L2 as u64, "the L2 table at 0x200 overlaps another (at offset 0x48)"),
        (L1 + 8, 520, "the L2 table at 0x208 is not on a multiple of 512 bytes (at offset 0x38)"),
        (
            L1 + 8,
            COMPRESSED,
            "the L2 table at 0x8000000000000000 is beyond any file (at offset 0x38)",
        ),
        (
            L1 + 8,
            1 << 20,
            "the L2 table of 512 bytes ends beyond the file of 1544 (at offset 0x100000)",
        ),
        (
            L2,
            1 << 60 | 8,
            "the data cluster at 0x1000000000000008 is not on a multiple of 512 bytes (at offset 0x200)",
        ),
        (
            L2,
            COMPRESSED | 3 << 54,
            "the compressed cluster at 0x0 overlaps the metadata (at offset 0x200)",
        ),
        (L2, COMPRESSED | 512, "the compressed cluster at 0x200 has no bytes (at offset 0x200)"),
    ] {
        let mut built = Built::new();
        built.u64(at, value);
        let error = read(&built.file).unwrap_err();
        assert_eq!(error.to_string(), what);
        assert!(decode(&built.file, &[1000]).is_err(), "{what}, but it was streamed");
    }
}

#[test]
fn compressed_clusters_must_hold_a_cluster() {
    let mut built = Built::new();
    built.u64(L2 + 16, Built::packed(3));
    let error = refused(&built.file);
    let what = "the compressed cluster is not a valid deflate stream (at offset 0x600)";
    assert_eq!(error.to_string(), what);
    built.u64(8, 48);
    let error = refused(&built.file);
    let what = "the image is an overlay over another file, `` (at offset 0x8)";
    assert_eq!(error.to_string(), what);
}

/// Where damage does something, and values that are likelier than random ones to pass the checks.
fn damage() -> impl Strategy<Value = (usize, u64)> {
    let place = prop_oneof![0..96_usize, L1..L1 + 32, L2..L2 + 64, PACKED..PACKED + 1];
    let value = prop_oneof![
        (0..8_u64).prop_map(|cluster| cluster << 9),
        (0..8_u64, 0..64_u64).prop_map(|(cluster, len)| COMPRESSED | len << 54 | cluster << 9),
        (0..64_u32).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ];
    (place, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damage_is_found_or_harmless(damage in damage(), len in 0..2000_usize, chunk in 1..3000_usize) {
        let mut built = Built::new();
        built.file.resize(PACKED + 512, 0);
        built.u64(damage.0, damage.1);
        check_damaged(&built.file, &[chunk]);
        built.file.truncate(len);
        check_damaged(&built.file, &[chunk]);
    }
}
