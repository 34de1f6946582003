//! Decoding from a stream: the tables in the order in which they name each other.
//!
//! Refcounts are read for one purpose: the blocks that hold them are not worth holding.

use std::fmt;

use super::header::Header;
use super::table::{Mapping, Named, Tables, entries};
use crate::Error;
use crate::codec::Codec;
use crate::stream::{Layout, Place, Wants};

/// The tables of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Refcount,
    L1,
    L2,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refcount => "refcount table",
            Self::L1 => "L1 table",
            Self::L2 => "L2 table",
        })
    }
}

/// The way from an image's header to its clusters.
#[derive(Debug)]
pub(crate) struct Map {
    header: Header,
    tables: Tables,
    named: Named,
}

impl Map {
    pub(crate) fn new(header: &Header) -> Self {
        Self { tables: Tables::new(header), header: header.clone(), named: Named::default() }
    }

    /// "Refcount table": each entry is the offset of a block.
    fn refcount_table(&self, table: &[u8], wants: &mut Wants<Table>) {
        let cluster = self.header.cluster_size();
        for block in entries(table).filter(|block| block.is_multiple_of(cluster) && *block != 0) {
            wants.skip(block, cluster);
        }
    }

    fn l1_table(
        &mut self,
        Place { at, guest }: Place,
        table: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        let (coverage, cluster) = (self.header.l2_coverage(), self.header.cluster_size());
        for (index, entry) in (0..).zip(entries(table)) {
            let (at, guest) = (at + index * 8, guest + index * coverage);
            if guest >= self.header.virtual_size {
                break;
            }
            match self.tables.l2_offset(entry, at)? {
                None => wants.zero(guest, coverage),
                Some(l2) => {
                    self.named.add(l2, at)?;
                    wants.table(Table::L2, l2, cluster, (guest, cluster / 8));
                }
            }
        }
        Ok(())
    }

    fn l2_table(
        &self,
        Place { at, guest }: Place,
        table: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        let cluster = self.header.cluster_size();
        for (index, entry) in (0..).zip(entries(table)) {
            let guest = guest + index * cluster;
            if guest >= self.header.virtual_size {
                break;
            }
            match self.tables.mapping(entry, at + index * 8)? {
                Mapping::Zero => wants.zero(guest, cluster),
                Mapping::Data { host, shared: false } => wants.data(host, guest, cluster),
                Mapping::Data { host, shared: true } => wants.shared_data(host, guest, cluster),
                Mapping::Packed { host, len } => wants.packed(host, guest, len),
            }
        }
        Ok(())
    }
}

impl Layout for Map {
    type Table = Table;

    fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    fn packing(&self) -> Option<(Codec, usize)> {
        Some((self.header.codec, self.header.cluster_size() as usize))
    }

    fn start(&mut self, wants: &mut Wants<Table>) -> Result<(), Error> {
        let header = &self.header;
        wants.skip(0, header.cluster_size());
        let per_byte = header.l2_coverage() / 8;
        wants.table(Table::L1, header.l1_offset, header.l1_len(), (0, per_byte));
        let (at, len) = (header.refcount_table_offset, header.refcount_table_len);
        wants.table(Table::Refcount, at, len, (0, 0));
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
            Table::Refcount => self.refcount_table(bytes, wants),
            Table::L1 => self.l1_table(place, bytes, wants)?,
            Table::L2 => self.l2_table(place, bytes, wants)?,
        }
        Ok(())
    }

    fn most_wants(&self, table: Table, len: usize) -> usize {
        match table {
            Table::Refcount => 0,
            // A table of two megabytes comes in pieces.
            Table::L1 => len / 8 * (self.header.cluster_size() >> 16).max(1) as usize,
            Table::L2 => len / 8,
        }
    }
}
