//! Counts anew how often each cluster is used, for an image that was not closed as it should have
//! been ("Incompatible features", bit 0). If the power fails on the way, the image still says so.
//!
//! Bitmaps are not counted: nobody has kept them up, so that their space is free.

use std::collections::HashMap;
use std::ops::Range;

use super::cache::word;
use super::open::{Snapshots, clusters_of};
use super::state::{Place, State, clusters, place};
use crate::error::corrupt;
use crate::qcow2::table::{COPIED, Tables};
use crate::stream::Storage;
use crate::{Error, ErrorKind};

/// How many entries of L2 tables are looked at. This is 16 TiB of disk with clusters of 64 KiB, its
/// snapshots included.
const ENTRIES_MAX: u64 = 1 << 28;
/// How many L2 tables there may be, which takes some 20 MiB: as many as one L1 table may name.
const TABLES_MAX: usize = 1 << 20;

/// Writes new refcounts, and then the flags that depend on them.
pub(super) fn rebuild(
    state: &mut State,
    storage: &dyn Storage,
    snapshots: &Snapshots,
) -> Result<(), Error> {
    state.begin(storage)?;
    let bits = state.header.cluster_bits;
    let active = state.header.l1_offset..state.header.l1_offset + state.header.l1_len();
    state.refcounts.clear(storage)?;
    let mut walk = Walk {
        tables: Tables::new(&state.header, &state.header.active()),
        bits,
        left: ENTRIES_MAX,
        storage,
    };
    let at = state.header.refcount_table_offset;
    let refcount_table = at..at + state.header.refcount_table_len;
    for range in [&(0..1), &refcount_table, &snapshots.table] {
        walk.count(state, clusters_of(range, bits), 1)?;
    }
    let blocks: Vec<u64> = state.refcounts.blocks().collect();
    for block in blocks {
        walk.count(state, block >> bits..(block >> bits) + 1, 1)?;
    }
    // A table that many snapshots share is looked at once: a small file can name it without end.
    let mut tables: HashMap<u64, u64> = HashMap::new();
    for l1 in snapshots.l1.iter().chain([&active]) {
        walk.count(state, clusters_of(l1, bits), 1)?;
        walk.each(l1, &mut |walk, l1_entry, at| {
            let Some(l2) = walk.tables.l2_offset(l1_entry, at)? else { return Ok(None) };
            *tables.entry(l2).or_default() += 1;
            if tables.len() > TABLES_MAX { Err(too_many()) } else { Ok(None) }
        })?;
    }
    for (l2, uses) in tables {
        walk.count(state, l2 >> bits..(l2 >> bits) + 1, uses)?;
        walk.each(&(l2..l2 + (1 << bits)), &mut |walk, entry, at| {
            let place = place(&walk.tables, entry, at)?;
            walk.count(state, clusters(place, bits), uses)?;
            Ok(None)
        })?;
    }
    state.refcounts.write_back(storage)?;
    walk.left = ENTRIES_MAX;
    walk.each(&active, &mut |walk, l1_entry, at| {
        let Some(l2) = walk.tables.l2_offset(l1_entry, at)? else { return Ok(None) };
        walk.each(&(l2..l2 + (1 << bits)), &mut |walk, entry, at| match place(
            &walk.tables,
            entry,
            at,
        )? {
            Place::Data { host, .. } | Place::Zero { host: Some(host), .. } => {
                walk.flag(state, entry, host)
            }
            _ => Ok(None),
        })?;
        walk.flag(state, l1_entry, l2)
    })?;
    state.reread_l1(storage)?;
    storage.sync().map_err(Error::write)
}

/// Sees an entry and the place where it stands, and may replace it.
type Visit<'a, W> = dyn FnMut(&mut W, u64, u64) -> Result<Option<u64>, Error> + 'a;

fn too_many() -> Error {
    Error::new(ErrorKind::TooLarge, "the image has too many tables to count its clusters")
}

struct Walk<'a> {
    tables: Tables,
    bits: u32,
    left: u64,
    storage: &'a dyn Storage,
}

impl Walk<'_> {
    /// Counts `uses` more of each of the clusters.
    fn count(&self, state: &mut State, clusters: Range<u64>, uses: u64) -> Result<(), Error> {
        for cluster in clusters {
            let host = cluster << self.bits;
            if host >= self.storage.len() {
                return Err(corrupt("a cluster that is used is beyond the end of the file", host));
            }
            state.refcounts.add(self.storage, cluster, uses)?;
        }
        Ok(())
    }

    /// The entry with the flag that nothing else refers to `host`, or without, if that is news.
    fn flag(&self, state: &mut State, entry: u64, host: u64) -> Result<Option<u64>, Error> {
        let count = state.refcounts.get(self.storage, host >> self.bits)?;
        let new = if count == 1 { entry | COPIED } else { entry & !COPIED };
        Ok((new != entry).then_some(new))
    }

    /// Calls `visit` for each entry of the table in `range` that is not 0, with the place where it
    /// stands, and replaces those for which it returns another.
    fn each(&mut self, range: &Range<u64>, visit: &mut Visit<'_, Self>) -> Result<(), Error> {
        let mut part = [0; 4096];
        for at in range.clone().step_by(part.len()) {
            let part = &mut part[..(range.end - at).min(4096) as usize];
            self.left = self.left.checked_sub(part.len() as u64 / 8).ok_or_else(too_many)?;
            self.storage.read_exact_at(part, at).map_err(|error| Error::read(error, at))?;
            let mut changed = false;
            for offset in (0..part.len() as u64).step_by(8) {
                let entry = word(part, offset);
                if entry == 0 {
                    continue;
                }
                if let Some(new) = visit(self, entry, at + offset)? {
                    part[offset as usize..][..8].copy_from_slice(&new.to_be_bytes());
                    changed = true;
                }
            }
            if changed {
                self.storage.write_all_at(part, at).map_err(Error::write)?;
            }
        }
        Ok(())
    }
}
