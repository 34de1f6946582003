//! QEMU's words for processors, memory, firmware and its sandbox.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use bootyard_spec::{ByteSize, CpuTopology, Firmware, HugePageSize, SmbiosField};

use super::qemu::escaped;

/// The baseline of x86-64: what QEMU calls `qemu64` less what came later.
pub(super) const MINIMAL_CPU: &str = "qemu64,-pni,-cx16,-svm";
/// What the machine takes its memory from, if it is no ordinary memory.
pub(super) const MEMORY_BACKEND: &str = ",memory-backend=memory";

/// Neither old system calls, nor new privileges, nor other programs, nor another priority.
pub(super) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

pub(super) fn processors(topology: CpuTopology) -> String {
    let CpuTopology { sockets, cores, threads } = topology;
    format!("{},sockets={sockets},cores={cores},threads={threads}", topology.count())
}

pub(super) fn huge_memory(memory: ByteSize, size: HugePageSize) -> String {
    format!(
        "memory-backend-memfd,id=memory,size={},hugetlb=on,hugetlbsize={},prealloc=on",
        memory.bytes(),
        size.bytes()
    )
}

/// One option for each structure of the SMBIOS table of which there is something to say.
pub(super) fn smbios(firmware: &Firmware) -> Vec<OsString> {
    let mut structures: BTreeMap<u8, BTreeMap<&str, &str>> = BTreeMap::new();
    for text in &firmware.texts {
        let (kind, field) = place(text.field);
        structures.entry(kind).or_default().insert(field, &text.text);
    }
    let option = |(kind, fields): (u8, BTreeMap<&str, &str>)| {
        let mut option = OsString::from(format!("type={kind}"));
        for (field, text) in fields {
            option.push(format!(",{field}="));
            option.push(escaped(OsStr::new(text)));
        }
        option
    };
    structures.into_iter().map(option).collect()
}

/// The type of the structure, and the field's name in it.
const fn place(field: SmbiosField) -> (u8, &'static str) {
    match field {
        SmbiosField::Serial => (1, "serial"),
        SmbiosField::Manufacturer => (1, "manufacturer"),
        SmbiosField::Product => (1, "product"),
        SmbiosField::Version => (1, "version"),
        SmbiosField::Sku => (1, "sku"),
        SmbiosField::Family => (1, "family"),
        SmbiosField::ChassisManufacturer => (3, "manufacturer"),
        SmbiosField::ChassisVersion => (3, "version"),
        SmbiosField::ChassisSerial => (3, "serial"),
        SmbiosField::ChassisAsset => (3, "asset"),
        SmbiosField::ChassisSku => (3, "sku"),
    }
}
