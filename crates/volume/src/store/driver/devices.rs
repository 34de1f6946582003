//! A given set of block devices, one for each volume. A device may be larger than its volume.
//!
//! A device has no name of its own that says whether its disk is complete: the database does.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bootyard_spec::{ByteSize, OutputFormat, VolumeName};

use super::{Driver, Found, only_raw};
use crate::part::LeftOver;
use crate::store::access::Hold;
use crate::{Error, ErrorKind, Staged, fsops};

/// How much at either end of a device is cleared, so that nobody takes it for the disk that was
/// there: partition tables and their backups are in it.
const CLEARED: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Devices {
    devices: Vec<PathBuf>,
}

impl Devices {
    pub(super) const fn new(devices: Vec<PathBuf>) -> Self {
        Self { devices }
    }
}

/// The size of a block device, in bytes. Refuses everything else: in a file of that name, left where a
/// device was, a disk would be lost.
pub(super) fn capacity(path: &Path) -> Result<u64, Error> {
    let measure = || {
        let mut file = fs_err::File::open(path)?.into_file();
        let is_device = file.metadata()?.file_type().is_block_device();
        is_device.then(|| file.seek(SeekFrom::End(0))).transpose()
    };
    let capacity = measure().map_err(|error| {
        Error::io(error, path, format!("cannot open the block device `{}`", path.display()))
    })?;
    capacity.ok_or_else(|| {
        let what = format!("`{}` is no block device", path.display());
        Error::new(ErrorKind::Unsupported, path, what).with_hint(
            "see the devices with `lsblk -p`, and the class with `bootyard storage-class ls`",
        )
    })
}

/// Refuses a disk that is larger than its device.
pub(super) fn refuse_larger(place: &Path, size: u64) -> Result<(), Error> {
    let capacity = capacity(place)?;
    if size <= capacity {
        return Ok(());
    }
    let what = format!(
        "block device `{}` has {}, less than {}",
        place.display(),
        ByteSize::from_bytes(capacity),
        ByteSize::from_bytes(size)
    );
    Err(Error::new(ErrorKind::TooSmall, place, what)
        .with_hint("make a volume on a larger device: `bootyard import volume:NAME --name NEW`"))
}

/// Clears both ends of a device.
fn clear(mut device: &File) -> io::Result<()> {
    let end = device.seek(SeekFrom::End(0))?;
    fsops::zero(device, 0, end.min(CLEARED))?;
    fsops::zero(device, end.saturating_sub(CLEARED), end.min(CLEARED))?;
    device.sync_all()
}

impl Driver for Devices {
    /// The smallest device that is large enough, or the largest one where the size is not known. One
    /// that is not there, or cannot be opened, is left out.
    fn places(
        &self,
        _name: &VolumeName,
        format: OutputFormat,
        size: Option<u64>,
    ) -> Result<Vec<PathBuf>, Error> {
        only_raw(format, "a block device")?;
        let mut fitting = Vec::new();
        let mut failure = None;
        for device in &self.devices {
            match capacity(device) {
                Ok(capacity) if capacity >= size.unwrap_or(1) => fitting.push((capacity, device)),
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        fitting.sort();
        if size.is_none() {
            fitting.reverse();
        }
        match failure {
            Some(error) if fitting.is_empty() => Err(error),
            _ => Ok(fitting.into_iter().map(|(_, device)| device.clone()).collect()),
        }
    }

    fn make(&self, place: &Path, _size: Option<u64>) -> Result<Staged, Error> {
        Staged::claim_device(place)
    }

    fn is_published(&self, _place: &Path) -> bool {
        false
    }

    fn attach(&self, place: &Path) -> Result<PathBuf, Error> {
        capacity(place)?;
        Ok(place.to_owned())
    }

    /// All of the device is cleared, since a machine sees all of it.
    fn grow(&self, place: &Path, size: u64, unused: Option<u64>) -> Result<(), Error> {
        refuse_larger(place, size)?;
        let (Some(from), end) = (unused, capacity(place)?) else { return Ok(()) };
        let clear = || {
            let device = fs_err::OpenOptions::new().write(true).open(place)?;
            fsops::zero(device.file(), from, end.saturating_sub(from))?;
            device.sync_all()
        };
        clear()
            .map_err(|error| Error::io(error, place, format!("cannot clear `{}`", place.display())))
    }

    /// A device that is not there any more has nothing to clear.
    fn remove(
        &self,
        place: &Path,
        held: Option<Hold>,
        is_ours: &dyn Fn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if held.is_none() && !place.exists() {
            return Ok(());
        }
        let failed = |error| Error::io(error, place, format!("cannot clear `{}`", place.display()));
        capacity(place)?;
        // The claim takes the same lock; whoever is quicker is told by `is_ours`.
        drop(held);
        let device = Staged::claim_device(place)?;
        if !is_ours()? {
            return Ok(());
        }
        device.with_device(clear).map_err(failed)
    }

    /// What is on a device only the database knows; whoever writes has it for itself.
    fn left(&self, place: &Path) -> LeftOver {
        match Staged::claim_device(place) {
            Err(error) if error.kind() == ErrorKind::InUse => LeftOver::Busy,
            _ => LeftOver::Useless,
        }
    }

    fn list(&self) -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }
}
