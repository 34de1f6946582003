//! What the store knows of its volumes, in SQLite: the only file with SQL.
//!
//! A connection lives as long as one operation of the store. Many processes write at once, one after
//! the other (write-ahead log); who waits longer than [`BUSY_MAX`] gets an error. What is committed
//! survives a power cut.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bootyard_spec::{OutputFormat, VolumeName, shell_word};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row as SqlRow, Transaction,
    TransactionBehavior, named_params, params, types,
};

use super::{Facts, State};
use crate::{Error, ErrorKind, fsops};

mod class;

/// The file in the store's folder.
const FILE: &str = "bootyard.db";
/// Who makes or migrates the database holds this file's lock.
const LOCK_FILE: &str = ".bootyard.db.lock";
/// What is set aside for removing volumes from a full file system, and how many bytes.
const RESERVE_FILE: &str = "bootyard.db-reserve";
const RESERVE: u64 = 1 << 20;
/// How long another process may write. One transaction takes milliseconds, and a slow disk seconds.
const BUSY_MAX: Duration = Duration::from_secs(60);
/// What leads from each version of the schema to the next: `user_version` counts those that are done.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];

/// A connection to the database of one store.
#[derive(Debug)]
pub(super) struct Db {
    connection: Connection,
    path: PathBuf,
}

/// A volume as it is in the database.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) name: VolumeName,
    pub(super) place: Place,
    pub(super) state: State,
    pub(super) size: u64,
    pub(super) facts: Facts,
    pub(super) written: bool,
    pub(super) owner: Option<String>,
    pub(super) holder: Option<u32>,
    pub(super) created: i64,
}

/// What a volume is and where, from its first moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) class: bootyard_spec::StorageClassName,
    pub(super) volume_mode: bootyard_spec::VolumeMode,
    pub(super) access_modes: bootyard_spec::AccessModes,
    pub(super) format: OutputFormat,
    pub(super) content_type: String,
    /// Relative to the store's folder where it is in there.
    pub(super) path: PathBuf,
}

/// What came of an attempt to claim a name.
#[derive(Debug)]
pub(super) enum Claimed {
    /// It is ours, under this number.
    Ours(i64),
    /// Somebody else has the name.
    Taken,
    /// Somebody else has the place.
    PlaceTaken,
    /// The class was removed meanwhile.
    NoClass,
}

impl Db {
    /// The database in `home`, if there is one. What cannot be written is read as it stands.
    pub(super) fn read(home: &Path) -> Result<Option<Self>, Error> {
        let path = home.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let opened = Self::connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let db = match opened.and_then(|db| db.version().map(|version| (db, version))) {
            // Others may look, but only who writes can keep an index of the log.
            Err(error) if error.kind() == ErrorKind::InUse => return Err(error),
            Err(_) => Self::immutable(&path)?,
            Ok((db, version)) if version < MIGRATIONS.len() => {
                if db.is_read_only() {
                    return Ok(None);
                }
                drop(db);
                Self::write(home)?
            }
            Ok((db, _)) => db,
        };
        db.refuse_newer()?;
        Ok(Some(db))
    }

    /// The database in `home`, which is made, or brought to this version, where it has to be.
    pub(super) fn write(home: &Path) -> Result<Self, Error> {
        let path = home.join(FILE);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Error::read_only(home),
            _ => Error::io(error, &path, "cannot write to the store"),
        };
        fs_err::create_dir_all(home).map_err(failed)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let found = Self::connect(&path, flags);
        if let Ok(db) = &found
            && db.version().is_ok_and(|version| version == MIGRATIONS.len())
        {
            if db.is_read_only() {
                return Err(Error::read_only(home));
            }
            return found;
        }
        let lock = fs_err::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(home.join(LOCK_FILE));
        let lock = lock.map_err(failed)?.into_file();
        lock.lock().map_err(failed)?;
        let mut db = Self::connect(&path, flags)?;
        if db.is_read_only() {
            return Err(Error::read_only(home));
        }
        db.refuse_newer()?;
        let migrated = db.migrate();
        migrated.map_err(|error| db.failed(error))?;
        Self::put_reserve(home);
        Ok(db)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, Error> {
        let open = || {
            let connection =
                Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(BUSY_MAX)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| failure(error, path))?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// A file that nobody writes, or that we could not watch being written.
    fn immutable(path: &Path) -> Result<Self, Error> {
        let mut uri = "file:".to_owned();
        for byte in path.as_os_str().as_bytes() {
            match byte {
                b'/' | b'-' | b'.' | b'_' => uri.push(char::from(*byte)),
                byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
                byte => write!(uri, "%{byte:02x}").expect("a text takes all"),
            }
        }
        uri.push_str("?mode=ro&immutable=1");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri, flags);
        let connection = connection.map_err(|error| failure(error, path))?;
        let db = Self { connection, path: path.to_owned() };
        db.version()?;
        Ok(db)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.connection.is_readonly("main").unwrap_or(true)
    }

