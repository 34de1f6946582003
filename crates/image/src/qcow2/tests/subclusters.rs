//! Extended L2 entries: what each bit of a bitmap means, and which bitmaps are refused.

use proptest::prelude::*;

use super::{Built, CLUSTER, COPIED, DATA, L2};
use crate::conformance::{self, read_all};
use crate::support::decode;
use crate::{Error, ErrorKind, OpenOptions, open, open_with, raw::RawDisk};

const SUBCLUSTER: usize = CLUSTER / 32;

/// An image whose first L2 entries are these. Every subcluster of its one cluster of data begins
/// with its number.
fn image(l2: &[(u64, u64)]) -> Built {
    let mut built = Built::new();
    built.u64(72, 1 << 4);
    built.u64(L2, 0);
    for (index, (descriptor, bitmap)) in l2.iter().enumerate() {
        built.u64(L2 + 16 * index, *descriptor);
        built.u64(L2 + 16 * index + 8, *bitmap);
    }
    for index in 0..32 {
        built.put(DATA + index * SUBCLUSTER, &[index as u8 + 1]);
    }
    built
}

/// Reads the image both ways, which must agree.
fn read(file: &[u8]) -> Result<Vec<u8>, Error> {
    let opened = open(file.to_vec()).and_then(|disk| {
        let mut whole = vec![0; disk.virtual_size() as usize];
        disk.read_at(&mut whole, 0)?;
        conformance::check(&*disk, disk.virtual_size());
        Ok(whole)
    });
    match (&opened, decode(file, &[10_000])) {
        (Ok(opened), Ok((streamed, _))) => assert!(*opened == streamed),
        (Err(opened), Err(streamed)) => assert_eq!(opened.kind(), streamed.kind()),
        (opened, streamed) => panic!("{opened:?} but {streamed:?}"),
    }
    opened
}

#[test]
fn each_subcluster_has_its_own_bits() {
    let data = DATA as u64 | COPIED;
    for (allocated, zero) in [
        (0, 0),
        (u32::MAX, 0),
        (0, u32::MAX),
        (1, 0),
        (1 << 31, 1),
        (0xaaaa_aaaa, 0x5555_5555),
        (0x00ff_0f01, 0xff00_0010),
    ] {
        let bitmap = u64::from(zero) << 32 | u64::from(allocated);
        let built = image(&[(0, 0), (data, bitmap), (0, u64::from(zero) << 32)]);
        let disk = read(&built.file).unwrap();
        let backing = Some(Box::new(RawDisk::read_only(vec![0x77; 2 * CLUSTER])) as Box<_>);
        let mut named = built;
        named.u64(8, 1024);
        named.u32(16, 1);
        let options = OpenOptions { backing, ..Default::default() };
        let over = open_with(named.file, options).unwrap();
        conformance::check(&*over, 1 << 20);
        let over = read_all(&*over);
        assert!(over[..CLUSTER].iter().all(|byte| *byte == 0x77));
        assert!(over[2 * CLUSTER..].iter().all(|byte| *byte == 0));
        for index in 0..32 {
            let at = CLUSTER + index * SUBCLUSTER;
            let is = |bits: u32| bits >> index & 1 == 1;
            let stored = index as u8 + 1;
            let (alone, with_backing) = match (is(allocated), is(zero)) {
                (true, _) => (stored, stored),
                (_, true) => (0, 0),
                _ => (0, 0x77),
            };
            assert_eq!((disk[at], over[at]), (alone, with_backing), "{index} of {bitmap:#x}");
        }
    }
}

#[test]
fn bitmaps_that_contradict_themselves_are_refused() {
    let data = DATA as u64 | COPIED;
    let packed = 1 << 62 | DATA as u64;
    for (descriptor, bitmap, offset, what) in [
        (data, 1 << 32 | 1, 8, "a subcluster is both allocated and zero"),
        (data, u64::MAX, 8, "a subcluster is both allocated and zero"),
        (data, 1 << 63 | 1 << 31, 8, "a subcluster is both allocated and zero"),
        (0, 1, 8, "a subcluster is allocated in no cluster"),
        (packed, 1, 8, "a compressed cluster has subclusters"),
        (packed, 1 << 40, 8, "a compressed cluster has subclusters"),
        (data | 1, 0, 0, "reserved bits in the L2 entry"),
    ] {
        let error = read(&image(&[(0, 0), (descriptor, bitmap)]).file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.offset(), Some(L2 as u64 + 16 + offset), "{error}");
        assert!(error.to_string().starts_with(what), "{error}");
    }
}

/// Entries that are likelier than random ones to mean something.
fn entry() -> impl Strategy<Value = (u64, u64)> {
    let place = 0..6_u64;
    prop_oneof![
        (any::<u32>(), any::<u32>())
            .prop_map(|(a, b)| (DATA as u64 | COPIED, u64::from(a) << 32 | u64::from(b & !a))),
        (place, any::<u32>()).prop_map(|(place, zero)| (place << 16, u64::from(zero) << 32)),
        any::<u32>().prop_map(|zero| (0, u64::from(zero) << 32)),
        any::<(u64, u64)>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_entries_read_alike_both_ways(entries in prop::collection::vec(entry(), 1..3)) {
        // The stream may meet data before its table, and is then allowed to fail.
        drop(read(&image(&entries).file));
    }
}
