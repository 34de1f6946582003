//! ISO 9660 images (ECMA-119) with Rock Ridge and Joliet, written in one go into memory.
//!
//! The image has two trees over the same file contents. The primary one has short names in
//! capitals, with the real ones beside them in Rock Ridge entries, which is what Linux reads. The
//! Joliet one has names in UCS-2 for the others. In blocks of 2048 bytes:
//!
//! ```text
//!  0        16        17      18   19                                            …      end
//! ├ unused ┼ primary ┼ Joliet ┼ end ┼ path tables ┼ directories ┼ names ┼ files ┼ zeros ┤
//!            volume descriptors       4: each tree    of both      too long
//!                                     in both orders  trees        for a record
//! ```
//!
//! Nothing is decided while writing: the lengths of records do not depend on the places in them, so
//! that the trees are encoded once without places to learn the layout, and once with them.

mod descriptor;
mod names;
mod rock_ridge;

use jiff::civil::DateTime;

use crate::image::{ALIGNMENT, DiskImage, SIZE_MAX, too_large};
use crate::tree::{Flat, Target};
use crate::{Error, ErrorKind, Tree};
use descriptor::Fields;
use rock_ridge::Continuation;

/// Bytes of a logical block.
const BLOCK: usize = 2048;

/// The first volume descriptor (ECMA-119 §8.1); what is before it is the system's.
const DESCRIPTORS_AT: usize = 16;

/// Where the path tables begin: after the two volumes' descriptors and the terminator.
const TABLES_AT: usize = DESCRIPTORS_AT + 3;

/// Length of a directory record without its identifier (ECMA-119 §9.1).
const RECORD_HEAD: usize = 33;

/// Longest directory record: its length is one byte, and even.
const RECORD_MAX: usize = 254;

/// Most directories: the number of a parent is 16 bits wide (ECMA-119 §9.4.4).
const DIRECTORIES_MAX: usize = 65535;

/// The identifiers of a directory itself and of its parent (ECMA-119 §7.6.2).
const SELF_ID: &[u8] = &[0];
const PARENT_ID: &[u8] = &[1];

/// The version that ends a file's identifier in the primary tree (ECMA-119 §7.5.1). Joliet's goes
/// without, as everyone writes it.
const VERSION: &[u8] = b";1";

/// Directory bit of a record's file flags (ECMA-119 §9.1.6).
const FLAG_DIRECTORY: u8 = 1 << 1;

/// Writes `tree` into a new image. `label` has at most 32 ASCII characters.
pub(crate) fn write(tree: &Tree, label: &str, time: DateTime) -> Result<DiskImage, Error> {
    let flat = Flat::new(tree);
    if flat.directories.len() > DIRECTORIES_MAX {
        let what = format!("more than {DIRECTORIES_MAX} directories");
        return Err(Error::new(ErrorKind::TooLarge, what));
    }
    let hierarchies =
        [Naming::Primary, Naming::Joliet].map(|naming| Hierarchy::new(&flat, naming, time));
    let layout = Layout::new(&hierarchies, &flat.files);
    if layout.blocks > SIZE_MAX / BLOCK {
        return Err(too_large());
    }
    let mut image = vec![0; layout.blocks * BLOCK];
    let len = image.len().next_multiple_of(ALIGNMENT);
    let blocks = (len / BLOCK) as u32;
    let mut put = |block: usize, bytes: &[u8]| {
        image[block * BLOCK..][..bytes.len()].copy_from_slice(bytes);
    };
    for (index, (hierarchy, places)) in hierarchies.iter().zip(&layout.places).enumerate() {
        let [little, big] = hierarchy.path_tables(places);
        put(DESCRIPTORS_AT + index, &hierarchy.descriptor(label, places, little.len(), blocks));
        put(places.tables[0], &little);
        put(places.tables[1], &big);
        let encoded = hierarchy.encode(places, &layout.files);
        for (extent, bytes) in places.directories.iter().zip(&encoded.directories) {
            put(extent.block, bytes);
        }
        put(places.continuation, encoded.continuation.bytes());
    }
    put(DESCRIPTORS_AT + hierarchies.len(), &descriptor::TERMINATOR);
    for (extent, bytes) in layout.files.iter().zip(&flat.files) {
        put(extent.block, bytes);
    }
    Ok(DiskImage::filled(image, len))
}

