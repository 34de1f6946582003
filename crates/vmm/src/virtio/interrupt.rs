//! What a device's thread and its transport share: the status byte, the ISR byte, and the way to
//! the driver's interrupt vectors. No lock here is held for long, so that the transport can wait for
//! the thread while it holds its own.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use super::transport::status;
use super::{Error, OnFault};
use crate::pci::MsiX;

/// "No vector" in the registers that choose one (§4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR bits (§4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Raises a device's interrupts.
pub(super) struct Interrupt {
    pub(super) msix: MsiX,
    status: AtomicU8,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    on_fault: OnFault,
}

impl Interrupt {
    pub(super) fn new(msix: MsiX, queues: usize, on_fault: OnFault) -> Self {
        let no_vector = || AtomicU16::new(NO_VECTOR);
        Self {
            msix,
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            config_vector: no_vector(),
            queue_vectors: std::iter::repeat_with(no_vector).take(queues).collect(),
            on_fault,
        }
    }

    /// Tells the driver that virtqueue `index` has used buffers.
    pub(super) fn queue(&self, index: u16) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.msix.raise(self.queue_vector(index));
    }

    /// Tells the driver that the device works again only after a reset, and the
    /// machine's owner why.
    pub(super) fn fail(&self, fault: Error) {
        (self.on_fault)(fault);
        self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        self.config_changed();
    }

    /// Tells a driver that is at work to read the configuration again.
    pub(super) fn config_changed(&self) {
        if self.status() & status::DRIVER_OK != 0 {
            self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
            self.msix.raise(self.config_vector());
        }
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Adds bits. Only a reset takes bits away, so the thread's NEEDS_RESET is never lost.
    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(index));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    /// Back to the state before the driver came. The device's thread has ended.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("status", &self.status)
            .field("isr", &self.isr)
            .finish_non_exhaustive()
    }
}
