//! FAT12, FAT16 and FAT32 with long names (Microsoft's "FAT32 File System Specification" 1.03): EFI
//! system partitions. Names are found without regard to case.

use std::cell::RefCell;

use super::NAMES_MAX;
use super::field::{be16, damaged, le16, le32, slice};
use super::walk::{Inodes, Kind, Rooted};
use crate::partition::Region;
use crate::{Error, ErrorKind};

const BOOT_LEN: usize = 512;
/// Bytes of a directory entry, and of a whole directory (specification, page 33).
const ENTRY: usize = 32;
const DIRECTORY_MAX: usize = ENTRY << 16;
/// A volume with at most so many clusters is FAT12, and one with at most these is FAT16 (page 14).
const FAT12_CLUSTERS: u64 = 4084;
const FAT16_CLUSTERS: u64 = 65524;
/// How much of the table is read at once: entries of 12, 16 and 32 bits all fit a whole number of
/// times.
const CHUNK: u64 = 48 << 10;

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;

/// A mounted FAT.
pub(super) struct Fat {
    region: Region,
    bits: u32,
    cluster_len: u64,
    table_at: u64,
    table_len: u64,
    root: Id,
    root_at: u64,
    data_at: u64,
    clusters: u64,
    serial: u32,
    label: String,
    /// The part of the table that was read last, and where it begins.
    chunk: RefCell<(u64, Vec<u8>)>,
}

/// A file or directory: what its entry says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Id {
    /// Nothing for the root of FAT12 and FAT16, which has a place of its own.
    first: Option<u32>,
    /// Of directories, the most that they may have.
    size: u32,
    is_directory: bool,
}

/// Opens FAT by its boot sector; nothing if there is none.
pub(super) fn open(region: &Region) -> Result<Option<Fat>, Error> {
    if region.len() < BOOT_LEN as u64 {
        return Ok(None);
    }
    let boot = region.bytes(0, BOOT_LEN)?;
    let (sector, cluster) = (u64::from(le16(&boot, 11)?), u64::from(boot[13]));
    let (reserved, tables) = (u64::from(le16(&boot, 14)?), u64::from(boot[16]));
    // Linux takes a volume for FAT by these (`fat_read_bpb`).
    let is_fat = [512, 1024, 2048, 4096].contains(&sector)
        && cluster.is_power_of_two()
        && reserved > 0
        && tables > 0
        && (boot[21] == 0xf0 || boot[21] >= 0xf8)
        && (be16(&boot, 510)? == 0x55aa);
    if !is_fat {
        return Ok(None);
    }
    let is_fat32 = le16(&boot, 22)? == 0;
    let table = if is_fat32 { u64::from(le32(&boot, 36)?) } else { le16(&boot, 22)?.into() };
    let sectors = match le16(&boot, 19)? {
        0 => u64::from(le32(&boot, 32)?),
        sectors => sectors.into(),
    };
    let root_at = reserved + tables * table;
    let root_len = u32::from(le16(&boot, 17)?) * ENTRY as u32;
    let data_at = root_at + u64::from(root_len).div_ceil(sector);
    let Some(data) = sectors.checked_sub(data_at).filter(|_| table > 0) else {
        return Err(damaged(format_args!("FAT's files begin at sector {data_at} of {sectors}")));
    };
    let clusters = data / cluster;
    let bits = match clusters {
        _ if is_fat32 => 32,
        _ if clusters <= FAT12_CLUSTERS => 12,
        _ if clusters <= FAT16_CLUSTERS => 16,
        _ => return Err(damaged(format_args!("{clusters} clusters in a FAT16"))),
    };
    let (first, size) = match is_fat32 {
        true => (Some(le32(&boot, 44)?), DIRECTORY_MAX as u32),
        false => (None, root_len),
    };
    let extended = if is_fat32 { 64 } else { 36 };
    let mut fat = Fat {
        region: region.clone(),
        bits,
        cluster_len: cluster * sector,
        table_at: reserved * sector,
        table_len: table * sector,
        root: Id { first, size, is_directory: true },
        root_at: root_at * sector,
        data_at: data_at * sector,
        clusters,
        serial: le32(&boot, extended + 3)?,
        label: label(slice(&boot, extended + 7, 11)?),
        chunk: RefCell::new((u64::MAX, Vec::new())),
    };
    // The label in the root directory counts more, as for `blkid`.
    let root = fat.bytes(fat.root)?;
    let is_label = |entry: &&[u8]| {
        entry[0] != DELETED
            && entry[11] & (ATTRIBUTE_LABEL | ATTRIBUTE_DIRECTORY) == ATTRIBUTE_LABEL
            && entry[11] & ATTRIBUTE_LONG_NAME != ATTRIBUTE_LONG_NAME
    };
    if let Some(entry) = entries(&root).find(is_label) {
        fat.label = label(&entry[..11]);
    }
    Ok(Some(fat))
}

fn label(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches([' ', '\0']);
    if text == "NO NAME" { String::new() } else { text.to_owned() }
}

