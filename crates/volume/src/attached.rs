//! The disk of a running machine: a file or block device that is locked while it is attached.
//!
//! The lock is the operating system's and dies with its holder. It keeps two of our machines from
//! writing to one disk; QEMU's locks are of another kind.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bootyard_image::{Payload, ReadAt, WriteAt};
use bootyard_spec::shell_word;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

use crate::device::in_use;
use crate::{Error, ErrorKind, fsops};

/// How often a disk may be removed between being opened and being locked. Each time needs another
/// removal in that very moment.
const ATTEMPTS_MAX: u32 = 16;

/// A disk that is attached to a machine: its bytes, or an image that grows as the guest writes.
#[derive(Debug)]
pub struct AttachedDisk {
    file: File,
    path: PathBuf,
    len: AtomicU64,
}

/// How a machine uses a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads, as others may.
    Read,
    /// It alone reads: those who may write share the disk.
    ReadAlone,
    /// It alone writes and reads.
    Write,
    /// It writes, as others may: they agree among themselves.
    WriteShared,
}

impl AttachedDisk {
    /// Opens the file or block device at `path`, for as many readers as come or for one writer.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        Self::open_for(path, if read_only { Access::Read } else { Access::Write })
    }

    /// Opens the file or block device at `path` for this use. Fails where others use it otherwise.
    pub fn open_for(path: &Path, access: Access) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS_MAX {
            let disk = Self::try_open(path, access)?;
            // Its holder until now may have removed it: what was locked is nobody's disk then.
            if fsops::leads_to(path, &disk.file) {
                disk.refuse_mounted()?;
                return Ok(disk);
            }
        }
        let what = format!("`{}` is replaced all the time", path.display());
        Err(Error::new(ErrorKind::InUse, path, what).with_hint("run the same command again"))
    }

    fn try_open(path: &Path, access: Access) -> Result<Self, Error> {
        let failed = |error| Error::io(error, path, format!("cannot open `{}`", path.display()));
        let write = matches!(access, Access::Write | Access::WriteShared);
        let shared = matches!(access, Access::Read | Access::WriteShared);
        let mut options = fs_err::OpenOptions::new();
        // A pipe is refused, not waited for.
        options.read(true).write(write).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let file = options.open(path).map_err(failed)?.into_file();
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = format!("`{}` is neither a file nor a block device", path.display());
            return Err(Error::new(ErrorKind::Io, path, what));
        }
        match fsops::try_lock(&file, shared) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("disk `{}` is attached to another machine", path.display());
                let hint = format!("see which with `fuser -v {}`", shell_word(path));
                return Err(Error::new(ErrorKind::InUse, path, what).with_hint(hint));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let len = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), len: AtomicU64::new(len) })
    }

    /// Refuses a block device that the system itself uses: its file system is written to, whatever the
    /// locks say.
    fn refuse_mounted(&self) -> Result<(), Error> {
        let is_device = |found: Metadata| found.file_type().is_block_device();
        if !self.file.metadata().is_ok_and(is_device) {
            return Ok(());
        }
        match fsops::open_alone(&self.path, false) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(in_use(&self.path)),
            _ => Ok(()),
        }
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// How many bytes from `offset` on are alike: in a hole, which reads as zeros, or not. A block
    /// device has no holes that it tells of.
    pub fn hole_at(&self, offset: u64) -> io::Result<(u64, bool)> {
        let end = self.len();
        if self.file.metadata()?.file_type().is_block_device() {
            return Ok((end - offset, false));
        }
        fsops::hole_at(&self.file, offset, end).map_err(|error| self.failed(error, "reading"))
    }

    fn failed(&self, error: io::Error, what: &str) -> io::Error {
        let kind = error.kind();
        let what = format!("{what} `{}` failed", self.path.display());
        io::Error::new(kind, Error::io(error, &self.path, what))
    }
}

