//! Storage classes in the database, and the rules that files of a cluster bring.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bootyard_spec::{
    AccessModes, ByteSize, ClaimDefaults, ClaimPropertySet, CloneStrategy, FilesystemOverhead,
    StorageClass, StorageClassName, StorageDriver, StorageProfile, VolumeMode,
};
use rusqlite::{Connection, Row as SqlRow, Transaction, named_params, params};

use super::{Db, optional, path, word};
use crate::Error;
use crate::store::class::{BUILT_IN, Rules};

/// Who says what a class's volumes can be.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// Who added the class.
    Class,
    /// Its StorageProfile.
    Profile,
    /// The ConfigMap of defaults.
    Config,
}

impl Origin {
    const fn name(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Profile => "profile",
            Self::Config => "config",
        }
    }
}

impl Db {
    /// Every class that was added, by name.
    pub(in crate::store) fn classes(&self) -> Result<Vec<StorageClass>, Error> {
        let query = || {
            let mut statement = self.connection.prepare(
                "SELECT name, driver, sector_size, overhead, preallocation, is_default,
                     coalesce(profile.clone_strategy, class.clone_strategy) AS clone_strategy,
                     coalesce(profile.minimum_size, class.minimum_size) AS minimum_size
                 FROM class LEFT JOIN profile ON profile.class = class.name ORDER BY name",
            )?;
            let classes = statement.query_map([], |row| class(&self.connection, row))?;
            classes.collect::<rusqlite::Result<Vec<_>>>()
        };
        query().map_err(|error| self.failed(error))
    }

    /// Adds a class. `false` if there is one of that name.
    pub(in crate::store) fn add_class(&mut self, class: &StorageClass) -> Result<bool, Error> {
        self.transact(|work| {
            let exists = "SELECT EXISTS (SELECT 1 FROM class WHERE name = ?1)";
            if work.query_row(exists, [class.name.as_str()], |row| row.get(0))? {
                return Ok(false);
            }
            if class.is_default {
                work.execute("UPDATE class SET is_default = 0", [])?;
            }
            insert(work, class)?;
            let sets = &class.claim_property_sets;
            put_sets(work, Origin::Class, class.name.as_str(), sets)?;
            Ok(true)
        })
    }

    /// Removes a class if it has no volumes, and says how many it has. Was it the default, the built-in
    /// one is.
    pub(in crate::store) fn remove_class(&mut self, name: &StorageClassName) -> Result<u64, Error> {
        self.transact(|work| {
            let count = "SELECT count(*) FROM volume WHERE class = ?1";
            let count = work.query_row(count, [name.as_str()], |row| row.get(0))?;
            if count == 0 {
                work.execute("DELETE FROM class WHERE name = ?1", [name.as_str()])?;
                put_sets(work, Origin::Class, name.as_str(), &[])?;
                let sql = "UPDATE class SET is_default = TRUE WHERE name = ?1
                           AND NOT EXISTS (SELECT 1 FROM class WHERE is_default)";
                work.execute(sql, [BUILT_IN])?;
            }
            Ok(count)
        })
    }

    /// Makes one class the default.
    pub(in crate::store) fn set_default(&self, name: &StorageClassName) -> Result<(), Error> {
        self.execute("UPDATE class SET is_default = (name = ?1)", [name.as_str()]).map(drop)
    }

    /// What files of a cluster say of a class.
    pub(in crate::store) fn rules(&self, name: &StorageClassName) -> Result<Rules, Error> {
        let query = || {
            let profile = sets(&self.connection, Origin::Profile, name.as_str())?;
            let mut own = sets(&self.connection, Origin::Config, name.as_str())?;
            let mut all = sets(&self.connection, Origin::Config, "")?;
            Ok(Rules {
                profile,
                own: own.pop().unwrap_or_default(),
                all: all.pop().unwrap_or_default(),
            })
        };
        query().map_err(|error| self.failed(error))
    }

    /// Takes the rules of a StorageProfile in place of what the last one of that class said.
    pub(in crate::store) fn put_profile(&mut self, profile: &StorageProfile) -> Result<(), Error> {
        self.transact(|work| {
            let name = profile.class.as_str();
            put_sets(work, Origin::Profile, name, &profile.claim_property_sets)?;
            work.execute(
                "INSERT OR REPLACE INTO profile VALUES (?1, ?2, ?3)",
                params![
                    name,
                    profile.clone_strategy.map(CloneStrategy::name),
                    profile.minimum_size.map(ByteSize::bytes)
                ],
            )?;
            Ok(())
        })
    }

    /// Takes the rules of a ConfigMap in place of what the last one said.
    pub(in crate::store) fn put_config(&mut self, defaults: &ClaimDefaults) -> Result<(), Error> {
        self.transact(|work| {
            work.execute("DELETE FROM claim_rule WHERE origin = 'config'", [])?;
            put_sets(work, Origin::Config, "", std::slice::from_ref(&defaults.all))?;
            for (class, set) in &defaults.classes {
                put_sets(work, Origin::Config, class.as_str(), std::slice::from_ref(set))?;
            }
            Ok(())
        })
    }
}

