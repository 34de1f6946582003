//! Disks whose image has one flat table, with an entry for each block of the disk that says where
//! the block is in the file. VDI, VHD, VHDX and Parallels are such; each turns entries of its own
//! kind into these. Knows no format.

use std::fmt;

use crate::error::corrupt;
use crate::raw::check_range;
use crate::stream::{Layout, Place, Wants};
use crate::{Disk, Error, ErrorKind, Extent, Info, ReadAt};

/// A table has at most this many entries, and so takes at most 16 MiB of memory, twice for a
/// moment: 4 TiB with blocks of 1 MiB.
const ENTRIES_MAX: u64 = 4 << 20;
/// Tables are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;
/// An extent is not looked for farther than this many blocks, so that asking stays cheap.
const EXTENT_BLOCKS_MAX: usize = 1 << 16;
/// A block that is nowhere: it reads as zeros.
const HOLE: u32 = u32::MAX;

/// What the entries of a table mean.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    /// The size of the disk.
    pub(crate) virtual_size: u64,
    /// The bytes of the disk that an entry is for.
    pub(crate) block: u64,
    /// Entries count in units of this many bytes,
    pub(crate) unit: u64,
    /// from this place in the file.
    pub(crate) base: u64,
    /// What belongs to the block in the file and stands before its data.
    pub(crate) lead: u64,
    /// Where the table is, and how it is laid out.
    pub(crate) table: Table,
    /// Parts of the file that hold no blocks: from, to, and what they are.
    pub(crate) reserved: Vec<(u64, u64, &'static str)>,
}

/// The place of a table in the file, and its entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Its first byte.
    pub(crate) at: u64,
    /// The bytes of an entry.
    pub(crate) entry: u64,
    /// After this many entries comes one that is for no block; `u64::MAX` for no such ones.
    pub(crate) chunk: u64,
    /// Tells by an entry, and by its offset for errors, where a block is, in units; `None` for
    /// zeros.
    pub(crate) decode: fn(&[u8], u64) -> Result<Option<u32>, Error>,
}

impl Table {
    /// Where the entry for block `index` is.
    const fn entry_at(&self, index: u64) -> u64 {
        self.at + (index + index / self.chunk) * self.entry
    }
}

impl Geometry {
    /// How many blocks the disk has.
    pub(crate) const fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block)
    }

    /// How many bytes of the table are for the blocks that the disk has.
    pub(crate) const fn table_len(&self) -> u64 {
        match self.blocks() {
            0 => 0,
            blocks => self.table.entry_at(blocks - 1) + self.table.entry - self.table.at,
        }
    }

    fn host(&self, entry: u32) -> u64 {
        self.base + u64::from(entry) * self.unit
    }
}

/// The table of one image, entry by entry, each checked as it comes.
#[derive(Debug)]
pub(crate) struct BlockMap {
    geometry: Geometry,
    entries: Vec<u32>,
    /// How many bytes of the table were taken.
    taken: u64,
    /// How many runs the entries so far are, at most.
    runs: usize,
}

/// Blocks that follow each other on the disk and in the file, or zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    guest: u64,
    len: u64,
    /// Where they are; `None` for zeros.
    host: Option<u64>,
}

impl BlockMap {
    /// A map without entries yet.
    pub(crate) fn new(geometry: Geometry) -> Result<Self, Error> {
        let blocks = geometry.blocks();
        if blocks > ENTRIES_MAX {
            let what = format!("expected at most {ENTRIES_MAX} blocks, got {blocks}");
            return Err(Error::new(ErrorKind::TooLarge, what).at(geometry.table.at));
        }
        Ok(Self { geometry, entries: Vec::new(), taken: 0, runs: 0 })
    }

