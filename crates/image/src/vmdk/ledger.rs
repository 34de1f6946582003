//! What has passed of a stream-optimized extent, in little memory: which grains, and whether the
//! tables agree.
//!
//! The tables may come before the grains or behind them, and in any order. So each sector of a table
//! is kept as a sum of hashes of its entries, and so is what the entries should have been; in the
//! end the sums must be the same. The hashes have a key that nobody knows.

use std::hash::{BuildHasher, RandomState};

use super::header::{GTES, Header};
use super::table::{Tables, entries};
use crate::error::{corrupt, too_large};
use crate::raw::SECTOR;
use crate::{Error, ErrorKind};

/// How many grains a stream may have: 8 TiB if they are of 64 KiB. Each costs a bit, and 128 of
/// them a sum of 8 bytes.
const GRAINS_MAX: u64 = 1 << 27;
/// How many sectors of tables are kept as sums of 16 bytes: what maps 8 TiB, or 4 TiB if there are
/// redundant tables too.
const TABLE_SECTORS_MAX: usize = 1 << 20;
/// Entries of a table in a sector.
const PER_SECTOR: u64 = SECTOR / 4;

#[derive(Debug)]
pub(super) struct Ledger {
    grain_sectors: u64,
    grains: u64,
    /// A bit for each grain that has passed.
    seen: Vec<u64>,
    key: RandomState,
    /// For each sector of the grain tables, in the order of the disk, what it should add up to.
    wanted: Vec<u64>,
    /// Sectors of tables, by their number in the file, and what they add up to.
    found: Vec<(u64, u64)>,
    /// The grain directory.
    directory: Vec<u8>,
    /// Where it begins.
    directory_at: Option<u64>,
}

impl Ledger {
    pub(super) fn new(header: &Header) -> Result<Self, Error> {
        let grains = header.capacity.div_ceil(header.grain_sectors);
        if grains > GRAINS_MAX {
            let what = format!("a stream of {grains} grains is beyond the limit of {GRAINS_MAX}");
            return Err(too_large(what, 0));
        }
        Ok(Self {
            grain_sectors: header.grain_sectors,
            grains,
            seen: vec![0; grains.div_ceil(64) as usize],
            key: RandomState::new(),
            wanted: vec![0; (grains.div_ceil(GTES) * (GTES / PER_SECTOR)) as usize],
            found: Vec::new(),
            directory: Vec::new(),
            directory_at: header.gd_offset(),
        })
    }

    /// Notes the grain of `sector`, whose marker stands at `at`.
    pub(super) fn grain(&mut self, sector: u64, at: u64) -> Result<(), Error> {
        let index = sector / self.grain_sectors;
        if !sector.is_multiple_of(self.grain_sectors) || index >= self.grains {
            return Err(corrupt(format!("there is no grain at sector {sector} of the disk"), at));
        }
        let (word, bit) = ((index / 64) as usize, 1 << (index % 64));
        if self.seen[word] & bit != 0 {
            return Err(corrupt(format!("the grain of sector {sector} comes twice"), at));
        }
        self.seen[word] |= bit;
        let Ok(place) = u32::try_from(at / SECTOR) else {
            return Err(too_large("a grain beyond 2 TiB of the file has no place in a table", at));
        };
        let hash = self.hash(index % PER_SECTOR, place);
        let sum = &mut self.wanted[(index / PER_SECTOR) as usize];
        *sum = sum.wrapping_add(hash);
        Ok(())
    }

    /// The directory begins at `at`.
    pub(super) fn directory_at(&mut self, at: u64) {
        self.directory_at = Some(at);
        self.directory.clear();
    }

    /// Notes a sector at `at` that may be of a table or of the directory.
    pub(super) fn sector(&mut self, sector: &[u8], at: u64, header: &Header) -> Result<(), Error> {
        if let Some(begin) = self.directory_at
            && (begin..begin + header.gd_len()).contains(&at)
        {
            let rest = (header.gd_len() - (at - begin)).min(SECTOR) as usize;
            self.directory.extend_from_slice(&sector[..rest]);
        }
        if self.found.len() == TABLE_SECTORS_MAX {
            return Err(too_large(format!("more than {TABLE_SECTORS_MAX} sectors of tables"), at));
        }
        let sum = (0..)
            .zip(entries(sector))
            .filter(|(_, entry)| *entry > u32::from(header.has_zeroed_grains()))
            .map(|(index, entry)| self.hash(index, entry))
            .fold(0, u64::wrapping_add);
        self.found.push((at / SECTOR, sum));
        Ok(())
    }

    /// Checks the tables that have passed against the grains. `cut` says that the file has
    /// no end-of-stream marker, so it may have lost its end.
    pub(super) fn check(&self, header: &Header, cut: bool) -> Result<(), Error> {
        let begin = header.gd_offset().unwrap_or_default();
        if self.directory_at != Some(begin) || self.directory.len() as u64 != header.gd_len() {
            return Err(corrupt("the grain directory is not where the header says", begin));
        }
        let mut tables = Tables::new(header);
        let per_table = (GTES / PER_SECTOR) as usize;
        let wanted = self.wanted.chunks_exact(per_table);
        for ((at, entry), wanted) in (begin..).step_by(4).zip(entries(&self.directory)).zip(wanted)
        {
            let agrees = match tables.name_table(entry, at)? {
                None => wanted.iter().all(|sum| *sum == 0),
                Some(host) => self.found_at(host / SECTOR, wanted),
            };
            if !agrees {
                let kind = if cut { ErrorKind::Truncated } else { ErrorKind::Corrupt };
                let what = "the grain table does not agree with the grains that have passed";
                return Err(Error::new(kind, what).at(u64::from(entry) * SECTOR));
            }
        }
        Ok(())
    }

    /// True if the sectors of tables from number `sector` on add up to `sums`.
    fn found_at(&self, sector: u64, sums: &[u64]) -> bool {
        let first = self.found.partition_point(|(number, _)| *number < sector);
        let there = self.found.get(first..first + sums.len()).unwrap_or_default();
        there.iter().copied().eq((sector..).zip(sums.iter().copied()))
    }

    /// Calls `each` with the place and length, in sectors, of each run of grains that did not come.
    pub(super) fn gaps(
        &self,
        mut each: impl FnMut(u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let seen = |index: u64| self.seen[(index / 64) as usize] >> (index % 64) & 1 == 1;
        let mut at = 0;
        while at < self.grains {
            let begin = at;
            while at < self.grains && !seen(at) {
                at += if at % 64 == 0 && self.seen[(at / 64) as usize] == 0 { 64 } else { 1 };
            }
            at = at.min(self.grains);
            if at > begin {
                each(begin * self.grain_sectors, (at - begin) * self.grain_sectors)?;
            }
            while at < self.grains && seen(at) {
                at += 1;
            }
        }
        Ok(())
    }

    fn hash(&self, index: u64, entry: u32) -> u64 {
        self.key.hash_one((index as u8, entry))
    }
}
