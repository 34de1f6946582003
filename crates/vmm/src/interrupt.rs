//! What devices ask of the hypervisor, and nothing more: raise a message-signalled interrupt, and
//! hear a doorbell without a trip through the vCPU thread. `hv` implements it on KVM, tests by fakes.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A message-signalled interrupt (PCI 3.0 §6.8): a write of `data` to `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// The message address: which processor.
    pub address: u64,
    /// The message data: which vector.
    pub data: u32,
}

/// Delivers message-signalled interrupts to the guest.
pub trait MsiSink: Send + Sync {
    /// Delivers one message. Called from device threads.
    fn signal(&self, message: MsiMessage) -> io::Result<()>;
}

/// Turns guest writes at an address into events.
pub trait Doorbells: Send + Sync {
    /// From now on a guest write of any value and width at guest-physical `address` signals
    /// `event`, and does not reach the bus.
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Ends what [`Doorbells::attach`] began for the same pair.
    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
