//! What a guest makes of the leaves: the topology is computed from them as Linux does
//! (arch/x86/kernel/cpu/topology_{common,ext,amd}.c, as of 6.12), for leaves of real processors.

use super::*;

/// Function, index, EAX, EBX, ECX, EDX.
type Row = (u32, u32, u32, u32, u32, u32);

/// A Xeon Gold 6154 of 18 cores and 36 threads, bare.
const INTEL: &[Row] = &[
    (0x0, 0, 0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
    (0x1, 0, 0x0005_0654, 0x0040_0800, 0x7ffe_fbff, 0xbfeb_fbff),
    (0x4, 0, 0x7c00_4121, 0x01c0_003f, 0x3f, 0),
    (0x4, 1, 0x7c00_4122, 0x01c0_003f, 0x3f, 0),
    (0x4, 2, 0x7c00_4143, 0x03c0_003f, 0x3ff, 0),
    (0x4, 3, 0x7c0f_c163, 0x0280_003f, 0x8fff, 4),
    (0x6, 0, 0x77, 2, 9, 0),
    (0x7, 0, 0, 0xd39f_fffb, 8, 0),
    (0xb, 0, 1, 2, 0x100, 0),
    (0xb, 1, 6, 0x24, 0x201, 0),
    (0xd, 0, 0x2ff, 0x340, 0xa88, 0),
    (0x4000_0000, 0, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
    (0x8000_0000, 0, 0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0, 0, 0, 0x121, 0x2c10_0800),
    (0x8000_0007, 0, 0, 0, 0, 0x100),
    (0x8000_0008, 0, 0x302e, 0, 0, 0),
];

/// An EPYC of the Zen 4 line, as a cloud shows it: two cores.
const AMD: &[Row] = &[
    (0x0, 0, 0x1c, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x1, 0, 0x00a1_0f11, 0x0102_0800, 0xfffa_3203, 0x178b_fbff),
    (0x4, 0, 0, 0, 0, 0),
    (0xb, 0, 0, 1, 0x100, 1),
    (0xb, 1, 5, 2, 0x201, 1),
    (0x4000_0000, 0, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
    (0x8000_0000, 0, 0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x8000_0001, 0, 0x00a1_0f11, 0x4000_0000, 0x0040_03f3, 0x2fd3_fbff),
    (0x8000_0008, 0, 0x0030_3030, 0x1000_0005, 0x7001, 0),
    (0x8000_001d, 0, 0x121, 0x01c0_003f, 0x3f, 0),
    (0x8000_001d, 1, 0x122, 0x01c0_003f, 0x3f, 0),
    (0x8000_001d, 2, 0x143, 0x01c0_003f, 0x7ff, 2),
    (0x8000_001d, 3, 0x4163, 0x03c0_003f, 0x7fff, 1),
    (0x8000_001e, 0, 1, 1, 0, 0),
];

fn leaves(rows: &[Row]) -> Vec<Leaf> {
    let leaf = |&(function, index, eax, ebx, ecx, edx): &Row| Leaf {
        function,
        index,
        indexed: matches!(function, 0x4 | 0x7 | 0xb | 0xd | 0x8000_001d),
        eax,
        ebx,
        ecx,
        edx,
    };
    rows.iter().map(leaf).collect()
}

fn topology(sockets: u32, cores: u32, threads: u32) -> CpuTopology {
    let [sockets, cores, threads] = [sockets, cores, threads].map(|n| n.try_into().unwrap());
    CpuTopology { sockets, cores, threads }
}

fn machine(supported: &[Leaf], topology: CpuTopology) -> Processors<'_> {
    let model = CpuModel::Host;
    Processors { supported, topology, model, tsc_deadline: true, tsc_khz: Some(2_596_000) }
}

/// A leaf as the guest reads it: what is not there is zero.
fn read(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
    let found = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
    found.copied().unwrap_or_default()
}

/// Where a processor is: package, core in it, thread in that.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    package: u32,
    core: u32,
    thread: u32,
    apic_id: u32,
}

/// Bits for threads, and for threads and cores.
fn place(apic_id: u32, thread_bits: u32, package_bits: u32) -> Place {
    let low = |value: u32, bits: u32| value & ((1 << bits) - 1);
    Place {
        package: apic_id >> package_bits,
        core: low(apic_id, package_bits) >> thread_bits,
        thread: low(apic_id, thread_bits),
        apic_id,
    }
}

/// `parse_topology_leaf`: the extended topology.
fn by_extended_leaf(leaves: &[Leaf], function: u32) -> Option<Place> {
    let first = read(leaves, function, 0);
    if first.ebx & 0xffff == 0 || first.ecx >> 8 & 0xff != LEVEL_THREAD {
        return None;
    }
    let mut package_bits = first.eax & 0x1f;
    for index in 1.. {
        let level = read(leaves, function, index);
        if level.ecx >> 8 & 0xff == 0 {
            break;
        }
        package_bits = level.eax & 0x1f;
    }
    Some(place(first.edx, first.eax & 0x1f, package_bits))
}

/// `parse_legacy`: Intel's leaves 1 and 4.
fn by_intel_leaves(leaves: &[Leaf]) -> Place {
    let (one, four) = (read(leaves, 1, 0), read(leaves, 4, 0));
    let cores = if four.eax & 0x1f == 0 { 1 } else { (four.eax >> 26) + 1 };
    let core_bits = cores.next_power_of_two().trailing_zeros();
    let id_bits = (one.ebx >> 16 & 0xff).next_power_of_two().trailing_zeros();
    let thread_bits = if one.edx & HTT == 0 { 0 } else { id_bits - core_bits };
    place(one.ebx >> 24, thread_bits, core_bits + thread_bits)
}

/// `parse_8000_0008` and `parse_8000_001e`: AMD's leaves.
fn by_amd_leaves(leaves: &[Leaf]) -> Place {
    let (size, cpu) = (read(leaves, 0x8000_0008, 0), read(leaves, 0x8000_001e, 0));
    let package_bits = size.ecx >> 12 & 0xf;
    let threads = (cpu.ebx >> 8 & 0xff) + 1;
    let place = place(cpu.eax, threads.next_power_of_two().trailing_zeros(), package_bits);
    assert_eq!((cpu.ebx & 0xff, cpu.ecx & 0xff), (place.core, place.package));
    place
}

const SHAPES: [(u32, u32, u32); 10] = [
    (1, 1, 1),
    (1, 2, 1),
    (1, 1, 2),
    (2, 1, 1),
    (1, 4, 2),
    (2, 3, 1),
    (2, 3, 2),
    (1, 5, 3),
    (4, 8, 2),
    (1, 64, 1),
];

#[test]
fn linux_finds_every_processor_in_its_place_whichever_leaf_it_reads() {
    for (sockets, cores, threads) in SHAPES {
        let topology = topology(sockets, cores, threads);
        for (is_amd, rows) in [(false, INTEL), (true, AMD)] {
            let supported = leaves(rows);
            for (index, apic_id) in (0..).zip(topology.apic_ids()) {
                let leaves = for_cpu(&machine(&supported, topology), apic_id);
                let expected = Place {
                    package: index / (cores * threads),
                    core: index / threads % cores,
                    thread: index % threads,
                    apic_id,
                };
                assert_eq!(by_extended_leaf(&leaves, 0xb).as_ref(), Some(&expected));
                let old = if is_amd { by_amd_leaves } else { by_intel_leaves };
                assert_eq!(old(&leaves), expected, "{topology:?}");
                assert_eq!(read(&leaves, 1, 0).ebx >> 24, apic_id);
                let counted = read(&leaves, 0xb, 1).ebx;
                assert_eq!(counted, cores * threads);
                assert!(!is_amd || read(&leaves, 0x8000_0008, 0).ecx & 0xff == counted - 1);
            }
        }
    }
}

#[test]
fn caches_belong_to_cores_and_packages() {
    for (sockets, cores, threads) in SHAPES {
        let topology = topology(sockets, cores, threads);
        for (function, rows) in [(4, INTEL), (0x8000_001d, AMD)] {
            let supported = leaves(rows);
            let leaves = for_cpu(&machine(&supported, topology), 0);
            for index in 0..4 {
                let cache = read(&leaves, function, index);
                // `cacheinfo` takes the identifiers that share a cache to be a power of two.
                let sharing = ((cache.eax >> 14 & 0xfff) + 1).next_power_of_two();
                let inside = topology.apic_ids().filter(|id| *id < sharing).count() as u32;
                assert_eq!(inside, if index < 3 { threads } else { cores * threads });
                let kept = read(&supported, function, index);
                assert_eq!((cache.eax & 0x3fff, cache.ebx), (kept.eax & 0x3fff, kept.ebx));
            }
        }
    }
}

#[test]
fn one_processor_of_a_package_is_alone() {
    for (rows, legacy) in [(INTEL, 0), (AMD, CMP_LEGACY)] {
        let supported = leaves(rows);
        let leaves = for_cpu(&machine(&supported, topology(4, 1, 1)), 0);
        assert_eq!(read(&leaves, 1, 0).edx & HTT, 0);
        assert_eq!(read(&leaves, 0x8000_0001, 0).ecx & CMP_LEGACY, 0);
        let leaves = for_cpu(&machine(&supported, topology(2, 2, 1)), 0);
        assert_eq!(read(&leaves, 1, 0).edx & HTT, HTT);
        assert_eq!(read(&leaves, 0x8000_0001, 0).ecx & CMP_LEGACY, legacy);
    }
}

#[test]
fn the_hypervisor_shows_itself_and_its_rates_and_keeps_its_name() {
    let supported = leaves(INTEL);
    let known = machine(&supported, topology(1, 1, 1));
    let leaves = for_cpu(&known, 0);
    assert_eq!(read(&leaves, 1, 0).ecx >> 31, 1);
    assert_eq!(read(&leaves, 1, 0).ecx & TSC_DEADLINE, TSC_DEADLINE);
    let first = read(&leaves, HYPERVISOR_LEAF, 0);
    assert_eq!((first.eax, first.ebx), (TIMING_LEAF, 0x4b4d_564b));
    let timing = read(&leaves, TIMING_LEAF, 0);
    assert_eq!((timing.eax, timing.ebx), (2_596_000, 1_000_000));
    let unknown = for_cpu(&Processors { tsc_khz: None, ..known }, 0);
    assert_eq!(read(&unknown, HYPERVISOR_LEAF, 0), read(&supported, HYPERVISOR_LEAF, 0));
    assert_eq!(read(&unknown, TIMING_LEAF, 0), Leaf::default());
}

#[test]
fn topology_leaves_stay_below_the_highest_leaf() {
    let basic = leaves(&[(0, 0, 0xa, 0, 0, 0), (1, 0, 0, 0, 0, 0)]);
    let shown = for_cpu(&Processors { tsc_khz: None, ..machine(&basic, topology(1, 2, 1)) }, 0);
    assert_eq!(shown.len(), 2);
}

#[test]
fn the_minimal_model_is_the_same_on_both_vendors() {
    for rows in [INTEL, AMD] {
        let supported = leaves(rows);
        let minimal =
            Processors { model: CpuModel::Minimal, ..machine(&supported, topology(1, 2, 1)) };
        let leaves = for_cpu(&minimal, 0);
        let one = read(&leaves, 1, 0);
        assert_eq!((one.ecx, one.edx), (1 << 21 | TSC_DEADLINE | HYPERVISOR, 0x178b_fbff));
        for hidden in [(7, 0), (0xd, 0)] {
            let leaf = read(&leaves, hidden.0, hidden.1);
            assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
        }
        let extended = read(&leaves, 0x8000_0001, 0);
        // SYSCALL, NX, LM; neither RDTSCP nor pages of 1 GiB. (AMD repeats leaf 1 besides.)
        assert_eq!(extended.edx & !0x0183_f3ff, 0x2010_0800);
        assert_eq!(read(&leaves, 0x8000_0008, 0).ebx, 0);
        // Names, sizes and places stay.
        assert_eq!(read(&leaves, 0, 0), read(&supported, 0, 0));
        assert_eq!(by_extended_leaf(&leaves, 0xb).unwrap(), place(0, 0, 1));
    }
}
