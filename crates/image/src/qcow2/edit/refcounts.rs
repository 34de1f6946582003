//! Refcounts: which clusters of the file are used, and how often. Decides where new clusters go.
//!
//! What is counted up here may be written at any time; what is counted down only when nothing in
//! the file refers to the cluster any more: the caller sees to that.

use std::collections::BTreeSet;
use std::ops::Range;

use super::cache::Cache;
use crate::error::corrupt;
use crate::qcow2::create::{block_entries, blocks_for};
use crate::qcow2::header::{Header, REFCOUNT_TABLE_BYTES_MAX, at};
use crate::stream::Storage;
use crate::{Error, ErrorKind};

/// How many bytes of refcount blocks are kept: with clusters of 64 KiB and 16-bit refcounts those
/// of 32 GiB of the file.
const CACHE: u64 = 1 << 20;
/// "Refcount table entry": bits 9 to 63 are the offset of a block.
const RESERVED: u64 = 0x1ff;
/// "Standard Cluster Descriptor": an L2 entry has no room for larger host offsets.
const HOST_MAX: u64 = 1 << 56;

#[derive(Debug)]
pub(super) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    /// The refcount table, and where it stands.
    table: Vec<u64>,
    table_at: u64,
    /// The table's entries that were changed, or that it is all new and the header names the old.
    changed: BTreeSet<usize>,
    moved: bool,
    /// Clusters of tables that are no longer used once the header names the new one.
    outgrown: Vec<Range<u64>>,
    blocks: Cache,
    /// No cluster below is free.
    hint: u64,
    /// The clusters of tables that were there from the start, sorted. None may ever be allocated,
    /// whatever its refcount.
    guarded: Vec<u64>,
}

