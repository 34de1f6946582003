//! What one launch of a machine needs, as plain data that every engine understands.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bootyard_spec::{
    BootSpec, ByteSize, CpuModel, CpuTopology, DiskAttachment, DiskLife, Firmware, GuestServices,
    HugePageSize, RebootPolicy, VmDisk, VmNetwork, VmSpec,
};

/// How a disk is stored; found out by the caller, never guessed by an engine from what a guest
/// wrote into its first sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The guest's bytes as they are.
    Raw,
    /// A qcow2 file.
    Qcow2,
}

/// What a guest does with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskUsage {
    /// It reads.
    Read,
    /// It alone writes and reads.
    Write,
    /// It writes, as other machines do.
    Share,
}

/// One disk of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanDisk {
    /// The file or block device.
    pub path: PathBuf,
    /// What the guest does with it.
    pub usage: DiskUsage,
    /// How it is stored.
    pub format: DiskFormat,
    /// The disk that it is an overlay over. Whatever name stands in the image counts for nothing.
    pub backing: Option<PlanBacking>,
    /// How the guest sees it.
    pub attachment: DiskAttachment,
}

/// A disk under an overlay, which is only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanBacking {
    /// The file or block device.
    pub path: PathBuf,
    /// How it is stored.
    pub format: DiskFormat,
}

/// One launch of a machine. Its first serial port is the child's standard input and output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The name in messages and in the process list.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: CpuTopology,
    /// What they can do.
    pub cpu_model: CpuModel,
    /// Guest memory.
    pub memory: ByteSize,
    /// Takes the memory from the host's pool of huge pages of this size.
    pub huge_pages: Option<HugePageSize>,
    /// Who the machine says it is.
    pub firmware: Firmware,
    /// Confines the machine's process.
    pub sandbox: bool,
    /// The disks in the order in which the guest sees them. The first one is booted.
    pub disks: Vec<PlanDisk>,
    /// The network interfaces in the order in which the guest sees them.
    pub networks: Vec<VmNetwork>,
    /// What else there is between guest and host.
    pub services: GuestServices,
    /// What it starts.
    pub boot: BootSpec,
    /// What a guest's wish to restart does.
    pub reboot_policy: RebootPolicy,
    /// The machine stands still until it is resumed.
    pub start_paused: bool,
}

impl LaunchPlan {
    /// The launch that `spec` asks for; `format` tells how a file or block device is stored.
    pub fn of<E>(
        spec: &VmSpec,
        mut format: impl FnMut(&Path) -> Result<DiskFormat, E>,
    ) -> Result<Self, E> {
        let disk = |disk: &VmDisk| {
            let path = disk.path.clone();
            let usage = match disk.life {
                _ if disk.read_only => DiskUsage::Read,
                DiskLife::Shared => DiskUsage::Share,
                _ => DiskUsage::Write,
            };
            let backing = match &disk.life {
                DiskLife::Overlay(path) => {
                    Some(PlanBacking { path: path.clone(), format: format(path)? })
                }
                DiskLife::Kept | DiskLife::Shared | DiskLife::Empty => None,
            };
            let attachment = disk.attachment.clone();
            Ok(PlanDisk { format: format(&path)?, path, usage, backing, attachment })
        };
        Ok(Self {
            name: spec.name.clone(),
            cpus: spec.cpus,
            cpu_model: spec.cpu_model,
            memory: spec.memory,
            huge_pages: spec.huge_pages,
            firmware: spec.firmware.clone(),
            sandbox: spec.sandbox,
            disks: spec.disks.iter().map(disk).collect::<Result<_, E>>()?,
            networks: spec.networks.clone(),
            services: spec.services.clone(),
            boot: spec.boot.clone(),
            reboot_policy: spec.reboot_policy,
            start_paused: spec.start_paused,
        })
    }
}

/// What stands behind the path of a disk that is not the guest's alone, or whose path ends like that.
const USAGES: [(&str, DiskUsage); 3] =
    [(":ro", DiskUsage::Read), (":rw", DiskUsage::Write), (":shared", DiskUsage::Share)];

/// A disk as the `machine` subcommand takes it: `PATH`, `PATH:ro` or `PATH:shared`. A disk of one
/// writer whose path itself ends like that gets a `:rw` behind it. [`parse_disk_argument`] reads it
/// back.
pub(crate) fn disk_argument(disk: &PlanDisk) -> OsString {
    let mut argument = disk.path.clone().into_os_string();
    let ends = |(end, _): &(&str, DiskUsage)| argument.as_bytes().ends_with(end.as_bytes());
    if disk.usage != DiskUsage::Write || USAGES.iter().any(ends) {
        let end = USAGES.iter().find(|(_, usage)| *usage == disk.usage);
        argument.push(end.map_or("", |(end, _)| end));
    }
    argument
}

