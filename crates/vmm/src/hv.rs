//! KVM: the only code that knows its handles and ioctls.

mod stuck;
mod threads;
mod vcpu;
mod vm;

#[cfg(test)]
pub(crate) use threads::start_fake_processors;
pub(crate) use threads::{Crew, KICK_EVERY, VcpuThreads};
pub(crate) use vcpu::{Buses, Vcpu};
pub use vm::Kvm;
pub(crate) use vm::Vm;
