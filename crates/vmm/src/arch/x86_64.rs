//! x86-64, as a PC with ACPI and PCI Express.

pub(crate) mod acpi;
pub(crate) mod cpuid;
pub(crate) mod instruction;
pub(crate) mod layout;
pub(crate) mod smbios;
pub(crate) mod state;

use crate::config::MachineConfig;
use crate::loader::Write;

/// What firmware would leave in memory: the tables that describe the machine, and what stands at the
/// reset vector.
pub(crate) fn firmware(config: &MachineConfig) -> [Write<'static>; 3] {
    let apic_ids: Vec<u8> = config.topology.apic_ids().map(|id| id as u8).collect();
    [
        (layout::ACPI_TABLES.start, acpi::tables(&apic_ids)),
        (layout::SMBIOS.start, smbios::table(config)),
        (layout::RESET_VECTOR, state::reset_code().to_vec()),
    ]
    .map(|(address, bytes)| Write { address, bytes: bytes.into() })
}
