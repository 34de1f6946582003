//! The command line as clap types: parsing only. Nothing here opens a file or asks the host; the
//! commands do. The doc comments are the help text.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bootyard_cloudinit::{Datasource, ImageFormat};
use bootyard_import::{Besides, LayerCompression};
use bootyard_spec::{
    ByteSize, Digest, EngineChoice, OutputFormat, Platform, RunStrategy, SafeUrl, Source,
    VmNetwork, VolumeName,
};
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::boot::BootArgs;
use crate::claims::ClaimArgs;
use crate::commands::boot_entries::BootEntriesArgs;
use crate::commands::console::ConsoleArgs;
use crate::commands::control::ControlCommandArgs;
use crate::commands::create::CreateCommand;
use crate::commands::export::ExportArgs;
use crate::commands::seed_diff::SeedDiffArgs;
use crate::commands::seed_lint::SeedLintArgs;
use crate::commands::seed_show::SeedShowArgs;
use crate::commands::storage_class::StorageClassCommand;
use crate::commands::validate::{ExplainArgs, ValidateArgs};
use crate::commands::volume::VolumeCommand;
use crate::control::ControlArgs;
use crate::disks::DiskArgs;
use crate::error::Failure;
use crate::flags::{For, refuse_others};
use crate::hardware::HardwareArgs;
use crate::network::NetworkArgs;
use crate::seeds::{SeedArgs, UserArgs};
use crate::services::ServiceArgs;
use crate::stores::StoreArgs;
use crate::transfer::SourceArgs;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Disks in, running machines out.
///
/// Brings a disk image from anywhere into a volume in one verified pass, writes cloud-init seeds,
/// and boots the result on its own KVM machine or on QEMU.
#[derive(Debug, Parser)]
#[command(name = "bootyard", version, styles = STYLES, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 success, 1 other failure, 2 usage, 3 source, 4 image, \
                        5 checksum, 6 target, 7 nothing bootable, 8 engine, 9 guest crashed, \
                        10 time limit, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Command {
    /// The command that this process was started with. The flags of all commands are set up to find it,
    /// except for the one that no guest starts without.
    pub(crate) fn of_process() -> Self {
        let mut words = std::env::args_os().skip(1).peekable();
        match words.peek().is_some_and(|word| word == "machine") {
            true => Self::Machine(Box::new(MachineArgs::parse_from(words))),
            false => Cli::parse().command,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a disk image into a volume, a file or a block device
    Import(Box<ImportArgs>),
    /// Make disks: empty ones, and small ones of files
    #[command(subcommand)]
    Create(CreateCommand),
    /// Look after the volumes of the store
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look after the storage classes, which say where volumes are made
    #[command(subcommand)]
    StorageClass(StorageClassCommand),
    /// Show what a disk image is, without importing it
    Inspect(Box<InspectArgs>),
    /// Make a second disk with the content of another
    Clone(CloneArgs),
    /// Make a file, a stream, an object of S3 or a container image of a volume
    Export(Box<ExportArgs>),
    /// Make a container image (a containerDisk) of a disk
    Push(Box<PushArgs>),
    /// Send a disk image to an upload server, or import it into the store here
    Upload(Box<UploadArgs>),
    /// Take one upload of a disk image, as CDI's upload server does
    UploadServer(Box<UploadServerArgs>),
    /// Make cloud-init seeds, check them, and look into them
    #[command(subcommand)]
    Seed(SeedCommand),
    /// Boot a machine in the foreground, its serial port on this terminal
    Run(Box<RunArgs>),
    /// Show what a disk would boot on the KVM machine, and why other things would not
    BootEntries(BootEntriesArgs),
    /// Ask something of a running machine: pause, resume, reset, statistics, …
    Control(ControlCommandArgs),
    /// Attach this terminal to the serial port of a running machine
    Console(ConsoleArgs),
    /// Check manifests of machines and volumes as a cluster would, and show all that is wrong at once
    Validate(ValidateArgs),
    /// Show what a field of a manifest is for
    Explain(ExplainArgs),
    /// Show which engines work on this host, and why others don't
    Doctor(DoctorArgs),
    /// Import as the importer container of KubeVirt's CDI does, by its variables
    #[command(hide = true)]
    Importer,
    /// Run the KVM machine in this process; `run` starts it as its child
    #[command(hide = true)]
    Machine(Box<MachineArgs>),
}

/// The image is fetched, decoded, checked and written in one pass; nothing stands under the final
/// name before the verdict.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true))]
pub(crate) struct ImportArgs {
    /// Where the image is: http://…, https://…, s3://…, gs://…, docker://…, oci:PATH,
    /// oci-archive:PATH, docker-archive:PATH, volume:NAME, file:PATH, a path, blank, or - for standard
    /// input
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) besides: BesidesArgs,
    /// Name of the new volume in the store
    #[arg(long, group = "target")]
    pub(crate) name: Option<VolumeName>,
    /// New file, or block device, to write to instead of the store
    #[arg(long, group = "target", value_name = "FILE|BLOCKDEV")]
    pub(crate) to: Option<PathBuf>,
    /// Size of the volume, such as 10Gi; at least the image's virtual size [default: just that]
    #[arg(long, value_name = "QTY")]
    pub(crate) size: Option<ByteSize>,
    /// Refuse images whose virtual size is larger
    #[arg(long, value_name = "QTY")]
    pub(crate) max_size: Option<ByteSize>,
    /// Digest of the image file as published: sha256, sha512, sha1 or md5
    #[arg(long, value_name = "ALG:HEX")]
    pub(crate) checksum: Option<Digest>,
    /// Published list of digests that names the image file, such as …/SHA256SUMS
    #[arg(long, value_name = "URL|PATH", conflicts_with = "checksum")]
    pub(crate) checksum_file: Option<Source>,
    /// How the volume is stored: raw, qcow2 or qcow2-zstd
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub(crate) output_format: OutputFormat,
    /// What the source holds: kubevirt, which is a disk, or archive, a tar file that becomes the folder
    /// `--to`
    #[arg(long, value_name = "TYPE", default_value = "kubevirt")]
    pub(crate) content_type: ContentType,
    /// Give up after this time, such as 90s or 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// Keep what is fetched in this folder, and take it from there the next time
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// How much the cache may hold; what was not used for longest is removed
    #[arg(long, value_name = "QTY", default_value = "20Gi", requires = "cache")]
    pub(crate) cache_size: ByteSize,
    /// Take all of the volume's space at once, and keep it
    #[arg(long)]
    pub(crate) preallocation: bool,
    /// Move the backup of a GPT to the end of a volume that is larger than the image's disk
    #[arg(long)]
    pub(crate) relocate_gpt: bool,
    /// Print what would be done, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print events and the report as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    /// File that shows the progress as CDI's metric, for node_exporter's textfile collector: its name
    /// has to end in .prom there
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub(crate) metrics_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) transfer: SourceArgs,
    #[command(flatten)]
    pub(crate) stores: StoreArgs,
    #[command(flatten)]
    pub(crate) claim: ClaimArgs,
}

