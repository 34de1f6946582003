//! An import from its first check to its publishing.
//!
//! The target is claimed, the source opened, and it is decided what is done; then everything is
//! transferred ([`Import`]), and published once the verifier has given its verdict. What a process
//! before this one has begun is gone on with, if the source is still the same. Whatever fails, the
//! target is dropped, which removes it; only what can be gone on with stays, hidden.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bootyard_image::fingerprint::{Collector, Fingerprint};
use bootyard_image::gpt::{self, Moved};
use bootyard_image::raw::RawDisk;
use bootyard_image::{Disk, ErrorKind, Extent, Format, ReadAt};
use bootyard_source as source;
use bootyard_spec::{Digest, ImportRequest, OutputFormat, Source, Target, Verified, Verifier};
use bootyard_volume::{AttachedDisk, Facts, Published, StageOptions, Staged, Store};
use tokio::runtime::Runtime;

use crate::cache::Cache;
use crate::error::{BrokenOff, Share};
use crate::log::{Identity, Left, Log};
use crate::opened::{Begin, Lookup, Opened};
use crate::output::{Fault, Output, Watched};
use crate::transfer::{Import, Transferred, unless, workers};
use crate::trust::refuse_dubious;
use crate::{Cancel, Error, Event, Events, ImageReport, Phase, Plan, Probe, Resume, plan};

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
    /// Whether these were in the cache.
    pub cached: bool,
    /// How many of these another process had fetched, with which this one went on.
    pub resumed_bytes: u64,
    /// The digest of the source's bytes.
    pub sha256: Digest,
    /// The digest that was given and agreed.
    pub checked: Option<Digest>,
    /// The fingerprint of what the volume holds, however it is stored. `None` for a qcow2 volume of an
    /// image whose parts came so small and so mixed that they would have to be read again.
    pub fingerprint: Option<Fingerprint>,
    /// How many bytes of the disk were stored as data, by this process.
    pub data_bytes: u64,
    /// How many bytes had to be set aside on the way.
    pub spilled_bytes: u64,
    /// The disk.
    pub path: PathBuf,
    /// How many bytes of the file system it occupies; `None` for a block device.
    pub allocated_bytes: Option<u64>,
    /// How often the source broke off and was read on.
    pub retries: u32,
    /// The container image, if the source is one.
    pub image: Option<ImageReport>,
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
    let Resolved { request, is_raw, _idle } = resolve(request, store)?;
    let (request, staged) = claim(request, store)?;
    let request = &request;
    if request.source == Source::Blank {
        return blank(request, staged, events);
    }
    events.event(Event::Phase(Phase::Connecting));
    let runtime = runtime()?;
    let cache = request.cache.as_ref().filter(|_| is_remote(&request.source)).map(Cache::new);
    let cache = cache.as_ref();
    let job = Job { request, options, events, cancel, runtime: &runtime, is_raw, cache };
    match job.open(&staged) {
        Ok(opened) => job.import(opened, staged),
        Err((error, kept)) => Err(give_up(staged, error, kept)),
    }
}

/// Claims the target, unless it is the source.
pub(crate) fn claim(
    mut request: ImportRequest,
    store: &Store,
) -> Result<(ImportRequest, Staged), Error> {
    refuse_same(&request, store)?;
    let staged = match &request.target {
        Target::Volume(name) => {
            let options = StageOptions { claim: request.claim.clone(), size: request.size };
            store.stage_as(name, request.output_format, &options)?
        }
        Target::Path(path) => Staged::for_path(path)?,
    };
    request.preallocation |= staged.wants_preallocation();
    request.size = request.size.map(|size| size.max(staged.minimum_size()));
    Ok((request, staged))
}

/// What does not change from the opening of the source to the publishing.
struct Job<'a> {
    request: &'a ImportRequest,
    options: &'a source::Options,
    events: &'a dyn Events,
    cancel: &'a Cancel,
    runtime: &'a Runtime,
    is_raw: bool,
    cache: Option<&'a Cache>,
}

/// Whether a source has a way to go, which a cache saves.
const fn is_remote(source: &Source) -> bool {
    matches!(source, Source::Http(_) | Source::S3(_) | Source::Gcs(_) | Source::Registry(_))
}

