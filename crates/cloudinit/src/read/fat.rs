//! FAT12, FAT16 and FAT32 with long names, as Linux shows them (Microsoft's "FAT32 File System
//! Specification" 1.03).
//!
//! The reader is ours because every byte may be hostile: chains of clusters that lead back into
//! themselves end here with the size of the file, and of the largest directory.

use std::collections::HashSet;

use super::FileSystem;
use super::finds::{CONTENT_MAX, Finds};
use super::media::{Media, u16_at, u32_at};
use crate::Error;

/// Bytes of the boot sector that count.
const BOOT_LEN: usize = 512;

/// Bytes of a directory entry, and most of them in a directory (specification, page 33).
const ENTRY: usize = 32;
const ENTRIES_MAX: usize = 1 << 16;

/// A volume with at most so many clusters is FAT12, and one with fewer than these is FAT16 (page 14).
const FAT12_CLUSTERS: u32 = 4084;
const FAT16_CLUSTERS: u32 = 65525;

/// How much of the table is read at once: entries of 12, 16 and 32 bits all fit a whole number of
/// times.
const CHUNK: u64 = 48 << 10;

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0F;

/// A volume whose boot sector has been read.
pub(super) struct Fat {
    bits: u32,
    cluster_len: usize,
    table_at: u64,
    table_len: u64,
    root: Start,
    data_at: u64,
    clusters: u32,
    /// The label in the boot sector.
    boot_label: [u8; 11],
    /// The part of the table that was read last, and its number.
    chunk: Option<(u64, Vec<u8>)>,
}

/// Where a directory begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Start {
    /// The root of FAT12 and FAT16 has a place of its own.
    Root {
        at: u64,
        len: usize,
    },
    Cluster(u32),
}

impl Fat {
    /// Reads the boot sector; `None` if the image has none of FAT.
    pub(super) fn open(media: &mut Media<'_>) -> Result<Option<Self>, Error> {
        if media.len() < BOOT_LEN as u64 {
            return Ok(None);
        }
        let boot = media.table(&"the boot sector", 0, BOOT_LEN)?;
        let sector = u64::from(u16_at(&boot, 11));
        let (cluster, tables) = (boot[13], boot[16]);
        let reserved = u64::from(u16_at(&boot, 14));
        // Linux takes a volume for FAT by these (`fat_read_bpb`).
        let is_fat = [512, 1024, 2048, 4096].contains(&sector)
            && cluster.is_power_of_two()
            && reserved > 0
            && tables > 0
            && (boot[21] == 0xF0 || boot[21] >= 0xF8);
        if !is_fat {
            return Ok(None);
        }
        let table_sectors = match u16_at(&boot, 22) {
            0 => u64::from(u32_at(&boot, 36)),
            sectors => sectors.into(),
        };
        let is_fat32 = u16_at(&boot, 22) == 0;
        let sectors = match u16_at(&boot, 19) {
            0 => u64::from(u32_at(&boot, 32)),
            sectors => sectors.into(),
        };
        let root_at = reserved + u64::from(tables) * table_sectors;
        let root_len = usize::from(u16_at(&boot, 17)) * ENTRY;
        let data_at = root_at + (root_len as u64).div_ceil(sector);
        let Some(data) = sectors.checked_sub(data_at).filter(|_| table_sectors > 0) else {
            let what = format!("a FAT volume of {sectors} sectors whose files begin at {data_at}");
            return Err(media.damaged(0, what));
        };
        let clusters = u32::try_from(data / u64::from(cluster)).unwrap_or(u32::MAX);
        let bits = match clusters {
            _ if is_fat32 => 32,
            0..=FAT12_CLUSTERS => 12,
            FAT16_CLUSTERS.. => {
                let what = format!("{clusters} clusters in a FAT16 volume");
                return Err(media.damaged(0, what));
            }
            _ => 16,
        };
        let label_at = if is_fat32 { 71 } else { 43 };
        Ok(Some(Self {
            bits,
            cluster_len: usize::from(cluster) * sector as usize,
            table_at: reserved * sector,
            table_len: table_sectors * sector,
            root: match is_fat32 {
                true => Start::Cluster(u32_at(&boot, 44)),
                false => Start::Root { at: root_at * sector, len: root_len },
            },
            data_at: data_at * sector,
            clusters,
            boot_label: std::array::from_fn(|at| boot[label_at + at]),
            chunk: None,
        }))
    }

    pub(super) const fn file_system(&self) -> FileSystem {
        match self.bits {
            12 => FileSystem::Fat12,
            16 => FileSystem::Fat16,
            _ => FileSystem::Fat32,
        }
    }

