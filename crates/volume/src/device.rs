//! A block device that is being written.
//!
//! A device has no second name that could be swapped in. Its first MiB, which holds the partition
//! table, the boot code and a qcow2 header, is therefore kept in memory, with zeros in its place,
//! until the disk is published: what was not verified does not boot.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bootyard_image::Body;
use bootyard_spec::{ByteSize, shell_word};

use crate::fsops;
use crate::{Error, ErrorKind};

/// How much of the disk's start is withheld. Partition tables (MBR, GPT with 4096-byte sectors)
/// and boot code end before the first partition, which begins here.
const HEAD_LEN: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) file: File,
    path: PathBuf,
    capacity: u64,
    head: Mutex<Vec<u8>>,
}

impl Device {
    /// Opens the device for this process alone.
    pub(crate) fn claim(path: &Path) -> Result<Self, Error> {
        let mut file = match fsops::open_alone(path, true) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(in_use(path)),
            result => result.map_err(|e| Error::io(e, path, "cannot open the block device"))?,
        };
        // A machine's disk is only locked (`AttachedDisk`): who runs it may not open it so.
        match fsops::try_lock(&file, false) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(error)) => {
                return Err(Error::io(error, path, "cannot lock the block device"));
            }
        }
        let capacity = file
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::io(e, path, "cannot tell the block device's size"))?;
        let head = Mutex::new(vec![0; capacity.min(HEAD_LEN) as usize]);
        Ok(Self { file, path: path.to_owned(), capacity, head })
    }

    pub(crate) const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Checks that `size` bytes fit.
    pub(crate) fn fits(&self, size: u64) -> Result<(), Error> {
        if size > self.capacity {
            let what = format!(
                "block device `{}` is too small: expected at least {}, got {}",
                self.path.display(),
                ByteSize::from_bytes(size),
                ByteSize::from_bytes(self.capacity)
            );
            return Err(Error::new(ErrorKind::TooSmall, &self.path, what)
                .with_hint("name a larger device, or import into a file"));
        }
        Ok(())
    }

    /// Checks that `size` bytes fit, and makes the device unbootable until it is published.
    pub(crate) fn reserve(&self, size: u64) -> Result<(), Error> {
        self.fits(size)?;
        let head_len = self.head().len() as u64;
        fsops::zero(&self.file, 0, head_len)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io(e, &self.path, "cannot clear the start of the block device"))
    }

    pub(crate) fn put(&self, body: Body<'_>, offset: u64) -> io::Result<()> {
        let mut head = self.head();
        let len = match body {
            Body::Data(data) => data.len() as u64,
            Body::Zero(len) => len,
        };
        let within = overlap(&head, offset, len);
        let taken = within.len();
        match body {
            Body::Data(data) => {
                head[within].copy_from_slice(&data[..taken]);
                drop(head);
                self.file.write_all_at(&data[taken..], offset + taken as u64)
            }
            Body::Zero(len) => {
                head[within].fill(0);
                drop(head);
                let taken = taken as u64;
                if len == taken {
                    return Ok(());
                }
                fsops::zero(&self.file, offset + taken, len - taken)
            }
        }
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let head = self.head();
        let within = overlap(&head, offset, buf.len() as u64);
        let (first, rest) = buf.split_at_mut(within.len());
        first.copy_from_slice(&head[within]);
        drop(head);
        self.file.read_exact_at(rest, offset + first.len() as u64)
    }

    /// Makes all but the start durable, then writes the start.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let store = || {
            self.file.sync_data()?;
            self.file.write_all_at(&self.head(), 0)?;
            self.file.sync_data()
        };
        store().map_err(|error| Error::io(error, &self.path, "cannot publish the disk"))
    }

    fn head(&self) -> MutexGuard<'_, Vec<u8>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for a block device that somebody uses.
pub(crate) fn in_use(path: &Path) -> Error {
    let what = format!("block device `{}` is in use", path.display());
    let hint = format!(
        "see what holds it with `lsblk {0}` and `fuser -v {0}`; unmount it, or stop the machine, first",
        shell_word(path)
    );
    Error::new(ErrorKind::InUse, path, what).with_hint(hint)
}

/// The part of `head`, the first bytes of a device, that `len` bytes at `offset` touch.
fn overlap(head: &[u8], offset: u64, len: u64) -> Range<usize> {
    let end = head.len() as u64;
    offset.min(end) as usize..offset.saturating_add(len).min(end) as usize
}
