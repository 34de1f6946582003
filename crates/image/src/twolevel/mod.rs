//! Disks whose image has tables of two levels: an entry of the L1 table says where an L2 table is, an
//! entry of that where a cluster of the disk is. Both have eight bytes. qcow of version 1 and QED are
//! such; each turns entries of its own kind into these. Knows no format.

mod disk;
mod push;

use std::collections::BTreeSet;

use crate::codec::Codec;
use crate::error::corrupt;
use crate::{Disk, Error, ErrorKind, OpenOptions};

pub use disk::TwoLevelDisk;
pub(crate) use push::TwoLevelMap;

/// The part of an L1 table that the disk needs has at most this many bytes, as in qcow2.
const L1_BYTES_MAX: u64 = 32 << 20;
/// How many L2 tables may be named: what maps 2 TiB with the usual 2 MiB a table in a qcow, 2 PiB
/// in a QED. Knowing them apart takes some 20 MiB then.
const L2_TABLES_MAX: usize = 1 << 20;
/// The end of any file.
const FILE_MAX: u64 = i64::MAX as u64;

/// What the tables of an image mean.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    /// The size of the disk.
    pub(crate) virtual_size: u64,
    /// The bytes of a cluster, a power of two.
    pub(crate) cluster: u64,
    /// Where the L1 table is.
    pub(crate) l1_at: u64,
    /// All of its bytes, also those that are for no part of the disk.
    pub(crate) l1_len: u64,
    /// The bytes of an L2 table, a power of two.
    pub(crate) l2_len: u64,
    /// The bytes of the header.
    pub(crate) header_len: u64,
    /// L2 tables and clusters stand at multiples of this.
    pub(crate) align: u64,
    /// The byte order of entries.
    pub(crate) word: fn([u8; 8]) -> u64,
    /// What an entry of an L2 table says of a cluster of so many bytes.
    pub(crate) decode: fn(u64, u64) -> Mapping,
    /// How compressed clusters are compressed, if there may be some.
    pub(crate) codec: Option<Codec>,
}

/// Where the bytes of a run of the disk are: those of its first byte, and the others behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Not in the image: on its backing disk, or else it reads as zeros.
    Absent,
    /// Nowhere: it reads as zeros.
    Zero,
    /// At this host offset.
    Data { host: u64 },
    /// Part of a cluster that is compressed in these bytes.
    Packed { host: u64, len: u64 },
}

/// A part of the disk whose bytes follow each other in the file too, or are all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    guest: u64,
    len: u64,
    mapping: Mapping,
}

/// A part of an L2 table.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    entries: &'a [u64],
    /// Where it stands.
    at: u64,
    /// The first byte of the disk that it maps.
    first: u64,
}

impl Geometry {
    /// Checks that the disk's part of the L1 table is of a size that is read, that the table maps the
    /// disk, and that it has a place in a file. `size_at` and `place_at` are where the header tells
    /// of the disk's size and of that place.
    pub(crate) fn check(&self, size_at: u64, place_at: u64) -> Result<(), Error> {
        let size = self.virtual_size;
        let too_large = |what| Err(Error::new(ErrorKind::TooLarge, what).at(size_at));
        if size > FILE_MAX {
            return too_large(format!("a disk of {size} bytes is beyond 2^63 - 1"));
        }
        let needed = self.l1_needed();
        if needed > self.l1_len {
            let len = self.l1_len;
            let what = format!("an L1 table of {len} bytes is too short for a disk of {size}");
            return Err(corrupt(what, size_at));
        }
        if needed > L1_BYTES_MAX {
            let what = format!(
                "expected a disk with an L1 table of at most {L1_BYTES_MAX} bytes, got {needed}"
            );
            return too_large(what);
        }
        let at = self.l1_at;
        if at < self.header_len {
            return Err(corrupt("the L1 table overlaps the header", place_at));
        }
        if at.checked_add(self.l1_len).is_none_or(|end| end > FILE_MAX) {
            return Err(corrupt(format!("the L1 table at {at:#x} is beyond any file"), place_at));
        }
        Ok(())
    }

    /// The bytes of the disk that one L2 table maps.
    const fn coverage(&self) -> u64 {
        self.l2_len / 8 * self.cluster
    }

    /// How many bytes of the L1 table are for what the disk has.
    const fn l1_needed(&self) -> u64 {
        self.virtual_size.div_ceil(self.coverage()) * 8
    }

    /// The entries of a table as numbers.
    fn entries(&self, table: &[u8]) -> impl Iterator<Item = u64> {
        let word = self.word;
        table
            .chunks_exact(8)
            .map(move |bytes| word(bytes.try_into().expect("chunks_exact gives eight bytes")))
    }

