//! x86-64, as a PC with ACPI and PCI Express.

pub(crate) mod acpi;
pub(crate) mod cpuid;
pub(crate) mod instruction;
pub(crate) mod layout;
pub(crate) mod state;
