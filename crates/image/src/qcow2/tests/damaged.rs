//! Random damage: nothing panics, nothing runs away, and both ways of reading agree.

use proptest::prelude::*;
use zerocopy::byteorder::big_endian::U64;

use super::{Built, CLUSTER, COPIED, DATA, L1, L2};
use crate::support::{check_damaged, decode, read};
use crate::{Error, ErrorKind, hostile, open};

/// An image with plain, shared, zero and compressed clusters.
fn image() -> Vec<u8> {
    let mut built = Built::new();
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let text: Vec<u8> = b"compressible ".iter().copied().cycle().take(CLUSTER).collect();
    let mut packed = vec![0; CLUSTER];
    let len = compressor.deflate_compress(&text, &mut packed).unwrap();
    built.file.extend(&packed[..len]);
    built.file.resize(DATA + 2 * CLUSTER, 0);
    built.u64(L2 + 8, DATA as u64);
    built.u64(L2 + 16, 1);
    // At 64 KiB a descriptor's sector count begins at bit 54.
    built.u64(L2 + 24, 1 << 62 | (len as u64 / 512) << 54 | (DATA + CLUSTER) as u64);
    built.file
}

/// Where damage does something: header, refcount table, L1, L2, compressed data.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..112_usize,
        1 => CLUSTER..CLUSTER + 16,
        2 => L1..L1 + 16,
        4 => L2..L2 + 128,
        2 => DATA + CLUSTER..DATA + CLUSTER + 300,
    ]
}

/// Values that are likelier than random ones to pass the checks.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..8_u64, prop::bool::ANY).prop_map(|(c, copied)| c << 16 | u64::from(copied) << 63),
        (0..8_u64, 0..1024_u64).prop_map(|(c, low)| 1 << 62 | c << 16 | low),
        (0..64_u32).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ]
}

#[test]
fn the_image_is_good() {
    let (disk, summary) = decode(&image(), &[1000]).unwrap();
    assert!(disk == read(&image()).unwrap());
    assert!(disk[3 * CLUSTER..].starts_with(b"compressible compressible"));
    assert_eq!(summary.data_bytes, 3 * CLUSTER as u64);
}

#[test]
fn hostile_files_are_refused_or_read_within_limits() {
    hostile::check("qcow2/*", &[]);
}

/// An image with clusters of `1 << bits` bytes and nothing behind its header but the `l1` table.
fn bare(bits: u32, l1: &[u64]) -> Vec<u8> {
    let (cluster, coverage) = (1 << bits, 1 << (2 * bits - 3));
    let mut built = Built::new();
    built.file.truncate(cluster);
    built.u32(20, bits);
    built.u64(24, l1.len() as u64 * coverage);
    built.u32(36, l1.len() as u32);
    built.u64(40, 2 * cluster as u64);
    built.u64(48, cluster as u64);
    built.file.resize(2 * cluster, 0);
    built.file.extend(l1.iter().flat_map(|entry| entry.to_be_bytes()));
    built.file
}

/// Both ways of reading must refuse `file` for the same reason. Returns it.
fn refused(file: &[u8]) -> Error {
    let opened = open(file.to_vec()).map(drop).unwrap_err();
    let streamed = decode(file, &[100_000]).unwrap_err();
    assert_eq!(streamed.to_string(), opened.to_string());
    assert_eq!(streamed.kind(), opened.kind());
    streamed
}

#[test]
fn an_l2_table_has_one_place_in_the_l1_table() {
    let l1_at = 2 * CLUSTER as u64;
    let l2 = |cluster: u64| cluster * CLUSTER as u64;
    for (l1, second) in [
        (vec![l2(4), l2(4)], 1),
        (vec![l2(4), 0, l2(5), l2(4) | COPIED, l2(5)], 3),
        // The L1 table is taken in more than one piece.
        (vec![l2(9); 20_000], 1),
        ((10..20_010).chain([15_000]).map(l2).collect(), 20_000),
    ] {
        let mut file = bare(16, &l1);
        file.resize(file.len() + 16 * CLUSTER, 0);
        let error = refused(&file);
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.offset(), Some(l1_at + second * 8));
        assert!(error.to_string().contains("twice"), "{error}");
    }
    // Behind the disk's end nobody looks.
    let mut built = Built { file: image() };
    built.u32(36, 3);
    built.u64(L1 + 8, L2 as u64);
    built.u64(L1 + 16, L2 as u64);
    assert!(decode(&built.file, &[1000]).unwrap().0 == read(&built.file).unwrap());
}

