//! `bootyard export`: a volume or a file as a file, a stream, or a container image.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bootyard_image::fingerprint::Fingerprint;
use bootyard_import::{Error, ExportFormat, ExportRequest, ExportTarget, Exported};
use bootyard_spec::{ByteSize, Class, Source};
use bootyard_volume::Store;
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use crate::args::{ImageArgs, PushArgs, PushFormat};
use crate::commands::import::cancel_on_signal;
use crate::commands::{push, run::resolve_to_read};
use crate::error::Failure;
use crate::json::FailureLine;
use crate::progress::Display;
use crate::stores::StoreArgs;
use crate::transfer::SourceArgs;
use crate::{output, settings};

/// The disk is read once, packed by all processors, and hashed as it is written; nothing stands under
/// the target's name before all of it does.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Volume of the store, or a file or device if it has a slash: `.qcow2`, or else raw
    #[arg(value_name = "VOLUME|FILE")]
    disk: String,
    /// Where it goes: a new file, a block device, - for standard output, s3://BUCKET/KEY, or a
    /// container image as docker://HOST/NAME:TAG, oci:FOLDER:TAG or oci-archive:FILE:TAG
    target: Source,
    /// raw, raw.gz, raw.zst, raw.xz, qcow2 or qcow2-zstd [default: what the target's name ends in; raw
    /// for others, qcow2-zstd for container images]
    #[arg(long, value_name = "FORMAT")]
    format: Option<ExportFormat>,
    /// Folder in which a qcow2 or a layer is made that does not become a file [default: the disk's]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// Print events and the report as JSON lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    transfer: SourceArgs,
    #[command(flatten)]
    stores: StoreArgs,
}

/// The last line of `export --json` when all is well.
#[derive(Debug, Serialize)]
struct ExportedLine<'a> {
    event: &'static str,
    disk: &'a str,
    target: String,
    format: &'static str,
    virtual_size_bytes: u64,
    /// How long what was written is, with its holes.
    bytes: u64,
    allocated_bytes: Option<u64>,
    sha256: String,
    fingerprint: String,
    seconds: f64,
}

pub(crate) fn run(args: ExportArgs) -> Result<ExitCode, Failure> {
    if matches!(args.target, Source::Registry(_) | Source::Stored(_)) {
        return push::run(&as_push(args)?);
    }
    let (json, to_stdout) = (args.json, args.target == Source::Stdin);
    let done = export(&args);
    if json && let Err(failure) = &done {
        let _ = json_line(to_stdout, &FailureLine::new(failure));
    }
    done
}

