//! The log (§2.3): found, checked, and laid over the file.
//!
//! The log is a ring of sectors of 4 KiB. An *entry* is a header with descriptors and, for those
//! that carry data, a sector each. Entries that follow each other, in place and by number, are a
//! sequence; the one whose last entry has the highest number is the active one. That last entry
//! also tells where the sequence begins that has to be replayed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::Header;
use crate::blockmap::check_inside;
use crate::error::corrupt;
use crate::{Error, ErrorKind, ReadAt};

/// Sectors of the log, and the pages that they are written to.
const SECTOR: usize = 4096;
/// The largest log that is replayed: it is read into memory. Everyone's has one MiB.
const LOG_MAX: u64 = 16 << 20;
/// How many pages may be laid over the file, counting each as often as it is.
const PAGES_MAX: u64 = 1 << 17;
/// By how much the log may make the file longer.
const GROWTH_MAX: u64 = 1 << 30;
/// How many times as many bytes as the log has are summed at most, to find its entries.
const WORK_MAX: usize = 4;

/// "Log Entry Header".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    signature: [u8; 4],
    checksum: U32,
    len: U32,
    tail: U32,
    sequence: U64,
    descriptors: U32,
    reserved: U32,
    log_guid: [u8; 16],
    flushed_file_offset: U64,
    last_file_offset: U64,
}

/// "Zero Descriptor" and "Data Descriptor".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug, Clone, Copy)]
#[repr(C)]
struct Descriptor {
    signature: [u8; 4],
    /// Of data: the last four bytes of the page.
    trailing: [u8; 4],
    /// Of data: the first eight bytes of the page; of zeros: how many.
    leading: [u8; 8],
    file_offset: U64,
    sequence: U64,
}

/// "Data Sector": all of a page but its first eight and its last four bytes.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Data {
    signature: [u8; 4],
    sequence_high: U32,
    data: [u8; SECTOR - 12],
    sequence_low: U32,
}

/// A valid entry. Places and lengths are in sectors.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: usize,
    len: usize,
    tail: usize,
    sequence: u64,
    descriptors: usize,
    flushed_file_offset: u64,
    last_file_offset: u64,
}

/// The log's sectors.
struct Ring {
    sectors: Vec<u8>,
    guid: [u8; 16],
}

impl Ring {
    fn count(&self) -> usize {
        self.sectors.len() / SECTOR
    }

    /// A sector, counted round and round.
    fn sector(&self, index: usize) -> &[u8] {
        &self.sectors[index % self.count() * SECTOR..][..SECTOR]
    }

    /// The header of the entry at `at`, if all that it says by itself is right.
    fn candidate(&self, at: usize) -> Option<Entry> {
        let (fixed, _) = Fixed::ref_from_prefix(self.sector(at)).ok()?;
        let (len, tail) = (fixed.len.get() as usize, fixed.tail.get() as usize);
        let descriptors = fixed.descriptors.get() as usize;
        let right = &fixed.signature == b"loge"
            && fixed.log_guid == self.guid
            && fixed.sequence.get() > 0
            && len.is_multiple_of(SECTOR)
            && (SECTOR..=self.sectors.len()).contains(&len)
            && tail.is_multiple_of(SECTOR)
            && tail < self.sectors.len()
            && descriptors <= len / size_of::<Descriptor>();
        right.then(|| Entry {
            at,
            len: len / SECTOR,
            tail: tail / SECTOR,
            sequence: fixed.sequence.get(),
            descriptors,
            flushed_file_offset: fixed.flushed_file_offset.get(),
            last_file_offset: fixed.last_file_offset.get(),
        })
    }

    /// The descriptors of an entry: the first sector begins with the header, in the place of two.
    fn descriptors(&self, entry: Entry) -> impl Iterator<Item = Descriptor> {
        const EACH: usize = size_of::<Descriptor>();
        (2..entry.descriptors + 2).map(move |index| {
            let sector = self.sector(entry.at + index * EACH / SECTOR);
            let bytes = &sector[index * EACH % SECTOR..][..EACH];
            Descriptor::read_from_bytes(bytes).expect("a descriptor does not cross sectors")
        })
    }

