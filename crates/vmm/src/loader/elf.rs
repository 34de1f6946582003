//! A kernel as an ELF file, with the note that tells its PVH entry.
//!
//! Layouts are those of the System V ABI (ELF-64); the note is Xen's `XEN_ELFNOTE_PHYS32_ENTRY`.

use std::borrow::Cow;
use std::ops::Range;

use super::{LoadError, Write, array, slice};

const MAGIC: &[u8] = b"\x7fELF";
/// Class 64-bit, little-endian: the two bytes behind the magic.
const CLASS_AND_DATA: [u8; 2] = [2, 1];
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_LEN: u64 = 56;
/// A kernel has about six; what has many more is not a kernel.
const PROGRAM_HEADERS_MAX: u16 = 64;
const TYPE_LOAD: u32 = 1;
const TYPE_NOTE: u32 = 4;
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;
/// More notes than any kernel has.
const NOTES_MAX: usize = 256;

/// What of an ELF file goes where, and where it starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Elf {
    segments: Vec<Segment>,
    /// Guest-physical address of the 32-bit entry.
    pub(crate) pvh_entry: u32,
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    /// Where it is in the file.
    offset: u64,
    file_len: u64,
    /// Where it goes in memory; what the file does not fill is zero.
    memory: Range<u64>,
}

pub(super) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// Reads the headers of `file` and checks all that they refer to.
pub(super) fn parse(file: &[u8]) -> Result<Elf, LoadError> {
    let not_a_kernel = || LoadError::NotAKernel(file.iter().take(20).copied().collect());
    let truncated = |part| LoadError::Truncated { part };
    let machine = array(file, 18).map(u16::from_le_bytes);
    if !is_elf(file) || array(file, 4) != Some(CLASS_AND_DATA) || machine != Some(MACHINE_X86_64) {
        return Err(not_a_kernel());
    }
    let headers = array(file, 32).map(u64::from_le_bytes).ok_or_else(not_a_kernel)?;
    let count = array(file, 56).map(u16::from_le_bytes).ok_or_else(not_a_kernel)?;
    if count > PROGRAM_HEADERS_MAX {
        return Err(not_a_kernel());
    }
    let mut segments = Vec::new();
    let mut entry = None;
    for index in 0..u64::from(count) {
        let header = headers
            .checked_add(index * PROGRAM_HEADER_LEN)
            .and_then(|at| slice(file, at, PROGRAM_HEADER_LEN))
            .ok_or(truncated("program header"))?;
        let word = |at| array(header, at).map_or(0, u64::from_le_bytes);
        let (offset, address, file_len, memory_len) = (word(8), word(24), word(32), word(40));
        match array(header, 0).map(u32::from_le_bytes) {
            Some(TYPE_LOAD) => {
                slice(file, offset, file_len).ok_or(truncated("segment"))?;
                let end = address.saturating_add(memory_len.max(file_len));
                segments.push(Segment { offset, file_len, memory: address..end });
            }
            Some(TYPE_NOTE) => {
                let notes = slice(file, offset, file_len).ok_or(truncated("notes"))?;
                entry = entry.or_else(|| pvh_entry(notes));
            }
            _ => {}
        }
    }
    let pvh_entry = entry.ok_or(LoadError::NoEntry)?;
    if !segments.iter().any(|segment| segment.memory.contains(&u64::from(pvh_entry))) {
        return Err(LoadError::NoEntry);
    }
    Ok(Elf { segments, pvh_entry })
}

/// Looks through a note segment: each note is three lengths, then owner and value padded to 4.
fn pvh_entry(notes: &[u8]) -> Option<u32> {
    let mut at = 0_u64;
    for _ in 0..NOTES_MAX {
        let owner_len = u64::from(u32::from_le_bytes(array(notes, at)?));
        let value_len = u64::from(u32::from_le_bytes(array(notes, at + 4)?));
        let kind = u32::from_le_bytes(array(notes, at + 8)?);
        let owner = slice(notes, at + 12, owner_len)?;
        let value_at = at + 12 + owner_len.next_multiple_of(4);
        if owner == NOTE_OWNER && kind == NOTE_PHYS32_ENTRY {
            return array(notes, value_at).map(u32::from_le_bytes);
        }
        at = value_at + value_len.next_multiple_of(4);
    }
    None
}

impl Elf {
    /// The segments of `image`, which must lie within `ram`.
    pub(super) fn writes<'a>(
        &self,
        image: &'a [u8],
        ram: &Range<u64>,
    ) -> Result<Vec<Write<'a>>, LoadError> {
        let write = |segment: &Segment| {
            let Range { start, end } = segment.memory;
            if start < ram.start || end > ram.end {
                return Err(LoadError::Placement { range: start..end });
            }
            let bytes = slice(image, segment.offset, segment.file_len)
                .ok_or(LoadError::Truncated { part: "segment" })?;
            Ok(Write { address: start, bytes: Cow::Borrowed(bytes) })
        };
        self.segments.iter().map(write).collect()
    }

    /// The first address above all segments.
    pub(super) fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.memory.end).max().unwrap_or(0)
    }
}
