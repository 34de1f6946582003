//! A file that is being written: a hidden sibling of its final name.
//!
//! `disk.raw` is written as `.disk.raw.bootyard-part`, under an exclusive lock of the operating
//! system, which ends with the process that holds it. A part file whose lock is free is therefore
//! the left-over of a dead process, and is taken over; one whose lock is held belongs to a living
//! one. Whoever holds the lock is the only one who may name or remove the file, and does so only
//! while the name still leads to the locked file: others may have replaced it.
//!
//! Beside it may stand a journal ([`crate::journal`]), which belongs to whoever holds the lock. A
//! left-over with a journal can be gone on with; one without is emptied.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bootyard_spec::shell_word;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

use crate::journal::{self, is_own};
use crate::{Error, ErrorKind, Journal, Record, fsops};

/// How often a part file may vanish between being opened and being locked, because its owner just
/// published or removed it. Each time needs another import that ends in that very moment.
const ATTEMPTS_MAX: u32 = 16;

/// What a loss of power may do to a disk that is visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing.
    Lasting,
    /// Take it, or its content: making it durable takes longer than making it.
    Scratch,
}

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: File,
    names: Names,
    /// The folders whose entries lead to the disk and may be new, the innermost first; opened at
    /// the start, when a failure costs nothing yet.
    folders: Vec<fs_err::File>,
    /// What the journal of a left-over says; nothing if the file is empty.
    pub(crate) left: Vec<Record>,
    /// The file and its journal stay although they were not published.
    leave: bool,
    /// Held by whoever writes. The kernel lets one thread at a time write to a file and makes the
    /// others spin meanwhile, on processors that have something better to do.
    writing: Mutex<()>,
}

/// The names around a part file.
#[derive(Debug)]
pub(crate) struct Names {
    /// The part file.
    part: PathBuf,
    /// Its journal.
    journal: PathBuf,
    /// The final name.
    path: PathBuf,
    /// Names that must not exist when the file gets its final one, which is among them.
    rivals: Vec<PathBuf>,
    /// The folder exists for this file alone: made with it, and removed if it stays empty.
    own_folder: bool,
}

/// What stands hidden beside a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOver {
    /// Nothing.
    Nothing,
    /// A disk that a living process writes.
    Busy,
    /// A disk that the next process can go on with.
    Resumable,
    /// A disk that nobody can go on with.
    Useless,
}

impl Names {
    /// The names for a file that the user named.
    pub(crate) fn of_file(path: &Path) -> Result<Self, Error> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            let what = format!("`{}` is no name for a file", path.display());
            return Err(Error::new(ErrorKind::NotFound, path, what));
        };
        let folder = or_here(folder);
        if !folder.is_dir() {
            let what = format!("there is no folder `{}`", folder.display());
            let hint = format!("make it first: `mkdir -p {}`", shell_word(folder));
            return Err(Error::new(ErrorKind::NotFound, folder, what).with_hint(hint));
        }
        let hidden = |ending| {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(ending);
            folder.join(hidden)
        };
        let path = folder.join(name);
        Ok(Self {
            part: hidden(".bootyard-part"),
            journal: hidden(".bootyard-journal"),
            rivals: vec![path.clone()],
            path,
            own_folder: false,
        })
    }

    /// The names for a volume's disk `path`, in a folder of its own, beside which no other disk of
    /// `rivals` may stand.
    pub(crate) fn of_volume(path: PathBuf, rivals: Vec<PathBuf>) -> Self {
        Self {
            part: path.with_file_name(".disk.bootyard-part"),
            journal: path.with_file_name(".disk.bootyard-journal"),
            path,
            rivals,
            own_folder: true,
        }
    }

    /// What another process has left under these names, or is still writing. Who claims them in the
    /// same moment has to wait, which [`fsops::try_lock`] does.
    pub(crate) fn left(&self) -> LeftOver {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let part = fs_err::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(&self.part);
        let Ok(part) = part else { return LeftOver::Nothing };
        match part.file().try_lock_shared() {
            Err(_) => LeftOver::Busy,
            Ok(()) if journal::read(&self.journal).is_empty() => LeftOver::Useless,
            Ok(()) => LeftOver::Resumable,
        }
    }

    /// Removes a part file that its dead owner has published: the disk has both names.
    pub(crate) fn sweep(&self) -> bool {
        if is_other(&self.path) {
            return false;
        }
        let Ok(disk) = fs_err::File::open(&self.path) else { return false };
        let disk = disk.into_file();
        let is_left = is_at(&disk, &self.part) && disk.try_lock().is_ok();
        if is_left {
            remove_own(&disk, &self.part);
        }
        is_left
    }

    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The folders whose entries a power cut could lose: the disk's own, for a folder of its own the
    /// one that holds it, and whatever more has to be made.
    fn folders(&self) -> Vec<PathBuf> {
        let outwards = || self.folder().ancestors().map(or_here);
        let found = outwards().position(Path::is_dir).unwrap_or(0);
        let count = 1 + found.max(usize::from(self.own_folder));
        outwards().take(count).map(Path::to_owned).collect()
    }

    pub(crate) fn refuse_taken(&self) -> Result<(), Error> {
        let taken = |path: &&PathBuf| fs_err::symlink_metadata(path).is_ok();
        self.rivals.iter().find(taken).map_or(Ok(()), |path| Err(Error::exists(path)))
    }
}

