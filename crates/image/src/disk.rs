//! Random access: the bytes of a file on one side, the disk that a guest sees on the other.
//!
//! [`ReadAt`] and [`WriteAt`] are what a format reads and writes: a file, a block device, ranges
//! of an HTTP object, memory. [`Disk`] is what a format gives: the guest's bytes.
//!
//! # What caller and implementor of [`Disk`] may rely on
//!
//! * The caller never asks beyond [`Disk::virtual_size`]; an implementor that is asked anyway
//!   answers with [`crate::ErrorKind::OutOfRange`] and changes nothing.
//! * Offsets and lengths are in bytes and need no alignment. An empty read or write succeeds.
//! * Reads and writes may come from several threads at once. Overlapping writes from two threads
//!   leave one or the other's bytes in each sector, as a real disk would.
//! * What was never written reads as zeros.
//! * Whoever holds a [`Located`] calls nothing of the same disk but [`Disk::locate`], and waits for
//!   nobody who does: a flush may wait until nothing of the disk is held.
//! * After [`WriteDisk::flush`] returns, everything that was written before it was called survives
//!   a power cut. Before that, nothing is promised.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::Error;
use crate::pins::Pinned;

/// Bytes at known places, of a known length.
pub trait ReadAt: Send + Sync {
    /// The length in bytes.
    fn len(&self) -> u64;

    /// True if there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset`. Fails with [`io::ErrorKind::UnexpectedEof`] where the bytes end
    /// before `buf` is full.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The file in which each of these bytes stands at its offset, if there is one. Whoever reads
    /// there reads what [`ReadAt::read_exact_at`] does.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Bytes to be stored that are no slice: a guest's memory, which changes under the eyes of whoever
/// looks at it.
pub trait Payload {
    /// How many bytes these are.
    fn size(&self) -> usize;

    /// Copies the bytes from `at` on to `buf`, which is not longer than what is there.
    fn copy_to(&self, at: usize, buf: &mut [u8]);

    /// Writes all of `range` to `file` at `offset`.
    fn write_to(&self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<()>;
}

/// Most bytes of a [`Payload`] that pass through a buffer at once, where they must.
const PAYLOAD_STEP: usize = 256 << 10;

/// Hands `range` of `data` on in slices, each with its distance from the range's beginning.
fn in_slices<E>(
    data: &dyn Payload,
    range: Range<usize>,
    mut each: impl FnMut(&[u8], u64) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0; range.len().min(PAYLOAD_STEP)];
    for at in range.clone().step_by(PAYLOAD_STEP) {
        let part = &mut buffer[..(range.end - at).min(PAYLOAD_STEP)];
        data.copy_to(at, part);
        each(part, (at - range.start) as u64)?;
    }
    Ok(())
}

/// A place that can be written at any offset.
pub trait WriteAt: Send + Sync {
    /// Writes the whole of `data` at `offset`, growing the file where it must.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `range` of `data` at `offset`, as [`WriteAt::write_all_at`] would.
    fn write_payload_at(
        &self,
        data: &dyn Payload,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<()> {
        in_slices(data, range, |part, at| self.write_all_at(part, offset + at))
    }

    /// Makes `len` bytes at `offset` read as zeros, without storing them where that is possible,
    /// growing the file where it must.
    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
}

/// A run of bytes of a disk that are alike: stored, or known to be zero without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the asked offset to the end of the run; at least 1.
    pub len: u64,
    /// The run reads as zeros.
    pub zero: bool,
}

/// Where a run of bytes of a disk is, for those who move them without a buffer between. It stays
/// there as long as this lives.
#[derive(Debug)]
pub struct Located<'d> {
    /// Bytes from the asked offset to the end of the run; at least 1.
    pub len: u64,
    /// Where they are.
    pub at: Location<'d>,
}

/// Where bytes of a disk are.
#[derive(Debug)]
pub enum Location<'d> {
    /// In a file, as they are.
    File {
        /// The file.
        file: BorrowedFd<'d>,
        /// Where in the file.
        offset: u64,
        /// What keeps them there, if they could move.
        pin: Option<Pinned<'d>>,
    },
    /// Nowhere: they are zeros.
    Zeros,
}

/// A guest's disk, whatever stores it. See the module's text for the rules.
pub trait Disk: Send + Sync {
    /// The size that the guest sees, in bytes.
    fn virtual_size(&self) -> u64;

    /// Fills `buf` with the guest's bytes from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error>;

