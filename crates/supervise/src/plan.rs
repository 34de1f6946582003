//! What one launch of a machine needs, as plain data that every engine understands.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bootyard_spec::{ByteSize, VmDisk, VmSpec};

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
    /// The launch that `spec` asks for; `format` tells how a disk is stored.
    pub fn of<E>(
        spec: &VmSpec,
        mut format: impl FnMut(&VmDisk) -> Result<DiskFormat, E>,
    ) -> Result<Self, E> {
        let disk = |disk: &VmDisk| {
            let (path, read_only) = (disk.path.clone(), disk.read_only);
            Ok(PlanDisk { path, read_only, format: format(disk)? })
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

#[cfg(test)]
mod tests {
    use bootyard_spec::{EngineChoice, RunStrategy};

    use super::*;

    #[test]
    fn a_plan_has_what_the_specification_says() {
        let disk = |path: &str, read_only| VmDisk { path: path.into(), read_only };
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
        let by_name = |disk: &VmDisk| match disk.path.extension() {
            Some(_) => Ok(DiskFormat::Qcow2),
            None if disk.read_only => Ok(DiskFormat::Raw),
            None => Err("no such disk"),
        };
        let plan = LaunchPlan::of(&spec, by_name).unwrap();
        let formats: Vec<_> = plan.disks.iter().map(|disk| (disk.read_only, disk.format)).collect();
        assert_eq!(formats, [(false, DiskFormat::Qcow2), (true, DiskFormat::Raw)]);
        let spec = VmSpec { disks: vec![disk("/b", false)], ..spec };
        assert_eq!(LaunchPlan::of(&spec, by_name), Err("no such disk"));
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
            let disk = PlanDisk { path: path.into(), read_only, format: DiskFormat::Raw };
            let argument = disk_argument(&disk);
            assert_eq!(argument, expected);
            assert_eq!(parse_disk_argument(argument), (disk.path, read_only));
        }
    }
}
