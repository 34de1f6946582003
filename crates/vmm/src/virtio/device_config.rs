//! The device-specific configuration structure (§2.5): a few bytes that the driver reads through the
//! transport while the device changes them from its thread.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Interrupt;

/// A device's configuration structure. Clones are the same structure: the transport has one, the
/// device may keep another.
#[derive(Clone)]
pub struct DeviceConfig(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// What the driver may write, and the event that tells the device that it did.
    writable: Option<(Range<usize>, EventFd)>,
    /// Set once the structure is part of a function on the bus.
    interrupt: OnceLock<Weak<Interrupt>>,
}

struct State {
    bytes: Vec<u8>,
    /// Lets a driver see that what it read piecewise was changed meanwhile (§4.1.4.3).
    generation: u8,
    /// The driver has read something in this generation. Changes that it has not begun to read need no
    /// new one, so that many of them do not lead back to the number that it knows.
    was_read: bool,
}

impl DeviceConfig {
    /// A structure that the driver only reads. Without bytes there is none.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::with(bytes, None)
    }

    /// A structure in which the driver may write `writable`. Fails where the host has no event.
    pub fn writable(bytes: Vec<u8>, writable: Range<usize>) -> io::Result<Self> {
        Ok(Self::with(bytes, Some((writable, EventFd::new(EFD_NONBLOCK)?))))
    }

    fn with(bytes: Vec<u8>, writable: Option<(Range<usize>, EventFd)>) -> Self {
        let state = Mutex::new(State { bytes, generation: 0, was_read: false });
        Self(Arc::new(Shared { state, writable, interrupt: OnceLock::new() }))
    }

    /// Signalled, until it is read, after the driver has written; for [`super::Session::watch`].
    pub fn written(&self) -> Option<&EventFd> {
        self.0.writable.as_ref().map(|(_, event)| event)
    }

    /// The bytes as they are now.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Changes the bytes from the device's side, and tells a driver that is at work.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        {
            let mut state = self.state();
            change(&mut state.bytes);
            if std::mem::take(&mut state.was_read) {
                state.generation = state.generation.wrapping_add(1);
            }
        }
        if let Some(interrupt) = self.0.interrupt.get().and_then(Weak::upgrade) {
            interrupt.config_changed();
        }
    }

    /// From now on changes interrupt the driver.
    pub(super) fn attach(&self, interrupt: &Arc<Interrupt>) {
        let _already = self.0.interrupt.set(Arc::downgrade(interrupt));
    }

    pub(super) fn len(&self) -> usize {
        self.state().bytes.len()
    }

    pub(super) fn generation(&self) -> u8 {
        self.state().generation
    }

    /// Copies what is at `offset` to the front of `data`.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state();
        state.was_read = true;
        super::transport::copy(&state.bytes, offset, data);
    }

    /// Takes a driver's write, as far as it goes to what is its to write.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let Some((writable, event)) = &self.0.writable else { return };
        let Ok(offset) = usize::try_from(offset) else { return };
        let mut state = self.state();
        let mut wrote = false;
        for (at, byte) in (offset..).zip(data) {
            if let Some(slot) = state.bytes.get_mut(at).filter(|_| writable.contains(&at)) {
                *slot = *byte;
                wrote = true;
            }
        }
        if wrote {
            // Fails only for a counter at its limit, which is as good as signalled.
            let _ = event.write(1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of this lock panics")
    }
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl fmt::Debug for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeviceConfig").field(&self.state().bytes).finish()
    }
}
