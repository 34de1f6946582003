//! btrfs on one device: the chunk tree says where its addresses are, the tree of roots where its
//! subvolumes begin (kernel: `include/uapi/linux/btrfs_tree.h`).
//!
//! A path begins at the default subvolume, then at the top of all subvolumes, then at one of those
//! that installers mount as the root. The log of what was synced last is not replayed, as in GRUB.

mod data;
mod tree;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use self::tree::{Key, Node};
use super::NAMES_MAX;
use super::field::{bytes, damaged, le16, le32, le64, slice, text, unsupported, uuid};
use super::walk::{Inodes, Kind, Rooted};
use crate::Error;
use crate::partition::Region;

const SUPERBLOCK: u64 = 64 << 10;
const SUPERBLOCK_LEN: usize = 4096;
/// The most chunks: 16 TiB in chunks of 1 GiB.
const CHUNKS_MAX: usize = 16 << 10;
/// Bytes of the target of a symbolic link, which Linux keeps in one inline extent.
const LINK_MAX: u64 = 4096;
/// Subvolumes that installers mount as the root, besides the default one.
const ROOTS: [&str; 3] = ["/@", "/root", "/@rootfs"];
/// Incompatible features that this reader understands or that don't concern it: all up to RAID1C34,
/// and simple quotas. Not zoned devices, the second extent tree and the stripe tree.
const INCOMPAT_KNOWN: u64 = 0xfff | 1 << 16;

/// Identifiers of trees and objects.
const CHUNK_TREE: u64 = 256;
const TOP_TREE: u64 = 5;
const ROOT_DIRECTORY: u64 = 6;
const FIRST_INODE: u64 = 256;

/// Types of items.
const INODE_ITEM: u8 = 1;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;

/// A mounted btrfs.
pub(super) struct Btrfs {
    region: Region,
    uuid: String,
    label: String,
    node_len: u32,
    sector_len: u32,
    device: u64,
    /// Checksums are CRC-32C, which is the only kind that is checked.
    has_crc: bool,
    /// Chunks by the address at which they begin.
    chunks: BTreeMap<u64, Chunk>,
    nodes: RefCell<HashMap<u64, Rc<Node>>>,
    roots: u64,
    /// Where paths begin, in this order.
    tops: Vec<Id>,
    has_log: bool,
}

/// A run of addresses and where it is on this device.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    len: u64,
    at: u64,
}

/// An inode of a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    /// The address of the root node of the subvolume's tree.
    tree: u64,
    inode: u64,
}

/// Opens btrfs by its first superblock.
pub(super) fn open(region: &Region) -> Result<Option<Btrfs>, Error> {
    if region.len() < SUPERBLOCK + SUPERBLOCK_LEN as u64 {
        return Ok(None);
    }
    let head = region.bytes(SUPERBLOCK, SUPERBLOCK_LEN)?;
    if head[64..72] != *b"_BHRfS_M" {
        return Ok(None);
    }
    Btrfs::of(region, &head).map(Some)
}

