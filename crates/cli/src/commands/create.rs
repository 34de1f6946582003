//! `bootyard create`: disks with nothing on them. An empty disk is a machine's scratch space, a blank
//! one a volume to be filled by its guest; a config disk has a few files.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_image::Format;
use bootyard_image::raw::FileAt;
use bootyard_import::{Event, Events};
use bootyard_spec::{
    ByteSize, Class, ImportRequest, OutputFormat, Source, Target, VolumeName, shell_word,
};
use bootyard_volume::{Staged, Store};
use clap::{ArgGroup, Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::claims::ClaimArgs;
use crate::commands::config_disk::ConfigDiskArgs;
use crate::error::Failure;
use crate::json::FailureLine;
use crate::{output, settings};

#[derive(Debug, Subcommand)]
pub(crate) enum CreateCommand {
    /// Make an empty disk: a sparse qcow2, as KubeVirt's emptyDisk is
    EmptyDisk(EmptyDiskArgs),
    /// Make a disk of zeros: a file, a block device, or a volume of the store
    Blank(BlankArgs),
    /// Make a small disk of files: a ConfigMap, a Secret, a service account, answers for Windows' set-up
    ConfigDisk(Box<ConfigDiskArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct EmptyDiskArgs {
    /// New file; `run` takes it for a qcow2 if its name ends in `.qcow2`
    file: PathBuf,
    /// Size of the disk, such as 10Gi; rounded down to whole MiB
    #[arg(long, value_name = "QTY")]
    capacity: ByteSize,
    /// Leave a file alone that is an empty disk of this capacity already, whatever a guest wrote to it
    #[arg(long)]
    keep: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true))]
pub(crate) struct BlankArgs {
    /// New file, or block device
    #[arg(group = "target", value_name = "FILE|BLOCKDEV")]
    file: Option<PathBuf>,
    /// Name of the new volume in the store
    #[arg(long, group = "target")]
    name: Option<VolumeName>,
    /// Size of the disk, such as 10Gi
    #[arg(long, value_name = "QTY")]
    size: ByteSize,
    /// Take all of the disk's space at once, and keep it
    #[arg(long)]
    preallocation: bool,
    /// How the disk is stored: raw, qcow2 or qcow2-zstd
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    output_format: OutputFormat,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    claim: ClaimArgs,
}

/// What `create --json` prints.
#[derive(Debug, Serialize)]
struct CreatedLine {
    event: &'static str,
    path: String,
    format: &'static str,
    size_bytes: u64,
    allocated_bytes: Option<u64>,
    /// It was there already.
    kept: bool,
}

impl CreatedLine {
    fn print(&self, json: bool) -> Result<ExitCode, Failure> {
        if json {
            output::json_line(self)?;
            return Ok(ExitCode::SUCCESS);
        }
        let Self { event, path, format, size_bytes, allocated_bytes, .. } = self;
        let size = ByteSize::from_bytes(*size_bytes);
        let stored = allocated_bytes.map(|bytes| format!(", {} stored", HumanBytes(bytes)));
        let stored = stored.unwrap_or_default();
        output::result(&format!("{event} {path}: {format} of {size}{stored}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(crate) fn run(command: CreateCommand) -> Result<ExitCode, Failure> {
    let (json, done) = match command {
        CreateCommand::EmptyDisk(args) => (args.json, empty_disk(&args)),
        CreateCommand::Blank(args) => (args.json, blank(args)),
        CreateCommand::ConfigDisk(args) => (args.json, super::config_disk::create(&args)),
    };
    if json && let Err(failure) = &done {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done
}

fn empty_disk(args: &EmptyDiskArgs) -> Result<ExitCode, Failure> {
    let path = &args.file;
    let name = path.file_stem().unwrap_or(path.as_os_str());
    let capacity = empty_capacity(&name.to_string_lossy(), args.capacity)?;
    let created = |event, allocated_bytes| CreatedLine {
        event,
        path: path.display().to_string(),
        format: OutputFormat::Qcow2.name(),
        size_bytes: capacity.bytes(),
        allocated_bytes,
        kept: event == "kept",
    };
    match fs_err::symlink_metadata(path) {
        Ok(_) if args.keep => {
            check_kept(path, capacity)?;
            return created("kept", None).print(args.json);
        }
        Ok(found) if found.file_type().is_block_device() => {
            let what = format!("`{}` is a block device: an empty disk is a file", path.display());
            let hint = "make a blank one on it: `bootyard create blank`";
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
        _ => {}
    }
    let published = Staged::for_path(path)?.publish_empty(capacity.bytes())?;
    created("created", published.allocated_bytes).print(args.json)
}

/// The size of an empty disk, by KubeVirt's rule and in its words.
pub(crate) fn empty_capacity(name: &str, asked: ByteSize) -> Result<ByteSize, Failure> {
    asked.empty_disk().ok_or_else(|| {
        Failure::new(Class::Usage, format!("the size for volume {name} is too low")).with_hint(
            format!("the capacity is rounded down to whole MiB: got {asked}, expected 1Mi"),
        )
    })
}

/// Refuses a file that is anything but an empty disk of this capacity, or one that a guest has used.
fn check_kept(path: &Path, capacity: ByteSize) -> Result<(), Failure> {
    let failed = |error| Failure::new(Class::Target, error);
    // A pipe would block at its opening.
    let disk = match fs_err::metadata(path).map_err(failed)?.is_file() {
        true => {
            let file = fs_err::File::open(path).map_err(failed)?;
            let storage = FileAt::new(file.into_file()).map_err(failed)?;
            // Nothing in it leads elsewhere: what needs a backing disk or a data file cannot be opened.
            let info = bootyard_image::inspect(&storage).ok();
            let info = info.filter(|info| info.format == Format::Qcow2);
            info.and_then(|_| bootyard_image::open(storage).ok())
        }
        false => None,
    };
    let found = match disk.map(|disk| ByteSize::from_bytes(disk.virtual_size())) {
        Some(found) if found == capacity => return Ok(()),
        Some(found) => format!("one of {found}"),
        None => "something else".to_owned(),
    };
    let what = format!("`{}`: expected an empty disk of {capacity}, got {found}", path.display());
    let hint = format!("name another file, or remove it first: `rm {}`", shell_word(path));
    Err(Failure::new(Class::Target, what).with_hint(hint))
}

fn blank(args: BlankArgs) -> Result<ExitCode, Failure> {
    let target = match (args.name, args.file) {
        (Some(name), None) => Target::Volume(name),
        (None, Some(path)) => Target::Path(path),
        // clap's group lets exactly one through.
        _ => return Err(Failure::new(Class::Usage, "expected either FILE or `--name`")),
    };
    let request = ImportRequest {
        source: Source::Blank,
        claim: args.claim.claim(matches!(target, Target::Volume(_)))?,
        target,
        size: Some(args.size),
        max_size: None,
        checksum: None,
        output_format: args.output_format,
        preallocation: args.preallocation,
        relocate_gpt: false,
        cache: None,
    };
    let store = Store::open(&settings::store_home()?);
    let cancel = super::import::cancel_on_signal()?;
    let options = bootyard_source::Options::default();
    let report = bootyard_import::run(&request, &store, &options, &Silent, &cancel)?;
    let created = CreatedLine {
        event: "created",
        path: report.path.display().to_string(),
        format: args.output_format.name(),
        size_bytes: report.volume_size,
        allocated_bytes: report.allocated_bytes,
        kept: false,
    };
    created.print(args.json)
}

/// Zeros are made too fast for anything to be told on the way.
struct Silent;

impl Events for Silent {
    fn event(&self, _event: Event<'_>) {}
}