    /// The label in the root directory, or else the boot sector's, as `blkid` looks for it.
    pub(super) fn label(&mut self, media: &mut Media<'_>) -> Result<Option<String>, Error> {
        let root = self.directory(media, &[], self.root)?;
        let is_label = |entry: &&[u8]| {
            entry[0] != DELETED
                && entry[11] & (ATTRIBUTE_LABEL | ATTRIBUTE_DIRECTORY) == ATTRIBUTE_LABEL
                && entry[11] & ATTRIBUTE_LONG_NAME != ATTRIBUTE_LONG_NAME
        };
        let label =
            entries(&root).find(is_label).map_or(&self.boot_label[..], |entry| &entry[..11]);
        let label = String::from_utf8_lossy(label);
        let label = label.trim_end_matches([' ', '\0']);
        Ok((!matches!(label, "" | "NO NAME")).then(|| label.to_owned()))
    }

    /// Reads everything.
    pub(super) fn read(&mut self, media: &mut Media<'_>, finds: &mut Finds) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut queue = vec![(Vec::new(), self.root)];
        while let Some((path, start)) = queue.pop() {
            if !seen.insert(start) {
                let what = format!("the directory `/{}` is inside itself", path.join("/"));
                return Err(media.damaged(self.offset(start), what));
            }
            let bytes = self.directory(media, &path, start)?;
            for (name, entry) in names(&bytes) {
                let path = Finds::path(&path, &name)?;
                let first = u32::from(u16_at(entry, 26))
                    | if self.bits == 32 { u32::from(u16_at(entry, 20)) << 16 } else { 0 };
                if entry[11] & ATTRIBUTE_DIRECTORY != 0 {
                    finds.directory(&path)?;
                    queue.push((path, Start::Cluster(first)));
                } else {
                    let len = u32_at(entry, 28);
                    finds.reserve(&path, len.into())?;
                    let name = format!("the file `{}`", path.join("/"));
                    let content = self.chain(media, &name, first, len as usize, false)?;
                    finds.file(&path, content)?;
                }
            }
        }
        Ok(())
    }

    /// The bytes of a directory.
    fn directory(
        &mut self,
        media: &mut Media<'_>,
        path: &[String],
        start: Start,
    ) -> Result<Vec<u8>, Error> {
        let name = format!("the directory `/{}`", path.join("/"));
        match start {
            Start::Root { at, len } => media.table(&name, at, len),
            Start::Cluster(first) => self.chain(media, &name, first, ENTRIES_MAX * ENTRY, true),
        }
    }

    /// The bytes of a chain of clusters: `len` of a file, or up to so many of a directory, whose length
    /// is that of its chain.
    fn chain(
        &mut self,
        media: &mut Media<'_>,
        name: &str,
        first: u32,
        len: usize,
        is_directory: bool,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut next = Some(first).filter(|_| len > 0);
        while let Some(cluster) = next {
            let at = self.offset(Start::Cluster(cluster));
            if !(2..self.clusters.saturating_add(2)).contains(&cluster) {
                let what = format!("{name} goes on in cluster {cluster}, which there is not");
                return Err(media.damaged(self.table_at, what));
            }
            let part = (len - bytes.len()).min(self.cluster_len);
            bytes.extend(match is_directory {
                true => media.table(&name, at, part)?,
                false => media.data(&name, at, part)?,
            });
            next = self.after(media, cluster)?;
            if bytes.len() == len {
                break;
            }
        }
        let is_whole = if is_directory { next.is_none() } else { bytes.len() == len };
        if !is_whole {
            let what = match is_directory {
                true => format!("{name} has no end"),
                false => format!("{name} has {} of its {len} bytes", bytes.len()),
            };
            return Err(media.damaged(self.offset(Start::Cluster(first)), what));
        }
        Ok(bytes)
    }

