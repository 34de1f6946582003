//! The state in which the boot processor begins, and the tables in memory that go with it.

use super::{acpi, layout};

/// How a segment register is loaded: always flat (base 0, limit 4 GiB), as both boot protocols ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeSegment {
    /// 32-bit protected mode without paging (PVH).
    Bits32,
    /// Long mode with the identity map of [`page_tables`] (Linux's 64-bit entry).
    Bits64,
}

/// The boot processor's registers where they are not those after reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuState {
    /// Protected or long mode.
    pub(crate) code: CodeSegment,
    /// The instruction pointer.
    pub(crate) rip: u64,
    /// PVH passes the address of its start info here.
    pub(crate) rbx: u64,
    /// Linux's protocol passes the address of its zero page here.
    pub(crate) rsi: u64,
}

/// Index of the code segment in the GDT: Linux's `__BOOT_CS` (Documentation/arch/x86/boot.rst).
pub(crate) const CODE_SELECTOR: u16 = 0x10;
/// Linux's `__BOOT_DS`.
pub(crate) const DATA_SELECTOR: u16 = 0x18;
/// The task state segment that VMX insists on.
pub(crate) const TSS_SELECTOR: u16 = 0x20;

/// Size of a large page, the largest that every processor has.
const LARGE_PAGE: u64 = 2 << 20;
/// Entries of a page table, and of a GDT entry, are this long.
const ENTRY: u64 = 8;
const PAGE: u64 = 0x1000;

/// The GDT, 8 bytes an entry (Intel SDM volume 3 §3.4.5), for the selectors above.
pub(crate) fn gdt(code: CodeSegment) -> [u64; 5] {
    let code = match code {
        // Base 0, limit 4 GiB in pages; present, code, execute and read, 32-bit or long.
        CodeSegment::Bits32 => 0x00cf_9b00_0000_ffff,
        CodeSegment::Bits64 => 0x00af_9b00_0000_ffff,
    };
    // Data: present, read and write. TSS: present, busy, 0x67 bytes long.
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
}

/// What stands at [`layout::RESET_VECTOR`]: real-mode code that pulls the machine's reset line.
///
/// Linux jumps there to restart a hardware-reduced platform: it asks EFI first, which is not there,
/// then what it takes for a BIOS, and never gets to ACPI's reset register (`reboot_init`).
pub(crate) fn reset_code() -> [u8; 9] {
    let [low, high] = acpi::RESET_PORT.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; halt: hlt; jmp halt
    [0xba, low, high, 0xb0, acpi::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Page tables at [`layout::PAGE_TABLES`] that map the first 4 GiB onto themselves by large pages.
pub(crate) fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let directories = layout::DEVICE_HOLE.end / (LARGE_PAGE * PAGE / ENTRY);
    let mut tables = vec![0; ((2 + directories) * PAGE) as usize];
    let mut put = |table: u64, index: u64, entry: u64| {
        let at = (table * PAGE + index * ENTRY) as usize;
        tables[at..at + ENTRY as usize].copy_from_slice(&entry.to_le_bytes());
    };
    put(0, 0, (layout::PAGE_TABLES + PAGE) | PRESENT_WRITABLE);
    for directory in 0..directories {
        let table = layout::PAGE_TABLES + (2 + directory) * PAGE;
        put(1, directory, table | PRESENT_WRITABLE);
    }
    for page in 0..layout::DEVICE_HOLE.end / LARGE_PAGE {
        // Directories follow one another, so one running index fills them all.
        put(2, page, (page * LARGE_PAGE) | PRESENT_WRITABLE | LARGE);
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the processor does.
    fn translate(tables: &[u8], address: u64) -> u64 {
        let entry = |table: u64, index: u64| {
            let at = (table - layout::PAGE_TABLES + index * 8) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        let frame = |entry: u64| {
            assert_eq!(entry & 3, 3, "not present and writable");
            entry & 0x000f_ffff_ffff_f000
        };
        let pdpt = frame(entry(layout::PAGE_TABLES, address >> 39 & 511));
        let directory = frame(entry(pdpt, address >> 30 & 511));
        let page = entry(directory, address >> 21 & 511);
        assert_eq!(page & 1 << 7, 1 << 7, "not a large page");
        frame(page) + (address & (LARGE_PAGE - 1))
    }

    #[test]
    fn the_page_tables_map_4_gib_onto_themselves() {
        let tables = page_tables();
        assert_eq!(tables.len(), 6 * 4096);
        for address in [0, 0x1234, 0x1f_ffff, 0x20_0000, 0x4000_0000, 0xbfff_ffff, 0xffff_ffff] {
            assert_eq!(translate(&tables, address), address, "{address:#x}");
        }
    }

    #[test]
    fn the_gdt_answers_to_its_selectors() {
        for (code, long) in [(CodeSegment::Bits32, 0), (CodeSegment::Bits64, 1)] {
            let gdt = gdt(code);
            let access = |selector: u16| gdt[usize::from(selector) / 8] >> 40 & 0xff;
            assert_eq!(access(CODE_SELECTOR), 0x9b);
            assert_eq!(access(DATA_SELECTOR), 0x93);
            assert_eq!(access(TSS_SELECTOR), 0x8b);
            assert_eq!(gdt[usize::from(CODE_SELECTOR) / 8] >> 53 & 1, long);
        }
    }
}