impl Btrfs {
    fn of(region: &Region, head: &[u8]) -> Result<Self, Error> {
        let (sector_len, node_len) = (le32(head, 144)?, le32(head, 148)?);
        let (incompat, sums) = (le64(head, 188)?, le16(head, 196)?);
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(unsupported(format_args!("btrfs with the features {incompat:#x}")));
        }
        let devices = le64(head, 136)?;
        if devices != 1 {
            return Err(unsupported(format_args!("btrfs over {devices} devices")));
        }
        let fits = |len: u32| (4096..=65536).contains(&len) && len.is_power_of_two();
        if !fits(sector_len) || !fits(node_len) {
            return Err(damaged("the btrfs superblock contradicts itself"));
        }
        let mut fs = Self {
            region: region.clone(),
            uuid: uuid(bytes(head, 32)?),
            label: text(&head[299..555]),
            node_len,
            sector_len,
            device: le64(head, 201)?,
            has_crc: sums == 0,
            chunks: BTreeMap::new(),
            nodes: RefCell::default(),
            roots: le64(head, 80)?,
            tops: Vec::new(),
            has_log: le64(head, 96)? != 0,
        };
        fs.system_chunks(slice(head, 811, le32(head, 160)?.min(2048) as usize)?)?;
        fs.all_chunks(le64(head, 88)?)?;
        fs.find_tops()?;
        Ok(fs)
    }

    /// Takes the chunks of the superblock, in which the chunk tree itself is.
    fn system_chunks(&mut self, mut array: &[u8]) -> Result<(), Error> {
        while !array.is_empty() {
            let key = Key::at(array, 0)?;
            let item = slice(array, Key::LEN, array.len() - Key::LEN)?;
            self.chunk(key.offset, item)?;
            array = &item[Chunk::HEAD + usize::from(le16(item, 44)?) * Chunk::STRIPE..];
        }
        Ok(())
    }

    fn all_chunks(&mut self, tree: u64) -> Result<(), Error> {
        let mut found = Vec::new();
        let first = Key { object: CHUNK_TREE, kind: CHUNK_ITEM, offset: 0 };
        self.each_item(tree, first, &mut |key, item| {
            found.push((key.offset, item.to_vec()));
            if found.len() > CHUNKS_MAX {
                return Err(damaged(format_args!("it has more than {CHUNKS_MAX} chunks")));
            }
            Ok(true)
        })?;
        self.chunks.clear();
        self.nodes.borrow_mut().clear();
        found.iter().try_for_each(|(address, item)| self.chunk(*address, item))
    }

    /// Takes a chunk whose bytes are one after the other on this device: single, DUP or RAID1.
    fn chunk(&mut self, address: u64, item: &[u8]) -> Result<(), Error> {
        const STRIPED: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8;
        let (len, kind, stripes) = (le64(item, 0)?, le64(item, 24)?, le16(item, 44)?);
        if kind & STRIPED != 0 {
            return Err(unsupported(format_args!("btrfs with chunks of the kind {kind:#x}")));
        }
        let wrong = || damaged("a chunk contradicts itself");
        address.checked_add(len).ok_or_else(wrong)?;
        let stripes = slice(item, Chunk::HEAD, usize::from(stripes) * Chunk::STRIPE)?;
        for stripe in stripes.chunks_exact(Chunk::STRIPE) {
            let (device, at) = (le64(stripe, 0)?, le64(stripe, 8)?);
            at.checked_add(len).ok_or_else(wrong)?;
            if device == self.device {
                self.chunks.entry(address).or_insert(Chunk { len, at });
            }
        }
        Ok(())
    }

    /// Fills `buf` with the bytes at an address.
    fn read(&self, mut address: u64, mut buf: &mut [u8]) -> Result<(), Error> {
        while !buf.is_empty() {
            let chunk = self.chunks.range(..=address).next_back();
            let here = chunk.filter(|(begin, chunk)| address - **begin < chunk.len);
            let Some((begin, chunk)) = here else {
                return Err(damaged(format_args!("no chunk has the address {address}")));
            };
            let within = address - begin;
            let len = (chunk.len - within).min(buf.len() as u64);
            let (part, rest) = buf.split_at_mut(len as usize);
            self.region.read(part, chunk.at + within)?;
            (address, buf) = (address + len, rest);
        }
        Ok(())
    }

    /// Finds where paths begin. The default subvolume is an entry of the tree of roots.
    fn find_tops(&mut self) -> Result<(), Error> {
        let top = self.subvolume(TOP_TREE)?.ok_or_else(|| damaged("it has no top subvolume"))?;
        let entry = self.entry(Id { tree: self.roots, inode: ROOT_DIRECTORY }, "default")?;
        let default = entry.map(|key| self.subvolume(key.object)).transpose()?.flatten();
        self.tops = default.into_iter().chain([top]).collect();
        for path in ROOTS {
            let found = self.find(top, path)?;
            self.tops.extend(found.filter(|id| id.inode == FIRST_INODE && id.tree != top.tree));
        }
        Ok(())
    }

    /// The first directory of a subvolume.
    fn subvolume(&self, number: u64) -> Result<Option<Id>, Error> {
        let first = Key { object: number, kind: ROOT_ITEM, offset: 0 };
        let item = self.first_item(self.roots, first)?;
        item.map(|item| Ok(Id { inode: le64(&item, 168)?, tree: le64(&item, 176)? })).transpose()
    }

    /// What a name in a directory stands for, found by the name's hash.
    fn entry(&self, directory: Id, name: &str) -> Result<Option<Key>, Error> {
        let hash = u64::from(!crc32c::crc32c_append(1, name.as_bytes()));
        let key = Key { object: directory.inode, kind: DIR_ITEM, offset: hash };
        let Some(item) = self.first_item(directory.tree, key)? else { return Ok(None) };
        let mut rest = item.as_slice();
        while !rest.is_empty() {
            let (found, entry_len) = entry_name(rest)?;
            if found == name.as_bytes() {
                return Key::at(rest, 0).map(Some);
            }
            rest = &rest[entry_len..];
        }
        Ok(None)
    }
}

