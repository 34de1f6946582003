//! Staging and publishing, on real file systems and loop devices.
#![expect(clippy::disallowed_methods, reason = "other processes hold locks, mounts and devices")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use bootyard_spec::{Explain, OutputFormat, Verifier, VolumeName};
use bootyard_testkit::{LoopDevice, Mount, pseudo_random, require_tool, run};
use tempfile::TempDir;

use super::*;
use crate::{ErrorKind, Store};

fn verified() -> Verified {
    Verifier::new(Vec::new()).finish().unwrap()
}

fn data(offset: u64, bytes: &[u8]) -> Piece<'_> {
    Piece { offset, body: Body::Data(bytes) }
}

fn zero(offset: u64, len: u64) -> Piece<'static> {
    Piece { offset, body: Body::Zero(len) }
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs_err::DirEntry>| entry.unwrap().file_name();
    let entries = fs_err::read_dir(folder).unwrap().map(name);
    entries.map(|name| name.into_string().unwrap()).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind, message: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (kind, message.to_owned()));
    assert!(error.hint().is_some(), "{error} has no hint");
}

/// The text with the folder's path for `DIR`.
fn at(folder: &TempDir, text: &str) -> String {
    text.replace("DIR", folder.path().to_str().unwrap())
}

#[test]
fn a_disk_appears_whole_and_sparse_under_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let staged = Staged::for_path(&path).unwrap();
    staged.reserve(8 << 20).unwrap();
    let bytes = pseudo_random(64 << 10, 1);
    staged.put(zero(0, 1 << 20)).unwrap();
    staged.put(data(1 << 20, &bytes)).unwrap();
    assert!(!path.exists());
    let published = staged.publish(&verified()).unwrap();
    assert_eq!(published, Published { path: path.clone(), allocated_bytes: Some(64 << 10) });
    let stored = fs_err::read(&path).unwrap();
    assert_eq!(stored.len(), 8 << 20);
    assert!(stored[1 << 20..].starts_with(&bytes));
    assert_eq!(stored.iter().filter(|byte| **byte != 0).count(), {
        bytes.iter().filter(|byte| **byte != 0).count()
    });
    assert_eq!(names(folder.path()), ["disk.raw"]);
}

#[test]
fn what_is_not_published_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let staged = Staged::for_path(&folder.path().join("disk.raw")).unwrap();
    staged.reserve(1 << 20).unwrap();
    assert_eq!(names(folder.path()), [".disk.raw.bootyard-part"]);
    drop(staged);
    assert!(names(folder.path()).is_empty());

    let store = Store::open(folder.path());
    let name: VolumeName = "debian".parse().unwrap();
    drop(store.stage(&name, OutputFormat::Raw).unwrap());
    assert!(names(&folder.path().join("volumes")).is_empty());
}

#[test]
fn a_disk_that_was_left_is_gone_on_with_or_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let hidden = [".disk.raw.bootyard-journal", ".disk.raw.bootyard-part"];
    let sorted = || {
        let mut names = names(folder.path());
        names.sort();
        names
    };
    let begin = |note: &[u8]| {
        let staged = Staged::for_path(&path).unwrap();
        assert_eq!(staged.left(), []);
        staged.reserve(1 << 20).unwrap();
        staged.put(data(4096, &[7; 4096])).unwrap();
        staged.journal(&[]).unwrap().unwrap().append(1, note).unwrap();
        staged
    };
    begin(b"so far").leave();
    assert_eq!(sorted(), hidden);

    let staged = Staged::for_path(&path).unwrap();
    assert_eq!(staged.left(), [Record { kind: 1, payload: b"so far".to_vec() }]);
    assert_eq!(staged.file_len(), Some(1 << 20));
    let mut journal = staged.journal(staged.left()).unwrap().unwrap();
    journal.append(2, b"farther").unwrap();
    staged.leave();
    let staged = Staged::for_path(&path).unwrap();
    assert_eq!(staged.left().len(), 2);
    let published = staged.publish(&verified()).unwrap();
    assert_eq!(sorted(), ["disk.raw"]);
    assert_eq!(fs_err::read(published.path).unwrap()[4096..8192], [7; 4096]);

    fs_err::remove_file(&path).unwrap();
    begin(b"not wanted").leave();
    let staged = Staged::for_path(&path).unwrap();
    staged.start_over().unwrap();
    assert_eq!((staged.file_len(), sorted()), (Some(0), vec![hidden[1].to_owned()]));
    drop(staged);
    begin(b"given up");
    assert!(names(folder.path()).is_empty());
    // Without a journal nobody knows what the file holds.
    fs_err::write(folder.path().join(hidden[1]), "old").unwrap();
    assert_eq!(Staged::for_path(&path).unwrap().file_len(), Some(0));
}

