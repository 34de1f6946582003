//! `bootyard import`: from the arguments to a request, from the report to a result.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bootyard_image::chain_name;
use bootyard_import::{ArchiveRequest, Cancel, Event, Events, ImageReport, Report};
use bootyard_source::Options;
use bootyard_spec::{ByteSize, CacheSpec, Class, ImportRequest, OutputFormat, Source, Target};
use bootyard_volume::{Store, UnpackOptions};
use indicatif::HumanBytes;

use crate::args::{ContentType, ImportArgs};
use crate::error::Failure;
use crate::flags::{For, refuse_others};
use crate::json::{ArchiveLine, EventLine, FailureLine, ReportLine};
use crate::metrics::MetricsFile;
use crate::progress::Display;
use crate::{output, settings};

pub(crate) fn run(args: ImportArgs) -> Result<ExitCode, Failure> {
    let json = args.json;
    let done = import(args);
    if json && let Err(failure) = &done {
        // Whether or not somebody reads it, the failure itself decides the exit code.
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done
}

fn import(args: ImportArgs) -> Result<ExitCode, Failure> {
    check(&args)?;
    let mut options = args.transfer.options()?;
    options.image = settings::image_options(&args.image);
    args.stores.apply(&args.source, &mut options)?;
    let limit = Limit::start(args.deadline)?;
    let done = within(&limit, args, &options);
    done.map_err(|failure| limit.explain(failure))
}

/// What the limit holds for: everything that a server may draw out.
fn within(limit: &Limit, args: ImportArgs, options: &Options) -> Result<ExitCode, Failure> {
    let (json, dry_run, content_type) = (args.json, args.dry_run, args.content_type);
    let (published, metrics) = (args.checksum_file.clone(), args.metrics_file.clone());
    let besides = args.besides.check(&args.source)?;
    let mut request = request(args)?;
    let list = match &published {
        Some(Source::File(list)) => Some(list.clone()),
        _ => None,
    };
    if let Some(list) = published {
        let source = &request.source;
        let digest = bootyard_import::published_checksum(&list, source, options, &limit.cancel)?;
        request.checksum = Some(digest);
    }
    let store = Store::open(&settings::store_home()?);
    if dry_run {
        let plan = bootyard_import::rehearse(&request, &besides, &store, options, &limit.cancel)?;
        match EventLine::of(&Event::Planned(&plan)).filter(|_| json) {
            Some(line) => output::json_line(&line)?,
            None => output::result(&format!("{plan}\n"))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let files: Vec<&Path> = besides.files().chain(&list).map(PathBuf::as_path).collect();
    let watch = Watch::new(json, metrics.as_deref(), &request, files)?;
    if content_type == ContentType::Archive {
        return archive(request, options, json, &watch, limit);
    }
    let cancel = &limit.cancel;
    let report = bootyard_import::run_with(&request, &besides, &store, options, &watch, cancel);
    let took = watch.finish(report.is_ok());
    let report = report?;
    if json {
        output::json_line(&ReportLine::new(&report, took.as_secs_f64()))?;
    } else {
        output::result(&summary(&report, took))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What shows how far an import has come.
struct Watch {
    display: Display,
    metrics: Option<MetricsFile>,
}

impl Watch {
    /// The import reads `files` besides its source.
    fn new<'a>(
        json: bool,
        metrics: Option<&Path>,
        request: &'a ImportRequest,
        mut files: Vec<&'a Path>,
    ) -> Result<Self, Failure> {
        let owner = match &request.target {
            Target::Volume(name) => name.to_string(),
            Target::Path(path) => {
                files.push(path);
                path.display().to_string()
            }
        };
        if let Source::File(path) = &request.source {
            files.push(path);
        }
        let metrics = metrics.map(|path| MetricsFile::create(path, &owner, &files)).transpose()?;
        Ok(Self { display: Display::new(json), metrics })
    }

    /// Gives how long it all took.
    fn finish(&self, is_done: bool) -> Duration {
        let took = self.display.finish();
        if let Some(metrics) = &self.metrics {
            metrics.finish(is_done);
        }
        took
    }
}

impl Events for Watch {
    fn event(&self, event: Event<'_>) {
        self.display.event(event);
        if let Some(metrics) = &self.metrics {
            metrics.event(event);
        }
    }
}

/// Refuses flags that would have no effect, and files that are not there twice.
fn check(args: &ImportArgs) -> Result<(), Failure> {
    let only_disks = [
        ("--dry-run", args.dry_run),
        ("--size", args.size.is_some()),
        ("--output-format", args.output_format != OutputFormat::Raw),
        ("--preallocation", args.preallocation),
        ("--relocate-gpt", args.relocate_gpt),
        ("--cache", args.cache.is_some()),
        ("--snapshot", args.besides.snapshot.is_some()),
        ("--backing", !args.besides.backing.is_empty()),
        ("--data-file", args.besides.data_file.is_some()),
    ];
    let given = only_disks.iter().find(|(_, is_given)| *is_given);
    if let (ContentType::Archive, Some((flag, _))) = (args.content_type, given) {
        let what = format!("`{flag}` is for disks and has no meaning for an archive");
        let hint = format!("leave out `{flag}`, or `--content-type archive`");
        return Err(Failure::new(Class::Usage, what).with_hint(hint));
    }
    let reads_stdin = [args.source == Source::Stdin, args.checksum_file == Some(Source::Stdin)];
    let readers = reads_stdin.iter().filter(|reads| **reads).count();
    if readers + args.transfer.stdin_readers() > 1 {
        let what = "standard input can be read once only";
        let hint = "give `-` once, and files for the rest";
        return Err(Failure::new(Class::Usage, what).with_hint(hint));
    }
    args.transfer.check(&args.source, args.checksum_file.as_ref())?;
    args.image.check(&args.source)?;
    let flags = [
        ("--cache", args.cache.is_some(), For::Network),
        ("--checksum", args.checksum.is_some(), For::Bytes),
        ("--checksum-file", args.checksum_file.is_some(), For::Bytes),
    ];
    refuse_others(&flags, &[&args.source])
}

fn request(args: ImportArgs) -> Result<ImportRequest, Failure> {
    let target = match (args.name, args.to) {
        (Some(name), None) => Target::Volume(name),
        (None, Some(path)) => Target::Path(path),
        // clap's group lets exactly one through.
        _ => return Err(Failure::new(Class::Usage, "expected either `--name` or `--to`")),
    };
    Ok(ImportRequest {
        source: args.source,
        claim: args.claim.claim(matches!(target, Target::Volume(_)))?,
        target,
        size: args.size,
        max_size: args.max_size,
        checksum: args.checksum,
        output_format: args.output_format,
        preallocation: args.preallocation,
        relocate_gpt: args.relocate_gpt,
        cache: args.cache.map(|path| CacheSpec { path, limit: args.cache_size }),
    })
}

/// Unpacks a tar file into a folder.
fn archive(
    request: ImportRequest,
    options: &Options,
    json: bool,
    watch: &Watch,
    limit: &Limit,
) -> Result<ExitCode, Failure> {
    let Target::Path(folder) = request.target else {
        let what = "an archive becomes a folder, not a volume of the store";
        return Err(Failure::new(Class::Usage, what).with_hint("name the folder with `--to`"));
    };
    let limits = UnpackOptions::default();
    let bytes_max = request.max_size.map_or(limits.bytes_max, ByteSize::bytes);
    let request = ArchiveRequest {
        source: request.source,
        folder,
        checksum: request.checksum,
        options: UnpackOptions { bytes_max, ..limits },
    };
    let report = bootyard_import::unpack(&request, options, watch, &limit.cancel);
    let took = watch.finish(report.is_ok());
    let report = report?;
    if json {
        output::json_line(&ArchiveLine::new(&report, took.as_secs_f64()))?;
    } else {
        output::result(&format!(
            "unpacked {}\n  source   {} in {:.1} s\n  digest   {}\n  members  {}, {} of files\n  \
             path     {}\n",
            request.source,
            HumanBytes(report.source_bytes),
            took.as_secs_f64(),
            report.sha256,
            report.unpacked.members,
            HumanBytes(report.unpacked.bytes),
            report.path.display(),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What stops an import before its end: signals, and the deadline.
pub(crate) struct Limit {
    pub(crate) cancel: Cancel,
    deadline: Option<Duration>,
    /// The deadline has passed.
    passed: Arc<AtomicBool>,
}

impl Limit {
    pub(crate) fn start(deadline: Option<Duration>) -> Result<Self, Failure> {
        let cancel = cancel_on_signal()?;
        let passed = Arc::new(AtomicBool::new(false));
        if let Some(deadline) = deadline {
            let (cancel, passed) = (cancel.clone(), Arc::clone(&passed));
            // The process ends before it where the import does.
            std::thread::spawn(move || {
                std::thread::sleep(deadline);
                passed.store(true, Ordering::Relaxed);
                cancel.cancel();
            });
        }
        Ok(Self { cancel, deadline, passed })
    }

    /// Says of an import that was stopped by the deadline that it was.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        self.explain_as(failure, "the import took longer than")
    }

    /// The same, of something else.
    pub(crate) fn explain_as(&self, failure: Failure, what: &str) -> Failure {
        match self.deadline.filter(|_| self.passed.load(Ordering::Relaxed)) {
            Some(deadline) if failure.is(Class::Interrupted) => {
                let what = format!("{what} {deadline:?}");
                let hint = failure.hint().unwrap_or("run the same command again").to_owned();
                Failure::new(Class::GuestTimeout, what).with_hint(hint)
            }
            _ => failure,
        }
    }
}

/// Ctrl-C and SIGTERM stop the import cleanly; the second one ends the process as usual.
pub(crate) fn cancel_on_signal() -> Result<Cancel, Failure> {
    let cancel = Cancel::new();
    let switch = cancel.clone();
    crate::signals::once(move || switch.cancel())?;
    Ok(cancel)
}

pub(crate) fn summary(report: &Report, took: Duration) -> String {
    let checked = match &report.checked {
        Some(digest) => format!("{digest} (as expected)"),
        None => format!("{} (nothing to compare with)", report.sha256),
    };
    let resumed = match report.resumed_bytes {
        0 => String::new(),
        bytes => format!(", {} of them by an earlier attempt", HumanBytes(bytes)),
    };
    let resumed = if report.cached { ", from the cache".to_owned() } else { resumed };
    let content = match &report.fingerprint {
        Some(fingerprint) => format!("  content  {fingerprint}\n"),
        None => String::new(),
    };
    let stored = report.allocated_bytes.unwrap_or(report.data_bytes);
    let image = report.image.as_ref().map(image).unwrap_or_default();
    format!(
        "imported {}\n  source   {}, {}{resumed} in {:.1} s\n{image}  digest   {checked}\n{content}  \
         volume   {}, {} stored\n  path     {}\n",
        report.source,
        chain_name(&report.chain),
        HumanBytes(report.source_bytes),
        took.as_secs_f64(),
        ByteSize::from_bytes(report.volume_size),
        HumanBytes(stored),
        report.path.display(),
    )
}

/// The container image that the disk came from, and the labels that it brings.
fn image(image: &ImageReport) -> String {
    let platform = image.platform.as_ref().map(|platform| format!(", {platform}"));
    let labels = image.labels.iter().map(|(name, value)| format!("  label    {name}={value}\n"));
    let platform = platform.unwrap_or_default();
    format!("  image    {}{platform}\n{}", image.digest, labels.collect::<String>())
}
