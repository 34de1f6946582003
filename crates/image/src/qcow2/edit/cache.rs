//! Slices of tables in memory, those that were changed until they are written back. Knows nothing
//! of what the tables mean, nor when a slice may be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::Error;
use crate::stream::Storage;

/// A slice has this many bytes, or a cluster's if that is less.
const SLICE: u64 = 4096;

/// Slices by the host offsets where they stand.
#[derive(Debug)]
pub(super) struct Cache {
    slice: u64,
    slots: HashMap<u64, Slot>,
    /// The slots by when they were used.
    order: BTreeMap<u64, u64>,
    dirty: BTreeSet<u64>,
    clock: u64,
    max: usize,
}

#[derive(Debug)]
struct Slot {
    data: Box<[u8]>,
    used: u64,
}

impl Cache {
    /// A cache of `bytes` for an image with clusters of 2^`cluster_bits` bytes.
    pub(super) fn new(bytes: u64, cluster_bits: u32) -> Self {
        let slice = SLICE.min(1 << cluster_bits);
        Self {
            slice,
            slots: HashMap::new(),
            order: BTreeMap::new(),
            dirty: BTreeSet::new(),
            clock: 0,
            max: (bytes / slice) as usize,
        }
    }

    /// How many bytes a slice has.
    pub(super) const fn slice(&self) -> u64 {
        self.slice
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// True if so much is changed that there is little room for anything else.
    pub(super) fn is_crowded(&self) -> bool {
        self.dirty.len() > self.max / 2
    }

    /// The slice at `at`, read if need be.
    pub(super) fn get(&mut self, storage: &dyn Storage, at: u64) -> Result<&[u8], Error> {
        self.load(storage, at).map(|slot| &*slot.data)
    }

    /// The slice at `at` to change it.
    pub(super) fn change(&mut self, storage: &dyn Storage, at: u64) -> Result<&mut [u8], Error> {
        self.load(storage, at)?;
        self.dirty.insert(at);
        Ok(&mut self.slots.get_mut(&at).expect("it was just loaded").data)
    }

    fn load(&mut self, storage: &dyn Storage, at: u64) -> Result<&mut Slot, Error> {
        self.clock += 1;
        if let Some(slot) = self.slots.get(&at) {
            self.order.remove(&slot.used);
        } else {
            let mut data = vec![0; self.slice as usize].into_boxed_slice();
            storage.read_exact_at(&mut data, at).map_err(|error| Error::read(error, at))?;
            self.make_room();
            self.slots.insert(at, Slot { data, used: 0 });
        }
        self.order.insert(self.clock, at);
        let slot = self.slots.get_mut(&at).expect("it was there or was just inserted");
        slot.used = self.clock;
        Ok(slot)
    }

    /// Gives up the clean slice that was not used for longest. If all are changed, there will be
    /// more than should be until they are written.
    fn make_room(&mut self) {
        if self.slots.len() < self.max {
            return;
        }
        let oldest = self.order.iter().find(|(_, at)| !self.dirty.contains(at));
        if let Some((&used, &at)) = oldest {
            self.order.remove(&used);
            self.slots.remove(&at);
        }
    }

    /// Writes what was changed.
    pub(super) fn write_back(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        while let Some(at) = self.dirty.first().copied() {
            storage.write_all_at(&self.slots[&at].data, at).map_err(Error::write)?;
            self.dirty.remove(&at);
        }
        Ok(())
    }

    /// Forgets the slices from `begin` to `end`, changed or not: the place has another use now.
    pub(super) fn forget(&mut self, begin: u64, end: u64) {
        for at in (begin..end).step_by(self.slice as usize) {
            if let Some(slot) = self.slots.remove(&at) {
                self.order.remove(&slot.used);
                self.dirty.remove(&at);
            }
        }
    }
}

/// The entry at `offset` of a slice.
pub(super) fn word(slice: &[u8], offset: u64) -> u64 {
    let bytes = &slice[offset as usize..][..8];
    u64::from_be_bytes(bytes.try_into().expect("eight bytes were cut out"))
}