    fn version(&self) -> Result<usize, Error> {
        let version = self.connection.pragma_query_value(None, "user_version", |row| row.get(0));
        version.map_err(|error| self.failed(error))
    }

    fn refuse_newer(&self) -> Result<(), Error> {
        let (found, known) = (self.version()?, MIGRATIONS.len());
        if found <= known {
            return Ok(());
        }
        let what = format!("the store is of version {found}; expected at most {known}");
        let hint = "use the bootyard that made it, or a newer one";
        Err(Error::new(ErrorKind::Database, &self.path, what).with_hint(hint))
    }

    /// Must be called by one process at a time: the change to a write-ahead log waits for nobody.
    fn migrate(&mut self) -> rusqlite::Result<()> {
        self.connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        let work = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done: usize = work.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for migration in MIGRATIONS.iter().skip(done) {
            work.execute_batch(migration)?;
        }
        work.pragma_update(None, "user_version", MIGRATIONS.len())?;
        work.commit()
    }

    fn failed(&self, error: rusqlite::Error) -> Error {
        failure(error, &self.path)
    }

    fn transact<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let path = self.path.clone();
        let run = || {
            let behavior = TransactionBehavior::Immediate;
            let transaction = self.connection.transaction_with_behavior(behavior)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        run().map_err(|error| failure(error, &path))
    }

    fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize, Error> {
        self.connection.execute(sql, parameters).map_err(|error| self.failed(error))
    }

