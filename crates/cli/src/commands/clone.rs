//! `bootyard clone`: a second disk with the content of another.
//!
//! A clone in the original's own format is the volume crate's affair: blocks that are shared, or a
//! copy. One in another format is an import of the volume.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use bootyard_image::Fingerprint;
use bootyard_import::{Cancel, Event, Events, Moved, Report};
use bootyard_spec::{
    AccessMode, ByteSize, Claim, Class, ImportRequest, OutputFormat, Source, Target, VolumeName,
};
use bootyard_supervise::DiskFormat;
use bootyard_volume::{AttachedDisk, CloneOptions, Cloned, StageOptions, Staged, Store, is_same};
use indicatif::HumanBytes;

use crate::args::CloneArgs;
use crate::claims::ClaimArgs;
use crate::commands::import::cancel_on_signal;
use crate::commands::run::resolve;
use crate::commands::volume::SnapshotArgs;
use crate::error::Failure;
use crate::json::{ClonedLine, FailureLine, ReportLine};
use crate::progress::Display;
use crate::{host, output, settings};

/// How often it is looked how far the threads have come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `bootyard volume snapshot`: a clone that nobody can write to, and that knows its volume.
pub(crate) fn snapshot(args: &SnapshotArgs) -> Result<ExitCode, Failure> {
    let volume = Store::open(&settings::store_home()?).get(&args.name)?;
    let claim = ClaimArgs {
        // Only there it can share the volume's blocks.
        storage_class: Some(volume.class),
        access_modes: vec![AccessMode::ReadOnlyMany],
        volume_mode: Some(volume.volume_mode),
    };
    let clone = CloneArgs {
        source: args.name.to_string(),
        name: Some(args.snapshot.clone()),
        to: None,
        size: None,
        output_format: None,
        preallocation: false,
        from_snapshot: false,
        verify: false,
        json: args.json,
        claim,
    };
    run_as(&clone, Some(&args.name))
}

pub(crate) fn run(args: &CloneArgs) -> Result<ExitCode, Failure> {
    run_as(args, None)
}

fn run_as(args: &CloneArgs, parent: Option<&VolumeName>) -> Result<ExitCode, Failure> {
    let done = clone(args, parent);
    if args.json
        && let Err(failure) = &done
    {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done
}

fn clone(args: &CloneArgs, parent: Option<&VolumeName>) -> Result<ExitCode, Failure> {
    let store = Store::open(&settings::store_home()?);
    let path = resolve(&store, &args.source)?;
    let (disk, known) = match args.source.parse() {
        Ok(name) if !args.source.contains('/') => {
            let (volume, disk) = store.original(&name)?;
            if args.from_snapshot && volume.facts.parent.is_none() {
                return Err(no_snapshot(&args.source));
            }
            (disk, volume.known_fingerprint())
        }
        _ if args.from_snapshot => return Err(no_snapshot(&args.source)),
        _ => (AttachedDisk::open(&path, true)?, None),
    };
    let format = host::format_by_name(&path);
    let source = Original { args, parent, store: &store, format, path, disk, known };
    let cancel = cancel_on_signal()?;
    let display = Display::new(args.json);
    match source.format_of_clone()? {
        Some(format) => source.convert(format, &display, &cancel),
        None => source.copy(&display, &cancel),
    }
}

/// What is cloned.
struct Original<'a> {
    args: &'a CloneArgs,
    /// The volume of which the clone is a snapshot.
    parent: Option<&'a VolumeName>,
    store: &'a Store,
    path: PathBuf,
    format: DiskFormat,
    /// Nobody writes to it as long as this is held.
    disk: AttachedDisk,
    known: Option<Fingerprint>,
}

