//! The store: volumes by name.
//!
//! ```text
//! HOME/volumes/NAME/disk.raw                 a published volume, stored raw
//! HOME/volumes/NAME/disk.qcow2               or as qcow2; never both
//! HOME/volumes/NAME/.disk.bootyard-part      a disk that is being written; the lock on it is
//!                                            the lock on the name
//! ```
//! A folder without a disk is no volume. Names cannot begin with a period, so that whatever else
//! the store keeps in `HOME` or `HOME/volumes` has names of its own.

use std::io;
use std::path::{Path, PathBuf};

use bootyard_spec::{OutputFormat, VolumeName, shell_word};

use crate::part::Names;
use crate::{Error, ErrorKind, Staged};

/// What the names of disks tell apart. Whether clusters are compressed is not told.
const FORMATS: [OutputFormat; 2] = [OutputFormat::Raw, OutputFormat::Qcow2];

/// The volumes under one folder. Nothing is made before the first volume is.
#[derive(Debug, Clone)]
pub struct Store {
    volumes: PathBuf,
}

/// A volume of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its disk.
    pub path: PathBuf,
    /// How the disk is stored.
    pub format: OutputFormat,
}

impl Store {
    /// The store in the folder `home`, which need not exist.
    pub fn open(home: &Path) -> Self {
        Self { volumes: home.join("volumes") }
    }

    /// Claims the name of a volume that does not exist yet.
    pub fn stage(&self, name: &VolumeName, format: OutputFormat) -> Result<Staged, Error> {
        if let Ok(volume) = self.get(name) {
            let folder = self.folder(name);
            let hint =
                format!("choose another name, or remove it first: `rm -r {}`", shell_word(folder));
            let what = format!("volume `{name}` exists");
            return Err(Error::new(ErrorKind::Exists, &volume.path, what).with_hint(hint));
        }
        let disk = |format| self.disk(name, format);
        let names = Names::of_volume(disk(format), FORMATS.map(disk).to_vec());
        Staged::claim_file(disk(format), names)
    }

    /// Finds a volume.
    pub fn get(&self, name: &VolumeName) -> Result<Volume, Error> {
        let stored = |format: &OutputFormat| self.disk(name, *format).is_file();
        let Some(format) = FORMATS.into_iter().find(stored) else {
            let what = format!("there is no volume `{name}`");
            let hint = format!("make it: `bootyard import SOURCE --name {name}`");
            return Err(Error::new(ErrorKind::NotFound, &self.folder(name), what).with_hint(hint));
        };
        Ok(Volume { name: name.clone(), path: self.disk(name, format), format })
    }

    /// Every volume, by name.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let failed = |error| Error::io(error, &self.volumes, "cannot list the volumes");
        let entries = match fs_err::read_dir(&self.volumes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(failed)?,
        };
        let mut volumes = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().and_then(|name| name.parse().ok());
            volumes.extend(name.and_then(|name| self.get(&name).ok()));
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    fn folder(&self, name: &VolumeName) -> PathBuf {
        self.volumes.join(name.as_str())
    }

    fn disk(&self, name: &VolumeName, format: OutputFormat) -> PathBuf {
        self.folder(name).join(format!("disk.{}", format.extension()))
    }
}
