//! The partitions of a disk: GPT (UEFI 2.10, §5.3), primary partitions of an MBR, or the whole disk
//! as one file system. Type codes are not looked at: images label their partitions too freely.

use std::cell::Cell;
use std::io::Cursor;
use std::rc::Rc;
use std::sync::Arc;

use bootyard_image::Disk;
use gptman::{GPTHeader, GPTPartitionEntry};

use crate::{Error, ErrorKind};

/// Entries of a GPT that are read. Tables have 128 in practice.
const GPT_ENTRIES_MAX: u32 = 256;
/// Bytes of one GPT entry; the specification allows multiples that nobody writes.
const GPT_ENTRY_LEN: u32 = 128;
/// Bytes that are read of the sector with the GPT header, of which 92 are in use.
const GPT_HEADER_LEN: usize = 512;
/// Logical sectors in which partition tables are written: nearly all images, and 4K-native disks.
const SECTOR_SIZES: [u64; 2] = [512, 4096];

/// Which table names a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Gpt,
    Mbr,
    WholeDisk,
}

/// A run of bytes of the disk that may hold a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) table: Table,
    /// Counted from 1 as Linux does; 0 for the whole disk.
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Partition {
    /// The name by which GRUB knows it on the first disk: `hd0,gpt3`.
    pub(crate) fn device(&self) -> String {
        match self.table {
            Table::Gpt => format!("hd0,gpt{}", self.number),
            Table::Mbr => format!("hd0,msdos{}", self.number),
            Table::WholeDisk => "hd0".to_owned(),
        }
    }
}

/// The words for a partition in messages.
impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.table {
            Table::WholeDisk => f.write_str("whole disk"),
            Table::Gpt | Table::Mbr => write!(f, "partition {}", self.number),
        }
    }
}

/// Bytes that may be read of one disk: what boots needs a few hundred MiB at most, and a damaged
/// structure that leads in circles ends here.
const READ_MAX: u64 = 4 << 30;

/// How much of the disk may still be read, by all who read it.
#[derive(Clone)]
pub(crate) struct Budget(Rc<Cell<u64>>);

impl Budget {
    /// Enough for what boots.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Cell::new(READ_MAX)))
    }

    /// Each reading counts as a sector at least.
    fn take(&self, len: u64) -> Result<(), Error> {
        let left = self.0.get().checked_sub(len.max(SECTOR_SIZES[0]));
        self.0.set(left.ok_or_else(|| {
            let what = format!("more than {READ_MAX} bytes of the disk were read");
            Error::new(ErrorKind::TooLarge, what)
        })?);
        Ok(())
    }
}

/// The bytes of one partition.
#[derive(Clone)]
pub(crate) struct Region {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
    budget: Budget,
}

impl Region {
    /// The bytes of `partition`, or nothing if it reaches beyond the end of the disk.
    pub(crate) fn of(disk: &Arc<dyn Disk>, partition: &Partition, budget: &Budget) -> Option<Self> {
        let end = partition.start.checked_add(partition.len)?;
        let (disk, budget) = (Arc::clone(disk), budget.clone());
        let region = Self { start: partition.start, len: partition.len, budget, disk };
        (end <= region.disk.virtual_size()).then_some(region)
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            let what = format!("expected offsets below {}, got {offset}", self.len);
            return Err(Error::new(ErrorKind::Read, what));
        }
        self.budget.take(buf.len() as u64)?;
        let read = self.disk.read_at(buf, self.start + offset);
        read.map_err(|error| Error::read("reading the disk failed", error))
    }

    /// `len` bytes at `offset`. The caller has a limit for `len`.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.read(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// The partitions of `disk` in the order of their numbers, or the whole disk if it has no table.
