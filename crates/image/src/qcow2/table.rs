//! L1 and L2 entries: where a cluster of the guest's disk is.

use std::collections::HashSet;

use super::header::Header;
use crate::{Error, ErrorKind};

/// "L1 table entry" and "Standard Cluster Descriptor": bits 9 to 55 are the host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster's refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// "L2 table entry": the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// "Standard Cluster Descriptor": the cluster reads as zeros, whatever its offset. Version 3.
const ZERO: u64 = 1;

/// How many L2 tables the active L1 table may name: what maps 512 TiB with clusters of 64 KiB, and
/// 32 GiB with the smallest, of 512 bytes. Knowing them apart takes some 20 MiB then.
const L2_TABLES_MAX: usize = 1 << 20;

/// Where the bytes of one cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nowhere: it reads as zeros.
    Zero,
    /// A cluster at this host offset. `shared` says that something else may refer to it too.
    Data { host: u64, shared: bool },
    /// Compressed, somewhere in these bytes.
    Packed { host: u64, len: u64 },
}

impl Mapping {
    /// True if a cluster at `next`, `run` bytes behind this one's on the disk, is so in the file.
    pub(super) fn continues(self, run: u64, next: Self) -> bool {
        match self {
            Self::Zero => next == Self::Zero,
            Self::Data { host, shared } => next == Self::Data { host: host + run, shared },
            Self::Packed { .. } => false,
        }
    }
}

/// Turns the entries of one image's tables into places.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    version: u32,
    cluster_bits: u32,
    /// What a table or a cluster of data must not overlap: header, L1 table, refcount table.
    fixed: [(u64, u64); 3],
}

impl Tables {
    pub(super) const fn new(header: &Header) -> Self {
        Self {
            version: header.version,
            cluster_bits: header.cluster_bits,
            fixed: [
                (0, header.cluster_size()),
                (header.l1_offset, header.l1_offset + header.l1_len()),
                (
                    header.refcount_table_offset,
                    header.refcount_table_offset + header.refcount_table_len,
                ),
            ],
        }
    }

    const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The host offset of an L2 table, if there is one. `at` is where the entry stands.
    pub(super) fn l2_offset(&self, entry: u64, at: u64) -> Result<Option<u64>, Error> {
        let host = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 {
            return Err(corrupt(format!("reserved bits in the L1 entry {entry:#018x}"), at));
        }
        if host == 0 {
            return Ok(None);
        }
        self.check_cluster("L2 table", host, at)?;
        Ok(Some(host))
    }

    /// Where a cluster is, by its L2 entry, which stands at `at`.
    pub(super) fn mapping(&self, entry: u64, at: u64) -> Result<Mapping, Error> {
        if entry & COMPRESSED != 0 {
            return self.packed(entry, at);
        }
        if entry & ZERO != 0 && self.version < 3 {
            return Err(corrupt("a zero cluster in a version 2 image", at));
        }
        if entry & !(OFFSET | COPIED | ZERO) != 0 {
            return Err(corrupt(format!("reserved bits in the L2 entry {entry:#018x}"), at));
        }
        let host = entry & OFFSET;
        if host != 0 {
            self.check_cluster("data cluster", host, at)?;
        }
        if host == 0 || entry & ZERO != 0 {
            return Ok(Mapping::Zero);
        }
        Ok(Mapping::Data { host, shared: entry & COPIED == 0 })
    }

    /// "Compressed Clusters Descriptor": the offset's low bits, above them the number of further
    /// 512-byte sectors that the data reaches into.
    fn packed(&self, entry: u64, at: u64) -> Result<Mapping, Error> {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let len = (sectors + 1) * 512 - host % 512;
        self.check_overlap("compressed cluster", host, len, at)?;
        Ok(Mapping::Packed { host, len })
    }

    fn check_cluster(&self, what: &str, host: u64, at: u64) -> Result<(), Error> {
        if !host.is_multiple_of(self.cluster_size()) {
            return Err(corrupt(format!("the {what} at {host:#x} is not on a cluster"), at));
        }
        self.check_overlap(what, host, self.cluster_size(), at)
    }

    fn check_overlap(&self, what: &str, host: u64, len: u64, at: u64) -> Result<(), Error> {
        if self.fixed.iter().any(|(begin, end)| host < *end && *begin < host + len) {
            return Err(corrupt(format!("the {what} at {host:#x} overlaps the metadata"), at));
        }
        Ok(())
    }
}

/// The L2 tables that the active L1 table has named so far. Nobody who writes an image uses a table
/// twice in one L1, since then a write to one part of the disk would appear in another; but a small
/// file could so claim to hold any amount of data.
#[derive(Debug, Default)]
pub(super) struct Named {
    tables: HashSet<u64>,
}

impl Named {
    /// Adds the table at `l2`, which the L1 entry at `at` names.
    pub(super) fn add(&mut self, l2: u64, at: u64) -> Result<(), Error> {
        if !self.tables.insert(l2) {
            return Err(corrupt(format!("the L1 table names the L2 table at {l2:#x} twice"), at));
        }
        if self.tables.len() > L2_TABLES_MAX {
            let what = format!("the L1 table names more than {L2_TABLES_MAX} L2 tables");
            return Err(Error::new(ErrorKind::TooLarge, what).at(at));
        }
        Ok(())
    }
}

/// The entries of a table as numbers.
pub(super) fn entries(table: &[u8]) -> impl ExactSizeIterator<Item = u64> {
    let word = |bytes: &[u8]| {
        u64::from_be_bytes(bytes.try_into().expect("chunks_exact gives eight bytes"))
    };
    table.chunks_exact(8).map(word)
}

fn corrupt(what: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Corrupt, what).at(at)
}
