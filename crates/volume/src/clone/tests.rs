//! Clones on real file systems and loop devices.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;

use bootyard_image::raw::RawDisk;
use bootyard_spec::{Class, Explain};
use bootyard_testkit::{LoopDevice, Mount, pseudo_random};

use super::*;

const MIB: u64 = 1 << 20;

/// 8 MiB: noise, a hole, zeros that are stored, and noise.
fn original(folder: &Path) -> PathBuf {
    let path = folder.join("original");
    let file = fs_err::File::create(&path).unwrap();
    file.set_len(8 * MIB).unwrap();
    file.file().write_all_at(&pseudo_random(3 << 20, 1), 0).unwrap();
    file.file().write_all_at(&vec![0; 1 << 20], 5 * MIB).unwrap();
    file.file().write_all_at(&pseudo_random((1 << 20) + 8192, 2), 6 * MIB).unwrap();
    path
}

fn options<'a>() -> CloneOptions<'a> {
    CloneOptions {
        source: "golden",
        parent: None,
        known: None,
        size: None,
        is_raw: true,
        preallocation: false,
        verify: false,
        workers: NonZeroUsize::new(2).unwrap(),
        progress: &|_, _| {},
        stopped: &|| false,
    }
}

fn clone(original: &Path, target: &Path, options: &CloneOptions<'_>) -> Result<Cloned, Error> {
    let original = AttachedDisk::open(original, true).unwrap();
    Staged::for_path(target).unwrap().publish_clone(&original, options)
}

fn fingerprint(path: &Path) -> Fingerprint {
    let bytes = fs_err::read(path).unwrap();
    Fingerprint::of(&RawDisk::read_only(bytes), NonZeroUsize::MIN).unwrap()
}

