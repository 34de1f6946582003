//! A conventional PCI bus with message-signalled interrupts, and nothing that a virtual machine
//! can do without: one bus, one function per device, memory BARs of 64 bits, no INTx, no bridges.
//!
//! ```text
//!   port 0xcf8/0xcfc ─► ConfigPorts ┐                     ┌─ ConfigSpace (host bridge)
//!                                   ├─► PciRoot ──────────┼─ ConfigSpace ─┐
//!   MMCONFIG ────────► Ecam ────────┘      │              └─ …            │ hooks: capabilities, BAR moves
//!                                          │ puts BARs on                 ▼
//!   memory access ──────────────► Bus ─────┴────────────────────────► PciDevice
//! ```
//!
//! The root owns what every function has, its [`ConfigSpace`]; a [`PciDevice`] owns what lies
//! behind its BARs and is told what the guest does to its capabilities. Lock order: root, then
//! device, then [`MsiX`]; a device never calls the root.

mod config;
mod msix;
mod root;

use std::fmt::Debug;

pub use config::{BAR_COUNT, COMMAND_MEMORY, ConfigSpace, Identity};
pub use msix::{MSIX_REGION_SIZE, MsiX, VECTORS_MAX};
pub use root::{CONFIG_PORTS, ConfigPorts, ECAM_SIZE, Ecam, Error, PciAddress, PciRoot};

/// A function on the bus.
///
/// Calls come from every vCPU thread at once. What the guest writes is hostile: no offset, width
/// or order of accesses may panic.
pub trait PciDevice: Debug + Send + Sync {
    /// The configuration space as it is after power-on, with BARs of address 0.
    fn config(&self) -> ConfigSpace;

    /// Fills `data` (1 to 8 bytes) from `offset` into the region behind `bar`.
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// Takes `data` (1 to 8 bytes) for `offset` into the region behind `bar`.
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]);

    /// The region behind `bar` can now be reached at `address`, or nowhere.
    fn bar_mapped(&self, _bar: usize, _address: Option<u64>) {}

    /// The guest is about to read `len` bytes at `offset` of the configuration space: the last
    /// moment to put something live there.
    fn config_before_read(&self, _config: &mut ConfigSpace, _offset: usize, _len: usize) {}

    /// The guest has written `len` bytes at `offset` of the configuration space.
    fn config_after_write(&self, _config: &ConfigSpace, _offset: usize, _len: usize) {}

    /// Back to the state after power-on. The root resets the configuration space itself.
    fn reset(&self);
}