/// What a source holds, by CDI's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContentType {
    Kubevirt,
    Archive,
}

/// Which container image is meant, and how its registry is spoken to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Container images")]
pub(crate) struct ImageArgs {
    /// Platform to choose from an image for several [default: linux on this machine's architecture]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// The disk's file in the image [default: the only one in /disk]
    #[arg(long, value_name = "PATH")]
    pub(crate) image_path: Option<String>,
    /// File with registry credentials [default: `$REGISTRY_AUTH_FILE`, or what podman and docker use]
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_auth: Option<PathBuf>,
    /// Take any certificate of the registry, and plain HTTP if it speaks no TLS
    #[arg(long)]
    pub(crate) insecure: bool,
}

impl ImageArgs {
    /// Refuses flags that would have no effect on `source`.
    pub(crate) fn check(&self, source: &Source) -> Result<(), Failure> {
        let flags = [
            ("--platform", self.platform.is_some(), For::Image),
            ("--image-path", self.image_path.is_some(), For::Image),
            ("--registry-auth", self.registry_auth.is_some(), For::Registry),
            ("--insecure", self.insecure, For::Registry),
        ];
        refuse_others(&flags, &[source])
    }
}

/// Where the file system can, both share their blocks until one is changed, which takes no time;
/// elsewhere the data is copied, without holes and zeros, and compared. A disk that a machine runs on
/// is refused.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("clone").required(true))]
pub(crate) struct CloneArgs {
    /// Volume of the store, or a file or device if it has a slash: `.qcow2`, or else raw
    #[arg(value_name = "VOLUME|FILE")]
    pub(crate) source: String,
    /// Name of the new volume in the store
    #[arg(group = "clone")]
    pub(crate) name: Option<VolumeName>,
    /// New file, or block device, to write to instead of the store
    #[arg(long, group = "clone", value_name = "FILE|BLOCKDEV")]
    pub(crate) to: Option<PathBuf>,
    /// Size of the clone, such as 10Gi; at least the original's [default: just that]
    #[arg(long, value_name = "QTY")]
    pub(crate) size: Option<ByteSize>,
    /// How the clone is stored: raw, qcow2 or qcow2-zstd [default: as the original is]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Take all of the clone's space at once, and keep it; nothing is shared then
    #[arg(long)]
    pub(crate) preallocation: bool,
    /// Refuse an original that is no snapshot of a volume
    #[arg(long)]
    pub(crate) from_snapshot: bool,
    /// Read and compare a clone that shares the original's blocks, too
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print events and the report as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) claim: ClaimArgs,
}

