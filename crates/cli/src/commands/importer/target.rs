//! Where the disk goes and how large it may be, by CDI's arithmetic.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bootyard_spec::ByteSize;

use super::Refused;
use super::environment::{Content, Job, Paths};

/// The file in a volume with a file system.
pub(super) const DISK: &str = "disk.img";
const FOLDER: &str = "/data";

/// The volume, if it is a block device.
const DEVICE: &str = "/dev/cdi-block-volume";

/// KubeVirt's QEMU is in the file's group.
const MODE: u32 = 0o660;

/// A volume of the pod.
#[derive(Debug)]
pub(super) struct Place {
    /// The file, the device, or for an archive the folder.
    pub(super) path: PathBuf,
    /// The largest disk that fits; `None` for a block device, which knows by itself.
    pub(super) limit: Option<ByteSize>,
    /// The size that the disk grows to.
    pub(super) size: Option<ByteSize>,
    pub(super) is_file: bool,
}

impl Place {
    /// Finds the volume. What another importer has left as the whole disk is removed, as CDI does;
    /// a part of it that can be gone on with stays.
    pub(super) fn prepare(paths: &Paths, job: &Job) -> Result<Self, Refused> {
        let device = paths.at(DEVICE);
        let is_archive = job.content == Content::Archive;
        if is_archive && device.exists() {
            return Err(Refused::new("an archive needs a volume with a file system"));
        }
        if fs_err::metadata(&device).is_ok_and(|found| found.file_type().is_block_device()) {
            return Ok(Self { path: device, limit: None, size: None, is_file: false });
        }
        let folder = paths.at(FOLDER);
        let path = if is_archive { folder.clone() } else { folder.join(DISK) };
        if is_archive {
            empty(&folder)?;
        } else if fs_err::symlink_metadata(&path).is_ok() {
            fs_err::remove_file(&path).map_err(Refused::from_error)?;
        }
        let available = available(&folder)?;
        let limit = job.image_size.map_or(available, |size| size.min(available));
        let usable = limit.without_filesystem_overhead(job.overhead);
        let size = match (job.image_size, &job.source) {
            (Some(size), _) => Some(size.min(usable)),
            (None, None) => Some(usable),
            (None, Some(_)) => None,
        };
        Ok(Self { path, limit: Some(limit), size, is_file: !is_archive })
    }

    /// Lets QEMU's group at the disk.
    pub(super) fn hand_over(&self) -> Result<(), Refused> {
        if !self.is_file {
            return Ok(());
        }
        let mode = std::fs::Permissions::from_mode(MODE);
        fs_err::set_permissions(&self.path, mode).map_err(Refused::from_error)
    }
}

/// Removes what an attempt before this one has left, but for what `mkfs` has made.
fn empty(folder: &Path) -> Result<(), Refused> {
    for entry in fs_err::read_dir(folder).map_err(Refused::from_error)? {
        let entry = entry.map_err(Refused::from_error)?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = match is_folder {
            true if entry.file_name() == "lost+found" => Ok(()),
            true => fs_err::remove_dir_all(entry.path()),
            false => fs_err::remove_file(entry.path()),
        };
        removed.map_err(Refused::from_error)?;
    }
    Ok(())
}

/// The space for a disk: what is free, and what an attempt before this one holds of it.
fn available(folder: &Path) -> Result<ByteSize, Refused> {
    let found = rustix::fs::statvfs(folder)
        .map_err(|error| Refused::new(format!("cannot measure `{}`: {error}", folder.display())))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let mut held = 0;
    for entry in fs_err::read_dir(folder).map_err(Refused::from_error)? {
        let entry = entry.map_err(Refused::from_error)?;
        if entry.file_name().to_string_lossy().starts_with(&format!(".{DISK}.")) {
            held += entry.metadata().map_or(0, |found| found.blocks() * 512);
        }
    }
    Ok(ByteSize::from_bytes(free.saturating_add(held)))
}
