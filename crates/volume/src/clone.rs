//! Clones: a second disk with the content of one that nobody writes to meanwhile.
//!
//! Where the file system can, the clone shares the original's blocks until one of both changes
//! (`FICLONE`), which takes no time. Elsewhere the original's data is copied, its holes and zeros are
//! not, and everything that was stored is read again and compared. The clone of a process that was
//! killed is gone on with by comparing too: what is there already is not stored again, and nothing
//! has to be believed.
//!
//! The original may be changed by somebody who takes no lock of ours. Its times tell, and then there
//! is no clone.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bootyard_image::fingerprint::Collector;
use bootyard_image::{Body, Disk, Extent, Fingerprint, Piece, ReadAt, Sink, copy};
use bootyard_spec::{ByteSize, VolumeName};

use crate::{AttachedDisk, Error, ErrorKind, Facts, Published, Staged, fsops};

/// How much is compared at a time: little enough to stay in a processor's cache.
const COMPARED: usize = 128 << 10;

thread_local! {
    /// What is read again. A new one for each piece would cost more than the reading.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kind of the only record in a clone's journal: what is cloned.
const HEAD: u8 = 1;
/// The version of that record.
const VERSION: &str = "bootyard-clone 1";
/// What was stored is made durable after this many bytes each.
const FLUSH_STEP: u64 = 64 << 20;
/// How often it is looked whether there are so many.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

/// How a disk is cloned.
pub struct CloneOptions<'a> {
    /// What the original is called, for whoever asks the clone where it came from.
    pub source: &'a str,
    /// The volume that the clone is a snapshot of.
    pub parent: Option<&'a VolumeName>,
    /// The fingerprint that the original was found to have when it was made, if nobody has written to it
    /// since. One that is read and has another one is damaged.
    pub known: Option<Fingerprint>,
    /// The size of the clone in bytes; the original's if not given. A class may ask for more, and on
    /// a block device a raw clone is all of it.
    pub size: Option<u64>,
    /// Whether the bytes are the disk itself, of which a fingerprint is taken, or a disk image's.
    pub is_raw: bool,
    /// Whether the clone takes all of its space at once. Then it shares nothing.
    pub preallocation: bool,
    /// Whether a clone that shares the original's blocks is read and compared as well.
    pub verify: bool,
    /// How many threads copy.
    pub workers: NonZeroUsize,
    /// Told how many bytes of the original are done with, of how many.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Asked whether the user wants to stop.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

impl fmt::Debug for CloneOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, parent, known, size, is_raw, preallocation, verify, workers, .. } = self;
        f.debug_struct("CloneOptions")
            .field("source", source)
            .field("parent", parent)
            .field("known", known)
            .field("size", size)
            .field("is_raw", is_raw)
            .field("preallocation", preallocation)
            .field("verify", verify)
            .field("workers", workers)
            .finish_non_exhaustive()
    }
}

/// How a clone came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMethod {
    /// It shares the original's blocks.
    Reflink,
    /// It was copied and compared.
    Copy,
}

impl CloneMethod {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

/// A clone under its final name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// Where it is.
    pub published: Published,
    /// How it came to be.
    pub method: CloneMethod,
    /// Its size, in bytes.
    pub size: u64,
    /// How many bytes of data were stored; none if the blocks are shared.
    pub data_bytes: u64,
    /// How many bytes of data another process had stored already.
    pub resumed_bytes: u64,
    /// The fingerprint of a raw clone that was read.
    pub fingerprint: Option<Fingerprint>,
}

/// The proof that a clone has its original's content. Only this module makes one.
#[derive(Debug)]
pub(crate) struct Compared(());

