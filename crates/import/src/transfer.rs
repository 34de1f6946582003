//! The transfer: from an opened source into a staged target.
//!
//! ```text
//! source::Object ─► pump ─┬─► digest thread: Verifier ────────────┐ states
//!   (async, this thread)  └─► decode thread: Decoder ─► its ─┐    ├─► Log
//!                                    │ checkpoints         workers │
//!                                    └────────────────────────│────┘
//!                               flush thread ◄─ every so often └─► Output ─► Staged
//! ```
//! The two first threads get the same reference-counted chunks over channels that hold
//! [`CHUNKS_QUEUED`] of them, so that the slowest of source, digest and decoder sets the pace and
//! memory stays as it is. The third one makes durable what was stored while the transfer goes on,
//! so that neither a power cut nor the end finds much left to do. Whatever fails, everything is
//! stopped and joined. [`Cancel`] is looked at wherever something waits or is stored: in the pump,
//! and by [`Output`] for each piece.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use bootyard_image::Format;
use bootyard_image::fingerprint::Collector;
use bootyard_image::stream::{self, Decoder, Storage, Summary};
use bootyard_source::Object;
use bootyard_spec::{ByteSize, ImportRequest, OutputFormat, Verified, Verifier};
use bootyard_volume::Staged;
use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::cache::{Cache, Keeping};
use crate::log::Log;
use crate::opened::{Begin, Opened};
use crate::output::{Fault, Output, Watched};
use crate::plan::{fits, round_up};
use crate::{Cancel, Error, Event, Events, Moved, Phase, Plan};

/// How many chunks wait for the digest, and how many for the decoder.
const CHUNKS_QUEUED: usize = 4;
/// The most threads that decompress and store. More than a disk can follow, and each has a few
/// clusters in memory.
const WORKERS_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");
/// The most bytes that are set aside next to the target, for images whose tables come after their
/// data. What converters write needs none; a whole image of this kind needs about its own size.
const SPILL_MAX: u64 = 64 << 30;
/// What was stored is made durable after this many bytes of the source each.
const FLUSH_STEP: u64 = 64 << 20;

/// What does not change during one import.
pub(crate) struct Import<'a> {
    pub(crate) request: &'a ImportRequest,
    pub(crate) events: &'a dyn Events,
    pub(crate) cancel: &'a Cancel,
    pub(crate) plan: &'a Plan,
    pub(crate) runtime: &'a Runtime,
    /// Where it is noted how far the import has come, if it can be gone on with.
    pub(crate) log: Option<&'a Log>,
    /// Whether the source is known to be a raw disk.
    pub(crate) is_raw: bool,
    /// Where the source's bytes are kept, if they are.
    pub(crate) cache: Option<&'a Cache>,
}

/// A disk that is complete in the staged target.
pub(crate) struct Transferred {
    pub(crate) summary: Summary,
    pub(crate) verified: Verified,
    pub(crate) volume_size: u64,
    pub(crate) retries: u32,
    /// What has taken the fingerprint; `None` if a part of the disk was stored before.
    pub(crate) collector: Option<Collector>,
}

/// The sending ends of the two queues.
struct Queues {
    digest: mpsc::Sender<Bytes>,
    decode: mpsc::Sender<Bytes>,
}