    /// Where the data sectors of an entry begin.
    const fn data_at(entry: Entry) -> usize {
        entry.at + ((entry.descriptors + 2) * size_of::<Descriptor>()).div_ceil(SECTOR)
    }

    fn data(&self, index: usize) -> &Data {
        let (data, _) = Data::ref_from_prefix(self.sector(index)).expect("a sector of data");
        data
    }

    /// True if the descriptors and data sectors are those of this entry.
    fn is_whole(&self, entry: Entry) -> bool {
        let mut next = Self::data_at(entry);
        for descriptor in self.descriptors(entry) {
            let is_data = &descriptor.signature == b"desc";
            if !is_data && &descriptor.signature != b"zero"
                || descriptor.sequence.get() != entry.sequence
                || !descriptor.file_offset.get().is_multiple_of(SECTOR as u64)
            {
                return false;
            }
            if is_data {
                if next >= entry.at + entry.len {
                    return false;
                }
                let data = self.data(next);
                let sequence =
                    u64::from(data.sequence_high.get()) << 32 | u64::from(data.sequence_low.get());
                if &data.signature != b"data" || sequence != entry.sequence {
                    return false;
                }
                next += 1;
            }
        }
        next == entry.at + entry.len
    }

    /// The CRC-32C is that of the entry with zeros in its own place.
    fn is_sum_right(&self, entry: Entry) -> bool {
        let first = self.sector(entry.at);
        let mut crc = crc32c::crc32c(&first[..4]);
        crc = crc32c::crc32c_append(crc, &[0; 4]);
        crc = crc32c::crc32c_append(crc, &first[8..]);
        for index in 1..entry.len {
            crc = crc32c::crc32c_append(crc, self.sector(entry.at + index));
        }
        crc.to_le_bytes() == first[4..8]
    }

    /// The valid entries, each at its place. `at` is the log's own.
    fn entries(&self, at: u64) -> Result<Vec<Option<Entry>>, Error> {
        let mut work = WORK_MAX * self.count();
        let mut entries = Vec::with_capacity(self.count());
        for index in 0..self.count() {
            let whole = |entry: &Entry| self.is_whole(*entry);
            let candidate = self.candidate(index).filter(whole);
            if let Some(entry) = &candidate {
                work = work.checked_sub(entry.len).ok_or_else(|| {
                    let at = at + (index * SECTOR) as u64;
                    corrupt("too many entries of the log overlap each other", at)
                })?;
            }
            entries.push(candidate.filter(|entry| self.is_sum_right(*entry)));
        }
        Ok(entries)
    }

    /// The entries of the active sequence that have to be replayed, in their order.
    fn active(&self, at: u64) -> Result<Option<Vec<Entry>>, Error> {
        let entries = self.entries(at)?;
        let mut followed = vec![false; entries.len()];
        let mut best: Option<Vec<Entry>> = None;
        for start in 0..entries.len() {
            let mut sequence: Vec<Entry> = Vec::new();
            let mut next = entries[start].filter(|_| !followed[start]);
            let mut sectors = 0;
            while let Some(entry) = next {
                sectors += entry.len;
                if sectors > entries.len()
                    || sequence.last().is_some_and(|last| last.sequence + 1 != entry.sequence)
                {
                    break;
                }
                // Those that come after the start are a part of this sequence.
                followed[entry.at] = !sequence.is_empty() || followed[entry.at];
                sequence.push(entry);
                next = entries[(entry.at + entry.len) % entries.len()];
            }
            let Some(head) = sequence.last() else { continue };
            let Some(tail) = sequence.iter().position(|entry| entry.at == head.tail) else {
                continue;
            };
            let better = |best: &Vec<Entry>| best.last().map(|e| e.sequence) < Some(head.sequence);
            if best.as_ref().is_none_or(better) {
                best = Some(sequence.split_off(tail));
            }
        }
        Ok(best)
    }
}

/// A file as it is after its log was replayed.
pub struct Replayed<R> {
    source: R,
    len: u64,
    /// Pages by their place; `None` for zeros.
    pages: BTreeMap<u64, Option<Box<[u8; SECTOR]>>>,
    /// How many pages were laid.
    laid: u64,
}

