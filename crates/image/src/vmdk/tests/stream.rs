//! Stream-optimized extents: what writers make, and what is wrong with them.

use bootyard_testkit::{qemu_img, require_tool};

use super::built::{Built, DATA, GRAIN, SECTOR, Tables, disk, pack};
use crate::support::decode;
use crate::{Error, ErrorKind, conformance, inspect, open};

/// The last grain of a disk of this many sectors is not whole.
const SECTORS: usize = 512 * 128 + 600;
/// Grains of the first table, and the last of the second.
const ORDER: [usize; 5] = [2, 0, 1, 511, 516];

fn both(file: &[u8]) -> Vec<u8> {
    let image = open(file.to_vec()).unwrap();
    let (streamed, summary) = decode(file, &[1000, 70_000]).unwrap();
    assert!(conformance::read_all(&*image) == streamed);
    assert_eq!(summary.spilled_bytes, 0);
    streamed
}

fn read(file: &[u8]) -> Result<(), Error> {
    let image = open(file.to_vec())?;
    image.read_at(&mut vec![0; image.virtual_size() as usize], 0)
}

#[test]
fn tables_may_be_at_either_end_and_grains_in_any_order() {
    let expected = disk(SECTORS, &ORDER);
    for tables in [Tables::Front, Tables::End] {
        let built = Built::stream(&expected, &ORDER, tables);
        assert!(both(&built.file) == expected);
        let image = open(built.file.clone()).unwrap();
        conformance::check(&*image, expected.len() as u64);
        let info = inspect(&built.file).unwrap();
        assert_eq!(info.variant.as_deref(), Some("streamOptimized"));
        assert_eq!((info.compression, info.refused), (Some("zlib"), None));
        assert_eq!(info.cluster_size, Some(GRAIN as u64));
        assert_eq!(info.allocated, Some(5 * GRAIN as u64));
        if require_tool("qemu-img") {
            let dir = tempfile::tempdir().unwrap();
            let [image, raw] = ["vmdk", "raw"].map(|name| dir.path().join(name));
            // QEMU wants the last grain whole.
            let mut whole = expected.clone();
            whole.resize(expected.len().next_multiple_of(GRAIN), 0);
            let order = &ORDER[..4];
            let mut built = Built::stream(&whole, order, tables);
            built.describe(whole.len() / SECTOR, "streamOptimized");
            fs_err::write(&image, &built.file).unwrap();
            fs_err::write(&raw, disk(whole.len() / SECTOR, order)).unwrap();
            let [image, raw] = [image, raw].map(|path| path.to_str().unwrap().to_owned());
            qemu_img(["compare", "-q", "-f", "raw", "-F", "vmdk", &raw, &image]);
        }
    }
}

#[test]
fn a_stream_may_be_empty_padded_and_annotated() {
    for tables in [Tables::Front, Tables::End] {
        assert!(both(&Built::stream(&disk(128, &[]), &[], tables).file) == disk(128, &[]));
        let expected = disk(SECTORS, &ORDER);
        let built = Built::stream(&expected, &ORDER, tables);
        for len in [1, SECTOR, 64 << 10] {
            let mut file = built.file.clone();
            file.resize(file.len() + len, 0);
            assert!(both(&file) == expected, "{len} zeros behind the end");
        }
    }
    // A marker of the kind that the specification does not have stands between two grains.
    let mut built = Built::stream(&disk(SECTORS, &ORDER), &ORDER, Tables::Front);
    let at = built.file.len() - SECTOR;
    built.u32(at + 12, 4);
    built.u64(at, 77);
    both(&built.file);
}

#[test]
fn a_header_may_round_the_disk_up_to_a_grain() {
    let expected = disk(SECTORS, &ORDER);
    for tables in [Tables::Front, Tables::End] {
        let mut built = Built::stream(&expected, &ORDER, tables);
        let whole = SECTORS.next_multiple_of(128) as u64;
        built.u64(12, whole);
        if tables == Tables::End {
            built.u64(built.footer + 12, whole);
        }
        // The last grain ends with the disk all the same.
        let at = *built.grains.last().unwrap();
        let error = decode(&built.file, &[70_000]).unwrap_err();
        assert_eq!(error.offset(), Some(at as u64 + 12), "{error}");
        let mut file = Built::stream(
            &{
                let mut disk = expected.clone();
                disk.resize(whole as usize * SECTOR, 0);
                disk
            },
            &ORDER,
            tables,
        );
        file.describe(SECTORS, "streamOptimized");
        assert!(both(&file.file) == expected);
        file.describe(SECTORS - 128, "streamOptimized");
        assert!(read(&file.file).unwrap_err().to_string().contains("the descriptor tells of"));
    }
}

