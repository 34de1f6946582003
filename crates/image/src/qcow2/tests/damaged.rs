//! Random damage: nothing panics, nothing runs away, and both ways of reading agree.

use proptest::prelude::*;
use zerocopy::byteorder::big_endian::U64;

use super::{Built, CLUSTER, COPIED, DATA, L1, L2};
use crate::support::{SIZE_MAX, decode};
use crate::{Error, ErrorKind, open};

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

fn read(file: &[u8]) -> Result<Vec<u8>, Error> {
    let disk = open(file.to_vec())?;
    let mut whole = vec![0; disk.virtual_size().min(SIZE_MAX) as usize];
    disk.read_at(&mut whole, 0)?;
    Ok(whole)
}

fn check(file: &[u8], lens: &[usize]) {
    let opened = read(file);
    match (decode(file, lens), opened) {
        (Ok((streamed, _)), Ok(opened)) => assert!(streamed == opened),
        (Err(error), Ok(_)) => assert!(
            matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Write),
            "{error}, but random access reads it"
        ),
        (Ok(_), Err(error)) => panic!("streamed, but {error}"),
        (Err(_), Err(_)) => {}
    }
}

#[test]
fn the_image_is_good() {
    let (disk, summary) = decode(&image(), &[1000]).unwrap();
    assert!(disk == read(&image()).unwrap());
    assert!(disk[3 * CLUSTER..].starts_with(b"compressible compressible"));
    assert_eq!(summary.data_bytes, 3 * CLUSTER as u64);
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
        check(&file, &lens);
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
        check(&file, &lens);
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
