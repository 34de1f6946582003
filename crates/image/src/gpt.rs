//! Moves the backup of a GUID partition table to the end of a disk that was grown (UEFI Specification
//! 2.10, §5.3), as `sgdisk -e` does. Partitions stay as they are.
//!
//! The backup is written first and made durable, then the primary header, a single sector: after a
//! power cut at any point the table is the old one or the new one, and the same call finishes the move.

use flate2::Crc;

use crate::error::{corrupt, too_large};
use crate::{Error, ErrorKind, ReadAt, WriteAt};

/// What a header begins with (§5.3.2, table 5-5).
const SIGNATURE: &[u8] = b"EFI PART";
/// Where its fields are.
const HEADER_SIZE: usize = 12;
const HEADER_CRC: usize = 16;
const MY_LBA: usize = 24;
const ALTERNATE_LBA: usize = 32;
const FIRST_USABLE: usize = 40;
const LAST_USABLE: usize = 48;
const ENTRIES_LBA: usize = 72;
const ENTRY_COUNT: usize = 80;
const ENTRY_SIZE: usize = 84;
const ENTRIES_CRC: usize = 88;
/// How long a header is at least.
const HEADER_MIN: usize = 92;
/// How long an entry is at least, and where its last sector is (§5.3.3, table 5-6).
const ENTRY_MIN: usize = 128;
const ENTRY_LAST: usize = 40;
/// How many bytes all entries may have. The usual 128 have 16 KiB.
const ENTRIES_MAX: u64 = 1 << 20;
/// The protective MBR (§5.2.3): where its four records are, how long each is, and where in one are
/// its type, its first sector and its length.
const RECORDS: usize = 446;
const RECORD: usize = 16;
const RECORD_TYPE: usize = 4;
const RECORD_START: usize = 8;
const RECORD_LEN: usize = 12;
/// The type of a record that stands for the GPT.
const PROTECTIVE: u8 = 0xee;

/// What became of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The disk has no GUID partition table.
    NoTable,
    /// It is where it belongs, and whole.
    InPlace,
    /// It was written.
    To {
        /// The sector where the header said that it was,
        from: u64,
        /// and where it is now.
        to: u64,
    },
}

