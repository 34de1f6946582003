//! What the kernel reads first: `hvm_start_info` (Xen's PVH) or Linux's zero page.

use std::ops::Range;

use super::bzimage::{BzImage, HEADER_AT};
use crate::arch::x86_64::layout::{self, MapKind};
use crate::arch::x86_64::state::{CodeSegment, CpuState};

const PVH_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const PVH_VERSION: u32 = 1;
/// Within the boot page: the list of modules, then the memory map.
const PVH_MODULES_AT: usize = 0x40;
const PVH_MAP_AT: usize = 0x80;

const ZERO_PAGE_LEN: usize = 0x1000;
/// The boot loader type for one that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// The boot processor at a PVH entry.
pub(super) fn pvh_cpu(entry: u32) -> CpuState {
    let (rip, rbx) = (u64::from(entry), layout::BOOT_INFO);
    CpuState { code: CodeSegment::Bits32, rip, rbx, rsi: 0 }
}

/// The boot processor at Linux's 64-bit entry.
pub(super) fn linux_cpu(entry: u64) -> CpuState {
    CpuState { code: CodeSegment::Bits64, rip: entry, rbx: 0, rsi: layout::BOOT_INFO }
}

/// What both structures tell.
pub(super) struct Start {
    /// Bytes of RAM in the machine.
    pub(super) memory: u64,
    /// Where the initrd is; empty if there is none.
    pub(super) initrd: Range<u64>,
}

impl Start {
    fn initrd_len(&self) -> u64 {
        self.initrd.end - self.initrd.start
    }

    /// `hvm_start_info` with its tables, for [`layout::BOOT_INFO`].
    pub(super) fn pvh(&self) -> Vec<u8> {
        let map = layout::memory_map(self.memory);
        let modules = u32::from(!self.initrd.is_empty());
        let at = |offset: usize| layout::BOOT_INFO + offset as u64;
        let mut page = Vec::new();
        for word in [PVH_MAGIC, PVH_VERSION, 0, modules] {
            page.extend(word.to_le_bytes());
        }
        let tables = [
            at(PVH_MODULES_AT),
            layout::COMMAND_LINE,
            layout::ACPI_TABLES.start,
            at(PVH_MAP_AT),
            map.len() as u64,
        ];
        page.extend(tables.into_iter().flat_map(u64::to_le_bytes));
        page.resize(PVH_MODULES_AT, 0);
        page.extend([self.initrd.start, self.initrd_len()].into_iter().flat_map(u64::to_le_bytes));
        page.resize(PVH_MAP_AT, 0);
        for (range, kind) in map {
            page.extend(range.start.to_le_bytes());
            page.extend((range.end - range.start).to_le_bytes());
            page.extend(u64::from(kind as u32).to_le_bytes());
        }
        page
    }

    /// Linux's `boot_params`, for [`layout::BOOT_INFO`].
    pub(super) fn linux(&self, image: &BzImage<'_>) -> Vec<u8> {
        let map = layout::memory_map(self.memory);
        let mut page = vec![0; ZERO_PAGE_LEN];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(HEADER_AT as usize, image.header);
        put(0x070, &layout::ACPI_TABLES.start.to_le_bytes());
        put(0x1e8, &[map.len() as u8]);
        put(0x210, &[LOADER_UNDEFINED]);
        put(0x218, &(self.initrd.start as u32).to_le_bytes());
        put(0x21c, &(self.initrd_len() as u32).to_le_bytes());
        put(0x228, &(layout::COMMAND_LINE as u32).to_le_bytes());
        for (index, (range, kind)) in map.into_iter().enumerate() {
            put_map_entry(&mut put, 0x2d0 + index * 20, &range, kind);
        }
        page
    }
}

/// One entry of `e820_table`.
fn put_map_entry(put: &mut impl FnMut(usize, &[u8]), at: usize, range: &Range<u64>, kind: MapKind) {
    put(at, &range.start.to_le_bytes());
    put(at + 8, &(range.end - range.start).to_le_bytes());
    put(at + 16, &(kind as u32).to_le_bytes());
}
