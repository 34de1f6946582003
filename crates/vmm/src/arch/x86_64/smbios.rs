//! The SMBIOS table: who the machine says it is (DMTF DSP0134 3.7).
//!
//! cloud-init looks for its data source here before it looks anywhere else (`ds=nocloud` in the
//! serial number), and KubeVirt's `firmware` and `chassis` fields are found here by the guest.

use crate::config::MachineConfig;
use crate::identity::Identity;

use super::layout;

/// The 64-bit entry point (§5.2.2), and the table right behind it, at a multiple of 16.
const ENTRY_LEN: usize = 24;
const TABLE_AT: usize = 32;
/// Types of structures (§7).
mod kind {
    pub(super) const BIOS: u8 = 0;
    pub(super) const SYSTEM: u8 = 1;
    pub(super) const BASEBOARD: u8 = 2;
    pub(super) const CHASSIS: u8 = 3;
    pub(super) const PROCESSOR: u8 = 4;
    pub(super) const MEMORY_ARRAY: u8 = 16;
    pub(super) const MEMORY_DEVICE: u8 = 17;
    pub(super) const MEMORY_RANGE: u8 = 19;
    pub(super) const BOOT: u8 = 32;
    pub(super) const END: u8 = 127;
}
/// Handles, by which structures refer to each other. A processor's is that of the first plus its
/// number; others add up to the end of their hundred.
mod handle {
    pub(super) const BIOS: u16 = 0x000;
    pub(super) const SYSTEM: u16 = 0x100;
    pub(super) const BASEBOARD: u16 = 0x200;
    pub(super) const CHASSIS: u16 = 0x300;
    pub(super) const PROCESSOR: u16 = 0x400;
    pub(super) const MEMORY_ARRAY: u16 = 0x1000;
    pub(super) const MEMORY_DEVICE: u16 = 0x1100;
    pub(super) const MEMORY_RANGE: u16 = 0x1300;
    pub(super) const BOOT: u16 = 0x2000;
    pub(super) const END: u16 = 0x7f00;
    /// No such structure, and no information on errors (§7.17.1).
    pub(super) const NONE: u16 = 0xfffe;
}
/// "Other" and "unknown", in most enumerations.
const OTHER: u8 = 1;
const UNKNOWN: u8 = 2;
/// "Safe" and "None", of a chassis' states (§7.4.2, §7.4.3).
const SAFE: u8 = 3;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The entry point and the table, as they lie from [`layout::SMBIOS`] on.
pub(crate) fn table(config: &MachineConfig) -> Vec<u8> {
    let memory = config.memory_size();
    let identity = &config.identity;
    let mut table = Vec::new();
    bios(&mut table);
    system(&mut table, identity);
    baseboard(&mut table, identity);
    chassis(&mut table, identity);
    let topology = config.topology;
    for socket in 0..topology.sockets.get() as u16 {
        let (cores, threads) = (topology.cores.get() as u16, topology.per_package() as u16);
        processor(&mut table, socket, cores, threads);
    }
    memory_structures(&mut table, memory);
    Structure::new(kind::BOOT, handle::BOOT).pad(6).byte(0).end(&mut table);
    Structure::new(kind::END, handle::END).end(&mut table);
    let mut bytes = entry_point(table.len() as u32);
    bytes.resize(TABLE_AT, 0);
    bytes.extend(table);
    bytes
}

fn entry_point(len: u32) -> Vec<u8> {
    let mut entry = b"_SM3_\0".to_vec();
    // Length; version 3.7, of the specification's first edition; revision of the entry point.
    entry.extend([ENTRY_LEN as u8, 3, 7, 0, 1, 0]);
    entry.extend(len.to_le_bytes());
    entry.extend((layout::SMBIOS.start + TABLE_AT as u64).to_le_bytes());
    entry[5] = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

/// A structure in the making: its formatted part, and the strings behind it.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { bytes: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    fn byte(mut self, value: u8) -> Self {
        self.bytes.push(value);
        self
    }

    fn word(mut self, value: u16) -> Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn dword(mut self, value: u32) -> Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn qword(mut self, value: u64) -> Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// Bytes that mean nothing, or "not there".
    fn pad(mut self, len: usize) -> Self {
        self.bytes.resize(self.bytes.len() + len, 0);
        self
    }

    /// A string, by its number among those of this structure; 0 stands for none (§6.1.3).
    fn text(mut self, text: &str) -> Self {
        if text.is_empty() {
            return self.byte(0);
        }
        self.strings.extend(text.bytes().chain([0]));
        self.count += 1;
        let count = self.count;
        self.byte(count)
    }

    fn end(mut self, table: &mut Vec<u8>) {
        self.bytes[1] = self.bytes.len() as u8;
        table.extend(self.bytes);
        // Two zeros end the strings, also where there are none.
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        table.extend(self.strings);
        table.push(0);
    }
}

fn bios(table: &mut Vec<u8>) {
    // The characteristics are not supported (§7.1.1); it is a virtual machine (§7.1.2.2).
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    Structure::new(kind::BIOS, handle::BIOS)
        .text("Bootyard")
        .text(env!("CARGO_PKG_VERSION"))
        .word(0xf000)
        .text("01/01/2026")
        .byte(0)
        .qword(NO_CHARACTERISTICS)
        .byte(0)
        .byte(VIRTUAL_MACHINE)
        // Releases of the BIOS and of an embedded controller, which is not there.
        .byte(0)
        .byte(0)
        .word(0xffff)
        .word(0)
        .end(table);
}