#[test]
fn a_preallocated_disk_has_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let staged = Staged::for_path(&path).unwrap();
    staged.reserve(3 << 20).unwrap();
    staged.preallocate(3 << 20).unwrap();
    staged.put(data(1 << 20, &[7; 4096])).unwrap();
    staged.put(zero(2 << 20, 1 << 20)).unwrap();
    let published = staged.publish(&verified()).unwrap();
    assert_eq!(published.allocated_bytes, Some(3 << 20));
    let stored = fs_err::read(&path).unwrap();
    assert!(stored[1 << 20..].starts_with(&[7; 4096]));
    assert_eq!(stored.iter().filter(|byte| **byte != 0).count(), 4096);

    let staged = Staged::for_path(&folder.path().join("huge")).unwrap();
    staged.reserve(1 << 43).unwrap();
    let error = staged.preallocate(1 << 43).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
}

#[test]
fn an_existing_target_is_refused_at_the_start_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let staged = Staged::for_path(&path).unwrap();
    fs_err::write(&path, "precious").unwrap();
    let message = at(&folder, "target `DIR/disk.raw` exists");
    refused(staged.publish(&verified()), ErrorKind::Exists, &message);
    refused(Staged::for_path(&path), ErrorKind::Exists, &message);
    assert_eq!(fs_err::read_to_string(&path).unwrap(), "precious");
    assert_eq!(names(folder.path()), ["disk.raw"]);

    let dangling = folder.path().join("link");
    fs_err::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    let message = at(&folder, "target `DIR/link` exists");
    refused(Staged::for_path(&dangling), ErrorKind::Exists, &message);
    let message = at(&folder, "target `DIR` is a folder");
    refused(Staged::for_path(folder.path()), ErrorKind::Exists, &message);
    assert_eq!(Staged::for_path(&dangling).unwrap_err().hint().unwrap(), "name another target");
    let spaced = folder.path().join("my disk");
    fs_err::write(&spaced, "precious").unwrap();
    let hint = Staged::for_path(&spaced).unwrap_err().hint().unwrap();
    assert_eq!(hint, at(&folder, "name another target, or remove it first: `rm 'DIR/my disk'`"));
    let inside = folder.path().join("none/disk.raw");
    let message = at(&folder, "there is no folder `DIR/none`");
    refused(Staged::for_path(&inside), ErrorKind::NotFound, &message);
}

#[test]
fn only_the_own_file_is_published_or_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let (part, other) = (folder.path().join(".disk.raw.bootyard-part"), folder.path().join("o"));
    for publish in [true, false] {
        let staged = Staged::for_path(&path).unwrap();
        fs_err::write(&other, "foreign").unwrap();
        fs_err::rename(&other, &part).unwrap();
        if publish {
            let message = "part file `DIR/.disk.raw.bootyard-part` was removed or replaced";
            refused(staged.publish(&verified()), ErrorKind::Io, &at(&folder, message));
        } else {
            drop(staged);
        }
        assert_eq!(names(folder.path()), [".disk.raw.bootyard-part"]);
        assert_eq!(fs_err::read_to_string(&part).unwrap(), "foreign");
        fs_err::remove_file(&part).unwrap();
    }
}

#[test]
fn what_is_no_part_file_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let (part, other) = (folder.path().join(".disk.raw.bootyard-part"), folder.path().join("o"));
    fs_err::write(&other, "precious").unwrap();
    let message = at(
        &folder,
        "`DIR/.disk.raw.bootyard-part` is in the way: expected nothing, or a file of its own",
    );
    for make in ["ln -s o", "ln o", "mkfifo", "mkdir"] {
        run(Command::new("sh")
            .current_dir(folder.path())
            .args(["-c", &format!("{make} .disk.raw.bootyard-part")]));
        refused(Staged::for_path(&path), ErrorKind::Exists, &message);
        assert_eq!(fs_err::read_to_string(&other).unwrap(), "precious", "{make}");
        fs_err::remove_file(&part).or_else(|_| fs_err::remove_dir(&part)).unwrap();
    }
}

