//! What programs read: every JSON object that a command prints. Fields are added, never renamed.

mod boot;
mod found;

use std::collections::BTreeMap;

use bootyard_image::{Content, Format, Info};
use bootyard_import::{ArchiveReport, Event, Progress, Pushed, Report};
use bootyard_source::{Sent, Upload};
use bootyard_spec::{ByteSize, FilesystemOverhead};
use bootyard_volume::Cloned;
use serde::Serialize;

use crate::error::Failure;
pub(crate) use boot::BootEntriesLine;
pub(crate) use found::FoundLine;

/// One line of `import --json`; `event` tells which fields are there.
#[derive(Debug, Default, Serialize)]
pub(crate) struct EventLine<'a> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'a str>,
    /// The containers round the image from the outermost on, then its own format.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strategy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fetched_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// Whether an import that is stopped can be gone on with: `anywhere`, or why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_bytes_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    space_bytes_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> EventLine<'a> {
    /// The line of an event; `None` for those that are shown by [`EventLine::progress`].
    pub(crate) fn of(event: &Event<'a>) -> Option<Self> {
        match event {
            Event::Phase(phase) => {
                Some(Self { event: "phase", phase: Some(phase.name()), ..Self::default() })
            }
            Event::Planned(plan) => Some(Self {
                event: "planned",
                chain: names(&plan.chain),
                format: Some(plan.format.name()),
                strategy: Some(plan.strategy.name()),
                virtual_size_bytes: plan.virtual_size,
                total_bytes: plan.fetch_bytes,
                resume: Some(plan.resume.name()),
                write_bytes_max: plan.write_bytes,
                space_bytes_max: plan.space,
                ..Self::default()
            }),
            Event::Retried(attempt) => {
                Some(Self { event: "retried", attempt: Some(*attempt), ..Self::default() })
            }
            Event::Resumed(at) => {
                Some(Self { event: "resumed", fetched_bytes: Some(*at), ..Self::default() })
            }
            Event::StartedOver(why) => {
                Some(Self { event: "started_over", reason: Some(why), ..Self::default() })
            }
            _ => None,
        }
    }

    /// The line of a transfer's progress.
    pub(crate) fn progress(progress: &Progress) -> Self {
        let moved = progress.moved();
        Self {
            event: "progress",
            fetched_bytes: Some(moved.fetched),
            total_bytes: moved.total,
            written_bytes: Some(moved.written),
            bytes_per_second: progress.rate(),
            eta_seconds: progress.eta().map(|eta| eta.as_secs_f64()),
            ..Self::default()
        }
    }
}

/// The last line of `upload --to --json` when all is well.
#[derive(Debug, Serialize)]
pub(crate) struct UploadedLine {
    event: &'static str,
    source: String,
    server: String,
    source_bytes: u64,
    /// How many of these the server had from an earlier attempt.
    resumed_bytes: u64,
    sha256: String,
    /// Whether the server has compared the digest before it published the disk.
    compared: bool,
    retries: u32,
    seconds: f64,
}

impl UploadedLine {
    pub(crate) fn new(upload: &Upload, sent: &Sent, seconds: f64) -> Self {
        Self {
            event: "uploaded",
            source: upload.source.to_string(),
            server: upload.server.to_string(),
            source_bytes: sent.bytes,
            resumed_bytes: sent.resumed_bytes,
            sha256: sent.sha256.hex(),
            compared: sent.compared,
            retries: sent.retries,
            seconds,
        }
    }
}

/// A line of `upload-server --json` about the server itself.
#[derive(Debug, Serialize)]
pub(crate) struct ListeningLine<'a> {
    event: &'static str,
    /// What clients append the endpoints' paths to.
    url: &'a str,
}

impl<'a> ListeningLine<'a> {
    pub(crate) const fn new(url: &'a str) -> Self {
        Self { event: "listening", url }
    }
}

/// A line of `upload-server --json` about an upload: one has begun, or failed.
#[derive(Debug, Serialize)]
pub(crate) struct UploadLine<'a> {
    event: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> UploadLine<'a> {
    pub(crate) const fn begun(name: &'a str) -> Self {
        Self { event: "upload", name, error: None }
    }

    pub(crate) const fn failed(name: &'a str, error: &'a str) -> Self {
        Self { event: "upload_failed", name, error: Some(error) }
    }
}

/// The last line of `clone --json` when all is well.
#[derive(Debug, Serialize)]
pub(crate) struct ClonedLine<'a> {
    event: &'static str,
    source: &'a str,
    path: String,
    /// `reflink` if the blocks are shared, else `copy`.
    method: &'static str,
    volume_size_bytes: u64,
    data_bytes: u64,
    /// How many bytes of data an earlier attempt had stored.
    resumed_bytes: u64,
    allocated_bytes: Option<u64>,
    /// What a raw clone holds, if it was read.
    fingerprint: Option<String>,
    seconds: f64,
}

