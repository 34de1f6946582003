//! Images that are read together with other files, or in an earlier state: overlays over backing
//! files, qcow2 with an external data file, internal snapshots. They are read at random access, so
//! they must be files of this machine. Which other file it is, the user says: names inside an image are
//! never opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bootyard_image::fingerprint::Collector;
use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, Format, Info, OpenOptions, ReadAt, copy, open_with};
use bootyard_source as source;
use bootyard_spec::{ImportRequest, Source, Target, Verified, Verifier};
use bootyard_volume::{Staged, Store};

use crate::output::{Fault, Output, Watched};
use crate::run::{claim, conclude, give_up, run, runtime, stopped};
use crate::transfer::{unless, workers};
use crate::{
    Cancel, Error, Event, Events, Moved, Phase, Plan, Probe, Report, Resume, inspect, plan,
};

/// What an image is read with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Besides {
    /// The internal snapshot that is read in place of the active state, by its identifier or name.
    pub snapshot: Option<String>,
    /// The disk that the image is an overlay over, the one that this is an overlay over, and so on.
    pub backing: Vec<PathBuf>,
    /// The file that holds the guest's data.
    pub data_file: Option<PathBuf>,
}

impl Besides {
    /// Whether the image is read by itself, as it is.
    pub const fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.backing.is_empty() && self.data_file.is_none()
    }

    /// The files that are read besides the image.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.backing.iter().chain(&self.data_file)
    }
}

