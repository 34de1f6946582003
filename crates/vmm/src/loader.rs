//! From a kernel file to what memory and the boot processor hold when the guest begins.
//!
//! A loader returns plain data, an [`InitState`]; the hypervisor layer writes it. The kernel itself is put
//! in its place piece by piece while it is unpacked: it is by far the largest part, and to hold it would
//! cost as much time as to unpack it. Two protocols:
//! a kernel with a PVH entry starts there, in 32-bit mode; any other `bzImage` starts at Linux's
//! own 64-bit entry. A compressed kernel is unpacked here where its codec is known: that is faster
//! than the guest's own decompressor, and gets at the PVH entry that the compressed form hides.

mod bzimage;
mod elf;
mod payload;
mod protocol;

use std::borrow::Cow;
use std::ops::Range;

use crate::arch::x86_64::{layout, state};

/// What a boot loader hands over to a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handover<'a> {
    /// Bytes of the initrd, 0 if there is none.
    pub(crate) initrd_len: u64,
    pub(crate) cmdline: &'a str,
}

/// Bytes for a place in the guest's memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Write<'a> {
    /// Guest-physical address.
    pub(crate) address: u64,
    /// What goes there.
    pub(crate) bytes: Cow<'a, [u8]>,
}

/// Puts bytes to an address that was checked to be in the guest's memory.
pub(crate) type Put<'p> = dyn FnMut(u64, &[u8]) + 'p;

/// Everything that a guest begins with besides its kernel. Memory that no write covers is zero.
#[derive(Debug)]
pub(crate) struct InitState<'a> {
    pub(crate) writes: Vec<Write<'a>>,
    /// Where the initrd is to go.
    pub(crate) initrd: u64,
    pub(crate) cpu: state::CpuState,
}

/// Why a kernel cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Neither an ELF file nor a bzImage.
    #[error("expected an x86-64 `bzImage` or ELF kernel, got a file that begins with {0:02x?}")]
    NotAKernel(Vec<u8>),
    /// The file ends before what its headers promise.
    #[error("the kernel's {part} ends beyond the file")]
    Truncated {
        /// What is cut off.
        part: &'static str,
    },
    /// The kernel has none of the entries that this machine can use.
    #[error("the kernel has neither a PVH entry (CONFIG_PVH) nor a 64-bit boot entry")]
    NoEntry,
    /// The packed kernel does not unpack.
    #[error("the kernel's {codec} payload does not unpack: {why}")]
    Payload {
        /// The compression.
        codec: &'static str,
        /// What the decoder found.
        why: String,
    },
    /// A part of the kernel lies where there is no memory for it.
    #[error("the kernel needs memory at {:#x}..{:#x}, which the machine does not have", range.start, range.end)]
    Placement {
        /// The guest-physical addresses.
        range: Range<u64>,
    },
    /// Kernel and initrd do not fit the memory together.
    #[error(
        "an initrd of {len} bytes does not fit the memory above the kernel's end at {floor:#x}"
    )]
    InitrdSpace {
        /// Its size.
        len: u64,
        /// Where the kernel ends.
        floor: u64,
    },
    /// The command line is longer than the kernel reads, or has a zero byte.
    #[error("the command line has {len} bytes; expected at most {max} and no zero byte")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The most that is allowed.
        max: usize,
    },
}

/// A kernel in its place.
#[derive(Debug)]
pub(crate) enum Kernel<'a> {
    /// Starts at its PVH entry.
    Pvh(elf::Placed),
    /// Starts at the 64-bit entry of a bzImage, which unpacks itself.
    Linux64(bzimage::BzImage<'a>),
}

/// Where a kernel may be in a machine of `memory` bytes.
fn ram(memory: u64) -> Range<u64> {
    layout::HIGH_RAM..memory.min(layout::DEVICE_HOLE.start)
}

