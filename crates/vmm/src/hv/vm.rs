//! The virtual machine: memory slots, interrupt controllers, doorbells. Not the processors.

#![expect(unsafe_code, reason = "KVM is told at which host addresses the guest's memory is")]

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::Vcpu;
use crate::arch::x86_64::cpuid::{self, Leaf, Processors};
use crate::arch::x86_64::layout;
use crate::cpu::{CpuModel, CpuTopology};
use crate::error::Error;
use crate::interrupt::{Doorbells, MsiMessage, MsiSink};

/// The indexed flag of a CPUID entry (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
const CPUID_INDEXED: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// The host's `/dev/kvm`, opened: a process that gives up its rights does so afterwards.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
}

impl Kvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    ///
    /// There is none, or not for this user.
    pub fn open() -> Result<Self, Error> {
        kvm_ioctls::Kvm::new()
            .map(|fd| Self { fd })
            .map_err(|errno| Error::KvmMissing(errno.into()))
    }

    /// What the host's processor and KVM can show to a guest.
    pub(crate) fn supported_cpuid(&self) -> Result<Vec<Leaf>, Error> {
        let cpuid = self
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
        let leaf = |entry: &kvm_cpuid_entry2| Leaf {
            function: entry.function,
            index: entry.index,
            indexed: entry.flags & CPUID_INDEXED != 0,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        };
        Ok(cpuid.as_slice().iter().map(leaf).collect())
    }

    /// Makes a machine around `memory` with the PC's interrupt controllers and timer.
    pub(crate) fn create_vm(&self, memory: GuestMemoryMmap) -> Result<Vm, Error> {
        let fd = self.fd.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(refused("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(refused("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        fd.create_pit2(pit).map_err(refused("KVM_CREATE_PIT2"))?;
        // Without it KVM also gives the guest an exception for what it cannot emulate in a kernel. Older
        // kernels do not know it, and what is lost is a better message.
        let tell = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        let _ = fd.enable_cap(&tell);
        let vm = Vm { fd, memory };
        vm.map_memory()?;
        Ok(vm)
    }

    /// The processors of `vm`, none of them running: the first at the reset vector, the others
    /// waiting for it to start them. KVM's number of a processor is its APIC identifier.
    pub(crate) fn create_vcpus(
        &self,
        vm: &Arc<Vm>,
        topology: CpuTopology,
        model: CpuModel,
    ) -> Result<Vec<Vcpu>, Error> {
        let supported = self.supported_cpuid()?;
        let tsc_deadline = self.fd.check_extension(Cap::TscDeadlineTimer);
        let knows_rate = self.fd.check_extension(Cap::GetTscKhz);
        let create = |(index, id)| {
            let fd = vm.fd.create_vcpu(u64::from(id)).map_err(refused("KVM_CREATE_VCPU"))?;
            let tsc_khz = fd.get_tsc_khz().ok().filter(|khz| knows_rate && *khz > 0);
            let processors =
                Processors { supported: &supported, topology, model, tsc_deadline, tsc_khz };
            let leaves = cpuid::for_cpu(&processors, id);
            fd.set_cpuid2(&to_kvm(&leaves)?).map_err(refused("KVM_SET_CPUID2"))?;
            Ok(Vcpu::new(index, fd, Arc::clone(vm)))
        };
        (0..).zip(topology.apic_ids()).map(create).collect()
    }
}

fn to_kvm(leaves: &[Leaf]) -> Result<CpuId, Error> {
    let entry = |leaf: &Leaf| kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed { CPUID_INDEXED } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    };
    let entries: Vec<kvm_cpuid_entry2> = leaves.iter().map(entry).collect();
    CpuId::from_entries(&entries).map_err(|_| Error::Kvm {
        call: "KVM_SET_CPUID2",
        source: io::Error::other("too many CPUID leaves"),
    })
}

/// Turns the errno of an ioctl into our error.
pub(super) fn refused(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |errno| Error::Kvm { call, source: errno.into() }
}

/// A virtual machine. It owns the guest's memory, so that no processor outlives it.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: VmFd,
    memory: GuestMemoryMmap,
}

impl Vm {
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn map_memory(&self) -> Result<(), Error> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let start = region.start_addr();
            let host = self.memory.get_host_address(start).map_err(|error| Error::Memory {
                bytes: region.len(),
                source: io::Error::other(error),
            })?;
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: start.0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the range is a mapping of exactly this length that `self.memory` owns. Only
            // a running processor reaches it, and each `Vcpu` keeps `self` alive.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Makes each write to `event` a pulse on the interrupt line `line` of the I/O APIC.
    pub(crate) fn wire_interrupt(&self, event: &EventFd, line: u32) -> Result<(), Error> {
        self.fd.register_irqfd(event, line).map_err(refused("KVM_IRQFD"))
    }

    /// The guest's memory at a physical address, as far as it is there, for a report.
    pub(super) fn peek(&self, address: u64, bytes: &mut [u8]) -> usize {
        use vm_memory::Bytes as _;
        self.memory.read(bytes, GuestAddress(address)).unwrap_or(0)
    }
}

impl MsiSink for Vm {
    fn signal(&self, message: MsiMessage) -> io::Result<()> {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..kvm_msi::default()
        };
        // The count of processors that took it: none may want it, as on hardware.
        self.fd.signal_msi(msi).map(drop).map_err(io::Error::from)
    }
}

impl Doorbells for Vm {
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(event, &address, NoDatamatch).map_err(io::Error::from)
    }

    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        self.fd.unregister_ioevent(event, &address, NoDatamatch).map_err(io::Error::from)
    }
}