impl<'a> ClonedLine<'a> {
    pub(crate) fn new(source: &'a str, cloned: &Cloned, seconds: f64) -> Self {
        Self {
            event: "cloned",
            source,
            path: cloned.published.path.display().to_string(),
            method: cloned.method.name(),
            volume_size_bytes: cloned.size,
            data_bytes: cloned.data_bytes,
            resumed_bytes: cloned.resumed_bytes,
            allocated_bytes: cloned.published.allocated_bytes,
            fingerprint: cloned.fingerprint.as_ref().map(ToString::to_string),
            seconds,
        }
    }
}

/// The last line of `import --json` when all is well.
#[derive(Debug, Serialize)]
pub(crate) struct ReportLine {
    event: &'static str,
    source: String,
    path: String,
    /// The containers round the image from the outermost on, then its own format.
    chain: Vec<&'static str>,
    format: &'static str,
    virtual_size_bytes: u64,
    volume_size_bytes: u64,
    source_bytes: u64,
    /// Whether these were in the cache.
    cached: bool,
    /// How many of these an earlier attempt had fetched.
    resumed_bytes: u64,
    data_bytes: u64,
    allocated_bytes: Option<u64>,
    spilled_bytes: u64,
    sha256: String,
    /// The digest that was asked for and agreed.
    checked: Option<String>,
    /// What the volume holds, however it is stored.
    fingerprint: Option<String>,
    retries: u32,
    seconds: f64,
    /// The container image that the disk came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<ImageLine>,
}

#[derive(Debug, Serialize)]
struct ImageLine {
    digest: String,
    platform: Option<String>,
    labels: BTreeMap<String, String>,
}

fn names(chain: &[Format]) -> Vec<&'static str> {
    chain.iter().map(|format| format.name()).collect()
}

impl ReportLine {
    pub(crate) fn new(report: &Report, seconds: f64) -> Self {
        Self {
            event: "imported",
            source: report.source.clone(),
            path: report.path.display().to_string(),
            chain: names(&report.chain),
            format: report.format.name(),
            virtual_size_bytes: report.virtual_size,
            volume_size_bytes: report.volume_size,
            source_bytes: report.source_bytes,
            cached: report.cached,
            resumed_bytes: report.resumed_bytes,
            data_bytes: report.data_bytes,
            allocated_bytes: report.allocated_bytes,
            spilled_bytes: report.spilled_bytes,
            sha256: report.sha256.hex(),
            checked: report.checked.as_ref().map(ToString::to_string),
            fingerprint: report.fingerprint.as_ref().map(ToString::to_string),
            retries: report.retries,
            seconds,
            image: report.image.as_ref().map(|image| ImageLine {
                digest: image.digest.to_string(),
                platform: image.platform.as_ref().map(ToString::to_string),
                labels: image.labels.clone(),
            }),
        }
    }
}

/// What `push --json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct PushedLine<'a> {
    event: &'static str,
    target: &'a str,
    digest: String,
    layer: String,
    layer_bytes: u64,
    virtual_size_bytes: u64,
}

impl<'a> PushedLine<'a> {
    pub(crate) fn new(target: &'a str, pushed: &Pushed) -> Self {
        Self {
            event: "pushed",
            target,
            digest: pushed.digest.to_string(),
            layer: pushed.layer.to_string(),
            layer_bytes: pushed.layer_bytes,
            virtual_size_bytes: pushed.virtual_size,
        }
    }
}

/// The last line of `import --content-type archive --json` when all is well.
#[derive(Debug, Serialize)]
pub(crate) struct ArchiveLine {
    event: &'static str,
    path: String,
    source_bytes: u64,
    sha256: String,
    members: u64,
    file_bytes: u64,
    seconds: f64,
}

impl ArchiveLine {
    pub(crate) fn new(report: &ArchiveReport, seconds: f64) -> Self {
        Self {
            event: "unpacked",
            path: report.path.display().to_string(),
            source_bytes: report.source_bytes,
            sha256: report.sha256.hex(),
            members: report.unpacked.members,
            file_bytes: report.unpacked.bytes,
            seconds,
        }
    }
}

/// The last line of a `--json` command that failed; standard error says the same for people.
#[derive(Debug, Serialize)]
pub(crate) struct FailureLine<'a> {
    event: &'static str,
    exit_code: u8,
    message: String,
    causes: Vec<String>,
    hint: Option<&'a str>,
}

