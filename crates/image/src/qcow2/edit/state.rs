//! What an image's tables say, as far as it is in memory, and when it may be written.
//!
//! Nothing but the tables: the guest's data never passes here. The order in which a commit writes
//! is what makes a power cut harmless:
//!
//! 1. refcounts of new clusters. Until something refers to them they are leaks, no more;
//! 2. everything so far is made durable, the guest's data among it;
//! 3. entries of L2 and L1 tables, which now refer to what is there and is counted;
//! 4. these are made durable;
//! 5. only now are clusters counted down to which they referred before, and free for new use.
//!
//! A new L2 table is written to its cluster at once, since nothing refers to it before step 3.

use std::collections::BTreeSet;

use super::cache::{Cache, word};
use super::refcounts::Refcounts;
use crate::error::corrupt;
use crate::qcow2::header::{Header, at};
use crate::qcow2::image::read_l1;
use crate::qcow2::table::{COMPRESSED, COPIED, Mapping, OFFSET, Tables};
use crate::stream::Storage;
use crate::{Error, ErrorKind};

/// How many bytes of L2 tables are kept: with clusters of 64 KiB those of 32 GiB of the disk.
const CACHE: u64 = 4 << 20;
/// How many clusters may wait to be free until a commit is due.
const FREES_MAX: usize = 1 << 16;

/// Where a cluster of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere in this file: the backing file has it, or it is zero.
    Unallocated,
    /// It reads as zeros. A cluster of the file may be reserved for it.
    Zero { host: Option<u64>, own: bool },
    /// At this host offset; `own` if nothing else refers to it.
    Data { host: u64, own: bool },
    /// Compressed, somewhere in these bytes.
    Packed { host: u64, len: u64 },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) header: Header,
    tables: Tables,
    pub(super) l1: Vec<u64>,
    changed_l1: BTreeSet<usize>,
    l2: Cache,
    pub(super) refcounts: Refcounts,
    frees: Vec<Free>,
    /// The guest's clusters that a writer is giving a new place.
    pub(super) busy: BTreeSet<u64>,
    /// The header says that features which this crate does not keep up are to be trusted.
    autoclear: bool,
    /// Why nobody knows any more what is durable.
    failed: bool,
}

/// A cluster to which one reference less will be.
#[derive(Debug, Clone, Copy)]
struct Free {
    cluster: u64,
    was: Was,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Was {
    Data,
    /// The guest wants the space back.
    Discarded,
    Table,
}

impl State {
    pub(super) fn new(header: Header, l1: Vec<u64>, refcounts: Refcounts) -> Self {
        Self {
            tables: Tables::new(&header, &header.active()),
            l2: Cache::new(CACHE, header.cluster_bits),
            autoclear: header.autoclear != 0,
            header,
            l1,
            changed_l1: BTreeSet::new(),
            refcounts,
            frees: Vec::new(),
            busy: BTreeSet::new(),
            failed: false,
        }
    }

    const fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// Takes the L1 table as it is in the file by now.
    pub(super) fn reread_l1(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        self.l1 = read_l1(storage, &self.header, &self.header.active())?;
        Ok(())
    }

    /// How many clusters a slice of an L2 table maps.
    pub(super) const fn slice_clusters(&self) -> u64 {
        self.l2.slice() / 8
    }

    const fn l1_index(&self, cluster: u64) -> usize {
        (cluster >> (self.header.cluster_bits - 3)) as usize
    }

    /// True if no table maps `cluster`, nor those around it.
    pub(super) fn is_unmapped(&self, cluster: u64) -> bool {
        self.l1[self.l1_index(cluster)] & OFFSET == 0
    }

    /// The L2 table for `cluster`, and the entry's offset in it.
    fn l2_place(&self, cluster: u64) -> Result<Option<(u64, u64)>, Error> {
        let index = self.l1_index(cluster);
        let at = self.header.l1_offset + index as u64 * 8;
        let l2 = self.tables.l2_offset(self.l1[index], at)?;
        let offset = cluster % (self.cluster_size() / 8) * 8;
        Ok(l2.map(|l2| (l2, offset)))
    }

