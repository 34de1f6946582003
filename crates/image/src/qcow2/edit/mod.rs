//! Reading and writing an image at random places: what a machine does with its disk.
//!
//! [`Editor`] moves the guest's data, [`state::State`] keeps the tables. Data goes straight to its
//! cluster, several threads at once; tables are changed in memory and written by a commit, which
//! a flush asks for, or too many changes. After a power cut the image is what the last commit
//! made it, but for clusters that are counted and not used; the data in clusters that kept their
//! place may be newer.
//!
//! A cluster that something else refers to as well (an internal snapshot) is never written: its
//! contents get a new place. A backing file is read only.
//!
//! # Locks
//!
//! Whoever reads or writes a cluster of the file holds [`Editor::gate`] shared; a commit holds it
//! alone. As clusters become free only in a commit, no cluster changes hands under a reader or
//! writer. [`Editor::state`] is locked after the gate and never during the guest's reads and
//! writes. What the kernel itself reads, with no lock held, is counted as a pin: a commit waits for
//! those that are left when it holds the gate. A writer that gives a guest's cluster a new place
//! marks it busy until the tables say so; other writers to it wait.

mod cache;
mod grow;
mod open;
mod rebuild;
mod refcounts;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use self::state::{Place, State, beyond};
use super::table::{COPIED, ZERO};
use crate::disk::locate_backing;
use crate::pins::Pins;
use crate::raw::check_range;
use crate::stream::Storage;
use crate::unpacked::Unpacked;
use crate::{Disk, Error, Extent, Located, Location, Payload, WriteDisk};

pub use self::open::edit;

/// New places are given to at most this many bytes at a time.
const STEP: u64 = 1 << 20;
/// An extent is not looked for farther than this many clusters, so that asking stays cheap.
const EXTENT_CLUSTERS_MAX: u64 = 1 << 16;

/// A disk in a qcow2 image that can be written.
///
/// What was not flushed when it is dropped is lost, as if the power had failed.
pub struct Editor<S> {
    storage: S,
    backing: Option<Box<dyn Disk>>,
    cluster_bits: u32,
    version: u32,
    virtual_size: u64,
    gate: RwLock<()>,
    pins: Pins,
    state: Mutex<State>,
    /// A cluster is busy no more.
    idle: Condvar,
    /// By the host offsets where they begin: such a place is never written while a cluster is
    /// there, and no new compressed cluster is made.
    unpacked: Unpacked,
}

/// What is stored.
#[derive(Clone, Copy)]
enum Data<'a> {
    Slice(&'a [u8]),
    Payload(&'a dyn Payload),
}

impl Data<'_> {
    fn len(self) -> usize {
        match self {
            Self::Slice(data) => data.len(),
            Self::Payload(data) => data.size(),
        }
    }

    /// Writes `range` of it to `host` of the file.
    fn store(self, storage: &dyn Storage, range: Range<usize>, host: u64) -> Result<(), Error> {
        let stored = match self {
            Self::Slice(data) => storage.write_all_at(&data[range], host),
            Self::Payload(data) => storage.write_payload_at(data, range, host),
        };
        stored.map_err(Error::write)
    }
}

/// What one step of a write does.
enum Step {
    /// Store this many bytes at this host offset.
    InPlace { host: u64, len: u64 },
    /// Store clusters of the guest in these clusters of the file, which nothing else uses.
    Move(Move),
}

/// Clusters of the guest that get a new place, and where the first and the last of them were.
struct Move {
    guest: Range<u64>,
    host: u64,
    /// The place was theirs already, reserved for zeros.
    reserved: bool,
    first: Place,
    last: Place,
}

impl<S: Storage> Editor<S> {
    /// What the image is stored in.
    pub const fn storage(&self) -> &S {
        &self.storage
    }