#[test]
fn a_stream_that_is_cut_off_is_noticed() {
    let (order, expected) = ([2, 0, 1, 24], disk(24 * 128 + 88, &[0, 1, 2, 24]));
    for tables in [Tables::Front, Tables::End] {
        let built = Built::stream(&expected, &order, tables);
        let mut ends: Vec<usize> = (DATA..built.file.len()).step_by(SECTOR).collect();
        ends.extend(built.grains.iter().flat_map(|at| [at + 5, at + 100]));
        ends.extend([600, built.footer + 100]);
        if tables == Tables::Front {
            // QEMU leaves the end-of-stream marker away.
            assert!(both(&built.file[..built.file.len() - SECTOR]) == expected);
            ends.retain(|end| *end < built.file.len() - SECTOR);
        }
        for end in ends {
            for error in [
                decode(&built.file[..end], &[70_000]).unwrap_err(),
                read(&built.file[..end]).unwrap_err(),
            ] {
                let kind = error.kind();
                assert_eq!(kind, ErrorKind::Truncated, "{tables:?} cut at {end}: {error}");
            }
        }
    }
}

/// What is wrong with a stream: where, and what is written there.
type Fault = (fn(&mut Built), &'static str);

fn refused(tables: Tables, faults: &[Fault]) {
    for (damage, what) in faults {
        let mut built = Built::stream(&disk(SECTORS, &ORDER), &ORDER, tables);
        damage(&mut built);
        let error = decode(&built.file, &[70_000]).unwrap_err();
        assert!(error.to_string().contains(what), "{error}, expected {what}");
        assert!(error.offset().is_some(), "{error}");
    }
}

#[test]
fn grains_that_contradict_their_markers_or_tables_are_refused() {
    for tables in [Tables::Front, Tables::End] {
        refused(
            tables,
            &[
                (|b| b.u64(b.grains[1], 128 * 2), "comes twice"),
                (|b| b.u64(b.grains[1], 64), "there is no grain at sector 64"),
                (|b| b.u64(b.grains[1], 1 << 40), "there is no grain at sector"),
                (|b| b.u64(b.grains[1], 128 * 3), "does not agree with the grains"),
                (|b| b.u32(b.grains[1] + 8, 1 << 18), "at most 131072 bytes"),
                (|b| b.file[b.grains[1] + 30] ^= 1, "is not a valid zlib stream"),
                (|b| b.u32(b.tables[0] + 4 * 7, 200), "does not agree"),
                (|b| b.u32(b.tables[0], 0), "does not agree"),
                (|b| b.u32(b.directory + 4, (b.tables[0] / SECTOR) as u32), "overlaps another"),
                (|b| b.u32(b.directory, 0), "does not agree"),
                (|b| b.u32(b.directory, 1), "overlaps the metadata"),
                (|b| b.u32(b.directory, 1 << 30), "does not agree"),
                (
                    |b| {
                        let [a, c] = [b.directory, b.directory + 4];
                        (0..4).for_each(|i| b.file.swap(a + i, c + i));
                    },
                    "does not agree",
                ),
                (
                    |b| {
                        let [a, c] = [b.tables[0], b.tables[0] + 4];
                        (0..4).for_each(|i| b.file.swap(a + i, c + i));
                    },
                    "does not agree",
                ),
                (
                    |b| {
                        let at = b.file.len();
                        b.file.resize(at + SECTOR, 0);
                        b.u32(at + 12, 9);
                    },
                    "expected a marker, got Unknown(9)",
                ),
                (
                    |b| {
                        b.file.truncate(b.file.len() - SECTOR);
                        b.grain(128 * 5, &pack(&[1; GRAIN]));
                    },
                    "",
                ),
            ],
        );
    }
    refused(
        Tables::End,
        &[
            (|b| b.u64(b.footer + 56, u64::MAX), "the footer says that the grain directory is at"),
            (|b| b.u64(b.footer + 56, 128), "is not where the header says"),
            (|b| b.u64(b.footer + 12, 4000), "the footer contradicts the header"),
            (|b| b.put(b.footer, b"KDMX"), "the footer is not a VMDK header"),
            (|b| b.u64(b.footer - SECTOR, 2), "expected a marker"),
            (|b| b.u64(b.directory - SECTOR, 9), ""),
            (|b| b.u64(b.directory - SECTOR, u64::MAX / 2), "more than 2^64 bytes"),
        ],
    );
}

#[test]
fn a_stream_of_too_many_grains_is_refused() {
    let mut built = Built::stream(&disk(128, &[]), &[], Tables::End);
    let sectors = 128 << 28;
    built.u64(12, sectors as u64);
    built.describe(sectors, "streamOptimized");
    let error = decode(&built.file, &[70_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}
