//! A disk that is being written and that nobody else sees.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bootyard_image::{Body, Piece, ReadAt, Sink, WriteAt};
use bootyard_spec::{ByteSize, Verified};

use crate::clone::Compared;
use crate::device::Device;
use crate::fsops;
use crate::part::{Durability, Names, Part};
use crate::store::Registration;
use crate::{Error, Facts, Journal, Record, SpillFile, stop};

/// Where large temporary files of a block device go: it has no folder of its own, and `/tmp` is
/// memory on many systems.
const DEVICE_SPILL_FOLDER: &str = "/var/tmp";

/// A target that is claimed for one disk. Dropped without [`Staged::publish`], it leaves no file;
/// a block device is left with zeros in its first MiB.
///
/// As a [`Sink`] it stores a raw disk: pieces of zeros cost nothing in a file, which has holes
/// there, and are zeroed out on a block device, which may hold anything. As [`WriteAt`] and
/// [`ReadAt`] it is the file that a disk format is written into.
#[derive(Debug)]
pub struct Staged {
    /// The final name.
    path: PathBuf,
    medium: Medium,
    /// What was reserved, in bytes.
    size: AtomicU64,
    /// All of it reads as zeros where nothing was stored, and has its place.
    preallocated: AtomicBool,
    /// Another process has stored something, and nobody knows all of where.
    used: AtomicBool,
    /// What another process has left is gone on with, or has been removed.
    taken: AtomicBool,
    /// A file gets a multiple of this many bytes.
    align: u64,
    /// What the store knows of it, if it is a volume. Behind the medium, which is given up first.
    registration: Option<Registration>,
}

#[derive(Debug)]
enum Medium {
    File(Part),
    Device(Device),
}

/// A disk under its final name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The file or block device.
    pub path: PathBuf,
    /// How many bytes of the file system it occupies; `None` for a block device.
    pub allocated_bytes: Option<u64>,
}