/// What an image is read with: names inside it are never opened.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images of several files")]
pub(crate) struct BesidesArgs {
    /// Internal snapshot to read in place of the active state, by its identifier or name
    #[arg(long, value_name = "NAME")]
    pub(crate) snapshot: Option<String>,
    /// Disk that the image is an overlay over; once more for what lies under that, and so on
    #[arg(long, value_name = "FILE")]
    pub(crate) backing: Vec<PathBuf>,
    /// File that holds the guest's data, for a qcow2 with an external one
    #[arg(long, value_name = "FILE")]
    pub(crate) data_file: Option<PathBuf>,
}

impl BesidesArgs {
    /// What is given, unless it would have no effect on `source`.
    pub(crate) fn check(&self, source: &Source) -> Result<Besides, Failure> {
        let flags = [
            ("--snapshot", self.snapshot.is_some(), For::File),
            ("--backing", !self.backing.is_empty(), For::File),
            ("--data-file", self.data_file.is_some(), For::File),
        ];
        refuse_others(&flags, &[source])?;
        let Self { snapshot, backing, data_file } = self;
        let (snapshot, backing, data_file) = (snapshot.clone(), backing.clone(), data_file.clone());
        Ok(Besides { snapshot, backing, data_file })
    }
}

/// The image has one layer with the disk in /disk. The same disk gives the same image on every day:
/// its time is `$SOURCE_DATE_EPOCH`, or 1970.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Volume of the store, or a file or device if it has a slash: `.qcow2`, or else raw
    #[arg(value_name = "VOLUME|FILE")]
    pub(crate) disk: String,
    /// Where the image goes: docker://HOST/NAME:TAG, oci:FOLDER:TAG or oci-archive:FILE:TAG
    pub(crate) target: Source,
    /// How the disk is stored in the image: qcow2, whose clusters are compressed, or raw
    #[arg(long, value_name = "FORMAT", default_value = "qcow2")]
    pub(crate) format: PushFormat,
    /// How the layer is compressed: none, gzip or zstd [default: gzip for raw, none for qcow2]
    #[arg(long)]
    pub(crate) compression: Option<LayerCompression>,
    /// Label of the image, as NAME=VALUE; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// Variable of the image, as NAME=VALUE: X_KUBEVIRT_IO_Y becomes a volume's label; may be
    /// repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Folder in which the layer is made [default: the disk's]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) scratch: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) transfer: SourceArgs,
}

/// How a disk is stored in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushFormat {
    Raw,
    Qcow2,
}

impl FromStr for PushFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("unknown format `{text}`; expected raw or qcow2")),
        }
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("expected NAME=VALUE, got `{text}`")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Where the image is: http://…, https://…, s3://…, gs://…, docker://…, oci:PATH,
    /// oci-archive:PATH, docker-archive:PATH, file:PATH, a path, or - for standard input
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) besides: BesidesArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) transfer: SourceArgs,
    #[command(flatten)]
    pub(crate) stores: StoreArgs,
}

