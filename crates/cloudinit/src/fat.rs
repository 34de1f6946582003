//! FAT volumes with long names, written in one go into memory (Microsoft's "FAT32 File System
//! Specification" 1.03, which covers FAT12 and FAT16).
//!
//! ```text
//!  0     1           …          …      in sectors of 4 KiB, each of which is also a cluster
//! ├ boot ┼ two tables ┼ root     ┼ directories, then files, each in one run of clusters ┤
//! ```
//!
//! Every name has a long entry, and a short one with a number that is unique in its directory.

use std::collections::HashSet;

use jiff::civil::{DateTime, date};

use crate::image::{ALIGNMENT, DiskImage, SIZE_MAX, too_large};
use crate::tree::{Flat, FlatDirectory, Target};
use crate::{Error, ErrorKind, Tree};

/// Bytes of a sector and of a cluster. The largest sector that FAT allows fits every disk.
const SECTOR: usize = 4096;

/// Bytes of a directory entry, and the UTF-16 units of a name that a long one holds.
const ENTRY: usize = 32;
const UNITS: usize = 13;

/// Longest name in UTF-16 units.
const NAME_MAX: usize = 255;

/// Entries of the root directory, whose size is fixed when the volume is made: as usual, and more
/// where the names need it. Other directories have the same limit.
const ENTRIES_MIN: usize = 512;
const ENTRIES_MAX: usize = 32768;

/// With fewer clusters than this a volume is FAT12, else FAT16.
const FAT12_CLUSTERS: usize = 4085;

/// Number of the first cluster.
const FIRST_CLUSTER: usize = 2;

/// Serial number of every volume: it has to be the same for the same input, and not zero.
const VOLUME_ID: u32 = 0xB007_5EED;

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_FILE: u8 = 0x20;
const ATTRIBUTE_LONG_NAME: u8 = 0x0F;

/// Writes `tree` into a new volume. `label` has at most 11 ASCII characters.
pub(crate) fn write(tree: &Tree, label: &str, time: DateTime) -> Result<DiskImage, Error> {
    let flat = Flat::new(tree);
    for directory in &flat.directories {
        check_names(directory)?;
    }
    let layout = Layout::new(&flat);
    let geometry = Geometry::new(&layout).ok_or_else(too_large)?;
    // The volume fills whole units of the image; behind its last file are zeros.
    let mut image = vec![0; (geometry.data_at() + layout.clusters) * SECTOR];
    let mut put = |sector: usize, bytes: &[u8]| {
        image[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
    };
    put(0, &geometry.boot_sector(label));
    let table = geometry.table(&layout);
    put(1, &table);
    put(1 + geometry.table_sectors, &table);
    let time = Time::new(time);
    for (number, directory) in flat.directories.iter().enumerate() {
        let sector = match number {
            0 => geometry.root_at(),
            _ => geometry.sector_of(layout.directories[number]),
        };
        put(sector, &encode_directory(number, directory, &layout, label, time));
    }
    for (run, content) in layout.files.iter().zip(&flat.files) {
        if !content.is_empty() {
            put(geometry.sector_of(*run), content);
        }
    }
    Ok(DiskImage::filled(image, geometry.sectors * SECTOR))
}

/// FAT looks names up without regard to case, and drops periods and spaces at their end.
fn check_names(directory: &FlatDirectory<'_>) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for (name, _) in &directory.listing {
        let bad = |what: &str| Err(Error::new(ErrorKind::FileName, format!("`{name}` {what}")));
        if name.contains(['"', '*', '/', ':', '<', '>', '?', '\\', '|']) {
            return bad("has a character that FAT does not allow in names");
        }
        if name.ends_with(['.', ' ']) {
            return bad("ends in a period or space, which FAT drops");
        }
        if name.encode_utf16().count() > NAME_MAX {
            return bad("is longer than 255 characters");
        }
        if !seen.insert(name.to_uppercase()) {
            return bad("differs from another name in case only, which FAT does not tell apart");
        }
    }
    if entries_of(directory) > ENTRIES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, "too many files in one directory for FAT"));
    }
    Ok(())
}

/// The entries that a directory needs, with two for `.` and `..` or one for the root's label.
fn entries_of(directory: &FlatDirectory<'_>) -> usize {
    let of_name = |name: &str| 1 + name.encode_utf16().count().div_ceil(UNITS);
    2 + directory.listing.iter().map(|(name, _)| of_name(name)).sum::<usize>()
}

/// A run of clusters, and how many bytes of it count.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: usize,
    len: usize,
}

