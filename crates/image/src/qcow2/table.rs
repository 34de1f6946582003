//! L1 and L2 entries: where a cluster of the guest's disk is.

use std::collections::HashSet;
use std::ops::Range;

use super::header::{Header, SUBCLUSTERS, State};
use crate::error::corrupt;
use crate::{Error, ErrorKind};

/// "L1 table entry" and "Standard Cluster Descriptor": bits 9 to 55 are the host offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster's refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// "L2 table entry": the cluster is compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// "Standard Cluster Descriptor": the cluster reads as zeros, whatever its offset. Version 3, and
/// not with extended entries, whose bitmaps say it of subclusters.
pub(super) const ZERO: u64 = 1;

/// How many L2 tables the active L1 table may name: what maps 512 TiB with clusters of 64 KiB, and
/// 32 GiB with the smallest, of 512 bytes. Knowing them apart takes some 20 MiB then.
const L2_TABLES_MAX: usize = 1 << 20;

/// Where the bytes of a run of the disk are: those of its first byte, and the others behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Not in the image: on its backing disk, or else it reads as zeros.
    Absent,
    /// Nowhere: it reads as zeros.
    Zero,
    /// At this host offset. `shared` says that something else may refer to the place too.
    Data { host: u64, shared: bool },
    /// Part of a cluster that is compressed, somewhere in these bytes.
    Packed { host: u64, len: u64 },
}

impl Mapping {
    /// True if what is at `next`, `run` bytes behind this on the disk, is so in the file.
    fn continues(self, run: u64, next: Self) -> bool {
        match self {
            Self::Absent | Self::Zero => next == self,
            Self::Data { host, shared } => next == Self::Data { host: host + run, shared },
            Self::Packed { .. } => false,
        }
    }
}

/// A part of the disk whose bytes follow each other in the file too, or are all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) guest: u64,
    pub(super) len: u64,
    pub(super) mapping: Mapping,
}

/// Turns the entries of one image's tables into places.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    version: u32,
    cluster_bits: u32,
    extended: bool,
    external: bool,
    virtual_size: u64,
    /// What a table or a cluster of data must not overlap: header, L1 table, refcount table.
    fixed: [(u64, u64); 3],
}

