//! Tests of reading: `qemu-img` as the judge, images built by hand, damaged and hostile files.

use bootyard_testkit::{qemu_img, require_tool, sparse_image};
use proptest::prelude::*;

use super::{open, open_with};
use crate::oracle::Oracle;
use crate::raw::RawDisk;
use crate::support::{check_damaged, decode, read};
use crate::{Error, ErrorKind, Format, OpenOptions, conformance, hostile, inspect};

#[test]
fn reads_what_qemu_img_makes() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Qed, "qed", true);
    for (len, options, cluster) in [
        (512, &[][..], 65536),
        ((12 << 20) + 512 * 77, &[], 65536),
        ((12 << 20) + 512 * 3, &["-o", "cluster_size=4096,table_size=2"], 4096),
        (5 << 20, &["-o", "cluster_size=1M,table_size=16"], 1 << 20),
    ] {
        let info = oracle.check(&oracle.convert(len, options));
        assert_eq!(info.cluster_size, Some(cluster));
    }
    let writes = ["write -P 7 9M 1k", "write -P 8 5M 2500k", "write -P 9 0 1", "write -z 12M 1M"];
    let info = oracle.check(&oracle.create("20M", &[], &writes));
    assert_eq!(info.allocated, Some(42 << 16));
}

#[test]
fn an_overlay_is_read_over_the_disk_that_is_given() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Qed, "qed", true);
    let base = oracle.dir.path().join("base");
    sparse_image(&base, 3 << 20, 5);
    let path = oracle.dir.path().join("overlay");
    let (base_name, name) = (base.to_str().unwrap(), path.to_str().unwrap());
    qemu_img(["create", "-q", "-f", "qed", "-b", base_name, "-F", "raw", name, "4M"]);
    oracle.change(&path, &["write -P 7 1M 700", "write -z 2M 64k", "write -P 8 3500k 3k"]);
    let raw = path.with_extension("raw");
    qemu_img(["convert", "-f", "qed", "-O", "raw", name, raw.to_str().unwrap()]);
    let file = fs_err::read(&path).unwrap();
    let backing = RawDisk::read_only(fs_err::read(&base).unwrap());
    let options = OpenOptions { backing: Some(Box::new(backing)), ..OpenOptions::default() };
    let disk = open_with(file.clone(), options).unwrap();
    conformance::check(&disk, 4 << 20);
    assert!(conformance::read_all(&disk) == fs_err::read(&raw).unwrap());

    let what = format!("the image is an overlay over another file, `{base_name}` (at offset 0x38)");
    let error = refused(&file);
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NeedsOtherFile, what.clone()));
    let info = inspect(&file).unwrap();
    assert_eq!((info.backing_file.as_deref(), info.refused), (Some(base_name), Some(what)));
    assert_eq!(info.backing_format.as_deref(), Some("raw"));
}