/// Which clusters belong to what.
struct Layout {
    /// The root's entry is the area of its own that it has.
    directories: Vec<Run>,
    files: Vec<Run>,
    /// Clusters in use.
    clusters: usize,
}

impl Layout {
    fn new(flat: &Flat<'_>) -> Self {
        let mut next = FIRST_CLUSTER;
        let mut take = |len: usize| {
            let first = if len == 0 { 0 } else { next };
            next += len.div_ceil(SECTOR);
            Run { first, len }
        };
        let root = Run { first: 0, len: entries_of(&flat.directories[0]).max(ENTRIES_MIN) * ENTRY };
        let below = flat.directories.iter().skip(1).map(|d| take(entries_of(d) * ENTRY));
        let directories = std::iter::once(root).chain(below).collect();
        let files = flat.files.iter().map(|content| take(content.len())).collect();
        Self { directories, files, clusters: next - FIRST_CLUSTER }
    }

    /// Every chain of clusters.
    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.directories.iter().skip(1).chain(&self.files).filter(|run| run.len > 0)
    }
}

/// The sizes that the boot sector states.
struct Geometry {
    sectors: usize,
    table_sectors: usize,
    root_sectors: usize,
    is_fat12: bool,
}

impl Geometry {
    /// The smallest volume in whole MiB that holds `layout`; `None` if that is too large.
    fn new(layout: &Layout) -> Option<Self> {
        let root_sectors = layout.directories[0].len.div_ceil(SECTOR);
        let sizes = (ALIGNMENT..=SIZE_MAX).step_by(ALIGNMENT).map(|size| size / SECTOR);
        sizes.flat_map(|sectors| [true, false].map(|is_fat12| (sectors, is_fat12))).find_map(
            |(sectors, is_fat12)| {
                let bits = if is_fat12 { 12 } else { 16 };
                let table_sectors = ((sectors + FIRST_CLUSTER) * bits).div_ceil(8 * SECTOR);
                let geometry = Self { sectors, table_sectors, root_sectors, is_fat12 };
                let clusters = sectors.checked_sub(geometry.data_at())?;
                // The number of clusters alone tells readers how wide the table's entries are.
                let is_told = (clusters < FAT12_CLUSTERS) == is_fat12;
                (is_told && clusters >= layout.clusters).then_some(geometry)
            },
        )
    }

    const fn root_at(&self) -> usize {
        1 + 2 * self.table_sectors
    }

    const fn data_at(&self) -> usize {
        self.root_at() + self.root_sectors
    }

    const fn sector_of(&self, run: Run) -> usize {
        self.data_at() + run.first - FIRST_CLUSTER
    }

    /// Boot sector with the BIOS parameter block; there is nothing to boot.
    fn boot_sector(&self, label: &str) -> [u8; 512] {
        let mut sector = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| sector[at..][..bytes.len()].copy_from_slice(bytes);
        let small = |value: usize| (value as u16).to_le_bytes();
        put(0, b"\xEB\x3C\x90BOOTYARD");
        put(11, &small(SECTOR));
        // One sector for each cluster, one reserved sector, two tables.
        put(13, &[1, 1, 0, 2]);
        put(17, &small(self.root_sectors * SECTOR / ENTRY));
        put(19, &small(self.sectors));
        // A fixed disk.
        put(21, &[0xF8]);
        put(22, &small(self.table_sectors));
        put(24, &small(32));
        put(26, &small(64));
        // The first fixed disk; three more fields follow.
        put(36, &[0x80, 0, 0x29]);
        put(39, &VOLUME_ID.to_le_bytes());
        put(43, &padded(label));
        put(54, if self.is_fat12 { b"FAT12   " } else { b"FAT16   " });
        put(510, &[0x55, 0xAA]);
        sector
    }

    /// The table: for each cluster the next one of its chain.
    fn table(&self, layout: &Layout) -> Vec<u8> {
        const END: u16 = 0xFFFF;
        let mut next = vec![0; FIRST_CLUSTER + layout.clusters];
        next[0] = 0xFFF8;
        next[1] = END;
        for run in layout.runs() {
            let last = run.first + run.len.div_ceil(SECTOR) - 1;
            for (link, following) in next[run.first..last].iter_mut().zip(run.first as u16 + 1..) {
                *link = following;
            }
            next[last] = END;
        }
        if !self.is_fat12 {
            return next.into_iter().flat_map(u16::to_le_bytes).collect();
        }
        let pair = |pair: &[u16]| {
            let (low, high) = (pair[0], pair.get(1).copied().unwrap_or_default());
            let [a, b] = (low & 0xFFF | high << 12).to_le_bytes();
            [a, b, (high >> 4) as u8]
        };
        next.chunks(2).flat_map(pair).collect()
    }
}