    /// Takes the next bytes of the table, whole entries, and checks each. The last ones make the
    /// map complete, which is checked then: see [`BlockMap::check_apart`].
    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let table = self.geometry.table;
        for entry in bytes.chunks_exact(table.entry as usize) {
            let at = table.at + self.taken;
            self.taken += table.entry;
            if table.entry_at(self.entries.len() as u64) == at {
                let entry = (table.decode)(entry, at)?;
                self.push(entry)?;
            }
        }
        if self.is_complete() { self.check_apart() } else { Ok(()) }
    }

    /// True if every block of the disk has its entry.
    const fn is_complete(&self) -> bool {
        self.taken == self.geometry.table_len()
    }

    fn push(&mut self, entry: Option<u32>) -> Result<(), Error> {
        let last = self.entries.last().copied();
        let geometry = &self.geometry;
        let Some(entry) = entry else {
            self.runs += usize::from(last != Some(HOLE));
            self.entries.push(HOLE);
            return Ok(());
        };
        let follows = |last| geometry.host(last) + geometry.block == geometry.host(entry);
        self.runs += usize::from(geometry.lead > 0 || last.is_none_or(|last| !follows(last)));
        let index = self.entries.len() as u64;
        let begin = geometry.host(entry);
        let end = begin + geometry.lead + geometry.block;
        let overlaps = |(from, to, _): &&(u64, u64, &str)| begin < *to && *from < end;
        if let Some((_, _, what)) = geometry.reserved.iter().find(overlaps) {
            let what = format!("block {index} at {begin:#x} overlaps the {what}");
            return Err(corrupt(what, geometry.table.entry_at(index)));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Checks that no two blocks share bytes of the file: a write to one part of the disk would
    /// appear in another, and a small file could claim to hold any amount of data.
    fn check_apart(&self) -> Result<(), Error> {
        let geometry = &self.geometry;
        let mut used: Vec<u32> = self.entries.iter().copied().filter(|e| *e != HOLE).collect();
        used.sort_unstable();
        let span = geometry.lead + geometry.block;
        let share = |pair: &&[u32]| u64::from(pair[1] - pair[0]) * geometry.unit < span;
        let Some(pair) = used.windows(2).find(share) else { return Ok(()) };
        let index = self.entries.iter().rposition(|entry| pair.contains(entry)).unwrap_or(0);
        let at = geometry.host(self.entries[index]);
        let what = format!("block {index} at {at:#x} shares bytes with another block");
        Err(corrupt(what, geometry.table.entry_at(index as u64)))
    }

    /// Checks that every block is in a file of `len` bytes; of the last one, what the disk has.
    fn check_inside(&self, len: u64) -> Result<(), Error> {
        let geometry = &self.geometry;
        for (from, to, what) in &geometry.reserved {
            check_inside(what, *from, to - from, len)?;
        }
        for (index, entry) in (0..).zip(&self.entries) {
            let stored = geometry.block.min(geometry.virtual_size - index * geometry.block);
            if *entry != HOLE && geometry.host(*entry) + geometry.lead + stored > len {
                let host = geometry.host(*entry);
                let what = format!("block {index} at {host:#x} ends beyond the file of {len}");
                let at = geometry.table.entry_at(index);
                return Err(Error::new(ErrorKind::Truncated, what).at(at));
            }
        }
        Ok(())
    }

    /// How many bytes of the disk are stored.
    fn allocated(&self) -> u64 {
        let blocks = self.entries.iter().filter(|entry| **entry != HOLE).count() as u64;
        (blocks * self.geometry.block).min(self.geometry.virtual_size)
    }

    /// The run that begins with block `index`.
    fn run(&self, index: usize, blocks_max: usize) -> Run {
        let Geometry { virtual_size, block, lead, .. } = self.geometry;
        let first = self.entries[index];
        let host = (first != HOLE).then(|| self.geometry.host(first) + lead);
        let follows = |(count, entry): (u64, &u32)| match host {
            None => *entry == HOLE,
            Some(host) => {
                *entry != HOLE && self.geometry.host(*entry) + lead == host + count * block
            }
        };
        let rest = self.entries[index..].iter().take(blocks_max.max(1));
        let count = (0..).zip(rest).take_while(|next| follows(*next)).count() as u64;
        let guest = index as u64 * block;
        Run { guest, len: (count * block).min(virtual_size - guest), host }
    }

    /// All runs of the disk in their order.
    fn runs(&self) -> impl Iterator<Item = Run> {
        let mut index = 0;
        std::iter::from_fn(move || {
            let run = (index < self.entries.len()).then(|| self.run(index, usize::MAX))?;
            index += run.len.div_ceil(self.geometry.block) as usize;
            Some(run)
        })
    }
}

/// Checks that a table or header is in a file of `file_len` bytes.
pub(crate) fn check_inside(what: &str, at: u64, len: u64, file_len: u64) -> Result<(), Error> {
    match at.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => {
            let what = format!("the {what} of {len} bytes ends beyond the file of {file_len}");
            Err(Error::new(ErrorKind::Truncated, what).at(at))
        }
    }
}

/// A disk in an image with a flat table.
pub struct BlockDisk<R> {
    source: R,
    map: BlockMap,
}

