//! The KVM machine: a PC without firmware that starts a Linux kernel directly.
//!
//! A [`MachineConfig`] becomes a [`Machine`], which runs until the guest ends with an [`Exit`];
//! [`Control`] reaches into it meanwhile. [`doctor`] tells beforehand whether this host can do it.
//!
//! ```text
//!   machine ─► loader ─► plain data ─┐
//!      │                             ├─► hv (KVM) ─► exits ─► Bus ─► legacy, pci, virtio
//!      └─────► arch ──► plain data ──┘                 devices ─► MsiSink, Doorbells
//! ```
//!
//! Layers hand one another plain data: loaders and tables are made and tested without KVM, and
//! devices know the hypervisor only as [`interrupt::MsiSink`] and [`interrupt::Doorbells`].
//! A guest is hostile: nothing that it writes to a device may panic or reach the host's memory.

mod arch;
pub mod bus;
mod config;
mod control;
mod cpu;
mod disks;
pub mod doctor;
mod error;
mod exit;
mod gate;
mod hv;
mod identity;
mod inherited;
pub mod interrupt;
mod legacy;
mod loader;
mod machine;
mod memory;
pub mod net;
pub mod pci;
mod report;
pub mod sandbox;
pub mod scsi;
mod services;
mod state;
pub mod statistics;
pub mod virtio;

pub use arch::x86_64::instruction::CpuMode;
pub use config::{
    Boot, BootFile, CPUS_MAX, DISKS_MAX, DiskConfig, MEMORY_MAX, MEMORY_MIN, MachineConfig,
    NETWORKS_MAX, NetworkConfig, Reboot, Report,
};
pub use control::{Control, Observer};
pub use cpu::{CpuModel, CpuTopology};
pub use disks::{BlockSize, CacheMode, CdromConfig, DiskBus, DiskOptions};
pub use error::{Error, ErrorKind, LoadError, Place, Stuck};
pub use exit::Exit;
pub use hv::Kvm;
pub use identity::{Chassis, Identity};
pub use inherited::inherited;
#[doc(hidden)]
pub use legacy::legacy_ports;
pub use machine::Machine;
pub use memory::HugePages;
pub use services::Services;
pub use state::{By, Notice, State};