/// Moves the backup of the partition table to the end of `disk`, which has `size` bytes in sectors of
/// `sector` bytes (512 or 4096). What it was before stays where it is, in what is free space by now.
///
/// Fails with [`ErrorKind::Corrupt`] if the primary table is damaged, and with
/// [`ErrorKind::Mismatch`] if the table was made for sectors of another size or a partition ends
/// beyond the disk. Nothing has been written then.
pub fn relocate_backup(
    disk: &(impl ReadAt + WriteAt + ?Sized),
    size: u64,
    sector: u32,
) -> Result<Moved, Error> {
    if !matches!(sector, 512 | 4096) {
        let what = format!("expected sectors of 512 or 4096 bytes, got {sector}");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let sector = u64::from(sector);
    let Some(mut primary) = Table::primary(disk, size, sector)? else { return Ok(Moved::NoTable) };
    let from = primary.number(ALTERNATE_LBA);
    let (backup, to) = primary.moved(size)?;
    let mbr = protect(disk, to, sector)?;
    if from == to && mbr.is_none() && primary.header_is_new() && backup.is_at(disk, to) {
        return Ok(Moved::InPlace);
    }
    let write = |bytes: &[u8], lba: u64| disk.write_all_at(bytes, lba * sector);
    let write_all = || {
        write(&backup.entries, backup.number(ENTRIES_LBA))?;
        write(&backup.header, to)?;
        disk.sync()?;
        write(&primary.header, 1)?;
        if let Some(mbr) = mbr {
            write(&mbr, 0)?;
        }
        disk.sync()
    };
    write_all().map_err(Error::write)?;
    Ok(Moved::To { from, to })
}

/// A header and the entries that belong to it, in whole sectors.
#[derive(Clone)]
struct Table {
    sector: u64,
    header: Vec<u8>,
    entries: Vec<u8>,
    /// The header as it was read.
    read: Vec<u8>,
}

impl Table {
    /// Reads the table at the beginning of `disk` and checks it. `None` if there is none.
    fn primary(
        disk: &(impl ReadAt + ?Sized),
        size: u64,
        sector: u64,
    ) -> Result<Option<Self>, Error> {
        if size < 3 * sector {
            return Ok(None);
        }
        let header = read(disk, sector, sector)?;
        if !header.starts_with(SIGNATURE) {
            return refuse_other(disk, size, sector).map(|()| None);
        }
        let mut table = Self { sector, read: header.clone(), header, entries: Vec::new() };
        table.check_header(1)?;
        let len = table.entries_len()?;
        let entries = table.number(ENTRIES_LBA);
        let first = table.number(FIRST_USABLE);
        if entries < 2 || entries.saturating_add(len / sector) > first || first >= size / sector {
            let what = "the partition table is damaged: its entries are not before the partitions";
            return Err(corrupt(what, sector + ENTRIES_LBA as u64));
        }
        table.entries = read(disk, entries * sector, len)?;
        if table.entries_crc() != table.word(ENTRIES_CRC) {
            let what = "the partition table is damaged: the checksum of its entries does not match";
            return Err(corrupt(what, entries * sector));
        }
        Ok(Some(table))
    }

    /// Checks the header, which stands at `lba`.
    fn check_header(&self, lba: u64) -> Result<(), Error> {
        let at = lba * self.sector;
        let len = self.word(HEADER_SIZE) as usize;
        if len < HEADER_MIN || len > self.header.len() {
            let what = format!("the partition table is damaged: its header has {len} bytes");
            return Err(corrupt(what, at + HEADER_SIZE as u64));
        }
        if self.header_crc() != self.word(HEADER_CRC) {
            let what = "the partition table is damaged: the checksum of its header does not match";
            return Err(corrupt(what, at));
        }
        if self.number(MY_LBA) != lba {
            let what = "the partition table is damaged: its header belongs elsewhere";
            return Err(corrupt(what, at + MY_LBA as u64));
        }
        Ok(())
    }

    /// How long the entries are, in whole sectors.
    fn entries_len(&self) -> Result<u64, Error> {
        let (count, size) = (u64::from(self.word(ENTRY_COUNT)), u64::from(self.word(ENTRY_SIZE)));
        if size < ENTRY_MIN as u64 || size % 8 != 0 {
            let what =
                format!("the partition table is damaged: its entries have {size} bytes each");
            return Err(corrupt(what, self.sector + ENTRY_SIZE as u64));
        }
        match count * size {
            len if len > ENTRIES_MAX => {
                let what = format!("the partition table has {count} entries of {size} bytes");
                Err(too_large(what, self.sector + ENTRY_COUNT as u64))
            }
            len => Ok(len.next_multiple_of(self.sector)),
        }
    }

    /// Changes the header for a disk of `size` bytes. Gives the backup, and where it belongs.
    fn moved(&mut self, size: u64) -> Result<(Self, u64), Error> {
        let last = size / self.sector - 1;
        let entries = last.saturating_sub(self.entries.len() as u64 / self.sector);
        let used_end = self.used().map(|entry| number(entry, ENTRY_LAST)).max();
        let needed = used_end.unwrap_or_default().max(self.number(FIRST_USABLE));
        if entries <= needed {
            let what = format!(
                "expected a disk with room for its partitions, up to sector {needed}, and for the \
                 backup of their table, got one of {} sectors",
                last + 1
            );
            return Err(Error::new(ErrorKind::Mismatch, what));
        }
        self.set(ALTERNATE_LBA, last);
        self.set(LAST_USABLE, entries - 1);
        self.sign();
        let mut backup = self.clone();
        backup.set(MY_LBA, last);
        backup.set(ALTERNATE_LBA, 1);
        backup.set(ENTRIES_LBA, entries);
        backup.sign();
        Ok((backup, last))
    }

    /// The entries that have a type.
    fn used(&self) -> impl Iterator<Item = &[u8]> {
        let (count, size) = (self.word(ENTRY_COUNT) as usize, self.word(ENTRY_SIZE) as usize);
        self.entries.chunks_exact(size).take(count).filter(|entry| entry[..16] != [0; 16])
    }

    fn header_is_new(&self) -> bool {
        self.header == self.read
    }

    /// True if this is what `disk` has at `lba`.
    fn is_at(&self, disk: &(impl ReadAt + ?Sized), lba: u64) -> bool {
        let same = |bytes: &[u8], lba: u64| {
            read(disk, lba * self.sector, bytes.len() as u64).is_ok_and(|there| there == bytes)
        };
        same(&self.header, lba) && same(&self.entries, self.number(ENTRIES_LBA))
    }

    fn header_crc(&self) -> u32 {
        let mut header = self.header[..self.word(HEADER_SIZE) as usize].to_vec();
        header[HEADER_CRC..HEADER_CRC + 4].fill(0);
        crc32(&header)
    }

    fn entries_crc(&self) -> u32 {
        let len = self.word(ENTRY_COUNT) as usize * self.word(ENTRY_SIZE) as usize;
        crc32(&self.entries[..len])
    }

    fn sign(&mut self) {
        let crc = self.header_crc();
        self.header[HEADER_CRC..HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }

    fn number(&self, at: usize) -> u64 {
        number(&self.header, at)
    }

    fn word(&self, at: usize) -> u32 {
        word(&self.header, at)
    }

    fn set(&mut self, at: usize, value: u64) {
        self.header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// Refuses a disk without a header where one should be: of other sectors, or lost.
fn refuse_other(disk: &(impl ReadAt + ?Sized), size: u64, sector: u64) -> Result<(), Error> {
    let other = if sector == 512 { 4096 } else { 512 };
    if size >= 2 * other && read(disk, other, SIGNATURE.len() as u64)? == SIGNATURE {
        let what = format!(
            "the partition table was made for sectors of {other} bytes, and the disk has sectors of \
             {sector}"
        );
        return Err(Error::new(ErrorKind::Mismatch, what).at(other));
    }
    if records(&read(disk, 0, 512)?).any(|record| record[RECORD_TYPE] == PROTECTIVE) {
        let what = "the partition table is damaged: the MBR tells of a GPT, which is not there";
        return Err(corrupt(what, sector));
    }
    Ok(())
}

/// The protective MBR for a disk whose last sector is `last`, if it has to be changed. One that has
/// partitions of its own is left alone.
fn protect(
    disk: &(impl ReadAt + ?Sized),
    last: u64,
    sector: u64,
) -> Result<Option<Vec<u8>>, Error> {
    let mut mbr = read(disk, 0, sector)?;
    let len = u32::try_from(last).unwrap_or(u32::MAX);
    let used: Vec<_> = records(&mbr).map(|record| record[RECORD_TYPE] != 0).collect();
    let Some(at) = used.iter().position(|used| *used) else { return Ok(None) };
    let record = &mut mbr[RECORDS + at * RECORD..][..RECORD];
    let ours = record[RECORD_TYPE] == PROTECTIVE && word(record, RECORD_START) == 1;
    if !ours || used[at + 1..].contains(&true) || word(record, RECORD_LEN) == len {
        return Ok(None);
    }
    record[RECORD_LEN..].copy_from_slice(&len.to_le_bytes());
    Ok(Some(mbr))
}

/// The records of an MBR; none if it is not one.
fn records(mbr: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = if mbr[510..512] == [0x55, 0xaa] { 4 } else { 0 };
    mbr[RECORDS..510].chunks_exact(RECORD).take(count)
}

fn read(disk: &(impl ReadAt + ?Sized), offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len as usize];
    disk.read_exact_at(&mut bytes, offset).map_err(|error| Error::read(error, offset))?;
    Ok(bytes)
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "`sgdisk` is the oracle of these tests")]

    use std::io::{self, Cursor};
    use std::process::Command;
    use std::sync::Mutex;

    use bootyard_testkit::require_tool;
    use gptman::{GPT, GPTPartitionEntry};

    use super::*;

    /// How large a disk is before and after.
    const OLD: usize = 6 << 20;
    const NEW: usize = 9 << 20;

    /// What was written, and where.
    type Write = (usize, Vec<u8>);

    /// Storage in memory, of a fixed length, that notes what is written and when it is synced.
    #[derive(Default)]
    struct Noted {
        bytes: Mutex<Vec<u8>>,
        /// Writes since the last sync, then a sync, and so on.
        epochs: Mutex<Vec<Vec<Write>>>,
    }

    impl Noted {
        fn new(bytes: Vec<u8>) -> Self {
            Self { bytes: Mutex::new(bytes), epochs: Mutex::new(vec![Vec::new()]) }
        }
    }

    impl ReadAt for Noted {
        fn len(&self) -> u64 {
            self.bytes.lock().unwrap().len() as u64
        }

        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.bytes.lock().unwrap().read_exact_at(buf, offset)
        }
    }

    impl WriteAt for Noted {
        fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
            let offset = offset as usize;
            self.bytes.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
            self.epochs.lock().unwrap().last_mut().unwrap().push((offset, data.to_vec()));
            Ok(())
        }

        fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
            self.write_all_at(&vec![0; len as usize], offset)
        }

        fn sync(&self) -> io::Result<()> {
            self.epochs.lock().unwrap().push(Vec::new());
            Ok(())
        }
    }

    /// A disk of `len` bytes with two partitions.
    fn partitioned(len: usize, sector: u64) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; len]);
        let mut gpt = GPT::new_from(&mut disk, sector, [7; 16]).unwrap();
        for (index, (first, last)) in [(512, 700), (800, 1000)].into_iter().enumerate() {
            gpt[index as u32 + 1] = GPTPartitionEntry {
                partition_type_guid: [0xaf; 16],
                unique_partition_guid: [index as u8 + 1; 16],
                starting_lba: first,
                ending_lba: last,
                attribute_bits: 0,
                partition_name: "disk".into(),
            };
        }
        gpt.write_into(&mut disk).unwrap();
        GPT::write_protective_mbr_into(&mut disk, sector).unwrap();
        disk.into_inner()
    }

    fn grown(sector: u64) -> Vec<u8> {
        let mut disk = partitioned(OLD, sector);
        disk.resize(NEW, 0);
        disk
    }

    fn relocate(disk: Vec<u8>, sector: u64) -> (Result<Moved, Error>, Vec<u8>) {
        let disk = Noted::new(disk);
        let size = disk.len();
        (relocate_backup(&disk, size, sector as u32), disk.bytes.into_inner().unwrap())
    }

    /// What `sgdisk` finds wrong with a disk of 512-byte sectors.
    fn sgdisk(disk: &[u8], option: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), disk).unwrap();
        let output = Command::new("sgdisk").arg(option).arg(file.path()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_backup_moves_to_the_new_end() {
        for sector in [512, 4096] {
            let (moved, disk) = relocate(grown(sector), sector);
            let [from, to] = [OLD, NEW].map(|len| len as u64 / sector - 1);
            assert_eq!(moved.unwrap(), Moved::To { from, to });
            let mut cursor = Cursor::new(&disk);
            let gpt = GPT::read_from(&mut cursor, sector).unwrap();
            assert!(gpt.is_primary());
            assert_eq!(gpt.header.backup_lba, to);
            let entries = (128 * 128_u64).div_ceil(sector);
            assert_eq!(gpt.header.last_usable_lba, to - entries - 1);
            assert_eq!((gpt[1].starting_lba, gpt[2].ending_lba), (512, 1000));
            // The backup alone says the same.
            let mut lost = disk.clone();
            lost[sector as usize..][..512].fill(0);
            let backup = GPT::read_from(&mut Cursor::new(&lost), sector).unwrap();
            assert!(backup.is_backup());
            assert_eq!(backup.header.last_usable_lba, gpt.header.last_usable_lba);
            assert_eq!(word(&disk, RECORDS + RECORD_LEN), to as u32);
            assert_eq!(relocate(disk.clone(), sector), (Ok(Moved::InPlace), disk));
        }
    }

    #[test]
    fn sgdisk_finds_no_problems() {
        if !require_tool("sgdisk") {
            return;
        }
        assert!(sgdisk(&partitioned(OLD, 512), "-v").contains("No problems found"));
        assert!(!sgdisk(&grown(512), "-v").contains("No problems found"));
        let (_, disk) = relocate(grown(512), 512);
        let found = sgdisk(&disk, "-v");
        assert!(found.contains("No problems found"), "{found}");
        // It does the same itself.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), grown(512)).unwrap();
        Command::new("sgdisk").arg("-e").arg(file.path()).output().unwrap();
        let theirs = fs_err::read(file.path()).unwrap();
        assert!(theirs[512..] == disk[512..]);
        assert_eq!(theirs[RECORDS + RECORD_LEN..][..4], disk[RECORDS + RECORD_LEN..][..4]);
    }

    #[test]
    fn a_power_cut_leaves_a_table_that_can_be_moved() {
        for sector in [512, 4096] {
            let disk = Noted::new(grown(sector));
            relocate_backup(&disk, NEW as u64, sector as u32).unwrap();
            let whole = disk.bytes.into_inner().unwrap();
            let epochs = disk.epochs.into_inner().unwrap();
            assert_eq!(epochs.len(), 3);
            let mut durable = grown(sector);
            for writes in epochs {
                let sectors: Vec<_> = writes
                    .iter()
                    .flat_map(|(at, data)| {
                        data.chunks(sector as usize)
                            .enumerate()
                            .map(move |(index, part)| (at + index * sector as usize, part))
                    })
                    .collect();
                // Any sectors of what is not yet durable: each alone, all but each, every other.
                for kept in 0..sectors.len() * 2 + 2 {
                    let mut left = durable.clone();
                    for (index, (at, part)) in sectors.iter().enumerate() {
                        let keep = match kept.checked_sub(sectors.len() * 2) {
                            Some(odd) => index % 2 == odd,
                            None => (kept / 2 == index) == (kept % 2 == 0),
                        };
                        if keep {
                            left[*at..at + part.len()].copy_from_slice(part);
                        }
                    }
                    let gpt = GPT::read_from(&mut Cursor::new(&left), sector).unwrap();
                    assert!(gpt.is_primary());
                    let (moved, again) = relocate(left, sector);
                    assert!(moved.is_ok() && again == whole);
                }
                for (at, data) in writes {
                    durable[at..at + data.len()].copy_from_slice(&data);
                }
            }
        }
    }

    #[test]
    fn what_is_no_table_is_left_and_what_is_damaged_refused() {
        for len in [0, 512, 1024, OLD] {
            assert_eq!(relocate(vec![0; len], 512), (Ok(Moved::NoTable), vec![0; len]));
        }
        let mut mbr = vec![0; OLD];
        mbr[RECORDS + RECORD_TYPE] = 0x83;
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(relocate(mbr, 512).0, Ok(Moved::NoTable));
        for (at, value, message) in [
            (512, 0, "the MBR tells of a GPT, which is not there"),
            (512 + HEADER_SIZE, 91, "its header has 91 bytes"),
            (512 + HEADER_CRC, 0, "the checksum of its header does not match"),
            (512 + LAST_USABLE, 0, "the checksum of its header does not match"),
            (1024 + 3, 0, "the checksum of its entries does not match"),
            (1024 + 128 * 127, 1, "the checksum of its entries does not match"),
        ] {
            let mut disk = grown(512);
            disk[at] = value;
            let (error, after) = relocate(disk.clone(), 512);
            let text = error.unwrap_err().to_string();
            assert!(text.starts_with("the partition table is damaged: "), "{text}");
            assert!(text.contains(message), "{text}");
            assert!(after == disk, "nothing is written");
        }
        for (at, value, message) in [
            (MY_LBA, 2, "its header belongs elsewhere"),
            (ENTRIES_LBA, 1, "its entries are not before the partitions"),
            (ENTRIES_LBA + 7, 0xff, "its entries are not before the partitions"),
            (FIRST_USABLE + 5, 1, "its entries are not before the partitions"),
            (ENTRY_SIZE, 0, "its entries have 0 bytes each"),
            (ENTRY_COUNT + 3, 1, "the partition table has 16777344 entries of 128 bytes"),
        ] {
            let mut table = Table::primary(&grown(512), NEW as u64, 512).unwrap().unwrap();
            table.header[at] = value;
            table.sign();
            let mut disk = grown(512);
            disk[512..1024].copy_from_slice(&table.header);
            let text = relocate(disk, 512).0.unwrap_err().to_string();
            assert!(text.contains(message), "{text}");
        }
    }

    #[test]
    fn a_table_of_other_sectors_or_a_larger_disk_is_refused() {
        for (sector, other) in [(512, 4096), (4096, 512)] {
            let error = relocate(grown(sector), other).0.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        }
        let mut disk = partitioned(OLD, 512);
        disk.truncate(1020 * 512);
        let error = relocate(disk, 512).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        let error = relocate_backup(&Noted::new(grown(512)), NEW as u64, 520).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    /// So that results can be compared.
    impl PartialEq for Error {
        fn eq(&self, other: &Self) -> bool {
            self.to_string() == other.to_string()
        }
    }
}