impl Staged {
    /// Claims a file that does not exist yet, or a block device that nobody uses.
    pub fn for_path(path: &Path) -> Result<Self, Error> {
        match fs_err::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => Self::claim_device(path),
            Ok(found) if found.is_dir() => Err(Error::is_folder(path)),
            _ => Self::claim_file(path.to_owned(), Names::of_file(path)?),
        }
    }

    pub(crate) fn claim_file(path: PathBuf, names: Names) -> Result<Self, Error> {
        Ok(Self::new(path, Medium::File(Part::claim(names)?)))
    }

    pub(crate) fn claim_device(path: &Path) -> Result<Self, Error> {
        Ok(Self::new(path.to_owned(), Medium::Device(Device::claim(path)?)))
    }

    /// Does something with a block device that is claimed for nothing else.
    pub(crate) fn with_device(&self, work: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        match &self.medium {
            Medium::Device(device) => work(&device.file),
            Medium::File(_) => Ok(()),
        }
    }

    const fn new(path: PathBuf, medium: Medium) -> Self {
        let [preallocated, used, taken] = [const { AtomicBool::new(false) }; 3];
        let size = AtomicU64::new(0);
        Self { path, medium, size, preallocated, used, taken, align: 1, registration: None }
    }

    /// The same target, which becomes no file but of a multiple of `align` bytes.
    pub(crate) fn aligned_to(self, align: u64) -> Self {
        Self { align, ..self }
    }

    /// The same target as a volume of the store.
    pub(crate) fn registered(self, registration: Registration) -> Self {
        Self { registration: Some(registration), ..self }
    }

    /// Notes in the store what is known of the volume, which is about to be published. Of a disk that
    /// is no volume, nobody keeps notes.
    pub fn describe(&self, facts: &Facts) -> Result<(), Error> {
        match &self.registration {
            Some(registration) => registration.describe(facts),
            None => Ok(()),
        }
    }

    /// Whether all of the volume's space is wanted at once, by its storage class.
    pub fn wants_preallocation(&self) -> bool {
        self.registration.as_ref().is_some_and(|registration| registration.preallocation)
    }

    /// The smallest size that a volume of its storage class has.
    pub fn minimum_size(&self) -> ByteSize {
        let registration = self.registration.as_ref();
        registration.map_or(ByteSize::from_bytes(0), |registration| registration.minimum_size)
    }

    /// What the journal says of a disk that another process has begun under this name and not
    /// ended; nothing if there is none, or the target is a block device.
    ///
    /// Whoever does not go on with it must call [`Staged::start_over`].
    pub fn left(&self) -> &[Record] {
        match &self.medium {
            Medium::File(part) => &part.left,
            Medium::Device(_) => &[],
        }
    }

    /// The file; `None` for a block device.
    pub(crate) const fn file(&self) -> Option<&File> {
        match &self.medium {
            Medium::File(part) => Some(&part.file),
            Medium::Device(_) => None,
        }
    }

    /// Whether another process has left something that is still as it was: [`Staged::leave`] keeps it.
    pub fn is_left(&self) -> bool {
        !self.left().is_empty() && !self.taken.load(Ordering::Relaxed)
    }

    /// How many bytes a file has by now; `None` for a block device.
    pub fn file_len(&self) -> Option<u64> {
        match &self.medium {
            Medium::File(part) => part.file.metadata().ok().map(|found| found.len()),
            Medium::Device(_) => None,
        }
    }

    /// Goes on with what another process has left, which has `size` bytes and was preallocated or
    /// not. That one may have stored more than its journal tells, and of another version of the
    /// source, so that zeros are stored from now on.
    pub fn go_on(&self, size: u64, preallocated: bool) {
        self.size.store(size, Ordering::Relaxed);
        self.preallocated.store(preallocated, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        self.taken.store(true, Ordering::Relaxed);
    }

    /// Empties the target of what another process has left.
    pub fn start_over(&self) -> Result<(), Error> {
        self.taken.store(true, Ordering::Relaxed);
        match &self.medium {
            Medium::File(part) => part.start_over(),
            Medium::Device(_) => Ok(()),
        }
    }

    /// A journal beside the disk, with `records` in it, which are the first ones of
    /// [`Staged::left`]. `None` for a block device, which has no folder of its own.
    pub fn journal(&self, records: &[Record]) -> Result<Option<Journal>, Error> {
        match &self.medium {
            Medium::File(part) => part.journal(records).map(Some),
            Medium::Device(_) => Ok(None),
        }
    }

    /// Leaves the disk and its journal for the next process. A block device is given up as by
    /// dropping it.
    pub fn leave(self) {
        if let Medium::File(part) = self.medium {
            part.leave();
            if let Some(registration) = self.registration {
                registration.keep();
            }
        }
    }

    /// Takes `size` bytes of the file system or device for good, so that the disk cannot run out of
    /// space later: by fallocate where the file system has it, else with zeros. Must come after
    /// [`Staged::reserve`], and before anything is stored on a block device.
    pub fn preallocate(&self, size: u64) -> Result<(), Error> {
        self.refuse_more_than_free(size)?;
        let result = match &self.medium {
            Medium::File(part) => fsops::preallocate(&part.file, size),
            Medium::Device(device) => fsops::preallocate(&device.file, size),
        };
        self.preallocated.store(result.is_ok(), Ordering::Relaxed);
        result.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let free = match &self.medium {
                    Medium::File(part) => fsops::free_bytes(&part.file).unwrap_or(0),
                    Medium::Device(_) => 0,
                };
                Error::no_space(&self.path, size, free)
            }
            _ => Error::io(error, &self.path, "cannot preallocate the disk"),
        })
    }

    /// Taking what is not there would leave none to anybody else until it has failed.
    fn refuse_more_than_free(&self, size: u64) -> Result<(), Error> {
        let Medium::File(part) = &self.medium else { return Ok(()) };
        let (Ok(free), Ok(found)) = (fsops::free_bytes(&part.file), part.file.metadata()) else {
            return Ok(());
        };
        match size.saturating_sub(found.blocks() * 512) {
            wanted if wanted > free => Err(Error::no_space(&self.path, wanted, free)),
            _ => Ok(()),
        }
    }

    /// The name under which the disk will be published.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of a block device, in bytes; `None` for a file, which has the size that it is
    /// given.
    pub const fn capacity(&self) -> Option<u64> {
        match &self.medium {
            Medium::File(_) => None,
            Medium::Device(device) => Some(device.capacity()),
        }
    }

    /// Gives the target `size` bytes, all zero in a file, which has holes there. Fails where they
    /// cannot fit: on a block device that is too small, or in no file of this file system.
    pub fn reserve(&self, size: u64) -> Result<(), Error> {
        match &self.medium {
            Medium::Device(device) => device.reserve(size)?,
            Medium::File(part) => part.set_len(size)?,
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// A temporary file on the target's file system.
    pub fn spill(&self) -> Result<SpillFile, Error> {
        match &self.medium {
            Medium::File(part) => SpillFile::create_in(part.folder()),
            Medium::Device(_) => SpillFile::create_in(Path::new(DEVICE_SPILL_FOLDER)),
        }
    }

    /// How many bytes from `offset` on are alike: in a hole, which reads as zeros, or not. At least
    /// one, for an offset within what was reserved.
    pub fn hole_at(&self, offset: u64) -> io::Result<(u64, bool)> {
        let end = self.size.load(Ordering::Relaxed);
        match &self.medium {
            Medium::File(part) => fsops::hole_at(&part.file, offset, end),
            Medium::Device(_) => Ok((end - offset, false)),
        }
    }

    /// Makes durable what was stored so far.
    pub fn flush(&self) -> Result<(), Error> {
        self.sync().map_err(|error| {
            Error::io(error, &self.path, format!("cannot write to `{}`", self.path.display()))
        })
    }

    /// Makes the disk durable, and then visible under its name in one step. Fails where the name
    /// was taken meanwhile.
    pub fn publish(self, _verified: &Verified) -> Result<Published, Error> {
        self.make_visible(Durability::Lasting)
    }

    /// [`Staged::publish`] for scratch space, which nobody misses after a loss of power; durable only
    /// as a volume of the store.
    pub(crate) fn publish_scratch(self) -> Result<Published, Error> {
        let durability = match self.registration {
            Some(_) => Durability::Lasting,
            None => Durability::Scratch,
        };
        self.make_visible(durability)
    }

    /// [`Staged::publish`] for a clone.
    pub(crate) fn publish_compared(self, _compared: &Compared) -> Result<Published, Error> {
        self.make_visible(Durability::Lasting)
    }

    fn make_visible(self, durability: Durability) -> Result<Published, Error> {
        let align = self.align;
        let allocated_bytes = match self.medium {
            Medium::File(part) => {
                if let Ok(found) = part.file.metadata()
                    && !found.len().is_multiple_of(align)
                {
                    part.set_len(found.len().next_multiple_of(align))?;
                }
                stop::at("before-name");
                Some(part.publish(durability)?)
            }
            Medium::Device(device) => {
                device.publish()?;
                None
            }
        };
        stop::at("named");
        if let Some(registration) = self.registration {
            // A file's name says that it is complete, whatever the store knows.
            match registration.publish(&self.path) {
                Err(error) if allocated_bytes.is_none() => return Err(error),
                _ => {}
            }
        }
        Ok(Published { path: self.path, allocated_bytes })
    }

    /// Gives a failed write our words, within an [`io::Error`] of the same kind, since that is
    /// what passes through a decoder.
    fn cannot_write(&self, error: io::Error, len: u64) -> io::Error {
        let kind = error.kind();
        let full = matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let error = match &self.medium {
            Medium::File(part) if full => {
                Error::no_space(&self.path, len, fsops::free_bytes(&part.file).unwrap_or(0))
            }
            _ => Error::io(error, &self.path, format!("cannot write to `{}`", self.path.display())),
        };
        io::Error::new(kind, error)
    }
}

impl Sink for Staged {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        let (len, result) = match (&self.medium, piece.body) {
            (Medium::File(part), Body::Zero(len)) if self.used.load(Ordering::Relaxed) => {
                let zero = match self.preallocated.load(Ordering::Relaxed) {
                    true => fsops::zero_in_place,
                    false => fsops::zero,
                };
                (0, zero(&part.file, piece.offset, len))
            }
            (Medium::File(_), Body::Zero(_)) => return Ok(()),
            (_, Body::Zero(_)) if self.preallocated.load(Ordering::Relaxed) => return Ok(()),
            (Medium::File(part), Body::Data(data)) => {
                (data.len() as u64, part.write_all_at(data, piece.offset))
            }
            (Medium::Device(device), body) => (0, device.put(body, piece.offset)),
        };
        result.map_err(|error| self.cannot_write(error, len))
    }
}

impl ReadAt for Staged {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.medium {
            Medium::File(part) => part.file.read_exact_at(buf, offset),
            Medium::Device(device) => device.read(buf, offset),
        }
    }
}

impl WriteAt for Staged {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let result = match &self.medium {
            Medium::File(part) => part.write_all_at(data, offset),
            Medium::Device(device) => device.put(Body::Data(data), offset),
        };
        result.map_err(|error| self.cannot_write(error, data.len() as u64))
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        let result = match &self.medium {
            Medium::File(part) => fsops::zero(&part.file, offset, len),
            Medium::Device(device) => device.put(Body::Zero(len), offset),
        };
        result.map_err(|error| self.cannot_write(error, len))
    }

    fn sync(&self) -> io::Result<()> {
        match &self.medium {
            Medium::File(part) => part.file.sync_data(),
            Medium::Device(device) => device.file.sync_data(),
        }
    }
}

#[cfg(test)]
mod tests;