impl Original<'_> {
    /// The format that the clone is converted to; `None` for one that has the original's bytes.
    fn format_of_clone(&self) -> Result<Option<OutputFormat>, Failure> {
        let own = match self.format {
            DiskFormat::Raw => OutputFormat::Raw,
            DiskFormat::Qcow2 => OutputFormat::Qcow2,
        };
        let wanted = self.args.output_format.unwrap_or(own);
        // The size of a qcow2 disk stands in its tables.
        let grows = self.format == DiskFormat::Qcow2 && self.args.size.is_some();
        if wanted == own && !grows {
            return Ok(None);
        }
        if self.args.source.contains('/') {
            let (path, wanted) = (self.path.display(), wanted.name());
            let what =
                format!("a clone of the file `{path}` has its format and, in qcow2, its size");
            let hint = format!("import it: `bootyard import {path} --output-format {wanted} …`");
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
        Ok(Some(wanted))
    }

    fn target(&self) -> Target {
        match (&self.args.name, &self.args.to) {
            (Some(name), _) => Target::Volume(name.clone()),
            (None, path) => Target::Path(path.clone().unwrap_or_default()),
        }
    }

    fn claim(&self) -> Result<Claim, Failure> {
        self.args.claim.claim(self.args.name.is_some())
    }

    fn copy(&self, display: &Display, cancel: &Cancel) -> Result<ExitCode, Failure> {
        if self.format == DiskFormat::Qcow2 {
            // An overlay without what it lies over is no disk.
            host::look_at(&self.path)?;
        }
        let staged = match self.target() {
            Target::Volume(name) => {
                let format = match self.format {
                    DiskFormat::Raw => OutputFormat::Raw,
                    DiskFormat::Qcow2 => OutputFormat::Qcow2,
                };
                let options = StageOptions { claim: self.claim()?, size: self.args.size };
                self.store.stage_as(&name, format, &options)?
            }
            Target::Path(path) => {
                self.claim()?;
                refuse_same(&self.path, &path)?;
                self.refuse_other_name(&path)?;
                Staged::for_path(&path)?
            }
        };
        let cloned = self.watched(staged, display, cancel);
        let took = display.finish();
        let cloned = cloned?;
        match self.args.json {
            true => {
                let line = ClonedLine::new(&self.args.source, &cloned, took.as_secs_f64());
                output::json_line(&line)?;
            }
            false => output::result(&summary(&self.args.source, &cloned, took))?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Clones on a thread of its own, while this one shows how far it is.
    fn watched(
        &self,
        staged: Staged,
        display: &Display,
        cancel: &Cancel,
    ) -> Result<Cloned, Failure> {
        let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
        let options = CloneOptions {
            source: &self.args.source,
            parent: self.parent,
            known: self.known,
            size: self.args.size.map(ByteSize::bytes),
            is_raw: self.format == DiskFormat::Raw,
            preallocation: self.args.preallocation,
            verify: self.args.verify,
            workers: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            progress: &|now, of| {
                done.store(now, Ordering::Relaxed);
                total.store(of, Ordering::Relaxed);
            },
            stopped: &|| cancel.is_cancelled(),
        };
        let (send, ended) = mpsc::channel();
        let work = move || drop(send.send(staged.publish_clone(&self.disk, &options)));
        thread::scope(|scope| {
            let cloning = scope.spawn(work);
            loop {
                match ended.recv_timeout(LOOK_EVERY) {
                    Ok(cloned) => return Ok(cloned?),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        let panic = cloning.join().expect_err("it sends before its end");
                        std::panic::resume_unwind(panic)
                    }
                }
                let [done, total] = [&done, &total].map(|count| count.load(Ordering::Relaxed));
                if total > 0 {
                    let moved = Moved { fetched: done, total: Some(total), written: done };
                    display.event(Event::Moved(moved));
                }
            }
        })
    }

    /// A qcow2 file that is not named so would be a raw disk to every machine.
    fn refuse_other_name(&self, target: &Path) -> Result<(), Failure> {
        if host::format_by_name(target) == self.format || host::is_block_device(target) {
            return Ok(());
        }
        let what = format!("`{}` is not named like what it would hold", target.display());
        let hint = "name a qcow2 file `….qcow2` and a raw one otherwise: a disk's format is told by \
                    its name";
        Err(Failure::new(Class::Usage, what).with_hint(hint))
    }

    fn convert(
        &self,
        format: OutputFormat,
        display: &Display,
        cancel: &Cancel,
    ) -> Result<ExitCode, Failure> {
        let name = self.args.source.parse().map_err(|error| Failure::new(Class::Usage, error))?;
        let request = ImportRequest {
            source: Source::Volume(name),
            target: self.target(),
            claim: self.claim()?,
            size: self.args.size,
            max_size: None,
            checksum: None,
            output_format: format,
            preallocation: self.args.preallocation,
            relocate_gpt: false,
            cache: None,
        };
        let options = bootyard_source::Options::default();
        let report = bootyard_import::run(&request, self.store, &options, display, cancel);
        let took = display.finish();
        let report: Report = report?;
        match self.args.json {
            true => output::json_line(&ReportLine::new(&report, took.as_secs_f64()))?,
            false => output::result(&super::import::summary(&report, took))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn no_snapshot(name: &str) -> Failure {
    let what = format!("`{name}` is no snapshot");
    Failure::new(Class::Usage, what)
        .with_hint("make one: `bootyard volume snapshot VOLUME SNAPSHOT`; or leave out the flag")
}

fn refuse_same(original: &Path, target: &Path) -> Result<(), Failure> {
    if !is_same(original, target) {
        return Ok(());
    }
    let what = format!("`{}` is the disk that is to be cloned", target.display());
    Err(Failure::new(Class::Target, what).with_hint("name another target"))
}

fn summary(source: &str, cloned: &Cloned, took: Duration) -> String {
    let size = ByteSize::from_bytes(cloned.size);
    let how = match cloned.published.allocated_bytes {
        _ if cloned.data_bytes == 0 && cloned.resumed_bytes == 0 => String::new(),
        Some(bytes) => format!(", {} stored", HumanBytes(bytes)),
        None => format!(", {} stored", HumanBytes(cloned.data_bytes)),
    };
    let resumed = match cloned.resumed_bytes {
        0 => String::new(),
        bytes => format!(", {} of it by an earlier attempt", HumanBytes(bytes)),
    };
    let content = match &cloned.fingerprint {
        Some(fingerprint) => format!("  content  {fingerprint}\n"),
        None => String::new(),
    };
    format!(
        "cloned {source}\n  method   {} in {:.2} s\n{content}  volume   {size}{how}{resumed}\n  \
         path     {}\n",
        cloned.method.name(),
        took.as_secs_f64(),
        cloned.published.path.display(),
    )
}
