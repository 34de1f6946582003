//! Storage classes of a store: which there are, and which is the default.

use std::path::Path;

use bootyard_spec::{
    AccessModes, ClaimDefaults, StorageClass, StorageClassName, StorageDriver, StorageProfile,
    VolumeMode,
};

use super::Store;
use super::class::{self, BUILT_IN, BUILT_IN_FOLDER, resolve};
use super::db::Db;
use crate::{Error, ErrorKind};

/// The class that every store has.
pub(super) fn built_in() -> StorageClass {
    let name = BUILT_IN.parse().expect("a name");
    let driver = StorageDriver::Directory(BUILT_IN_FOLDER.into());
    StorageClass { is_default: true, ..StorageClass::new(name, driver) }
}

impl Store {
    /// Every storage class, by name.
    pub fn classes(&self) -> Result<Vec<StorageClass>, Error> {
        match Db::read(&self.home)? {
            Some(db) => db.classes(),
            None => Ok(vec![built_in()]),
        }
    }

    /// The storage class of this name, or the default one.
    pub fn class(&self, name: Option<&StorageClassName>) -> Result<StorageClass, Error> {
        let fits = |class: &StorageClass| name.map_or(class.is_default, |name| class.name == *name);
        let found = self.classes()?.into_iter().find(fits);
        found.ok_or_else(|| self.no_class(name.map_or(BUILT_IN, StorageClassName::as_str)))
    }

    /// What a volume of this class becomes where nobody asks for something else.
    pub fn modes_of(&self, class: &StorageClass) -> Result<(VolumeMode, AccessModes), Error> {
        let rules = match Db::read(&self.home)? {
            Some(db) => db.rules(&class.name)?,
            None => class::Rules::default(),
        };
        resolve(class, &rules, &bootyard_spec::Claim::default())
    }

    /// Adds a storage class. Fails where there is one of that name.
    pub fn add_class(&self, class: &StorageClass) -> Result<(), Error> {
        refuse_shared(&self.classes()?, class, &self.home)?;
        if Db::write(&self.home)?.add_class(class)? {
            return Ok(());
        }
        let what = format!("storage class `{}` exists", class.name);
        let hint = format!("remove it first: `bootyard storage-class rm {}`", class.name);
        Err(Error::new(ErrorKind::Exists, &self.home, what).with_hint(hint))
    }

    /// Removes a storage class that has no volumes. The built-in one stays.
    pub fn remove_class(&self, name: &StorageClassName) -> Result<(), Error> {
        self.class(Some(name))?;
        if name.as_str() == BUILT_IN {
            let what = format!("storage class `{BUILT_IN}` is built in");
            return Err(Error::new(ErrorKind::Unsupported, &self.home, what).with_hint(
                "make another one the default: `bootyard storage-class set-default NAME`",
            ));
        }
        match Db::write(&self.home)?.remove_class(name)? {
            0 => Ok(()),
            count => {
                let what = format!("storage class `{name}` has {count} volumes");
                let hint = "see them with `bootyard volume ls --all`, and remove them first";
                Err(Error::new(ErrorKind::InUse, &self.home, what).with_hint(hint))
            }
        }
    }

    /// Makes a storage class the one of volumes that name none.
    pub fn set_default_class(&self, name: &StorageClassName) -> Result<(), Error> {
        self.class(Some(name))?;
        Db::write(&self.home)?.set_default(name)
    }

    /// Takes what a cluster's StorageProfile says. Its class may be added later.
    pub fn apply_profile(&self, profile: &StorageProfile) -> Result<(), Error> {
        Db::write(&self.home)?.put_profile(profile)
    }

    /// Takes what a cluster's ConfigMap of defaults says, in place of what an earlier one said.
    pub fn apply_defaults(&self, defaults: &ClaimDefaults) -> Result<(), Error> {
        Db::write(&self.home)?.put_config(defaults)
    }

    pub(super) fn no_class(&self, name: &str) -> Error {
        let what = format!("there is no storage class `{name}`");
        let hint = format!(
            "see `bootyard storage-class ls`, or add it: `bootyard storage-class add {name} --driver \
             directory --path FOLDER`"
        );
        Error::new(ErrorKind::Unsupported, &self.home, what).with_hint(hint)
    }
}

/// Refuses a class whose folder or device is another's: their volumes would stand in each other's way.
fn refuse_shared(classes: &[StorageClass], class: &StorageClass, home: &Path) -> Result<(), Error> {
    let spaces = |class: &StorageClass| match &class.driver {
        StorageDriver::Directory(folder) | StorageDriver::Loop { folder, .. } => {
            vec![home.join(folder)]
        }
        StorageDriver::Devices(devices) => devices.clone(),
        StorageDriver::LvmThin { .. } => Vec::new(),
    };
    let ours = spaces(class);
    for other in classes.iter().filter(|other| other.name != class.name) {
        for theirs in spaces(other) {
            if ours.iter().any(|own| is_within(own, &theirs) || crate::is_same(own, &theirs)) {
                let what = format!("`{}` is of storage class `{}`", theirs.display(), other.name);
                return Err(Error::new(ErrorKind::InUse, &theirs, what)
                    .with_hint("name another folder or device"));
            }
        }
    }
    Ok(())
}

/// Whether one of both is in the other, or is the other.
fn is_within(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (one, other) = (real(one), real(other));
    one.starts_with(&other) || other.starts_with(&one)
}