impl Fat {
    /// The bytes of a file or directory.
    fn bytes(&self, id: Id) -> Result<Vec<u8>, Error> {
        let size = id.size as usize;
        let Some(first) = id.first else {
            return self.region.bytes(self.root_at, size);
        };
        let (mut bytes, mut next) = (Vec::new(), Some(first).filter(|_| size > 0));
        while let Some(cluster) = next.filter(|_| bytes.len() < size) {
            let Some(number) = u64::from(cluster).checked_sub(2).filter(|n| *n < self.clusters)
            else {
                return Err(damaged(format_args!("FAT has no cluster {cluster}")));
            };
            // Clusters that follow each other are read at once.
            let (mut count, mut last) = (1, cluster);
            next = self.after(cluster)?;
            while let Some(one) = next.filter(|next| Some(*next) == last.checked_add(1)) {
                if bytes.len() as u64 + count * self.cluster_len >= size as u64
                    || number + count >= self.clusters
                {
                    break;
                }
                (count, last) = (count + 1, one);
                next = self.after(one)?;
            }
            let len = (count * self.cluster_len).min((size - bytes.len()) as u64);
            let at = self.data_at + number * self.cluster_len;
            bytes.extend(self.region.bytes(at, len as usize)?);
        }
        if bytes.len() < size && !id.is_directory {
            let what = format_args!("a file has {} of its {size} bytes", bytes.len());
            return Err(damaged(what));
        }
        Ok(bytes)
    }

    /// The cluster that follows in its chain; nothing at the end.
    fn after(&self, cluster: u32) -> Result<Option<u32>, Error> {
        let at = u64::from(cluster) * u64::from(self.bits) / 8;
        let begin = at / CHUNK * CHUNK;
        let mut chunk = self.chunk.borrow_mut();
        if chunk.0 != begin {
            // Two entries of 12 bits share a byte, so one more of them is there.
            let len = self.table_len.saturating_sub(begin).min(CHUNK + 1);
            *chunk = (begin, self.region.bytes(self.table_at + begin, len as usize)?);
        }
        let within = (at - begin) as usize;
        let (value, end) = match self.bits {
            12 if cluster.is_multiple_of(2) => (u32::from(le16(&chunk.1, within)?) & 0xfff, 0xff8),
            12 => (u32::from(le16(&chunk.1, within)?) >> 4, 0xff8),
            16 => (le16(&chunk.1, within)?.into(), 0xfff8),
            _ => (le32(&chunk.1, within)? & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }

    fn id(&self, entry: &[u8]) -> Id {
        let half = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
        let is_directory = entry[11] & ATTRIBUTE_DIRECTORY != 0;
        let size = match is_directory {
            true => DIRECTORY_MAX as u32,
            false => half(28) | half(30) << 16,
        };
        let high = if self.bits == 32 { half(20) << 16 } else { 0 };
        Id { first: Some(half(26) | high), size, is_directory }
    }
}

/// The entries of a directory up to its end, whatever they are.
fn entries(directory: &[u8]) -> impl Iterator<Item = &[u8]> {
    directory.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0)
}

/// The files and directories of a directory: their long names, if they have one, and their entries.
fn named(directory: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let mut long: Vec<[u16; 13]> = Vec::new();
    let mut sum = 0;
    entries(directory).filter_map(move |entry| {
        if entry[11] & 0x3f == ATTRIBUTE_LONG_NAME && entry[0] != DELETED {
            // The last part of the name comes first, and says so.
            if entry[0] & 0x40 != 0 {
                long.clear();
            }
            sum = entry[13];
            if long.len() < 20 {
                long.push(std::array::from_fn(|unit| long_unit(entry, unit)));
            }
            return None;
        }
        let long = std::mem::take(&mut long);
        if entry[0] == DELETED || entry[11] & ATTRIBUTE_LABEL != 0 {
            return None;
        }
        let is_its = entry[..11].iter().fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        let name = if long.is_empty() || is_its != sum { short(entry) } else { join(&long) };
        Some((name, entry))
    })
}

fn long_unit(entry: &[u8], unit: usize) -> u16 {
    let at = match unit {
        0..5 => 1 + 2 * unit,
        5..11 => 4 + 2 * unit,
        _ => 6 + 2 * unit,
    };
    u16::from_le_bytes([entry[at], entry[at + 1]])
}

fn join(parts: &[[u16; 13]]) -> String {
    let units = parts.iter().rev().flatten().copied().take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// A name of eight and three characters. Two bits tell whether its parts are in lower case.
fn short(entry: &[u8]) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end_matches(' ').to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    let (stem, extension) =
        (part(&entry[..8], entry[12] & 0x08 != 0), part(&entry[8..11], entry[12] & 0x10 != 0));
    if extension.is_empty() { stem } else { format!("{stem}.{extension}") }
}

impl Inodes for Fat {
    type Id = Id;

    fn stat(&self, id: Id) -> Result<(Kind, u64), Error> {
        Ok((if id.is_directory { Kind::Directory } else { Kind::File }, id.size.into()))
    }

    fn lookup(&self, directory: Id, name: &str) -> Result<Option<Id>, Error> {
        let bytes = self.bytes(directory)?;
        let mut all = named(&bytes);
        let found = all.find(|(found, entry)| {
            found.eq_ignore_ascii_case(name) || short(entry).eq_ignore_ascii_case(name)
        });
        Ok(found.map(|(_, entry)| self.id(entry)))
    }

    fn list(&self, directory: Id) -> Result<Vec<String>, Error> {
        Ok(named(&self.bytes(directory)?).map(|(name, _)| name).take(NAMES_MAX).collect())
    }

    fn target(&self, _link: Id) -> Result<String, Error> {
        Err(Error::new(ErrorKind::Read, "FAT has no symbolic links"))
    }

    fn content(&self, file: Id, size: u64) -> Result<Vec<u8>, Error> {
        self.bytes(Id { size: u32::try_from(size).unwrap_or(file.size), ..file })
    }
}

impl Rooted for Fat {
    const KIND: &'static str = "FAT";

    fn roots(&self) -> &[Self::Id] {
        std::slice::from_ref(&self.root)
    }

    /// As `blkid` and GRUB print the serial number.
    fn uuid(&self) -> String {
        format!("{:04x}-{:04x}", self.serial >> 16, self.serial & 0xffff)
    }

    fn label(&self) -> &str {
        &self.label
    }
}
