//! Finding what dead processes and failing disks have left, and cleaning it.

use std::num::NonZeroUsize;
use std::path::Path;

use bootyard_image::fingerprint::Fingerprint;
use bootyard_image::raw::FileAt;
use bootyard_image::{Disk, Extent, ReadAt};
use bootyard_spec::{ByteSize, OutputFormat, VolumeName};

use super::access::Hold;
use super::db::{Db, Row};
use super::driver::{self, Driver, Found};
use super::{State, Store, measure};
use crate::part::LeftOver;
use crate::{AttachedDisk, Error, ErrorKind, fsops};

/// The largest sectors of loop devices, in bytes.
const SECTOR_MAX: u64 = 4096;

/// What a verification does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifyOptions {
    /// Clean what can be cleaned without loss.
    pub repair: bool,
    /// Read every volume, and compare it with its fingerprint.
    pub deep: bool,
    /// Also remove disks that were begun and could be gone on with.
    pub drop_unfinished: bool,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The volume.
    pub name: VolumeName,
    /// What it is, in lower case.
    pub what: String,
    /// How grave that is.
    pub kind: FindingKind,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// Something that can be gone on with, or goes on right now.
    Note,
    /// It was put right.
    Repaired,
    /// It can be put right.
    Repairable,
    /// Data is lost.
    Damage,
}

impl FindingKind {
    /// The name, as it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Repaired => "repaired",
            Self::Repairable => "repairable",
            Self::Damage => "damage",
        }
    }
}

impl Store {
    /// Looks at the volumes `names`, or at all and whatever else is there if there are none, and tells
    /// what is not as it should be. `progress` learns of each volume before it is looked at.
    pub fn verify(
        &self,
        names: &[VolumeName],
        options: VerifyOptions,
        progress: &dyn Fn(&VolumeName),
    ) -> Result<Vec<Finding>, Error> {
        match options.repair {
            true => self.on_reserve(|| self.try_verify(names, options, progress)),
            false => self.try_verify(names, options, progress),
        }
    }

    fn try_verify(
        &self,
        names: &[VolumeName],
        options: VerifyOptions,
        progress: &dyn Fn(&VolumeName),
    ) -> Result<Vec<Finding>, Error> {
        let db = match options.repair {
            true => Some(Db::write(&self.home)?),
            false => Db::read(&self.home)?,
        };
        let Some(db) = db else {
            return match names.iter().find(|name| {
                !self.bare().is_ok_and(|all| all.iter().any(|volume| volume.name == **name))
            }) {
                Some(name) => Err(self.not_found(name)),
                None => Ok(Vec::new()),
            };
        };
        db.check()?;
        let mut round = Round { store: self, db, options, findings: Vec::new() };
        let wanted = |name: &VolumeName| names.is_empty() || names.contains(name);
        let rows = round.db.volumes()?;
        let mut known: Vec<VolumeName> = rows.iter().map(|row| row.name.clone()).collect();
        for row in rows.into_iter().filter(|row| wanted(&row.name)) {
            progress(&row.name);
            round.row(&row)?;
        }
        for class in round.db.classes()? {
            let driver = driver::of(&class.driver, &self.home);
            for found in driver.list()?.into_iter().filter(|found| wanted(&found.name)) {
                if !known.contains(&found.name) {
                    progress(&found.name);
                    round.unregistered(&*driver, &found)?;
                    known.push(found.name);
                }
            }
        }
        match names.iter().find(|name| !known.contains(name)) {
            Some(name) => Err(self.not_found(name)),
            None => Ok(round.findings),
        }
    }
}

/// One verification.
struct Round<'a> {
    store: &'a Store,
    db: Db,
    options: VerifyOptions,
    findings: Vec<Finding>,
}