    /// The cluster that follows in its chain; `None` at the end.
    fn after(&mut self, media: &mut Media<'_>, cluster: u32) -> Result<Option<u32>, Error> {
        let at = u64::from(cluster) * u64::from(self.bits) / 8;
        let (number, within) = (at / CHUNK, (at % CHUNK) as usize);
        if self.chunk.as_ref().is_none_or(|(found, _)| *found != number) {
            let begin = number * CHUNK;
            let len = self.table_len.saturating_sub(begin).min(CHUNK);
            let chunk =
                media.table(&"the allocation table", self.table_at + begin, len as usize)?;
            self.chunk = Some((number, chunk));
        }
        let chunk = self.chunk.as_ref().map_or(&[][..], |(_, chunk)| chunk);
        let width = if self.bits == 32 { 4 } else { 2 };
        let Some(field) = chunk.get(within..within + width) else {
            let what = format!("the allocation table ends before cluster {cluster}");
            return Err(media.damaged(self.table_at + at, what));
        };
        let (value, end) = match self.bits {
            12 if cluster.is_multiple_of(2) => (u32::from(u16_at(field, 0)) & 0xFFF, 0xFF8),
            12 => (u32::from(u16_at(field, 0)) >> 4, 0xFF8),
            16 => (u16_at(field, 0).into(), 0xFFF8),
            _ => (u32_at(field, 0) & 0x0FFF_FFFF, 0x0FFF_FFF8),
        };
        Ok((value < end).then_some(value))
    }

    /// Where a directory or cluster is. Only a cluster that there is has a place.
    fn offset(&self, start: Start) -> u64 {
        match start {
            Start::Root { at, .. } => at,
            Start::Cluster(number) => {
                self.data_at + u64::from(number.saturating_sub(2)) * self.cluster_len as u64
            }
        }
    }
}

/// First byte of an entry that is not in use.
const DELETED: u8 = 0xE5;

/// The entries of a directory up to its end, whatever they are.
fn entries(directory: &[u8]) -> impl Iterator<Item = &[u8]> {
    directory.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0)
}

/// The files and directories of a directory, each with its entry.
fn names(directory: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let mut long = LongName::default();
    entries(directory).filter_map(move |entry| {
        if entry[0] == DELETED {
            long = LongName::default();
            return None;
        }
        if entry[11] & 0x3F == ATTRIBUTE_LONG_NAME {
            long.take(entry);
            return None;
        }
        let long = std::mem::take(&mut long);
        let is_itself = matches!(&entry[..11], b".          " | b"..         ");
        if entry[11] & ATTRIBUTE_LABEL != 0 || is_itself {
            return None;
        }
        Some((long.of(entry).unwrap_or_else(|| short_name(entry)), entry))
    })
}

/// The parts of a long name, which stand before the entry that they are for, the last part first.
#[derive(Default)]
struct LongName {
    units: Vec<[u16; 13]>,
    /// The number of the part that has to come next; zero when all are there.
    left: u8,
    sum: u8,
}

impl LongName {
    fn take(&mut self, entry: &[u8]) {
        const LAST: u8 = 0x40;
        let number = entry[0] & !LAST;
        if entry[0] & LAST != 0 {
            *self = Self { units: Vec::new(), left: number, sum: entry[13] };
        }
        // Parts out of order belong to no name.
        if number == 0 || number > 20 || number != self.left || entry[13] != self.sum {
            *self = Self::default();
            return;
        }
        let at = |unit: usize| match unit {
            0..5 => 1 + 2 * unit,
            5..11 => 4 + 2 * unit,
            _ => 6 + 2 * unit,
        };
        self.units.push(std::array::from_fn(|unit| u16_at(entry, at(unit))));
        self.left -= 1;
    }

    /// The name of `entry`, if the parts are all there and are its.
    fn of(self, entry: &[u8]) -> Option<String> {
        let sum = entry[..11].iter().fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        if self.units.is_empty() || self.left != 0 || self.sum != sum {
            return None;
        }
        let units = self.units.iter().rev().flatten().copied().take_while(|unit| *unit != 0);
        let name = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
        Some(name.collect())
    }
}

/// A name of eight and three characters. Two bits tell whether its parts are in lower case, as Windows
/// NT has it.
fn short_name(entry: &[u8]) -> String {
    const LOWER_STEM: u8 = 0x08;
    const LOWER_EXTENSION: u8 = 0x10;
    let part = |bytes: &[u8], lower: u8| -> String {
        let shown = |byte: &u8| match byte {
            _ if !byte.is_ascii() => char::REPLACEMENT_CHARACTER,
            byte if entry[12] & lower != 0 => char::from(byte.to_ascii_lowercase()),
            byte => char::from(*byte),
        };
        bytes.iter().map(shown).collect::<String>().trim_end_matches(' ').to_owned()
    };
    let (stem, extension) = (part(&entry[..8], LOWER_STEM), part(&entry[8..11], LOWER_EXTENSION));
    if extension.is_empty() { stem } else { format!("{stem}.{extension}") }
}

// A chain is never longer than what a file may have.
const _: () = assert!((ENTRIES_MAX * ENTRY) as u64 <= CONTENT_MAX);
