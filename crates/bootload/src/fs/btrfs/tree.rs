//! The B-trees of btrfs: nodes, checked when they are read, and items in the order of their keys.

use std::rc::Rc;

use super::Btrfs;
use crate::fs::field::{bytes, damaged, le32, le64, slice};
use crate::{Error, ErrorKind};

/// Levels of a tree (`BTRFS_MAX_LEVEL`).
const LEVELS_MAX: u8 = 8;
/// Nodes that are kept in memory.
const NODES_KEPT: usize = 64;
/// Items that one question may look at: the names of a large directory, the extents of 1 GiB.
const ITEMS_MAX: usize = 1 << 17;
/// Bytes of a node's head, of an item's head in a leaf, and of a pointer in an inner node.
const HEAD: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;

/// The name of an item; keys are ordered by object, kind, offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    /// Bytes of a key.
    pub(super) const LEN: usize = 17;

    pub(super) fn at(from: &[u8], at: usize) -> Result<Self, Error> {
        let [kind] = bytes(from, at + 8)?;
        Ok(Self { object: le64(from, at)?, kind, offset: le64(from, at + 9)? })
    }
}

/// Is shown items, and tells whether it wants to see more.
pub(super) type See<'a> = dyn FnMut(Key, &[u8]) -> Result<bool, Error> + 'a;

/// A node whose entries all have room in it.
pub(super) struct Node {
    bytes: Vec<u8>,
    level: u8,
    count: usize,
}

impl Node {
    const fn entry_len(&self) -> usize {
        if self.level == 0 { ITEM } else { POINTER }
    }

    fn key(&self, index: usize) -> Result<Key, Error> {
        Key::at(&self.bytes, HEAD + index * self.entry_len())
    }

    /// The number of entries whose keys are less than `key`.
    fn before(&self, key: Key) -> Result<usize, Error> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle)? < key { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The address of the child at `index`.
    fn child(&self, index: usize) -> Result<u64, Error> {
        le64(&self.bytes, HEAD + index * POINTER + Key::LEN)
    }

    fn item(&self, index: usize) -> Result<&[u8], Error> {
        let head = HEAD + index * ITEM + Key::LEN;
        let (at, len) = (le32(&self.bytes, head)? as usize, le32(&self.bytes, head + 4)? as usize);
        slice(&self.bytes, HEAD + at, len)
    }
}

impl Btrfs {
    fn node(&self, address: u64) -> Result<Rc<Node>, Error> {
        if let Some(node) = self.nodes.borrow().get(&address) {
            return Ok(Rc::clone(node));
        }
        let mut bytes = vec![0; self.node_len as usize];
        self.read(address, &mut bytes)?;
        let wrong = |what: &str| damaged(format_args!("the node at {address} {what}"));
        if self.has_crc && le32(&bytes, 0)? != crc32c::crc32c(&bytes[32..]) {
            return Err(wrong("has another checksum"));
        }
        let node = Node { level: bytes[100], count: le32(&bytes, 96)? as usize, bytes };
        let room = (node.bytes.len() - HEAD) / node.entry_len();
        if le64(&node.bytes, 48)? != address || node.count > room || node.level >= LEVELS_MAX {
            return Err(wrong("contradicts itself"));
        }
        let node = Rc::new(node);
        let mut nodes = self.nodes.borrow_mut();
        if nodes.len() >= NODES_KEPT {
            nodes.clear();
        }
        nodes.insert(address, Rc::clone(&node));
        Ok(node)
    }

    /// Shows `see` each item of `first`'s object and kind from `first` on, until it returns false.
    pub(super) fn each_item(&self, tree: u64, first: Key, see: &mut See<'_>) -> Result<(), Error> {
        let mut from = first;
        // A leaf may be empty, and counts too.
        let mut seen = 0;
        loop {
            let (leaf, next) = self.leaf(tree, from)?;
            let begin = leaf.before(from)?;
            seen += 1 + leaf.count - begin;
            if seen > ITEMS_MAX {
                let what = format!("expected at most {ITEMS_MAX} items of one kind");
                return Err(Error::new(ErrorKind::TooLarge, what));
            }
            for index in begin..leaf.count {
                let key = leaf.key(index)?;
                let is_such = (key.object, key.kind) == (first.object, first.kind);
                if !is_such || !see(key, leaf.item(index)?)? {
                    return Ok(());
                }
            }
            match next {
                // Only forward, whatever the tree says.
                Some(next) if next > from => from = next,
                _ => return Ok(()),
            }
        }
    }

    /// The first item of `key`'s object and kind from `key` on. Offsets are exact but where 0 stands
    /// for any.
    pub(super) fn first_item(&self, tree: u64, key: Key) -> Result<Option<Vec<u8>>, Error> {
        let mut found = None;
        self.each_item(tree, key, &mut |at, item| {
            if key.offset == 0 || at.offset == key.offset {
                found = Some(item.to_vec());
            }
            Ok(false)
        })?;
        Ok(found)
    }

    /// The leaf in which `key` is or would be, and the key at which the next leaf begins.
    fn leaf(&self, tree: u64, key: Key) -> Result<(Rc<Node>, Option<Key>), Error> {
        let (mut node, mut next) = (self.node(tree)?, None);
        while node.level > 0 {
            if node.count == 0 {
                return Err(damaged("an inner node of a tree is empty"));
            }
            let after = node.before(key)?;
            let is_here = after < node.count && node.key(after)? == key;
            let index = if is_here { after } else { after.saturating_sub(1) };
            if index + 1 < node.count {
                next = Some(node.key(index + 1)?);
            }
            let child = self.node(node.child(index)?)?;
            if child.level + 1 != node.level {
                return Err(damaged("the levels of a tree do not descend"));
            }
            node = child;
        }
        Ok((node, next))
    }
}