#[test]
fn a_volume_has_one_disk_whatever_its_format() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path());
    let name: VolumeName = "debian".parse().unwrap();
    refused(store.get(&name), ErrorKind::NotFound, "there is no volume `debian`");
    assert!(store.list().unwrap().is_empty());

    let staged = store.stage(&name, OutputFormat::Raw).unwrap();
    refused(
        store.stage(&name, OutputFormat::Qcow2),
        ErrorKind::InUse,
        &format!("process {} is making volume `debian`", std::process::id()),
    );
    assert!(store.list().unwrap().is_empty(), "nothing is listed before it is published");
    staged.publish(&verified()).unwrap();
    refused(store.stage(&name, OutputFormat::Qcow2), ErrorKind::Exists, "volume `debian` exists");
    let volume = store.get(&name).unwrap();
    assert_eq!(volume.path, Path::new(&at(&folder, "DIR/volumes/debian/disk.raw")));
    assert_eq!((volume.format, store.list().unwrap()), (OutputFormat::Raw, vec![volume]));
}

#[test]
fn of_many_that_want_one_name_one_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path());
    let name: VolumeName = "debian".parse().unwrap();
    let attempt = |format| {
        let staged = store.stage(&name, format)?;
        staged.reserve(4096)?;
        staged.put(data(0, b"disk")).unwrap();
        staged.publish(&verified())
    };
    let attempt = &attempt;
    for _ in 0..12 {
        let formats = [OutputFormat::Raw, OutputFormat::Qcow2].into_iter().cycle().take(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                formats.map(|format| scope.spawn(move || attempt(format))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        for error in results.into_iter().filter_map(Result::err) {
            assert!(matches!(error.kind(), ErrorKind::Exists | ErrorKind::InUse), "{error:?}");
        }
        let volume = folder.path().join("volumes/debian");
        assert_eq!(names(&volume).len(), 1, "{:?}", names(&volume));
        store.remove(&name).unwrap();
        assert!(!volume.exists());
    }
}

#[test]
fn the_left_over_of_a_dead_process_is_taken_over_and_a_living_one_is_refused() {
    if !require_tool("flock") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let part = folder.path().join(".disk.raw.bootyard-part");
    fs_err::write(&part, "left over").unwrap();
    let mut holder = hold_lock(&part);
    let message = at(&folder, "another import into `DIR/disk.raw` is running");
    refused(Staged::for_path(&path), ErrorKind::InUse, &message);
    assert_eq!(fs_err::read_to_string(&part).unwrap(), "left over");

    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    holder.wait().unwrap();
    let staged = Staged::for_path(&path).unwrap();
    staged.reserve(4096).unwrap();
    staged.publish(&verified()).unwrap();
    assert_eq!(fs_err::read(&path).unwrap(), [0; 4096], "nothing of the left-over remains");
}

/// A process that holds the lock on `path` until it is sent a line.
fn hold_lock(path: &Path) -> Child {
    let mut child = Command::new("flock")
        .arg(path)
        .args(["sh", "-c", "echo locked; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

#[test]
fn a_full_file_system_is_told_with_what_is_needed_and_free() {
    let Some(mount) = Mount::new("ext4", 32) else { return };
    let path = mount.path().join("disk.raw");
    let staged = Staged::for_path(&path).unwrap();
    staged.reserve(1 << 30).unwrap();
    let block = pseudo_random(1 << 20, 1);
    let error = (0..64).find_map(|index| staged.put(data(index << 20, &block)).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let error = error.into_inner().unwrap().downcast::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let start = format!("no space for `{}`: expected at least 1Mi free, got ", path.display());
    assert!(error.to_string().starts_with(&start), "{error}");
    assert!(error.hint().unwrap().contains("`df -h "), "{error:?}");
    drop(staged);
    assert_eq!(names(&mount.path()), ["lost+found"]);
}

#[test]
fn a_disk_beyond_the_largest_file_is_told_with_its_size() {
    let Some(mount) = Mount::new("ext4", 32) else { return };
    let path = mount.path().join("disk.raw");
    let staged = Staged::for_path(&path).unwrap();
    let message = "`PATH` cannot have 4Pi: the file system has no files of that size";
    let message = message.replace("PATH", path.to_str().unwrap());
    refused(staged.reserve(4 << 50), ErrorKind::TooSmall, &message);
}

/// A loop device, detached when dropped.
struct Loop {
    device: LoopDevice,
    image: tempfile::NamedTempFile,
}

impl Loop {
    fn new(len: u64, sector: u32) -> Option<Self> {
        let image = tempfile::NamedTempFile::new().unwrap();
        let noise = pseudo_random(len as usize, 9);
        fs_err::write(image.path(), noise).unwrap();
        let device = LoopDevice::attach(image.path(), sector)?;
        Some(Self { device, image })
    }

    fn path(&self) -> &Path {
        self.device.path()
    }

    /// What a machine would read after a power cut: the bytes below the device.
    fn durable(&self) -> Vec<u8> {
        fs_err::read(self.image.path()).unwrap()
    }
}

#[test]
fn a_block_device_boots_nothing_until_it_is_published() {
    for sector in [512, 4096] {
        let Some(device) = Loop::new(8 << 20, sector) else { return };
        let staged = Staged::for_path(device.path()).unwrap();
        assert_eq!(staged.capacity(), Some(8 << 20));
        staged.reserve(8 << 20).unwrap();
        // A run across the withheld start, holes with odd edges, and odd ends.
        let disk = {
            let mut disk = pseudo_random(8 << 20, 2);
            disk[(2 << 20) + 513..(5 << 20) + 7].fill(0);
            disk[100..5000].fill(0);
            disk
        };
        staged.put(data(0, &disk[..100])).unwrap();
        staged.put(zero(100, 4900)).unwrap();
        staged.put(data(5000, &disk[5000..(2 << 20) + 513])).unwrap();
        staged.put(data((5 << 20) + 7, &disk[(5 << 20) + 7..])).unwrap();
        staged.put(zero((2 << 20) + 513, (3 << 20) - 506)).unwrap();
        staged.sync().unwrap();
        assert!(device.durable()[..1 << 20].iter().all(|byte| *byte == 0), "{sector}");
        let mut start = vec![0; 2 << 20];
        staged.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(start, disk[..2 << 20], "{sector}: the stage itself shows the whole disk");

        let published = staged.publish(&verified()).unwrap();
        assert_eq!(published.allocated_bytes, None);
        assert!(device.durable() == disk, "{sector}");
    }
}

#[test]
fn an_unpublished_block_device_stays_unbootable() {
    let Some(device) = Loop::new(2 << 20, 512) else { return };
    let staged = Staged::for_path(device.path()).unwrap();
    staged.reserve(2 << 20).unwrap();
    staged.put(data(0, &pseudo_random(2 << 20, 3))).unwrap();
    drop(staged);
    assert!(device.durable()[..1 << 20].iter().all(|byte| *byte == 0));
}

#[test]
fn a_block_device_in_use_or_too_small_is_refused() {
    let Some(device) = Loop::new(2 << 20, 512) else { return };
    let shown = device.path().display();
    let staged = Staged::for_path(device.path()).unwrap();
    let in_use = format!("block device `{shown}` is in use");
    refused(Staged::for_path(device.path()), ErrorKind::InUse, &in_use);
    let too_small = format!("block device `{shown}` is too small: expected at least 3Mi, got 2Mi");
    refused(staged.reserve(3 << 20), ErrorKind::TooSmall, &too_small);
    drop(staged);
    assert!(device.durable() == pseudo_random(2 << 20, 9), "a refused device is untouched");

    if ["mkfs.ext4", "mount", "umount"].into_iter().all(require_tool) {
        run(Command::new("mkfs.ext4").arg("-q").arg(device.path()));
        let point = tempfile::tempdir().unwrap();
        run(Command::new("mount").arg(device.path()).arg(point.path()));
        let result = Staged::for_path(device.path());
        run(Command::new("umount").arg(point.path()));
        refused(result, ErrorKind::InUse, &in_use);
    }
}

#[test]
fn a_spill_file_is_read_back_and_has_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let staged = Staged::for_path(&folder.path().join("disk.raw")).unwrap();
    let spill = staged.spill().unwrap();
    spill.write_all_at(b"later", 1 << 20).unwrap();
    spill.zero_at(2, (1 << 20) + 1).unwrap();
    let mut back = [1; 6];
    spill.read_exact_at(&mut back, (1 << 20) - 1).unwrap();
    assert_eq!((&back, spill.len()), (b"\0l\0\0er", (1 << 20) + 5));
    assert_eq!(names(folder.path()), [".disk.raw.bootyard-part"]);
}

#[test]
fn as_a_file_it_is_written_anywhere_and_zeroed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let staged = Staged::for_path(&path).unwrap();
    staged.reserve(0).unwrap();
    staged.write_all_at(&pseudo_random(1 << 20, 4), 0).unwrap();
    staged.zero_at((1 << 20) - 4096, 4096).unwrap();
    staged.write_all_at(b"end", 4 << 20).unwrap();
    staged.sync().unwrap();
    let published = staged.publish(&verified()).unwrap();
    assert_eq!(published.allocated_bytes, Some(8192));
    assert_eq!(fs_err::metadata(&path).unwrap().size(), (4 << 20) + 3);
}

#[test]
fn a_read_only_file_system_is_told() {
    let Some(mount) = Mount::new("ext4", 32) else { return };
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(mount.path()));
    let result = Staged::for_path(&mount.path().join("disk.raw"));
    refused(result, ErrorKind::Permission, "cannot create the disk");
}

#[test]
fn zeros_are_stored_over_what_another_process_has_left() {
    for preallocated in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let staged = Staged::for_path(&path).unwrap();
        staged.reserve(1 << 20).unwrap();
        if preallocated {
            staged.preallocate(1 << 20).unwrap();
        }
        staged.journal(&[]).unwrap().unwrap().append(1, b"half").unwrap();
        staged.put(data(0, &[7; 1 << 20])).unwrap();
        staged.leave();

        let staged = Staged::for_path(&path).unwrap();
        assert_eq!(staged.left().len(), 1);
        staged.go_on(1 << 20, preallocated);
        assert_eq!(staged.len(), 1 << 20);
        staged.put(zero(100_000, 500_000)).unwrap();
        let allocated = staged.publish(&verified()).unwrap().allocated_bytes.unwrap();
        assert_eq!(allocated < 1 << 20, !preallocated);
        let mut expected = vec![7; 1 << 20];
        expected[100_000..600_000].fill(0);
        assert!(fs_err::read(&path).unwrap() == expected);
    }
}

#[test]
fn a_left_over_is_gone_on_with_whatever_the_umask_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    // The umask is one for all threads, so that another process has to have it.
    if let Some(path) = std::env::var_os("BOOTYARD_TEST_LEAVE") {
        let staged = Staged::for_path(Path::new(&path)).unwrap();
        staged.journal(&[]).unwrap().unwrap().append(1, b"half").unwrap();
        return staged.leave();
    }
    let this = std::env::current_exe().unwrap();
    let test = "staged::tests::a_left_over_is_gone_on_with_whatever_the_umask_was";
    let script = "umask 002; exec \"$0\" --exact \"$1\"";
    let mut other = Command::new("sh");
    other.args(["-c", script]).arg(this).arg(test).env("BOOTYARD_TEST_LEAVE", &path);
    run(&mut other);
    assert_eq!(Staged::for_path(&path).unwrap().left().len(), 1);
}

#[test]
fn holes_are_found_without_reading_them() {
    let folder = tempfile::tempdir().unwrap();
    let staged = Staged::for_path(&folder.path().join("disk.raw")).unwrap();
    staged.reserve(8 << 20).unwrap();
    staged.put(data(1 << 20, &[7; 1 << 20])).unwrap();
    for (offset, expected) in [
        (0, (1 << 20, true)),
        (5, ((1 << 20) - 5, true)),
        (1 << 20, (1 << 20, false)),
        ((2 << 20) - 1, (1, false)),
        (2 << 20, (6 << 20, true)),
    ] {
        assert_eq!(staged.hole_at(offset).unwrap(), expected, "{offset}");
    }
}
