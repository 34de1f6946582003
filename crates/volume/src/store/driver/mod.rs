//! Where the volumes of a class are: the few things that every kind of space can do.
//!
//! A driver knows places, which are paths, and nothing of names in the database. It holds no state:
//! what it needs to know is in the class.

use std::path::{Path, PathBuf};

use bootyard_spec::{OutputFormat, StorageDriver, VolumeName};

use self::devices::Devices;
use self::directory::Directory;
use self::looped::Loop;
use self::lvm::LvmThin;
use crate::part::LeftOver;
use crate::store::access::Hold;
use crate::{Error, ErrorKind, Staged};

mod command;
mod devices;
mod directory;
mod looped;
mod lvm;

/// One kind of space.
pub(super) trait Driver: std::fmt::Debug {
    /// Where a new volume of `size` bytes could be, the best place first; the size may not be known
    /// yet.
    fn places(
        &self,
        name: &VolumeName,
        format: OutputFormat,
        size: Option<u64>,
    ) -> Result<Vec<PathBuf>, Error>;

    /// Makes the space, and claims it for a disk that is written. Fails with
    /// [`ErrorKind::InUse`] where another process has it.
    fn make(&self, place: &Path, size: Option<u64>) -> Result<Staged, Error>;

    /// Whether what was begun for one path is gone on with for the other.
    fn is_one(&self, begun: &Path, place: &Path) -> bool {
        begun == place
    }

    /// Whether what stands at the place is complete because it stands there.
    fn is_published(&self, place: &Path) -> bool;

    /// The path by which a machine uses the place; makes it where it is not there yet.
    fn attach(&self, place: &Path) -> Result<PathBuf, Error>;

    /// The path by which a machine uses the place now.
    fn attached(&self, place: &Path) -> PathBuf {
        place.to_owned()
    }

    /// Makes room for a disk of `size` bytes where there was less. The disk is held by the caller. What
    /// lies behind byte `unused`, if that is known, is nobody's, and reads as zeros from now on.
    fn grow(&self, place: &Path, size: u64, unused: Option<u64>) -> Result<(), Error>;

    /// Removes a disk, which the caller holds, or what is left of it where it does not. Whether the
    /// place is still that of the disk says `is_ours`, which is asked when nobody else can have it.
    fn remove(
        &self,
        place: &Path,
        held: Option<Hold>,
        is_ours: &dyn Fn() -> Result<bool, Error>,
    ) -> Result<(), Error>;

    /// What another process has left in a place, or is still writing there.
    fn left(&self, place: &Path) -> LeftOver;

    /// Removes what a dead process has left beside a published disk; says whether there was anything.
    fn sweep(&self, _place: &Path) -> bool {
        false
    }

    /// Every place where a disk stands or was begun, by name.
    fn list(&self) -> Result<Vec<Found>, Error>;
}

/// A place where something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: VolumeName,
    /// The disk's path, which it may not have yet.
    pub(super) path: PathBuf,
    /// The format of a disk under its final name; nothing else is one.
    pub(super) format: Option<OutputFormat>,
}

/// The driver of a class, in the store at `home`.
pub(super) fn of(driver: &StorageDriver, home: &Path) -> Box<dyn Driver> {
    match driver {
        StorageDriver::Directory(folder) => Box::new(Directory::new(home.join(folder))),
        StorageDriver::Devices(devices) => Box::new(Devices::new(devices.clone())),
        StorageDriver::Loop { folder, sector_size } => {
            Box::new(Loop::new(home.join(folder), *sector_size))
        }
        StorageDriver::LvmThin { group, pool } => Box::new(LvmThin::new(group, pool)),
    }
}

fn only_raw(format: OutputFormat, what: &str) -> Result<(), Error> {
    if format == OutputFormat::Raw {
        return Ok(());
    }
    let what = format!("{what} holds a raw disk only, not {}", format.name());
    Err(Error::new(ErrorKind::Unsupported, Path::new(""), what)
        .with_hint("leave out `--output-format`, or name another `--storage-class`"))
}
