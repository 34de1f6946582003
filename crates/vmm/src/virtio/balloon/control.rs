//! What the owner of a machine does with its balloon: says how large it shall be, and asks how things
//! are. Outlives the guest's restarts, with its wish.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::{DeviceConfig, Request};
use super::{ACTUAL, PAGE};

/// Bytes of one figure (§5.5.6.3): a tag and a value, little-endian.
const FIGURE: usize = 10;
/// Figures that are looked at. The specification and Linux know 16; others are passed over.
const FIGURES_MAX: usize = 64;

/// The figures by their tags: what they are called, and the unit in which the driver tells them
/// (§5.5.6.4, and Linux from 6.12 on).
const NAMES: [&str; 16] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_cache_bytes",
    "huge_page_allocations",
    "huge_page_allocation_failures",
    "out_of_memory_kills",
    "allocation_stalls",
    "async_scanned_pages",
    "direct_scanned_pages",
    "async_reclaimed_pages",
    "direct_reclaimed_pages",
];

/// What a guest says of its memory. Nothing here is to be relied on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestFigures([Option<u64>; NAMES.len()]);

impl GuestFigures {
    /// The figures that the guest tells, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.iter().zip(self.0).filter_map(|(name, value)| Some((*name, value?)))
    }

    /// The figures of a driver's buffer, in whatever order.
    pub(super) fn read(request: &mut Request<'_>) -> io::Result<Self> {
        let mut figures = Self::default();
        for _ in 0..FIGURES_MAX {
            let mut entry = [0; FIGURE];
            if request.readable() < FIGURE {
                break;
            }
            request.read_exact(&mut entry)?;
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes(tag.try_into().expect("2 bytes"));
            if let Some(slot) = figures.0.get_mut(usize::from(tag)) {
                *slot = Some(u64::from_le_bytes(value.try_into().expect("8 bytes")));
            }
        }
        Ok(figures)
    }
}

/// Sets a balloon's size and tells how it is. Clones control the same balloon.
#[derive(Debug, Clone)]
pub struct BalloonControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes of the machine's memory.
    memory: u64,
    state: Mutex<State>,
    told: Condvar,
    /// Somebody wants new figures.
    wanted: EventFd,
    released: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    target: u64,
    /// Of the balloon that is there.
    config: Option<DeviceConfig>,
    figures: Option<GuestFigures>,
    /// How often figures were told.
    answers: u64,
}

impl BalloonControl {
    /// Controls the balloon of a machine with `memory` bytes of memory. Fails where the host has no
    /// event.
    pub fn new(memory: u64) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            memory,
            state: Mutex::default(),
            told: Condvar::new(),
            wanted: EventFd::new(EFD_NONBLOCK)?,
            released: AtomicU64::new(0),
        })))
    }

    /// Bytes of the machine's memory.
    pub fn memory(&self) -> u64 {
        self.0.memory
    }

    /// Wishes that the guest leaves `bytes` of its memory to the host, in whole pages. Gives what is
    /// wished now, which is not more than there is. The guest follows as it can: see
    /// [`BalloonControl::actual`].
    pub fn set_target(&self, bytes: u64) -> u64 {
        let mut state = self.state();
        state.target = bytes.min(self.0.memory) / PAGE * PAGE;
        if let Some(config) = &state.config {
            set_target(config, state.target);
        }
        state.target
    }

    /// The bytes that are wished.
    pub fn target(&self) -> u64 {
        self.state().target
    }

    /// The bytes that the guest says it has left to the host.
    pub fn actual(&self) -> u64 {
        let state = self.state();
        let bytes = state.config.as_ref().map(DeviceConfig::bytes);
        let pages = bytes.and_then(|bytes| bytes[ACTUAL..].first_chunk().copied());
        pages.map_or(0, |pages| u64::from(u32::from_le_bytes(pages)) * PAGE)
    }

    /// The bytes that were given back to the host so far, those among them that the guest has used
    /// again since.
    pub fn released_bytes(&self) -> u64 {
        self.0.released.load(Ordering::Relaxed)
    }

    /// Asks the guest for its figures and waits for them for so long. Gives what it told last, if it
    /// ever did: a guest without a driver tells nothing.
    pub fn figures(&self, patience: Duration) -> Option<GuestFigures> {
        let state = self.state();
        let before = state.answers;
        // Fails only for a counter at its limit, which wakes the device just as well.
        let _ = self.0.wanted.write(1);
        let silent = |state: &mut State| state.answers == before && state.config.is_some();
        let waited = self.0.told.wait_timeout_while(state, patience, silent);
        waited.expect("no holder of this lock panics").0.figures
    }

    pub(super) fn attach(&self, config: &DeviceConfig) {
        let mut state = self.state();
        set_target(config, state.target);
        state.config = Some(config.clone());
        state.figures = None;
    }

    pub(super) fn wanted(&self) -> &EventFd {
        &self.0.wanted
    }

    pub(super) fn told(&self, figures: GuestFigures) {
        let mut state = self.state();
        state.figures = Some(figures);
        state.answers += 1;
        self.0.told.notify_all();
    }

    pub(super) fn forget_figures(&self) {
        self.state().figures = None;
    }

    pub(super) fn released(&self, bytes: u64) {
        self.0.released.fetch_add(bytes, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of this lock panics")
    }
}

/// Tells the driver how many pages are wished.
fn set_target(config: &DeviceConfig, bytes: u64) {
    let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
    config.update(|config| config[..ACTUAL].copy_from_slice(&pages.to_le_bytes()));
}