impl<R: ReadAt> Replayed<R> {
    /// Reads the log that `header` tells of, if there is one.
    pub(super) fn new(source: R, header: &Header) -> Result<Self, Error> {
        let mut replayed = Self { len: source.len(), source, pages: BTreeMap::new(), laid: 0 };
        if !header.has_log() {
            return Ok(replayed);
        }
        let (from, to) = header.log;
        let len = to - from;
        if len > LOG_MAX || len == 0 {
            let what = format!("expected a log of at most {LOG_MAX} bytes, got {len}");
            return Err(Error::new(ErrorKind::TooLarge, what).at(from));
        }
        check_inside("log", from, len, replayed.len)?;
        let mut ring = Ring { sectors: vec![0; len as usize], guid: header.log_guid };
        replayed
            .source
            .read_exact_at(&mut ring.sectors, from)
            .map_err(|error| Error::read(error, from))?;
        let Some(sequence) = ring.active(from)? else {
            return Err(corrupt("the log that has to be replayed has no valid entries", from));
        };
        for entry in sequence {
            replayed.apply(&ring, entry, from)?;
        }
        Ok(replayed)
    }

    fn apply(&mut self, ring: &Ring, entry: Entry, log_at: u64) -> Result<(), Error> {
        let at = log_at + (entry.at * SECTOR) as u64;
        let file_len = self.source.len();
        if entry.flushed_file_offset > file_len {
            let flushed = entry.flushed_file_offset;
            let what = format!("the file has {file_len} bytes, and had {flushed} by its log");
            return Err(Error::new(ErrorKind::Truncated, what).at(at));
        }
        if entry.last_file_offset > file_len.saturating_add(GROWTH_MAX) {
            let last = entry.last_file_offset;
            let what = format!("the log makes a file of {last} bytes out of {file_len}");
            return Err(Error::new(ErrorKind::TooLarge, what).at(at));
        }
        self.len = self.len.max(entry.last_file_offset);
        let mut data = Ring::data_at(entry);
        for descriptor in ring.descriptors(entry) {
            let offset = descriptor.file_offset.get();
            if &descriptor.signature == b"desc" {
                let mut page = [0; SECTOR];
                page[..8].copy_from_slice(&descriptor.leading);
                page[8..SECTOR - 4].copy_from_slice(&ring.data(data).data);
                page[SECTOR - 4..].copy_from_slice(&descriptor.trailing);
                data += 1;
                self.put(offset, SECTOR as u64, Some(&page), at)?;
            } else {
                self.put(offset, u64::from_le_bytes(descriptor.leading), None, at)?;
            }
        }
        Ok(())
    }

    /// Lays one page, or `len` zeros, over the file. `at` is where the log says so.
    fn put(
        &mut self,
        offset: u64,
        len: u64,
        page: Option<&[u8; SECTOR]>,
        at: u64,
    ) -> Result<(), Error> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !inside || !len.is_multiple_of(SECTOR as u64) {
            let what =
                format!("the log writes {len} bytes to {offset:#x}, not in pages of the file");
            return Err(corrupt(what, at));
        }
        self.laid = self.laid.saturating_add(len / SECTOR as u64);
        if self.laid > PAGES_MAX {
            let what = format!("the log changes more than {PAGES_MAX} pages");
            return Err(Error::new(ErrorKind::TooLarge, what).at(at));
        }
        for offset in (offset..offset + len).step_by(SECTOR) {
            self.pages.insert(offset, page.map(|page| Box::new(*page)));
        }
        Ok(())
    }
}

impl<R: ReadAt> ReadAt for Replayed<R> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let stored = self.source.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        if stored > 0 {
            self.source.read_exact_at(&mut buf[..stored], offset)?;
        }
        buf[stored..].fill(0);
        let first = offset - offset % SECTOR as u64;
        for (at, page) in self.pages.range(first..end) {
            let (from, to) = ((*at).max(offset), (at + SECTOR as u64).min(end));
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match page {
                Some(page) => part.copy_from_slice(&page[(from - at) as usize..(to - at) as usize]),
                None => part.fill(0),
            }
        }
        Ok(())
    }
}

impl<R> fmt::Debug for Replayed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replayed")
            .field("len", &self.len)
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}
