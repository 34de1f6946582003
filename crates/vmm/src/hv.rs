//! KVM: the only code that knows its handles and ioctls.

mod stuck;
mod vcpu;
mod vm;

pub(crate) use vcpu::{Buses, Vcpu, VcpuThreads};
pub(crate) use vm::{Kvm, Vm};
