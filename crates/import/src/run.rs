//! An import from its first check to its publishing.
//!
//! ```text
//! source::Object ─► pump ─┬─► digest thread: Verifier
//!   (async, this thread)  └─► decode thread: Decoder ─► its workers ─► Output ─► Staged
//! ```
//! The two threads get the same reference-counted chunks over channels that hold
//! [`CHUNKS_QUEUED`] of them, so that the slowest of source, digest and decoder sets the pace and
//! memory stays as it is. When the source has ended the decoder finishes, the verifier gives its
//! verdict, and only then the target is published. Whatever fails, everything is stopped and
//! joined, and the target is dropped, which removes it. [`Cancel`] is looked at wherever something
//! waits or is stored: in the pump, and by [`Output`] for each piece.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use bootyard_image::stream::{self, Decoder, Head, Storage, Summary};
use bootyard_image::{Format, sniff};
use bootyard_source::{self as source, Object};
use bootyard_spec::{
    ByteSize, Digest, ImportRequest, OutputFormat, Source, Target, Verified, Verifier,
};
use bootyard_volume::{Staged, Store};
use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::output::{Fault, Output, Watched};
use crate::plan::{fits, plan, round_up};
use crate::trust::refuse_dubious;
use crate::{Cancel, Error, Event, Events, Moved, Phase, Plan, Probe};

/// How many chunks wait before the digest and before the decoder. A chunk has 1 MiB at
/// most, and both queues hold the same bytes: up to 8 MiB, enough to bridge a worker's pause.
const CHUNKS_QUEUED: usize = 8;
/// The most threads that decompress and store. More than a disk can follow, and each has a few
/// clusters in memory.
const WORKERS_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");
/// The most bytes that are set aside next to the target, for images whose tables come after their
/// data. What converters write needs none; a whole image of this kind needs about its own size.
const SPILL_MAX: u64 = 64 << 30;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The source, without its secrets.
    pub source: String,
    /// The containers round the image from the outermost on, then its own format.
    pub chain: Vec<Format>,
    /// The image's format, the last of the chain.
    pub format: Format,
    /// The size of the image's disk, in bytes.
    pub virtual_size: u64,
    /// The size of the volume, in bytes.
    pub volume_size: u64,
    /// How many bytes the source had.
    pub source_bytes: u64,
    /// The digest of these.
    pub sha256: Digest,
    /// The digest that was given and agreed.
    pub checked: Option<Digest>,
    /// How many bytes of the disk are stored as data.
    pub data_bytes: u64,
    /// How many bytes had to be set aside on the way.
    pub spilled_bytes: u64,
    /// The disk.
    pub path: PathBuf,
    /// How many bytes of the file system it occupies; `None` for a block device.
    pub allocated_bytes: Option<u64>,
    /// How often the source broke off and was read on.
    pub retries: u32,
}

/// Imports a disk: claims the target, streams the source through digest and decoder into it, and
/// publishes it once both agree.
///
/// Needs [`source::install_crypto_provider`] to have been called, and must not be called from
/// async code. Fails with the first cause, and leaves nothing under the target's name then.
pub fn run(
    request: &ImportRequest,
    store: &Store,
    options: &source::Options,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Report, Error> {
    refuse_same(request, store)?;
    let staged = match &request.target {
        Target::Volume(name) => store.stage(name, request.output_format)?,
        Target::Path(path) => Staged::for_path(path)?,
    };
    events.event(Event::Phase(Phase::Connecting));
    let runtime = runtime()?;
    let opened = runtime.block_on(unless(cancel, Opened::open(&request.source, options)))??;
    refuse_dubious(request, &opened.probe.chain, &opened.object)?;
    let probe = Probe { capacity: staged.capacity(), ..opened.probe.clone() };
    let plan = plan(request, &probe)?;
    staged.reserve(plan.file_len())?;
    events.event(Event::Planned(&plan));

    let import = Import { request, events, cancel, plan: &plan, runtime: &runtime };
    let staged = Arc::new(staged);
    let transferred = import.transfer(opened, &staged);
    // Whatever else went wrong then is only how the threads ended.
    if cancel.is_cancelled() {
        let device = staged.capacity().map(|_| staged.path().to_owned());
        return Err(Error::Cancelled { device });
    }
    let transferred = transferred?;
    events.event(Event::Phase(Phase::Publishing));
    let staged = Arc::into_inner(staged).expect("decoder and output have been dropped");
    let Transferred { summary, verified, volume_size, retries } = transferred;
    let published = staged.publish(&verified)?;
    Ok(Report {
        source: request.source.to_string(),
        chain: summary.chain,
        format: summary.format,
        virtual_size: summary.virtual_size,
        volume_size,
        source_bytes: verified.source_len(),
        sha256: verified.sha256().clone(),
        checked: verified.checked().cloned(),
        data_bytes: summary.data_bytes,
        spilled_bytes: summary.spilled_bytes,
        path: published.path,
        allocated_bytes: published.allocated_bytes,
        retries,
    })
}

/// Refuses a target that is the source itself, whatever their names are: claiming it would clear
/// the source.
fn refuse_same(request: &ImportRequest, store: &Store) -> Result<(), Error> {
    let Source::File(source) = &request.source else { return Ok(()) };
    let target = match &request.target {
        Target::Volume(name) => store.get(name).ok().map(|volume| volume.path),
        Target::Path(path) => Some(path.clone()),
    };
    match target {
        Some(target) if bootyard_volume::is_same(source, &target) => {
            Err(Error::SameFile { path: target })
        }
        _ => Ok(()),
    }
}

/// Reads as much of a source as tells what it is, for [`plan`] without an import.
pub fn probe(source: &Source, options: &source::Options) -> Result<Probe, Error> {
    Ok(runtime()?.block_on(Opened::open(source, options))?.probe)
}

/// One thread is enough for the network; everything else has its own.
pub(crate) fn runtime() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Setup)
}

