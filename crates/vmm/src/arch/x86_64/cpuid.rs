//! What the guest's processor says about itself: what KVM supports, as far as the model shows it,
//! with our topology.

use crate::cpu::{CpuModel, CpuTopology};

/// One answer of the CPUID instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Leaf {
    /// The value of EAX that asks for it.
    pub(crate) function: u32,
    /// The value of ECX that asks for it, where that counts.
    pub(crate) index: u32,
    /// Whether ECX counts.
    pub(crate) indexed: bool,
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

/// What all processors of a machine have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processors<'a> {
    /// What the host supports.
    pub(crate) supported: &'a [Leaf],
    pub(crate) topology: CpuTopology,
    pub(crate) model: CpuModel,
    /// KVM's local APIC knows the deadline timer, which the host's leaves do not say.
    pub(crate) tsc_deadline: bool,
    /// The rate of the time-stamp counter, where KVM tells it.
    pub(crate) tsc_khz: Option<u32>,
}

/// Leaf 1 ECX: the local APIC's timer can be set to a value of the time-stamp counter.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: this is so, and leaf 0x8000_0008 tells how many (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// Extended topology (Intel SDM volume 2, CPUID): leaf 0xb and its successor 0x1f.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];
/// AMD's successor of leaf 0xb, which tells of the host's topology. Guests do without it.
const EXTENDED_TOPOLOGY_AMD: u32 = 0x8000_0026;
/// Level types of the extended topology.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The first leaf of a hypervisor: its highest one, and its signature.
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// The hypervisors' common leaf of rates in kHz: time-stamp counter, local APIC's timer.
const TIMING_LEAF: u32 = 0x4000_0010;
/// The rate of the local APIC's timer in KVM (`APIC_BUS_FREQUENCY`), in kHz.
const APIC_KHZ: u32 = 1_000_000;

/// The leaves for the processor with the APIC identifier `id`.
pub(crate) fn for_cpu(processors: &Processors<'_>, id: u32) -> Vec<Leaf> {
    let Processors { supported, topology, model, .. } = *processors;
    let is_shown = |leaf: &&Leaf| {
        !TOPOLOGY_LEAVES.contains(&leaf.function)
            && leaf.function != EXTENDED_TOPOLOGY_AMD
            && leaf.function != TIMING_LEAF
    };
    let mut leaves: Vec<Leaf> = supported
        .iter()
        .filter(is_shown)
        .map(|leaf| match model {
            CpuModel::Host => *leaf,
            CpuModel::Minimal => minimal(*leaf),
        })
        .map(|leaf| with_identity(leaf, processors, id))
        .collect();
    let highest = supported.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
    for function in TOPOLOGY_LEAVES.into_iter().filter(|function| *function <= highest) {
        leaves.extend(levels(function, topology, id));
    }
    leaves.extend(processors.tsc_khz.map(|khz| Leaf {
        function: TIMING_LEAF,
        eax: khz,
        ebx: APIC_KHZ,
        ..Leaf::default()
    }));
    leaves
}

/// What [`CpuModel::Minimal`] leaves of a leaf (Intel SDM volume 2, CPUID; AMD APM volume 3,
/// appendix E). Leaves that describe a feature which is hidden are empty, as if they were reserved.
fn minimal(leaf: Leaf) -> Leaf {
    /// x2APIC, deadline timer, hypervisor.
    const ECX_1: u32 = 1 << 21 | TSC_DEADLINE | HYPERVISOR;
    /// The x86-64 psABI's baseline (CMOV, CX8, FPU, FXSR, MMX, SSE, SSE2) and what kernels take for
    /// granted: VME, DE, PSE, TSC, MSR, PAE, MCE, APIC, SEP, MTRR, PGE, MCA, PAT, PSE36, CLFSH, HTT.
    const EDX_1: u32 = 0x178b_fbff;
    /// LAHF in long mode, and what tells of AMD's topology.
    const ECX_8000_0001: u32 = 1 << 0 | CMP_LEGACY | 1 << 22;
    /// SYSCALL, NX, LM, and AMD's copy of leaf 1.
    const EDX_8000_0001: u32 = 1 << 11 | 1 << 20 | 1 << 29 | 0x0183_f3ff;
    /// The local APIC's timer never stops.
    const ARAT: u32 = 1 << 2;
    /// The time-stamp counter neither stops nor changes its rate.
    const INVARIANT_TSC: u32 = 1 << 8;
    let Leaf { eax, ebx, ecx, edx, .. } = leaf;
    let (eax, ebx, ecx, edx) = match leaf.function {
        1 => (eax, ebx, ecx & ECX_1, edx & EDX_1),
        6 => (eax & ARAT, 0, 0, 0),
        0x8000_0001 => (eax, ebx, ecx & ECX_8000_0001, edx & EDX_8000_0001),
        0x8000_0007 => (0, 0, 0, edx & INVARIANT_TSC),
        0x8000_0008 => (eax, 0, ecx, 0),
        // Names and sizes: of the vendor, caches, TLBs and the processor; the hypervisor's leaves.
        0 | 2 | 4 | 0x4000_0000..=0x4000_ffff => (eax, ebx, ecx, edx),
        0x8000_0000 | 0x8000_0002..=0x8000_0006 | 0x8000_0019 => (eax, ebx, ecx, edx),
        0x8000_001d | 0x8000_001e => (eax, ebx, ecx, edx),
        _ => (0, 0, 0, 0),
    };
    Leaf { eax, ebx, ecx, edx, ..leaf }
}

