//! `bootyard volume`: what the store holds.

use std::fmt::Write as _;
use std::process::ExitCode;

use bootyard_spec::{ByteSize, Class, VolumeMode, VolumeName, exit_code};
use bootyard_volume::{FindingKind, State, Store, VerifyOptions, Volume};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use crate::commands::export::ExportArgs;
use crate::error::Failure;
use crate::table::table;
use crate::{output, settings};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List volumes
    Ls(LsArgs),
    /// Show all that is known of a volume
    Show(ShowArgs),
    /// Keep what a volume holds now as a volume of its own, which nobody can write to
    Snapshot(SnapshotArgs),
    /// Make a file, a stream or a container image of a volume, as `bootyard export` does
    Export(Box<ExportArgs>),
    /// Remove volumes that nobody uses
    Rm(RmArgs),
    /// Make a volume larger; what is new reads as zeros
    Resize(ResizeArgs),
    /// Look for what killed commands and failing disks have left
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Also those that are being made or removed
    #[arg(long)]
    all: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    name: VolumeName,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Where the file system shares blocks that takes no time and no space; elsewhere it is a copy.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// The volume, which no machine may be writing to
    pub(crate) name: VolumeName,
    /// Name of the snapshot; `clone` makes volumes of it
    pub(crate) snapshot: VolumeName,
    /// Print events and the report as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VolumeName>,
}

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    name: VolumeName,
    /// Its new size, such as 20Gi
    #[arg(value_name = "QTY")]
    size: ByteSize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Volumes to look at [default: all, and whatever else is there]
    #[arg(value_name = "NAME")]
    names: Vec<VolumeName>,
    /// Clean what can be cleaned without loss
    #[arg(long)]
    repair: bool,
    /// Read everything, and compare it with the fingerprint of each volume
    #[arg(long)]
    deep: bool,
    /// Remove imports that were begun and could be gone on with
    #[arg(long, requires = "repair")]
    drop_unfinished: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: VolumeCommand) -> Result<ExitCode, Failure> {
    let store = Store::open(&settings::store_home()?);
    match command {
        VolumeCommand::Ls(args) => list(&store, &args),
        VolumeCommand::Show(args) => show(&store, &args),
        VolumeCommand::Snapshot(args) => super::clone::snapshot(&args),
        VolumeCommand::Export(args) => super::export::run(*args),
        VolumeCommand::Rm(args) => remove(&store, &args),
        VolumeCommand::Resize(args) => resize(&store, &args),
        VolumeCommand::Verify(args) => verify(&store, &args),
    }
}

/// A volume as `--json` prints it. What is not known is null.
#[derive(Debug, Serialize)]
struct VolumeLine<'a> {
    name: &'a str,
    state: &'static str,
    class: &'a str,
    volume_mode: &'static str,
    access_modes: Vec<&'static str>,
    content_type: &'a str,
    format: &'static str,
    /// What a guest sees.
    size_bytes: u64,
    /// What is asked of the class for it: with the file system's part, where there is one.
    request_bytes: u64,
    path: String,
    source: Option<&'a str>,
    sha256: Option<String>,
    fingerprint: Option<String>,
    /// Whether the fingerprint is of what the volume was before.
    written: bool,
    labels: &'a std::collections::BTreeMap<String, String>,
    owner: Option<&'a str>,
    parent: Option<&'a str>,
    created: Option<String>,
}

impl<'a> VolumeLine<'a> {
    fn new(store: &Store, volume: &'a Volume) -> Result<Self, Failure> {
        Ok(Self {
            name: volume.name.as_str(),
            state: volume.state.name(),
            class: volume.class.as_str(),
            volume_mode: volume.volume_mode.name(),
            access_modes: volume.access_modes.as_slice().iter().map(|mode| mode.name()).collect(),
            content_type: &volume.content_type,
            format: volume.format.extension(),
            size_bytes: volume.size,
            request_bytes: request(store, volume)?.bytes(),
            path: volume.path.display().to_string(),
            source: volume.facts.source.as_deref(),
            sha256: volume.facts.sha256.as_ref().map(|digest| digest.hex()),
            fingerprint: volume.facts.fingerprint.as_ref().map(ToString::to_string),
            written: volume.is_written,
            labels: &volume.facts.labels,
            owner: volume.owner.as_deref(),
            parent: volume.facts.parent.as_deref(),
            created: volume.created.and_then(time),
        })
    }
}

/// What a PersistentVolumeClaim would ask for, so that a disk of this size fits in.
fn request(store: &Store, volume: &Volume) -> Result<ByteSize, Failure> {
    let size = ByteSize::from_bytes(volume.size);
    Ok(match volume.volume_mode {
        VolumeMode::Block => size,
        VolumeMode::Filesystem => {
            size.with_filesystem_overhead(store.class(Some(&volume.class))?.filesystem_overhead)
        }
    })
}

