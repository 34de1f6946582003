//! The store: volumes by name, of storage classes, for many processes at once.
//!
//! ```text
//! HOME/bootyard.db                     what is known of volumes and classes
//! HOME/volumes/…                       the volumes of the class `local`: see `driver::directory`
//! ```
//! # What is true
//!
//! A volume's row in the database is `preparing`, then `ready`, then `removing`, then gone. Of volumes
//! in files the file is the truth: a disk gets its final name when it is complete and durable, and the
//! row becomes `ready` after that. Who is killed in between leaves a complete disk that is said to be
//! preparing; whoever looks next finishes that. Disks without a row are entered as volumes when they
//! are seen. Of volumes on devices, which have no second name, the row is the truth.
//!
//! What a dead process has left is never locked: the lock on a disk that is written, on a disk that is
//! attached, and on one that is removed is the operating system's. `verify` finds what is left.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bootyard_image::fingerprint::Fingerprint;
use bootyard_image::raw::FileAt;
use bootyard_spec::{
    AccessMode, AccessModes, ByteSize, Claim, Digest, OutputFormat, StorageClass, StorageClassName,
    VolumeMode, VolumeName,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

use self::access::Hold;
use self::class::{BUILT_IN, resolve};
use self::db::{Claimed, Db, Place, Row};
use self::driver::Driver;
use crate::{Access, AttachedDisk, Error, ErrorKind, Staged, stop};

mod access;
mod class;
mod classes;
mod db;
mod driver;
mod registration;
mod resize;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use self::registration::Registration;
pub use self::verify::{Finding, FindingKind, VerifyOptions};

/// How often a name may change hands while one process claims it. Each time needs another one that
/// begins or ends with the same name in that very moment.
const ATTEMPTS_MAX: u32 = 64;

/// The volumes under one folder. Nothing is made before the first volume is.
#[derive(Debug, Clone)]
pub struct Store {
    home: PathBuf,
}

/// A volume of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its disk: a file or block device.
    pub path: PathBuf,
    /// How the disk is stored.
    pub format: OutputFormat,
    /// Its storage class.
    pub class: StorageClassName,
    /// What it is to a machine.
    pub volume_mode: VolumeMode,
    /// Who may use it at a time.
    pub access_modes: AccessModes,
    /// The size that a guest sees, in bytes; 0 where that is not known yet.
    pub size: u64,
    /// How far it is.
    pub state: State,
    /// Where its content came from.
    pub facts: Facts,
    /// A machine has had it for writing since, or it was resized: the fingerprint is of what it was
    /// before.
    pub is_written: bool,
    /// What it holds: CDI's `kubevirt`, which is a disk, or `archive`.
    pub content_type: String,
    /// The machine whose life it shares.
    pub owner: Option<String>,
    /// The process that prepares it.
    pub holder: Option<u32>,
    /// When it was made, in seconds since 1970; `None` where nobody has noted it.
    pub created: Option<i64>,
}

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It is being made, or was and can be gone on with.
    Preparing,
    /// It is complete.
    Ready,
    /// It is being removed.
    Removing,
}

/// Where the content of a volume came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The source, without its secrets.
    pub source: Option<String>,
    /// The size that a guest sees, in bytes.
    pub size: Option<u64>,
    /// The digest of the source's bytes.
    pub sha256: Option<Digest>,
    /// The fingerprint of the disk when it was made.
    pub fingerprint: Option<Fingerprint>,
    /// The volume that it is a snapshot of.
    pub parent: Option<String>,
    /// Labels, such as a containerDisk brings.
    pub labels: BTreeMap<String, String>,
}

/// What a new volume shall be, besides its name and format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageOptions {
    /// Its class and modes.
    pub claim: Claim,
    /// Its size, where that is known before its source is looked at.
    pub size: Option<ByteSize>,
}

impl State {
    /// The name, as it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }
}

impl Volume {
    /// How its disk is opened to be read as it stands: alone, where many may write.
    pub fn reading(&self) -> Access {
        match self.access_modes.as_slice().contains(&AccessMode::ReadWriteMany) {
            true => Access::ReadAlone,
            false => Access::Read,
        }
    }

    /// The fingerprint of what it holds, if that is certain: nobody has written to it since it was made,
    /// neither a machine of ours nor, by the file's time, anybody else.
    pub fn known_fingerprint(&self) -> Option<Fingerprint> {
        // Between the last byte and the row's time lies at most the publishing.
        const SLACK_SECONDS: i64 = 2;
        let found = fs_err::metadata(&self.path).ok().filter(std::fs::Metadata::is_file)?;
        let since = self.created?.saturating_add(SLACK_SECONDS);
        let untouched = !self.is_written && MetadataExt::mtime(&found) <= since;
        self.facts.fingerprint.filter(|_| untouched)
    }
}