impl Staged {
    /// Makes this target a clone of `original`, and publishes it. Fails where the clone is to be
    /// smaller, and with [`ErrorKind::Stopped`] if the user wanted that; the same call goes on then.
    pub fn publish_clone(
        self,
        original: &AttachedDisk,
        options: &CloneOptions<'_>,
    ) -> Result<Cloned, Error> {
        let preallocation = options.preallocation || self.wants_preallocation();
        let options = &CloneOptions { preallocation, ..*options };
        let size = clone_size(original, options, &self)?;
        let version = Version::of(original)?;
        let job = Job { original, options, staged: &self, size };
        match job.clone(&version) {
            Ok(done) => {
                if Version::of(original)? != version {
                    return Err(changed(original));
                }
                job.refuse_damaged(done.fingerprint)?;
                let Done { method, data_bytes, resumed_bytes, fingerprint } = done;
                // Shared blocks are what the original's are.
                let carried = options.known.filter(|_| size == original.len());
                self.describe(&Facts {
                    source: Some(options.source.to_owned()),
                    size: options.is_raw.then_some(size),
                    fingerprint: fingerprint.or(carried),
                    parent: options.parent.map(ToString::to_string),
                    ..Facts::default()
                })?;
                let published = self.publish_compared(&Compared(()))?;
                Ok(Cloned { published, method, size, data_bytes, resumed_bytes, fingerprint })
            }
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Stopped | ErrorKind::NoSpace) {
                    self.leave();
                }
                Err(error)
            }
        }
    }
}

/// A raw clone has its class's smallest size at least, and is all of a block device: behind the
/// original is what the device held before.
fn clone_size(
    original: &AttachedDisk,
    options: &CloneOptions<'_>,
    staged: &Staged,
) -> Result<u64, Error> {
    let (least, path) = (original.len(), original.path());
    match options.size {
        Some(size) if size < least => {
            let (least, size) = (ByteSize::from_bytes(least), ByteSize::from_bytes(size));
            let what =
                format!("a clone of `{}` needs at least {least}, got {size}", path.display());
            let hint = format!("name a larger one, `--size {least}`, or none");
            Err(Error::new(ErrorKind::TooSmall, path, what).with_hint(hint))
        }
        size if options.is_raw => {
            let least = size.unwrap_or(least).max(staged.minimum_size().bytes());
            Ok(least.max(staged.capacity().unwrap_or(0)))
        }
        size => Ok(size.unwrap_or(least)),
    }
}

fn changed(original: &AttachedDisk) -> Error {
    let path = original.path();
    let what = format!("`{}` was changed while it was cloned", path.display());
    let hint = "stop whoever writes to it, and run the same command again";
    Error::new(ErrorKind::InUse, path, what).with_hint(hint)
}

/// What changes whenever somebody writes to a file; a block device tells only how long it is.
#[derive(Debug, PartialEq, Eq)]
struct Version(String);

impl Version {
    fn of(original: &AttachedDisk) -> Result<Self, Error> {
        let path = original.path();
        let found = original.file().metadata();
        let found = found.map_err(|error| Error::io(error, path, "cannot tell its version"))?;
        let (device, number) = match found.file_type().is_block_device() {
            true => (found.rdev(), 0),
            false => (found.dev(), found.ino()),
        };
        let len = original.len();
        let times = match found.file_type().is_block_device() {
            true => [0; 4],
            false => [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()],
        };
        Ok(Self(format!("{device} {number} {len} {times:?}")))
    }
}

struct Job<'a> {
    original: &'a AttachedDisk,
    options: &'a CloneOptions<'a>,
    staged: &'a Staged,
    size: u64,
}

struct Done {
    method: CloneMethod,
    data_bytes: u64,
    resumed_bytes: u64,
    fingerprint: Option<Fingerprint>,
}

