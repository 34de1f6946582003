//! Kernels of every kind, made and damaged by hand, and the one of this machine.

use super::state::CodeSegment;
use super::*;
use crate::arch::x86_64::firmware;
use crate::config::tests::config;

const MEMORY: u64 = 256 << 20;
const RAM_END: u64 = MEMORY;
const KERNEL_AT: u64 = 16 << 20;

/// An ELF kernel with one segment of `code` at `address`, and a PVH note if there is an `entry`.
fn elf_kernel(address: u64, code: &[u8], memory_len: u64, entry: Option<u32>) -> Vec<u8> {
    let mut note = Vec::new();
    if let Some(entry) = entry {
        // A note of somebody else comes first.
        for word in [4_u32, 1, 7] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"GNU\0\xff\0\0\0");
        for word in [4_u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(entry.to_le_bytes());
    }
    let (note_at, code_at) = (64 + 2 * 56, 64 + 2 * 56 + note.len() as u64);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([0_u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let header = |kind: u32, offset: u64, file_len: u64, memory_len: u64| {
        let words = [offset, address, address, file_len, memory_len, 0];
        [&kind.to_le_bytes()[..], &[0; 4]]
            .concat()
            .into_iter()
            .chain(words.into_iter().flat_map(u64::to_le_bytes))
            .collect::<Vec<u8>>()
    };
    file.extend(header(1, code_at, code.len() as u64, memory_len));
    file.extend(header(4, note_at, note.len() as u64, 0));
    file.extend(note);
    file.extend(code);
    file
}

/// A bzImage with the given payload at offset 0x400 of its code.
fn bzimage(payload: &[u8], xloadflags: u16) -> Vec<u8> {
    let mut file = vec![0; 0x400 + 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x201, &[0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &xloadflags.to_le_bytes());
    put(0x248, &0x400_u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &KERNEL_AT.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    file.extend(payload);
    file
}

/// All that is in memory in the end.
fn load(file: &[u8], given: &Handover<'_>) -> Result<InitState<'static>, LoadError> {
    let mut writes = Vec::new();
    let kernel = Kernel::place(file, MEMORY, &mut |address, bytes| {
        writes.push(Write { address, bytes: Cow::Owned(bytes.to_vec()) });
    })?;
    let state = kernel.load(given, MEMORY, firmware(&config()))?;
    writes.extend(
        state.writes.into_iter().map(|Write { address, bytes }| Write {
            address,
            bytes: Cow::Owned(bytes.into_owned()),
        }),
    );
    Ok(InitState { writes, initrd: state.initrd, cpu: state.cpu })
}

/// The bytes of a payload.
fn unpack(packed: &[u8], limit: usize) -> Result<Vec<u8>, LoadError> {
    let mut out = Vec::new();
    payload::unpack(packed, limit, &mut |bytes| {
        out.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(out)
}

/// What the writes put at an address, to the end of that write.
fn at<'a>(state: &'a InitState<'_>, address: u64) -> &'a [u8] {
    let found = state.writes.iter().find_map(|write| {
        slice(&write.bytes, address.checked_sub(write.address)?, 1)?;
        Some(&write.bytes[(address - write.address) as usize..])
    });
    found.unwrap_or_else(|| panic!("nothing at {address:#x}"))
}

fn word(bytes: &[u8], offset: u64) -> u32 {
    u32::from_le_bytes(array(bytes, offset).unwrap())
}

fn long(bytes: &[u8], offset: u64) -> u64 {
    u64::from_le_bytes(array(bytes, offset).unwrap())
}

/// A packed form of `unpacked`, as the kernel's build would make it.
fn packed(codec: &str, unpacked: &[u8]) -> Vec<u8> {
    let size = (unpacked.len() as u32).to_le_bytes();
    match codec {
        "lz4" => {
            let block = lz4_flex::block::compress(unpacked);
            let len = (block.len() as u32).to_le_bytes();
            [&[0x02, 0x21, 0x4c, 0x18][..], &len, &block, &size].concat()
        }
        "zstd" => [&zstd::encode_all(unpacked, 1).unwrap()[..], &size].concat(),
        "gzip" => {
            let mut compressor =
                libdeflater::Compressor::new(libdeflater::CompressionLvl::fastest());
            let mut out = vec![0; compressor.gzip_compress_bound(unpacked.len())];
            let len = compressor.gzip_compress(unpacked, &mut out).unwrap();
            out.truncate(len);
            out
        }
        _ => unpacked.to_vec(),
    }
}

#[test]
fn every_packing_of_a_kernel_gives_the_same_pvh_start() {
    let code = vec![0x90; 5000];
    let elf = elf_kernel(KERNEL_AT, &code, 0x10_0000, Some(KERNEL_AT as u32 + 0x10));
    let given = Handover { initrd_len: 5000, cmdline: "console=ttyS0" };
    let variants = ["lz4", "zstd", "gzip"].map(|codec| bzimage(&packed(codec, &elf), 1));
    for file in variants.iter().chain([&elf]) {
        let state = load(file, &given).unwrap();
        assert_eq!(state.cpu.code, CodeSegment::Bits32);
        assert_eq!((state.cpu.rip, state.cpu.rbx), (KERNEL_AT + 0x10, layout::BOOT_INFO));
        assert_eq!(at(&state, KERNEL_AT), code);
        assert_eq!(at(&state, layout::COMMAND_LINE), b"console=ttyS0\0");

        let info = at(&state, layout::BOOT_INFO);
        assert_eq!((word(info, 0), word(info, 4), word(info, 12)), (0x336e_c578, 1, 1));
        assert_eq!(long(info, 24), layout::COMMAND_LINE);
        assert_eq!(at(&state, long(info, 32))[..8], *b"RSD PTR ");
        let module = at(&state, long(info, 16));
        assert_eq!((long(module, 0), long(module, 8)), (RAM_END - 0x2000, 5000));
        assert_eq!(state.initrd, RAM_END - 0x2000);
        let map = at(&state, long(info, 40));
        assert_eq!(word(info, 48), 4);
        assert_eq!((long(map, 48), long(map, 56)), (layout::HIGH_RAM, RAM_END - layout::HIGH_RAM));
    }
}

#[test]
fn a_kernel_in_pieces_comes_to_the_same_places() {
    let code: Vec<u8> = (0..5000).map(|at| (at % 251) as u8).collect();
    let elf = elf_kernel(KERNEL_AT, &code, 0x10_0000, Some(KERNEL_AT as u32));
    let headers = 64 + 2 * 56;
    for (first, len) in [(headers, 1), (headers, 7), (headers + 30, 4096), (elf.len(), 1)] {
        let mut memory = vec![0; code.len()];
        let mut put = |address: u64, bytes: &[u8]| {
            let at = (address - KERNEL_AT) as usize;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let mut placer = elf::Placer::new(ram(MEMORY), &mut put);
        let (head, rest) = elf.split_at(first);
        placer.take(head).unwrap();
        rest.chunks(len).try_for_each(|piece| placer.take(piece)).unwrap();
        let (end, pvh_entry) = (KERNEL_AT + 0x10_0000, KERNEL_AT as u32);
        assert_eq!(placer.finish(), Ok(elf::Placed { end, pvh_entry }), "{first} {len}");
        assert_eq!(memory, code, "{first} {len}");
    }
}

#[test]
fn a_kernel_that_we_cannot_unpack_starts_itself_in_long_mode() {
    let file = bzimage(b"\xfd7zXZ\0whatever", 1);
    let given = Handover { initrd_len: 3, cmdline: "" };
    let state = load(&file, &given).unwrap();
    assert_eq!(state.cpu.code, CodeSegment::Bits64);
    assert_eq!((state.cpu.rip, state.cpu.rsi), (KERNEL_AT + 0x200, layout::BOOT_INFO));
    assert_eq!(at(&state, KERNEL_AT), &file[0x400..]);
    let zero_page = at(&state, layout::BOOT_INFO);
    assert_eq!(zero_page.len(), 4096);
    assert_eq!(zero_page[0x1f1..0x210], file[0x1f1..0x210]);
    assert_eq!(long(zero_page, 0x70), layout::ACPI_TABLES.start);
    assert_eq!((word(zero_page, 0x218), word(zero_page, 0x21c)), (RAM_END as u32 - 0x1000, 3));
    assert_eq!(word(zero_page, 0x228), layout::COMMAND_LINE as u32);
    assert_eq!(zero_page[0x1e8], 4);
    assert_eq!(long(zero_page, 0x2d0 + 2 * 20), layout::HIGH_RAM);
    at(&state, layout::PAGE_TABLES);
}

#[test]
fn what_is_not_a_kernel_or_does_not_fit_is_refused() {
    let elf = |address, entry| elf_kernel(address, &[0x90; 64], 0x1000, entry);
    let whole = elf(KERNEL_AT, Some(KERNEL_AT as u32));
    for (file, initrd_len, message) in [
        (
            b"<html>".to_vec(),
            0,
            "expected an x86-64 `bzImage` or ELF kernel, got a file that begins with [3c, 68, 74, 6d, 6c, 3e]",
        ),
        (
            Vec::new(),
            0,
            "expected an x86-64 `bzImage` or ELF kernel, got a file that begins with []",
        ),
        (whole[..100].to_vec(), 0, "the kernel's program header ends beyond the file"),
        (whole[..whole.len() - 1].to_vec(), 0, "the kernel's segment ends beyond the file"),
        (
            elf(KERNEL_AT, None),
            0,
            "the kernel has neither a PVH entry (CONFIG_PVH) nor a 64-bit boot entry",
        ),
        (
            elf(KERNEL_AT, Some(0x10)),
            0,
            "the kernel has neither a PVH entry (CONFIG_PVH) nor a 64-bit boot entry",
        ),
        (
            bzimage(b"\xfd7zXZ\0", 0),
            0,
            "the kernel's unknown payload does not unpack: it begins with [fd, 37, 7a, 58, 5a, 00]",
        ),
        (
            bzimage(&packed("lz4", &elf(KERNEL_AT, None)), 0),
            0,
            "the kernel has neither a PVH entry (CONFIG_PVH) nor a 64-bit boot entry",
        ),
        (
            elf(0x8_0000, Some(0x8_0000)),
            0,
            "the kernel needs memory at 0x80000..0x81000, which the machine does not have",
        ),
        (
            elf(MEMORY - 0x800, Some(MEMORY as u32 - 0x800)),
            0,
            "the kernel needs memory at 0xffff800..0x10000800, which the machine does not have",
        ),
        (
            elf(u64::MAX - 9, None),
            0,
            "the kernel needs memory at 0xfffffffffffffff6..0xffffffffffffffff, which the machine does not have",
        ),
        (
            whole.clone(),
            MEMORY,
            "an initrd of 268435456 bytes does not fit the memory above the kernel's end at 0x1001000",
        ),
    ] {
        let given = Handover { initrd_len, cmdline: "" };
        let refused = load(&file, &given).map(drop);
        assert_eq!(refused.map_err(|error| error.to_string()), Err(message.to_owned()));
    }
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let elf = elf_kernel(KERNEL_AT, &[0x90; 64], 0x1000, Some(KERNEL_AT as u32));
    for (cmdline, fits) in
        [("a".repeat(2047), true), ("a".repeat(2048), false), ("a\0b".to_owned(), false)]
    {
        let given = Handover { initrd_len: 0, cmdline: &cmdline };
        assert_eq!(load(&elf, &given).is_ok(), fits, "{}", cmdline.len());
    }
}

#[test]
fn damaged_payloads_are_errors() {
    let elf = elf_kernel(KERNEL_AT, &[0x90; 9000], 0x1_0000, Some(KERNEL_AT as u32));
    for codec in ["lz4", "zstd", "gzip"] {
        let whole = packed(codec, &elf);
        assert_eq!(unpack(&whole, elf.len()).unwrap(), elf, "{codec}");
        let refused = unpack(&whole, elf.len() - 1).unwrap_err();
        let why = format!("it unpacks to more than {} bytes", elf.len() - 1);
        assert_eq!(refused, LoadError::Payload { codec, why });
        let cut = unpack(&whole[..whole.len() / 2], payload::UNPACKED_MAX);
        assert!(matches!(cut, Err(LoadError::Payload { codec: named, .. }) if named == codec));
        for at in (4..whole.len()).step_by(whole.len() / 64 + 1) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            let _ = unpack(&damaged, payload::UNPACKED_MAX);
        }
    }
}

#[test]
fn only_the_last_block_of_an_lz4_payload_may_be_short() {
    let magic = [0x02, 0x21, 0x4c, 0x18];
    let block = |len: usize| {
        let block = lz4_flex::block::compress(&vec![7; len]);
        [&(block.len() as u32).to_le_bytes()[..], &block].concat()
    };
    const FULL: usize = 8 << 20;
    let whole = [&magic[..], &block(FULL), &block(FULL), &block(5), &[0; 4]].concat();
    assert_eq!(unpack(&whole, payload::UNPACKED_MAX).unwrap().len(), 2 * FULL + 5);

    let nothing = [1, 0, 0, 0, 0].repeat(4 << 20);
    let short = [block(FULL - 1), block(1)].concat();
    for blocks in [nothing, short] {
        let refused = unpack(&[&magic[..], &blocks].concat(), payload::UNPACKED_MAX).unwrap_err();
        let why = "a block before the last one unpacks to less than 8 MiB";
        assert_eq!(refused, LoadError::Payload { codec: "lz4", why: why.to_owned() });
    }
}

/// The distribution's kernel, where there is one: LZ4 on Debian, with a PVH entry inside.
#[test]
fn an_installed_kernel_has_its_pvh_entry_found() {
    let Ok(boot) = fs_err::read_dir("/boot") else { return };
    let kernels =
        boot.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    for entry in kernels {
        let Ok(file) = fs_err::read(entry.path()) else { continue };
        let given = Handover { initrd_len: 0, cmdline: "" };
        let state = load(&file, &given).unwrap();
        assert_eq!(state.cpu.code, CodeSegment::Bits32, "{:?}", entry.path());
        assert_eq!(state.cpu.rip, state.cpu.rip & 0xffff_ffff);
        at(&state, state.cpu.rip);
    }
}
