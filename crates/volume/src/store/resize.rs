//! Growing a volume.

use std::path::Path;

use bootyard_image::qcow2;
use bootyard_image::raw::FileAt;
use bootyard_spec::{ByteSize, OutputFormat, VolumeName};

use super::access::{self, Hold};
use super::db::Db;
use super::{State, Store, Volume};
use crate::{Error, ErrorKind, fsops, stop};

impl Store {
    /// Makes a volume larger; what is new reads as zeros. Returns the size that it had and the one
    /// that it has, in bytes. A volume that is smaller already does not change; one that is in use, or
    /// would have to shrink, is refused.
    pub fn resize(&self, name: &VolumeName, size: ByteSize) -> Result<(u64, u64), Error> {
        let Volume { path, access_modes, format, .. } = self.get(name)?;
        // What is for readers only, such as a snapshot, stays as it is.
        access::access(name, &path, &access_modes, format, false)?;
        let mut db = Db::write(&self.home)?;
        self.settle(&mut db, name)?;
        let row = db.volume(name)?.ok_or_else(|| self.not_found(name))?;
        let place = self.home.join(&row.place.path);
        let class = self.class_for(&db, Some(&row.place.class))?;
        let driver = super::driver::of(&class.driver, &self.home);
        let held = Hold::of(name, &path)?;
        // Held, it is the same volume until the end.
        let now = db.volume(name)?.filter(|now| now.id == row.id && now.state == State::Ready);
        let (Some(_held), Some(row)) = (held, now) else { return Err(self.not_found(name)) };
        let (before, after) = (row.size, size.bytes());
        if after < before {
            let what = format!(
                "volume `{name}` has {}, and does not shrink to {size}",
                ByteSize::from_bytes(before)
            );
            let hint = format!(
                "shrink the file systems in it, and copy it with its own tools; or \
                                name a size of at least {}",
                ByteSize::from_bytes(before)
            );
            return Err(Error::new(ErrorKind::TooSmall, &place, what).with_hint(hint));
        }
        if after == before {
            return Ok((before, after));
        }
        // What a machine has had it may have written to up to the device's end.
        let unused = (before > 0 && !row.written).then_some(before);
        // Who is killed from here on leaves another disk than the one whose fingerprint is known.
        db.written(row.id)?;
        match row.place.format {
            OutputFormat::Raw => driver.grow(&place, after, unused)?,
            OutputFormat::Qcow2 | OutputFormat::Qcow2Zstd => grow_qcow2(&place, after)?,
        }
        if class.preallocation && row.place.format == OutputFormat::Raw {
            preallocate(&place, before, after)?;
        }
        stop::at("grown");
        db.resized(row.id, after)?;
        Ok((before, after))
    }
}

/// Takes the space of what is new for good; where there is none, the disk has the size that it had.
fn preallocate(place: &Path, before: u64, after: u64) -> Result<(), Error> {
    let failed = |error| Error::io(error, place, "cannot preallocate the disk");
    let file = fs_err::OpenOptions::new().write(true).open(place).map_err(failed)?.into_file();
    // On a device that would store zeros over all of it, and it has its place.
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(());
    }
    fsops::preallocate(&file, after).map_err(|error| {
        if file.metadata().is_ok_and(|found| found.is_file()) {
            let _ = file.set_len(before);
        }
        failed(error)
    })
}

fn grow_qcow2(place: &Path, size: u64) -> Result<(), Error> {
    let failed = |error| Error::io(error, place, format!("cannot resize `{}`", place.display()));
    let file = fs_err::OpenOptions::new().read(true).write(true).open(place).map_err(failed)?;
    let storage = FileAt::new(file.into_file()).map_err(failed)?;
    let grown = qcow2::edit(storage, None).and_then(|image| image.grow(size));
    grown.map_err(|error| failed(std::io::Error::other(error)))
}