fn system(table: &mut Vec<u8>, identity: &Identity) {
    const POWER_SWITCH: u8 = 6;
    let [a, b, c, d, e, f, g, h, rest @ ..] = identity.uuid;
    let mut structure = Structure::new(kind::SYSTEM, handle::SYSTEM)
        .text(&identity.manufacturer)
        .text(&identity.product)
        .text(&identity.version)
        .text(&identity.serial)
        // The first three fields of a UUID are numbers, here with the low byte first (§7.2.1).
        .dword(u32::from_be_bytes([a, b, c, d]))
        .word(u16::from_be_bytes([e, f]))
        .word(u16::from_be_bytes([g, h]));
    structure.bytes.extend(rest);
    structure.byte(POWER_SWITCH).text(&identity.sku).text(&identity.family).end(table);
}

fn baseboard(table: &mut Vec<u8>, identity: &Identity) {
    const HOSTING: u8 = 1;
    const MOTHERBOARD: u8 = 0xa;
    Structure::new(kind::BASEBOARD, handle::BASEBOARD)
        .text(&identity.manufacturer)
        .text(&identity.product)
        .text(&identity.version)
        .text("")
        .text("")
        .byte(HOSTING)
        .text("")
        .word(handle::CHASSIS)
        .byte(MOTHERBOARD)
        .byte(0)
        .end(table);
}

fn chassis(table: &mut Vec<u8>, identity: &Identity) {
    let chassis = &identity.chassis;
    Structure::new(kind::CHASSIS, handle::CHASSIS)
        .text(&chassis.manufacturer)
        .byte(OTHER)
        .text(&chassis.version)
        .text(&chassis.serial)
        .text(&chassis.asset)
        // States at the start: of the chassis, its power supply, its heat, its security.
        .byte(SAFE)
        .byte(SAFE)
        .byte(SAFE)
        .byte(UNKNOWN)
        .dword(0)
        .byte(0)
        .byte(0)
        .byte(0)
        .byte(0)
        .text(&chassis.sku)
        .end(table);
}

fn processor(table: &mut Vec<u8>, socket: u16, cores: u16, threads: u16) {
    const CENTRAL: u8 = 3;
    const POPULATED_ENABLED: u8 = 0x41;
    const CHARACTERISTICS_64_BIT: u16 = 1 << 2;
    const CHARACTERISTICS_MULTI_CORE: u16 = 1 << 3;
    let multi = if cores > 1 { CHARACTERISTICS_MULTI_CORE } else { 0 };
    Structure::new(kind::PROCESSOR, handle::PROCESSOR + socket)
        .text(&format!("CPU {socket}"))
        .byte(CENTRAL)
        .byte(OTHER)
        .text("Bootyard")
        .qword(0)
        .text("")
        // Voltage, clock, greatest and present speed: unknown.
        .pad(1 + 3 * 2)
        .byte(POPULATED_ENABLED)
        .byte(OTHER)
        // Handles of caches: not told.
        .word(0xffff)
        .word(0xffff)
        .word(0xffff)
        .text("")
        .text("")
        .text("")
        .byte(cores as u8)
        .byte(cores as u8)
        .byte(threads as u8)
        .word(CHARACTERISTICS_64_BIT | multi)
        .word(UNKNOWN.into())
        .word(cores)
        .word(cores)
        .word(threads)
        .end(table);
}

/// One array with one module of all the memory, and the addresses at which it is.
fn memory_structures(table: &mut Vec<u8>, memory: u64) {
    const SYSTEM_MEMORY: u8 = 3;
    const SINGLE_BIT_OR_MORE: u8 = 6;
    const FORM_DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    /// The size is in the field that was added for large ones (§7.18.5).
    const EXTENDED: u16 = 0x7fff;
    Structure::new(kind::MEMORY_ARRAY, handle::MEMORY_ARRAY)
        .byte(OTHER)
        .byte(SYSTEM_MEMORY)
        .byte(SINGLE_BIT_OR_MORE)
        .dword(0x8000_0000)
        .word(handle::NONE)
        .word(1)
        .qword(memory)
        .end(table);
    let mib = memory / MIB;
    let (size, extended) = match u16::try_from(mib) {
        Ok(mib) if mib < EXTENDED => (mib, 0),
        _ => (EXTENDED, mib as u32),
    };
    Structure::new(kind::MEMORY_DEVICE, handle::MEMORY_DEVICE)
        .word(handle::MEMORY_ARRAY)
        .word(handle::NONE)
        // Widths of the data, with and without correction: unknown.
        .word(0xffff)
        .word(0xffff)
        .word(size)
        .byte(FORM_DIMM)
        .byte(0)
        .text("DIMM 0")
        .text("")
        .byte(TYPE_RAM)
        .word(u16::from(UNKNOWN) << 1)
        .word(0)
        .text("Bootyard")
        .text("")
        .text("")
        .text("")
        .byte(0)
        .dword(extended)
        .word(0)
        .end(table);
    for (number, range) in (0..).zip(layout::ram(memory)) {
        // The last byte's unit, not the one behind it. All of it fits 4 TiB.
        Structure::new(kind::MEMORY_RANGE, handle::MEMORY_RANGE + number)
            .dword((range.start / KIB) as u32)
            .dword((range.end / KIB - 1) as u32)
            .word(handle::MEMORY_ARRAY)
            .byte(1)
            .end(table);
    }
}

#[cfg(test)]
mod tests;