    /// Fails where the database is damaged.
    pub(super) fn check(&self) -> Result<(), Error> {
        let found = self.connection.pragma_query_value(None, "quick_check", |row| row.get(0));
        match found {
            Ok::<String, _>(found) if found == "ok" => Ok(()),
            Ok(found) => Err(self.failed(rusqlite::Error::ToSqlConversionFailure(found.into()))),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Every volume, by name.
    pub(super) fn volumes(&self) -> Result<Vec<Row>, Error> {
        let query = || {
            let mut statement = self.connection.prepare("SELECT * FROM volume ORDER BY name")?;
            let rows: Vec<Row> = statement.query_map([], row)?.collect::<rusqlite::Result<_>>()?;
            let label = |row| labelled(&self.connection, row);
            rows.into_iter().map(label).collect::<rusqlite::Result<Vec<_>>>()
        };
        query().map_err(|error| self.failed(error))
    }

    /// The volume of this name.
    pub(super) fn volume(&self, name: &VolumeName) -> Result<Option<Row>, Error> {
        find(&self.connection, name).map_err(|error| self.failed(error))
    }

    /// Enters a volume that process `holder` prepares, in place of the row `instead` if that is still
    /// there.
    pub(super) fn claim(
        &mut self,
        name: &VolumeName,
        place: &Place,
        instead: Option<i64>,
        holder: u32,
    ) -> Result<Claimed, Error> {
        self.transact(|work| {
            if let Some(row) = find(work, name)? {
                if Some(row.id) != instead || row.state != State::Preparing {
                    return Ok(Claimed::Taken);
                }
                work.execute("DELETE FROM volume WHERE id = ?1", [row.id])?;
            }
            let class = "SELECT EXISTS (SELECT 1 FROM class WHERE name = ?1)";
            if !work.query_row(class, [place.class.as_str()], |row| row.get(0))? {
                return Ok(Claimed::NoClass);
            }
            let path = place.path.as_os_str().as_bytes();
            let taken = "SELECT EXISTS (SELECT 1 FROM volume WHERE path = ?1)";
            if work.query_row(taken, [path], |row| row.get(0))? {
                return Ok(Claimed::PlaceTaken);
            }
            insert(work, name, place, State::Preparing, 0, Some(holder)).map(Claimed::Ours)
        })
    }

    /// Enters a disk that stands under its final name as a volume. Somebody else may just have done so.
    pub(super) fn adopt(
        &mut self,
        name: &VolumeName,
        place: &Place,
        size: u64,
        is_there: impl FnOnce() -> bool,
    ) -> Result<(), Error> {
        self.transact(|work| match find(work, name)? {
            Some(_) => Ok(()),
            // Whoever removes a disk has a row until it is gone.
            None if !is_there() => Ok(()),
            None => insert(work, name, place, State::Ready, size, None).map(|_| ()),
        })
    }

    /// Notes what is known of a volume that is about to be published.
    pub(super) fn describe(&mut self, id: i64, size: u64, facts: &Facts) -> Result<(), Error> {
        self.transact(|work| {
            work.execute(
                "UPDATE volume SET size = :size, source = :source, sha256 = :sha256,
                     fingerprint = :fingerprint, parent = :parent WHERE id = :id",
                named_params! {
                    ":id": id,
                    ":size": size,
                    ":source": facts.source,
                    ":sha256": facts.sha256.as_ref().map(ToString::to_string),
                    ":fingerprint": facts.fingerprint.as_ref().map(ToString::to_string),
                    ":parent": facts.parent,
                },
            )?;
            let mut label = work.prepare("INSERT OR REPLACE INTO label VALUES (?1, ?2, ?3)")?;
            for (name, value) in &facts.labels {
                label.execute(params![id, name, value])?;
            }
            Ok(())
        })
    }

    /// The disk stands under its final name. `size` is what it has where nobody has noted that.
    pub(super) fn ready(&self, id: i64, size: u64) -> Result<(), Error> {
        let sql = "UPDATE volume SET state = 'ready', holder = NULL, created = unixepoch(),
                       size = iif(size = 0, ?2, size)
                   WHERE id = ?1 AND state = 'preparing'";
        self.execute(sql, params![id, size]).map(drop)
    }

    /// The disk is about to go. False if there is no such volume any more.
    pub(super) fn removing(&self, id: i64) -> Result<bool, Error> {
        let sql = "UPDATE volume SET state = 'removing' WHERE id = ?1 AND state != 'preparing'";
        self.execute(sql, [id]).map(|rows| rows > 0)
    }

    /// The disk is gone that was in this state.
    pub(super) fn forget(&self, id: i64, state: State) -> Result<(), Error> {
        let sql = "DELETE FROM volume WHERE id = ?1 AND state = ?2";
        self.execute(sql, params![id, state.name()]).map(drop)
    }

    /// Sets some space aside, so that what makes space can begin where there is none. Without it that
    /// may fail, and nothing else.
    pub(super) fn put_reserve(home: &Path) {
        let path = home.join(RESERVE_FILE);
        if path.exists() || !home.join(FILE).exists() {
            return;
        }
        let made =
            fs_err::File::create(&path).and_then(|file| fsops::preallocate(file.file(), RESERVE));
        if made.is_err() {
            Self::take_reserve(home);
        }
    }

    /// Gives that space free; false if there is none.
    pub(super) fn take_reserve(home: &Path) -> bool {
        fs_err::remove_file(home.join(RESERVE_FILE)).is_ok()
    }

    /// The disk has another size, and with it another fingerprint.
    pub(super) fn resized(&self, id: i64, size: u64) -> Result<(), Error> {
        let sql = "UPDATE volume SET size = ?2, written = 1 WHERE id = ?1";
        self.execute(sql, params![id, size]).map(drop)
    }

    /// A machine may change the disk from now on.
    pub(super) fn written(&self, id: i64) -> Result<(), Error> {
        let sql = "UPDATE volume SET written = 1 WHERE id = ?1 AND written = 0";
        self.execute(sql, [id]).map(drop)
    }
}

fn insert(
    work: &Transaction<'_>,
    name: &VolumeName,
    place: &Place,
    state: State,
    size: u64,
    holder: Option<u32>,
) -> rusqlite::Result<i64> {
    work.execute(
        "INSERT INTO volume (name, class, volume_mode, access_modes, format, content_type, path,
                             state, size, holder)
         VALUES (:name, :class, :volume_mode, :access_modes, :format, :content_type, :path,
                 :state, :size, :holder)",
        named_params! {
            ":name": name.as_str(),
            ":class": place.class.as_str(),
            ":volume_mode": place.volume_mode.name(),
            ":access_modes": place.access_modes.to_string(),
            ":format": place.format.extension(),
            ":content_type": place.content_type,
            ":path": place.path.as_os_str().as_bytes(),
            ":state": state.name(),
            ":size": size,
            ":holder": holder,
        },
    )?;
    Ok(work.last_insert_rowid())
}

fn find(connection: &Connection, name: &VolumeName) -> rusqlite::Result<Option<Row>> {
    let sql = "SELECT * FROM volume WHERE name = ?1";
    let found = connection.query_row(sql, [name.as_str()], row).optional()?;
    found.map(|row| labelled(connection, row)).transpose()
}

fn labelled(connection: &Connection, mut row: Row) -> rusqlite::Result<Row> {
    let mut statement =
        connection.prepare_cached("SELECT name, value FROM label WHERE volume = ?1")?;
    let labels = statement.query_map([row.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    row.facts.labels = labels.collect::<rusqlite::Result<BTreeMap<_, _>>>()?;
    Ok(row)
}

fn row(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        id: row.get("id")?,
        name: word(row, "name")?,
        place: Place {
            class: word(row, "class")?,
            volume_mode: word(row, "volume_mode")?,
            access_modes: word(row, "access_modes")?,
            format: word(row, "format")?,
            content_type: row.get("content_type")?,
            path: path(row, "path")?,
        },
        state: word(row, "state")?,
        size: row.get("size")?,
        facts: Facts {
            source: row.get("source")?,
            size: Some(row.get("size")?).filter(|size| *size > 0),
            sha256: optional(row, "sha256")?,
            fingerprint: optional(row, "fingerprint")?,
            parent: row.get("parent")?,
            labels: BTreeMap::new(),
        },
        written: row.get("written")?,
        owner: row.get("owner")?,
        holder: row.get("holder")?,
        created: row.get("created")?,
    })
}

fn path(row: &SqlRow<'_>, column: &str) -> rusqlite::Result<PathBuf> {
    Ok(OsString::from_vec(row.get(column)?).into())
}

/// A column whose text is one of our words.
fn word<T>(row: &SqlRow<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    optional(row, column)?
        .ok_or_else(|| rusqlite::Error::InvalidColumnType(0, column.to_owned(), types::Type::Null))
}

fn optional<T>(row: &SqlRow<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: Option<String> = row.get(column)?;
    let failed = |error| {
        let index = row.as_ref().column_index(column).unwrap_or(0);
        rusqlite::Error::FromSqlConversionFailure(index, types::Type::Text, Box::new(error))
    };
    text.map(|text| text.parse().map_err(failed)).transpose()
}

fn is_full(home: &Path) -> bool {
    let free = fs_err::File::open(home).and_then(|folder| fsops::free_bytes(folder.file()));
    free.is_ok_and(|free| free == 0)
}

/// Gives a failure of SQLite our words.
fn failure(error: rusqlite::Error, path: &Path) -> Error {
    use io::ErrorKind as Io;
    let home = path.parent().unwrap_or(path);
    let io =
        |kind, error| Error::io(io::Error::new(kind, error), path, "cannot write to the store");
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => io(Io::StorageFull, error),
        // SQLite does not say why its index of the log could not grow.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if is_full(home) => {
            io(Io::StorageFull, error)
        }
        Some(ErrorCode::PermissionDenied) => io(Io::PermissionDenied, error),
        Some(ErrorCode::ReadOnly) => Error::read_only(home),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let what = format!("other processes keep the store `{}` busy", home.display());
            let hint = format!("see who they are: `fuser -v {}`", shell_word(path));
            Error::new(ErrorKind::InUse, path, what).with_hint(hint)
        }
        _ => {
            let what = format!("cannot use the store's database `{}`", path.display());
            let hint = format!(
                "if it is damaged, move it away: `mv {0} {0}.damaged`; the volumes of the class \
                 `local` are found again without it",
                shell_word(path)
            );
            Error::database(io::Error::other(error), path, what).with_hint(hint)
        }
    }
}

#[cfg(test)]
impl Db {
    pub(super) fn set_state(&self, id: i64, state: State) {
        self.execute("UPDATE volume SET state = ?2 WHERE id = ?1", params![id, state.name()])
            .unwrap();
    }

    pub(super) fn set_version(&self, version: u32) {
        self.connection.pragma_update(None, "user_version", version).unwrap();
    }
}
