//! Local files as a source.
#![expect(clippy::disallowed_methods, reason = "no library of ours makes a pipe")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bootyard_source::{Error, ErrorKind, Object, Options, open};
use bootyard_spec::{Explain, Source};
use bootyard_testkit::{pseudo_random, run};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::read_all;

async fn open_path(path: &Path) -> Result<Object, Error> {
    open(&Source::File(path.to_owned()), &Options::default()).await
}

#[tokio::test]
async fn streams_exactly_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for len in [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 7] {
        let data = pseudo_random(len, len as u64);
        fs_err::write(&path, &data).unwrap();
        let mut object = open_path(&path).await.unwrap();
        assert_eq!(object.len(), Some(len as u64));
        assert_eq!(object.name(), path.to_str().unwrap());
        assert!(read_all(&mut object).await.unwrap() == data, "{len} bytes differ");
        assert_eq!(object.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn ranges_end_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs_err::write(&path, "0123456789").unwrap();
    let object = open_path(&path).await.unwrap();
    for (offset, len, expected) in
        [(0, 3, "012"), (4, 2, "45"), (8, 9, "89"), (10, 1, ""), (u64::MAX, u64::MAX, "")]
    {
        let bytes = object.read_range(offset, len).await.unwrap();
        assert_eq!(bytes, expected.as_bytes(), "{offset}+{len}");
    }
}

#[tokio::test]
async fn a_file_that_shrinks_is_an_error_not_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs_err::write(&path, vec![1; 10]).unwrap();
    let mut object = open_path(&path).await.unwrap();
    fs_err::OpenOptions::new().write(true).open(&path).unwrap().set_len(4).unwrap();
    let error = read_all(&mut object).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broken);
    let shown = error.to_string();
    assert!(shown.ends_with("broke off: received 4 of 10 bytes"), "{shown}");
}

#[tokio::test]
async fn what_is_no_file_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    run(Command::new("mkfifo").arg(&pipe));
    let cases = [
        (dir.path(), ErrorKind::NotAFile, "is a directory; expected a file or block device"),
        (&pipe, ErrorKind::NotAFile, "is a pipe; expected a file or block device"),
        (Path::new("/dev/zero"), ErrorKind::NotAFile, "is a character device; expected a file"),
        (&dir.path().join("none"), ErrorKind::NotFound, "does not exist"),
        (&dir.path().join("pipe/x"), ErrorKind::Read, "cannot read"),
    ];
    for (path, kind, part) in cases {
        let error = open_path(path).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", path.display());
        let shown = error.to_string();
        assert!(shown.contains(part) && shown.contains(path.to_str().unwrap()), "{shown}");
    }
}

#[tokio::test]
async fn a_disk_that_a_machine_has_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs_err::write(&path, [1; 10]).unwrap();
    let machine = fs_err::File::open(&path).unwrap().into_file();
    machine.lock().unwrap();
    let error = open_path(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().ends_with("is in use by a process that may write to it"), "{error}");
    machine.unlock().unwrap();
    let object = open_path(&path).await.unwrap();
    assert!(machine.try_lock().is_err());
    drop(object);
    machine.try_lock().unwrap();
}

/// Root reads what it likes, unless its thread, and those that it starts, give up that power.
fn give_up_reading_everything() {
    let mut sets = capabilities(None).unwrap();
    sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, sets).unwrap();
}

#[tokio::test]
async fn a_forbidden_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs_err::write(&path, "x").unwrap();
    fs_err::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    give_up_reading_everything();
    let error = open_path(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.hint().unwrap().contains("permissions"));
}