pub(crate) fn partitions(disk: &dyn Disk) -> Result<Vec<Partition>, Error> {
    for sector in SECTOR_SIZES {
        if let Some(found) = gpt(disk, sector)? {
            return Ok(found);
        }
    }
    if let Some(found) = mbr(disk)? {
        return Ok(found);
    }
    let len = disk.virtual_size();
    Ok(vec![Partition { table: Table::WholeDisk, number: 0, start: 0, len }])
}

/// Reads the primary table, or the copy at the end of the disk where that one is damaged.
fn gpt(disk: &dyn Disk, sector: u64) -> Result<Option<Vec<Partition>>, Error> {
    let last = (disk.virtual_size() / sector).saturating_sub(1);
    for lba in [1, last] {
        let Some(bytes) = read(disk, lba * sector, GPT_HEADER_LEN)? else { continue };
        let Ok(mut header) = GPTHeader::read_from(&mut Cursor::new(bytes)) else { continue };
        // gptman allocates by the header's count and multiplies its sector number unchecked: the
        // entries are therefore read here, and handed to it as a table at sector 0.
        let (count, size) = (header.number_of_partition_entries, header.size_of_partition_entry);
        if count > GPT_ENTRIES_MAX || size != GPT_ENTRY_LEN {
            continue;
        }
        let Some(place) = header.partition_entry_lba.checked_mul(sector) else { continue };
        let Some(mut entries) = read(disk, place, (count * size) as usize)? else { continue };
        // It also reads as many bytes as its own type has, which are more than an entry's.
        entries.resize(entries.len() + size_of::<GPTPartitionEntry>(), 0);
        header.partition_entry_lba = 0;
        if let Ok(entries) = header.read_partitions(&mut Cursor::new(entries), sector) {
            return Ok(Some(in_use(&entries, sector)));
        }
    }
    Ok(None)
}

fn in_use(entries: &[GPTPartitionEntry], sector: u64) -> Vec<Partition> {
    let partition = |(number, entry): (u32, &GPTPartitionEntry)| {
        let sectors = entry.ending_lba.checked_sub(entry.starting_lba)?.checked_add(1)?;
        let (start, len) = (entry.starting_lba.checked_mul(sector)?, sectors.checked_mul(sector)?);
        entry.is_used().then_some(Partition { table: Table::Gpt, number, start, len })
    };
    (1..).zip(entries).filter_map(partition).collect()
}

/// Reads the four primary partitions. The boot sector of a bare file system ends in the same two
/// bytes, so each status byte must be one of the two that are allowed.
fn mbr(disk: &dyn Disk) -> Result<Option<Vec<Partition>>, Error> {
    const PROTECTIVE: u8 = 0xee;
    let Some(head) = read(disk, 0, 512)? else { return Ok(None) };
    let entries: Vec<&[u8]> = head[446..510].chunks_exact(16).collect();
    if head[510..] != [0x55, 0xaa] || entries.iter().any(|entry| entry[0] & 0x7f != 0) {
        return Ok(None);
    }
    let partition = |(number, entry): (u32, &&[u8])| {
        let field = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let (start, len) = (u64::from(field(8)) * 512, u64::from(field(12)) * 512);
        let used = entry[4] != 0 && entry[4] != PROTECTIVE && len > 0;
        used.then_some(Partition { table: Table::Mbr, number, start, len })
    };
    let found: Vec<Partition> = (1..).zip(&entries).filter_map(partition).collect();
    Ok((!found.is_empty()).then_some(found))
}

/// Reads bytes of the disk, or nothing where the disk is too short for them.
fn read(disk: &dyn Disk, offset: u64, len: usize) -> Result<Option<Vec<u8>>, Error> {
    let end = offset.checked_add(len as u64);
    if end.is_none_or(|end| end > disk.virtual_size()) {
        return Ok(None);
    }
    let mut buf = vec![0; len];
    match disk.read_at(&mut buf, offset) {
        Ok(()) => Ok(Some(buf)),
        Err(error) => Err(Error::read("reading the partition table failed", error)),
    }
}
