//! Decoding from a stream.

use std::fmt;

use super::{Geometry, Mapping, Named, Part, Run};
use crate::Error;
use crate::blockmap::check_inside;
use crate::codec::Codec;
use crate::stream::{Layout, Place, TABLE_PIECE, Wants};

/// The levels of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    L1,
    L2,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "L1 table",
            Self::L2 => "L2 table",
        })
    }
}

/// The way from an image's header to its clusters.
#[derive(Debug)]
pub(crate) struct TwoLevelMap {
    geometry: Geometry,
    named: Named,
    /// The L2 table that is farthest back.
    last: u64,
}

impl TwoLevelMap {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, named: Named::default(), last: 0 }
    }

    fn l1_table(
        &mut self,
        Place { at, guest }: Place,
        table: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        let Geometry { virtual_size, cluster, l2_len, .. } = self.geometry;
        let coverage = self.geometry.coverage();
        for (index, entry) in (0..).zip(self.geometry.entries(table)) {
            let (at, guest) = (at + index * 8, guest + index * coverage);
            let Some(l2) = self.named.add(&self.geometry, entry, at)? else {
                wants.zero(guest, coverage);
                continue;
            };
            self.last = self.last.max(l2);
            let mapped = coverage.min(virtual_size - guest);
            let len = mapped.div_ceil(cluster) * 8;
            wants.table(Table::L2, l2, len, (guest, cluster / 8));
            if len < l2_len {
                wants.skip(l2 + len, l2_len - len);
            }
        }
        Ok(())
    }

    fn l2_table(
        &self,
        Place { at, guest: first }: Place,
        table: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        let entries: Vec<u64> = self.geometry.entries(table).collect();
        let part = Part { entries: &entries, at, first };
        let mapped = entries.len() as u64 * self.geometry.cluster;
        let end = first.saturating_add(mapped).min(self.geometry.virtual_size);
        let mut at = first;
        while at < end {
            let Run { guest, len, mapping } = self.geometry.run(part, at, end)?;
            match mapping {
                Mapping::Absent | Mapping::Zero => wants.zero(guest, len),
                Mapping::Data { host } => wants.data(host, guest, len),
                Mapping::Packed { host, len } => wants.packed(host, guest, len),
            }
            at += len;
        }
        Ok(())
    }
}

impl Layout for TwoLevelMap {
    type Table = Table;

    fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size
    }

    fn packing(&self) -> Option<(Codec, usize)> {
        self.geometry.codec.map(|codec| (codec, self.geometry.cluster as usize))
    }

    fn start(&mut self, wants: &mut Wants<Table>) -> Result<(), Error> {
        let geometry = &self.geometry;
        wants.skip(0, geometry.header_len);
        wants.skip(geometry.l1_at, geometry.l1_len);
        let per_byte = geometry.coverage() / 8;
        wants.table(Table::L1, geometry.l1_at, geometry.l1_needed(), (0, per_byte));
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
            Table::L1 => self.l1_table(place, bytes, wants),
            Table::L2 => self.l2_table(place, bytes, wants),
        }
    }

    fn most_wants(&self, table: Table, len: usize) -> usize {
        match table {
            // A large table comes in pieces, and what follows it is skipped.
            Table::L1 => len / 8 * (self.geometry.l2_len.div_ceil(TABLE_PIECE) as usize + 1),
            Table::L2 => len / 8,
        }
    }

    fn end(&mut self, file_len: u64) -> Result<(), Error> {
        check_inside("L1 table", self.geometry.l1_at, self.geometry.l1_len, file_len)?;
        match self.last {
            0 => Ok(()),
            last => check_inside("L2 table", last, self.geometry.l2_len, file_len),
        }
    }
}
