//! The disk of a running machine: a file or block device that is locked while it is attached.
//!
//! The lock is the operating system's and dies with its holder. It keeps two of our machines from
//! writing to one disk; QEMU's locks are of another kind.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use bootyard_image::{ReadAt, WriteAt};
use bootyard_spec::shell_word;

use crate::{Error, ErrorKind, fsops};

/// A disk that is attached to a machine, stored raw.
#[derive(Debug)]
pub struct AttachedDisk {
    file: File,
    path: PathBuf,
    len: u64,
}

impl AttachedDisk {
    /// Opens the file or block device at `path`, for as many readers as come or for one writer.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let failed = |error| Error::io(error, path, format!("cannot open `{}`", path.display()));
        let file = fs_err::OpenOptions::new().read(true).write(!read_only).open(path);
        let file = file.map_err(failed)?.into_file();
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = format!("`{}` is neither a file nor a block device", path.display());
            return Err(Error::new(ErrorKind::Io, path, what));
        }
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("disk `{}` is attached to another machine", path.display());
                let hint = format!("see which with `fuser -v {}`", shell_word(path));
                return Err(Error::new(ErrorKind::InUse, path, what).with_hint(hint));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let len = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), len })
    }

    fn failed(&self, error: io::Error, what: &str) -> io::Error {
        let kind = error.kind();
        let what = format!("{what} `{}` failed", self.path.display());
        io::Error::new(kind, Error::io(error, &self.path, what))
    }
}

impl ReadAt for AttachedDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| self.failed(error, "reading"))
    }
}

impl WriteAt for AttachedDisk {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset).map_err(|error| self.failed(error, "writing to"))
    }

    /// Gives the space back where the file system or device can.
    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        fsops::zero(&self.file, offset, len).map_err(|error| self.failed(error, "zeroing"))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|error| self.failed(error, "flushing"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn disk(len: usize) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fs_err::write(&path, vec![7; len]).unwrap();
        (folder, path)
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (_folder, path) = disk(4096);
        let writer = AttachedDisk::open(&path, false).unwrap();
        for read_only in [false, true] {
            let error = AttachedDisk::open(&path, read_only).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        }
        drop(writer);
        let _readers = [(); 2].map(|()| AttachedDisk::open(&path, true).unwrap());
        assert_eq!(AttachedDisk::open(&path, false).unwrap_err().kind(), ErrorKind::InUse);
    }

    #[test]
    fn what_the_guest_discards_is_given_back() {
        let (_folder, path) = disk(4 << 20);
        let attached = AttachedDisk::open(&path, false).unwrap();
        let before = fs_err::metadata(&path).unwrap().blocks();
        attached.zero_at(2 << 20, 1 << 20).unwrap();
        attached.sync().unwrap();
        assert!(fs_err::metadata(&path).unwrap().blocks() <= before / 2 + 64);
        let mut around = [0; 2];
        attached.read_exact_at(&mut around, (1 << 20) - 1).unwrap();
        assert_eq!(around, [7, 0]);
        assert_eq!(attached.len(), 4 << 20);
    }

    #[test]
    fn a_folder_is_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let error = AttachedDisk::open(folder.path(), true).unwrap_err();
        assert!(error.to_string().ends_with("is neither a file nor a block device"), "{error}");
    }
}