fn occupied(path: &Path) -> u64 {
    fs_err::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_copy_has_the_bytes_and_neither_holes_nor_zeros() {
    let Some(mount) = Mount::new("ext4", 64) else { return };
    let (original, target) = (original(&mount.path()), mount.path().join("clone"));
    let done = clone(&original, &target, &options()).unwrap();
    assert_eq!((done.method, done.size), (CloneMethod::Copy, 8 * MIB));
    assert!(fs_err::read(&target).unwrap() == fs_err::read(&original).unwrap());
    assert_eq!(done.fingerprint, Some(fingerprint(&original)));
    assert_eq!(done.data_bytes, 4 * MIB + 8192);
    assert!(occupied(&target) < occupied(&original), "{done:?}");
}

#[test]
fn a_clone_grows_on_the_way() {
    let Some(mount) = Mount::new("ext4", 64) else { return };
    let (original, target) = (original(&mount.path()), mount.path().join("clone"));
    let size = Some(20 * MIB);
    let done = clone(&original, &target, &CloneOptions { size, ..options() }).unwrap();
    let mut expected = fs_err::read(&original).unwrap();
    expected.resize(20 << 20, 0);
    assert!(fs_err::read(&target).unwrap() == expected);
    assert_eq!(done.fingerprint, Some(fingerprint(&target)));
}

#[test]
fn a_clone_that_is_too_small_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (original, target) = (original(folder.path()), folder.path().join("clone"));
    let size = Some(8 * MIB - 512);
    let error = clone(&original, &target, &CloneOptions { size, ..options() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooSmall);
    assert!(error.to_string().ends_with("needs at least 8Mi, got 8388096"), "{error}");
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn file_systems_that_can_share_blocks() {
    for kind in ["xfs", "btrfs"] {
        let Some(mount) = Mount::new(kind, 320) else { return };
        let (original, target) = (original(&mount.path()), mount.path().join("clone"));
        let before = free(&mount.path());
        let options = CloneOptions { size: Some(9 * MIB), verify: true, ..options() };
        let done = clone(&original, &target, &options).unwrap();
        assert_eq!((done.method, done.data_bytes), (CloneMethod::Reflink, 0), "{kind}");
        assert!(before.saturating_sub(free(&mount.path())) < MIB, "{kind} stored it again");
        assert_eq!(done.fingerprint, Some(fingerprint(&target)));
        let mut expected = fs_err::read(&original).unwrap();
        expected.resize(9 << 20, 0);
        assert!(fs_err::read(&target).unwrap() == expected, "{kind}");
        // They are two disks.
        let file = fs_err::OpenOptions::new().write(true).open(&target).unwrap();
        file.file().write_all_at(b"changed", 0).unwrap();
        assert!(fs_err::read(&original).unwrap() == expected[..8 << 20], "{kind}");

        let all = mount.path().join("all");
        let options = CloneOptions { preallocation: true, ..options };
        let done = clone(&original, &all, &options).unwrap();
        assert_eq!(done.method, CloneMethod::Copy, "{kind}");
        assert!(occupied(&all) >= 9 * MIB, "{kind}: {}", occupied(&all));
        assert!(fs_err::read(&all).unwrap() == expected, "{kind}");
    }
}

fn free(folder: &Path) -> u64 {
    fsops::free_bytes(fs_err::File::open(folder).unwrap()).unwrap()
}

#[test]
fn to_and_from_block_devices() {
    let folder = tempfile::tempdir().unwrap();
    let original = original(folder.path());
    let backing = folder.path().join("backing");
    fs_err::write(&backing, pseudo_random(12 << 20, 7)).unwrap();
    for sector in [512, 4096] {
        let Some(device) = LoopDevice::attach(&backing, sector) else { return };
        let done = clone(&original, device.path(), &options()).unwrap();
        assert_eq!(done.size, 12 * MIB, "{sector}");
        assert_eq!(done.fingerprint, Some(fingerprint(device.path())), "{sector}");
        let back = folder.path().join(format!("back-{sector}"));
        clone(device.path(), &back, &options()).unwrap();
        let (back, mut expected) = (fs_err::read(&back).unwrap(), fs_err::read(&original).unwrap());
        assert_eq!(back.len(), 12 << 20);
        expected.resize(12 << 20, 0);
        assert!(back == expected, "{sector}: what was on the device is read behind the clone");
        let options = CloneOptions { size: Some(13 * MIB), ..options() };
        let error = clone(&original, device.path(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooSmall, "{error}");
        fs_err::write(&backing, pseudo_random(12 << 20, 7)).unwrap();
    }
}

#[test]
fn an_original_that_is_not_what_it_was_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let (original, target) = (original(folder.path()), folder.path().join("clone"));
    let known = Some(fingerprint(&original));
    clone(&original, &target, &CloneOptions { known, ..options() }).unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(&original).unwrap();
    file.file().write_all_at(b"rot", MIB).unwrap();
    let target = folder.path().join("second");
    let error = clone(&original, &target, &CloneOptions { known, ..options() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(!target.exists());
}

#[test]
fn a_stopped_clone_is_gone_on_with() {
    let Some(mount) = Mount::new("ext4", 64) else { return };
    let (original, target) = (original(&mount.path()), mount.path().join("clone"));
    let asked = AtomicU32::new(0);
    let stopped = || asked.fetch_add(1, Ordering::Relaxed) >= 3;
    let one = NonZeroUsize::MIN;
    let stop = CloneOptions { stopped: &stopped, workers: one, ..options() };
    let error = clone(&original, &target, &stop).unwrap_err();
    assert_eq!((error.kind(), error.class()), (ErrorKind::Stopped, Class::Interrupted));
    assert!(error.hint().unwrap().contains("the same command goes on"));
    assert!(!target.exists());
    let done = clone(&original, &target, &options()).unwrap();
    assert_eq!(done.resumed_bytes + done.data_bytes, 4 * MIB + 8192);
    assert!(done.resumed_bytes >= 2 * MIB, "{done:?}");
    assert!(fs_err::read(&target).unwrap() == fs_err::read(&original).unwrap());
    assert_eq!(done.fingerprint, Some(fingerprint(&original)));
}

#[test]
fn what_was_left_of_another_version_is_not_taken() {
    let Some(mount) = Mount::new("ext4", 64) else { return };
    let (original, target) = (original(&mount.path()), mount.path().join("clone"));
    let asked = AtomicU32::new(0);
    let stopped = || asked.fetch_add(1, Ordering::Relaxed) >= 3;
    clone(&original, &target, &CloneOptions { stopped: &stopped, ..options() }).unwrap_err();
    // All zeros now, where the left-over has noise.
    fs_err::File::create(&original).unwrap().set_len(8 * MIB).unwrap();
    let done = clone(&original, &target, &options()).unwrap();
    assert_eq!((done.resumed_bytes, done.data_bytes), (0, 0));
    assert!(fs_err::read(&target).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn an_original_that_changes_meanwhile_has_no_clone() {
    let Some(mount) = Mount::new("ext4", 64) else { return };
    let (original, target) = (original(&mount.path()), mount.path().join("clone"));
    let write = |_, _| {
        let file = fs_err::OpenOptions::new().write(true).open(&original).unwrap();
        file.file().write_all_at(b"changed", 0).unwrap();
    };
    let error =
        clone(&original, &target, &CloneOptions { progress: &write, ..options() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().ends_with("was changed while it was cloned"), "{error}");
    assert!(!target.exists());
}

#[test]
fn a_full_file_system_keeps_what_is_done() {
    let Some(mount) = Mount::new("ext4", 8) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("original");
    fs_err::write(&path, pseudo_random(16 << 20, 3)).unwrap();
    let target = mount.path().join("clone");
    let error = clone(&path, &target, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(!target.exists());
    assert!(mount.path().join(".clone.bootyard-part").exists());
}