impl Tables {
    /// Those of one `state` of the disk.
    pub(super) const fn new(header: &Header, state: &State) -> Self {
        Self {
            version: header.version,
            cluster_bits: header.cluster_bits,
            extended: header.extended_l2(),
            external: header.external_data(),
            virtual_size: state.virtual_size,
            fixed: [
                (0, header.cluster_size()),
                (state.l1_offset, state.l1_offset + state.l1_len()),
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

    /// The runs that `table` maps: an L2 table or a part of one, which stands at `at` and whose
    /// first entry is for the cluster at `first`. Only those in `range` of the disk are asked for.
    pub(super) const fn runs<'a>(
        &'a self,
        table: &'a [u8],
        at: u64,
        first: u64,
        range: Range<u64>,
    ) -> Runs<'a> {
        Runs { tables: self, table, at, first, range }
    }

    /// Where the cluster at `guest` is, by its L2 entry, which stands at `at`.
    pub(super) fn cluster(&self, entry: u64, at: u64, guest: u64) -> Result<Mapping, Error> {
        if entry & COMPRESSED != 0 {
            return self.packed(entry, at);
        }
        let zero = entry & ZERO != 0 && !self.extended;
        if zero && self.version < 3 {
            return Err(corrupt("a zero cluster in a version 2 image", at));
        }
        if entry & !(OFFSET | COPIED | if zero { ZERO } else { 0 }) != 0 {
            return Err(corrupt(format!("reserved bits in the L2 entry {entry:#018x}"), at));
        }
        let (host, shared) = (entry & OFFSET, entry & COPIED == 0);
        // Offset 0 is a place in a data file, and none in the image.
        let there = host != 0 || (self.external && !shared);
        if there {
            self.check_data(host, at, guest)?;
        }
        Ok(match (zero, there) {
            (true, _) => Mapping::Zero,
            (false, true) => Mapping::Data { host, shared },
            (false, false) => Mapping::Absent,
        })
    }

    /// "Compressed Clusters Descriptor": the offset's low bits, above them the number of further
    /// 512-byte sectors that the data reaches into.
    fn packed(&self, entry: u64, at: u64) -> Result<Mapping, Error> {
        if self.external {
            return Err(corrupt("a compressed cluster in an image with a data file", at));
        }
        let offset_bits = 62 - (self.cluster_bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let len = (sectors + 1) * 512 - host % 512;
        self.check_overlap("compressed cluster", host, len, at)?;
        Ok(Mapping::Packed { host, len })
    }

    /// "Extended L2 Entries": bit x of the bitmap says that subcluster x is allocated, bit x + 32
    /// that it reads as zeros. Returns what the subcluster `index` of a `cluster` is, and how many
    /// from there on are so.
    fn subclusters(
        &self,
        cluster: Mapping,
        bitmap: u64,
        index: u32,
        at: u64,
    ) -> Result<(Mapping, u32), Error> {
        let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        let wrong = match cluster {
            Mapping::Packed { .. } if bitmap != 0 => Some("a compressed cluster has subclusters"),
            Mapping::Absent if allocated != 0 => Some("a subcluster is allocated in no cluster"),
            _ if allocated & zero != 0 => Some("a subcluster is both allocated and zero"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(corrupt(format!("{wrong} (bitmap {bitmap:#018x})"), at));
        }
        let rest = SUBCLUSTERS as u32 - index;
        if let Mapping::Packed { .. } = cluster {
            return Ok((cluster, rest));
        }
        let is = |bits: u32| bits >> index & 1 == 1;
        let alike = |bits: u32| (if is(bits) { !bits } else { bits } >> index).trailing_zeros();
        let mapping = match cluster {
            _ if is(zero) => Mapping::Zero,
            Mapping::Data { .. } if is(allocated) => cluster,
            _ => Mapping::Absent,
        };
        Ok((mapping, alike(allocated).min(alike(zero)).min(rest)))
    }

    fn check_cluster(&self, what: &str, host: u64, at: u64) -> Result<(), Error> {
        if !host.is_multiple_of(self.cluster_size()) {
            return Err(corrupt(format!("the {what} at {host:#x} is not on a cluster"), at));
        }
        self.check_overlap(what, host, self.cluster_size(), at)
    }

    /// In a data file each cluster has the place that it has on the disk.
    fn check_data(&self, host: u64, at: u64, guest: u64) -> Result<(), Error> {
        match self.external {
            false => self.check_cluster("data cluster", host, at),
            true if host == guest => Ok(()),
            true => {
                let what = format!("expected the data file's offset {guest:#x}, got {host:#x}");
                Err(corrupt(what, at))
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

/// The runs of a table, in the disk's order: see [`Tables::runs`]. After an error it gives the same
/// one again.
#[derive(Debug, Clone)]
pub(super) struct Runs<'a> {
    tables: &'a Tables,
    table: &'a [u8],
    at: u64,
    first: u64,
    /// What is left.
    range: Range<u64>,
}

impl Runs<'_> {
    /// What the range begins with, as far as one entry tells.
    fn peek(&self) -> Result<Option<Run>, Error> {
        let Range { start: guest, end } = self.range;
        let cluster_size = self.tables.cluster_size();
        let entry_len = if self.tables.extended { 16 } else { 8 };
        let index = (guest - self.first) / cluster_size * entry_len;
        let end = end.min(self.tables.virtual_size);
        let entry =
            self.table.get(index as usize..).and_then(|rest| rest.get(..entry_len as usize));
        let (Some(entry), true) = (entry, guest < end) else { return Ok(None) };
        let (at, skip) = (self.at + index, guest % cluster_size);
        let mut words = entries(entry);
        let descriptor = words.next().unwrap_or_default();
        let mut mapping = self.tables.cluster(descriptor, at, guest - skip)?;
        let mut len = cluster_size - skip;
        if let Some(bitmap) = words.next() {
            let size = cluster_size / SUBCLUSTERS;
            let count;
            (mapping, count) =
                self.tables.subclusters(mapping, bitmap, (skip / size) as u32, at + 8)?;
            len = u64::from(count) * size - skip % size;
        }
        if let Mapping::Data { host, .. } = &mut mapping {
            *host += skip;
        }
        Ok(Some(Run { guest, len: len.min(end - guest), mapping }))
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = match self.peek().transpose()? {
            Ok(run) => run,
            Err(error) => return Some(Err(error)),
        };
        self.range.start += run.len;
        while let Ok(Some(next)) = self.peek()
            && run.mapping.continues(run.len, next.mapping)
        {
            run.len += next.len;
            self.range.start += next.len;
        }
        Some(Ok(run))
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