/// No state of a volume.
#[derive(Debug, thiserror::Error)]
#[error("unknown state `{0}`")]
pub struct ParseStateError(String);

impl FromStr for State {
    type Err = ParseStateError;

    fn from_str(text: &str) -> Result<Self, ParseStateError> {
        let states = [Self::Preparing, Self::Ready, Self::Removing];
        let named = states.into_iter().find(|state| state.name() == text);
        named.ok_or_else(|| ParseStateError(text.to_owned()))
    }
}

impl Store {
    /// The store in the folder `home`, which need not exist.
    pub fn open(home: &Path) -> Self {
        Self { home: home.to_owned() }
    }

    /// Claims the name of a volume that does not exist yet, in the default class.
    pub fn stage(&self, name: &VolumeName, format: OutputFormat) -> Result<Staged, Error> {
        self.stage_as(name, format, &StageOptions::default())
    }

    /// Claims the name of a volume that does not exist yet. What another process has left under the
    /// name is gone on with where it is of the same class and format, and else removed.
    pub fn stage_as(
        &self,
        name: &VolumeName,
        format: OutputFormat,
        options: &StageOptions,
    ) -> Result<Staged, Error> {
        let mut db = Db::write(&self.home)?;
        let class = self.class_for(&db, options.claim.class.as_ref())?;
        let (volume_mode, access_modes) = resolve(&class, &db.rules(&class.name)?, &options.claim)?;
        let driver = driver::of(&class.driver, &self.home);
        let size = options.size.map(|size| size.max(class.minimum_size.unwrap_or(size)).bytes());
        let place = Place {
            class: class.name.clone(),
            volume_mode,
            access_modes,
            format,
            content_type: "kubevirt".to_owned(),
            path: PathBuf::new(),
        };
        for _ in 0..ATTEMPTS_MAX {
            let before = self.make_way(&mut db, name)?;
            let claim =
                Attempt { name, place: &place, driver: &*driver, before: before.as_ref(), size };
            if let Some((staged, id)) = claim.run(&self.home, &mut db)? {
                stop::at("registered");
                let registration = Registration::new(&self.home, id, &class);
                return Ok(staged.registered(registration));
            }
        }
        let what = format!("volume `{name}` changes hands all the time");
        Err(Error::new(ErrorKind::InUse, &self.home, what).with_hint("run the same command again"))
    }

    /// Finds out what stands under a name that is to be claimed: refuses what exists or is being
    /// made, finishes what was being removed, and returns the row of what was begun.
    fn make_way(&self, db: &mut Db, name: &VolumeName) -> Result<Option<Row>, Error> {
        self.settle(db, name)?;
        let Some(row) = db.volume(name)? else { return Ok(None) };
        match row.state {
            State::Ready => Err(Error::volume_exists(name, &self.home.join(&row.place.path))),
            State::Preparing => Ok(Some(row)),
            State::Removing => {
                self.remove_row(db, &row)?;
                Ok(None)
            }
        }
    }

    /// Finds a volume.
    pub fn get(&self, name: &VolumeName) -> Result<Volume, Error> {
        let find = || Ok::<_, Error>(self.find(name)?.filter(|found| found.state == State::Ready));
        let Some(mut volume) = find()? else { return Err(self.not_found(name)) };
        while !volume.path.exists() {
            // It may just have been removed, and made again.
            match find()? {
                None => return Err(self.not_found(name)),
                Some(now) if now != volume => {
                    volume = now;
                    continue;
                }
                Some(_) => {}
            }
            let path = volume.path.display();
            let what = format!("the disk of volume `{name}` is not there: expected `{path}`");
            let hint = format!("bring it back, or forget the volume: `bootyard volume rm {name}`");
            return Err(Error::new(ErrorKind::NotFound, &volume.path, what).with_hint(hint));
        }
        Ok(volume)
    }

    /// Finds a volume, also one that is not ready.
    pub fn find(&self, name: &VolumeName) -> Result<Option<Volume>, Error> {
        if let Some(mut db) = self.look(|db| self.settle(db, name))? {
            if let Some(row) = db.volume(name)? {
                return self.volume(&db, row).map(Some);
            }
            // Whoever may not write sees what nobody has entered yet.
            let found = self.unregistered(&mut db)?.into_iter();
            return Ok(found.map(|(volume, _)| volume).find(|volume| volume.name == *name));
        }
        Ok(self.bare()?.into_iter().find(|volume| volume.name == *name))
    }