impl Chunk {
    /// Bytes of a chunk's item before its stripes, and of each of those.
    const HEAD: usize = 48;
    const STRIPE: usize = 32;
}

/// The name of the directory entry at the beginning of `item`, and the entry's length.
fn entry_name(item: &[u8]) -> Result<(&[u8], usize), Error> {
    let (data_len, name_len) = (usize::from(le16(item, 25)?), usize::from(le16(item, 27)?));
    let entry = slice(item, 0, 30 + data_len + name_len)?;
    Ok((&entry[30..30 + name_len], entry.len()))
}

impl Inodes for Btrfs {
    type Id = Id;

    fn stat(&self, id: Id) -> Result<(Kind, u64), Error> {
        let key = Key { object: id.inode, kind: INODE_ITEM, offset: 0 };
        let item = self.first_item(id.tree, key)?;
        let item = item.ok_or_else(|| damaged(format_args!("there is no inode {}", id.inode)))?;
        Ok((Kind::of_mode(le32(&item, 52)?), le64(&item, 16)?))
    }

    fn lookup(&self, directory: Id, name: &str) -> Result<Option<Id>, Error> {
        match self.entry(directory, name)? {
            Some(key) if key.kind == ROOT_ITEM => self.subvolume(key.object),
            Some(key) => Ok(Some(Id { inode: key.object, ..directory })),
            None => Ok(None),
        }
    }

    fn list(&self, directory: Id) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let first = Key { object: directory.inode, kind: DIR_INDEX, offset: 0 };
        self.each_item(directory.tree, first, &mut |_, item| {
            names.extend(str::from_utf8(entry_name(item)?.0).map(str::to_owned));
            Ok(names.len() <= NAMES_MAX)
        })?;
        Ok(names)
    }

    fn target(&self, link: Id) -> Result<String, Error> {
        let size = self.stat(link)?.1;
        if size > LINK_MAX {
            return Err(damaged("a symbolic link is too long"));
        }
        let bytes = self.content(link, size)?;
        String::from_utf8(bytes).map_err(|error| Error::read("a symbolic link is no text", error))
    }

    fn content(&self, file: Id, size: u64) -> Result<Vec<u8>, Error> {
        data::read(self, file, size)
    }
}

impl Rooted for Btrfs {
    const KIND: &'static str = "btrfs";

    fn roots(&self) -> &[Self::Id] {
        &self.tops
    }

    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn note(&self) -> Option<&'static str> {
        self.has_log.then_some("its log holds changes, which are not seen")
    }
}
