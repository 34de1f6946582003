//! Thin volumes of LVM, by its own programs (lvcreate(8), lvextend(8), lvremove(8), lvs(8)).

use std::path::{Path, PathBuf};

use bootyard_spec::{OutputFormat, VolumeName};

use super::devices::capacity;
use super::{Driver, Found, command, only_raw};
use crate::part::LeftOver;
use crate::store::access::Hold;
use crate::{Error, ErrorKind, Staged};

/// Whether a volume of the group is ours, and that its name begins with no word of LVM's.
const PREFIX: &str = "bootyard-";

#[derive(Debug)]
pub(super) struct LvmThin {
    group: String,
    pool: String,
}

impl LvmThin {
    pub(super) fn new(group: &str, pool: &str) -> Self {
        Self { group: group.to_owned(), pool: pool.to_owned() }
    }

    /// `GROUP/NAME`, as LVM's programs take it.
    fn volume(&self, place: &Path) -> String {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        format!("{}/{name}", self.group)
    }

    fn create(&self, place: &Path, size: u64) -> Vec<String> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        vec![
            "--yes".to_owned(),
            format!("--virtualsize={size}b"),
            format!("--name={name}"),
            format!("--thinpool={}", self.pool),
            self.group.clone(),
        ]
    }

    fn extend(&self, place: &Path, size: u64) -> Vec<String> {
        vec![format!("--size={size}b"), self.volume(place)]
    }
}

impl Driver for LvmThin {
    fn places(
        &self,
        name: &VolumeName,
        format: OutputFormat,
        size: Option<u64>,
    ) -> Result<Vec<PathBuf>, Error> {
        only_raw(format, "a volume of LVM")?;
        if size.is_none() {
            let what = "a volume of LVM is made with its size";
            return Err(Error::new(ErrorKind::Unsupported, Path::new(&self.group), what)
                .with_hint("add `--size`, at least the image's virtual size"));
        }
        Ok(vec![Path::new("/dev").join(&self.group).join(format!("{PREFIX}{name}"))])
    }

    fn make(&self, place: &Path, size: Option<u64>) -> Result<Staged, Error> {
        if !place.exists() {
            command::run("lvcreate", &self.create(place, size.unwrap_or(0)), place)?;
        }
        Staged::claim_device(place)
    }

    fn is_published(&self, _place: &Path) -> bool {
        false
    }

    fn attach(&self, place: &Path) -> Result<PathBuf, Error> {
        capacity(place)?;
        Ok(place.to_owned())
    }

    fn grow(&self, place: &Path, size: u64, _unused: Option<u64>) -> Result<(), Error> {
        if capacity(place)? >= size {
            return Ok(());
        }
        command::run("lvextend", &self.extend(place, size), place).map(drop)
    }

    fn remove(
        &self,
        place: &Path,
        held: Option<Hold>,
        is_ours: &dyn Fn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        // LVM removes nothing that is open.
        drop(held);
        if !place.exists() || !is_ours()? {
            return Ok(());
        }
        command::run("lvremove", &["--yes".to_owned(), self.volume(place)], place).map(drop)
    }

    fn left(&self, place: &Path) -> LeftOver {
        match Staged::claim_device(place) {
            Err(error) if error.kind() == ErrorKind::InUse => LeftOver::Busy,
            _ => LeftOver::Useless,
        }
    }

    /// What is in the group and not in the database is not ours to judge.
    fn list(&self) -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvm_is_told_what_to_do() {
        let driver = LvmThin::new("vg0", "pool");
        let places = driver.places(&"db".parse().unwrap(), OutputFormat::Raw, Some(1 << 30));
        let place = &places.unwrap()[0];
        assert_eq!(place, Path::new("/dev/vg0/bootyard-db"));
        assert_eq!(
            driver.create(place, 1 << 30).join(" "),
            "--yes --virtualsize=1073741824b --name=bootyard-db --thinpool=pool vg0"
        );
        assert_eq!(driver.extend(place, 2 << 30).join(" "), "--size=2147483648b vg0/bootyard-db");
        let name = "db".parse().unwrap();
        let error = driver.places(&name, OutputFormat::Raw, None).unwrap_err();
        assert_eq!(error.to_string(), "a volume of LVM is made with its size");
        assert!(driver.places(&name, OutputFormat::Qcow2, Some(1)).is_err());
    }
}
