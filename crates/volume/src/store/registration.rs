//! What ties a disk that is being written to its row in the database.

use std::path::{Path, PathBuf};

use bootyard_spec::{ByteSize, StorageClass};

use super::db::Db;
use super::{Facts, State};
use crate::Error;

/// The row of a volume that this process prepares. Dropped without being published or kept, it takes
/// the row with it.
#[derive(Debug)]
pub(crate) struct Registration {
    home: PathBuf,
    id: i64,
    /// The class wants all of the space at once.
    pub(crate) preallocation: bool,
    /// The class has no smaller volumes.
    pub(crate) minimum_size: ByteSize,
    kept: bool,
}

impl Registration {
    pub(super) fn new(home: &Path, id: i64, class: &StorageClass) -> Self {
        let minimum_size = class.minimum_size.unwrap_or(ByteSize::from_bytes(0));
        let preallocation = class.preallocation;
        Self { home: home.to_owned(), id, preallocation, minimum_size, kept: false }
    }

    pub(crate) fn describe(&self, facts: &Facts) -> Result<(), Error> {
        Db::write(&self.home)?.describe(self.id, facts.size.unwrap_or(0), facts)
    }

    /// The disk stands under its final name.
    pub(crate) fn publish(mut self, path: &Path) -> Result<(), Error> {
        self.kept = true;
        let db = Db::write(&self.home)?;
        let row = db.volumes()?.into_iter().find(|row| row.id == self.id);
        let size = match row {
            Some(row) if row.size == 0 && row.state == State::Preparing => {
                super::measure(path, row.place.format)
            }
            _ => 0,
        };
        db.ready(self.id, size)
    }

    /// The row stays, as what was written does, for the next process.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Registration {
    /// A row that cannot be removed is like a dead process's.
    fn drop(&mut self) {
        if !self.kept
            && let Ok(db) = Db::write(&self.home)
        {
            let _ = db.forget(self.id, State::Preparing);
        }
    }
}