impl Job<'_> {
    fn clone(&self, version: &Version) -> Result<Done, Error> {
        let head = self.head(version);
        let goes_on = self.staged.left().first().is_some_and(|record| record.payload == head)
            && self.staged.file_len() == Some(self.size);
        if goes_on {
            self.staged.go_on(self.size, self.options.preallocation);
            return self.copy(true);
        }
        self.staged.start_over()?;
        if !self.options.preallocation && self.reflink()? {
            return self.reflinked();
        }
        self.staged.reserve(self.size)?;
        if self.options.preallocation {
            self.staged.preallocate(self.size)?;
        }
        if let Some(mut journal) = self.staged.journal(&[])? {
            journal.append(HEAD, &head)?;
        }
        self.copy(false)
    }

    /// What must be the same for another process to go on.
    fn head(&self, version: &Version) -> Vec<u8> {
        let Self { size, options: CloneOptions { preallocation, .. }, .. } = self;
        format!("{VERSION}\n{}\n{size}\n{preallocation}\n", version.0).into_bytes()
    }

    /// Shares the original's blocks, if both are files of one file system that can.
    fn reflink(&self) -> Result<bool, Error> {
        let Some(file) = self.staged.file() else { return Ok(false) };
        if !fsops::reflink(self.original.file(), file) {
            return Ok(false);
        }
        self.staged.reserve(self.size)?;
        Ok(true)
    }

    fn reflinked(&self) -> Result<Done, Error> {
        let fingerprint = match self.options.verify && self.options.is_raw {
            true => Some(self.same_fingerprint()?),
            false => None,
        };
        (self.options.progress)(self.original.len(), self.original.len());
        let method = CloneMethod::Reflink;
        Ok(Done { method, data_bytes: 0, resumed_bytes: 0, fingerprint })
    }

    /// Reads both, and compares them by their fingerprints.
    fn same_fingerprint(&self) -> Result<Fingerprint, Error> {
        let of = |disk: &dyn Disk| {
            let fingerprint = Fingerprint::of(disk, self.options.workers);
            fingerprint.map_err(|error| self.failed(error, None))
        };
        let clone = of(&Stored(self.staged))?;
        match clone == of(&Padded { job: self, size: self.size })? {
            true => Ok(clone),
            false => Err(self.differs()),
        }
    }

    /// Copies and compares all data. Behind the original's end are zeros.
    fn copy(&self, goes_on: bool) -> Result<Done, Error> {
        let sink = Comparing {
            job: self,
            goes_on,
            collector: self.options.is_raw.then(Collector::new),
            fault: Mutex::new(None),
            done: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
        };
        let flushing = AtomicBool::new(true);
        let copied = thread::scope(|scope| {
            scope.spawn(|| sink.flush_now_and_then(&flushing));
            let copied = copy(&Padded { job: self, size: self.size }, &sink, self.options.workers);
            flushing.store(false, Ordering::Relaxed);
            copied
        });
        copied.map_err(|error| self.failed(error, sink.take_fault()))?;
        if let Some(error) = sink.take_fault() {
            return Err(error);
        }
        let fingerprint = sink.collector.map(|it| it.finish(self.size, Some(self.staged)));
        Ok(Done {
            method: CloneMethod::Copy,
            data_bytes: sink.stored.into_inner(),
            resumed_bytes: sink.resumed.into_inner(),
            fingerprint: fingerprint.transpose().map_err(|error| self.failed(error, None))?,
        })
    }

    fn refuse_stopped(&self) -> Result<(), Error> {
        if !(self.options.stopped)() {
            return Ok(());
        }
        let what = format!("cloning to `{}` was stopped", self.staged.path().display());
        let hint = match self.staged.capacity() {
            None => "what is done stays, hidden: the same command goes on",
            Some(_) => "the same command begins again",
        };
        Err(Error::new(ErrorKind::Stopped, self.staged.path(), what).with_hint(hint))
    }

    fn failed(&self, error: bootyard_image::Error, fault: Option<Error>) -> Error {
        let path = self.original.path();
        fault.unwrap_or_else(|| {
            Error::io(io::Error::other(error), path, format!("cannot clone `{}`", path.display()))
        })
    }

    /// Refuses an original that is not what it was. One that is enlarged has another fingerprint anyway.
    fn refuse_damaged(&self, found: Option<Fingerprint>) -> Result<(), Error> {
        let (Some(known), Some(found)) = (self.options.known, found) else { return Ok(()) };
        if self.size != self.original.len() || known == found {
            return Ok(());
        }
        let path = self.original.path();
        let what = format!("`{}` is damaged: expected {known}, got {found}", path.display());
        let hint = "nobody is known to have written to it: see the kernel's messages about its disk, \
                    and make the volume again from its source";
        Err(Error::new(ErrorKind::Damaged, path, what).with_hint(hint))
    }

    fn differs(&self) -> Error {
        let path = self.staged.path();
        let what = format!("what was stored for `{}` is not read back", path.display());
        let hint = "the disk below, its cable or the memory is broken: see the kernel's messages";
        Error::new(ErrorKind::Io, path, what).with_hint(hint)
    }
}