fn with_identity(mut leaf: Leaf, processors: &Processors<'_>, id: u32) -> Leaf {
    let topology = processors.topology;
    let (threads, count) = (topology.threads.get(), topology.per_package());
    // Numbers of identifiers, which are what shares a cache or a package, not of processors.
    let (core_ids, package_ids) = (1 << topology.thread_bits(), 1 << topology.package_bits());
    let sharing = |leaf: &Leaf| if leaf.eax >> 5 & 7 >= 3 { package_ids } else { core_ids } - 1;
    match leaf.function {
        1 => {
            leaf.ebx = (leaf.ebx & 0x0000_ffff) | id << 24 | package_ids << 16;
            leaf.ecx |= HYPERVISOR | if processors.tsc_deadline { TSC_DEADLINE } else { 0 };
            leaf.edx = if count > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
        }
        // Caches (Intel): levels 1 and 2 belong to a core, level 3 to the package.
        4 if leaf.eax & 0x1f != 0 => {
            let cores = package_ids / core_ids - 1;
            leaf.eax = (leaf.eax & 0x3fff) | sharing(&leaf) << 14 | cores << 26;
        }
        HYPERVISOR_LEAF if processors.tsc_khz.is_some() => leaf.eax = leaf.eax.max(TIMING_LEAF),
        0x8000_0001 if is_amd(processors.supported) && count > 1 => leaf.ecx |= CMP_LEGACY,
        0x8000_0001 => leaf.ecx &= !CMP_LEGACY,
        // Size identifiers (AMD): processors less one, and the bits that number them.
        0x8000_0008 => {
            leaf.ecx = (leaf.ecx & !0xf0ff) | topology.package_bits() << 12 | (count - 1);
        }
        // Cache topology (AMD), in the same form as leaf 4.
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            leaf.eax = (leaf.eax & 0x3fff) | sharing(&leaf) << 14;
        }
        // Extended APIC identifier; core, and its threads less one; node: each package is one.
        0x8000_001e => {
            let core = (id & (package_ids - 1)) >> topology.thread_bits();
            leaf.eax = id;
            leaf.ebx = core | (threads - 1) << 8;
            leaf.ecx = id >> topology.package_bits();
        }
        _ => {}
    }
    leaf
}

/// Whether the vendor is one of those that describe topology as AMD does (leaf 0, EBX: the first
/// four letters of `AuthenticAMD` and `HygonGenuine`).
fn is_amd(supported: &[Leaf]) -> bool {
    let vendors = [*b"Auth", *b"Hygo"].map(u32::from_le_bytes);
    supported.iter().any(|leaf| leaf.function == 0 && vendors.contains(&leaf.ebx))
}

/// The levels of one topology leaf: threads of a core, processors of a package, end.
fn levels(function: u32, topology: CpuTopology, id: u32) -> [Leaf; 3] {
    let level = |index, shift, count, kind| Leaf {
        function,
        index,
        indexed: true,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: id,
    };
    [
        level(0, topology.thread_bits(), topology.threads.get(), LEVEL_THREAD),
        level(1, topology.package_bits(), topology.per_package(), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
