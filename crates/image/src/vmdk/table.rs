//! The grain directory and the grain tables: where a grain of an extent is.

use std::collections::HashSet;

use super::header::{Header, MARKER_LEN};
use crate::Error;
use crate::error::corrupt;
use crate::raw::SECTOR;

/// "Grain Table": in an extent that says so, the grain reads as zeros, whatever a parent has.
const ZEROED: u32 = 1;

/// Where the bytes of one grain are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nowhere: it reads as zeros.
    Zero,
    /// At this offset of the file.
    Data { host: u64 },
    /// Compressed, behind a marker at this offset of the file.
    Packed { host: u64 },
}

impl Mapping {
    /// True if a grain at `next`, `run` bytes behind this one's on the disk, is so in the file.
    pub(super) fn continues(self, run: u64, next: Self) -> bool {
        match self {
            Self::Zero => next == Self::Zero,
            Self::Data { host } => next == Self::Data { host: host + run },
            Self::Packed { .. } => false,
        }
    }
}

/// Turns the entries of one extent's tables into places.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    grain_size: u64,
    zeroed: bool,
    compressed: bool,
    fixed: [(u64, u64); 3],
    /// The grain tables that were named so far. Nobody who writes an extent uses a table twice,
    /// since then a write to one part of the disk would appear in another; but a small file could
    /// so claim to hold any amount of data.
    named: HashSet<u32>,
}

impl Tables {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            grain_size: header.grain_size(),
            zeroed: header.has_zeroed_grains(),
            compressed: header.compressed,
            fixed: header.fixed_parts(),
            named: HashSet::new(),
        }
    }

    /// The offset of a grain table by its entry in the directory, which stands at `at`, if there is
    /// one. To be called once for each.
    pub(super) fn name_table(&mut self, entry: u32, at: u64) -> Result<Option<u64>, Error> {
        if entry == 0 {
            return Ok(None);
        }
        let host = u64::from(entry) * SECTOR;
        self.check_overlap("grain table", host, Header::gt_len(), at)?;
        let reach = (Header::gt_len() / SECTOR - 1) as u32;
        let near = entry.saturating_sub(reach)..=entry.saturating_add(reach);
        if near.into_iter().any(|other| self.named.contains(&other)) {
            return Err(corrupt(format!("the grain table at {host:#x} overlaps another"), at));
        }
        self.named.insert(entry);
        Ok(Some(host))
    }

    /// All tables are named: forgets them.
    pub(super) fn all_named(&mut self) {
        self.named = HashSet::new();
    }

    /// Where a grain is, by its entry in a grain table, which stands at `at`.
    pub(super) fn mapping(&self, entry: u32, at: u64) -> Result<Mapping, Error> {
        let host = u64::from(entry) * SECTOR;
        match entry {
            0 => Ok(Mapping::Zero),
            ZEROED if self.zeroed => Ok(Mapping::Zero),
            _ if self.compressed => {
                self.check_overlap("grain", host, MARKER_LEN, at)?;
                Ok(Mapping::Packed { host })
            }
            _ => {
                self.check_overlap("grain", host, self.grain_size, at)?;
                Ok(Mapping::Data { host })
            }
        }
    }

    fn check_overlap(&self, what: &str, host: u64, len: u64, at: u64) -> Result<(), Error> {
        if self.fixed.iter().any(|(begin, end)| host < *end && *begin < host + len) {
            return Err(corrupt(format!("the {what} at {host:#x} overlaps the metadata"), at));
        }
        Ok(())
    }
}

/// The entries of a table as numbers.
pub(super) fn entries(table: &[u8]) -> impl ExactSizeIterator<Item = u32> {
    let word =
        |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("chunks_exact gives four bytes"));
    table.chunks_exact(4).map(word)
}
