//! What an image may need or hold besides its disk: snapshots, backing disks, data files.

use std::path::{Path, PathBuf};

use bootyard_testkit::{pseudo_random, qemu_img, require_tool, sparse_image};
use fs_err::File;
use proptest::prelude::*;

use super::oracle::{convert, expected, open_file, qemu_io, strings};
use super::{Built, CLUSTER, DATA, L1, L2};
use crate::conformance::{self, read_all};
use crate::raw::{FileAt, RawDisk};
use crate::support::decode;
use crate::{Disk, Error, ErrorKind, OpenOptions, Pieces, inspect, open, open_with};

fn file(path: &Path) -> FileAt {
    FileAt::new(File::open(path).unwrap().into()).unwrap()
}

fn create(path: &Path, options: &str) {
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(strings(options));
    arguments.insert(arguments.len() - 1, path.to_str().unwrap());
    qemu_img(arguments);
}

fn snapshot(path: &Path, name: &str) -> Result<Box<dyn Disk>, Error> {
    let options = OpenOptions { snapshot: Some(name.to_owned()), ..Default::default() };
    open_with(file(path), options)
}

#[test]
fn snapshots_are_listed_and_read() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (index, options) in
        ["", "compat=0.10,", "extended_l2=on,", "cluster_size=512,"].into_iter().enumerate()
    {
        let path = dir.path().join(format!("{index}.qcow2"));
        create(&path, &format!("-o {options}refcount_bits=16 6M"));
        let name = path.to_str().unwrap();
        qemu_io(&path, &["write -P 1 0 3M", "write -P 2 4M 1M"]);
        qemu_img(["snapshot", "-c", "first", name]);
        qemu_io(&path, &["write -P 3 100k 2M", "discard 4M 256k"]);
        // A name may look like another's identifier.
        qemu_img(["snapshot", "-c", "1", name]);
        qemu_io(&path, &["write -P 4 0 1M", "write -P 5 5M 512k"]);
        for (wanted, by) in [("first", "first"), ("1", "first"), ("2", "snapshot.id=2")] {
            let option = format!("-l {by}");
            let disk = snapshot(&path, wanted).unwrap();
            conformance::check(&*disk, 6 << 20);
            assert!(read_all(&*disk) == expected(&path, &option), "{wanted} of {options}");
        }
        assert!(read_all(&*open_file(&path)) == expected(&path, ""));
        let error = snapshot(&path, "second").map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert_eq!(
            error.to_string(),
            "the image has no snapshot `second`, only `first`, `1` (at offset 0x3c)"
        );
        let info = inspect(&file(&path)).unwrap();
        let list: Vec<_> = info.snapshots.iter().map(|s| (&*s.id, &*s.name)).collect();
        assert_eq!(list, [("1", "first"), ("2", "1")]);
        assert!(info.snapshots.iter().all(|s| s.virtual_size == 6 << 20 && s.vm_state_size == 0));
        assert!(info.snapshots[0].taken > 1_600_000_000);
    }
}

#[test]
fn a_snapshot_keeps_its_size() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resized.qcow2");
    create(&path, "2M");
    let name = path.to_str().unwrap();
    qemu_io(&path, &["write -P 7 1M 1M"]);
    qemu_img(["snapshot", "-c", "small", name]);
    qemu_img(["resize", "-q", name, "1G"]);
    qemu_io(&path, &["write -P 8 1M 3M"]);
    let disk = snapshot(&path, "small").unwrap();
    conformance::check(&*disk, 2 << 20);
    assert!(read_all(&*disk)[1 << 20..].iter().all(|byte| *byte == 7));
    assert_eq!(open_file(&path).virtual_size(), 1 << 30);
}

/// An image with a table of snapshots at its end.
fn with_snapshots(table: &[u8], count: u32) -> Built {
    let mut built = Built::new();
    built.u32(60, count);
    built.u64(64, built.file.len() as u64);
    built.file.extend(table);
    built
}

