//! Headers that are refused, and what is said of them.

use super::built::{Built, DATA, FRONT, SECTOR, disk};
use crate::support::decode;
use crate::{Error, ErrorKind, conformance, inspect, open};

/// A disk with two grains, the second before the first.
fn built() -> (Built, Vec<u8>) {
    let disk = disk(128 * 3 + 8, &[0, 2]);
    (Built::sparse(&disk, &[2, 0]), disk)
}

fn read(file: &[u8]) -> Error {
    let read = || {
        let image = open(file.to_vec())?;
        image.read_at(&mut vec![0; image.virtual_size() as usize], 0)
    };
    read().unwrap_err()
}

#[test]
fn grains_may_stand_in_any_order() {
    let (built, disk) = built();
    let image = open(built.file.clone()).unwrap();
    conformance::check(&*image, disk.len() as u64);
    assert!(conformance::read_all(&*image) == disk);
    assert!(decode(&built.file, &[70_000]).unwrap().0 == disk);
    let info = inspect(&built.file).unwrap();
    assert_eq!(info.variant.as_deref(), Some("monolithicSparse"));
    assert_eq!((info.version, info.allocated), (Some(1), Some(2 << 16)));
}

#[test]
fn the_redundant_directory_is_used_where_there_is_no_other() {
    let (mut built, disk) = built();
    built.u64(56, 0);
    built.u64(48, 21);
    built.u32(8, 3);
    assert!(decode(&built.file, &[70_000]).unwrap().0 == disk);
    assert!(conformance::read_all(&*open(built.file.clone()).unwrap()) == disk);
    // Without the flag it is not there.
    built.u32(8, 1);
    assert!(read(&built.file).to_string().contains("the grain directory overlaps the header"));
}

#[test]
fn a_table_entry_of_one_is_zeros_if_the_header_says_so() {
    let (mut built, mut disk) = built();
    let table = built.tables[0];
    built.u32(table, 1);
    assert!(read(&built.file).to_string().contains("the grain at 0x200 overlaps the metadata"));
    built.u32(8, 1 | 4);
    disk[..1 << 16].fill(0);
    assert!(decode(&built.file, &[70_000]).unwrap().0 == disk);
    assert!(conformance::read_all(&*open(built.file.clone()).unwrap()) == disk);
}

#[test]
fn broken_headers_and_tables_are_refused() {
    type Damage = fn(&mut Built);
    let faults: &[(Damage, ErrorKind, &str)] = &[
        (|b| b.u32(4, 0), ErrorKind::Unsupported, "expected VMDK version 1 to 3, got 0"),
        (|b| b.u32(8, 1 << 20), ErrorKind::Unsupported, "flags 0x00100000"),
        (|b| b.u32(8, 1 << 16), ErrorKind::Unsupported, "only together"),
        (|b| b.u32(8, 3 << 16), ErrorKind::Unsupported, "compression algorithm 1"),
        (|b| b.put(73, b"\n \n\n"), ErrorKind::Corrupt, "changed by a copy as text"),
        (|b| b.u64(12, 1 << 60), ErrorKind::TooLarge, "beyond the limits"),
        (|b| b.u64(12, 128 * 3), ErrorKind::Corrupt, "the descriptor tells of 392 sectors"),
        (|b| b.u64(20, 8192), ErrorKind::Corrupt, "grains of a power of two up to 4096"),
        (|b| b.u32(44, 511), ErrorKind::Corrupt, "expected 512 entries"),
        (|b| b.u64(56, u64::MAX), ErrorKind::Corrupt, "only of a stream"),
        (|b| b.u64(56, 1 << 40), ErrorKind::Truncated, ""),
        (|b| b.u64(56, 1 << 60), ErrorKind::Corrupt, "beyond 2^63 - 1"),
        (|b| b.u64(36, 1 << 40), ErrorKind::TooLarge, "is not near the beginning"),
        (|b| b.u64(28, 0), ErrorKind::NeedsOtherFile, "one extent of a disk"),
        (|b| b.describe(1, "monolithicSparse"), ErrorKind::Corrupt, "tells of 1 sectors"),
        (|b| b.u32(FRONT, 21), ErrorKind::Corrupt, "overlaps the metadata"),
        (|b| b.u32(FRONT, 1 << 24), ErrorKind::Truncated, ""),
        (|b| b.u32(b.tables[0], 1 << 24), ErrorKind::Truncated, ""),
        (|b| b.file.truncate(DATA + SECTOR), ErrorKind::Truncated, ""),
        (|b| b.file.truncate(600), ErrorKind::Truncated, "the file ends inside the descriptor"),
        (|b| b.file.truncate(60), ErrorKind::Truncated, "the file ends inside the VMDK header"),
    ];
    for (damage, kind, what) in faults {
        let (mut built, _) = built();
        damage(&mut built);
        for error in [read(&built.file), decode(&built.file, &[70_000]).unwrap_err()] {
            assert_eq!(error.kind(), *kind, "{error}, expected {what}");
            assert!(error.to_string().contains(what), "{error}, expected {what}");
            assert!(error.offset().is_some(), "{error}");
        }
        // What the tables do not tell is told without them.
        if matches!(kind, ErrorKind::Unsupported | ErrorKind::NeedsOtherFile) {
            assert!(inspect(&built.file).unwrap().refused.unwrap().contains(what), "{what}");
        }
    }
}

#[test]
fn other_formats_of_extents_are_refused_by_name() {
    let mut sesparse = vec![0; SECTOR];
    sesparse[..4].copy_from_slice(b"\xbe\xba\xfe\xca");
    sesparse[8] = 1;
    sesparse[12] = 2;
    for (head, name) in [(b"COWD".to_vec(), "COWD"), (sesparse, "seSparse")] {
        let mut file = head;
        file.resize(4096, 0);
        for error in [read(&file), decode(&file, &[70_000]).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(inspect(&file).unwrap().refused.unwrap().contains(name));
    }
}

#[test]
fn a_table_has_one_place_in_the_directory() {
    let disk = disk(512 * 128 * 2, &[0, 512]);
    let mut built = Built::sparse(&disk, &[0, 512]);
    let first = built.tables[0];
    built.u32(FRONT + 4, (first / SECTOR) as u32);
    for error in [read(&built.file), decode(&built.file, &[70_000]).unwrap_err()] {
        assert!(error.to_string().contains("overlaps another"), "{error}");
        assert_eq!(error.offset(), Some(FRONT as u64 + 4));
    }
}
