//! The folder for the disks that live only as long as their machine: overlays and empty disks.
//!
//! ```text
//! HOME/run/PID-N/disk-0.qcow2
//! HOME/run/PID-N/seed.iso          what stays over a machine's restarts
//! ```
//! The folder itself is locked while its owner lives. One whose lock is free is what a killed process
//! has left, and goes when the next folder is made.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bootyard_image::qcow2::{Backing, BackingFormat, Create, create};
use bootyard_image::raw::FileAt;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{Mode, mkdir};

use crate::Error;

/// How often another name is tried: each time needs another process that makes or clears a folder in
/// that very moment.
const ATTEMPTS_MAX: u32 = 64;

/// What stands in an overlay where the name of its backing file is to be. There is no such file:
/// whoever opens the overlay names the backing disk itself, or is refused.
const BACKING_NAME: &str = "given-when-opened";

/// A folder that nobody else looks into, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl RunFolder {
    /// Makes a folder under `home`, and removes those that killed processes have left there.
    pub fn create(home: &Path) -> Result<Self, Error> {
        let all = home.join("run");
        let failed = |error| Error::io(error, &all, "cannot make a folder for the machine's disks");
        fs_err::create_dir_all(home).map_err(failed)?;
        private(&all).or_else(unless_there).map_err(failed)?;
        clear_left(&all);
        for attempt in 0..ATTEMPTS_MAX {
            let path = all.join(format!("{}-{attempt}", std::process::id()));
            match private(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed)?,
            }
            // Until it is locked, the folder looks like one that was left.
            if let Some(lock) = lock(&path) {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }

    /// Where the disk of this number is.
    pub fn disk(&self, index: usize) -> PathBuf {
        self.path.join(format!("disk-{index}.qcow2"))
    }

    /// Makes an empty qcow2 of `size` bytes at `path`, one of [`RunFolder::disk`]'s, in place of what
    /// is there: an overlay over a disk of this format, if there is to be one.
    pub fn make(
        &self,
        path: &Path,
        size: u64,
        backing: Option<BackingFormat>,
    ) -> Result<(), Error> {
        let what = "cannot make the machine's disk";
        let failed = |error| Error::io(error, path, what);
        fs_err::remove_file(path).or_else(unless_missing).map_err(failed)?;
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
        let target = FileAt::new(file.map_err(failed)?.into_file()).map_err(failed)?;
        let backing = backing.map(|format| Backing { name: BACKING_NAME.to_owned(), format });
        create(&target, &Create { backing, ..Create::new(size) })
            .map_err(|error| failed(io::Error::other(error)))
    }

    /// Writes a file that stays until the folder goes, and returns its path.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        let mut options = fs_err::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| Error::io(error, &path, "cannot write a file of the machine"))?;
        Ok(path)
    }

    /// Removes the disks, of which none can be in use any more.
    pub fn clear(&self) {
        for entry in fs_err::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "qcow2") {
                let _ = fs_err::remove_file(path);
            }
        }
    }
}

impl Drop for RunFolder {
    /// What cannot be removed goes when the next folder is made.
    fn drop(&mut self) {
        let _ = fs_err::remove_dir_all(&self.path);
    }
}

fn private(path: &Path) -> io::Result<()> {
    Ok(mkdir(path, Mode::RWXU)?)
}

fn unless_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Locks the folder at `path`, if nobody has, and it is still there then.
fn lock(path: &Path) -> Option<File> {
    let folder = fs_err::File::open(path).ok()?.into_file();
    match folder.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
    }
    let (locked, named) = (folder.metadata().ok()?, fs_err::symlink_metadata(path).ok()?);
    let is_same = (locked.dev(), locked.ino()) == (named.dev(), named.ino());
    is_same.then_some(folder)
}

/// Removes the folders whose owners are gone.
fn clear_left(all: &Path) {
    for entry in fs_err::read_dir(all).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && let Some(_lock) = lock(&path) {
            let _ = fs_err::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use bootyard_image::qcow2::edit;
    use bootyard_image::raw::RawDisk;
    use bootyard_image::{Disk as _, ErrorKind as ImageErrorKind};

    use super::*;
    use crate::AttachedDisk;

    fn names(home: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(home.join("run")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_is_private_and_goes_with_its_owner() {
        let home = tempfile::tempdir().unwrap();
        let [a, b] = [(); 2].map(|()| RunFolder::create(home.path()).unwrap());
        for folder in [&a, &b] {
            let mode = fs_err::metadata(&folder.path).unwrap().mode();
            assert_eq!(mode & 0o777, 0o700);
            folder.make(&folder.disk(0), 1 << 20, None).unwrap();
            assert_eq!(fs_err::metadata(folder.disk(0)).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(names(home.path()).len(), 2);
        drop(a);
        assert!(b.disk(0).is_file());
        let kept = b.keep("seed.iso", b"x").unwrap();
        assert_eq!(fs_err::metadata(&kept).unwrap().mode() & 0o777, 0o600);
        b.clear();
        assert!(!b.disk(0).exists());
        assert_eq!(fs_err::read(&kept).unwrap(), b"x");
        drop(b);
        assert_eq!(names(home.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_owner_left_goes_with_the_next_start() {
        let home = tempfile::tempdir().unwrap();
        let living = RunFolder::create(home.path()).unwrap();
        let left = home.path().join("run/1-0");
        fs_err::create_dir_all(&left).unwrap();
        fs_err::write(left.join("disk-0.qcow2"), "old").unwrap();
        fs_err::write(home.path().join("run/note"), "not ours").unwrap();
        let next = RunFolder::create(home.path()).unwrap();
        assert!(!left.exists() && living.path.is_dir() && next.path.is_dir());
        assert!(home.path().join("run/note").is_file());
    }

    #[test]
    fn an_overlay_is_opened_with_its_backing_disk_only_and_never_changes_it() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("base.raw");
        let bytes: Vec<u8> = (0..3_u32 << 18).flat_map(u32::to_le_bytes).collect();
        fs_err::write(&base, &bytes).unwrap();
        let folder = RunFolder::create(home.path()).unwrap();
        let path = folder.disk(3);
        folder.make(&path, 8 << 20, Some(BackingFormat::Raw)).unwrap();
        let open = || AttachedDisk::open(&path, false).unwrap();
        let error = edit(open(), None).err().unwrap();
        assert_eq!(error.kind(), ImageErrorKind::NeedsOtherFile, "{error}");
        let backing = RawDisk::read_only(AttachedDisk::open(&base, true).unwrap());
        let disk = edit(open(), Some(Box::new(backing))).unwrap();
        assert_eq!(disk.virtual_size(), 8 << 20);
        let mut found = vec![1; 8 << 20];
        disk.read_at(&mut found, 0).unwrap();
        assert!(
            found[..bytes.len()] == bytes && found[bytes.len()..].iter().all(|byte| *byte == 0)
        );
        let writer = disk.writer().unwrap();
        writer.write_at(&[7; 5000], (3 << 20) - 2500).unwrap();
        writer.zero_at(1 << 16, 0, true).unwrap();
        writer.flush().unwrap();
        drop(disk);
        assert!(fs_err::read(&base).unwrap() == bytes);
        // A new life begins with nothing of the one before.
        folder.make(&path, 8 << 20, Some(BackingFormat::Raw)).unwrap();
        let backing = RawDisk::read_only(AttachedDisk::open(&base, true).unwrap());
        let disk = edit(open(), Some(Box::new(backing))).unwrap();
        disk.read_at(&mut found, 0).unwrap();
        assert!(found[..bytes.len()] == bytes);
    }
}