/// A snapshot of the active state, and what its fields are to be.
fn entry(l1: u64, l1_entries: u32, size: u64, name: &[u8]) -> Vec<u8> {
    let mut entry = l1.to_be_bytes().to_vec();
    entry.extend(l1_entries.to_be_bytes());
    entry.extend([0, 1]);
    entry.extend((name.len() as u16).to_be_bytes());
    entry.extend([0; 20]);
    entry.extend(16_u32.to_be_bytes());
    entry.extend([0; 8]);
    entry.extend(size.to_be_bytes());
    entry.push(b'7');
    entry.extend(name);
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

#[test]
fn damaged_snapshot_tables_are_refused_both_ways() {
    let good = entry(L1 as u64, 1, 1 << 20, b"good");
    let place = DATA as u64 + CLUSTER as u64;
    let mut extra = good.clone();
    extra[36..40].copy_from_slice(&1025_u32.to_be_bytes());
    let long = entry(L1 as u64, 1, 1 << 20, &[b'x'; 60_000]);
    for (table, count, kind, offset) in [
        (extra, 1, ErrorKind::TooLarge, Some(place + 36)),
        (good[..39].to_vec(), 1, ErrorKind::Truncated, None),
        (good[..56].to_vec(), 1, ErrorKind::Truncated, None),
        (good.clone(), 2, ErrorKind::Truncated, None),
        (long.repeat(80), 80, ErrorKind::TooLarge, None),
    ] {
        let built = with_snapshots(&table, count);
        let opened = open(built.file.clone()).map(drop).unwrap_err();
        let streamed = decode(&built.file, &[10_000]).unwrap_err();
        assert_eq!((opened.kind(), streamed.kind()), (kind, kind), "{opened}, {streamed}");
        if offset.is_some() {
            assert_eq!((opened.offset(), streamed.offset()), (offset, offset));
        }
        assert!(inspect(&built.file).is_err());
    }
    let mut unaligned = with_snapshots(&good, 1);
    unaligned.u64(64, place + 8);
    assert_eq!(open(unaligned.file).map(drop).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_damaged_snapshot_leaves_the_active_disk_alone() {
    let size = 1 << 20;
    for (l1, entries, size, kind) in [
        (L1 as u64, u32::MAX, size, ErrorKind::TooLarge),
        (L1 as u64 + 8, 1, size, ErrorKind::Corrupt),
        (u64::MAX << 16, 1, size, ErrorKind::Corrupt),
        (0, 1, size, ErrorKind::Corrupt),
        (1 << 40, 1, size, ErrorKind::Truncated),
        (L1 as u64, 1, 1 << 40, ErrorKind::Corrupt),
    ] {
        let built = with_snapshots(&entry(l1, entries, size, b"bad\x1b"), 1);
        let active = read_all(&*open(built.file.clone()).unwrap());
        assert!(decode(&built.file, &[10_000]).unwrap().0 == active);
        let info = inspect(&built.file).unwrap();
        assert_eq!((&*info.snapshots[0].id, &*info.snapshots[0].name), ("7", "bad\\u{1b}"));
        let options = OpenOptions { snapshot: Some("7".to_owned()), ..Default::default() };
        let error = open_with(built.file, options).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// Opens the overlay at `path` over `backing`.
fn overlay(path: &Path, backing: Box<dyn Disk>) -> Box<dyn Disk> {
    open_with(file(path), OpenOptions { backing: Some(backing), ..Default::default() }).unwrap()
}

/// Creates an overlay and opens what it is to be opened with.
fn layer(dir: &Path, base: &Path, format: &str, options: &str) -> PathBuf {
    let path = dir.join(format!("over-{}", base.file_name().unwrap().to_str().unwrap()));
    let base = base.to_str().unwrap();
    create(&path, &format!("-b {base} -F {format} {options}"));
    path
}

#[test]
fn overlays_read_through_to_their_backing_disks() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (index, (base_len, options)) in [
        (3 << 20, "3M"),
        ((2 << 20) + 5 * 512, "4M"),
        (4 << 20, "-o cluster_size=2M 3M"),
        (3 << 20, "-o extended_l2=on 5M"),
        (3 << 20, "-o cluster_size=512 4M"),
        (3 << 20, "-o compat=0.10 4M"),
    ]
    .into_iter()
    .enumerate()
    {
        let raw = dir.path().join(format!("{index}.raw"));
        sparse_image(&raw, base_len, index as u64);
        let low = layer(dir.path(), &raw, "raw", "-o cluster_size=4k 3M");
        let high = layer(dir.path(), &low, "qcow2", options);
        qemu_io(&low, &["write -P 1 5k 100k", "write -z 1M 300k", "write -P 2 2M 1k"]);
        qemu_io(&high, &["write -P 3 50k 3k", "write -z 1M 64k", "write -P 4 1500k 700"]);
        let base = Box::new(RawDisk::read_only(file(&raw)));
        let disk = overlay(&high, overlay(&low, base));
        let expected = expected(&high, "");
        conformance::check(&*disk, expected.len() as u64);
        assert!(read_all(&*disk) == expected, "{options}");
        let error = open(file(&high)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NeedsOtherFile);
    }
}

#[test]
fn data_files_are_read_where_the_image_says_so() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (index, options) in
        ["data_file_raw=on", "data_file_raw=off", "data_file_raw=off,extended_l2=on"]
            .into_iter()
            .enumerate()
    {
        let path = dir.path().join(format!("{index}.qcow2"));
        let data = dir.path().join(format!("{index}.data"));
        create(&path, &format!("-o data_file={},{options} 3M", data.display()));
        qemu_io(&path, &["write -P 9 0 70k", "write -z 1M 640k", "write -P 6 2M 1M"]);
        let needed = open(file(&path)).map(drop).unwrap_err();
        assert_eq!(needed.kind(), ErrorKind::NeedsOtherFile);
        let with = |data_file: FileAt| {
            let data_file: Option<Box<dyn crate::ReadAt>> = Some(Box::new(data_file));
            open_with(file(&path), OpenOptions { data_file, ..Default::default() }).unwrap()
        };
        let disk = with(file(&data));
        let expected = expected(&path, "");
        conformance::check(&*disk, 3 << 20);
        assert!(read_all(&*disk) == expected, "{options}");
        fs_err::OpenOptions::new().write(true).open(&data).unwrap().set_len(1000).unwrap();
        let error = with(file(&data)).read_at(&mut [0; 4096], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated);
    }
}

#[test]
fn what_is_given_must_be_wanted() {
    let plain = Built::new().file;
    let backing: Option<Box<dyn Disk>> = Some(Box::new(RawDisk::read_only(vec![0; 512])));
    let data_file: Option<Box<dyn crate::ReadAt>> = Some(Box::new(vec![0; 512]));
    for (options, what) in [
        (
            OpenOptions { backing, ..Default::default() },
            "the image is no overlay, but a backing disk was given (at offset 0x8)",
        ),
        (
            OpenOptions { data_file, ..Default::default() },
            "the image holds its data itself, but a data file was given (at offset 0x48)",
        ),
        (
            OpenOptions { snapshot: Some("a\x07".to_owned()), ..Default::default() },
            "the image has no snapshot `a\\u{7}`, nor any other (at offset 0x3c)",
        ),
    ] {
        let error = open_with(plain.clone(), options).map(drop).unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Mismatch, what));
    }
}

#[test]
fn clusters_of_a_data_file_have_their_place() {
    let cluster = CLUSTER as u64;
    for (entry, data, outcome) in [
        (1 << 63, CLUSTER, Ok(5)),
        (0, CLUSTER, Ok(0)),
        (1 << 63 | 1, CLUSTER, Ok(0)),
        (1 << 63, CLUSTER - 1, Err(ErrorKind::Truncated)),
        (1 << 63 | cluster, CLUSTER, Err(ErrorKind::Corrupt)),
        ((1 << 62) | (2 * cluster), CLUSTER, Err(ErrorKind::Corrupt)),
    ] {
        let mut built = Built::new();
        built.u64(72, 1 << 2);
        built.u64(L2, entry);
        let data_file: Option<Box<dyn crate::ReadAt>> = Some(Box::new(vec![5; data]));
        let options = OpenOptions { data_file, ..Default::default() };
        let disk = open_with(built.file, options).unwrap();
        let mut first = vec![9; CLUSTER];
        let read = disk.read_at(&mut first, 0).map(|()| first[CLUSTER - 1]);
        assert_eq!(read.map_err(|error| error.kind()), outcome, "{entry:#x}");
    }
}

#[test]
fn what_is_stored_and_ignored_is_told() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    let mut data = vec![0; 4 << 20];
    data[1 << 20..][..300_000].copy_from_slice(&pseudo_random(300_000, 1));
    fs_err::write(&raw, &data).unwrap();
    for options in ["", "-c", "-o extended_l2=on,cluster_size=2M"] {
        let path = convert(dir.path(), &raw, options);
        let name = path.to_str().unwrap();
        for bitmap in ["a", "b", "c"] {
            qemu_img(["bitmap", "--add", name, bitmap]);
        }
        let info = inspect(&file(&path)).unwrap();
        assert_eq!(info.allocated, Some(327_680), "{options}");
        assert_eq!(info.notes, ["3 dirty bitmaps are ignored"]);
        assert_eq!(info.features.contains(&"extended-l2"), options.contains("extended"));
        assert_eq!(info.refused, None);
    }
}