    const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn share(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state when nobody is giving `cluster` a new place.
    fn lock_idle(&self, cluster: u64) -> MutexGuard<'_, State> {
        let busy = |state: &mut State| state.busy.contains(&cluster);
        self.idle.wait_while(self.lock(), busy).unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_if(&self, due: impl FnOnce(&State) -> bool) -> Result<(), Error> {
        if !due(&self.lock()) {
            return Ok(());
        }
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.pins.wait_for_none();
        self.lock().commit(&self.storage)
    }

    /// The guest's clusters from the one at `offset` on, at most as many as `len` bytes touch, a
    /// step may have, and one slice of an L2 table maps.
    fn step(&self, state: &State, offset: u64, len: u64) -> Range<u64> {
        let first = offset >> self.cluster_bits;
        let end = ((offset + len - 1) >> self.cluster_bits) + 1;
        let slice = state.slice_clusters();
        first..end.min((first / slice + 1) * slice).min(first + (STEP >> self.cluster_bits).max(1))
    }

    /// The run of bytes from `offset` on that are in one place, at most `len`.
    fn run(&self, state: &mut State, offset: u64, len: u64) -> Result<(Place, u64), Error> {
        let clusters = self.step(state, offset, len);
        let first = state.place(&self.storage, clusters.start)?;
        let mut end = clusters.start + 1;
        while end < clusters.end {
            let distance = (end - clusters.start) << self.cluster_bits;
            if !continues(first, distance, state.place(&self.storage, end)?) {
                break;
            }
            end += 1;
        }
        Ok((first, ((end << self.cluster_bits) - offset).min(len)))
    }

    /// Fills `buf` from `offset` of the guest's disk, which is all in `place`.
    fn read_place(&self, place: Place, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let skip = offset % self.cluster_size();
        match place {
            Place::Zero { .. } => buf.fill(0),
            Place::Data { host, .. } => self.read_data(buf, host + skip)?,
            Place::Packed { host, len } => {
                self.unpacked.read(&self.storage, (host, len), skip as usize, buf)?;
            }
            Place::Unallocated => {
                let there = self.backing_len(offset).min(buf.len() as u64) as usize;
                let (there, rest) = buf.split_at_mut(there);
                rest.fill(0);
                if let Some(backing) = self.backing.as_ref().filter(|_| !there.is_empty()) {
                    backing.read_at(there, offset)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a cluster's data. The last cluster may reach beyond the file's end.
    fn read_data(&self, buf: &mut [u8], host: u64) -> Result<(), Error> {
        let there = self.storage.len().saturating_sub(host).min(buf.len() as u64);
        if there == 0 && host.is_multiple_of(self.cluster_size()) {
            return Err(beyond("data cluster", host));
        }
        let (there, rest) = buf.split_at_mut(there as usize);
        rest.fill(0);
        self.storage.read_exact_at(there, host).map_err(|error| Error::read(error, host))
    }

    /// How many bytes the backing file has from `offset` on.
    fn backing_len(&self, offset: u64) -> u64 {
        self.backing.as_ref().map_or(0, |backing| backing.virtual_size().saturating_sub(offset))
    }

    /// True if the cluster of `offset` reads as zeros without a look at its contents.
    fn is_zero(&self, place: Place, offset: u64) -> bool {
        match place {
            Place::Zero { .. } => true,
            Place::Unallocated => self.backing_len(offset - offset % self.cluster_size()) == 0,
            Place::Data { .. } | Place::Packed { .. } => false,
        }
    }

    /// Stores all of `data` at `offset`.
    fn write(&self, data: Data<'_>, offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size, data.len() as u64, offset)?;
        let mut done = 0;
        while done < data.len() {
            self.commit_if(State::is_crowded)?;
            done += self.write_some(data, done, offset + done as u64)?;
        }
        Ok(())
    }

    /// Stores the beginning of what `data` has from `from` on, which is not nothing. Returns how
    /// much.
    fn write_some(&self, data: Data<'_>, from: usize, offset: u64) -> Result<usize, Error> {
        let _gate = self.share();
        let rest = (data.len() - from) as u64;
        match self.plan(offset, rest)? {
            Step::InPlace { host, len } => {
                data.store(&self.storage, from..from + len as usize, host)?;
                Ok(len as usize)
            }
            Step::Move(step) => {
                let end = (step.guest.end << self.cluster_bits).min(offset + rest);
                let len = (end - offset) as usize;
                let stored = self.store(&step, data, from..from + len, offset);
                self.settle(&step, stored)?;
                Ok(len)
            }
        }
    }

    /// Decides where the next bytes of a write go. Marks clusters that get a new place as busy.
    fn plan(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let mut state = self.lock_idle(offset >> self.cluster_bits);
        let state = &mut *state;
        state.begin(&self.storage)?;
        let clusters = self.step(state, offset, len);
        let first = state.place(&self.storage, clusters.start)?;
        if let Place::Data { host, own: true } = first {
            if host >= self.storage.len() {
                return Err(beyond("data cluster", host));
            }
            let (_, len) = self.run(state, offset, len)?;
            let skip = offset % self.cluster_size();
            for cluster in host >> self.cluster_bits..=(host + skip + len - 1) >> self.cluster_bits
            {
                state.refcounts.check_guard(cluster)?;
            }
            return Ok(Step::InPlace { host: host + skip, len });
        }
        state.own_l2(&self.storage, clusters.start)?;
        // One beyond the end is given up, lest the file grow to wherever the image says.
        let there = |host| host < self.storage.len();
        if let Place::Zero { host: Some(host), own: true } = first
            && there(host)
        {
            state.refcounts.check_guard(host >> self.cluster_bits)?;
            let guest = clusters.start..clusters.start + 1;
            state.busy.insert(guest.start);
            return Ok(Step::Move(Move { guest, host, reserved: true, first, last: first }));
        }
        let (mut last, mut count) = (first, 1);
        for cluster in clusters.start + 1..clusters.end {
            let place = state.place(&self.storage, cluster)?;
            if is_own(place) || state.busy.contains(&cluster) {
                break;
            }
            (last, count) = (place, count + 1);
        }
        let host = state.refcounts.allocate(&self.storage, count)?;
        let guest = clusters.start..clusters.start + (host.end - host.start);
        if guest.end < clusters.start + count {
            last = state.place(&self.storage, guest.end - 1)?;
        }
        state.busy.extend(guest.clone());
        let host = host.start << self.cluster_bits;
        Ok(Step::Move(Move { guest, host, reserved: false, first, last }))
    }

    /// Stores `part` of `data` in its new place, with what was around it in the first and last
    /// cluster.
    fn store(
        &self,
        step: &Move,
        data: Data<'_>,
        part: Range<usize>,
        offset: u64,
    ) -> Result<(), Error> {
        let begin = step.guest.start << self.cluster_bits;
        let data_end = offset + part.len() as u64;
        let host = |guest: u64| step.host + (guest - begin);
        self.store_old(step.first, begin..offset, host(begin))?;
        data.store(&self.storage, part, host(offset))?;
        self.store_old(step.last, data_end..step.guest.end << self.cluster_bits, host(data_end))
    }

    /// Copies what the disk has in `range`, part of one cluster in `place`, to `host`.
    fn store_old(&self, place: Place, range: Range<u64>, host: u64) -> Result<(), Error> {
        let len = range.end - range.start;
        if len == 0 {
            return Ok(());
        }
        if self.is_zero(place, range.start) {
            return self.storage.zero_at(len, host).map_err(Error::write);
        }
        // What is behind the disk's end in its last cluster is of no interest.
        let mut old = vec![0; len as usize];
        let there = self.virtual_size.saturating_sub(range.start).min(len) as usize;
        self.read_place(place, &mut old[..there], range.start)?;
        self.storage.write_all_at(&old, host).map_err(Error::write)
    }

    /// Names the new place in the tables if the data is `stored` there; else gives it back.
    fn settle(&self, step: &Move, stored: Result<(), Error>) -> Result<(), Error> {
        let mut state = self.lock();
        let hosts = (step.host..).step_by(1 << self.cluster_bits);
        let count = (step.guest.end - step.guest.start) as usize;
        let entries: Vec<u64> = hosts.take(count).map(|host| host | COPIED).collect();
        let settled = stored.and_then(|()| {
            state.set_entries(&self.storage, step.guest.start, entries.into_iter(), false)
        });
        for cluster in step.guest.clone() {
            state.busy.remove(&cluster);
        }
        self.idle.notify_all();
        if settled.is_err() && !step.reserved {
            let first = step.host >> self.cluster_bits;
            // If this fails too, they are leaks: the first failure says more.
            let _ = state.unallocate(&self.storage, first..first + count as u64);
        }
        settled
    }

    /// Makes the beginning of a range, which is not empty, read as zeros. Returns how much.
    fn zero_some(&self, len: u64, offset: u64, discard: bool) -> Result<u64, Error> {
        let skip = offset % self.cluster_size();
        let in_cluster = (self.cluster_size() - skip).min(self.virtual_size - offset);
        if skip == 0 && len >= in_cluster {
            let whole = if offset + len == self.virtual_size {
                len
            } else {
                len - len % self.cluster_size()
            };
            let done = self.zero_clusters(whole, offset, discard)?;
            if done > 0 {
                return Ok(done);
            }
        } else if self.is_zero_cluster(offset)? {
            return Ok(in_cluster.min(len));
        }
        let zeros = vec![0; in_cluster.min(len) as usize];
        self.write_some(Data::Slice(&zeros), 0, offset).map(|done| done as u64)
    }

    fn is_zero_cluster(&self, offset: u64) -> Result<bool, Error> {
        let cluster = offset >> self.cluster_bits;
        let place = self.lock_idle(cluster).place(&self.storage, cluster)?;
        Ok(self.is_zero(place, offset))
    }

    /// Makes whole clusters read as zeros by their entries alone. Returns for how many bytes: none
    /// if an image of version 2 has no entry for zeros that hide a backing file's data.
    fn zero_clusters(&self, len: u64, offset: u64, discard: bool) -> Result<u64, Error> {
        let _gate = self.share();
        let mut state = self.lock_idle(offset >> self.cluster_bits);
        let state = &mut *state;
        state.begin(&self.storage)?;
        let first = offset >> self.cluster_bits;
        if state.is_unmapped(first) && self.backing_len(offset) == 0 {
            let coverage = state.header.l2_coverage();
            return Ok((coverage - offset % coverage).min(len));
        }
        let mut entries = Vec::new();
        let mut changes = false;
        for cluster in self.step(state, offset, len) {
            let place = state.place(&self.storage, cluster)?;
            let hides = self.backing_len(cluster << self.cluster_bits) > 0;
            if state.busy.contains(&cluster) || hides && self.version < 3 {
                break;
            }
            let (old, new) = self.zero_entry(place, hides, discard);
            changes |= old != Some(new);
            entries.push(new);
        }
        let done = ((entries.len() as u64) << self.cluster_bits).min(len);
        if changes {
            state.own_l2(&self.storage, first)?;
            state.set_entries(&self.storage, first, entries.into_iter(), discard)?;
        }
        Ok(done)
    }

    /// The entry of a cluster in `place`, and the one that it shall have to read as zeros. It must
    /// be a zero that `hides` the backing file's data, or may be none at all.
    fn zero_entry(&self, place: Place, hides: bool, discard: bool) -> (Option<u64>, u64) {
        let nowhere = if hides { ZERO } else { 0 };
        match place {
            Place::Unallocated => (Some(0), nowhere),
            Place::Zero { host: None, .. } => (Some(ZERO), ZERO),
            Place::Zero { host: Some(host), own: true } if !discard => {
                let entry = host | COPIED | ZERO;
                (Some(entry), entry)
            }
            Place::Data { host, own: true } if !discard && self.version >= 3 => {
                (None, host | COPIED | ZERO)
            }
            _ => (None, nowhere),
        }
    }
}

/// True if the cluster in `next`, `distance` bytes behind the one in `place`, is so in the file.
fn continues(place: Place, distance: u64, next: Place) -> bool {
    match place {
        Place::Unallocated => next == Place::Unallocated,
        Place::Zero { .. } => matches!(next, Place::Zero { .. }),
        Place::Data { host, own } => next == Place::Data { host: host + distance, own },
        Place::Packed { .. } => false,
    }
}

/// True if the file has a cluster for this one that nothing else refers to.
const fn is_own(place: Place) -> bool {
    matches!(place, Place::Data { own: true, .. } | Place::Zero { own: true, .. })
}

impl<S: Storage> Disk for Editor<S> {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size, buf.len() as u64, offset)?;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let _gate = self.share();
            let (place, len) = self.run(&mut self.lock(), at, rest.len() as u64)?;
            let part = rest.split_off_mut(..len as usize).expect("a run is within the buffer");
            self.read_place(place, part, at)?;
            at += len;
        }
        Ok(())
    }

    fn locate(&self, offset: u64, len: u64) -> Option<Located<'_>> {
        let len = len.min(self.virtual_size.checked_sub(offset)?);
        if len == 0 {
            return None;
        }
        // While a commit waits for pins, whoever has some must not wait for the commit.
        let _gate = self.gate.try_read().ok()?;
        let (place, len) = self.run(&mut self.lock(), offset, len).ok()?;
        let at = match place {
            Place::Unallocated => return locate_backing(self.backing.as_deref(), offset, len),
            Place::Zero { .. } => Location::Zeros,
            Place::Data { host, .. } => {
                let host = host + offset % self.cluster_size();
                // The last cluster may reach beyond the file's end.
                let there = self.storage.len().checked_sub(host).filter(|there| *there > 0)?;
                let file = self.storage.file()?;
                let at = Location::File { file, offset: host, pin: Some(self.pins.pin()) };
                return Some(Located { len: len.min(there), at });
            }
            Place::Packed { .. } => return None,
        };
        Some(Located { len, at })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.virtual_size, 1, offset)?;
        let _gate = self.share();
        let mut state = self.lock();
        let (mut end, mut kind) = (offset, None);
        for _ in 0..EXTENT_CLUSTERS_MAX {
            let cluster = end >> self.cluster_bits;
            let mut next = (cluster + 1) << self.cluster_bits;
            let place = state.place(&self.storage, cluster)?;
            let mut zero = self.is_zero(place, end);
            if place == Place::Unallocated && !zero {
                let backing = self.backing.as_ref().filter(|_| self.backing_len(end) > 0);
                let extent = backing.map(|backing| backing.extent_at(end)).transpose()?;
                zero = extent.is_none_or(|extent| extent.zero);
                next = next.min(extent.map_or(next, |extent| end + extent.len));
            } else if zero && state.is_unmapped(cluster) {
                let coverage = state.header.l2_coverage();
                next = (end / coverage + 1) * coverage;
            }
            if *kind.get_or_insert(zero) != zero {
                break;
            }
            end = next.min(self.virtual_size);
            if end == self.virtual_size {
                break;
            }
        }
        Ok(Extent { len: end - offset, zero: kind == Some(true) })
    }

    fn writer(&self) -> Option<&dyn WriteDisk> {
        Some(self)
    }
}

impl<S: Storage> WriteDisk for Editor<S> {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.write(Data::Slice(data), offset)
    }

    fn write_payload_at(&self, data: &dyn Payload, offset: u64) -> Result<(), Error> {
        self.write(Data::Payload(data), offset)
    }

    fn zero_at(&self, len: u64, offset: u64, discard: bool) -> Result<(), Error> {
        check_range(self.virtual_size, len, offset)?;
        let mut done = 0;
        while done < len {
            self.commit_if(State::is_crowded)?;
            done += self.zero_some(len - done, offset + done, discard)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        if self.lock().is_dirty() {
            return self.commit_if(|_| true);
        }
        // The clusters that writers are filling right now may be among what a failure loses.
        self.storage.sync().map_err(|error| {
            self.lock().fail();
            Error::write(error)
        })
    }
}

impl<S> fmt::Debug for Editor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editor")
            .field("virtual_size", &self.virtual_size)
            .field("cluster_bits", &self.cluster_bits)
            .field("backing", &self.backing.is_some())
            .finish_non_exhaustive()
    }
}