/// Imports as [`run`] does, an image that is read with something besides itself.
///
/// # Errors
///
/// As [`run`]; and if the source is no local file, or does not need what is given.
pub fn run_with(
    request: &ImportRequest,
    besides: &Besides,
    store: &Store,
    options: &source::Options,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Report, Error> {
    if besides.is_empty() {
        return run(request, store, options, events, cancel);
    }
    if let Target::Path(path) = &request.target
        && besides.files().any(|file| bootyard_volume::is_same(file, path))
    {
        return Err(Error::SameFile { path: path.clone() });
    }
    let (request, staged) = claim(request.clone(), store)?;
    events.event(Event::Phase(Phase::Connecting));
    let begun = Joined::open(&request.source, besides, options).and_then(|joined| {
        let plan = joined.plan(&request, staged.capacity())?;
        Ok((joined, plan))
    });
    match begun {
        Ok((joined, plan)) => joined.import(&request, &plan, options, staged, events, cancel),
        Err(error) => Err(give_up(staged, error, None)),
    }
}

/// Describes an image as [`inspect`] does, and opens it with what is given besides.
///
/// # Errors
///
/// As [`inspect`], and if it cannot be opened so.
pub fn inspect_with(
    source: &Source,
    besides: &Besides,
    options: &source::Options,
) -> Result<Info, Error> {
    if besides.is_empty() {
        return inspect(source, options);
    }
    let Joined { disk, mut info, .. } = Joined::open(source, besides, options)?;
    info.virtual_size = Some(disk.virtual_size());
    info.refused = None;
    Ok(info)
}

/// An image with all that it needs.
pub(crate) struct Joined {
    disk: Box<dyn Disk>,
    info: Info,
    len: u64,
}

impl Joined {
    pub(crate) fn open(
        source: &Source,
        besides: &Besides,
        options: &source::Options,
    ) -> Result<Self, Error> {
        let Source::File(path) = source else {
            return Err(Error::NotLocal { source_name: source.to_string() });
        };
        let mut named: Vec<&PathBuf> = vec![path];
        for file in besides.files() {
            if named.iter().any(|other| bootyard_volume::is_same(file, other)) {
                return Err(Error::NamedTwice { path: file.clone() });
            }
            named.push(file);
        }
        let infos: Vec<Info> = [path]
            .into_iter()
            .chain(&besides.backing)
            .map(|path| inspect(&Source::File(path.clone()), options))
            .collect::<Result<_, _>>()?;
        let [info, ..] = &infos[..] else { unreachable!("there is at least the image itself") };
        let unneeded = |path: &Path, what| Error::Unneeded { path: path.to_owned(), what };
        if besides.snapshot.is_some() && info.format != Format::Qcow2 {
            return Err(unneeded(path, "has no internal snapshots, and `--snapshot` names one"));
        }
        if besides.data_file.is_some() && info.data_file.is_none() {
            return Err(unneeded(path, "has its data in itself, and `--data-file` names a file"));
        }
        let files: Vec<&PathBuf> = [path].into_iter().chain(&besides.backing).collect();
        let mut disk: Option<Box<dyn Disk>> = None;
        for (index, file) in files.iter().enumerate().rev() {
            if disk.is_some() && infos[index].backing_file.is_none() {
                return Err(unneeded(file, "is no overlay, and `--backing` names a disk under it"));
            }
            let above = index.checked_sub(1).and_then(|above| infos[above].backing_format.clone());
            if above.as_deref() == Some("raw") {
                // A guest may have written anything into it.
                if disk.is_some() {
                    return Err(unneeded(file, "is raw, and `--backing` names a disk under it"));
                }
                disk = Some(Box::new(RawDisk::read_only(at(file)?)));
                continue;
            }
            let (mut snapshot, mut data_file) = (None, None);
            if index == 0 {
                snapshot.clone_from(&besides.snapshot);
                data_file = besides.data_file.as_deref().map(at).transpose()?;
            }
            let data_file = data_file.map(|file| Box::new(file) as _);
            let backing = disk.take();
            let with = OpenOptions { backing, data_file, snapshot, ..OpenOptions::default() };
            let opened = open_with(at(file)?, with);
            let format = Some(infos[index].format);
            let failed = |error| Error::image(error, &Source::File((*file).clone()), format);
            disk = Some(opened.map_err(failed)?);
        }
        let len = at(path)?.len();
        let disk = disk.expect("the image itself was opened last");
        Ok(Self { disk, info: info.clone(), len })
    }

    pub(crate) fn plan(
        &self,
        request: &ImportRequest,
        capacity: Option<u64>,
    ) -> Result<Plan, Error> {
        let probe = Probe {
            chain: self.info.chain.clone(),
            format: self.info.format,
            virtual_size: Some(self.disk.virtual_size()),
            source_len: Some(self.len),
            capacity,
            packed: true,
            ..Probe::blank()
        };
        Ok(Plan { resume: Resume::Joined, ..plan(request, &probe)? })
    }

    fn import(
        self,
        request: &ImportRequest,
        plan: &Plan,
        options: &source::Options,
        staged: Staged,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Result<Report, Error> {
        events.event(Event::Planned(plan));
        staged.start_over()?;
        staged.reserve(plan.file_len())?;
        if request.preallocation && plan.file_len() > 0 {
            staged.preallocate(plan.file_len())?;
        }
        let virtual_size = self.disk.virtual_size();
        let volume_size = plan.volume_size.unwrap_or(virtual_size);
        let (staged, fault) = (Arc::new(staged), Fault::default());
        let image = |error| Error::image(error, &request.source, Some(self.info.format));
        let failed = |error| fault.take().map_or_else(|| image(error), Error::from);
        let write = |error| failed(bootyard_image::Error::write(error));
        let target = Watched::new(Arc::clone(&staged), fault.clone());
        let collector = Some(Collector::new());
        let (format, limit) = (request.output_format, plan.limit);
        let output = Output::new(format, target, volume_size, limit, cancel.clone(), collector);
        let output = output.map_err(write)?;
        events.event(Event::Phase(Phase::Transferring));
        let (copied, hashed) = thread::scope(|scope| {
            let copying = scope.spawn(|| copy(&*self.disk, &output, workers()));
            let hashed = hash(request, options, events, &output, cancel);
            let copied = copying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (copied, hashed)
        });
        let finished = copied
            .and_then(|copied| Ok((copied.data_bytes, output.finish(virtual_size, volume_size)?)));
        let finished = finished.map_err(failed);
        let staged = Arc::into_inner(staged).expect("the output has ended");
        if cancel.is_cancelled() {
            return Err(stopped(staged, None));
        }
        let (verified, (data_bytes, collector)) = (hashed?, finished?);
        let (fingerprint, published) = conclude(
            request,
            staged,
            &verified,
            (volume_size, None),
            collector,
            (events, cancel),
            None,
        )?;
        Ok(Report {
            source: request.source.to_string(),
            chain: plan.chain.clone(),
            format: plan.format,
            virtual_size,
            volume_size,
            source_bytes: verified.source_len(),
            cached: false,
            resumed_bytes: 0,
            sha256: verified.sha256().clone(),
            checked: verified.checked().cloned(),
            fingerprint,
            data_bytes,
            spilled_bytes: 0,
            path: published.path,
            allocated_bytes: published.allocated_bytes,
            retries: 0,
            image: None,
        })
    }
}

fn at(path: &Path) -> Result<FileAt, Error> {
    let file = fs_err::File::open(path).map_err(Error::Setup)?;
    FileAt::new(file.into_file()).map_err(Error::Setup)
}

/// Hashes the image's own file, while its disk is copied.
fn hash(
    request: &ImportRequest,
    options: &source::Options,
    events: &dyn Events,
    output: &Output,
    cancel: &Cancel,
) -> Result<Verified, Error> {
    let runtime = runtime()?;
    let mut verifier = Verifier::new(request.checksum.clone().into_iter().collect());
    let mut object = runtime.block_on(source::open(&request.source, options))?;
    let total = object.len();
    while let Some(chunk) = runtime.block_on(unless(cancel, object.next()))?? {
        verifier.update(&chunk);
        let (fetched, written) = (verifier.seen(), output.written());
        events.event(Event::Moved(Moved { fetched, total, written }));
    }
    verifier.finish().map_err(|error| Error::checksum(&request.source, error, None))
}