#[test]
fn a_bitmap_directory_must_be_in_the_file() {
    let bitmaps = |offset: u64, len: u64| {
        let mut built = Built::new();
        built.u64(88, 1);
        let data = [1 << 32, len, offset].map(u64::to_be_bytes).concat();
        built.extension(104, 0x2385_2875, &data);
        built.file
    };
    let (place, cluster) = (DATA as u64, CLUSTER as u64);
    open(bitmaps(place, cluster)).map(drop).unwrap();
    decode(&bitmaps(place, cluster), &[10_000]).unwrap();
    for (offset, len, kind) in [
        (place, cluster + 1, ErrorKind::Truncated),
        (1 << 50, 64, ErrorKind::Truncated),
        (place + 8, 64, ErrorKind::Corrupt),
        (u64::MAX << 16, 64, ErrorKind::Corrupt),
        (place, 1 << 40, ErrorKind::TooLarge),
    ] {
        let file = bitmaps(offset, len);
        assert_eq!(open(file.clone()).map(drop).unwrap_err().kind(), kind);
        assert_eq!(decode(&file, &[10_000]).unwrap_err().kind(), kind);
    }
    let mut outdated = Built { file: bitmaps(1 << 50, 64) };
    outdated.u64(88, 0);
    let info = inspect(&outdated.file).unwrap();
    assert_eq!(info.notes, ["1 dirty bitmap is ignored"]);
    assert_eq!(info.refused, None);
}