impl Part {
    /// Claims the names: refuses a final name that exists, and a part file that is being written.
    pub(crate) fn claim(names: Names) -> Result<Self, Error> {
        names.refuse_taken()?;
        let folders = names.folders();
        let cannot_create =
            |error: io::Error| Error::io(error, &names.path, "cannot create the disk");
        for _ in 0..ATTEMPTS_MAX {
            if names.own_folder {
                fs_err::create_dir_all(names.folder()).map_err(cannot_create)?;
            }
            let file = match open(&names.part) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && names.own_folder => {
                    continue;
                }
                Err(_) if is_other(&names.part) => return Err(Error::in_the_way(&names.part)),
                result => result.map_err(cannot_create)?,
            };
            match fsops::try_lock(&file, false) {
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(error)) => return Err(cannot_create(error)),
                Ok(()) if !is_at(&file, &names.part) => continue,
                Ok(()) => {}
            }
            let found = file.metadata().map_err(cannot_create)?;
            if !found.is_file() || found.nlink() != 1 {
                return Err(Error::in_the_way(&names.part));
            }
            let folders = folders.iter().map(fs_err::File::open).collect::<io::Result<_>>();
            let folders = folders.map_err(cannot_create)?;
            let writing = Mutex::new(());
            let mut part = Self { folders, file, names, left: Vec::new(), leave: false, writing };
            // The owner of the lock until now may just have published.
            part.names.refuse_taken()?;
            if is_own(&found) {
                part.left = journal::read(&part.names.journal);
            }
            if part.left.is_empty() {
                part.start_over()?;
            }
            return Ok(part);
        }
        let what = format!("another import into `{}` is running", names.path.display());
        let hint = format!("wait for it, or see who it is: `fuser -v {}`", shell_word(&names.part));
        Err(Error::new(ErrorKind::InUse, &names.path, what).with_hint(hint))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.names.folder()
    }

    /// Empties the file and forgets its journal.
    pub(crate) fn start_over(&self) -> Result<(), Error> {
        self.remove_journal();
        self.set_len(0)
    }

    /// The journal, with what a left-over's says if that is gone on with.
    pub(crate) fn journal(&self, records: &[Record]) -> Result<Journal, Error> {
        Journal::open(&self.names.journal, records)
    }

    /// Keeps the file and its journal for the next process.
    pub(crate) fn leave(mut self) {
        self.leave = true;
    }

    fn remove_journal(&self) {
        // Without a journal there is nothing to remove, and one that stays is of no other file.
        let _ = fs_err::remove_file(&self.names.journal);
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<(), Error> {
        let path = &self.names.path;
        self.file.set_len(len).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Error::file_too_large(path, len),
            _ => Error::io(error, path, "cannot set the disk's size"),
        })
    }

    /// Makes the bytes durable, gives them their final name, and makes that durable too, as far as
    /// `durability` wants. Returns the number of bytes that the file occupies. Takes the name back
    /// where it fails.
    pub(crate) fn publish(self, durability: Durability) -> Result<u64, Error> {
        let path = &self.names.path;
        let failed = |error| Error::io(error, path, "cannot publish the disk");
        if durability == Durability::Lasting {
            self.file.sync_all().map_err(failed)?;
        }
        // 512 is the unit of `st_blocks`, whatever the file system's block size is (stat(3type)).
        let allocated = self.file.metadata().map_err(failed)?.blocks() * 512;
        self.names.refuse_taken()?;
        // Who is killed between the two names leaves a disk that its user may change under the one,
        // and whoever removes that must not find the other as something to go on with.
        self.remove_journal();
        self.name()?;
        if durability == Durability::Lasting
            && let Err(error) = self.folders.iter().try_for_each(fs_err::File::sync_all)
        {
            remove_own(&self.file, path);
            return Err(Error::io(error, path, "cannot make the disk's name durable"));
        }
        Ok(allocated)
    }

    /// Moves the open file, and no other, from the part file's name to the final one.
    fn name(&self) -> Result<(), Error> {
        let Names { part, path, .. } = &self.names;
        let named = match fsops::link_new(&self.file, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // Without `/proc`, or on a file system without hard links.
            Err(_) if is_at(&self.file, part) => fsops::rename_new(part, path),
            result => result,
        };
        named.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::exists(path),
            io::ErrorKind::NotFound => {
                let what = format!("part file `{}` was removed or replaced", part.display());
                Error::new(ErrorKind::Io, part, what).with_hint("run the same command again")
            }
            _ => Error::io(error, path, "cannot publish the disk"),
        })?;
        remove_own(&self.file, part);
        Ok(())
    }

    /// Writes all of `data`, after what other threads are writing.
    pub(crate) fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(data, offset)
    }
}