fn export(args: &ExportArgs) -> Result<ExitCode, Failure> {
    let mut stdout = io::stdout();
    let name = args.target.to_string();
    let (target, format) = match &args.target {
        Source::File(path) => (ExportTarget::Path(path.clone()), ExportFormat::of_name(&name)),
        #[cfg(feature = "s3")]
        Source::S3(object) => (ExportTarget::S3(object.clone()), ExportFormat::of_name(&name)),
        Source::Stdin if stdout.is_terminal() => {
            let what = "a disk is nothing for a terminal";
            let hint = "write it to a file: `bootyard export … FILE`, or pipe it somewhere";
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
        Source::Stdin => {
            let to = "standard output".to_owned();
            (ExportTarget::Stream(&mut stdout, to), ExportFormat::Raw)
        }
        other => return Err(no_target(other)),
    };
    args.image.check(&args.target)?;
    args.transfer.check(&args.target, None)?;
    let mut options = args.transfer.options()?;
    args.stores.apply(&args.target, &mut options)?;
    let store = Store::open(&settings::store_home()?);
    let (disk, access) = resolve_to_read(&store, &args.disk)?;
    let request = ExportRequest {
        scratch: scratch(args.scratch.as_deref(), &disk),
        disk,
        access,
        format: args.format.unwrap_or(format),
    };
    let (to_stdout, cancel) = (args.target == Source::Stdin, cancel_on_signal()?);
    // What is written to standard output leaves no place for anything else there.
    let display = Display::new(args.json && !to_stdout);
    let exported = bootyard_import::export(&request, target, &options, &display, &cancel);
    let took = display.finish();
    let exported = exported.map_err(|error| match error {
        Error::Output { error, .. } if to_stdout && error.kind() == io::ErrorKind::BrokenPipe => {
            Failure::stdout(error)
        }
        error => error.into(),
    })?;
    stdout.flush().map_err(Failure::stdout)?;
    let target = if to_stdout { "standard output".to_owned() } else { name };
    show(args, &request, target, &exported, took)
}

fn no_target(other: &Source) -> Failure {
    let what = format!("`{other}` is no place for an export");
    let hint = match other {
        Source::Volume(_) => "a copy within the store is a clone: `bootyard clone`",
        _ => {
            "expected a file, a block device, -, s3://BUCKET/KEY, docker://HOST/NAME:TAG, \
             oci:FOLDER:TAG or oci-archive:FILE:TAG"
        }
    };
    Failure::new(Class::Usage, what).with_hint(hint)
}

fn scratch(given: Option<&Path>, disk: &Path) -> PathBuf {
    let folder = given.or_else(|| disk.parent()).unwrap_or(Path::new("."));
    if folder.as_os_str().is_empty() { ".".into() } else { folder.to_owned() }
}

/// The same as a push, whose other flags have their defaults.
fn as_push(args: ExportArgs) -> Result<PushArgs, Failure> {
    let format = match args.format {
        None | Some(ExportFormat::Qcow2 | ExportFormat::Qcow2Zstd) => PushFormat::Qcow2,
        Some(ExportFormat::Raw | ExportFormat::RawGzip) => PushFormat::Raw,
        Some(other) => {
            let what = format!("a container image holds no disk as `{}`", other.name());
            let hint = "expected raw, which its layer compresses, or qcow2";
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
    };
    Ok(PushArgs {
        disk: args.disk,
        target: args.target,
        format,
        compression: None,
        labels: Vec::new(),
        env: Vec::new(),
        scratch: args.scratch,
        json: args.json,
        image: args.image,
        transfer: args.transfer,
    })
}

fn show(
    args: &ExportArgs,
    request: &ExportRequest,
    target: String,
    exported: &Exported,
    took: Duration,
) -> Result<ExitCode, Failure> {
    let Exported { virtual_size, bytes, sha256, fingerprint, allocated_bytes } = exported;
    let to_stdout = args.target == Source::Stdin;
    if args.json {
        let line = ExportedLine {
            event: "exported",
            disk: &args.disk,
            target,
            format: request.format.name(),
            virtual_size_bytes: *virtual_size,
            bytes: *bytes,
            allocated_bytes: *allocated_bytes,
            sha256: sha256.hex(),
            fingerprint: Fingerprint::to_string(fingerprint),
            seconds: took.as_secs_f64(),
        };
        json_line(to_stdout, &line)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stored = allocated_bytes.map(|bytes| format!(", {} stored", HumanBytes(bytes)));
    let text = format!(
        "exported {target}\n  disk     {}\n  content  {fingerprint}\n  format   {}, {}{} in \
         {:.1} s\n  digest   {sha256}\n",
        ByteSize::from_bytes(*virtual_size),
        request.format.name(),
        HumanBytes(*bytes),
        stored.unwrap_or_default(),
        took.as_secs_f64(),
    );
    match to_stdout {
        true => output::error(&text),
        false => output::result(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line where programs look for it: on standard error if the disk itself is on the output.
fn json_line(to_stdout: bool, line: &impl Serialize) -> Result<(), Failure> {
    if !to_stdout {
        return output::json_line(line);
    }
    let text = serde_json::to_string(line).map_err(|error| Failure::stdout(error.into()))?;
    output::error(&format!("{text}\n"));
    Ok(())
}
