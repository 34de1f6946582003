//! Linux's `bzImage`: a header for boot loaders, and a kernel that unpacks itself.
//!
//! Field offsets are those of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst).

use std::ops::Range;

use super::{LoadError, Put, array, slice};

const MAGIC_AT: u64 = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";
/// 2.12, the first version with `xloadflags`: Linux 3.8.
const VERSION_MIN: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is this far behind the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// What `setup_sects` means when it is zero.
const SETUP_SECTORS_DEFAULT: u64 = 4;
/// Where the part of the header that goes into the zero page begins.
pub(super) const HEADER_AT: u64 = 0x1f1;

/// What a boot loader has to know of a bzImage.
#[derive(Debug)]
pub(crate) struct BzImage<'a> {
    /// The header, from [`HEADER_AT`] on, as the zero page holds it.
    pub(super) header: &'a [u8],
    /// The protected-mode code.
    code: &'a [u8],
    /// The packed kernel within it.
    pub(super) payload: &'a [u8],
    /// Where the code wants to be, and how much memory it needs there to unpack itself.
    memory: Range<u64>,
    /// The initrd must end at or below this address.
    pub(super) initrd_limit: u64,
    /// There is a 64-bit entry.
    pub(super) has_entry_64: bool,
}

pub(super) fn parse(file: &[u8]) -> Result<BzImage<'_>, LoadError> {
    let not_a_kernel = || LoadError::NotAKernel(file.iter().take(16).copied().collect());
    let byte = |at| array(file, at).map(u8::from_le_bytes).ok_or_else(not_a_kernel);
    let half = |at| array(file, at).map(u16::from_le_bytes).ok_or_else(not_a_kernel);
    let word = |at| array(file, at).map(u32::from_le_bytes).ok_or_else(not_a_kernel);
    if array(file, MAGIC_AT) != Some(MAGIC) || half(0x206)? < VERSION_MIN {
        return Err(not_a_kernel());
    }
    let setup_sectors = match byte(HEADER_AT)? {
        0 => SETUP_SECTORS_DEFAULT,
        sectors => u64::from(sectors),
    };
    let code_at = (setup_sectors + 1) * SECTOR;
    let code = usize::try_from(code_at).ok().and_then(|at| file.get(at..));
    let code = code.ok_or(LoadError::Truncated { part: "boot sector" })?;
    let payload = slice(code, word(0x248)?.into(), word(0x24c)?.into())
        .ok_or(LoadError::Truncated { part: "payload" })?;
    // A jump instruction's operand tells how far the header goes.
    let header_len = MAGIC_AT - HEADER_AT + u64::from(byte(0x201)?);
    let header =
        slice(file, HEADER_AT, header_len).ok_or(LoadError::Truncated { part: "header" })?;
    let start = array(file, 0x258).map(u64::from_le_bytes).ok_or_else(not_a_kernel)?;
    Ok(BzImage {
        header,
        code,
        payload,
        memory: start..start.saturating_add(u64::from(word(0x260)?)),
        initrd_limit: u64::from(word(0x22c)?) + 1,
        has_entry_64: half(0x236)? & XLF_KERNEL_64 != 0,
    })
}

impl BzImage<'_> {
    /// Puts the code to its preferred place, which must lie within `ram`.
    pub(super) fn place(&self, ram: &Range<u64>, put: &mut Put<'_>) -> Result<(), LoadError> {
        let Range { start, end } = self.memory;
        if start < ram.start || end > ram.end || self.code.len() as u64 > end - start {
            return Err(LoadError::Placement { range: start..end });
        }
        put(start, self.code);
        Ok(())
    }

    /// The address of the 64-bit entry.
    pub(super) fn entry(&self) -> u64 {
        self.memory.start + ENTRY_64
    }

    /// The first address that the kernel does not need to unpack itself.
    pub(super) fn end(&self) -> u64 {
        self.memory.end
    }
}
