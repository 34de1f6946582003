//! Files in a folder.
//!
//! ```text
//! FOLDER/NAME/disk.raw                 a published disk, stored raw
//! FOLDER/NAME/disk.qcow2               or as qcow2; never both
//! FOLDER/NAME/.disk.bootyard-part      a disk that is being written, under its writer's lock
//! FOLDER/NAME/.disk.bootyard-journal   how far it is
//! ```
//! A folder without a disk is no volume. Names cannot begin with a period, so that whatever else is
//! kept in the folder has names of its own.

use std::io;
use std::path::{Path, PathBuf};

use bootyard_spec::{OutputFormat, VolumeName};

use super::{Driver, Found};
use crate::part::{LeftOver, Names};
use crate::store::access::Hold;
use crate::{Error, ErrorKind, Staged, fsops};

/// What the names of disks tell apart. Whether clusters are compressed is not told.
const FORMATS: [OutputFormat; 2] = [OutputFormat::Raw, OutputFormat::Qcow2];

#[derive(Debug)]
pub(super) struct Directory {
    folder: PathBuf,
}

impl Directory {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn found(&self, name: VolumeName) -> Found {
        let stored = |format: &OutputFormat| self.disk(&name, *format).is_file();
        let format = FORMATS.into_iter().find(stored);
        let path = self.disk(&name, format.unwrap_or(OutputFormat::Raw));
        Found { name, path, format }
    }

    fn disk(&self, name: &VolumeName, format: OutputFormat) -> PathBuf {
        self.folder.join(name.as_str()).join(format!("disk.{}", format.extension()))
    }
}

/// The names around a disk.
fn names(place: &Path) -> Names {
    let rivals = FORMATS.map(|format| place.with_extension(format.extension()));
    Names::of_volume(place.to_owned(), rivals.to_vec())
}

impl Driver for Directory {
    fn places(
        &self,
        name: &VolumeName,
        format: OutputFormat,
        _size: Option<u64>,
    ) -> Result<Vec<PathBuf>, Error> {
        Ok(vec![self.disk(name, format)])
    }

    fn make(&self, place: &Path, _size: Option<u64>) -> Result<Staged, Error> {
        Staged::claim_file(place.to_owned(), names(place))
    }

    /// A folder has one part file, whatever the format.
    fn is_one(&self, begun: &Path, place: &Path) -> bool {
        begun.parent() == place.parent()
    }

    /// A disk gets its final name when it is complete.
    fn is_published(&self, place: &Path) -> bool {
        place.is_file()
    }

    fn attach(&self, place: &Path) -> Result<PathBuf, Error> {
        Ok(place.to_owned())
    }

    fn grow(&self, place: &Path, size: u64, _unused: Option<u64>) -> Result<(), Error> {
        fsops::grow_file(place, size)
    }

    fn remove(
        &self,
        place: &Path,
        held: Option<Hold>,
        is_ours: &dyn Fn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let failed =
            |error| Error::io(error, place, format!("cannot remove `{}`", place.display()));
        // What we do not hold may be a new disk of somebody else's.
        if held.is_some() && is_ours()? {
            fs_err::remove_file(place).map_err(failed)?;
        }
        drop(held);
        if !place.parent().is_some_and(Path::is_dir) {
            return Ok(());
        }
        // Takes with it what was begun there, and the folder.
        match Staged::claim_file(place.to_owned(), names(place)) {
            Err(error) if error.kind() != ErrorKind::Exists => Err(error),
            _ => Ok(()),
        }
    }

    fn left(&self, place: &Path) -> LeftOver {
        names(place).left()
    }

    fn sweep(&self, place: &Path) -> bool {
        names(place).sweep()
    }

    fn list(&self) -> Result<Vec<Found>, Error> {
        let failed = |error| Error::io(error, &self.folder, "cannot list the volumes");
        let entries = match fs_err::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_dir() {
                continue;
            }
            let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
            found.extend(name.map(|name| self.found(name)));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}
