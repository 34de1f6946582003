//! What the guest's processor says about itself: what KVM supports, with our topology.
//!
//! Every vCPU is a core of its own in one package.

use std::num::NonZeroU32;

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

/// Leaf 1 ECX: the local APIC's timer can be set to a value of the time-stamp counter.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: those are cores, not threads (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// Extended topology (Intel SDM volume 2, CPUID): leaf 0xb and its successor 0x1f.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];
/// Level types of the extended topology.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves for the processor `id` of `cpus`, made of those that the host `supports`.
pub(crate) fn for_cpu(
    supported: &[Leaf],
    id: u32,
    cpus: NonZeroU32,
    tsc_deadline: bool,
) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = supported
        .iter()
        .filter(|leaf| !TOPOLOGY_LEAVES.contains(&leaf.function))
        .map(|leaf| with_identity(*leaf, id, cpus, tsc_deadline))
        .collect();
    let highest = supported.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
    for function in TOPOLOGY_LEAVES.into_iter().filter(|function| *function <= highest) {
        leaves.extend(topology(function, id, cpus));
    }
    leaves
}

/// Bits of an APIC identifier that number the processors within the package.
fn id_bits(cpus: NonZeroU32) -> u32 {
    cpus.get().next_power_of_two().trailing_zeros()
}

fn with_identity(mut leaf: Leaf, id: u32, cpus: NonZeroU32, tsc_deadline: bool) -> Leaf {
    let count = cpus.get();
    match leaf.function {
        1 => {
            leaf.ebx = (leaf.ebx & 0x0000_ffff) | id << 24 | count << 16;
            leaf.ecx |= HYPERVISOR | if tsc_deadline { TSC_DEADLINE } else { 0 };
            leaf.edx = if count > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
        }
        // Caches (Intel): shared by no other thread at levels 1 and 2, by the package at level 3.
        4 if leaf.eax & 0x1f != 0 => {
            let level = leaf.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            let cores = (1 << id_bits(cpus)) - 1;
            leaf.eax = (leaf.eax & 0x3fff) | sharing << 14 | cores << 26;
        }
        0x8000_0001 if count > 1 => leaf.ecx |= CMP_LEGACY,
        0x8000_0001 => leaf.ecx &= !CMP_LEGACY,
        // Size identifiers (AMD): cores less one, and the bits that number them.
        0x8000_0008 => leaf.ecx = (leaf.ecx & !0xf0ff) | id_bits(cpus) << 12 | (count - 1),
        // Cache topology (AMD), in the same form as leaf 4.
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
            leaf.eax = (leaf.eax & 0x3fff) | sharing << 14;
        }
        // Extended APIC identifier, core and node (AMD): one thread a core, one node.
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
    leaf
}

/// The levels of one topology leaf: threads in a core, cores in the package, end.
fn topology(function: u32, id: u32, cpus: NonZeroU32) -> [Leaf; 3] {
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
        level(0, 0, 1, LEVEL_THREAD),
        level(1, id_bits(cpus), cpus.get(), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> Leaf {
        Leaf { function, ..Leaf::default() }
    }

    fn supported() -> Vec<Leaf> {
        vec![
            Leaf { eax: 0x1f, ..leaf(0) },
            Leaf { ebx: 0xaa00_0800, ..leaf(1) },
            Leaf { eax: 0x1234, indexed: true, ..leaf(0xb) },
            Leaf { ebx: u32::from_le_bytes(*b"KVMK"), ..leaf(0x4000_0000) },
            leaf(0x8000_0001),
            Leaf { eax: 0x3030, ..leaf(0x8000_0008) },
            leaf(0x8000_001e),
        ]
    }

    fn find(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
        *leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap()
    }

    #[test]
    fn each_processor_is_a_core_with_its_own_identifier() {
        let cpus = NonZeroU32::new(6).unwrap();
        for id in 0..6 {
            let leaves = for_cpu(&supported(), id, cpus, true);
            assert_eq!(find(&leaves, 1, 0).ebx, id << 24 | 6 << 16 | 0x0800);
            for function in TOPOLOGY_LEAVES {
                let (thread, core) = (find(&leaves, function, 0), find(&leaves, function, 1));
                assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, id));
                assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, id));
            }
            assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 3 << 12 | 5);
            assert_eq!(find(&leaves, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn the_hypervisor_shows_itself_and_keeps_its_name() {
        let one = NonZeroU32::new(1).unwrap();
        let leaves = for_cpu(&supported(), 0, one, false);
        assert_eq!(find(&leaves, 1, 0).ecx, HYPERVISOR);
        assert_eq!(find(&leaves, 0x4000_0000, 0), supported()[3]);
        assert_eq!(find(&for_cpu(&supported(), 0, one, true), 1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
    }

    #[test]
    fn topology_leaves_stay_below_the_highest_leaf() {
        let basic = [Leaf { eax: 0xa, ..leaf(0) }, leaf(1)];
        let leaves = for_cpu(&basic, 0, NonZeroU32::new(2).unwrap(), false);
        assert_eq!(leaves.len(), 2);
    }
}