impl Round<'_> {
    fn tell(&mut self, name: &VolumeName, kind: FindingKind, what: impl Into<String>) {
        self.findings.push(Finding { name: name.clone(), what: what.into(), kind });
    }

    /// Tells of something that can be put right, after `repair` if that is wanted. What others do right
    /// now is not put right.
    fn repair(
        &mut self,
        name: &VolumeName,
        what: &str,
        repair: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !self.options.repair {
            self.tell(name, FindingKind::Repairable, what);
            return Ok(());
        }
        match repair(self) {
            Err(error) if error.kind() == ErrorKind::InUse => {
                self.tell(name, FindingKind::Note, format!("{what}, and in use"));
                Ok(())
            }
            result => {
                result?;
                self.tell(name, FindingKind::Repaired, what);
                Ok(())
            }
        }
    }

    fn row(&mut self, row: &Row) -> Result<(), Error> {
        let (store, name) = (self.store, &row.name);
        // What was read before may be long ago.
        let now = self.db.volume(name)?.filter(|now| now.id == row.id);
        let Some(row) = &now else { return Ok(()) };
        let driver = store.driver_of(&self.db, &row.place.class)?;
        let place = store.home.join(&row.place.path);
        match row.state {
            State::Ready => self.ready(row, &*driver, &place),
            State::Removing => {
                self.repair(name, "was half removed", |round| store.remove_row(&round.db, row))
            }
            State::Preparing if driver.is_published(&place) => {
                self.repair(name, "is complete, but said to be preparing", |round| {
                    store.finish(&round.db, row)
                })
            }
            State::Preparing => match driver.left(&place) {
                LeftOver::Busy => {
                    let who = row.holder.map(|holder| format!(" by process {holder}"));
                    self.tell(
                        name,
                        FindingKind::Note,
                        format!("is being made{}", who.unwrap_or_default()),
                    );
                    Ok(())
                }
                LeftOver::Resumable if !self.options.drop_unfinished => {
                    self.unfinished(name);
                    Ok(())
                }
                _ => self.repair(name, "was begun and not finished", |round| {
                    store.remove_row(&round.db, row)
                }),
            },
        }
    }

    fn unfinished(&mut self, name: &VolumeName) {
        let what = "was begun and not finished; the same command goes on with it, \
                    `--drop-unfinished` removes it";
        self.tell(name, FindingKind::Note, what);
    }

    fn unregistered(&mut self, driver: &dyn Driver, found: &Found) -> Result<(), Error> {
        let (store, name) = (self.store, &found.name);
        let remove = |_: &mut Self| driver.remove(&found.path, None, &|| Ok(true));
        match (found.format, driver.left(&found.path)) {
            (Some(_), _) => self.repair(name, "is not in the database", |round| {
                store.adopt(&mut round.db, |adopted| adopted == name)
            }),
            (None, LeftOver::Busy) => Ok(()),
            (None, LeftOver::Resumable) if !self.options.drop_unfinished => {
                self.unfinished(name);
                Ok(())
            }
            (None, LeftOver::Nothing) if !is_empty(found.path.parent()) => Ok(()),
            (None, _) => self.repair(name, "was begun and not finished", remove),
        }
    }

    /// A volume that is complete, or should be.
    fn ready(&mut self, row: &Row, driver: &dyn Driver, place: &Path) -> Result<(), Error> {
        let name = &row.name;
        if !place.exists() {
            let what = format!("is lost: there is no `{}`", place.display());
            self.tell(name, FindingKind::Damage, what);
            return Ok(());
        }
        if self.options.repair && driver.sweep(place) {
            self.tell(name, FindingKind::Repaired, "had a second name");
        }
        let size = measure(place, row.place.format);
        let is_shorter = match row.place.format {
            // A device may be larger than its volume.
            OutputFormat::Raw => size < row.size,
            _ => size == 0,
        };
        if is_shorter {
            let [found, expected] = [size, row.size].map(ByteSize::from_bytes);
            let what = format!("is damaged: expected a disk of {expected}, got {found}");
            self.tell(name, FindingKind::Damage, what);
            return Ok(());
        }
        // A file for a loop device has whole sectors.
        let is_other = size.abs_diff(row.size) >= SECTOR_MAX && driver.is_published(place);
        let has_grown = is_other && Hold::of(name, place).is_ok();
        if has_grown {
            self.repair(name, "has another size than was noted", |round| {
                round.db.resized(row.id, size)
            })?;
        }
        match self.options.deep {
            true => self.deep(row, &driver.attached(place)),
            false => Ok(()),
        }
    }

    /// Reads all of a volume, and compares it with its fingerprint if nobody has changed it since.
    fn deep(&mut self, row: &Row, path: &Path) -> Result<(), Error> {
        let name = &row.name;
        let disk = match AttachedDisk::open(path, true) {
            Err(error) if error.kind() == ErrorKind::InUse => {
                self.tell(name, FindingKind::Note, "is in use, and was not read");
                return Ok(());
            }
            attached => attached?,
        };
        let found = fingerprint(path, row.place.format, row.size);
        drop(disk);
        match (found, row.facts.fingerprint) {
            (Err(why), _) => self.tell(name, FindingKind::Damage, format!("cannot be read: {why}")),
            (Ok(_), None) => {
                self.tell(name, FindingKind::Note, "has no fingerprint to compare with");
            }
            (Ok(_), Some(_)) if row.written => {
                self.tell(
                    name,
                    FindingKind::Note,
                    "was written to since its fingerprint was taken",
                );
            }
            (Ok(found), Some(expected)) if found != expected => {
                let what = format!("is damaged: expected {expected}, got {found}");
                self.tell(name, FindingKind::Damage, what);
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_empty(folder: Option<&Path>) -> bool {
    folder.is_some_and(|folder| {
        fs_err::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
    })
}

fn fingerprint(path: &Path, format: OutputFormat, size: u64) -> Result<Fingerprint, String> {
    let open = || FileAt::new(fs_err::File::open(path)?.into_file());
    let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let file = open().map_err(|error| error.to_string())?;
    let found = match format {
        OutputFormat::Raw => {
            let holes = fs_err::File::open(path).map_err(|error| error.to_string())?.into_file();
            Fingerprint::of(&Raw { file, holes, size }, workers)
        }
        _ => bootyard_image::open(file).and_then(|disk| Fingerprint::of(&*disk, workers)),
    };
    found.map_err(|error| error.to_string())
}

/// The first `size` bytes of a file or device, with its holes.
#[derive(Debug)]
struct Raw {
    file: FileAt,
    holes: std::fs::File,
    size: u64,
}

impl Disk for Raw {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), bootyard_image::Error> {
        let read = self.file.read_exact_at(buf, offset);
        read.map_err(|error| bootyard_image::Error::read(error, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, bootyard_image::Error> {
        let found = fsops::hole_at(&self.holes, offset, self.size);
        // A device has no holes to find.
        let (len, zero) = found.unwrap_or((self.size - offset, false));
        Ok(Extent { len, zero })
    }
}
