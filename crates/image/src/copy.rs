//! Copies a disk that is read at random access to where it is stored. Not for streams: see
//! [`crate::stream`].

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Body, Disk, Error, Extent, Piece, Pieces, Sink, zero};

/// What one thread reads at a time: at least a cluster of any format, so that none is read twice.
const PART: u64 = 2 << 20;

/// How much was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// How many bytes of data the sink was given.
    pub data_bytes: u64,
    /// How many bytes of zeros it was told of.
    pub zero_bytes: u64,
}

/// Gives all of `disk` to `sink`, read by `workers` threads of which each has a buffer of 2 MiB.
/// Fails with the first error of either.
pub fn copy(disk: &dyn Disk, sink: &dyn Sink, workers: NonZeroUsize) -> Result<Copied, Error> {
    let copy = Copy {
        disk,
        sink,
        parts: Mutex::new(Parts { pieces: Pieces::new(disk), rest: None }),
        failed: AtomicBool::new(false),
        data: AtomicU64::new(0),
        zero: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let start = |index| {
            let name = format!("copy-{index}");
            std::thread::Builder::new().name(name).spawn_scoped(scope, || copy.work())
        };
        let threads: Result<Vec<_>, _> = (0..workers.get()).map(start).collect();
        let threads = threads.map_err(|error| {
            copy.failed.store(true, Ordering::Relaxed);
            Error::write(error)
        })?;
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<(), Error>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All are joined before the first error is looked at.
        threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()
    })?;
    Ok(Copied { data_bytes: copy.data.into_inner(), zero_bytes: copy.zero.into_inner() })
}

struct Copy<'a> {
    disk: &'a dyn Disk,
    sink: &'a dyn Sink,
    parts: Mutex<Parts<'a>>,
    failed: AtomicBool,
    data: AtomicU64,
    zero: AtomicU64,
}

/// What no thread has taken yet.
struct Parts<'a> {
    pieces: Pieces<'a>,
    /// A run of data that has been begun.
    rest: Option<(u64, Extent)>,
}

impl Iterator for Parts<'_> {
    type Item = Result<(u64, Extent), Error>;

    /// The next run of zeros, or part of a run of data.
    fn next(&mut self) -> Option<Self::Item> {
        let (offset, run) = match self.rest.take() {
            Some(rest) => rest,
            None => match self.pieces.next()? {
                Ok(run) => run,
                Err(error) => return Some(Err(error)),
            },
        };
        let part = PART - offset % PART;
        if run.zero || run.len <= part {
            return Some(Ok((offset, run)));
        }
        self.rest = Some((offset + part, Extent { len: run.len - part, zero: false }));
        Some(Ok((offset, Extent { len: part, zero: false })))
    }
}

impl Copy<'_> {
    /// Copies parts until there are no more, or another thread has failed.
    fn work(&self) -> Result<(), Error> {
        let mut buffer = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            let next = self.parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(part) = next else { break };
            let copied = part.and_then(|(offset, run)| self.part(offset, run, &mut buffer));
            if copied.is_err() {
                self.failed.store(true, Ordering::Relaxed);
                return copied;
            }
        }
        Ok(())
    }

    fn part(&self, offset: u64, run: Extent, buffer: &mut Vec<u8>) -> Result<(), Error> {
        if run.zero {
            return self.put(Piece { offset, body: Body::Zero(run.len) });
        }
        buffer.resize(PART as usize, 0);
        let data = &mut buffer[..run.len as usize];
        self.disk.read_at(data, offset)?;
        zero::runs(data, offset, |range, zero| {
            let offset = offset + range.start as u64;
            let body = match zero {
                true => Body::Zero(range.len() as u64),
                false => Body::Data(&data[range]),
            };
            self.put(Piece { offset, body })
        })
    }

    fn put(&self, piece: Piece<'_>) -> Result<(), Error> {
        let (counter, len) = match piece.body {
            Body::Data(data) => (&self.data, data.len() as u64),
            Body::Zero(len) => (&self.zero, len),
        };
        counter.fetch_add(len, Ordering::Relaxed);
        self.sink.put(piece).map_err(Error::write)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::ErrorKind;
    use crate::raw::RawDisk;
    use crate::support::Memory;

    fn disk(len: usize) -> RawDisk<Vec<u8>> {
        let bytes = (0..len).map(|i| if i >> 20 & 1 == 0 { (i >> 9) as u8 } else { 0 });
        RawDisk::read_only(bytes.collect())
    }

    #[test]
    fn every_byte_is_given_once() {
        for len in [0, 512, 2 << 20, (9 << 20) + 512] {
            let disk = disk(len);
            let sink = Memory::default();
            let copied = copy(&disk, &sink, NonZeroUsize::new(3).unwrap()).unwrap();
            assert_eq!(copied.data_bytes + copied.zero_bytes, len as u64);
            assert!(sink.into_disk(len as u64) == *disk.storage());
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        struct Full;
        impl Sink for Full {
            fn put(&self, _: Piece<'_>) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let error = copy(&disk(20 << 20), &Full, NonZeroUsize::new(2).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Write);
    }
}
