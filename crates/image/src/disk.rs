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
//! * After [`WriteDisk::flush`] returns, everything that was written before it was called survives
//!   a power cut. Before that, nothing is promised.

use std::io;
use std::sync::Arc;

use crate::Error;

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
}

/// A place that can be written at any offset.
pub trait WriteAt: Send + Sync {
    /// Writes the whole of `data` at `offset`, growing the file where it must.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

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

/// A guest's disk, whatever stores it. See the module's text for the rules.
pub trait Disk: Send + Sync {
    /// The size that the guest sees, in bytes.
    fn virtual_size(&self) -> u64;

    /// Fills `buf` with the guest's bytes from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error>;

    /// The run that begins at `offset`, which is less than the virtual size. The answer may be
    /// shorter than the run really is, never longer.
    fn extent_at(&self, offset: u64) -> Result<Extent, Error>;

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

    /// Makes `len` bytes at `offset` read as zeros. With `discard` the space is given back where
    /// the storage can.
    fn zero_at(&self, len: u64, offset: u64, discard: bool) -> Result<(), Error>;

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<(), Error>;
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