fn encode_directory(
    number: usize,
    directory: &FlatDirectory<'_>,
    layout: &Layout,
    label: &str,
    time: Time,
) -> Vec<u8> {
    let cluster_of = |number: usize| Run { len: 0, ..layout.directories[number] };
    let mut bytes = Vec::with_capacity(layout.directories[number].len);
    if number == 0 {
        bytes.extend(entry(&padded(label), ATTRIBUTE_LABEL, Run { first: 0, len: 0 }, time));
    } else {
        bytes.extend(entry(&padded("."), ATTRIBUTE_DIRECTORY, cluster_of(number), time));
        let parent = cluster_of(directory.parent);
        bytes.extend(entry(&padded(".."), ATTRIBUTE_DIRECTORY, parent, time));
    }
    for ((name, target), index) in directory.listing.iter().zip(1..) {
        let (attribute, run) = match *target {
            Target::File(file) => (ATTRIBUTE_FILE, layout.files[file]),
            Target::Directory(below) => (ATTRIBUTE_DIRECTORY, cluster_of(below)),
        };
        let short = short_name(name, index);
        push_long_name(&mut bytes, name, &short);
        bytes.extend(entry(&short, attribute, run, time));
    }
    bytes
}

/// A short entry.
fn entry(name: &[u8; 11], attribute: u8, run: Run, time: Time) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(name);
    entry[11] = attribute;
    entry[13] = time.odd_second;
    // Created, accessed (a date only), written.
    for (at, value) in
        [(14, time.clock), (16, time.date), (18, time.date), (22, time.clock), (24, time.date)]
    {
        entry[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    entry[26..28].copy_from_slice(&(run.first as u16).to_le_bytes());
    entry[28..].copy_from_slice(&(run.len as u32).to_le_bytes());
    entry
}

/// The long entries of `name`, the end of the name first.
fn push_long_name(bytes: &mut Vec<u8>, name: &str, short: &[u8; 11]) {
    const LAST: u8 = 0x40;
    let sum = short.iter().fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
    let units: Vec<u16> = name.encode_utf16().collect();
    for (index, part) in units.chunks(UNITS).enumerate().rev() {
        let last = if (index + 1) * UNITS >= units.len() { LAST } else { 0 };
        // A name that does not fill its entry ends with a zero, and ones after it.
        let mut field = [0xFFFF; UNITS];
        field[..part.len()].copy_from_slice(part);
        if let Some(end) = field.get_mut(part.len()) {
            *end = 0;
        }
        let field = field.map(u16::to_le_bytes);
        let field = field.as_flattened();
        bytes.push((index as u8 + 1) | last);
        bytes.extend(&field[..10]);
        bytes.extend([ATTRIBUTE_LONG_NAME, 0, sum]);
        bytes.extend(&field[10..22]);
        bytes.extend([0, 0]);
        bytes.extend(&field[22..]);
    }
}

/// A short name that no other `index` has: `~` stands before the number only.
fn short_name(name: &str, index: usize) -> [u8; 11] {
    let allowed = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' => c.to_ascii_uppercase(),
        _ => '_',
    };
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let number = format!("~{index}");
    let stem: String = stem.chars().map(allowed).take(8 - number.len()).collect();
    let extension: String = extension.chars().map(allowed).take(3).collect();
    padded(&format!("{:8}{extension}", stem + &number))
}

/// ASCII text filled up with spaces.
fn padded(text: &str) -> [u8; 11] {
    let mut field = [b' '; 11];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

/// A time in FAT's fields.
#[derive(Debug, Clone, Copy)]
struct Time {
    date: u16,
    clock: u16,
    /// What the clock, which counts by twos, leaves of the seconds, in hundredths.
    odd_second: u8,
}

impl Time {
    /// FAT's calendar begins in 1980, and ends in 2107 (checked by the caller).
    fn new(time: DateTime) -> Self {
        let time = time.max(date(1980, 1, 1).at(0, 0, 0, 0));
        let fields = [time.month(), time.day(), time.hour(), time.minute(), time.second()];
        let [month, day, hour, minute, second] =
            fields.map(|field| u16::from(field.unsigned_abs()));
        Self {
            date: (time.year().unsigned_abs() - 1980) << 9 | month << 5 | day,
            clock: hour << 11 | minute << 5 | (second / 2),
            odd_second: (second % 2 * 100) as u8,
        }
    }
}
