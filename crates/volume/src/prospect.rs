//! A target as it is before it is claimed: what claiming it would say, without touching it.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use bootyard_spec::VolumeName;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::device::Device;
use crate::part::Names;
use crate::{Error, Store};

/// A target that could be claimed just now. A block device stays opened for this process alone as long
/// as this lives; of a file or volume nobody is kept away.
#[derive(Debug)]
pub struct Prospect(Option<Device>);

impl Prospect {
    /// Fails as [`Staged::for_path`](crate::Staged::for_path) would, but for another import that is
    /// running into the same file.
    pub fn of_path(path: &Path) -> Result<Self, Error> {
        match fs_err::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => {
                Ok(Self(Some(Device::claim(path)?)))
            }
            Ok(found) if found.is_dir() => Err(Error::is_folder(path)),
            _ => {
                let names = Names::of_file(path)?;
                names.refuse_taken()?;
                match accessat(CWD, names.folder(), Access::WRITE_OK, AtFlags::EACCESS) {
                    // Anything else may be the check's own failure.
                    Err(error @ (rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS)) => {
                        Err(Error::io(io::Error::from(error), path, "cannot create the disk"))
                    }
                    _ => Ok(Self(None)),
                }
            }
        }
    }

    /// Fails if there is a volume of this name.
    pub fn of_volume(store: &Store, name: &VolumeName) -> Result<Self, Error> {
        match store.get(name) {
            Ok(volume) => Err(Error::volume_exists(name, &volume.path)),
            Err(_) => Ok(Self(None)),
        }
    }

    /// The size of a block device, in bytes; `None` for a file.
    pub fn capacity(&self) -> Option<u64> {
        self.0.as_ref().map(Device::capacity)
    }

    /// Fails if the target cannot have `size` bytes.
    pub fn fits(&self, size: u64) -> Result<(), Error> {
        self.0.as_ref().map_or(Ok(()), |device| device.fits(size))
    }
}
