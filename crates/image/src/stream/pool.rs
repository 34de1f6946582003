//! The worker threads: decompress, find the zeros, store.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::codec::{Codec, Fault, Unpacker};
use crate::{Body, Error, ErrorKind, Piece, Sink, zero};

/// How many bytes of the stream wait for the workers or are in their hands. A cluster larger than
/// that (no format has any) would go alone. Each worker has besides a buffer of the larger of
/// 512 KiB and the format's block.
pub const QUEUE_BYTES: usize = 8 << 20;
/// Work is handed over in lots of about this many bytes of the stream,
const BATCH_BYTES: usize = 256 << 10;
/// or this many pieces, where they are tiny or share their bytes.
const BATCH_JOBS: usize = 512;
/// What a worker decompresses before it stores, so that neighbours are stored together.
const BUFFER: usize = 512 << 10;

/// A block to decompress.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) codec: Codec,
    /// The block, perhaps with other bytes behind it.
    pub(crate) bytes: Bytes,
    /// How long it may be when decompressed, and must be at least.
    pub(crate) block: usize,
    pub(crate) needed: usize,
    /// How much of that is on the disk.
    pub(crate) len: usize,
    /// Where it stands in the file.
    pub(crate) at: u64,
    /// The file's end cut it off.
    pub(crate) cut: bool,
}

#[derive(Debug)]
struct Job {
    guest: u64,
    body: JobBody,
}

#[derive(Debug)]
enum JobBody {
    Data(Bytes),
    Packed(Packed),
}

#[derive(Debug, Default)]
struct Batch {
    jobs: Vec<Job>,
    bytes: usize,
}

/// How much the sink was given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) data: u64,
    pub(crate) zero: u64,
}

/// The workers and what is collected for them.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// `None` once no more work will come.
    sender: Option<Sender<(Vec<Job>, Ticket)>>,
    threads: Vec<JoinHandle<()>>,
    batch: Batch,
    /// How many bytes were ever handed over.
    handed: u64,
    /// How many batches were sent.
    sent: u64,
}

