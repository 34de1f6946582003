//! A kernel as an ELF file, with the note that tells its PVH entry. Its segments are put in their places
//! while the file is unpacked, so that nobody has to hold all of it.
//!
//! Layouts are those of the System V ABI (ELF-64); the note is Xen's `XEN_ELFNOTE_PHYS32_ENTRY`.

use std::ops::Range;

use super::{LoadError, Put, array, slice};

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
/// More notes than any kernel has, and longer ones.
const NOTES_MAX: usize = 256;
const NOTES_LEN_MAX: u64 = 64 << 10;

/// A kernel that is in its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The first address above all segments.
    pub(crate) end: u64,
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

/// Takes a file from its first byte to its last, and puts what belongs into memory there.
pub(super) struct Placer<'p> {
    ram: Range<u64>,
    put: &'p mut Put<'p>,
    /// Bytes of the file that have passed.
    passed: u64,
    segments: Vec<Segment>,
    /// Where the note segments are in the file, and what of each has passed.
    notes: Vec<(Range<u64>, Vec<u8>)>,
}

impl<'p> Placer<'p> {
    /// For a kernel whose segments must lie within `ram`, where `put` puts them.
    pub(super) fn new(ram: Range<u64>, put: &'p mut Put<'p>) -> Self {
        Self { ram, put, passed: 0, segments: Vec::new(), notes: Vec::new() }
    }

    /// Takes the next bytes. The first ones must have all headers.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        if self.passed == 0 {
            self.read_headers(bytes)?;
        }
        let here = self.passed..self.passed + bytes.len() as u64;
        let part = |offset: u64, len: u64| {
            let (start, end) = (here.start.max(offset), here.end.min(offset + len));
            let within = (start - here.start) as usize..(end.max(start) - here.start) as usize;
            bytes.get(within).filter(|part| !part.is_empty()).map(|part| (start - offset, part))
        };
        for Segment { offset, file_len, memory } in &self.segments {
            if let Some((behind, part)) = part(*offset, *file_len) {
                (self.put)(memory.start + behind, part);
            }
        }
        for (place, notes) in &mut self.notes {
            notes.extend(
                part(place.start, place.end - place.start).map_or(&[][..], |(_, part)| part),
            );
        }
        self.passed = here.end;
        Ok(())
    }

    /// Reads the headers in `head` and checks where they want the segments.
    fn read_headers(&mut self, head: &[u8]) -> Result<(), LoadError> {
        let not_a_kernel = || LoadError::NotAKernel(head.iter().take(20).copied().collect());
        let machine = array(head, 18).map(u16::from_le_bytes);
        if !is_elf(head)
            || array(head, 4) != Some(CLASS_AND_DATA)
            || machine != Some(MACHINE_X86_64)
        {
            return Err(not_a_kernel());
        }
        let headers = array(head, 32).map(u64::from_le_bytes).ok_or_else(not_a_kernel)?;
        let count = array(head, 56).map(u16::from_le_bytes).ok_or_else(not_a_kernel)?;
        if count > PROGRAM_HEADERS_MAX {
            return Err(not_a_kernel());
        }
        for index in 0..u64::from(count) {
            let header = headers
                .checked_add(index * PROGRAM_HEADER_LEN)
                .and_then(|at| slice(head, at, PROGRAM_HEADER_LEN))
                .ok_or(LoadError::Truncated { part: "program header" })?;
            self.read_header(header)?;
        }
        Ok(())
    }

    fn read_header(&mut self, header: &[u8]) -> Result<(), LoadError> {
        let truncated = |part| LoadError::Truncated { part };
        let word = |at| array(header, at).map_or(0, u64::from_le_bytes);
        let (offset, address, file_len, memory_len) = (word(8), word(24), word(32), word(40));
        match array(header, 0).map(u32::from_le_bytes) {
            Some(TYPE_LOAD) => {
                offset.checked_add(file_len).ok_or(truncated("segment"))?;
                let end = address.saturating_add(memory_len.max(file_len));
                if address < self.ram.start || end > self.ram.end {
                    return Err(LoadError::Placement { range: address..end });
                }
                self.segments.push(Segment { offset, file_len, memory: address..end });
            }
            Some(TYPE_NOTE) => {
                let end = offset.checked_add(file_len).ok_or(truncated("notes"))?;
                // What is longer has no note of ours.
                if file_len <= NOTES_LEN_MAX {
                    self.notes.push((offset..end, Vec::new()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The file ends here.
    pub(super) fn finish(self) -> Result<Placed, LoadError> {
        let is_cut = |end: u64| end > self.passed;
        if self.segments.iter().any(|segment| is_cut(segment.offset + segment.file_len)) {
            return Err(LoadError::Truncated { part: "segment" });
        }
        if self.notes.iter().any(|(place, _)| is_cut(place.end)) {
            return Err(LoadError::Truncated { part: "notes" });
        }
        let entry = self.notes.iter().find_map(|(_, notes)| pvh_entry(notes));
        let pvh_entry = entry.ok_or(LoadError::NoEntry)?;
        if !self.segments.iter().any(|segment| segment.memory.contains(&pvh_entry.into())) {
            return Err(LoadError::NoEntry);
        }
        let end = self.segments.iter().map(|segment| segment.memory.end).max().unwrap_or(0);
        Ok(Placed { end, pvh_entry })
    }
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