impl Import<'_> {
    pub(crate) fn transfer(
        &self,
        opened: Opened,
        staged: &Arc<Staged>,
    ) -> Result<Transferred, Error> {
        let Opened { mut object, begin, cached, .. } = opened;
        let fetched = begin.fetched();
        let fault = Fault::default();
        let is_new = matches!(begin, Begin::Head { .. });
        let output = self.output(staged, &fault, is_new.then(Collector::new))?;
        self.events.event(Event::Phase(Phase::Transferring));
        let keeping =
            self.cache.filter(|_| is_new && !cached).and_then(|cache| cache.keep(&object));
        let (pumped, decoded, (verifier, keeping)) = thread::scope(|scope| {
            let (digest, hashed) = mpsc::channel(CHUNKS_QUEUED);
            let (decode, decoded) = mpsc::channel(CHUNKS_QUEUED);
            let (flush, flushes) = sync_channel(1);
            let (verifier, seen, begin) = split(begin, &object, self.request);
            let log = self.log;
            let tap = spawn(scope, "digest", move || tap(verifier, seen, hashed, log, keeping))?;
            let feed = Feed { log: self.log.cloned(), fault: fault.clone(), flush, since: 0 };
            let (sink, options) = (Arc::clone(&output), self.decoder_options(staged, &fault));
            let decoder = spawn(scope, "decode", move || feed.run(begin, sink, options, decoded))?;
            let fault = &fault;
            spawn(scope, "flush", move || flusher(flushes, staged, log, fault))?;
            let pump = self.pump(&mut object, fetched, Queues { digest, decode }, &output);
            let pumped = self.runtime.block_on(pump);
            Ok::<_, Error>((pumped, join(decoder), join(tap)))
        })?;
        let failed = |error| self.failed(error, &output, &fault);
        // A decoder that failed has made the pump stop, so its error is the first cause.
        let decoder = decoded.map_err(failed)?;
        pumped?;
        let mut verifier = verifier;
        object.late_digest().into_iter().for_each(|digest| verifier.expect(digest.clone()));
        let verified = verifier
            .finish()
            .map_err(|error| Error::checksum(&self.request.source, error, self.cache))?;
        let summary = decoder.finish().map_err(failed)?;
        if let Some(keeping) = keeping {
            keeping.publish(verified.sha256());
        }
        let (volume_size, collector) = self.end(output, &summary, staged, &fault)?;
        // Nothing may have been stored since it failed to become durable, and that is told once.
        if let Some(error) = fault.take() {
            return Err(error.into());
        }
        Ok(Transferred { summary, verified, volume_size, retries: object.retries(), collector })
    }

    fn output(
        &self,
        staged: &Arc<Staged>,
        fault: &Fault,
        collector: Option<Collector>,
    ) -> Result<Arc<Output>, Error> {
        let target = Watched::new(Arc::clone(staged), fault.clone());
        let (format, size) = (self.plan.output_format, self.plan.volume_size.unwrap_or(0));
        let cancel = self.cancel.clone();
        match Output::new(format, target, size, self.plan.limit, cancel, collector) {
            Ok(output) => Ok(Arc::new(output)),
            Err(error) => Err(self.not_stored(bootyard_image::Error::write(error), fault)),
        }
    }

    fn decoder_options(&self, staged: &Arc<Staged>, fault: &Fault) -> stream::Options {
        let (staged, fault) = (Arc::clone(staged), fault.clone());
        let spill = move || match staged.spill() {
            Ok(file) => {
                let file = Watched::new(Arc::new(file), fault.clone());
                Ok(Box::new(file) as Box<dyn Storage>)
            }
            Err(error) => {
                fault.note(error);
                Err(io::ErrorKind::Other.into())
            }
        };
        let workers = workers();
        stream::Options {
            workers,
            spill: Box::new(spill),
            spill_limit: SPILL_MAX,
            checkpoints: self.log.is_some(),
            is_raw: self.is_raw,
        }
    }

    /// Moves the source's chunks into both queues until it ends. A receiver that is gone has
    /// failed and will say why, so that is no error here.
    async fn pump(
        &self,
        object: &mut Object,
        mut fetched: u64,
        queues: Queues,
        output: &Output,
    ) -> Result<(), Error> {
        let mut retries = 0;
        loop {
            let moved = Moved { fetched, total: self.plan.fetch_bytes, written: output.written() };
            self.events.event(Event::Moved(moved));
            let Some(chunk) = unless(self.cancel, object.next()).await?? else { break };
            if object.retries() > retries {
                retries = object.retries();
                self.events.event(Event::Retried(retries));
            }
            fetched += chunk.len() as u64;
            let sent = async {
                queues.digest.send(chunk.clone()).await.is_ok()
                    && queues.decode.send(chunk).await.is_ok()
            };
            if !unless(self.cancel, sent).await? {
                return Ok(());
            }
        }
        self.events.event(Event::Phase(Phase::Verifying));
        Ok(())
    }

    /// Ends the disk, now that its size is known for certain. Returns the volume's, and what has
    /// taken the fingerprint.
    fn end(
        &self,
        output: Arc<Output>,
        summary: &Summary,
        staged: &Staged,
        fault: &Fault,
    ) -> Result<(u64, Option<Collector>), Error> {
        fits(self.request, summary.virtual_size)?;
        let volume_size = match self.plan.volume_size {
            Some(size) if !self.is_shorter(summary, staged) => size,
            _ => {
                let size = round_up(summary.virtual_size)?;
                staged.reserve(size)?;
                size
            }
        };
        let output = Arc::into_inner(output).expect("the decoder has been dropped");
        let collector = output
            .finish(summary.virtual_size, volume_size)
            .map_err(|error| self.not_stored(error, fault))?;
        Ok((volume_size, collector))
    }

    /// Whether the volume was to be as long as a raw disk that turned out to be a fixed VHD, which
    /// ends before its footer. A qcow2 file has its disk's size from its start.
    fn is_shorter(&self, summary: &Summary, staged: &Staged) -> bool {
        self.plan.chain == [Format::Raw]
            && summary.format == Format::Vhd
            && self.request.size.is_none()
            && self.plan.output_format == OutputFormat::Raw
            && staged.capacity().is_none()
    }

    /// What a decoder's error means: the storage's own failure, if that is behind it.
    fn failed(&self, error: bootyard_image::Error, output: &Output, fault: &Fault) -> Error {
        if output.is_beyond_limit() {
            let source_name = self.request.source.to_string();
            return Error::BeyondLimit {
                source_name,
                limit: ByteSize::from_bytes(self.plan.limit),
            };
        }
        self.not_stored(error, fault)
    }

    fn not_stored(&self, error: bootyard_image::Error, fault: &Fault) -> Error {
        let own = fault.take().map(Error::from);
        own.unwrap_or_else(|| {
            Error::image(error, &self.request.source, self.plan.chain.first().copied())
        })
    }
}

