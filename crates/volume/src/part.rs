//! A file that is being written: a hidden sibling of its final name.
//!
//! `disk.raw` is written as `.disk.raw.bootyard-part`, under an exclusive lock of the operating
//! system, which ends with the process that holds it. A part file whose lock is free is therefore
//! the left-over of a dead process, and is taken over; one whose lock is held belongs to a living
//! one. Whoever holds the lock is the only one who may rename or remove the file.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::fsops;
use crate::{Error, ErrorKind};

/// How often a part file may vanish between being opened and being locked, because its owner just
/// published or removed it. Each time needs another import that ends in that very moment.
const ATTEMPTS_MAX: u32 = 16;

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: File,
    names: Names,
    published: bool,
}

/// The names around a part file.
#[derive(Debug)]
pub(crate) struct Names {
    /// The part file.
    part: PathBuf,
    /// The final name.
    path: PathBuf,
    /// Names that must not exist when the file gets its final one, which is among them.
    rivals: Vec<PathBuf>,
    /// The folder exists for this file alone: made with it, and removed if it stays empty.
    own_folder: bool,
}

impl Names {
    /// The names for a file that the user named.
    pub(crate) fn of_file(path: &Path) -> Result<Self, Error> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            let what = format!("`{}` is no name for a file", path.display());
            return Err(Error::new(ErrorKind::NotFound, path, what));
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if !folder.is_dir() {
            let what = format!("there is no folder `{}`", folder.display());
            let hint = format!("make it first: `mkdir -p {}`", folder.display());
            return Err(Error::new(ErrorKind::NotFound, folder, what).with_hint(hint));
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".bootyard-part");
        let path = folder.join(name);
        Ok(Self { part: folder.join(hidden), rivals: vec![path.clone()], path, own_folder: false })
    }

    /// The names for a volume's disk `path`, in a folder of its own, beside which no other disk of
    /// `rivals` may stand.
    pub(crate) fn of_volume(path: PathBuf, rivals: Vec<PathBuf>) -> Self {
        Self { part: path.with_file_name(".disk.bootyard-part"), path, rivals, own_folder: true }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn refuse_taken(&self) -> Result<(), Error> {
        let taken = |path: &&PathBuf| fs_err::symlink_metadata(path).is_ok();
        self.rivals.iter().find(taken).map_or(Ok(()), |path| Err(Error::exists(path)))
    }
}

impl Part {
    /// Claims the names: refuses a final name that exists, and a part file that is being written.
    pub(crate) fn claim(names: Names) -> Result<Self, Error> {
        names.refuse_taken()?;
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
                result => result.map_err(cannot_create)?,
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(error)) => return Err(cannot_create(error)),
                Ok(()) if !is_at(&file, &names.part) => continue,
                Ok(()) => {}
            }
            let part = Self { file, names, published: false };
            // The owner of the lock until now may just have published.
            part.names.refuse_taken()?;
            part.set_len(0)?;
            return Ok(part);
        }
        let what = format!("another import into `{}` is running", names.path.display());
        let hint = format!("wait for it, or see who it is: `fuser -v {}`", names.part.display());
        Err(Error::new(ErrorKind::InUse, &names.path, what).with_hint(hint))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.names.folder()
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<(), Error> {
        let cannot = |error| Error::io(error, &self.names.path, "cannot set the disk's size");
        self.file.set_len(len).map_err(cannot)
    }

    /// Makes the bytes durable, gives them their final name, and makes that durable too. Returns
    /// the number of bytes that the file occupies.
    pub(crate) fn publish(mut self) -> Result<u64, Error> {
        let path = &self.names.path;
        let failed = |error| Error::io(error, path, "cannot publish the disk");
        self.file.sync_all().map_err(failed)?;
        // 512 is the unit of `st_blocks`, whatever the file system's block size is (stat(3type)).
        let allocated = self.file.metadata().map_err(failed)?.blocks() * 512;
        self.names.refuse_taken()?;
        match fsops::rename_new(&self.names.part, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::exists(path));
            }
            result => result.map_err(failed)?,
        }
        self.published = true;
        let path = &self.names.path;
        let failed = |error| Error::io(error, path, "cannot make the disk's name durable");
        fsops::sync_folder(self.folder()).map_err(failed)?;
        if let (true, Some(outer)) = (self.names.own_folder, self.folder().parent()) {
            fsops::sync_folder(outer).map_err(failed)?;
        }
        Ok(allocated)
    }
}

impl Drop for Part {
    /// Removes what was not published. What cannot be removed is a left-over like a dead
    /// process's, so failures need no report.
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let _ = fs_err::remove_file(&self.names.part);
        if self.names.own_folder {
            let _ = fs_err::remove_dir(self.folder());
        }
    }
}

fn open(part: &Path) -> io::Result<File> {
    let mut options = fs_err::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    Ok(options.open(part)?.into_file())
}

/// True if `path` still names the open `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs_err::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}