    /// Where the guest's cluster number `cluster` is.
    pub(super) fn place(&mut self, storage: &dyn Storage, cluster: u64) -> Result<Place, Error> {
        let Some((l2, offset)) = self.l2_place(cluster)? else { return Ok(Place::Unallocated) };
        let slice_len = self.l2.slice();
        let slice = self.l2.get(storage, l2 + offset / slice_len * slice_len)?;
        let entry = word(slice, offset % slice_len);
        place(&self.tables, entry, l2 + offset)
    }

    /// What is to be done before the first change: features that would have to be kept up with it
    /// are switched off, as "Autoclear features" has it.
    pub(super) fn begin(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        if self.failed {
            let what = "an earlier flush failed, so that nobody knows what is stored";
            return Err(Error::new(ErrorKind::Write, what));
        }
        if self.autoclear {
            storage.write_all_at(&[0; 8], at::AUTOCLEAR).map_err(Error::write)?;
            self.sync(storage)?;
            self.autoclear = false;
        }
        Ok(())
    }

    /// Makes sure that `cluster` has an L2 table to which nothing but the active L1 table refers.
    pub(super) fn own_l2(&mut self, storage: &dyn Storage, cluster: u64) -> Result<(), Error> {
        let index = self.l1_index(cluster);
        let old = self.l2_place(cluster)?.map(|(l2, _)| l2);
        if old.is_some() && self.l1[index] & COPIED != 0 {
            return Ok(());
        }
        let place = self.refcounts.allocate(storage, 1)?;
        let len = self.cluster_size();
        let new = place.start * len;
        if let Err(error) = self.store_l2(storage, old, new) {
            // If this fails too, it is a leak: the first failure says more.
            let _ = self.unallocate(storage, place);
            return Err(error);
        }
        if let Some(old) = old {
            self.l2.forget(old, old + len);
            self.frees.push(Free { cluster: old / len, was: Was::Table });
        }
        self.l1[index] = new | COPIED;
        self.changed_l1.insert(index);
        Ok(())
    }

    /// Stores a copy of the L2 table at `old`, or an empty one, in the cluster at `new`.
    fn store_l2(&mut self, storage: &dyn Storage, old: Option<u64>, new: u64) -> Result<(), Error> {
        let len = self.cluster_size();
        self.l2.forget(new, new + len);
        let Some(old) = old else { return storage.zero_at(len, new).map_err(Error::write) };
        for at in (0..len).step_by(self.l2.slice() as usize) {
            let slice = self.l2.get(storage, old + at)?;
            storage.write_all_at(slice, new + at).map_err(Error::write)?;
        }
        Ok(())
    }

    /// Gives the guest's clusters from `first` on, which have their own L2 table and one slice of
    /// it, new entries. What they referred to is free once the file says so.
    pub(super) fn set_entries(
        &mut self,
        storage: &dyn Storage,
        first: u64,
        entries: impl ExactSizeIterator<Item = u64>,
        discarded: bool,
    ) -> Result<(), Error> {
        let (l2, offset) = self.l2_place(first)?.expect("its writer made a table for it");
        let len = self.l2.slice();
        let slice = self.l2.change(storage, l2 + offset / len * len)?;
        let places = (offset % len..len).step_by(8).take(entries.len());
        let olds: Vec<(u64, Place)> = places
            .clone()
            .map(|at| word(slice, at))
            .map(|old| Ok((old, place(&self.tables, old, l2 + offset)?)))
            .collect::<Result<_, Error>>()?;
        // Nothing fails from here on.
        let was = if discarded { Was::Discarded } else { Was::Data };
        for ((at, entry), (old, place)) in places.zip(entries).zip(olds) {
            slice[at as usize..][..8].copy_from_slice(&entry.to_be_bytes());
            if old & COMPRESSED != 0 || old & OFFSET != entry & OFFSET {
                let old = clusters(place, self.header.cluster_bits);
                self.frees.extend(old.map(|cluster| Free { cluster, was }));
            }
        }
        Ok(())
    }

    /// True if a commit is due before anything else is changed.
    pub(super) fn is_crowded(&self) -> bool {
        self.l2.is_crowded() || self.frees.len() > FREES_MAX
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.failed
            || self.l2.is_dirty()
            || !self.changed_l1.is_empty()
            || self.refcounts.is_dirty()
            || !self.frees.is_empty()
    }

