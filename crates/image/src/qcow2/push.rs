//! Decoding from a stream: the tables in the order in which they name each other.
//!
//! Refcounts are read for one purpose: the blocks that hold them are not worth holding. The table
//! of the snapshots is only checked.

use std::fmt;

use super::header::{Header, SNAPSHOT_LEN_MIN, SUBCLUSTERS};
use super::snapshot::{entry_len, next_entry};
use super::table::{Mapping, Named, Run, Tables, entries};
use crate::codec::Codec;
use crate::stream::{Layout, Place, Wants};
use crate::{Error, ErrorKind};

/// The tables of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Refcount,
    L1,
    L2,
    /// What one snapshot begins with in their table.
    Snapshot,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refcount => "refcount table",
            Self::L1 => "L1 table",
            Self::L2 => "L2 table",
            Self::Snapshot => "snapshot table",
        })
    }
}

/// The way from an image's header to its clusters.
#[derive(Debug)]
pub(crate) struct Map {
    header: Header,
    tables: Tables,
    named: Named,
    /// How many snapshots have not been seen yet.
    snapshots: u32,
    /// What the file must have at least: the name and the end of what reaches farthest.
    needed: (&'static str, u64),
}

impl Map {
    pub(crate) fn new(header: &Header) -> Self {
        Self {
            tables: Tables::new(header, &header.active()),
            named: Named::default(),
            snapshots: header.snapshots,
            needed: ("bitmap directory", header.bitmap_directory.1),
            header: header.clone(),
        }
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
                    wants.table(Table::L2, l2, cluster, (guest, coverage / cluster));
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
        for run in self.tables.runs(table, at, guest, guest..u64::MAX) {
            let Run { guest, len, mapping } = run?;
            match mapping {
                Mapping::Absent | Mapping::Zero => wants.zero(guest, len),
                Mapping::Data { host, shared: false } => wants.data(host, guest, len),
                Mapping::Data { host, shared: true } => wants.shared_data(host, guest, len),
                Mapping::Packed { host, len } => wants.packed(host, guest, len),
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, at: u64, fixed: &[u8], wants: &mut Wants<Table>) -> Result<(), Error> {
        let len = entry_len(fixed, at)?;
        let next = next_entry(&self.header, at, len)?;
        if at + len > self.needed.1 {
            self.needed = ("snapshot table", at + len);
        }
        self.want_snapshot(next, wants);
        Ok(())
    }

    /// Wants the next snapshot, which stands at `at`, if there is one more.
    fn want_snapshot(&mut self, at: u64, wants: &mut Wants<Table>) {
        if let Some(left) = self.snapshots.checked_sub(1) {
            self.snapshots = left;
            wants.table(Table::Snapshot, at, SNAPSHOT_LEN_MIN, (0, 0));
        }
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
        self.want_snapshot(self.header.snapshots_offset, wants);
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
            Table::Snapshot => self.snapshot(place.at, bytes, wants)?,
        }
        Ok(())
    }

    fn most_wants(&self, table: Table, len: usize) -> usize {
        match table {
            Table::Refcount => 0,
            // A table of two megabytes comes in pieces.
            Table::L1 => len / 8 * (self.header.cluster_size() >> 16).max(1) as usize,
            Table::L2 if self.header.extended_l2() => len / 16 * SUBCLUSTERS as usize,
            Table::L2 => len / 8,
            Table::Snapshot => 1,
        }
    }

    fn end(&mut self, file_len: u64) -> Result<(), Error> {
        let (name, end) = self.needed;
        if end > file_len {
            let what = format!("the {name} reaches to {end}, beyond the file's end");
            return Err(Error::new(ErrorKind::Truncated, what).at(file_len));
        }
        Ok(())
    }
}