/// Which of the two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    Primary,
    Joliet,
}

/// One of the two trees: its directories in the order of the path table (ECMA-119 §6.9.1), by
/// level, then by the parent's number, then by identifier.
struct Hierarchy<'a> {
    naming: Naming,
    time: DateTime,
    directories: Vec<Directory<'a>>,
}

struct Directory<'a> {
    /// The number of the parent in this hierarchy; the root is its own.
    parent: usize,
    id: Vec<u8>,
    /// In the order of their identifiers (ECMA-119 §9.3).
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    id: Vec<u8>,
    name: &'a str,
    target: Target,
}

impl<'a> Hierarchy<'a> {
    fn new(flat: &Flat<'a>, naming: Naming, time: DateTime) -> Self {
        let mut directories =
            vec![Directory { parent: 0, id: SELF_ID.to_vec(), entries: Vec::new() }];
        // The numbers in `flat` of the directories, which come in another order here.
        let mut order = vec![0];
        for number in 0..flat.directories.len() {
            let listing = &flat.directories[order[number]].listing;
            let mut entries: Vec<_> = listing
                .iter()
                .zip(names::ids(naming, listing))
                .map(|((name, target), id)| Entry { id, name, target: *target })
                .collect();
            entries.sort_by(|a, b| a.id.cmp(&b.id));
            for entry in &mut entries {
                if let Target::Directory(in_flat) = entry.target {
                    entry.target = Target::Directory(directories.len());
                    order.push(in_flat);
                    let id = entry.id.clone();
                    directories.push(Directory { parent: number, id, entries: Vec::new() });
                }
            }
            directories[number].entries = entries;
        }
        Self { naming, time, directories }
    }

    /// The directories' bytes, and Rock Ridge entries that found no room in them. Their lengths do
    /// not depend on `places` and `files`.
    fn encode(&self, places: &Places, files: &[Extent]) -> Encoded {
        let mut continuation = Continuation::at_block(places.continuation);
        let directories = (0..self.directories.len())
            .map(|number| self.encode_directory(number, places, files, &mut continuation))
            .collect();
        Encoded { directories, continuation }
    }