/// Without `--to` this is an import. To a server of ours an upload that was cut or killed goes on by the
/// same command, and its digest is compared before the disk becomes visible; to CDI's upload proxy it
/// starts over.
#[derive(Debug, Args)]
pub(crate) struct UploadArgs {
    /// The image's file, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,
    /// Name of the new volume in the store here
    #[arg(value_name = "NAME", required_unless_present = "to", conflicts_with = "to")]
    pub(crate) name: Option<VolumeName>,
    /// Server to send it to, such as https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<SafeUrl>,
    /// File with the token for the server [default: `$BOOTYARD_UPLOAD_TOKEN`]
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(crate) token_file: Option<PathBuf>,
    /// Our certificate for the server, and its key, in one PEM file
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(crate) client_cert: Option<PathBuf>,
    /// Certificates of authorities to trust besides the system's (PEM)
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Believe any server, whatever its certificate: only for tests
    #[arg(long, requires = "to")]
    pub(crate) insecure_skip_verify: bool,
    /// What the file holds: kubevirt, which is a disk, or archive, a tar file that becomes a folder
    #[arg(long, value_name = "TYPE", default_value = "kubevirt", requires = "to")]
    pub(crate) content_type: ContentType,
    /// Failed requests in a row that are made again [default: 4]
    #[arg(long, value_name = "N", requires = "to")]
    pub(crate) retries: Option<u32>,
    /// How long the server may take or say nothing, such as 90s or 10m [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "to")]
    pub(crate) stall_timeout: Option<Duration>,
    /// Size of the volume here [default: the disk's]
    #[arg(long, value_name = "QTY", conflicts_with = "to")]
    pub(crate) size: Option<ByteSize>,
    /// Digest of the image file as published: sha256, sha512, sha1 or md5
    #[arg(long, value_name = "ALG:HEX", conflicts_with = "to")]
    pub(crate) checksum: Option<Digest>,
    /// How the volume here is stored: raw, qcow2 or qcow2-zstd
    #[arg(long, value_name = "FORMAT", default_value = "raw", conflicts_with = "to")]
    pub(crate) output_format: OutputFormat,
    /// Print events and the report as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) claim: ClaimArgs,
}