/// How many threads decompress, hash or store.
pub(crate) fn workers() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).min(WORKERS_MAX)
}

/// What the two threads begin with.
enum Start {
    Head(stream::Head),
    Left(Vec<stream::Kept>, u64),
}

fn split(begin: Begin, object: &Object, request: &ImportRequest) -> (Verifier, Vec<Bytes>, Start) {
    match begin {
        Begin::Head { head, seen } => {
            let expected = request.checksum.iter().chain(object.digest()).cloned();
            (Verifier::new(expected.collect()), seen, Start::Head(head))
        }
        Begin::Left(left) => (left.verifier, Vec::new(), Start::Left(left.kept, left.at)),
    }
}

/// Hashes what comes until the queue ends, and keeps it if that is wanted.
fn tap(
    mut verifier: Verifier,
    seen: Vec<Bytes>,
    mut chunks: mpsc::Receiver<Bytes>,
    log: Option<&Log>,
    mut keeping: Option<Keeping>,
) -> (Verifier, Option<Keeping>) {
    let mut update = |chunk: &Bytes| {
        verifier.update(chunk);
        if let Some(keeping) = &mut keeping {
            keeping.write(chunk);
        }
        if let Some(log) = log {
            log.note_verifier(&verifier);
        }
    };
    seen.iter().for_each(&mut update);
    drop(seen);
    while let Some(chunk) = chunks.blocking_recv() {
        update(&chunk);
    }
    (verifier, keeping)
}

/// The decode thread.
struct Feed {
    log: Option<Log>,
    fault: Fault,
    /// Asks for a flush.
    flush: SyncSender<()>,
    /// How many bytes have come since the last flush was asked for.
    since: u64,
}

impl Feed {
    /// Decodes what comes until the queue ends. Whether that was all, the caller knows.
    fn run(
        mut self,
        start: Start,
        sink: Arc<Output>,
        options: stream::Options,
        mut chunks: mpsc::Receiver<Bytes>,
    ) -> Result<Decoder, bootyard_image::Error> {
        let mut decoder = match start {
            Start::Head(head) => Decoder::new(head, sink, options)?,
            Start::Left(kept, at) => Decoder::resume(kept, at, sink, options)?,
        };
        let fault = self.fault.clone();
        let failed = |error| {
            fault.note(error);
            bootyard_image::Error::write(io::ErrorKind::Other.into())
        };
        while let Some(chunk) = chunks.blocking_recv() {
            self.since += chunk.len() as u64;
            decoder.push(chunk)?;
            self.note(&mut decoder).map_err(failed)?;
        }
        if self.log.is_some() {
            // This may be the source's end or where it broke off.
            decoder.drain()?;
            self.note(&mut decoder).map_err(failed)?;
        }
        Ok(decoder)
    }

    fn note(&mut self, decoder: &mut Decoder) -> Result<(), bootyard_volume::Error> {
        if let Some(log) = &self.log {
            log.note_decoder(decoder.checkpoint())?;
        }
        // One that is still at work will be asked again.
        if self.since >= FLUSH_STEP && self.flush.try_send(()).is_ok() {
            self.since = 0;
        }
        Ok(())
    }
}

/// Makes durable what was stored, as often as it is asked to. A failure makes whoever stores next
/// fail: it might not be told twice.
fn flusher(asked: Receiver<()>, staged: &Staged, log: Option<&Log>, fault: &Fault) {
    for () in asked {
        let flushed = match log {
            Some(log) => log.make_durable(|| staged.flush()),
            None => staged.flush(),
        };
        if let Err(error) = flushed {
            return fault.note(error);
        }
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Error> {
    thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(Error::Setup)
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Awaits `future`, unless the user stops the import first.
pub(crate) async fn unless<F: Future>(cancel: &Cancel, future: F) -> Result<F::Output, Error> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::Cancelled { device: None, kept: None }),
        output = future => Ok(output),
    }
}