impl Job<'_> {
    /// Transfers what was opened, and publishes it.
    fn import(&self, opened: Opened, staged: Staged) -> Result<Report, Error> {
        let probe = Probe { capacity: staged.capacity(), ..opened.probe.clone() };
        let begun = plan(self.request, &probe)
            .and_then(|plan| Ok((self.prepare(&plan, &opened, &staged)?, plan)));
        let (log, plan) = match begun {
            Ok(begun) => begun,
            Err(error) => return Err(give_up(staged, error, opened.begin.share())),
        };
        self.events.event(Event::Planned(&plan));
        let cached = opened.cached;
        let blob = opened.object.digest().filter(|_| cached).cloned();
        let resumed_bytes = match &opened.begin {
            Begin::Head { .. } => 0,
            Begin::Left(left) => left.at,
        };
        if resumed_bytes > 0 {
            self.events.event(Event::Resumed(resumed_bytes));
        }
        let log = log.as_ref();
        let staged = Arc::new(staged);
        let image = opened.image.clone();
        let transferred = self.transfer(&plan, log).transfer(opened, &staged);
        let staged = Arc::into_inner(staged).expect("decoder and output have been dropped");
        let kept = log.map(Log::settled).filter(|done| *done > 0).zip(plan.fetch_bytes);
        let kept = kept.map(|(done, len)| Share { done, len });
        let transferred = match transferred {
            // Whatever else went wrong then is only how the threads ended.
            _ if self.cancel.is_cancelled() => return Err(stopped(staged, kept)),
            Err(error) => {
                if matches!(error, Error::Image(_)) {
                    self.lookup().doubt(blob.as_ref());
                }
                return Err(give_up(staged, error, kept));
            }
            Ok(transferred) => transferred,
        };
        let Transferred { summary, verified, volume_size, retries, collector } = transferred;
        let ends = (self.events, self.cancel);
        let known = (volume_size, image.as_ref());
        let (fingerprint, published) =
            conclude(self.request, staged, &verified, known, collector, ends, kept)?;
        Ok(Report {
            source: self.request.source.to_string(),
            chain: summary.chain,
            format: summary.format,
            virtual_size: summary.virtual_size,
            volume_size,
            source_bytes: verified.source_len(),
            cached,
            resumed_bytes,
            sha256: verified.sha256().clone(),
            checked: verified.checked().cloned(),
            fingerprint,
            data_bytes: summary.data_bytes,
            spilled_bytes: summary.spilled_bytes,
            path: published.path,
            allocated_bytes: published.allocated_bytes,
            retries,
            image,
        })
    }

    fn transfer<'a>(&'a self, plan: &'a Plan, log: Option<&'a Log>) -> Import<'a> {
        let Self { request, events, cancel, runtime, is_raw, cache, .. } = *self;
        Import { request, events, cancel, plan, runtime, log, is_raw, cache }
    }

    /// Opens the source where another process stopped, if one did and the source is still the
    /// same, or else at its first byte. A failure comes with what is still done then.
    fn open(&self, staged: &Staged) -> Result<Opened, (Error, Option<Share>)> {
        let source = &self.request.source;
        let left = Left::find(staged, &source.to_string());
        let left = left.filter(|left| self.is_same(&left.identity));
        // A copy of its own is nearer than the rest of the source.
        let is_cached = self.cache.zip(self.request.checksum.as_ref());
        let is_cached = is_cached.is_some_and(|(cache, digest)| cache.blob(digest).is_some());
        if let Some(left) = left.filter(|_| !is_cached) {
            let kept = left.share();
            let opening = Opened::go_on(source, self.options, left, self.is_raw);
            let opened = self.runtime.block_on(unless(self.cancel, opening));
            match opened.map_err(|error| (error, Some(kept)))? {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(why)) => self.events.event(Event::StartedOver(&why)),
                Err(error) => return Err((error, Some(kept))),
            }
        }
        self.begin().map_err(|error| (error, None))
    }

    fn begin(&self) -> Result<Opened, Error> {
        let lookup = self.lookup();
        let opening = Opened::open(&self.request.source, self.options, self.is_raw, &lookup);
        let opened = self.runtime.block_on(unless(self.cancel, opening))??;
        refuse_dubious(self.request, &opened.probe.chain, &opened.object)?;
        Ok(opened)
    }

    fn lookup(&self) -> Lookup<'_> {
        Lookup { cache: self.cache, checksum: self.request.checksum.as_ref() }
    }

    /// Whether another process was asked for the same volume. Only a raw one has a journal.
    fn is_same(&self, before: &Identity) -> bool {
        let Self { request, is_raw, .. } = self;
        let expected: Vec<Digest> = request.checksum.clone().into_iter().collect();
        request.output_format == OutputFormat::Raw
            && before.expected == expected
            && before.size == request.size
            && before.preallocation == request.preallocation
            && before.is_raw == *is_raw
    }

    /// Gives the target its size, and begins its journal or goes on with it.
    fn prepare(&self, plan: &Plan, opened: &Opened, staged: &Staged) -> Result<Option<Log>, Error> {
        let Self { request, is_raw, .. } = *self;
        if let Begin::Left(left) = &opened.begin {
            let log = Log::go_on(staged, left)?;
            staged.go_on(left.identity.file_len, request.preallocation);
            return Ok(log);
        }
        if staged.is_left() {
            // What cannot have this size is refused before that is given up.
            staged.reserve(plan.file_len())?;
        }
        staged.start_over()?;
        staged.reserve(plan.file_len())?;
        if request.preallocation && plan.file_len() > 0 {
            staged.preallocate(plan.file_len())?;
        }
        match (plan.resume, plan.fetch_bytes) {
            (Resume::Anywhere | Resume::LateTables, Some(len)) => {
                let identity = Identity {
                    source: request.source.to_string(),
                    validator: opened.object.validator().cloned(),
                    len,
                    expected: request.checksum.clone().into_iter().collect(),
                    size: request.size,
                    file_len: plan.file_len(),
                    preallocation: request.preallocation,
                    is_raw,
                };
                Ok(Log::begin(staged, &identity)?)
            }
            _ => Ok(None),
        }
    }
}