/// Clients are CDI's (`virtctl image-upload`), `bootyard upload`, curl, or any of tus 1.0. CDI's
/// variables (LISTEN_ADDRESS, TLS_KEY_FILE, …) are taken where a flag is absent. The server ends when
/// the upload is complete.
#[derive(Debug, Args)]
pub(crate) struct UploadServerArgs {
    /// Name of the new volume in the store
    #[arg(long)]
    pub(crate) name: Option<VolumeName>,
    /// New file, or block device, to write to instead of the store; for an archive a folder
    #[arg(long, value_name = "FILE|BLOCKDEV", conflicts_with = "name")]
    pub(crate) to: Option<PathBuf>,
    /// Address to listen on; port 0 is any free one [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Certificate of the server (PEM), with those up to its authority
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Take only clients with a certificate of these authorities (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,
    /// Common or alternative name that a client's certificate must have
    #[arg(long, value_name = "NAME")]
    pub(crate) client_name: Option<String>,
    /// Take only requests with the token in this file
    #[arg(long, value_name = "FILE", conflicts_with = "token_key")]
    pub(crate) token_file: Option<PathBuf>,
    /// Take only requests with a token that CDI's API server signed; this is its public key (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) token_key: Option<PathBuf>,
    /// Claim that such a token must name [default: the volume's name, in any namespace]
    #[arg(long, value_name = "[NAMESPACE/]NAME", requires = "token_key")]
    pub(crate) token_subject: Option<String>,
    /// Let anyone in who reaches an address that is not only this machine's
    #[arg(long)]
    pub(crate) anonymous: bool,
    /// Size of the volume, such as 10Gi; a larger disk is refused [default: the disk's]
    #[arg(long, value_name = "QTY")]
    pub(crate) size: Option<ByteSize>,
    /// Refuse images whose virtual size is larger, and archives that hold more
    #[arg(long, value_name = "QTY")]
    pub(crate) max_size: Option<ByteSize>,
    /// How the volume is stored: raw, qcow2 or qcow2-zstd
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub(crate) output_format: OutputFormat,
    /// Take all of the volume's space at once, and keep it
    #[arg(long)]
    pub(crate) preallocation: bool,
    /// Give up after this time, such as 90s or 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// How long a client may send nothing, such as 30s [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) stall_timeout: Option<Duration>,
    /// Go on answering after the upload is complete
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print events and the report as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) claim: ClaimArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SeedCommand {
    /// Write a seed image for NoCloud or ConfigDrive
    Build(Box<SeedBuildArgs>),
    /// Show what is on a seed, whoever made it
    Show(SeedShowArgs),
    /// Show what a guest would see differently on two seeds
    Diff(SeedDiffArgs),
    /// Show what is wrong with user-data and other files of a seed before a guest boots from them
    Lint(SeedLintArgs),
}

/// The same input makes the same bytes; all files in it have the time `$SOURCE_DATE_EPOCH`, or 1970.
#[derive(Debug, Args)]
pub(crate) struct SeedBuildArgs {
    /// File to write; an existing seed is replaced
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// File system of the seed: iso or fat
    #[arg(long, default_value = "iso")]
    pub(crate) format: ImageFormat,
    /// cloud-init's datasource that reads it: nocloud or configdrive
    #[arg(long, default_value = "nocloud", alias = "cloud-init")]
    pub(crate) datasource: Datasource,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) users: UserArgs,
    #[command(flatten)]
    pub(crate) seed: SeedArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) disks: DiskArgs,
    /// Seed image, attached read-only behind the disks; the flags below make one in its place
    #[arg(long, value_name = "FILE")]
    pub(crate) seed: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hardware: HardwareArgs,
    #[command(flatten)]
    pub(crate) networks: NetworkArgs,
    #[command(flatten)]
    pub(crate) services: ServiceArgs,
    /// Machine to run on: auto, kvm or qemu
    #[arg(long, default_value = "auto")]
    pub(crate) engine: EngineChoice,
    /// When the guest is started again: Once, Manual, RerunOnFailure, Always, Halted
    #[arg(long, default_value = "Once", value_name = "STRATEGY")]
    pub(crate) run_strategy: RunStrategy,
    #[command(flatten)]
    pub(crate) boot: BootArgs,
    /// Kill a run of the guest that takes longer, such as 90s or 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) control: ControlArgs,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    #[command(flatten)]
    pub(crate) transfer: SourceArgs,
    #[command(flatten)]
    pub(crate) seed_args: SeedArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `supervise`'s KVM engine passes; not for people.
#[derive(Debug, Parser)]
#[command(name = "bootyard machine")]
pub(crate) struct MachineArgs {
    #[arg(long)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) hardware: HardwareArgs,
    /// PATH, or PATH:ro.
    #[arg(long = "disk")]
    pub(crate) disks: Vec<String>,
    /// INDEX:PATH, for the disk of that number, counted from 0, which is an overlay.
    #[arg(long = "backing")]
    pub(crate) backings: Vec<String>,
    /// INDEX:OPTIONS, for the disk of that number: how it is attached.
    #[arg(long = "attach")]
    pub(crate) attachments: Vec<String>,
    #[command(flatten)]
    pub(crate) boot: BootArgs,
    #[arg(long = "net")]
    pub(crate) networks: Vec<VmNetwork>,
    #[command(flatten)]
    pub(crate) services: ServiceArgs,
    /// `terminate`: the guest's wish to restart ends the machine.
    #[arg(long)]
    pub(crate) reboot: Option<String>,
    /// The processors wait until they are resumed.
    #[arg(long)]
    pub(crate) paused: bool,
    /// Descriptor of the socket to the supervisor.
    #[arg(long)]
    pub(crate) link: Option<i32>,
    /// Descriptor whose end of file means that the parent is gone.
    #[arg(long)]
    pub(crate) lifeline: Option<i32>,
}

/// A year: whoever means more means for ever.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A number with `s`, `m` or `h`; seconds without.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "h" => 3600,
        "m" => 60,
        _ => 1,
    };
    u64::from_str(number)
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .map(Duration::from_secs)
        .filter(|duration| !duration.is_zero() && *duration <= DURATION_MAX)
        .ok_or_else(|| format!("expected a duration such as 90s, 10m or 2h, got `{text}`"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "0", "-1", "1d", "1.5h", "9000h", "99999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
