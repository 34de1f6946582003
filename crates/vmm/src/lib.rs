//! The KVM machine.

pub mod bus;
pub mod interrupt;