/// The original, with zeros behind it up to the clone's size.
struct Padded<'a> {
    job: &'a Job<'a>,
    size: u64,
}

impl Disk for Padded<'_> {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), bootyard_image::Error> {
        self.job.original.read_exact_at(buf, offset).map_err(|error| Self::read(error, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, bootyard_image::Error> {
        let original = self.job.original;
        if offset >= original.len() {
            return Ok(Extent { len: self.size - offset, zero: true });
        }
        let (len, zero) = original.hole_at(offset).map_err(|error| Self::read(error, offset))?;
        Ok(Extent { len, zero })
    }
}

impl Padded<'_> {
    fn read(error: io::Error, offset: u64) -> bootyard_image::Error {
        bootyard_image::Error::read(error, offset)
    }
}

/// The clone, as it can be read already.
struct Stored<'a>(&'a Staged);

impl Disk for Stored<'_> {
    fn virtual_size(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), bootyard_image::Error> {
        self.0.read_exact_at(buf, offset).map_err(|error| Padded::read(error, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, bootyard_image::Error> {
        let (len, zero) = self.0.hole_at(offset).map_err(|error| Padded::read(error, offset))?;
        Ok(Extent { len, zero })
    }
}

/// Stores what comes, reads it again and compares.
struct Comparing<'a> {
    job: &'a Job<'a>,
    /// Some of it may be stored already.
    goes_on: bool,
    collector: Option<Collector>,
    /// The first failure, in its own words.
    fault: Mutex<Option<Error>>,
    done: AtomicU64,
    stored: AtomicU64,
    resumed: AtomicU64,
}

impl Comparing<'_> {
    fn take(&self, piece: &Piece<'_>) -> Result<(), Error> {
        let job = self.job;
        job.refuse_stopped()?;
        let len = match piece.body {
            Body::Data(data) if self.goes_on && self.is_stored(piece.offset, data)? => {
                self.resumed.fetch_add(data.len() as u64, Ordering::Relaxed);
                data.len() as u64
            }
            Body::Data(data) => {
                self.store(piece)?;
                self.stored.fetch_add(data.len() as u64, Ordering::Relaxed);
                if !self.is_stored(piece.offset, data)? {
                    return Err(job.differs());
                }
                data.len() as u64
            }
            Body::Zero(len) => {
                self.store(piece)?;
                len
            }
        };
        if let Some(collector) = &self.collector {
            collector.put(piece);
        }
        let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        let total = job.original.len();
        (job.options.progress)(done.min(total), total);
        Ok(())
    }

    fn store(&self, piece: &Piece<'_>) -> Result<(), Error> {
        self.job.staged.put(*piece).map_err(|error| own(error, self.job.staged))
    }

    fn is_stored(&self, offset: u64, data: &[u8]) -> Result<bool, Error> {
        let staged = self.job.staged;
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(COMPARED, 0);
            for (index, part) in data.chunks(COMPARED).enumerate() {
                let found = &mut buffer[..part.len()];
                let read = staged.read_exact_at(found, offset + (index * COMPARED) as u64);
                read.map_err(|error| own(error, staged))?;
                if found != part {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Makes durable what is stored while the rest is copied, so that the end finds little to do.
    fn flush_now_and_then(&self, copying: &AtomicBool) {
        let mut flushed = 0;
        while copying.load(Ordering::Relaxed) {
            let stored = self.stored.load(Ordering::Relaxed);
            if stored - flushed < FLUSH_STEP {
                thread::sleep(FLUSH_PAUSE);
                continue;
            }
            flushed = stored;
            if let Err(error) = self.job.staged.flush() {
                return self.note(error);
            }
        }
    }

    fn note(&self, error: Error) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn take_fault(&self) -> Option<Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Sink for Comparing<'_> {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        self.take(&piece).map_err(|error| {
            self.note(error);
            io::Error::other("not cloned")
        })
    }
}

/// The storage's own words for its failure.
fn own(error: io::Error, staged: &Staged) -> Error {
    let path = staged.path();
    error.downcast().unwrap_or_else(|error| {
        Error::io(error, path, format!("cannot read `{}` again", path.display()))
    })
}

#[cfg(test)]
mod tests;
