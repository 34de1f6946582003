//! `bootyard import`: from the arguments to a request, from the report to a result.

use std::process::ExitCode;
use std::time::Duration;

use bootyard_image::chain_name;
use bootyard_import::{Cancel, Event, ImageReport, Report};
use bootyard_spec::{ByteSize, CacheSpec, Class, ImportRequest, Target};
use bootyard_volume::Store;
use indicatif::HumanBytes;

use crate::args::ImportArgs;
use crate::error::Failure;
use crate::json::{EventLine, FailureLine, ReportLine};
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
    let (json, dry_run) = (args.json, args.dry_run);
    let mut options = args.transfer.options()?;
    options.image = settings::image_options(&args.image);
    args.stores.apply(&args.source, &mut options)?;
    let published = args.checksum_file.clone();
    let mut request = request(args)?;
    if let Some(list) = published {
        let digest = bootyard_import::published_checksum(&list, &request.source, &options)?;
        request.checksum = Some(digest);
    }
    let store = Store::open(&settings::store_home()?);
    if dry_run {
        let probe = bootyard_import::probe(&request, &store, &options)?;
        let plan = bootyard_import::plan(&request, &probe)?;
        match EventLine::of(&Event::Planned(&plan)).filter(|_| json) {
            Some(line) => output::json_line(&line)?,
            None => output::result(&format!("{plan}\n"))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let display = Display::new(json);
    let cancel = cancel_on_signal()?;
    let report = bootyard_import::run(&request, &store, &options, &display, &cancel)?;
    let took = display.finish();
    if json {
        output::json_line(&ReportLine::new(&report, took.as_secs_f64()))?;
    } else {
        output::result(&summary(&report, took))?;
    }
    Ok(ExitCode::SUCCESS)
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

/// Ctrl-C and SIGTERM stop the import cleanly; the second one ends the process as usual.
pub(crate) fn cancel_on_signal() -> Result<Cancel, Failure> {
    let cancel = Cancel::new();
    let switch = cancel.clone();
    crate::signals::once(move || switch.cancel())?;
    Ok(cancel)
}

fn summary(report: &Report, took: Duration) -> String {
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
