//! What one launch of a machine needs, as plain data that every engine understands.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bootyard_spec::{ByteSize, DiskLife, VmDisk, VmSpec};

/// How a disk is stored; found out by the caller, never guessed by an engine from what a guest
/// wrote into its first sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The guest's bytes as they are.
    Raw,
    /// A qcow2 file.
    Qcow2,
}

/// One disk of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanDisk {
    /// The file or block device.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub read_only: bool,
    /// How it is stored.
    pub format: DiskFormat,
    /// The disk that it is an overlay over. Whatever name stands in the image counts for nothing.
    pub backing: Option<PlanBacking>,
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
    pub cpus: NonZeroU32,
    /// Guest memory.
    pub memory: ByteSize,
    /// The disks in the order in which the guest sees them. The first one is booted.
    pub disks: Vec<PlanDisk>,
    /// Text for the end of the kernel command line.
    pub append: Option<String>,
}

impl LaunchPlan {
    /// The launch that `spec` asks for; `format` tells how a file or block device is stored.
    pub fn of<E>(
        spec: &VmSpec,
        mut format: impl FnMut(&Path) -> Result<DiskFormat, E>,
    ) -> Result<Self, E> {
        let disk = |disk: &VmDisk| {
            let (path, read_only) = (disk.path.clone(), disk.read_only);
            let backing = match &disk.life {
                DiskLife::Overlay(path) => {
                    Some(PlanBacking { path: path.clone(), format: format(path)? })
                }
                DiskLife::Kept | DiskLife::Empty => None,
            };
            Ok(PlanDisk { format: format(&path)?, path, read_only, backing })
        };
        Ok(Self {
            name: spec.name.clone(),
            cpus: spec.cpus,
            memory: spec.memory,
            disks: spec.disks.iter().map(disk).collect::<Result<_, E>>()?,
            append: spec.append.clone(),
        })
    }
}

/// A disk as the `machine` subcommand takes it: `PATH`, or `PATH:ro`. A writable disk whose path
/// itself ends like that gets a `:rw` behind it. [`parse_disk_argument`] reads it back.
pub(crate) fn disk_argument(disk: &PlanDisk) -> OsString {
    let mut argument = disk.path.clone().into_os_string();
    let ambiguous = [&b":ro"[..], b":rw"].iter().any(|end| argument.as_bytes().ends_with(end));
    match (disk.read_only, ambiguous) {
        (true, _) => argument.push(":ro"),
        (false, true) => argument.push(":rw"),
        (false, false) => {}
    }
    argument
}

/// The path of a `--disk` argument of the `machine` subcommand, and whether it is read-only.
pub fn parse_disk_argument(argument: impl AsRef<Path>) -> (PathBuf, bool) {
    let bytes = argument.as_ref().as_os_str().as_bytes();
    let (path, read_only) = match bytes.strip_suffix(b":ro") {
        Some(path) => (path, true),
        None => (bytes.strip_suffix(b":rw").unwrap_or(bytes), false),
    };
    (OsString::from_vec(path.to_vec()).into(), read_only)
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
    use bootyard_spec::{EngineChoice, RunStrategy};

    use super::*;

    #[test]
    fn a_plan_has_what_the_specification_says() {
        let disk =
            |path: &str, read_only| VmDisk { path: path.into(), read_only, life: DiskLife::Kept };
        let spec = VmSpec {
            name: "vm".to_owned(),
            cpus: NonZeroU32::MIN,
            memory: ByteSize::from_mib(256),
            disks: vec![disk("/a.qcow2", false), disk("/seed", true)],
            append: Some("quiet".to_owned()),
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
        let formats: Vec<_> = plan.disks.iter().map(|disk| (disk.read_only, disk.format)).collect();
        assert_eq!(formats, [(false, DiskFormat::Qcow2), (true, DiskFormat::Raw)]);
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
        for (path, read_only, expected) in [
            ("/a", false, "/a"),
            ("/a", true, "/a:ro"),
            ("/a:ro", false, "/a:ro:rw"),
            ("/a:ro", true, "/a:ro:ro"),
            ("/a:rw", false, "/a:rw:rw"),
            ("a:b", false, "a:b"),
        ] {
            let (path, format) = (path.into(), DiskFormat::Raw);
            let disk = PlanDisk { path, read_only, format, backing: None };
            let argument = disk_argument(&disk);
            assert_eq!(argument, expected);
            assert_eq!(parse_disk_argument(argument), (disk.path, read_only));
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
