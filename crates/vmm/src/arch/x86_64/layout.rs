//! The memory map, the I/O ports and the interrupt lines of the machine.
//!
//! ```text
//!           0  real-mode vectors; GDT, boot structures, page tables, command line
//!     0x9fc00  extended BIOS data area (reserved, empty)
//!     0xe0000  ACPI tables (reserved)
//!     0xf0000  SMBIOS table (reserved)
//!     0xffff0  the reset vector
//!       1 MiB  RAM, up to 3 GiB
//!       3 GiB  PCI window for 32-bit BARs
//!  0xe0000000  PCI Express configuration space (ECAM)
//!  0xfec00000  I/O APIC, local APIC, and KVM's own pages
//!       4 GiB  the rest of the RAM
//! ```

use std::ops::Range;

use crate::pci;

/// Where the boot GDT is: in the BIOS data area's tail, which nothing reads without a BIOS.
pub(crate) const GDT: u64 = 0x500;
/// The structure that tells the kernel about its world: `hvm_start_info` (PVH) with its tables in
/// the same page, or `boot_params` (Linux's own protocol), which is one page long.
pub(crate) const BOOT_INFO: u64 = 0x7000;
/// Page tables for a start in long mode: one PML4, one PDPT and four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, ended by a zero byte.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line with its zero byte: Linux's `COMMAND_LINE_SIZE` on x86.
pub(crate) const COMMAND_LINE_MAX: usize = 2048;
/// End of the memory below 1 MiB that the guest may use; where a BIOS keeps its data area.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// The RSDP and all tables behind it. A kernel that was not told the address searches from here to
/// 1 MiB in steps of 16 bytes (ACPI 6.5 §5.2.5.1).
pub(crate) const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// The SMBIOS entry point and its table. A kernel searches from here to 1 MiB in steps of 16 bytes
/// (DSP0134 3.7 §5.2).
pub(crate) const SMBIOS: Range<u64> = 0xf_0000..RESET_VECTOR;
/// Where a processor without firmware would wake up, as real mode addresses it: `f000:fff0`.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where memory goes on above the hole for adapters that a PC has below 1 MiB.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;

/// The hole below 4 GiB in which devices are; RAM that does not fit below it goes above it.
pub(crate) const DEVICE_HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// The window for PCI BARs.
pub(crate) const PCI_WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI Express configuration space of bus 0.
pub(crate) const ECAM: Range<u64> = 0xe000_0000..0xe000_0000 + pci::ECAM_SIZE;
/// The I/O APIC's registers (the PC's fixed address; KVM's in-kernel one is here too).
pub(crate) const IO_APIC: u64 = 0xfec0_0000;
/// The local APIC's registers (the architecture's reset value of `IA32_APIC_BASE`).
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;
/// One page in which KVM builds an identity map to run real mode on older Intel processors.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for KVM's task state segment, for the same reason.
pub(crate) const KVM_TSS: u64 = 0xfeff_d000;

/// The first serial port, `COM1`.
pub(crate) const SERIAL_PORTS: Range<u64> = 0x3f8..0x400;
/// The serial port's interrupt line.
pub(crate) const SERIAL_IRQ: u32 = 4;
/// The interrupt line of the generic event device, which carries the power button.
pub(crate) const EVENT_IRQ: u32 = 5;
/// The keyboard controller; only its reset line is wired.
pub(crate) const KEYBOARD_PORTS: Range<u64> = 0x60..0x65;
/// Index and data of the battery-backed clock.
pub(crate) const CMOS_PORTS: Range<u64> = 0x70..0x72;
/// QEMU's paravirtual panic device, at its documented port.
pub(crate) const PANIC_PORT: Range<u64> = 0x505..0x506;
/// ACPI's sleep control, sleep status and reset registers, in this order.
pub(crate) const POWER_PORTS: Range<u64> = 0x600..0x603;

/// The ranges of guest-physical addresses that are RAM, lowest first, for `memory` bytes.
pub(crate) fn ram(memory: u64) -> Vec<Range<u64>> {
    let low = memory.min(DEVICE_HOLE.start);
    let high = memory - low;
    let mut ranges = Vec::from([0..low, DEVICE_HOLE.end..DEVICE_HOLE.end + high]);
    ranges.retain(|range| !range.is_empty());
    ranges
}

/// What an address range holds, as the firmware tells the kernel (ACPI 6.5 §15, table 15.374).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// RAM for the kernel's use.
    Usable = 1,
    /// Not RAM, or not for the kernel.
    Reserved = 2,
}

/// The memory map that the kernel is given, lowest first.
pub(crate) fn memory_map(memory: u64) -> Vec<(Range<u64>, MapKind)> {
    let mut map = vec![
        (0..LOW_RAM_END, MapKind::Usable),
        (LOW_RAM_END..HIGH_RAM, MapKind::Reserved),
        (HIGH_RAM..memory.min(DEVICE_HOLE.start), MapKind::Usable),
        (ECAM, MapKind::Reserved),
    ];
    map.extend(ram(memory).into_iter().skip(1).map(|range| (range, MapKind::Usable)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_disjoint(mut ranges: Vec<Range<u64>>) {
        ranges.sort_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }

    #[test]
    fn nothing_overlaps() {
        assert_disjoint(vec![
            GDT..GDT + 0x100,
            BOOT_INFO..BOOT_INFO + 0x1000,
            PAGE_TABLES..PAGE_TABLES + 6 * 0x1000,
            COMMAND_LINE..COMMAND_LINE + COMMAND_LINE_MAX as u64,
            LOW_RAM_END..ACPI_TABLES.start,
            ACPI_TABLES,
            SMBIOS,
            RESET_VECTOR..HIGH_RAM,
            HIGH_RAM..DEVICE_HOLE.start,
            PCI_WINDOW,
            ECAM,
            IO_APIC..IO_APIC + 0x1000,
            LOCAL_APIC..LOCAL_APIC + 0x1000,
            KVM_IDENTITY_MAP..KVM_IDENTITY_MAP + 0x1000,
            KVM_TSS..KVM_TSS + 0x3000,
        ]);
        assert_disjoint(vec![
            SERIAL_PORTS,
            KEYBOARD_PORTS,
            CMOS_PORTS,
            PANIC_PORT,
            POWER_PORTS,
            pci::CONFIG_PORTS,
        ]);
    }

    #[test]
    fn ram_goes_round_the_device_hole() {
        const GIB: u64 = 1 << 30;
        for (memory, low, high) in [
            (GIB, 0..GIB, None),
            (3 * GIB, 0..3 * GIB, None),
            (3 * GIB + 1, 0..3 * GIB, Some(4 * GIB..4 * GIB + 1)),
            (8 * GIB, 0..3 * GIB, Some(4 * GIB..9 * GIB)),
        ] {
            assert!(ram(memory).into_iter().eq([low].into_iter().chain(high)));
            let map = memory_map(memory);
            assert_disjoint(map.iter().map(|(range, _)| range.clone()).collect());
            let usable: u64 = map
                .iter()
                .filter(|(_, kind)| *kind == MapKind::Usable)
                .map(|(range, _)| range.end - range.start)
                .sum();
            assert_eq!(usable, memory - (HIGH_RAM - LOW_RAM_END));
        }
    }
}