    fn encode_directory(
        &self,
        number: usize,
        places: &Places,
        files: &[Extent],
        continuation: &mut Continuation,
    ) -> Vec<u8> {
        let directory = &self.directories[number];
        let mut bytes = Vec::with_capacity(BLOCK);
        let mut push = |id: &[u8], name: Option<&str>, target: Target| {
            let (extent, flags, links) = match target {
                Target::File(file) => (files[file], 0, None),
                Target::Directory(of) => {
                    (places.directories[of], FLAG_DIRECTORY, Some(self.links(of)))
                }
            };
            let room = RECORD_MAX - record_head_len(id);
            let system_use = match self.naming {
                Naming::Joliet => Vec::new(),
                Naming::Primary => {
                    let is_root_itself = number == 0 && id == SELF_ID;
                    let entries = rock_ridge::entries(is_root_itself, links, self.time, name);
                    continuation.fit(&entries, room)
                }
            };
            let record = record(id, extent, flags, self.time, &system_use);
            // A record does not cross the end of a block (ECMA-119 §6.8.1.1).
            if bytes.len() % BLOCK + record.len() > BLOCK {
                bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            }
            bytes.extend(record);
        };
        push(SELF_ID, None, Target::Directory(number));
        push(PARENT_ID, None, Target::Directory(directory.parent));
        for entry in &directory.entries {
            let version = match (self.naming, entry.target) {
                (Naming::Primary, Target::File(_)) => VERSION,
                _ => &[],
            };
            push(&[&entry.id, version].concat(), Some(entry.name), entry.target);
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    /// How often a directory is named: by its parent, by itself and by each of its children.
    fn links(&self, number: usize) -> usize {
        let is_directory = |entry: &&Entry<'_>| matches!(entry.target, Target::Directory(_));
        2 + self.directories[number].entries.iter().filter(is_directory).count()
    }

    /// The path table in the two byte orders (ECMA-119 §9.4), little-endian first.
    fn path_tables(&self, places: &Places) -> [Vec<u8>; 2] {
        let mut tables = [Vec::new(), Vec::new()];
        for (directory, extent) in self.directories.iter().zip(&places.directories) {
            let (block, parent) = (extent.block as u32, directory.parent as u16 + 1);
            let places = [
                (block.to_le_bytes(), parent.to_le_bytes()),
                (block.to_be_bytes(), parent.to_be_bytes()),
            ];
            for (table, (block, parent)) in tables.iter_mut().zip(places) {
                table.extend([directory.id.len() as u8, 0]);
                table.extend(block);
                table.extend(parent);
                table.extend(&directory.id);
                table.resize(table.len().next_multiple_of(2), 0);
            }
        }
        tables
    }

    fn descriptor(&self, label: &str, places: &Places, table: usize, blocks: u32) -> [u8; BLOCK] {
        let root = record(SELF_ID, places.directories[0], FLAG_DIRECTORY, self.time, &[]);
        let fields = Fields { label, blocks, table: table as u32, tables: places.tables, root };
        descriptor::volume(self.naming, &fields, self.time)
    }
}

/// The bytes of a hierarchy.
struct Encoded {
    directories: Vec<Vec<u8>>,
    continuation: Continuation,
}

/// A run of blocks, and how many bytes of it count.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    block: usize,
    len: usize,
}

/// Where everything is.
struct Layout {
    /// The primary hierarchy's and Joliet's.
    places: [Places; 2],
    files: Vec<Extent>,
    /// The blocks of all of it.
    blocks: usize,
}

/// Where the parts of one hierarchy are.
struct Places {
    /// Blocks of the little-endian and of the big-endian path table.
    tables: [usize; 2],
    directories: Vec<Extent>,
    /// Block of the Rock Ridge entries that found no room in the directories.
    continuation: usize,
}

impl Layout {
    fn new(hierarchies: &[Hierarchy<'_>; 2], files: &[&[u8]]) -> Self {
        let mut next = TABLES_AT;
        // Nothing is empty, so that every place is inside the image and belongs to one thing.
        let mut take = |len: usize| {
            let block = next;
            next += len.div_ceil(BLOCK).max(1);
            Extent { block, len }
        };
        let nowhere = vec![Extent::default(); files.len()];
        let places = hierarchies.each_ref().map(|hierarchy| {
            let directories = vec![Extent::default(); hierarchy.directories.len()];
            let draft = Places { tables: [0; 2], directories, continuation: 0 };
            let encoded = hierarchy.encode(&draft, &nowhere);
            Places {
                tables: hierarchy.path_tables(&draft).map(|table| take(table.len()).block),
                directories: encoded.directories.iter().map(|bytes| take(bytes.len())).collect(),
                continuation: take(encoded.continuation.bytes().len()).block,
            }
        });
        let files = files.iter().map(|file| take(file.len())).collect();
        Self { places, files, blocks: next }
    }
}

/// The length of a directory record up to its system-use field.
const fn record_head_len(id: &[u8]) -> usize {
    (RECORD_HEAD + id.len()).next_multiple_of(2)
}

/// A directory record (ECMA-119 §9.1).
fn record(id: &[u8], extent: Extent, flags: u8, time: DateTime, system_use: &[u8]) -> Vec<u8> {
    let len = (record_head_len(id) + system_use.len()).next_multiple_of(2);
    let mut record = Vec::with_capacity(len);
    record.extend([len as u8, 0]);
    record.extend(both_u32(extent.block as u32));
    record.extend(both_u32(extent.len as u32));
    record.extend(short_time(time));
    record.extend([flags, 0, 0]);
    record.extend(both_u16(1));
    record.push(id.len() as u8);
    record.extend(id);
    record.resize(record_head_len(id), 0);
    record.extend(system_use);
    record.resize(len, 0);
    record
}

/// A number in both byte orders (ECMA-119 §7.3.3).
fn both_u32(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

/// A number in both byte orders (ECMA-119 §7.2.3).
fn both_u16(value: u16) -> [u8; 4] {
    let [low, high] = value.to_le_bytes();
    [low, high, high, low]
}

/// A record's date and time, in UTC (ECMA-119 §9.1.5).
fn short_time(time: DateTime) -> [u8; 7] {
    let fields = [time.month(), time.day(), time.hour(), time.minute(), time.second()];
    let [month, day, hour, minute, second] = fields.map(i8::unsigned_abs);
    [(time.year() - 1900) as u8, month, day, hour, minute, second, 0]
}