impl<'a> Kernel<'a> {
    /// Finds out what `file` is and puts it to its place, unpacked if we can, in a machine of `memory`
    /// bytes. Memory that is left over of a kernel that turned out to be none is not zero any more.
    pub(crate) fn place(file: &'a [u8], memory: u64, put: &mut Put<'_>) -> Result<Self, LoadError> {
        let ram = ram(memory);
        if elf::is_elf(file) {
            let mut placer = elf::Placer::new(ram, put);
            placer.take(file)?;
            return placer.finish().map(Self::Pvh);
        }
        let bzimage = bzimage::parse(file)?;
        let limit = usize::try_from(memory).unwrap_or(usize::MAX).min(payload::UNPACKED_MAX);
        let mut placer = elf::Placer::new(ram.clone(), put);
        let unpacked = payload::unpack(bzimage.payload, limit, &mut |bytes| placer.take(bytes));
        match unpacked.and_then(|()| placer.finish()) {
            Ok(placed) => Ok(Self::Pvh(placed)),
            // What we cannot unpack, or has no PVH entry, may still start itself: it relies on nothing
            // that is in memory.
            Err(_) if bzimage.has_entry_64 => {
                bzimage.place(&ram, put)?;
                Ok(Self::Linux64(bzimage))
            }
            Err(error) => Err(error),
        }
    }

    /// Lays out the companions of this kernel in a machine of `memory` bytes, beside what `firmware` leaves
    /// there.
    pub(crate) fn load<'b>(
        &'b self,
        given: &Handover<'_>,
        memory: u64,
        firmware: impl IntoIterator<Item = Write<'b>>,
    ) -> Result<InitState<'b>, LoadError> {
        let ram = ram(memory);
        let (kernel_end, limit) = match self {
            Self::Pvh(placed) => (placed.end, ram.end),
            Self::Linux64(bzimage) => (bzimage.end(), ram.end.min(bzimage.initrd_limit)),
        };
        let initrd = place_initrd(given.initrd_len, kernel_end, limit)?;
        let start = protocol::Start { memory, initrd: initrd.clone() };
        let (info, cpu) = match self {
            Self::Pvh(placed) => (start.pvh(), protocol::pvh_cpu(placed.pvh_entry)),
            Self::Linux64(image) => (start.linux(image), protocol::linux_cpu(image.entry())),
        };
        let gdt = state::gdt(cpu.code).into_iter().flat_map(u64::to_le_bytes).collect();
        let mut writes = vec![
            Write { address: layout::GDT, bytes: Cow::Owned(gdt) },
            Write { address: layout::BOOT_INFO, bytes: Cow::Owned(info) },
            Write { address: layout::COMMAND_LINE, bytes: command_line(given.cmdline)?.into() },
        ];
        writes.extend(firmware);
        if cpu.code == state::CodeSegment::Bits64 {
            let tables = state::page_tables();
            writes.push(Write { address: layout::PAGE_TABLES, bytes: tables.into() });
        }
        Ok(InitState { writes, initrd: initrd.start, cpu })
    }
}

/// Puts the initrd as high as it may be, so that the kernel can unpack itself below.
fn place_initrd(len: u64, floor: u64, limit: u64) -> Result<Range<u64>, LoadError> {
    const PAGE: u64 = 0x1000;
    let start = limit.checked_sub(len).map(|start| start / PAGE * PAGE);
    match start.filter(|start| *start >= floor) {
        Some(start) => Ok(start..start + len),
        None => Err(LoadError::InitrdSpace { len, floor }),
    }
}

fn command_line(text: &str) -> Result<Vec<u8>, LoadError> {
    let max = layout::COMMAND_LINE_MAX - 1;
    if text.len() > max || text.contains('\0') {
        return Err(LoadError::CommandLine { len: text.len(), max });
    }
    Ok([text.as_bytes(), b"\0"].concat())
}

/// The `N` bytes at `offset`, for the readers of headers here.
fn array<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(N)?)?.try_into().ok()
}

/// The `len` bytes at `offset`.
fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

#[cfg(test)]
mod tests;