impl<'a> FailureLine<'a> {
    pub(crate) fn new(failure: &'a Failure) -> Self {
        Self {
            event: "failed",
            exit_code: failure.exit_code(),
            message: failure.message(),
            causes: failure.causes(),
            hint: failure.hint(),
        }
    }
}

/// What `inspect --json` prints. What a format does not have, or does not tell, is null.
#[derive(Debug, Serialize)]
pub(crate) struct InfoLine<'a> {
    source: &'a str,
    /// The containers round the disk from the outermost on, then the disk's format.
    chain: Vec<&'static str>,
    format: &'static str,
    variant: Option<&'a str>,
    /// What a raw disk begins with: `gpt`, `mbr` or `iso9660`.
    content: Option<&'static str>,
    version: Option<u32>,
    virtual_size_bytes: Option<u64>,
    allocated_bytes: Option<u64>,
    cluster_size_bytes: Option<u64>,
    sector_size_bytes: Option<u32>,
    compression: Option<&'a str>,
    refcount_bits: Option<u32>,
    features: &'a [&'a str],
    snapshots: Vec<SnapshotLine<'a>>,
    backing_file: Option<&'a str>,
    backing_format: Option<&'a str>,
    data_file: Option<&'a str>,
    extents: &'a [String],
    notes: &'a [String],
    /// What to ask of a storage class for a volume that holds the disk.
    volume_size_bytes: Option<VolumeSize>,
    /// Why an import would refuse it; null if it would not.
    refused: Option<&'a str>,
}

/// An internal snapshot.
#[derive(Debug, Serialize)]
struct SnapshotLine<'a> {
    id: &'a str,
    name: &'a str,
    virtual_size_bytes: u64,
    vm_state_size_bytes: u64,
    /// Seconds since 1970.
    taken: u64,
}

/// By `volumeMode`.
#[derive(Debug, Serialize)]
struct VolumeSize {
    filesystem: u64,
    block: u64,
}

impl<'a> InfoLine<'a> {
    pub(crate) fn new(source: &'a str, info: &'a Info) -> Self {
        let snapshots = info.snapshots.iter().map(|snapshot| SnapshotLine {
            id: &snapshot.id,
            name: &snapshot.name,
            virtual_size_bytes: snapshot.virtual_size,
            vm_state_size_bytes: snapshot.vm_state_size,
            taken: snapshot.taken,
        });
        let volume_size_bytes = info
            .virtual_size
            .map(|block| VolumeSize { filesystem: filesystem_volume(block).bytes(), block });
        Self {
            source,
            chain: names(&info.chain),
            format: info.format.name(),
            variant: info.variant.as_deref(),
            content: info.content.map(content_name),
            version: info.version,
            virtual_size_bytes: info.virtual_size,
            allocated_bytes: info.allocated,
            cluster_size_bytes: info.cluster_size,
            sector_size_bytes: info.sector_size,
            compression: info.compression,
            refcount_bits: info.refcount_bits,
            features: &info.features,
            snapshots: snapshots.collect(),
            backing_file: info.backing_file.as_deref(),
            backing_format: info.backing_format.as_deref(),
            data_file: info.data_file.as_deref(),
            extents: &info.extents,
            notes: &info.notes,
            volume_size_bytes,
            refused: info.refused.as_deref(),
        }
    }
}

/// The size of a volume with a file system that holds a disk of `bytes`.
pub(crate) fn filesystem_volume(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes).with_filesystem_overhead(FilesystemOverhead::DEFAULT)
}

pub(crate) const fn content_name(content: Content) -> &'static str {
    match content {
        Content::Gpt => "gpt",
        Content::Mbr => "mbr",
        Content::Iso9660 => "iso9660",
        _ => "other",
    }
}

/// What `doctor --json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct DoctorLine<'a> {
    /// `full`, `emulated` or `broken`.
    pub(crate) kvm: &'static str,
    /// The same in words, naming the instruction that does not work.
    pub(crate) kvm_detail: String,
    /// The path of QEMU, if it is installed.
    pub(crate) qemu: Option<String>,
    /// What `--engine auto` takes here; null if nothing works.
    pub(crate) engine: Option<&'static str>,
    /// Everything that was looked at.
    pub(crate) findings: Vec<FindingEntry<'a>>,
}

/// One finding of the doctor.
#[derive(Debug, Serialize)]
pub(crate) struct FindingEntry<'a> {
    pub(crate) name: &'static str,
    /// `ok`, `limited` or `missing`.
    pub(crate) state: &'static str,
    pub(crate) detail: &'a str,
    /// What helps; null where nothing has to.
    pub(crate) remedy: Option<&'a str>,
}