    /// Every volume that is ready, by name.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let mut all = self.list_all()?;
        all.retain(|volume| volume.state == State::Ready);
        Ok(all)
    }

    /// Every volume, also those that are being made or removed, by name.
    pub fn list_all(&self) -> Result<Vec<Volume>, Error> {
        let Some(mut db) = self.look(|db| self.settle_all(db))? else { return self.bare() };
        let rows = db.volumes()?;
        let mut volumes: Vec<Volume> =
            rows.into_iter().map(|row| self.volume(&db, row)).collect::<Result<_, _>>()?;
        for (volume, _) in self.unregistered(&mut db)? {
            volumes.push(volume);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Readies a volume for a machine that writes to it, or not: where its disk is, and how it may be
    /// opened. Fails where its access modes do not allow it.
    pub fn attach(&self, name: &VolumeName, read_only: bool) -> Result<(PathBuf, Access), Error> {
        let volume = self.get(name)?;
        let access =
            access::access(name, &volume.path, &volume.access_modes, volume.format, read_only)?;
        let Some(db) = Db::read(&self.home)? else { return Ok((volume.path, access)) };
        let Some(row) = db.volume(name)? else { return Ok((volume.path, access)) };
        let driver = self.driver_of(&db, &row.place.class)?;
        let path = driver.attach(&self.home.join(&row.place.path))?;
        if access != Access::Read {
            Db::write(&self.home)?.written(row.id)?;
        }
        Ok((path, access))
    }

    /// Opens a volume's disk to be read as it stands, such as to be cloned: nobody writes to it meanwhile.
    /// Fails where somebody does.
    pub fn original(&self, name: &VolumeName) -> Result<(Volume, AttachedDisk), Error> {
        let mut volume = self.get(name)?;
        if let Some(db) = Db::read(&self.home)?
            && let Some(row) = db.volume(name)?
        {
            let driver = self.driver_of(&db, &row.place.class)?;
            volume.path = driver.attach(&self.home.join(&row.place.path))?;
        }
        let disk = AttachedDisk::open_for(&volume.path, volume.reading())?;
        Ok((volume, disk))
    }

    /// Removes a volume, or what was begun under the name. Fails where it is in use.
    pub fn remove(&self, name: &VolumeName) -> Result<(), Error> {
        self.on_reserve(|| self.try_remove(name))
    }

    /// Does what makes space, and takes what is set aside for that where there is none left to begin.
    fn on_reserve<T>(&self, work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let done = match work() {
            Err(error) if error.kind() == ErrorKind::NoSpace && Db::take_reserve(&self.home) => {
                work()
            }
            done => done,
        };
        Db::put_reserve(&self.home);
        done
    }

    fn try_remove(&self, name: &VolumeName) -> Result<(), Error> {
        let mut db = Db::write(&self.home)?;
        self.settle(&mut db, name)?;
        match db.volume(name)? {
            Some(row) => self.remove_row(&db, &row),
            None => Err(self.not_found(name)),
        }
    }

    fn remove_row(&self, db: &Db, row: &Row) -> Result<(), Error> {
        let driver = self.driver_of(db, &row.place.class)?;
        let place = self.home.join(&row.place.path);
        // What is still written is held by its writer, whom the driver meets.
        let held = match row.state {
            State::Preparing => None,
            State::Ready | State::Removing => Hold::of(&row.name, &driver.attached(&place))?,
        };
        if row.state == State::Ready && !db.removing(row.id)? {
            // Somebody else was quicker.
            return Err(self.not_found(&row.name));
        }
        stop::at("removing");
        let state = match row.state {
            State::Preparing => State::Preparing,
            State::Ready | State::Removing => State::Removing,
        };
        // Before the disk was held, others may have ended what they did to it, and begun anew.
        let is_ours = || {
            let now = db.volume(&row.name)?;
            Ok(now.is_some_and(|now| now.id == row.id && now.state == state))
        };
        driver.remove(&place, held, &is_ours)?;
        stop::at("removed");
        if state == State::Preparing && driver.is_published(&place) {
            // Who was writing it has just published it.
            return self.finish(db, row);
        }
        db.forget(row.id, state)
    }

    /// Opens the database to look, after `settle` where that may write. `None` if there is none.
    fn look(&self, settle: impl FnOnce(&mut Db) -> Result<(), Error>) -> Result<Option<Db>, Error> {
        let Some(mut db) = Db::read(&self.home)? else { return Ok(None) };
        if !db.is_read_only() {
            settle(&mut db)?;
        }
        Ok(Some(db))
    }

    /// Makes the database say what is true of one name.
    fn settle(&self, db: &mut Db, name: &VolumeName) -> Result<(), Error> {
        match db.volume(name)? {
            Some(row) if row.state == State::Preparing => self.finish(db, &row),
            Some(_) => Ok(()),
            None => self.adopt(db, |found| found == name),
        }
    }

    fn settle_all(&self, db: &mut Db) -> Result<(), Error> {
        for row in db.volumes()? {
            if row.state == State::Preparing {
                self.finish(db, &row)?;
            }
        }
        self.adopt(db, |_| true)
    }

    /// The disk stands under its final name: the volume is ready.
    fn finish(&self, db: &Db, row: &Row) -> Result<(), Error> {
        let place = self.home.join(&row.place.path);
        if self.driver_of(db, &row.place.class)?.is_published(&place) {
            db.ready(row.id, measure(&place, row.place.format))?;
        }
        Ok(())
    }

    /// Enters disks without a row as volumes.
    fn adopt(&self, db: &mut Db, wanted: impl Fn(&VolumeName) -> bool) -> Result<(), Error> {
        for (volume, place) in self.unregistered(db)? {
            if wanted(&volume.name) {
                db.adopt(&volume.name, &place, volume.size, || volume.path.exists())?;
            }
        }
        Ok(())
    }

    /// Disks in the classes' folders that are in no row.
    fn unregistered(&self, db: &mut Db) -> Result<Vec<(Volume, Place)>, Error> {
        let mut unknown = Vec::new();
        for class in db.classes()? {
            for found in driver::of(&class.driver, &self.home).list()? {
                if let Some(format) = found.format
                    && db.volume(&found.name)?.is_none()
                {
                    let (volume_mode, access_modes) =
                        resolve(&class, &db.rules(&class.name)?, &Claim::default())?;
                    let place = Place {
                        class: class.name.clone(),
                        volume_mode,
                        access_modes,
                        format,
                        content_type: "kubevirt".to_owned(),
                        path: self.relative(&found.path),
                    };
                    let size = measure(&found.path, format);
                    unknown.push((bare(&found.name, &place, found.path, size), place));
                }
            }
        }
        Ok(unknown)
    }

    /// The volumes of a store without a database.
    fn bare(&self) -> Result<Vec<Volume>, Error> {
        let class = classes::built_in();
        let found = driver::of(&class.driver, &self.home).list()?;
        let (volume_mode, access_modes) =
            resolve(&class, &class::Rules::default(), &Claim::default())?;
        Ok(found
            .into_iter()
            .filter_map(|found| {
                let place = Place {
                    class: class.name.clone(),
                    volume_mode,
                    access_modes: access_modes.clone(),
                    format: found.format?,
                    content_type: "kubevirt".to_owned(),
                    path: self.relative(&found.path),
                };
                let size = measure(&found.path, place.format);
                Some(bare(&found.name, &place, found.path, size))
            })
            .collect())
    }

    /// The path as the database has it: a store that is moved keeps its volumes.
    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.home).unwrap_or(path).to_owned()
    }

    fn volume(&self, db: &Db, row: Row) -> Result<Volume, Error> {
        let driver = self.driver_of(db, &row.place.class)?;
        let path = driver.attached(&self.home.join(&row.place.path));
        Ok(Volume {
            size: row.size,
            state: row.state,
            facts: row.facts,
            is_written: row.written,
            owner: row.owner,
            holder: row.holder,
            created: Some(row.created),
            ..bare(&row.name, &row.place, path, row.size)
        })
    }

    fn driver_of(&self, db: &Db, class: &StorageClassName) -> Result<Box<dyn Driver>, Error> {
        Ok(driver::of(&self.class_for(db, Some(class))?.driver, &self.home))
    }

    /// The class of this name, or the default one.
    fn class_for(&self, db: &Db, name: Option<&StorageClassName>) -> Result<StorageClass, Error> {
        let fits = |class: &StorageClass| name.map_or(class.is_default, |name| class.name == *name);
        match db.classes()?.into_iter().find(fits) {
            Some(class) => Ok(class),
            None => Err(self.no_class(name.map_or(BUILT_IN, StorageClassName::as_str))),
        }
    }

    fn not_found(&self, name: &VolumeName) -> Error {
        let what = format!("there is no volume `{name}`");
        let hint = format!("make it: `bootyard import SOURCE --name {name}`");
        Error::new(ErrorKind::NotFound, &self.home, what).with_hint(hint)
    }
}