/// Ends an import whose disk is stored and verified: what is left is told by `kept`, if the user stops
/// it now.
pub(crate) fn conclude(
    request: &ImportRequest,
    staged: Staged,
    verified: &Verified,
    (volume_size, image): (u64, Option<&ImageReport>),
    collector: Option<Collector>,
    (events, cancel): (&dyn Events, &Cancel),
    kept: Option<Share>,
) -> Result<(Option<Fingerprint>, Published), Error> {
    let collector = relocate_gpt(request, &staged, volume_size, collector)?;
    let stored = Stored { staged: &staged, cancel };
    let fingerprint = match fingerprint(request, &stored, volume_size, collector) {
        Err(_) if cancel.is_cancelled() => return Err(stopped(staged, kept)),
        fingerprint => fingerprint?,
    };
    events.event(Event::Phase(Phase::Publishing));
    let published = publish(request, staged, verified, (volume_size, fingerprint, image))?;
    Ok((fingerprint, published))
}

/// Tells the store what the volume is, if it is one, and makes it visible. Known are its size, its
/// fingerprint and the container image that it came from.
fn publish(
    request: &ImportRequest,
    staged: Staged,
    verified: &Verified,
    (size, fingerprint, image): (u64, Option<Fingerprint>, Option<&ImageReport>),
) -> Result<Published, Error> {
    staged.describe(&Facts {
        source: Some(request.source.to_string()),
        size: Some(size),
        sha256: Some(verified.sha256().clone()),
        fingerprint,
        parent: None,
        labels: image.map(|image| image.labels.clone()).unwrap_or_default(),
    })?;
    Ok(staged.publish(verified)?)
}

/// Moves the backup of a partition table to the end of the volume, if that is wanted. What has taken
/// the fingerprint is of no use any more then.
fn relocate_gpt(
    request: &ImportRequest,
    staged: &Staged,
    volume_size: u64,
    collector: Option<Collector>,
) -> Result<Option<Collector>, Error> {
    if !request.relocate_gpt {
        return Ok(collector);
    }
    let image = |error| Error::image(error, &request.source, None);
    let moved = match gpt::relocate_backup(staged, volume_size, 512) {
        // A disk that was made for the other sectors.
        Ok(Moved::NoTable) => gpt::relocate_backup(staged, volume_size, 4096),
        Err(error) if error.kind() == ErrorKind::Mismatch => {
            gpt::relocate_backup(staged, volume_size, 4096)
        }
        moved => moved,
    };
    Ok(match moved.map_err(image)? {
        Moved::To { .. } => None,
        Moved::NoTable | Moved::InPlace => collector,
    })
}

/// The raw disk in a target, to be read until the user stops that.
#[derive(Debug)]
struct Stored<'a> {
    staged: &'a Staged,
    cancel: &'a Cancel,
}

impl Disk for Stored<'_> {
    fn virtual_size(&self) -> u64 {
        self.staged.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), bootyard_image::Error> {
        if self.cancel.is_cancelled() {
            return Err(bootyard_image::Error::write(io::Error::other("stopped")));
        }
        RawDisk::read_only(self.staged).read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, bootyard_image::Error> {
        let (len, zero) = self.staged.hole_at(offset).map_err(bootyard_image::Error::write)?;
        Ok(Extent { len, zero })
    }
}

/// The fingerprint of the volume: as it was taken on the way, or else by reading what is stored.
fn fingerprint(
    request: &ImportRequest,
    stored: &Stored<'_>,
    volume_size: u64,
    collector: Option<Collector>,
) -> Result<Option<Fingerprint>, Error> {
    let found = match (collector, request.output_format) {
        (Some(collector), OutputFormat::Raw) => collector.finish(volume_size, Some(stored.staged)),
        (Some(collector), _) => return Ok(collector.finish(volume_size, None).ok()),
        (None, _) => Fingerprint::of(stored, workers()),
    };
    found.map(Some).map_err(|error| Error::image(error, &request.source, None))
}