fn time(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

/// A size, or that it is not known yet.
fn size(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { ByteSize::from_bytes(bytes).to_string() }
}

fn list(store: &Store, args: &LsArgs) -> Result<ExitCode, Failure> {
    let volumes = if args.all { store.list_all()? } else { store.list()? };
    if args.json {
        for volume in &volumes {
            output::json_line(&VolumeLine::new(store, volume)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["NAME", "SIZE", "FORMAT", "CLASS", "MODE", "ACCESS", "STATE"].map(str::to_owned);
    let mut rows = vec![header.to_vec()];
    for volume in &volumes {
        rows.push(vec![
            volume.name.to_string(),
            size(volume.size),
            volume.format.extension().to_owned(),
            volume.class.to_string(),
            volume.volume_mode.to_string(),
            volume.access_modes.to_string(),
            volume.state.name().to_owned(),
        ]);
    }
    output::result(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn show(store: &Store, args: &ShowArgs) -> Result<ExitCode, Failure> {
    let volume = match store.find(&args.name)? {
        Some(volume) => volume,
        // Says what helps.
        None => store.get(&args.name)?,
    };
    let line = VolumeLine::new(store, &volume)?;
    if args.json {
        output::json_line(&line)?;
        return Ok(ExitCode::SUCCESS);
    }
    let request = match volume.volume_mode {
        VolumeMode::Filesystem if volume.size > 0 => {
            format!(
                " (a claim of {} with its file system)",
                ByteSize::from_bytes(line.request_bytes)
            )
        }
        _ => String::new(),
    };
    let state = match (volume.state, volume.holder) {
        (State::Preparing, Some(holder)) => format!("preparing, by process {holder}"),
        (state, _) => state.name().to_owned(),
    };
    let written = if volume.is_written { " (before it was written to)" } else { "" };
    let mut facts = vec![
        ("state", Some(state)),
        ("size", Some(format!("{}{request}", size(volume.size)))),
        ("stored", Some(format!("{} in {}", line.format, line.path))),
        ("class", Some(format!("{}, {}, {}", line.class, line.volume_mode, volume.access_modes))),
        ("source", volume.facts.source.clone()),
        ("digest", volume.facts.sha256.as_ref().map(ToString::to_string)),
        ("content", line.fingerprint.map(|fingerprint| format!("{fingerprint}{written}"))),
        ("parent", volume.facts.parent.clone()),
        ("owner", volume.owner.clone()),
        ("created", line.created),
    ];
    let labels = volume.facts.labels.iter();
    facts.extend(labels.map(|(name, value)| ("label", Some(format!("{name}={value}")))));
    let mut text = format!("volume {}\n", volume.name);
    for (name, fact) in facts.into_iter().filter_map(|(name, fact)| Some((name, fact?))) {
        writeln!(text, "  {name:<8} {fact}").expect("a text takes all");
    }
    output::result(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes as many as can be removed; the first failure is told at the end, the others on the way.
fn remove(store: &Store, args: &RmArgs) -> Result<ExitCode, Failure> {
    let mut first = None;
    for name in &args.names {
        if let Err(error) = store.remove(name) {
            let failure = Failure::from(error);
            match first {
                None => first = Some(failure),
                Some(_) => output::error(&failure.render()),
            }
        }
    }
    first.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn resize(store: &Store, args: &ResizeArgs) -> Result<ExitCode, Failure> {
    let (before, after) = store.resize(&args.name, args.size)?;
    if args.json {
        #[derive(Serialize)]
        struct Resized<'a> {
            event: &'static str,
            name: &'a str,
            before_bytes: u64,
            size_bytes: u64,
        }
        let name = args.name.as_str();
        let line = Resized { event: "resized", name, before_bytes: before, size_bytes: after };
        output::json_line(&line)?;
    } else {
        let [before, after] = [before, after].map(ByteSize::from_bytes);
        output::result(&format!("resized {} from {before} to {after}\n", args.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Succeeds if nothing is left that should not be there.
fn verify(store: &Store, args: &VerifyArgs) -> Result<ExitCode, Failure> {
    let VerifyArgs { repair, deep, drop_unfinished, .. } = *args;
    let options = VerifyOptions { repair, deep, drop_unfinished };
    let findings = store.verify(&args.names, options, &|_| {})?;
    for finding in &findings {
        let (kind, name, what) = (finding.kind.name(), &finding.name, &finding.what);
        if args.json {
            #[derive(Serialize)]
            struct Found<'a> {
                event: &'static str,
                kind: &'static str,
                name: &'a str,
                what: &'a str,
            }
            output::json_line(&Found { event: "finding", kind, name: name.as_str(), what })?;
        } else {
            output::result(&format!("{kind}: volume `{name}` {what}\n"))?;
        }
    }
    let count = |kind| findings.iter().filter(|finding| finding.kind == kind).count();
    match (count(FindingKind::Damage), count(FindingKind::Repairable)) {
        (0, 0) => Ok(ExitCode::SUCCESS),
        (0, _) => {
            output::error("hint: put right what can be: `bootyard volume verify --repair`\n");
            Ok(ExitCode::from(exit_code(Class::Target)))
        }
        _ => Ok(ExitCode::from(exit_code(Class::Target))),
    }
}