impl Drop for Part {
    /// Removes what was not published. What cannot be removed is a left-over like a dead
    /// process's, so failures need no report; the folder of a published disk is not empty.
    fn drop(&mut self) {
        if self.leave {
            return;
        }
        if is_at(&self.file, &self.names.part) || is_at(&self.file, &self.names.path) {
            self.remove_journal();
        }
        remove_own(&self.file, &self.names.part);
        if self.names.own_folder {
            let _ = fs_err::remove_dir(self.folder());
        }
    }
}

/// Opens or makes a part file; neither follows a link nor waits for the other end of a pipe.
fn open(part: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = fs_err::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags.bits() as i32);
    // What others may write to is not gone on with ([`is_own`]), whatever the umask.
    options.mode(0o644);
    Ok(options.open(part)?.into_file())
}

/// Removes the name `path` if it still leads to the open `file`.
fn remove_own(file: &File, path: &Path) {
    if is_at(file, path) {
        let _ = fs_err::remove_file(path);
    }
}

/// True if `path` still names the open `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs_err::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// True if something stands at `path` that is no regular file.
fn is_other(path: &Path) -> bool {
    fs_err::symlink_metadata(path).is_ok_and(|found| !found.is_file())
}

/// `folder`, or the working directory where it has no name.
fn or_here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_that_is_made_is_made_durable() {
        let home = tempfile::tempdir().unwrap();
        let folders = |disk: &str| {
            let names = Names::of_volume(home.path().join(disk), Vec::new());
            let folders = names.folders().into_iter();
            let inside = |path: PathBuf| path.strip_prefix(home.path()).unwrap().to_owned();
            folders.map(inside).collect::<Vec<_>>()
        };
        let made = ["a/b/volumes/x", "a/b/volumes", "a/b", "a", ""].map(PathBuf::from);
        assert_eq!(folders("a/b/volumes/x/disk.raw"), made);
        fs_err::create_dir_all(home.path().join(&made[0])).unwrap();
        assert_eq!(folders("a/b/volumes/x/disk.raw"), made[..2]);
    }
}
