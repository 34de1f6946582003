//! A journal: notes beside a disk that is being written, from which the next process goes on.
//!
//! The file is a sequence of records, each written at once behind the last one:
//! ```text
//! length of the payload u32 │ CRC-32C of kind and payload u32 │ kind u8 │ payload      (little endian)
//! ```
//! What a record means is its writer's matter. The first record that is cut off or damaged ends the
//! journal: a power cut loses the end of a file, and nothing behind that is believed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

use crate::Error;

/// The largest journal that is read: a hundred times what an import writes.
const JOURNAL_MAX: u64 = 1 << 30;
/// What stands before a payload.
const HEAD: usize = 9;

/// One note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which kind of note it is.
    pub kind: u8,
    /// The note.
    pub payload: Vec<u8>,
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal `path` to write behind its records, of which it keeps those that are in
    /// `records`, or to begin it if there are none.
    pub(crate) fn open(path: &Path, records: &[Record]) -> Result<Self, Error> {
        let failed = |error| Error::io(error, path, "cannot write the journal");
        let mut options = fs_err::OpenOptions::new();
        options.create(true).append(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(path).map_err(failed)?.into_file();
        let len = records.iter().map(|record| (HEAD + record.payload.len()) as u64).sum();
        file.set_len(len).map_err(failed)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes a record behind the others.
    pub fn append(&mut self, kind: u8, payload: &[u8]) -> Result<(), Error> {
        let mut record = Vec::with_capacity(HEAD + payload.len());
        let len = u32::try_from(payload.len()).expect("a note is smaller than 4 GiB");
        record.extend_from_slice(&len.to_le_bytes());
        record.extend_from_slice(&checksum(kind, payload).to_le_bytes());
        record.push(kind);
        record.extend_from_slice(payload);
        self.file
            .write_all(&record)
            .map_err(|error| Error::io(error, &self.path, "cannot write the journal"))
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<(), Error> {
        self.file
            .sync_data()
            .map_err(|error| Error::io(error, &self.path, "cannot write the journal"))
    }
}

fn checksum(kind: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload)
}

/// The records of the journal `path` up to the first damage. None if there is no journal, or one
/// that this user has not written: others may leave files in a shared folder.
pub(crate) fn read(path: &Path) -> Vec<Record> {
    read_own(path).map(|bytes| parse(&bytes)).unwrap_or_default()
}

fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = fs_err::OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = options.read(true).custom_flags(flags.bits() as i32).open(path)?.into_file();
    let found = file.metadata()?;
    if !found.is_file() || !is_own(&found) || found.len() > JOURNAL_MAX {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(bytes)
}

/// Whether a file is this user's, and nobody else may write to it.
pub(crate) fn is_own(found: &std::fs::Metadata) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & OTHERS_WRITE == 0
}

fn parse(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((record, rest)) = parse_one(bytes) {
        records.push(record);
        bytes = rest;
    }
    records
}

fn parse_one(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (expected, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first()?;
    let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let whole = checksum(*kind, payload) == u32::from_le_bytes(*expected);
    whole.then(|| (Record { kind: *kind, payload: payload.to_vec() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, payload: &[u8]) -> Record {
        Record { kind, payload: payload.to_vec() }
    }

    #[test]
    fn a_journal_ends_at_its_first_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert_eq!(read(&path), []);
        let all = [record(1, b"first"), record(2, b""), record(3, &[7; 3000])];
        let mut journal = Journal::open(&path, &[]).unwrap();
        all.iter().for_each(|record| journal.append(record.kind, &record.payload).unwrap());
        journal.sync().unwrap();
        assert_eq!(read(&path), all);
        let whole = fs_err::read(&path).unwrap();
        let ends = [14, 23, 23 + 9 + 3000];
        for cut in 0..=whole.len() {
            let count = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(parse(&whole[..cut]), all[..count], "{cut}");
        }
        for at in 0..23 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged), all[..usize::from(at >= 14)], "{at}");
        }
    }

    #[test]
    fn what_is_written_after_damage_follows_the_last_good_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        Journal::open(&path, &[]).unwrap().append(1, b"kept").unwrap();
        let mut torn = fs_err::read(&path).unwrap();
        torn.extend_from_slice(b"torn");
        fs_err::write(&path, torn).unwrap();
        let kept = read(&path);
        Journal::open(&path, &kept).unwrap().append(2, b"new").unwrap();
        assert_eq!(read(&path), [record(1, b"kept"), record(2, b"new")]);
    }

    #[test]
    fn the_journal_of_somebody_else_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        Journal::open(&path, &[]).unwrap().append(1, b"x").unwrap();
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs_err::set_permissions(&path, mode(0o666)).unwrap();
        assert_eq!(read(&path), []);
        fs_err::set_permissions(&path, mode(0o600)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link), []);
    }
}