impl Info {
    /// Adds what opening the image told.
    pub(crate) fn take_disk<R>(&mut self, opened: Result<BlockDisk<R>, Error>) {
        let opened = opened.map(|disk| disk.map.allocated());
        // What could not be read, because only a part of the file is there, says nothing.
        let refusal = opened.as_ref().err().filter(|error| error.kind() != ErrorKind::Read);
        self.refused = refusal.map(ToString::to_string);
        self.allocated = opened.ok();
    }
}

impl<R: ReadAt> BlockDisk<R> {
    /// Reads the table, and checks it against itself and the file.
    pub(crate) fn open(source: R, geometry: Geometry) -> Result<Self, Error> {
        let (at, len) = (geometry.table.at, geometry.table_len());
        let mut map = BlockMap::new(geometry)?;
        check_inside("block table", at, len, source.len())?;
        let mut piece = vec![0; PIECE.min(len) as usize];
        for begin in (0..len).step_by(PIECE as usize) {
            let piece = &mut piece[..PIECE.min(len - begin) as usize];
            let at = at + begin;
            source.read_exact_at(piece, at).map_err(|error| Error::read(error, at))?;
            map.take(piece)?;
        }
        map.check_inside(source.len())?;
        Ok(Self { source, map })
    }
}

/// The only kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockTable;

impl fmt::Display for BlockTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("block table")
    }
}

/// Decodes from a stream. Data is wanted when the whole table is known to be right.
impl BlockMap {
    /// Wants the table, as its layout's `table`, and lets go what holds no blocks.
    pub(crate) fn want_table<T: Copy>(&self, table: T, wants: &mut Wants<T>) {
        let geometry = &self.geometry;
        wants.table(table, geometry.table.at, geometry.table_len(), (0, 0));
        for (from, to, _) in &geometry.reserved {
            wants.skip(*from, to - from);
        }
    }

    /// Takes a piece of the table.
    pub(crate) fn take_piece<T: Copy>(
        &mut self,
        place: Place,
        bytes: &[u8],
        wants: &mut Wants<T>,
    ) -> Result<(), Error> {
        if place.at != self.geometry.table.at + self.taken {
            let what = "the block table comes in an order that a stream cannot be read in";
            return Err(Error::new(ErrorKind::Unsupported, what).at(place.at));
        }
        self.take(bytes)?;
        if self.is_complete() {
            for Run { guest, len, host } in self.runs() {
                match host {
                    Some(host) => wants.data(host, guest, len),
                    None => wants.zero(guest, len),
                }
            }
        }
        Ok(())
    }

    /// How much a piece of `len` bytes may want.
    pub(crate) const fn most_wants(&self, len: usize) -> usize {
        if self.taken + len as u64 == self.geometry.table_len() {
            self.runs + len / self.geometry.table.entry as usize
        } else {
            0
        }
    }
}

/// A format whose header, in the file's first bytes, tells all but the table.
impl Layout for BlockMap {
    type Table = BlockTable;

    fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size
    }

    fn start(&mut self, wants: &mut Wants<BlockTable>) -> Result<(), Error> {
        self.want_table(BlockTable, wants);
        Ok(())
    }

    fn table(
        &mut self,
        _: BlockTable,
        place: Place,
        bytes: &[u8],
        wants: &mut Wants<BlockTable>,
    ) -> Result<(), Error> {
        self.take_piece(place, bytes, wants)
    }

    fn most_wants(&self, _: BlockTable, len: usize) -> usize {
        self.most_wants(len)
    }

    fn end(&mut self, file_len: u64) -> Result<(), Error> {
        self.check_inside(file_len)
    }
}

impl<R: ReadAt> Disk for BlockDisk<R> {
    fn virtual_size(&self) -> u64 {
        self.map.geometry.virtual_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size(), buf.len() as u64, offset)?;
        let block = self.map.geometry.block;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let blocks = (rest.len() as u64).div_ceil(block) as usize + 1;
            let run = self.map.run((at / block) as usize, blocks);
            let skip = at - run.guest;
            let len = (run.len - skip).min(rest.len() as u64);
            let (part, more) = rest.split_at_mut(len as usize);
            match run.host {
                None => part.fill(0),
                Some(host) => self
                    .source
                    .read_exact_at(part, host + skip)
                    .map_err(|error| Error::read(error, host + skip))?,
            }
            at += len;
            rest = more;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.virtual_size(), 1, offset)?;
        let run = self.map.run((offset / self.map.geometry.block) as usize, EXTENT_BLOCKS_MAX);
        Ok(Extent { len: run.guest + run.len - offset, zero: run.host.is_none() })
    }
}

impl<R> fmt::Debug for BlockDisk<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDisk").field("geometry", &self.map.geometry).finish_non_exhaustive()
    }
}
