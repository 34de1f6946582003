//! MSI-X (PCI 3.0 §6.8.2): the table of messages, the pending bits, and the masks. A vector that
//! is raised while masked stays pending and is delivered when the last mask goes.
//!
//! ```text
//!   raise ─► MSI-X enabled? ─no─► lost
//!              │ yes
//!              ▼
//!            function or vector masked? ─no─► MsiSink
//!              │ yes                             ▲
//!              ▼                                 │ unmasked
//!            pending bit ────────────────────────┘
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::interrupt::{MsiMessage, MsiSink};

/// Most vectors of one function; the pending bits are one machine word.
pub const VECTORS_MAX: usize = 64;

/// Size in bytes of the region that holds table and pending bits: one page, so that it can be a
/// BAR of its own and no other register shares the page.
pub const MSIX_REGION_SIZE: u64 = 0x1000;

/// Where the pending bits begin in the region.
const PENDING_OFFSET: usize = 0x800;

/// Capability ID of MSI-X.
const CAPABILITY_ID: u8 = 0x11;
/// Message control: all vectors of the function are masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Message control: MSI-X is in use.
const CONTROL_ENABLE: u16 = 1 << 15;

/// Bytes of a table entry: message address, message data, vector control.
const ENTRY_SIZE: usize = 16;
const ENTRY_DATA: usize = 8;
const ENTRY_CONTROL: usize = 12;
/// Vector control: this vector is masked. Set after reset.
const VECTOR_MASKED: u8 = 1;

/// The MSI-X structure of one function.
pub struct MsiX {
    sink: Arc<dyn MsiSink>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    control: u16,
    table: Vec<[u8; ENTRY_SIZE]>,
    pending: u64,
}

impl MsiX {
    /// A structure with `vectors` vectors, all masked.
    ///
    /// # Panics
    ///
    /// Panics if `vectors` is 0 or above [`VECTORS_MAX`]: a mistake of the device's author.
    pub fn new(vectors: usize, sink: Arc<dyn MsiSink>) -> Self {
        assert!((1..=VECTORS_MAX).contains(&vectors), "{vectors} MSI-X vectors");
        Self { sink, state: Mutex::new(State::new(vectors)) }
    }

    /// The number of vectors.
    pub fn vectors(&self) -> usize {
        self.state().table.len()
    }

    /// The capability for a region behind `bar`: ID, body and the mask of what the guest may write.
    pub fn capability(&self, bar: u8) -> (u8, [u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        let last = u16::try_from(self.vectors() - 1).expect("at most VECTORS_MAX");
        body[0..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        let pending = u32::try_from(PENDING_OFFSET).expect("less than a page") | u32::from(bar);
        body[6..10].copy_from_slice(&pending.to_le_bytes());
        (CAPABILITY_ID, body, (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes())
    }

    /// Takes the message control word that the guest has written into the capability.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.control = control;
        self.deliver_pending(&mut state);
    }

    /// Fills `data` from `offset` into the region.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        let pending = state.pending.to_le_bytes();
        for (at, byte) in (usize::try_from(offset).unwrap_or(usize::MAX)..).zip(data) {
            *byte = match state.table.get(at / ENTRY_SIZE) {
                Some(entry) => entry[at % ENTRY_SIZE],
                None => at
                    .checked_sub(PENDING_OFFSET)
                    .and_then(|n| pending.get(n))
                    .copied()
                    .unwrap_or(0),
            };
        }
    }

    /// Takes `data` for `offset` into the region. Pending bits and reserved bits are read-only.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        for (at, byte) in (usize::try_from(offset).unwrap_or(usize::MAX)..).zip(data) {
            if let Some(entry) = state.table.get_mut(at / ENTRY_SIZE) {
                entry[at % ENTRY_SIZE] = match at % ENTRY_SIZE {
                    0 => byte & !0b11,
                    ENTRY_CONTROL => byte & VECTOR_MASKED,
                    13.. => 0,
                    _ => *byte,
                };
            }
        }
        self.deliver_pending(&mut state);
    }

    /// Raises `vector`. A vector that does not exist is ignored: drivers ask for "no vector" so.
    pub fn raise(&self, vector: u16) {
        let mut state = self.state();
        if usize::from(vector) < state.table.len() && state.control & CONTROL_ENABLE != 0 {
            state.pending |= 1 << vector;
            self.deliver_pending(&mut state);
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        let vectors = self.vectors();
        *self.state() = State::new(vectors);
    }

    fn deliver_pending(&self, state: &mut State) {
        let deliverable = state.pending & state.unmasked();
        for vector in (0..state.table.len()).filter(|vector| deliverable >> vector & 1 != 0) {
            // A message that no processor takes is lost, as on a real bus.
            let _ = self.sink.signal(message(&state.table[vector]));
        }
        state.pending &= !deliverable;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    fn new(vectors: usize) -> Self {
        let mut entry = [0; ENTRY_SIZE];
        entry[ENTRY_CONTROL] = VECTOR_MASKED;
        Self { control: 0, table: vec![entry; vectors], pending: 0 }
    }

    fn unmasked(&self) -> u64 {
        if self.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) != CONTROL_ENABLE {
            return 0;
        }
        let open = |entry: &[u8; ENTRY_SIZE]| entry[ENTRY_CONTROL] & VECTOR_MASKED == 0;
        let bits = self.table.iter().enumerate().filter(|(_, entry)| open(entry));
        bits.fold(0, |bits, (vector, _)| bits | 1 << vector)
    }
}

fn message(entry: &[u8; ENTRY_SIZE]) -> MsiMessage {
    let (address, rest) = entry.split_at(ENTRY_DATA);
    MsiMessage {
        address: u64::from_le_bytes(address.try_into().expect("8 bytes")),
        data: u32::from_le_bytes(rest[..4].try_into().expect("4 bytes")),
    }
}

impl fmt::Debug for MsiX {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiX").field("state", &self.state).finish_non_exhaustive()
    }
}