    /// Writes all tables and makes them durable, in the order that the module's text explains.
    /// Nobody may be using a cluster of the file meanwhile.
    pub(super) fn commit(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        self.begin(storage)?;
        self.refcounts.write_back(storage)?;
        if self.refcounts.has_new_blocks() {
            self.sync(storage)?;
            let failed = &mut self.failed;
            let old = self.refcounts.name_blocks(storage, || sync(storage, failed))?;
            let was = Was::Table;
            self.frees.extend(old.into_iter().flatten().map(|cluster| Free { cluster, was }));
            self.header.refcount_table_offset = self.refcounts.table_at();
            self.header.refcount_table_len = self.refcounts.table_len();
            self.tables = Tables::new(&self.header, &self.header.active());
        }
        self.sync(storage)?;
        self.l2.write_back(storage)?;
        while let Some(index) = self.changed_l1.first().copied() {
            let at = self.header.l1_offset + index as u64 * 8;
            storage.write_all_at(&self.l1[index].to_be_bytes(), at).map_err(Error::write)?;
            self.changed_l1.remove(&index);
        }
        self.sync(storage)?;
        self.free(storage)
    }

    /// Counts down what nothing refers to any more, and gives discarded space back.
    fn free(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        let mut holes = Vec::new();
        while let Some(Free { cluster, was }) = self.frees.last().copied() {
            let free = self.refcounts.release(storage, cluster)?;
            self.frees.pop();
            match was {
                Was::Table if free => self.refcounts.unguard(cluster),
                Was::Discarded if free && self.refcounts.check_guard(cluster).is_ok() => {
                    holes.push(cluster);
                }
                _ => {}
            }
        }
        self.refcounts.write_back(storage)?;
        holes.sort_unstable();
        let size = self.cluster_size();
        for run in holes.chunk_by(|one, next| one + 1 == *next) {
            storage.zero_at(run.len() as u64 * size, run[0] * size).map_err(Error::write)?;
        }
        Ok(())
    }

    /// Gives back clusters to which nothing ever referred.
    pub(super) fn unallocate(
        &mut self,
        storage: &dyn Storage,
        clusters: std::ops::Range<u64>,
    ) -> Result<(), Error> {
        clusters
            .into_iter()
            .try_for_each(|cluster| self.refcounts.release(storage, cluster).map(drop))
    }

    /// Notes that what was written may be lost: nothing may be built upon it any more.
    pub(super) const fn fail(&mut self) {
        self.failed = true;
    }

    fn sync(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        sync(storage, &mut self.failed)
    }
}

/// Makes durable what was written. If that fails, what was written before may be lost without any
/// further sign, so that nothing may be built upon it.
fn sync(storage: &dyn Storage, failed: &mut bool) -> Result<(), Error> {
    storage.sync().map_err(|error| {
        *failed = true;
        Error::write(error)
    })
}

/// What the L2 entry that stands at `at` says.
pub(super) fn place(tables: &Tables, entry: u64, at: u64) -> Result<Place, Error> {
    let (host, own) = (entry & OFFSET, entry & COPIED != 0);
    // Where on the disk the cluster is matters only in images with a data file.
    Ok(match tables.cluster(entry, at, 0)? {
        Mapping::Absent => Place::Unallocated,
        Mapping::Zero => Place::Zero { host: (host != 0).then_some(host), own: own && host != 0 },
        Mapping::Data { host, .. } => Place::Data { host, own },
        Mapping::Packed { host, len } => Place::Packed { host, len },
    })
}

/// The clusters of the file to which an entry refers.
pub(super) fn clusters(place: Place, cluster_bits: u32) -> std::ops::Range<u64> {
    match place {
        Place::Unallocated | Place::Zero { host: None, .. } => 0..0,
        Place::Zero { host: Some(host), .. } | Place::Data { host, .. } => {
            host >> cluster_bits..(host >> cluster_bits) + 1
        }
        Place::Packed { host, len } => host >> cluster_bits..((host + len - 1) >> cluster_bits) + 1,
    }
}

pub(super) fn beyond(what: &str, at: u64) -> Error {
    corrupt(format!("the {what} is beyond the end of the file"), at)
}
