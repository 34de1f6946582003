//! Files in a folder, attached to loop devices: block volumes without a disk to spare.
//!
//! A disk is written and published as a file. It is attached when somebody wants to use it, and stays
//! so until it is removed or the machine is booted anew.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use bootyard_spec::{OutputFormat, VolumeName};

use super::directory::Directory;
use super::{Driver, Found, command, only_raw};
use crate::part::LeftOver;
use crate::store::access::Hold;
use crate::{Error, Staged, fsops};

/// The block devices of the system (sysfs(5)).
const BLOCK: &str = "/sys/block";

#[derive(Debug)]
pub(super) struct Loop {
    files: Directory,
    sector_size: u32,
}

impl Loop {
    pub(super) const fn new(folder: PathBuf, sector_size: u32) -> Self {
        Self { files: Directory::new(folder), sector_size }
    }
}

/// The loop device to which a file is attached.
fn device_of(file: &Path) -> Option<PathBuf> {
    let file = fs_err::canonicalize(file).ok()?;
    let devices = fs_err::read_dir(BLOCK).ok()?;
    devices.flatten().find_map(|device| {
        let backing = fs_err::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let is_ours = Path::new(backing.trim_end_matches('\n')) == file;
        is_ours.then(|| Path::new("/dev").join(device.file_name()))
    })
}

impl Driver for Loop {
    fn places(
        &self,
        name: &VolumeName,
        format: OutputFormat,
        size: Option<u64>,
    ) -> Result<Vec<PathBuf>, Error> {
        only_raw(format, "a loop device")?;
        self.files.places(name, format, size)
    }

    /// A device has whole sectors only.
    fn make(&self, place: &Path, size: Option<u64>) -> Result<Staged, Error> {
        Ok(self.files.make(place, size)?.aligned_to(self.sector_size.into()))
    }

    fn is_published(&self, place: &Path) -> bool {
        self.files.is_published(place)
    }

    fn attach(&self, place: &Path) -> Result<PathBuf, Error> {
        if let Some(device) = device_of(place) {
            return Ok(device);
        }
        let sector_size = self.sector_size.to_string();
        // Two processes at once get the same device.
        let words = ["--find", "--show", "--nooverlap", "--sector-size", sector_size.as_str()];
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).chain([place.as_os_str()]).collect();
        command::run("losetup", &words, place).map(PathBuf::from)
    }

    fn attached(&self, place: &Path) -> PathBuf {
        device_of(place).unwrap_or_else(|| place.to_owned())
    }

    fn grow(&self, place: &Path, size: u64, _unused: Option<u64>) -> Result<(), Error> {
        fsops::grow_file(place, size.next_multiple_of(self.sector_size.into()))?;
        match device_of(place) {
            Some(device) => {
                let words = [OsStr::new("--set-capacity"), device.as_os_str()];
                command::run("losetup", &words, place).map(drop)
            }
            None => Ok(()),
        }
    }

    fn remove(
        &self,
        place: &Path,
        held: Option<Hold>,
        is_ours: &dyn Fn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if let Some(device) = device_of(place).filter(|_| held.is_some()) {
            let words = [OsStr::new("--detach"), device.as_os_str()];
            command::run("losetup", &words, place)?;
        }
        self.files.remove(place, held, is_ours)
    }

    fn left(&self, place: &Path) -> LeftOver {
        self.files.left(place)
    }

    fn sweep(&self, place: &Path) -> bool {
        self.files.sweep(place)
    }

    fn list(&self) -> Result<Vec<Found>, Error> {
        self.files.list()
    }
}