/// One attempt to claim a name and a place for it.
struct Attempt<'a> {
    name: &'a VolumeName,
    place: &'a Place,
    driver: &'a dyn Driver,
    /// What was begun under the name by a process that may be dead.
    before: Option<&'a Row>,
    size: Option<u64>,
}

impl Attempt<'_> {
    /// Claims the first place that is free. `None` if somebody was quicker, so that all that is known
    /// may be wrong.
    fn run(&self, home: &Path, db: &mut Db) -> Result<Option<(Staged, i64)>, Error> {
        let mut candidates = self.driver.places(self.name, self.place.format, self.size)?;
        let begun = self.before.map(|row| home.join(&row.place.path));
        candidates.sort_by_key(|path| Some(path) != begun.as_ref());
        let relative = |path: &Path| path.strip_prefix(home).unwrap_or(path).to_owned();
        let mut failure = None;
        for path in candidates {
            let place = Place { path: relative(&path), ..self.place.clone() };
            if let Some(before) = self.before.filter(|before| {
                before.place.class != place.class
                    || !self.driver.is_one(&home.join(&before.place.path), &path)
            }) {
                // Of no use any more, unless somebody still writes it.
                let removed = Store::open(home).remove_row(db, before);
                removed.map_err(|error| self.told(error))?;
                return Ok(None);
            }
            let staged = match self.driver.make(&path, self.size) {
                Err(error) if error.kind() == ErrorKind::InUse && Some(&path) == begun.as_ref() => {
                    return Err(self.told(error));
                }
                Err(error) if matches!(error.kind(), ErrorKind::InUse | ErrorKind::Exists) => {
                    failure = Some(error);
                    continue;
                }
                staged => staged?,
            };
            stop::at("made");
            let before = self.before.map(|row| row.id);
            match db.claim(self.name, &place, before, std::process::id())? {
                Claimed::Ours(id) => return Ok(Some((staged, id))),
                Claimed::PlaceTaken => continue,
                Claimed::NoClass => {
                    return Err(Store::open(home).no_class(self.place.class.as_str()));
                }
                Claimed::Taken => return Ok(None),
            }
        }
        match failure {
            // Its owner has just published or removed it: the next look tells.
            Some(error) if error.kind() == ErrorKind::Exists => Ok(None),
            Some(error) => Err(self.told(error)),
            None => Err(self.no_place()),
        }
    }

    /// Says who it is that has the name.
    fn told(&self, error: Error) -> Error {
        let Some(holder) = self.before.and_then(|row| row.holder) else { return error };
        if error.kind() != ErrorKind::InUse {
            return error;
        }
        let what = format!("process {holder} is making volume `{}`", self.name);
        let hint = format!("wait for it, or see what it is: `ps -fp {holder}`");
        Error::new(ErrorKind::InUse, error.path(), what).with_hint(hint)
    }

    fn no_place(&self) -> Error {
        let class = &self.place.class;
        let size = self.size.map(|size| format!(" of at least {}", ByteSize::from_bytes(size)));
        let what = format!("class `{class}` has no free device{}", size.unwrap_or_default());
        let hint = "remove a volume, add a class with another device, or name another \
                    `--storage-class`";
        Error::new(ErrorKind::NoSpace, class.as_str().as_ref(), what).with_hint(hint)
    }
}

/// A volume of which nothing is known but its disk.
fn bare(name: &VolumeName, place: &Place, path: PathBuf, size: u64) -> Volume {
    Volume {
        name: name.clone(),
        path,
        format: place.format,
        class: place.class.clone(),
        volume_mode: place.volume_mode,
        access_modes: place.access_modes.clone(),
        size,
        state: State::Ready,
        facts: Facts::default(),
        is_written: false,
        content_type: place.content_type.clone(),
        owner: None,
        holder: None,
        created: None,
    }
}

/// The size that a guest sees; 0 of a disk that cannot be read.
fn measure(path: &Path, format: OutputFormat) -> u64 {
    let open = || {
        // Where a pipe stands in a disk's place, nobody waits for its other end.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = fs_err::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        FileAt::new(file.into_file()).ok()
    };
    let Some(file) = open() else { return 0 };
    match format {
        OutputFormat::Raw => bootyard_image::ReadAt::len(&file),
        _ => bootyard_image::open(file).map_or(0, |disk| disk.virtual_size()),
    }
}