impl Refcounts {
    /// Reads the refcount table and checks it. `guarded` are the clusters of other tables.
    pub(super) fn open(
        header: &Header,
        storage: &dyn Storage,
        mut guarded: Vec<u64>,
    ) -> Result<Self, Error> {
        let (at, len) = (header.refcount_table_offset, header.refcount_table_len);
        let cluster = header.cluster_size();
        let mut bytes = vec![0; len as usize];
        storage.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
        let table: Vec<u64> = crate::qcow2::table::entries(&bytes).collect();
        drop(bytes);
        guarded.extend((at..at + len).step_by(cluster as usize).map(|at| at / cluster));
        guarded.sort_unstable();
        guarded.dedup();
        let fixed = guarded.len();
        for (place, block) in (at..).step_by(8).zip(&table).filter(|(_, block)| **block != 0) {
            if block & RESERVED != 0 || !block.is_multiple_of(cluster) {
                let what = format!("the refcount block at {block:#x} is not on a cluster");
                return Err(corrupt(what, place));
            }
            if block.checked_add(cluster).is_none_or(|end| end > storage.len()) {
                let what = format!("the refcount block at {block:#x} ends beyond the file");
                return Err(Error::new(ErrorKind::Truncated, what).at(place));
            }
            if guarded[..fixed].binary_search(&(block / cluster)).is_ok() {
                let what = format!("the refcount block at {block:#x} overlaps other metadata");
                return Err(corrupt(what, place));
            }
            guarded.push(block / cluster);
        }
        guarded.sort_unstable();
        if let Some(twice) = guarded.windows(2).find(|pair| pair[0] == pair[1]) {
            let what = format!("the refcount block at {:#x} is named twice", twice[0] * cluster);
            return Err(corrupt(what, at));
        }
        Ok(Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_bits.trailing_zeros(),
            table,
            table_at: at,
            changed: BTreeSet::new(),
            moved: false,
            outgrown: Vec::new(),
            blocks: Cache::new(CACHE, header.cluster_bits),
            hint: 0,
            guarded,
        })
    }

    const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many clusters a block counts.
    const fn block_entries(&self) -> u64 {
        block_entries(self.cluster_bits, self.order)
    }

    pub(super) const fn table_len(&self) -> u64 {
        self.table.len() as u64 * 8
    }

    pub(super) const fn table_at(&self) -> u64 {
        self.table_at
    }

    /// The blocks that there are.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|block| *block != 0)
    }

    /// The block that counts `cluster`, if there is one.
    fn block_of(&self, cluster: u64) -> Option<u64> {
        let index = usize::try_from(cluster / self.block_entries()).ok()?;
        self.table.get(index).copied().filter(|block| *block != 0)
    }

    /// Where the refcount of `cluster` is: the slice's offset, and the entry's place in it.
    fn place(&self, block: u64, cluster: u64) -> (u64, usize) {
        let in_slice = (self.blocks.slice() * 8) >> self.order;
        let index = cluster % self.block_entries();
        (block + index / in_slice * self.blocks.slice(), (index % in_slice) as usize)
    }

    /// How often `cluster` is used.
    pub(super) fn get(&mut self, storage: &dyn Storage, cluster: u64) -> Result<u64, Error> {
        let Some(block) = self.block_of(cluster) else { return Ok(0) };
        let (at, index) = self.place(block, cluster);
        let order = self.order;
        self.blocks.get(storage, at).map(|slice| read(slice, index, order))
    }

    fn set(&mut self, storage: &dyn Storage, cluster: u64, count: u64) -> Result<(), Error> {
        let block = self.block_of(cluster).ok_or_else(|| {
            let host = cluster << self.cluster_bits;
            corrupt(format!("no refcount block counts the cluster at {host:#x}"), self.table_at)
        })?;
        if self.blocks.is_crowded() {
            self.blocks.write_back(storage)?;
        }
        let (at, index) = self.place(block, cluster);
        let order = self.order;
        self.blocks.change(storage, at).map(|slice| write(slice, index, order, count))
    }

    /// Counts `uses` more of `cluster`.
    pub(super) fn add(
        &mut self,
        storage: &dyn Storage,
        cluster: u64,
        uses: u64,
    ) -> Result<(), Error> {
        let most = u64::MAX >> (64 - (1 << self.order));
        let count = self.get(storage, cluster)?.checked_add(uses).filter(|count| *count <= most);
        let count = count.ok_or_else(|| {
            let host = cluster << self.cluster_bits;
            corrupt("the cluster is used more often than can be counted", host)
        })?;
        self.set(storage, cluster, count)
    }

    /// Counts one use of `cluster` less. Returns whether it is free now. One that was not counted
    /// stays as it is.
    pub(super) fn release(&mut self, storage: &dyn Storage, cluster: u64) -> Result<bool, Error> {
        match self.get(storage, cluster)? {
            0 => Ok(false),
            count => {
                self.set(storage, cluster, count - 1)?;
                if count == 1 {
                    self.hint = self.hint.min(cluster);
                }
                Ok(count == 1)
            }
        }
    }

    /// Lets the cluster of a table that is no longer one be used for other things.
    pub(super) fn unguard(&mut self, cluster: u64) {
        if let Ok(index) = self.guarded.binary_search(&cluster) {
            self.guarded.remove(index);
        }
    }

    /// Takes up to `most` clusters that follow each other. Their contents are arbitrary.
    pub(super) fn allocate(
        &mut self,
        storage: &dyn Storage,
        most: u64,
    ) -> Result<Range<u64>, Error> {
        let first = self.find_free(storage)?;
        let mut end = first;
        while end < first + most
            && self.block_of(end).is_some()
            && self.get(storage, end)? == 0
            && (end + 1) << self.cluster_bits <= HOST_MAX
        {
            self.check_guard(end)?;
            self.set(storage, end, 1)?;
            end += 1;
        }
        if end == first {
            return Err(Error::new(ErrorKind::TooLarge, "no room is left in the image file"));
        }
        self.hint = end;
        Ok(first..end)
    }

    /// The first free cluster that has a place for its refcount.
    fn find_free(&mut self, storage: &dyn Storage) -> Result<u64, Error> {
        let mut at = self.hint;
        loop {
            if at / self.block_entries() >= self.table.len() as u64 {
                self.grow_table(storage)?;
            } else if let Some(block) = self.block_of(at) {
                let (slice_at, index) = self.place(block, at);
                let order = self.order;
                let slice = self.blocks.get(storage, slice_at)?;
                let count = (slice.len() * 8) >> order;
                if let Some(free) = (index..count).find(|index| read(slice, *index, order) == 0) {
                    return Ok(at + (free - index) as u64);
                }
                at += (count - index) as u64;
                self.hint = at;
            } else {
                self.new_block(storage, at)?;
                at += 1;
            }
        }
    }

    /// Makes a block for `cluster` and those around it, none of which is used so far, in it.
    fn new_block(&mut self, storage: &dyn Storage, cluster: u64) -> Result<(), Error> {
        self.check_guard(cluster)?;
        let index = cluster / self.block_entries();
        self.write_block(storage, index, cluster, &(cluster..cluster + 1))?;
        self.table[index as usize] = cluster << self.cluster_bits;
        self.changed.insert(index as usize);
        Ok(())
    }

    /// Writes the block at `index` of the table to `cluster`, where nothing names it yet. It counts
    /// the clusters in `used` once.
    fn write_block(
        &mut self,
        storage: &dyn Storage,
        index: u64,
        cluster: u64,
        used: &Range<u64>,
    ) -> Result<(), Error> {
        let first = index * self.block_entries();
        let mut block = vec![0; self.cluster_size() as usize];
        for counted in used.start.max(first)..used.end.min(first + self.block_entries()) {
            write(&mut block, (counted - first) as usize, self.order, 1);
        }
        let host = cluster << self.cluster_bits;
        self.blocks.forget(host, host + self.cluster_size());
        storage.write_all_at(&block, host).map_err(Error::write)
    }

    /// Doubles the table. It moves behind everything that the old one could count, and so do the
    /// blocks that count it.
    fn grow_table(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        let (old, first) =
            (self.table.len() as u64, self.table.len() as u64 * self.block_entries());
        let clusters = (self.table_len() * 2) >> self.cluster_bits;
        let new_len = clusters << self.cluster_bits;
        if new_len > REFCOUNT_TABLE_BYTES_MAX
            || (first + 2 * clusters) << self.cluster_bits > HOST_MAX
        {
            let what = format!("the image file cannot grow beyond {first} clusters");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let blocks = blocks_for(clusters, self.block_entries());
        let used = first..first + blocks + clusters;
        used.clone().try_for_each(|cluster| self.check_guard(cluster))?;
        for index in 0..blocks {
            self.write_block(storage, old + index, first + index, &used)?;
        }
        let old_at = self.table_at >> self.cluster_bits;
        self.outgrown.push(old_at..old_at + ((old * 8) >> self.cluster_bits));
        self.table.resize((new_len / 8) as usize, 0);
        for index in 0..blocks {
            self.table[(old + index) as usize] = (first + index) << self.cluster_bits;
        }
        self.table_at = (first + blocks) << self.cluster_bits;
        self.moved = true;
        Ok(())
    }

    /// Fails if `cluster`, which is said to be free or to hold data, is a table.
    pub(super) fn check_guard(&self, cluster: u64) -> Result<(), Error> {
        if cluster != 0 && self.guarded.binary_search(&cluster).is_err() {
            return Ok(());
        }
        let host = cluster << self.cluster_bits;
        Err(corrupt("a cluster that may be written is a table of the image", host))
    }

    /// Makes each block empty, for all to be counted anew.
    pub(super) fn clear(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        for block in self.table.iter().filter(|block| **block != 0) {
            storage.zero_at(self.cluster_size(), *block).map_err(Error::write)?;
            self.blocks.forget(*block, *block + self.cluster_size());
        }
        Ok(())
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.blocks.is_dirty() || self.moved || !self.changed.is_empty()
    }

    /// Writes what was counted.
    pub(super) fn write_back(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        self.blocks.write_back(storage)
    }

    /// True if blocks are new: once what is written so far is durable, [`Self::name_blocks`] is due.
    pub(super) fn has_new_blocks(&self) -> bool {
        self.moved || !self.changed.is_empty()
    }

    /// Makes the file name the new blocks, which are durable. Syncs through `sync` in between if
    /// the table has moved, and returns the clusters of old tables, which then are no longer used.
    pub(super) fn name_blocks(
        &mut self,
        storage: &dyn Storage,
        sync: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<Range<u64>>, Error> {
        if self.moved {
            let table: Vec<u8> = self.table.iter().flat_map(|block| block.to_be_bytes()).collect();
            storage.write_all_at(&table, self.table_at).map_err(Error::write)?;
            sync()?;
            // The field for the place, and the one for the size behind it, in one sector.
            let mut fields = [0; 12];
            let clusters = (table.len() >> self.cluster_bits) as u32;
            fields[..8].copy_from_slice(&self.table_at.to_be_bytes());
            fields[8..].copy_from_slice(&clusters.to_be_bytes());
            storage.write_all_at(&fields, at::REFCOUNT_TABLE_OFFSET).map_err(Error::write)?;
            self.moved = false;
            self.changed.clear();
            return Ok(std::mem::take(&mut self.outgrown));
        }
        while let Some(index) = self.changed.first().copied() {
            let at = self.table_at + index as u64 * 8;
            storage.write_all_at(&self.table[index].to_be_bytes(), at).map_err(Error::write)?;
            self.changed.remove(&index);
        }
        Ok(Vec::new())
    }
}

/// "Refcount blocks": the entry of 2^`order` bits at `index`. Those of less than a byte begin with
/// the lowest bits, the others are big-endian.
fn read(slice: &[u8], index: usize, order: u32) -> u64 {
    if order < 3 {
        let bit = index << order;
        return u64::from(slice[bit / 8] >> (bit % 8)) & ((1 << (1 << order)) - 1);
    }
    let len = 1 << (order - 3);
    slice[index * len..][..len].iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
}

fn write(slice: &mut [u8], index: usize, order: u32, count: u64) {
    if order < 3 {
        let bit = index << order;
        let mask = ((1_u8 << (1 << order)) - 1) << (bit % 8);
        let byte = &mut slice[bit / 8];
        *byte = *byte & !mask | (count as u8) << (bit % 8);
        return;
    }
    let len = 1 << (order - 3);
    slice[index * len..][..len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_have_their_place() {
        for (order, expected) in [
            (0, [0b10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (1, [0b0100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (2, [0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (3, [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (4, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (5, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            (6, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ] {
            let mut slice = [0; 16];
            write(&mut slice, 1, order, 1);
            assert_eq!(slice, expected, "order {order}");
            let full = u64::MAX >> (64 - (1 << order));
            write(&mut slice, 0, order, full);
            assert_eq!((read(&slice, 0, order), read(&slice, 1, order)), (full, 1));
            write(&mut slice, 0, order, 0);
            assert_eq!(slice, expected, "order {order}");
        }
    }
}
