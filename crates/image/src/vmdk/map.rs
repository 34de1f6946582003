//! Decoding a sparse extent from a stream: its tables in the order in which they name each other.
//!
//! The redundant directory is read for one purpose: the tables that it names are not worth holding.

use std::fmt;

use super::header::{HEADER_LEN, Header};
use super::table::{Mapping, Tables, entries};
use crate::Error;
use crate::raw::SECTOR;
use crate::stream::{Layout, Place, Wants};

/// The tables of one extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Redundant,
    Directory,
    Grains,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redundant => "redundant grain directory",
            Self::Directory => "grain directory",
            Self::Grains => "grain table",
        })
    }
}

/// The way from an extent's header to its grains.
#[derive(Debug)]
pub(crate) struct Map {
    header: Header,
    tables: Tables,
    pub(super) virtual_size: u64,
}

impl Map {
    pub(super) fn new(header: Header, virtual_size: u64) -> Self {
        Self { tables: Tables::new(&header), header, virtual_size }
    }

    /// Where the grain directory stands, which all else hangs on.
    pub(super) const fn directory_at(&self) -> u64 {
        match self.header.gd_offset() {
            Some(at) => at,
            None => 0,
        }
    }

    /// Skips the redundant tables, those that follow each other at once.
    fn redundant(table: &[u8], wants: &mut Wants<Table>) {
        let mut run = 0..0;
        for entry in entries(table).filter(|entry| *entry != 0) {
            let at = u64::from(entry) * SECTOR;
            if run.end != at {
                wants.skip(run.start, run.end - run.start);
                run.start = at;
            }
            run.end = at + Header::gt_len();
        }
        wants.skip(run.start, run.end - run.start);
    }

    fn directory(
        &mut self,
        Place { at, guest }: Place,
        table: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        let coverage = self.header.gt_coverage();
        for (index, entry) in (0..).zip(entries(table)) {
            let (at, guest) = (at + index * 4, guest + index * coverage);
            match self.tables.name_table(entry, at)? {
                None => wants.zero(guest, coverage),
                Some(host) => {
                    let per_byte = self.header.grain_size() / 4;
                    wants.table(Table::Grains, host, Header::gt_len(), (guest, per_byte));
                }
            }
        }
        Ok(())
    }

    fn grains(
        &self,
        Place { at, guest }: Place,
        table: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        let grain = self.header.grain_size();
        for (index, entry) in (0..).zip(entries(table)) {
            let guest = guest + index * grain;
            if guest >= self.virtual_size {
                break;
            }
            match self.tables.mapping(entry, at + index * 4)? {
                Mapping::Data { host } => wants.data(host, guest, grain),
                // Compressed grains are told apart before there is a map.
                Mapping::Zero | Mapping::Packed { .. } => wants.zero(guest, grain),
            }
        }
        Ok(())
    }
}

impl Layout for Map {
    type Table = Table;

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn start(&mut self, wants: &mut Wants<Table>) -> Result<(), Error> {
        wants.skip(0, HEADER_LEN);
        let len = self.header.gd_len();
        if let Some(at) = self.header.redundant_gd() {
            wants.table(Table::Redundant, at, len, (0, 0));
        }
        let at = self.header.gd_offset().unwrap_or_default();
        wants.table(Table::Directory, at, len, (0, self.header.gt_coverage() / 4));
        Ok(())
    }

    fn table(
        &mut self,
        table: Table,
        place: Place,
        bytes: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        match table {
            Table::Redundant => Self::redundant(bytes, wants),
            Table::Directory => self.directory(place, bytes, wants)?,
            Table::Grains => self.grains(place, bytes, wants)?,
        }
        Ok(())
    }

    fn most_wants(&self, table: Table, len: usize) -> usize {
        match table {
            Table::Redundant => 0,
            Table::Directory | Table::Grains => len / 4,
        }
    }
}