struct Shared {
    sink: Arc<dyn Sink>,
    data: AtomicU64,
    zero: AtomicU64,
    /// [`QUEUE_BYTES`], or half of it where nothing is to be decompressed: what unpacks such a disk
    /// takes memory itself.
    queue: usize,
    /// Bytes queued or in hand, at most `queue` unless it is a single batch.
    in_flight: Mutex<usize>,
    room: Condvar,
    stored: Mutex<StoredBatches>,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

/// Which batches are stored: they are numbered as they are sent, and end in any order.
#[derive(Debug, Default)]
struct StoredBatches {
    /// All with a smaller number are.
    all_before: u64,
    /// And these are.
    beyond: BTreeSet<u64>,
}

impl StoredBatches {
    fn note(&mut self, number: u64) {
        self.beyond.insert(number);
        while self.beyond.remove(&self.all_before) {
            self.all_before += 1;
        }
    }
}

impl Pool {
    /// Starts `workers` threads for blocks of up to `block` bytes.
    pub(crate) fn start(
        workers: NonZeroUsize,
        block: usize,
        sink: Arc<dyn Sink>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            sink,
            data: AtomicU64::new(0),
            zero: AtomicU64::new(0),
            queue: if block == 0 { QUEUE_BYTES / 2 } else { QUEUE_BYTES },
            in_flight: Mutex::new(0),
            room: Condvar::new(),
            stored: Mutex::default(),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        });
        let (sender, receiver) = unbounded();
        let mut pool = Self {
            shared,
            sender: Some(sender),
            threads: Vec::with_capacity(workers.get()),
            batch: Batch::default(),
            handed: 0,
            sent: 0,
        };
        for index in 0..workers.get() {
            let worker = Worker::new(pool.shared.clone(), block);
            let receiver = receiver.clone();
            let thread = std::thread::Builder::new()
                .name(format!("decode-{index}"))
                .spawn(move || worker.run(&receiver))
                .map_err(Error::write)?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Stores `bytes` at `guest`.
    pub(crate) fn data(&mut self, guest: u64, bytes: Bytes) -> Result<(), Error> {
        self.add(bytes.len(), Job { guest, body: JobBody::Data(bytes) })
    }

    /// Decompresses a block and stores it at `guest`.
    pub(crate) fn packed(&mut self, guest: u64, packed: Packed) -> Result<(), Error> {
        self.add(packed.bytes.len(), Job { guest, body: JobBody::Packed(packed) })
    }

    /// Tells the sink at once that there are `len` zeros at `guest`.
    pub(crate) fn zero(&self, guest: u64, len: u64) -> Result<(), Error> {
        if len == 0 {
            return Ok(());
        }
        self.shared.put(Piece { offset: guest, body: Body::Zero(len) })
    }

    /// How many bytes of the stream were handed over so far.
    pub(crate) const fn handed(&self) -> u64 {
        self.handed
    }

    /// A mark behind everything that was handed over so far, for [`Pool::has_stored`].
    pub(crate) const fn mark(&self) -> u64 {
        self.sent + !self.batch.jobs.is_empty() as u64
    }

    /// Whether everything before a mark is stored.
    pub(crate) fn has_stored(&self, mark: u64) -> bool {
        lock(&self.shared.stored).all_before >= mark
    }

    /// Counts what a part of the stream of `len` bytes has besides what of it was handed over since
    /// that were `before` bytes: as long as a piece of a part waits, all of it stays in memory.
    pub(crate) fn keeps_part(&mut self, len: usize, before: u64) -> Result<(), Error> {
        let used = usize::try_from(self.handed - before).unwrap_or(usize::MAX);
        if used == 0 || self.batch.jobs.is_empty() {
            return Ok(());
        }
        self.batch.bytes += len.saturating_sub(used);
        self.send_full()
    }

    fn add(&mut self, bytes: usize, job: Job) -> Result<(), Error> {
        self.batch.jobs.push(job);
        self.batch.bytes += bytes;
        self.handed += bytes as u64;
        self.send_full()
    }

    fn send_full(&mut self) -> Result<(), Error> {
        if self.batch.bytes >= BATCH_BYTES || self.batch.jobs.len() >= BATCH_JOBS {
            self.send()?;
        }
        Ok(())
    }

    /// Hands over what was collected, once there is room.
    fn send(&mut self) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.batch);
        let mut in_flight = lock(&self.shared.in_flight);
        while *in_flight > 0 && *in_flight + batch.bytes > self.shared.queue {
            in_flight = self.shared.room.wait(in_flight).unwrap_or_else(PoisonError::into_inner);
        }
        *in_flight += batch.bytes;
        drop(in_flight);
        let ticket = Ticket { shared: self.shared.clone(), bytes: batch.bytes, number: self.sent };
        self.sent += 1;
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(self.shared.take_error());
        }
        let sender = self.sender.as_ref().expect("work comes only before the end");
        sender.send((batch.jobs, ticket)).map_err(|_| self.shared.take_error())
    }

    /// Waits until nothing is in hand any more.
    pub(crate) fn drain(&mut self) -> Result<(), Error> {
        self.send()?;
        let mut in_flight = lock(&self.shared.in_flight);
        while *in_flight > 0 {
            in_flight = self.shared.room.wait(in_flight).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Waits until everything is stored.
    pub(crate) fn finish(mut self) -> Result<Stored, Error> {
        self.send()?;
        if self.join() || self.shared.failed.load(Ordering::Relaxed) {
            return Err(self.shared.take_error());
        }
        Ok(Stored {
            data: self.shared.data.load(Ordering::Relaxed),
            zero: self.shared.zero.load(Ordering::Relaxed),
        })
    }

    /// Ends the threads. True if one panicked.
    fn join(&mut self) -> bool {
        self.sender = None;
        self.threads.drain(..).map(JoinHandle::join).filter(Result::is_err).count() > 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            // Nobody wants what is still queued.
            self.shared.failed.store(true, Ordering::Relaxed);
            self.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn put(&self, piece: Piece<'_>) -> Result<(), Error> {
        let (counter, len) = match piece.body {
            Body::Data(data) => (&self.data, data.len() as u64),
            Body::Zero(len) => (&self.zero, len),
        };
        counter.fetch_add(len, Ordering::Relaxed);
        self.sink.put(piece).map_err(Error::write)
    }

    /// Keeps the first error; what other workers run into after it is of no interest.
    fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    fn take_error(&self) -> Error {
        lock(&self.error)
            .take()
            .unwrap_or_else(|| Error::new(ErrorKind::Write, "decoding has already failed"))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// Room in the queue. It is given back when the batch is done with or thrown away, even by a panic,
/// so that nobody waits forever.
struct Ticket {
    shared: Arc<Shared>,
    bytes: usize,
    /// The batch's number.
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        *lock(&self.shared.in_flight) -= self.bytes;
        self.shared.room.notify_one();
        if std::thread::panicking() {
            self.shared.failed.store(true, Ordering::Relaxed);
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    unpacker: Unpacker,
    /// Decompressed blocks that follow each other on the disk: the first `filled` bytes.
    buffer: Vec<u8>,
    filled: usize,
    /// Where the buffer's first byte goes.
    guest: u64,
}

impl Worker {
    fn new(shared: Arc<Shared>, block: usize) -> Self {
        let buffer = if block == 0 { Vec::new() } else { vec![0; BUFFER.max(block)] };
        Self { shared, unpacker: Unpacker::new(), buffer, filled: 0, guest: 0 }
    }

    /// Works until no more work can come. After a failure the rest is only thrown away.
    fn run(mut self, receiver: &Receiver<(Vec<Job>, Ticket)>) {
        let shared = self.shared.clone();
        for (jobs, ticket) in receiver {
            if shared.failed.load(Ordering::Relaxed) {
                continue;
            }
            match self.work(jobs) {
                Ok(()) => lock(&shared.stored).note(ticket.number),
                Err(error) => shared.fail(error),
            }
        }
    }

    fn work(&mut self, mut jobs: Vec<Job>) -> Result<(), Error> {
        // A parallel writer leaves the file's order a little different from the disk's.
        jobs.sort_unstable_by_key(|job| job.guest);
        for Job { guest, body } in jobs {
            match body {
                JobBody::Data(bytes) => self.store(&bytes, guest)?,
                JobBody::Packed(packed) => self.unpack(guest, &packed)?,
            }
        }
        self.store_buffer()
    }

    fn unpack(&mut self, guest: u64, packed: &Packed) -> Result<(), Error> {
        let fits = self.filled + packed.block <= self.buffer.len();
        if !fits || self.guest + self.filled as u64 != guest {
            self.store_buffer()?;
            self.guest = guest;
        }
        let out = &mut self.buffer[self.filled..][..packed.block];
        match self.unpacker.unpack(packed.codec, &packed.bytes, out) {
            Ok(()) => {}
            Err(Fault::Short { got }) if got >= packed.needed => {}
            Err(fault) => return Err(fault.in_cluster(packed.at, packed.cut)),
        }
        self.filled += packed.len;
        Ok(())
    }

    fn store_buffer(&mut self) -> Result<(), Error> {
        let filled = std::mem::take(&mut self.filled);
        self.store(&self.buffer[..filled], self.guest)
    }

    fn store(&self, data: &[u8], guest: u64) -> Result<(), Error> {
        zero::runs(data, guest, |run, zero| {
            let offset = guest + run.start as u64;
            let body = match zero {
                true => Body::Zero(run.len() as u64),
                false => Body::Data(&data[run]),
            };
            self.shared.put(Piece { offset, body })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::Memory;

    #[test]
    fn what_small_pieces_keep_in_memory_counts() {
        const PART: usize = 256 << 10;
        let sink = Arc::new(Memory::default());
        let mut pool = Pool::start(NonZeroUsize::MIN, 0, sink.clone()).unwrap();
        for index in 0..100 {
            let before = pool.handed();
            let part = Bytes::from(vec![1; PART]);
            pool.data(index * 512, part.slice(1000..1512)).unwrap();
            pool.keeps_part(part.len(), before).unwrap();
            assert!(pool.batch.jobs.is_empty());
            assert!(*lock(&pool.shared.in_flight) <= QUEUE_BYTES);
        }
        pool.keeps_part(PART, pool.handed()).unwrap();
        assert_eq!(pool.finish().unwrap().data, 100 * 512);
        assert!(Arc::into_inner(sink).unwrap().into_disk(100 * 512) == [1; 100 * 512]);
    }
}