    /// The run of the disk from `guest` on, up to `end` at most. `part` maps its first byte.
    fn run(&self, part: Part<'_>, guest: u64, end: u64) -> Result<Run, Error> {
        let index = (guest - part.first) / self.cluster;
        let skip = guest % self.cluster;
        let first = self.mapping(part, index)?;
        let mut len = self.cluster - skip;
        // An error in what follows is found when that is asked for.
        for next in index + 1..part.entries.len() as u64 {
            let follows = match (first, self.mapping(part, next)) {
                _ if len >= end - guest => false,
                (Mapping::Data { host }, Ok(next)) => {
                    next == Mapping::Data { host: host + skip + len }
                }
                (Mapping::Absent | Mapping::Zero, Ok(next)) => next == first,
                (Mapping::Packed { .. }, _) | (_, Err(_)) => false,
            };
            if !follows {
                break;
            }
            len += self.cluster;
        }
        let mapping = match first {
            Mapping::Data { host } => Mapping::Data { host: host + skip },
            other => other,
        };
        Ok(Run { guest, len: len.min(end - guest), mapping })
    }

    /// Where a cluster is, by its entry in `part`.
    fn mapping(&self, part: Part<'_>, index: u64) -> Result<Mapping, Error> {
        let mapping = (self.decode)(part.entries[index as usize], self.cluster);
        let at = part.at + index * 8;
        match mapping {
            Mapping::Absent | Mapping::Zero => {}
            Mapping::Data { host } => {
                self.check_aligned("data cluster", host, at)?;
                self.check_place("data cluster", host, self.cluster, at)?;
            }
            Mapping::Packed { host, len: 0 } => {
                let what = format!("the compressed cluster at {host:#x} has no bytes");
                return Err(corrupt(what, at));
            }
            Mapping::Packed { host, len } => {
                self.check_place("compressed cluster", host, len, at)?;
            }
        }
        Ok(mapping)
    }

    fn check_aligned(&self, what: &str, host: u64, at: u64) -> Result<(), Error> {
        if host.is_multiple_of(self.align) {
            return Ok(());
        }
        let align = self.align;
        Err(corrupt(format!("the {what} at {host:#x} is not on a multiple of {align} bytes"), at))
    }

    fn check_place(&self, what: &str, host: u64, len: u64, at: u64) -> Result<(), Error> {
        let Some(end) = host.checked_add(len).filter(|end| *end <= FILE_MAX) else {
            return Err(corrupt(format!("the {what} at {host:#x} is beyond any file"), at));
        };
        let l1 = self.l1_at..self.l1_at + self.l1_len;
        if host < self.header_len || (host < l1.end && l1.start < end) {
            return Err(corrupt(format!("the {what} at {host:#x} overlaps the metadata"), at));
        }
        Ok(())
    }
}

/// The L2 tables that were named so far. Nobody who writes an image uses a table twice, since then a
/// write to one part of the disk would appear in another; but a small file could so claim to hold
/// any amount of data.
#[derive(Debug, Default)]
struct Named {
    tables: BTreeSet<u64>,
}

impl Named {
    /// The place of an L2 table by its entry, which stands at `at`, if there is one. To be called
    /// once for each.
    fn add(&mut self, geometry: &Geometry, entry: u64, at: u64) -> Result<Option<u64>, Error> {
        if entry == 0 {
            return Ok(None);
        }
        geometry.check_aligned("L2 table", entry, at)?;
        geometry.check_place("L2 table", entry, geometry.l2_len, at)?;
        let near = entry.saturating_sub(geometry.l2_len - 1)..entry + geometry.l2_len;
        if self.tables.range(near).next().is_some() {
            return Err(corrupt(format!("the L2 table at {entry:#x} overlaps another"), at));
        }
        self.tables.insert(entry);
        if self.tables.len() > L2_TABLES_MAX {
            let what = format!("the L1 table names more than {L2_TABLES_MAX} L2 tables");
            return Err(Error::new(ErrorKind::TooLarge, what).at(at));
        }
        Ok(Some(entry))
    }
}

/// Takes the backing disk out of `options` for an image that names its backing file `name` in the
/// field at `at`: without it such an image is not read, and with it no other.
pub(crate) fn take_backing(
    options: OpenOptions,
    name: Option<&str>,
    at: u64,
) -> Result<Option<Box<dyn Disk>>, Error> {
    match (name, options.backing) {
        (Some(name), None) => Err(needs_backing(name, at)),
        (None, Some(_)) => {
            let what = "the image is no overlay, but a backing disk was given";
            Err(Error::new(ErrorKind::Mismatch, what).at(at))
        }
        (_, backing) => Ok(backing),
    }
}

/// The refusal of an overlay over the file `name`.
pub(crate) fn needs_backing(name: &str, at: u64) -> Error {
    let what = format!("the image is an overlay over another file, `{name}`");
    Error::new(ErrorKind::NeedsOtherFile, what).at(at)
}