fn insert(work: &Transaction<'_>, class: &StorageClass) -> rusqlite::Result<()> {
    let sector_size = match &class.driver {
        StorageDriver::Loop { sector_size, .. } => Some(*sector_size),
        _ => None,
    };
    work.execute(
        "INSERT INTO class VALUES (:name, :driver, :sector_size, :overhead, :preallocation,
                                   :is_default, :clone_strategy, :minimum_size)",
        named_params! {
            ":name": class.name.as_str(),
            ":driver": class.driver.name(),
            ":sector_size": sector_size,
            ":overhead": class.filesystem_overhead.thousandths(),
            ":preallocation": class.preallocation,
            ":is_default": class.is_default,
            ":clone_strategy": class.clone_strategy.map(CloneStrategy::name),
            ":minimum_size": class.minimum_size.map(ByteSize::bytes),
        },
    )?;
    let paths: Vec<&OsStr> = match &class.driver {
        StorageDriver::Directory(folder) | StorageDriver::Loop { folder, .. } => {
            vec![folder.as_os_str()]
        }
        StorageDriver::Devices(devices) => devices.iter().map(|path| path.as_os_str()).collect(),
        StorageDriver::LvmThin { group, pool } => vec![group.as_ref(), pool.as_ref()],
    };
    let mut statement = work.prepare("INSERT INTO class_path VALUES (?1, ?2, ?3)")?;
    for (position, path) in paths.iter().enumerate() {
        statement.execute(params![class.name.as_str(), position, path.as_bytes()])?;
    }
    Ok(())
}

fn class(connection: &Connection, row: &SqlRow<'_>) -> rusqlite::Result<StorageClass> {
    let name: StorageClassName = word(row, "name")?;
    let overhead: u16 = row.get("overhead")?;
    let minimum_size: Option<u64> = row.get("minimum_size")?;
    let driver: String = row.get("driver")?;
    Ok(StorageClass {
        driver: self::driver(connection, &driver, &name, row.get("sector_size")?)?,
        claim_property_sets: sets(connection, Origin::Class, name.as_str())?,
        filesystem_overhead: FilesystemOverhead::from_thousandths(overhead),
        preallocation: row.get("preallocation")?,
        is_default: row.get("is_default")?,
        clone_strategy: optional(row, "clone_strategy")?,
        minimum_size: minimum_size.map(ByteSize::from_bytes),
        name,
    })
}

fn driver(
    connection: &Connection,
    driver: &str,
    class: &StorageClassName,
    sector_size: Option<u32>,
) -> rusqlite::Result<StorageDriver> {
    let sql = "SELECT path FROM class_path WHERE class = ?1 ORDER BY position";
    let mut statement = connection.prepare_cached(sql)?;
    let paths = statement.query_map([class.as_str()], |row| path(row, "path"))?;
    let paths = paths.collect::<rusqlite::Result<Vec<PathBuf>>>()?;
    let lossy = |path: &PathBuf| path.to_string_lossy().into_owned();
    match (driver, paths.as_slice()) {
        ("directory", [folder]) => Ok(StorageDriver::Directory(folder.clone())),
        ("loop", [folder]) => {
            let sector_size = sector_size.unwrap_or(512);
            Ok(StorageDriver::Loop { folder: folder.clone(), sector_size })
        }
        ("lvm-thin", [group, pool]) => {
            Ok(StorageDriver::LvmThin { group: lossy(group), pool: lossy(pool) })
        }
        ("devices", _) => Ok(StorageDriver::Devices(paths)),
        _ => Err(rusqlite::Error::InvalidColumnName(format!("driver `{driver}`"))),
    }
}

fn sets(
    connection: &Connection,
    origin: Origin,
    class: &str,
) -> rusqlite::Result<Vec<ClaimPropertySet>> {
    let sql = "SELECT access_modes, volume_mode FROM claim_rule
               WHERE origin = ?1 AND class = ?2 ORDER BY position";
    let mut statement = connection.prepare_cached(sql)?;
    let sets = statement.query_map([origin.name(), class], |row| {
        let access_modes: AccessModes = word(row, "access_modes")?;
        let volume_mode: Option<VolumeMode> = optional(row, "volume_mode")?;
        Ok(ClaimPropertySet { access_modes, volume_mode })
    })?;
    sets.collect()
}

fn put_sets(
    work: &Transaction<'_>,
    origin: Origin,
    class: &str,
    sets: &[ClaimPropertySet],
) -> rusqlite::Result<()> {
    let old = "DELETE FROM claim_rule WHERE origin = ?1 AND class = ?2";
    work.execute(old, [origin.name(), class])?;
    let mut statement = work.prepare("INSERT INTO claim_rule VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (position, set) in sets.iter().enumerate() {
        let modes = set.access_modes.to_string();
        let mode = set.volume_mode.map(VolumeMode::name);
        statement.execute(params![origin.name(), class, position, modes, mode])?;
    }
    Ok(())
}