    /// The run that begins at `offset`, which is less than the virtual size. The answer may be
    /// shorter than the run really is, never longer.
    fn extent_at(&self, offset: u64) -> Result<Extent, Error>;

    /// Where the run that begins at `offset` is, of which at most `len` bytes are of interest. None
    /// if only [`Disk::read_at`] can tell what they are, or just now; errors are left to that, too.
    fn locate(&self, offset: u64, len: u64) -> Option<Located<'_>> {
        let _ = (offset, len);
        None
    }

    /// The writing half, if this disk has one.
    fn writer(&self) -> Option<&dyn WriteDisk> {
        None
    }
}

impl dyn Disk + '_ {
    /// The runs of the whole disk in their order, neighbours of one kind as one.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces::new(self)
    }
}

/// The runs of a disk: see `pieces` of `dyn Disk`. Ends after an error.
#[derive(Clone)]
pub struct Pieces<'a> {
    disk: &'a dyn Disk,
    at: u64,
}

impl<'a> Pieces<'a> {
    /// The runs of `disk`.
    pub fn new(disk: &'a dyn Disk) -> Self {
        Self { disk, at: 0 }
    }
}

impl Iterator for Pieces<'_> {
    /// Where a run begins, and what it is.
    type Item = Result<(u64, Extent), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (begin, size) = (self.at, self.disk.virtual_size());
        let mut run: Option<Extent> = None;
        while self.at < size {
            let next = match self.disk.extent_at(self.at) {
                Ok(next) => next,
                Err(error) => {
                    self.at = size;
                    return Some(Err(error));
                }
            };
            match &mut run {
                Some(run) if run.zero != next.zero => break,
                Some(run) => run.len += next.len,
                None => run = Some(next),
            }
            self.at += next.len;
        }
        run.map(|run| Ok((begin, run)))
    }
}

impl std::fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("at", &self.at).finish_non_exhaustive()
    }
}

/// The writing half of a [`Disk`].
pub trait WriteDisk: Disk {
    /// Stores `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error>;

    /// Stores all of `data` at `offset`.
    fn write_payload_at(&self, data: &dyn Payload, offset: u64) -> Result<(), Error> {
        in_slices(data, 0..data.size(), |part, at| self.write_at(part, offset + at))
    }

    /// Makes `len` bytes at `offset` read as zeros. With `discard` the space is given back where
    /// the storage can.
    fn zero_at(&self, len: u64, offset: u64, discard: bool) -> Result<(), Error>;

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<(), Error>;
}

/// Where a run is that an image does not have itself: see [`read_backing`].
pub(crate) fn locate_backing(
    backing: Option<&dyn Disk>,
    offset: u64,
    len: u64,
) -> Option<Located<'_>> {
    match backing.map(|disk| (disk, disk.virtual_size())) {
        Some((disk, size)) if offset < size => disk.locate(offset, len.min(size - offset)),
        _ => Some(Located { len, at: Location::Zeros }),
    }
}

/// Reads from the disk that an image is an overlay over, behind whose end there are zeros.
pub(crate) fn read_backing(
    backing: Option<&dyn Disk>,
    buf: &mut [u8],
    offset: u64,
) -> Result<(), Error> {
    let there = backing.map_or(0, Disk::virtual_size);
    let len = there.saturating_sub(offset).min(buf.len() as u64) as usize;
    let (stored, rest) = buf.split_at_mut(len);
    rest.fill(0);
    match backing {
        Some(disk) if !stored.is_empty() => disk.read_at(stored, offset),
        _ => Ok(()),
    }
}

macro_rules! read_through {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn len(&self) -> u64 {
                (**self).len()
            }

            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_exact_at(buf, offset)
            }

            fn file(&self) -> Option<BorrowedFd<'_>> {
                (**self).file()
            }
        }
    )*};
}

read_through!(&T, Box<T>, Arc<T>);

macro_rules! write_through {
    ($($pointer:ty),*) => {$(
        impl<T: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
                (**self).write_all_at(data, offset)
            }

            fn write_payload_at(
                &self,
                data: &dyn Payload,
                range: Range<usize>,
                offset: u64,
            ) -> io::Result<()> {
                (**self).write_payload_at(data, range, offset)
            }

            fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
                (**self).zero_at(len, offset)
            }

            fn sync(&self) -> io::Result<()> {
                (**self).sync()
            }
        }
    )*};
}

write_through!(&T, Box<T>, Arc<T>);

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        Self::len(self) as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}