/// The path of a `--disk` argument of the `machine` subcommand, and what the guest does with it.
pub fn parse_disk_argument(argument: impl AsRef<Path>) -> (PathBuf, DiskUsage) {
    let bytes = argument.as_ref().as_os_str().as_bytes();
    let named = USAGES
        .iter()
        .find_map(|(end, usage)| bytes.strip_suffix(end.as_bytes()).map(|path| (path, *usage)));
    let (path, usage) = named.unwrap_or((bytes, DiskUsage::Write));
    (OsString::from_vec(path.to_vec()).into(), usage)
}

/// The backing disk of the disk number `index` as the `machine` subcommand takes it: `INDEX:PATH`.
/// [`parse_backing_argument`] reads it back.
pub(crate) fn backing_argument(index: usize, backing: &PlanBacking) -> OsString {
    let mut argument = OsString::from(format!("{index}:"));
    argument.push(&backing.path);
    argument
}

/// The number of the disk, and the path of its backing disk, of a `--backing` argument of the `machine`
/// subcommand.
pub fn parse_backing_argument(argument: &str) -> Option<(usize, PathBuf)> {
    let (index, path) = argument.split_once(':')?;
    Some((index.parse().ok()?, path.into()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use bootyard_spec::{EngineChoice, RunStrategy, Uuid};

    use super::*;

    #[test]
    fn a_plan_has_what_the_specification_says() {
        let disk = |path: &str, read_only| VmDisk {
            path: path.into(),
            read_only,
            life: DiskLife::Kept,
            attachment: DiskAttachment::default(),
        };
        let spec = VmSpec {
            name: "vm".to_owned(),
            cpus: CpuTopology::of_cores(NonZeroU32::MIN),
            cpu_model: CpuModel::Host,
            memory: ByteSize::from_mib(256),
            huge_pages: None,
            firmware: Firmware { uuid: Uuid::from_bytes([7; 16]), texts: Vec::new() },
            sandbox: true,
            disks: vec![disk("/a.qcow2", false), disk("/seed", true)],
            networks: Vec::new(),
            services: GuestServices::default(),
            boot: BootSpec::default(),
            reboot_policy: RebootPolicy::Terminate,
            start_paused: true,
            engine: EngineChoice::Auto,
            run_strategy: RunStrategy::Once,
            time_limit: None,
        };
        let by_name = |path: &Path| match path.extension() {
            Some(_) => Ok(DiskFormat::Qcow2),
            None if path != Path::new("/b") => Ok(DiskFormat::Raw),
            None => Err("no such disk"),
        };
        let plan = LaunchPlan::of(&spec, by_name).unwrap();
        let formats: Vec<_> = plan.disks.iter().map(|disk| (disk.usage, disk.format)).collect();
        assert_eq!(
            formats,
            [(DiskUsage::Write, DiskFormat::Qcow2), (DiskUsage::Read, DiskFormat::Raw)]
        );
        let spec = VmSpec { disks: vec![disk("/b", false)], ..spec };
        assert_eq!(LaunchPlan::of(&spec, by_name), Err("no such disk"));
        let life = DiskLife::Overlay("/base".into());
        let overlay = VmDisk { life, ..disk("/o.qcow2", false) };
        let plan = LaunchPlan::of(&VmSpec { disks: vec![overlay], ..spec }, by_name).unwrap();
        let backing = PlanBacking { path: "/base".into(), format: DiskFormat::Raw };
        assert_eq!(plan.disks[0].backing, Some(backing));
    }

    #[test]
    fn disk_arguments_parse_back() {
        use DiskUsage::{Read, Share, Write};
        for (path, usage, expected) in [
            ("/a", Write, "/a"),
            ("/a", Read, "/a:ro"),
            ("/a", Share, "/a:shared"),
            ("/a:ro", Write, "/a:ro:rw"),
            ("/a:ro", Read, "/a:ro:ro"),
            ("/a:rw", Write, "/a:rw:rw"),
            ("/a:shared", Write, "/a:shared:rw"),
            ("a:b", Write, "a:b"),
        ] {
            let (path, format) = (path.into(), DiskFormat::Raw);
            let attachment = DiskAttachment::default();
            let disk = PlanDisk { path, usage, format, backing: None, attachment };
            let argument = disk_argument(&disk);
            assert_eq!(argument, expected);
            assert_eq!(parse_disk_argument(argument), (disk.path, usage));
        }
    }

    #[test]
    fn backing_arguments_parse_back() {
        for path in ["/a", "/a:b", "3:/a", "a"] {
            let backing = PlanBacking { path: path.into(), format: DiskFormat::Raw };
            let argument = backing_argument(12, &backing).into_string().unwrap();
            assert_eq!(parse_backing_argument(&argument), Some((12, path.into())));
        }
        assert_eq!(parse_backing_argument("/a:b"), None);
    }
}
