//! A raw disk in blocks: read, fingerprinted and packed by several threads, given out in their order.
//!
//! Who takes the next block also takes the next place in a queue, which is as long as there may be
//! blocks in memory.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use bootyard_image::fingerprint::Collector;
use bootyard_image::{Body, Disk, Error as ImageError, Piece};
use bytes::Bytes;

use super::packing::Packing;
use crate::Error;

/// How many blocks may wait for each thread until those before them are done.
const WAITING: usize = 2;
/// More threads than this would take more memory than they save time.
const WORKERS_MAX: usize = 16;

/// What comes of a block.
pub(super) enum Part {
    /// Bytes.
    Data(Bytes),
    /// So many zeros.
    Zero(u64),
    /// The disk cannot be read there.
    Failed(ImageError),
}

/// All blocks of a disk.
pub(super) struct Blocks<'a> {
    disk: &'a dyn Disk,
    collector: &'a Collector,
    packing: Packing,
    /// A whole block of zeros, packed.
    zeros: OnceLock<Bytes>,
}

/// The places of blocks that are being made, in their order.
type Queue = SyncSender<(u64, Receiver<Part>)>;

impl<'a> Blocks<'a> {
    pub(super) const fn new(
        disk: &'a dyn Disk,
        collector: &'a Collector,
        packing: Packing,
    ) -> Self {
        Self { disk, collector, packing, zeros: OnceLock::new() }
    }

    /// Calls `take` with each block in the disk's order, and how many bytes of the disk it is. Ends with
    /// the first error.
    pub(super) fn each(
        &self,
        workers: NonZeroUsize,
        mut take: impl FnMut(u64, Part) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let workers = workers.get().min(WORKERS_MAX);
        let next = Mutex::new(0);
        thread::scope(|scope| {
            let (queue, places) = sync_channel(workers * WAITING);
            for index in 0..workers {
                let (queue, next) = (queue.clone(), &next);
                let thread = thread::Builder::new().name(format!("export-{index}"));
                let started = thread.spawn_scoped(scope, move || self.work(&queue, next));
                started.map_err(Error::Setup)?;
            }
            drop(queue);
            for (len, place) in places {
                // A thread that gives nothing has panicked, which the scope passes on.
                if let Ok(part) = place.recv() {
                    take(len, part)?;
                }
            }
            Ok(())
        })
    }

    fn work(&self, queue: &Queue, next: &Mutex<u64>) {
        let size = self.disk.virtual_size();
        loop {
            let mut at = next.lock().unwrap_or_else(PoisonError::into_inner);
            let (begin, len) = (*at, (size - *at).min(self.packing.block() as u64));
            let (done, place) = sync_channel(1);
            // Nobody takes what comes after an error.
            if len == 0 || queue.send((len, place)).is_err() {
                return;
            }
            *at += len;
            drop(at);
            let part = self.part(begin, len as usize).unwrap_or_else(Part::Failed);
            let _ = done.send(part);
        }
    }

    fn part(&self, at: u64, len: usize) -> Result<Part, ImageError> {
        let extent = self.disk.extent_at(at)?;
        let block = match extent.zero && extent.len >= len as u64 {
            true => None,
            false => {
                let mut block = vec![0; len];
                self.disk.read_at(&mut block, at)?;
                Some(block).filter(|block| block.iter().any(|byte| *byte != 0))
            }
        };
        let body = block.as_ref().map_or(Body::Zero(len as u64), |block| Body::Data(block));
        self.collector.put(&Piece { offset: at, body });
        if self.packing == Packing::None {
            return Ok(block.map_or(Part::Zero(len as u64), |block| Part::Data(block.into())));
        }
        let pack = |block| self.packing.pack(block).map(Bytes::from).map_err(ImageError::write);
        let packed = match block {
            Some(block) => pack(block)?,
            None if len < self.packing.block() => pack(vec![0; len])?,
            None => match self.zeros.get() {
                Some(zeros) => zeros.clone(),
                None => {
                    let zeros = pack(vec![0; len])?;
                    self.zeros.get_or_init(|| zeros).clone()
                }
            },
        };
        Ok(Part::Data(packed))
    }
}