impl ReadAt for AttachedDisk {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| self.failed(error, "reading"))
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl WriteAt for AttachedDisk {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset).map_err(|error| self.failed(error, "writing to"))?;
        if !data.is_empty() {
            self.len.fetch_max(offset + data.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write_payload_at(
        &self,
        data: &dyn Payload,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<()> {
        let end = offset + range.len() as u64;
        data.write_to(range, self.file.as_fd(), offset)
            .map_err(|error| self.failed(error, "writing to"))?;
        self.len.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the space back where the file system or device can.
    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        fsops::zero(&self.file, offset, len).map_err(|error| self.failed(error, "zeroing"))?;
        // That does not make the file grow. A byte does, and unlike a new length it can never cut
        // off what another thread has just written behind it.
        match (offset + len).checked_sub(1).filter(|last| len > 0 && *last >= self.len()) {
            Some(last) => self.write_all_at(&[0], last),
            None => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|error| self.failed(error, "flushing"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use bootyard_spec::Explain as _;

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
    fn a_disk_that_is_replaced_before_it_is_locked_is_not_attached() {
        let (_folder, path) = disk(512);
        let old = fs_err::File::open(&path).unwrap().into_file();
        old.lock().unwrap();
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| AttachedDisk::open(&path, false).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(8));
            fs_err::remove_file(&path).unwrap();
            fs_err::write(&path, [9; 1024]).unwrap();
            drop(old);
            assert_eq!(opening.join().unwrap().len(), 1024);
        });
    }

    #[test]
    fn a_pipe_is_no_disk_and_a_mounted_device_is_in_use() {
        let (folder, path) = disk(512);
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        let error = AttachedDisk::open(&pipe, true).unwrap_err();
        assert!(error.to_string().ends_with("is neither a file nor a block device"), "{error}");

        fs_err::write(&path, vec![0; 1 << 20]).unwrap();
        let Some(device) = bootyard_testkit::LoopDevice::attach(&path, 512) else { return };
        // Whoever mounts it opens it so.
        let mounted = fsops::open_alone(device.path(), false).unwrap();
        for access in [Access::Read, Access::ReadAlone, Access::Write, Access::WriteShared] {
            let error = AttachedDisk::open_for(device.path(), access).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        }
        drop(mounted);
        AttachedDisk::open(device.path(), false).unwrap();
    }

    #[test]
    fn a_machines_device_is_not_written_and_one_that_is_written_not_attached() {
        let (_folder, path) = disk(1 << 20);
        let Some(device) = bootyard_testkit::LoopDevice::attach(&path, 512) else { return };
        for read_only in [false, true] {
            let machine = AttachedDisk::open(device.path(), read_only).unwrap();
            let error = crate::Staged::for_path(device.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("fuser -v")), "{error:?}");
            drop(machine);
        }
        let staged = crate::Staged::for_path(device.path()).unwrap();
        let error = AttachedDisk::open(device.path(), true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        drop(staged);
        AttachedDisk::open(device.path(), true).unwrap();
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
    fn an_image_that_grows_is_read_and_written_on() {
        use bootyard_image::qcow2::{Create, create, edit};
        use bootyard_image::{Disk as _, raw::FileAt};

        const SIZE: usize = 1 << 20;
        let (_folder, path) = disk(0);
        for cluster_bits in [9, 12, 16, 18] {
            let empty = fs_err::File::create(&path).unwrap().into_file();
            let options = Create { cluster_bits, ..Create::new(SIZE as u64) };
            create(&FileAt::new(empty).unwrap(), &options).unwrap();
            let mut expected = vec![0; SIZE];
            for round in 1..4 {
                let editor = edit(AttachedDisk::open(&path, false).unwrap(), None).unwrap();
                let writer = editor.writer().unwrap();
                // Clusters in part and several at once, new ones and those of this and other rounds.
                for (at, len) in [(600_000, 512), (512, 300_000), (1024, 512), (700_416, 1024)] {
                    let value = round * 16 + (at % 13) as u8;
                    expected[at..at + len].fill(value);
                    writer.write_at(&vec![value; len], at as u64).unwrap();
                    let mut found = vec![0xee; SIZE];
                    editor.read_at(&mut found, 0).unwrap();
                    assert!(found == expected, "2^{cluster_bits}: {len} bytes at {at}");
                }
                writer.flush().unwrap();
            }
        }
    }

    #[test]
    fn zeros_behind_the_end_make_the_file_grow() {
        let (_folder, path) = disk(512);
        let attached = AttachedDisk::open(&path, false).unwrap();
        for (at, len) in [(1 << 20, 1 << 16), (100, 50), ((1 << 20) - 512, 1 << 17), (2 << 20, 0)] {
            let before = attached.len();
            attached.zero_at(len, at).unwrap();
            let end = if len == 0 { before } else { before.max(at + len) };
            assert_eq!((attached.len(), fs_err::metadata(&path).unwrap().len()), (end, end));
            attached.read_exact_at(&mut vec![0; len as usize], at.min(end)).unwrap();
        }
    }

    #[test]
    fn a_folder_is_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let error = AttachedDisk::open(folder.path(), true).unwrap_err();
        assert!(error.to_string().ends_with("is neither a file nor a block device"), "{error}");
    }
}