/// A source whose head has been read.
struct Opened {
    object: Object,
    head: Head,
    /// The chunks that the head is made of.
    seen: Vec<Bytes>,
    probe: Probe,
}

impl Opened {
    async fn open(source: &Source, options: &source::Options) -> Result<Self, Error> {
        let mut object = source::open(source, options).await?;
        let mut head = Head::new();
        let mut seen: Vec<Bytes> = Vec::new();
        let found = loop {
            let found = match object.next().await? {
                Some(chunk) => {
                    seen.push(chunk.clone());
                    head.push(chunk)
                }
                None => head.end().map(Some),
            };
            let looks_like = || (!seen.is_empty()).then(|| sniff(&seen.concat()));
            let found = found.map_err(|error| Error::image(error, source, looks_like()))?;
            if let Some(found) = found {
                break found;
            }
        };
        let source_len = object.len();
        let virtual_size =
            if found.chain == [Format::Raw] { source_len } else { found.virtual_size };
        let (chain, format) = (found.chain, found.format);
        let probe = Probe { chain, format, virtual_size, source_len, capacity: None };
        Ok(Self { object, head, seen, probe })
    }
}

/// What does not change during one import.
struct Import<'a> {
    request: &'a ImportRequest,
    events: &'a dyn Events,
    cancel: &'a Cancel,
    plan: &'a Plan,
    runtime: &'a Runtime,
}

/// A disk that is complete in the staged target.
struct Transferred {
    summary: Summary,
    verified: Verified,
    volume_size: u64,
    retries: u32,
}

/// The sending ends of the two queues.
struct Queues {
    digest: mpsc::Sender<Bytes>,
    decode: mpsc::Sender<Bytes>,
}

impl Import<'_> {
    fn transfer(&self, opened: Opened, staged: &Arc<Staged>) -> Result<Transferred, Error> {
        let Opened { mut object, head, seen, .. } = opened;
        let fetched = seen.iter().map(|chunk| chunk.len() as u64).sum();
        let fault = Fault::default();
        let output = self.output(staged, &fault)?;
        self.events.event(Event::Phase(Phase::Transferring));
        let (pumped, decoded, verifier) = thread::scope(|scope| {
            let (digest, chunks) = mpsc::channel(CHUNKS_QUEUED);
            let verifier = Verifier::new(self.request.checksum.clone().into_iter().collect());
            let tap = spawn(scope, "digest", move || tap(verifier, seen, chunks))?;
            let (decode, chunks) = mpsc::channel(CHUNKS_QUEUED);
            let (sink, options) = (Arc::clone(&output), self.decoder_options(staged, &fault));
            let decoder = spawn(scope, "decode", move || feed(head, sink, options, chunks))?;
            let pump = self.pump(&mut object, fetched, Queues { digest, decode }, &output);
            let pumped = self.runtime.block_on(pump);
            Ok::<_, Error>((pumped, join(decoder), join(tap)))
        })?;
        let failed = |error| self.failed(error, &output, &fault);
        // A decoder that failed has made the pump stop, so its error is the first cause.
        let decoder = decoded.map_err(failed)?;
        pumped?;
        let verified = verifier.finish().map_err(|error| Error::Checksum {
            source_name: self.request.source.to_string(),
            error,
        })?;
        let summary = decoder.finish().map_err(failed)?;
        let volume_size = self.end(output, &summary, staged, &fault)?;
        Ok(Transferred { summary, verified, volume_size, retries: object.retries() })
    }

    fn output(&self, staged: &Arc<Staged>, fault: &Fault) -> Result<Arc<Output>, Error> {
        let target = Watched::new(Arc::clone(staged), fault.clone());
        let (format, size) = (self.plan.output_format, self.plan.volume_size.unwrap_or(0));
        match Output::new(format, target, size, self.plan.limit, self.cancel.clone()) {
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
        let workers = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let workers = workers.min(WORKERS_MAX);
        stream::Options {
            workers,
            spill: Box::new(spill),
            spill_limit: SPILL_MAX,
            checkpoints: false,
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

    /// Ends the disk, now that its size is known for certain. Returns the volume's.
    fn end(
        &self,
        output: Arc<Output>,
        summary: &Summary,
        staged: &Staged,
        fault: &Fault,
    ) -> Result<u64, Error> {
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
        output
            .finish(summary.virtual_size, volume_size)
            .map_err(|error| self.not_stored(error, fault))?;
        Ok(volume_size)
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

/// Hashes what comes until the queue ends.
fn tap(mut verifier: Verifier, seen: Vec<Bytes>, mut chunks: mpsc::Receiver<Bytes>) -> Verifier {
    seen.iter().for_each(|chunk| verifier.update(chunk));
    drop(seen);
    while let Some(chunk) = chunks.blocking_recv() {
        verifier.update(&chunk);
    }
    verifier
}

/// Decodes what comes until the queue ends. Whether that was all, the caller knows.
fn feed(
    head: Head,
    sink: Arc<Output>,
    options: stream::Options,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<Decoder, bootyard_image::Error> {
    let mut decoder = Decoder::new(head, sink, options)?;
    while let Some(chunk) = chunks.blocking_recv() {
        decoder.push(chunk)?;
    }
    Ok(decoder)
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
async fn unless<F: Future>(cancel: &Cancel, future: F) -> Result<F::Output, Error> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::Cancelled { device: None }),
        output = future => Ok(output),
    }
}