#[test]
fn a_shared_l2_table_costs_nothing() {
    // 512 GiB of zeros by each of 300,000 entries, from one table of 2 MiB that has passed.
    let cluster = 2_u64 << 20;
    let mut built = Built { file: bare(21, &[0]) };
    built.file.resize(3 * cluster as usize, 0);
    built.file.extend((2 * cluster).to_be_bytes().repeat(300_000));
    built.u64(24, 300_000 << 39);
    built.u32(36, 300_000);
    built.u64(40, 3 * cluster);
    let error = refused(&built.file);
    assert_eq!(error.offset(), Some(3 * cluster + 8));
}

#[test]
fn more_tables_than_can_be_waited_for_are_refused() {
    const WAITING_MAX: u64 = 1 << 19;
    let first = ((WAITING_MAX * 8) >> 9) + 100;
    let l1: Vec<u64> = (first..first + WAITING_MAX + 1).map(|cluster| cluster << 9).collect();
    let error = decode(&bare(9, &l1), &[1 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("would have to be waited for"), "{error}");
    open(bare(9, &l1)).map(drop).unwrap();
}

#[test]
fn more_tables_than_can_be_told_apart_are_refused() {
    const NAMED_MAX: u64 = 1 << 20;
    let first = ((NAMED_MAX * 8) >> 9) + 100;
    let l1: Vec<u64> = (first..first + NAMED_MAX + 1).map(|cluster| cluster << 9).collect();
    let error = open(bare(9, &l1)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(error.offset(), Some(1024 + NAMED_MAX * 8));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_bytes(
        damage in prop::collection::vec((place(), any::<u8>()), 1..6),
        lens in prop::collection::vec(1..300_000_usize, 1..4),
        cut in prop::option::of(0..DATA + 2 * CLUSTER),
    ) {
        let mut file = image();
        for (at, byte) in damage {
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        check_damaged(&file, &lens);
    }

    #[test]
    fn damaged_entries(
        damage in prop::collection::vec((place(), value()), 1..6),
        lens in prop::collection::vec(1..300_000_usize, 1..4),
    ) {
        let mut file = image();
        for (at, value) in damage {
            file[at / 8 * 8..][..8].copy_from_slice(&U64::new(value).to_bytes());
        }
        check_damaged(&file, &lens);
    }

    #[test]
    fn shuffled_clusters(
        order in Just((1..7_usize).collect::<Vec<_>>()).prop_shuffle(),
        lens in prop::collection::vec(1..300_000_usize, 1..4),
    ) {
        // Every order of the clusters behind the header is an image of the same disk.
        let old = image();
        let moved = |old: usize| (order.iter().position(|c| *c == old).unwrap() + 1) * CLUSTER;
        let mut file = old[..CLUSTER].to_vec();
        order.iter().for_each(|c| file.extend(&old[c * CLUSTER..][..CLUSTER]));
        let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_be_bytes());
        put(40, moved(3) as u64);
        put(48, moved(1) as u64);
        put(moved(1), moved(2) as u64);
        put(moved(3), moved(4) as u64 | COPIED);
        put(moved(4), moved(5) as u64);
        put(moved(4) + 8, moved(5) as u64);
        let sectors = u64::from_be_bytes(old[L2 + 24..L2 + 32].try_into().unwrap()) & 0xff << 54;
        put(moved(4) + 24, 1 << 62 | sectors | moved(6) as u64);
        let (disk, _) = decode(&file, &lens).unwrap();
        prop_assert!(disk == read(&image()).unwrap());
        prop_assert!(disk == read(&file).unwrap());
    }
}