#[test]
fn the_name_of_a_data_file_that_is_not_used_is_ignored() {
    let mut built = Built::new();
    built.extension(104, 0x4441_5441, b"/etc/passwd");
    let info = inspect(&built.file).unwrap();
    assert_eq!((info.data_file, info.refused), (None, None));
    let note = "the data file `/etc/passwd` is ignored: the image holds its data itself";
    assert_eq!(info.notes, [note]);
}

#[test]
fn the_rest_of_a_last_sector_is_not_seen() {
    let mut built = Built::new();
    built.u64(24, 100_001);
    let disk = open(built.file.clone()).unwrap();
    conformance::check(&*disk, 99_840);
    assert!(decode(&built.file, &[10_000]).unwrap().0 == read_all(&*disk));
}

#[test]
fn a_sparse_disk_of_a_pebibyte_is_walked_at_once() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.qcow2");
    create(&path, "1P");
    let middle = 1_u64 << 49;
    qemu_io(&path, &[format!("write -P 1 {middle} 64k")]);
    let disk = open_file(&path);
    let pieces: Vec<_> = Pieces::new(&*disk).map(Result::unwrap).collect();
    let shown: Vec<_> = pieces.iter().map(|(at, extent)| (*at, extent.zero)).collect();
    assert_eq!(shown, [(0, true), (middle, false), (middle + 65_536, true)]);
}

/// Something that happens to an image, as `qemu-io` calls it.
fn operation() -> impl Strategy<Value = String> {
    let range = || (0..(6 << 11) - 600_u64, 1..600_u64);
    let on = |(at, len): (u64, u64)| format!("{} {}", at * 512, len * 512);
    prop_oneof![
        3 => (range(), 1..250_u8)
            .prop_map(move |(range, byte)| format!("write -P {byte} {}", on(range))),
        1 => range().prop_map(move |range| format!("write -z {}", on(range))),
        1 => range().prop_map(move |range| format!("write -z -u {}", on(range))),
        1 => range().prop_map(move |range| format!("discard {}", on(range))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_happens_to_an_image_it_reads_as_qemu_reads_it(
        options in prop::sample::select(&[
            "cluster_size=512",
            "cluster_size=4k,compat=0.10",
            "cluster_size=64k",
            "cluster_size=16k,extended_l2=on",
            "cluster_size=64k,extended_l2=on",
            "cluster_size=2M,extended_l2=on",
        ]),
        before in prop::collection::vec(operation(), 1..12),
        after in prop::collection::vec(operation(), 1..12),
        base_sectors in prop::option::of(1..10_000_u64),
    ) {
        if !require_tool("qemu-io") {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        let path = match base_sectors {
            Some(sectors) => {
                fs_err::write(&raw, pseudo_random(sectors as usize * 512, sectors)).unwrap();
                layer(dir.path(), &raw, "raw", &format!("-o {options} 6M"))
            }
            None => {
                let path = dir.path().join("image");
                create(&path, &format!("-o {options} 6M"));
                path
            }
        };
        qemu_io(&path, &before);
        qemu_img(["snapshot", "-c", "then", path.to_str().unwrap()]);
        qemu_io(&path, &after);
        for (state, option) in [(None, ""), (Some("then".to_owned()), "-l then")] {
            let backing = base_sectors.map(|_| -> Box<dyn Disk> {
                Box::new(RawDisk::read_only(file(&raw)))
            });
            let options = OpenOptions { backing, snapshot: state.clone(), ..Default::default() };
            let disk = open_with(file(&path), options).unwrap();
            conformance::check(&*disk, 6 << 20);
            let expected = expected(&path, option);
            prop_assert!(read_all(&*disk) == expected);
            if base_sectors.is_none() && state.is_none() {
                let (streamed, _) = decode(&fs_err::read(&path).unwrap(), &[70_001]).unwrap();
                prop_assert!(streamed == expected);
            }
        }
    }
}