/// Ends an import that the user stops.
pub(crate) fn stopped(staged: Staged, kept: Option<Share>) -> Error {
    let device = staged.capacity().map(|_| staged.path().to_owned());
    give_up(staged, Error::Cancelled { device, kept: None }, kept)
}

/// Ends an import that failed. Where the same command may well succeed later, what is done stays
/// for it, and the error says so. What another process has left, and this one has not touched, stays
/// in any case.
pub(crate) fn give_up(staged: Staged, error: Error, kept: Option<Share>) -> Error {
    let (error, stays) = match (error, kept) {
        (Error::Cancelled { device, .. }, Some(_)) => (Error::Cancelled { device, kept }, true),
        (error, Some(kept)) if may_pass(&error) => {
            (Error::BrokenOff(Box::new(BrokenOff { error, kept })), true)
        }
        (other, _) => (other, false),
    };
    if stays || staged.is_left() {
        staged.leave();
    }
    error
}

/// Whether a failure says nothing about the bytes that were stored before it.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Source(error) => error.kind() != source::ErrorKind::Changed,
        Error::Target(error) => error.kind() == bootyard_volume::ErrorKind::NoSpace,
        Error::Setup(_) => true,
        _ => false,
    }
}

/// Refuses a target that is the source itself, whatever their names are: claiming it would clear
/// the source.
pub(crate) fn refuse_same(request: &ImportRequest, store: &Store) -> Result<(), Error> {
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

/// A request whose source is no volume by name any more.
pub(crate) struct Resolved {
    pub(crate) request: ImportRequest,
    /// The source is known to be raw: the store knows, and a guest could have written anything into it.
    pub(crate) is_raw: bool,
    /// Keeps whoever would write to the volume away.
    pub(crate) _idle: Option<AttachedDisk>,
}

/// Finds the disk behind a volume that is the source.
pub(crate) fn resolve(request: &ImportRequest, store: &Store) -> Result<Resolved, Error> {
    let Source::Volume(name) = &request.source else {
        return Ok(Resolved { request: request.clone(), is_raw: false, _idle: None });
    };
    let (volume, idle) = store.original(name)?;
    let is_raw = volume.format == OutputFormat::Raw;
    let request = ImportRequest { source: Source::File(volume.path), ..request.clone() };
    Ok(Resolved { request, is_raw, _idle: Some(idle) })
}

/// Makes a volume of nothing but zeros, of the size that was asked for.
fn blank(request: &ImportRequest, staged: Staged, events: &dyn Events) -> Result<Report, Error> {
    let probe = Probe { capacity: staged.capacity(), ..Probe::blank() };
    let plan = match plan(request, &probe) {
        Ok(plan) => plan,
        Err(error) => return Err(give_up(staged, error, None)),
    };
    events.event(Event::Planned(&plan));
    staged.start_over()?;
    let size = plan.volume_size.ok_or(Error::BlankSize)?;
    staged.reserve(plan.file_len())?;
    if request.preallocation && plan.file_len() > 0 {
        staged.preallocate(plan.file_len())?;
    }
    let staged = Arc::new(staged);
    let target = Watched::new(Arc::clone(&staged), Fault::default());
    let (collector, never) = (Some(Collector::new()), Cancel::new());
    let write = |error| Error::image(bootyard_image::Error::write(error), &request.source, None);
    let output = Output::new(request.output_format, target, size, size, never, collector);
    let finished = output.map_err(write)?.finish(0, size);
    let collector = finished.map_err(|error| Error::image(error, &request.source, None))?;
    let staged = Arc::into_inner(staged).expect("the output has ended");
    let stored = Stored { staged: &staged, cancel: &Cancel::new() };
    let fingerprint = fingerprint(request, &stored, size, collector)?;
    events.event(Event::Phase(Phase::Publishing));
    let verified = Verifier::new(Vec::new()).finish().expect("nothing was expected");
    let published = publish(request, staged, &verified, (size, fingerprint, None))?;
    Ok(Report {
        source: request.source.to_string(),
        chain: plan.chain,
        format: plan.format,
        virtual_size: size,
        volume_size: size,
        image: None,
        source_bytes: 0,
        cached: false,
        resumed_bytes: 0,
        sha256: verified.sha256().clone(),
        checked: None,
        fingerprint,
        data_bytes: 0,
        spilled_bytes: 0,
        path: published.path,
        allocated_bytes: published.allocated_bytes,
        retries: 0,
    })
}

/// One thread is enough for the network; everything else has its own.
pub(crate) fn runtime() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Setup)
}
