//! Who may use a volume at a time, and who has it alone for a moment.
//!
//! The locks are the operating system's and die with their holder: a writer's is exclusive and a
//! reader's is shared, as [`AttachedDisk`] takes them. Where many may write, they share as readers do.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use bootyard_spec::{AccessMode, AccessModes, OutputFormat, VolumeName, shell_word};

use crate::device::in_use;
use crate::{Access, Error, ErrorKind, fsops};

/// How a machine that may write, or not, uses a volume with these modes. Fails where none of them
/// allows it.
pub(super) fn access(
    name: &VolumeName,
    path: &Path,
    modes: &AccessModes,
    format: OutputFormat,
    read_only: bool,
) -> Result<Access, Error> {
    let has = |mode| modes.as_slice().contains(&mode);
    if read_only {
        return Ok(Access::Read);
    }
    // Two machines that change the tables of one qcow2 destroy it.
    if has(AccessMode::ReadWriteMany) && format == OutputFormat::Raw {
        return Ok(Access::WriteShared);
    }
    if has(AccessMode::ReadWriteOnce) || has(AccessMode::ReadWriteMany) {
        return Ok(Access::Write);
    }
    let what = format!("volume `{name}` is for readers only: its access mode is {modes}");
    let hint = format!(
        "attach it read-only, or make a copy to write to: `bootyard import volume:{name} --name NEW`"
    );
    Err(Error::new(ErrorKind::AccessMode, path, what).with_hint(hint))
}

/// A disk that nobody else can attach as long as this lives.
#[derive(Debug)]
pub(super) struct Hold {
    _file: File,
}

impl Hold {
    /// Holds the disk at `path`; nothing if there is none. Fails where it is attached.
    pub(super) fn of(name: &VolumeName, path: &Path) -> Result<Option<Self>, Error> {
        let failed = |error| Error::io(error, path, format!("cannot open `{}`", path.display()));
        // Who mounts a device takes no lock.
        let file = match fsops::open_alone(path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(in_use(path)),
            result => result.map_err(failed)?,
        };
        match fsops::try_lock(&file, false) {
            // Whoever had it before may have removed it, and another may have come.
            Ok(()) => Ok(fsops::leads_to(path, &file).then_some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => {
                let what = format!("volume `{name}` is in use");
                let hint = format!("stop who uses it; see who: `fuser -v {}`", shell_word(path));
                Err(Error::new(ErrorKind::InUse, path, what).with_hint(hint))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}