#[test]
fn a_backing_disk_for_no_overlay_is_refused() {
    let backing = RawDisk::read_only(vec![0; 512]);
    let options = OpenOptions { backing: Some(Box::new(backing)), ..OpenOptions::default() };
    let error = open_with(Built::new().file, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

#[test]
fn hostile_files_are_refused() {
    hostile::check("qed/*", &[]);
}

/// An image built by hand, with clusters of 4 KiB: header, L1 table, L2 table, data. The one cluster
/// of data is the first of the second L2 table; a cluster of zeros follows it.
#[derive(Clone)]
struct Built {
    file: Vec<u8>,
}

const CLUSTER: usize = 4096;
const L1: usize = CLUSTER;
const L2: usize = 2 * CLUSTER;
const DATA: usize = 3 * CLUSTER;
const SIZE: u64 = 3 * (512 * 4096) + 1024;

impl Built {
    fn new() -> Self {
        let mut built = Self { file: vec![0; DATA] };
        built.file.extend([0xda; CLUSTER]);
        built.file[..4].copy_from_slice(b"QED\0");
        built.u64(4, 1 << 32 | CLUSTER as u64);
        built.u64(12, 1);
        built.u64(40, L1 as u64);
        built.u64(48, SIZE);
        built.u64(L1 + 8, L2 as u64);
        built.u64(L2, DATA as u64);
        built.u64(L2 + 8, 1);
        built
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.file[at..at + 8].copy_from_slice(&value.to_le_bytes());
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
    let mut expected = vec![0; SIZE as usize];
    expected[512 * CLUSTER..513 * CLUSTER].fill(0xda);
    conformance::check(&open(built.file.clone()).unwrap(), SIZE);
    assert!(read(&built.file).unwrap() == expected);
    assert!(decode(&built.file, &[7]).unwrap().0 == expected);
    assert_eq!(inspect(&built.file).unwrap().notes, [""; 0]);
    // It was not closed.
    built.u64(16, 2);
    assert!(read(&built.file).unwrap() == expected);
    assert_eq!(inspect(&built.file).unwrap().notes.len(), 1);
    built.file.pop();
    assert_eq!(read(&built.file).unwrap_err().kind(), ErrorKind::Truncated);
    assert_eq!(decode(&built.file, &[999]).unwrap_err().kind(), ErrorKind::Truncated);
}

#[test]
fn what_contradicts_itself_is_refused_with_its_place() {
    for (at, value, what) in [
        (4, 1 << 32 | 2048, "expected clusters of 2^12 to 2^26 bytes, got 2048 (at offset 0x4)"),
        (4, 3 << 32 | 4096, "expected tables of 1, 2, 4, 8 or 16 clusters, got 3 (at offset 0x8)"),
        (12, 0, "expected a header of 1 to 2^32 - 1 bytes, got 0 (at offset 0xc)"),
        (12, 2, "the L1 table overlaps the header (at offset 0x28)"),
        (16, 8, "unknown feature bits 0x8 (at offset 0x10)"),
        (40, 4608, "the L1 table at 0x1200 is not on a cluster (at offset 0x28)"),
        (
            40,
            1 << 20,
            "the L1 table of 4096 bytes ends beyond the file of 16384 (at offset 0x100000)",
        ),
        (48, 1000, "expected a disk of whole sectors, got 1000 bytes (at offset 0x30)"),
        (
            48,
            2 << 30,
            "an L1 table of 4096 bytes is too short for a disk of 2147483648 (at offset 0x30)",
        ),
        (48, 1 << 63, "a disk of 9223372036854775808 bytes is beyond 2^63 - 1 (at offset 0x30)"),
        (L1, L2 as u64, "the L2 table at 0x2000 overlaps another (at offset 0x1008)"),
        (L1, 1, "the L2 table at 0x1 is not on a multiple of 4096 bytes (at offset 0x1000)"),
        (L1, 4096, "the L2 table at 0x1000 overlaps the metadata (at offset 0x1000)"),
        (L1, 1 << 63, "the L2 table at 0x8000000000000000 is beyond any file (at offset 0x1000)"),
        (
            L1,
            1 << 20,
            "the L2 table of 4096 bytes ends beyond the file of 16384 (at offset 0x100000)",
        ),
        (L2, 2, "the data cluster at 0x2 is not on a multiple of 4096 bytes (at offset 0x2000)"),
        (L2, 4096, "the data cluster at 0x1000 overlaps the metadata (at offset 0x2000)"),
        (
            L2,
            u64::MAX << 12,
            "the data cluster at 0xfffffffffffff000 is beyond any file (at offset 0x2000)",
        ),
        (
            L2,
            1 << 20,
            "the data cluster of 4096 bytes ends beyond the file of 16384 (at offset 0x100000)",
        ),
    ] {
        let mut built = Built::new();
        built.u64(at, value);
        let error = read(&built.file).unwrap_err();
        assert_eq!(error.to_string(), what);
        assert!(decode(&built.file, &[1000]).is_err(), "{what}, but it was streamed");
    }
}

/// Where damage does something, and values that are likelier than random ones to pass the checks.
fn damage() -> impl Strategy<Value = (usize, u64)> {
    let place = prop_oneof![0..72_usize, L1..L1 + 32, L2..L2 + 64];
    let value = prop_oneof![
        (0..8_u64).prop_map(|cluster| cluster << 12),
        (0..64_u32).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ];
    (place, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damage_is_found_or_harmless(damage in damage(), len in 0..16384_usize, chunk in 1..9000_usize) {
        let mut built = Built::new();
        built.u64(damage.0, damage.1);
        check_damaged(&built.file, &[chunk]);
        built.file.truncate(len);
        check_damaged(&built.file, &[chunk]);
    }
}
