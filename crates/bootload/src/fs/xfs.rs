//! XFS, versions 4 and 5, as "XFS Algorithms & Data Structures" (3rd edition) describes it: inodes
//! with their extents in place or in a B+tree, and directories of every form.
//!
//! The journal is not replayed, as in GRUB: what was not yet written in its place is not seen.

use super::field::{be16, be32, be64, bytes, damaged, slice, text, unsupported, uuid};
use super::walk::{Inodes, Kind, Rooted};
use super::{DIRECTORY_MAX, NAMES_MAX};
use crate::partition::Region;
use crate::{Error, ErrorKind};

/// Bytes of the superblock that are read; all fields in use are in the first 264.
const SUPERBLOCK_LEN: usize = 512;
/// Extents of one file: 1 GiB in single blocks of 4 KiB.
const EXTENTS_MAX: usize = 1 << 18;
/// Blocks of a B+tree of extents: its leaves have about 250 of them.
const TREE_BLOCKS_MAX: usize = 4096;
/// A directory's entries are below this offset, its indices above (`XFS_DIR2_LEAF_OFFSET`).
const LEAF_OFFSET: u64 = 32 << 30;
/// Bytes of the target of a symbolic link (`XFS_SYMLINK_MAXLEN`).
const LINK_MAX: u64 = 1024;
/// Incompatible features that this reader understands or that don't concern it: `ftype`, sparse
/// inodes, metadata UUID, big timestamps, needs-repair, 64-bit extent counts, exchange-range, parent
/// pointers.
const INCOMPAT_KNOWN: u32 = 0xff;

/// A mounted XFS.
pub(super) struct Xfs {
    region: Region,
    uuid: String,
    label: String,
    root: u64,
    block_len: u32,
    /// Blocks of an allocation group, and the bits that number them.
    group_blocks: u32,
    group_bits: u32,
    inode_len: u32,
    /// Bits that number the inodes of a block.
    inode_bits: u32,
    directory_block_len: u32,
    /// Directory entries say what they name.
    has_types: bool,
    is_v5: bool,
    /// The journal holds changes.
    dirty: bool,
}

/// The parts of an inode that count.
struct Inode {
    kind: Kind,
    size: u64,
    format: u8,
    extents: u64,
    /// The data fork.
    fork: Vec<u8>,
}

/// A run of blocks of a file.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Its place in the file, in bytes.
    at: u64,
    len: u64,
    /// Its number as the file system counts blocks; nothing where zeros stand for it.
    block: Option<u64>,
}

/// Opens XFS, whose superblock is its first sector.
pub(super) fn open(region: &Region) -> Result<Option<Xfs>, Error> {
    if region.len() < SUPERBLOCK_LEN as u64 {
        return Ok(None);
    }
    let head = region.bytes(0, SUPERBLOCK_LEN)?;
    if head[..4] != *b"XFSB" {
        return Ok(None);
    }
    Xfs::of(region, &head).map(Some)
}

impl Xfs {
    fn of(region: &Region, head: &[u8]) -> Result<Self, Error> {
        let version = be16(head, 100)? & 0xf;
        let incompat = if version == 5 { be32(head, 216)? } else { 0 };
        if !matches!(version, 4 | 5) || incompat & !INCOMPAT_KNOWN != 0 {
            let what = format_args!("XFS version {version} with the features {incompat:#x}");
            return Err(unsupported(what));
        }
        let (block_len, inode_len) = (be32(head, 4)?, u32::from(be16(head, 104)?));
        let (inode_bits, group_bits) = (u32::from(head[123]), u32::from(head[124]));
        let group_blocks = be32(head, 84)?;
        let directory_block_len = block_len.checked_shl(head[192].into()).unwrap_or(0);
        let fits = (512..=65536).contains(&block_len)
            && block_len.is_power_of_two()
            && (256..=block_len).contains(&inode_len)
            && inode_len.checked_shl(inode_bits) == Some(block_len)
            && (1..32).contains(&group_bits)
            && group_blocks <= 1 << group_bits
            && head[192] < 8
            && (block_len..=65536).contains(&directory_block_len);
        if !fits {
            return Err(damaged("the XFS superblock contradicts itself"));
        }
        let mut fs = Self {
            region: region.clone(),
            uuid: uuid(bytes(head, 32)?),
            label: text(&head[108..120]),
            root: be64(head, 56)?,
            block_len,
            group_blocks,
            group_bits,
            inode_len,
            inode_bits,
            directory_block_len,
            has_types: if version == 5 { incompat & 1 != 0 } else { be32(head, 200)? & 0x200 != 0 },
            is_v5: version == 5,
            dirty: false,
        };
        // A journal that cannot be read is none that was closed.
        fs.dirty = fs.is_dirty(be64(head, 48)?, be32(head, 96)?).unwrap_or(true);
        Ok(fs)
    }

    /// Tells whether the journal ends in something else than the mark of a clean unmount. Each of
    /// its 512-byte blocks begins with the number of the journal's round, but for the headers of
    /// records, where it follows the magic number; the last record is before the block where the
    /// number falls.
    fn is_dirty(&self, log: u64, blocks: u32) -> Result<bool, Error> {
        const RECORD: u32 = 0xfeed_babe;
        const SECTOR: u64 = 512;
        const UNMOUNT: u8 = 0x20;
        /// The longest record: 256 KiB and its headers.
        const BACK_MAX: u64 = 520;
        let sectors = u64::from(blocks) * u64::from(self.block_len) / SECTOR;
        let (true, Some(start)) = (log != 0 && sectors > 1, self.offset(log)) else {
            return Ok(false);
        };
        let sector = |number: u64| self.region.bytes(start + number * SECTOR, SECTOR as usize);
        let round = |bytes: &[u8]| match be32(bytes, 0)? {
            RECORD => be32(bytes, 4),
            number => Ok(number),
        };
        let first = round(&sector(0)?)?;
        // The blocks of the present round come first, those of the one before follow.
        let (mut low, mut high) = (0, sectors);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if round(&sector(middle)?)? == first { low = middle } else { high = middle }
        }
        for back in (high.saturating_sub(BACK_MAX)..high).rev() {
            let header = sector(back)?;
            if be32(&header, 0)? == RECORD {
                // One operation, whose flags say that the file system was unmounted.
                let is_unmount = be32(&header, 40)? == 1
                    && back + 1 < sectors
                    && sector(back + 1)?[9] & UNMOUNT != 0;
                return Ok(!is_unmount);
            }
        }
        Ok(false)
    }

    /// The byte at which a block begins that is numbered with its group in the upper bits.
    fn offset(&self, block: u64) -> Option<u64> {
        let (group, within) = (block >> self.group_bits, block & ((1 << self.group_bits) - 1));
        let block = group.checked_mul(self.group_blocks.into())?.checked_add(within)?;
        block.checked_mul(self.block_len.into())
    }

    fn inode(&self, number: u64) -> Result<Inode, Error> {
        let block = number >> self.inode_bits;
        let within = (number & ((1 << self.inode_bits) - 1)) * u64::from(self.inode_len);
        let wrong = || damaged(format_args!("there is no inode {number}"));
        let at = self.offset(block).and_then(|at| at.checked_add(within)).ok_or_else(wrong)?;
        let mut core = self.region.bytes(at, self.inode_len as usize)?;
        if core[..2] != *b"IN" {
            return Err(wrong());
        }
        // Bit 4 of the second flags: the count of extents has 64 bits, in another place.
        let is_v3 = core[4] >= 3;
        let is_wide = is_v3 && be64(&core, 120)? & 0x10 != 0;
        let extents = if is_wide { be64(&core, 24)? } else { be32(&core, 76)?.into() };
        let (kind, size, format) =
            (Kind::of_mode(be16(&core, 2)?.into()), be64(&core, 56)?, core[5]);
        // Bit 0 of the flags: the file is on the real-time device, which is another disk.
        if kind == Kind::File && be16(&core, 90)? & 1 != 0 {
            return Err(unsupported("a file on the real-time device of XFS"));
        }
        let begin = if is_v3 { 176 } else { 100 };
        let attributes = usize::from(core[82]) * 8;
        if attributes != 0 {
            core.truncate(begin + attributes);
        }
        Ok(Inode { kind, size, format, extents, fork: core.split_off(begin) })
    }

    /// The runs of a file in the order of their places, which are checked not to overlap.
    fn runs(&self, inode: &Inode) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::new();
        match inode.format {
            2 => {
                let count = usize::try_from(inode.extents).unwrap_or(usize::MAX);
                let mut records = inode.fork.chunks_exact(16).take(count);
                records.try_for_each(|record| self.push_run(&mut runs, record))?;
            }
            3 => self.tree_runs(&inode.fork, &mut runs)?,
            format => return Err(damaged(format_args!("an inode of format {format}"))),
        }
        Ok(runs)
    }

    /// Takes one record: a bit for "not yet written", 54 of its place in the file, 52 of its block,
    /// 21 of its length.
    fn push_run(&self, runs: &mut Vec<Run>, record: &[u8]) -> Result<(), Error> {
        let (high, low) = (be64(record, 0)?, be64(record, 8)?);
        let block_len = u64::from(self.block_len);
        let at = (high >> 9 & ((1 << 54) - 1)).checked_mul(block_len);
        let (len, block) = ((low & ((1 << 21) - 1)) * block_len, (high & 0x1ff) << 43 | low >> 21);
        let end = runs.last().map_or(0, |last| last.at + last.len);
        let at = at.filter(|at| *at >= end && at.checked_add(len).is_some());
        let at = at.ok_or_else(|| damaged("extents of a file overlap"))?;
        if runs.len() == EXTENTS_MAX {
            let what = format!("expected at most {EXTENTS_MAX} extents of a file");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        runs.push(Run { at, len, block: (high >> 63 == 0).then_some(block) });
        Ok(())
    }

    /// Walks a B+tree whose root is in the inode: a level, a count, keys, and then block numbers.
    fn tree_runs(&self, root: &[u8], runs: &mut Vec<Run>) -> Result<(), Error> {
        let (mut level, mut waiting) = (be16(root, 0)?, Vec::new());
        children(root, 4, be16(root, 2)?, &mut waiting)?;
        let mut seen = 0;
        // One level after the other: all blocks of a level in their order.
        while level > 0 && !waiting.is_empty() {
            level -= 1;
            let mut below = Vec::new();
            for number in std::mem::take(&mut waiting) {
                seen += 1;
                if seen > TREE_BLOCKS_MAX {
                    let what = format!("expected at most {TREE_BLOCKS_MAX} blocks of extents");
                    return Err(Error::new(ErrorKind::TooLarge, what));
                }
                let wrong = || damaged("a B+tree of extents leads nowhere");
                let at = self.offset(number).ok_or_else(wrong)?;
                let block = self.region.bytes(at, self.block_len as usize)?;
                let head = match &block[..4] {
                    b"BMA3" => 72,
                    b"BMAP" => 24,
                    _ => return Err(wrong()),
                };
                let count = be16(&block, 6)?;
                if be16(&block, 4)? != level {
                    return Err(wrong());
                } else if level > 0 {
                    children(&block, head, count, &mut below)?;
                } else {
                    let records = slice(&block, head, usize::from(count) * 16)?;
                    let mut records = records.chunks_exact(16);
                    records.try_for_each(|record| self.push_run(runs, record))?;
                }
            }
            waiting = below;
        }
        Ok(())
    }

    /// Fills `buf` with the bytes of a file from `from` on; what no run stands for is zero.
    fn fill(&self, runs: &[Run], from: u64, buf: &mut [u8]) -> Result<(), Error> {
        let end = from + buf.len() as u64;
        let first = runs.partition_point(|run| run.at + run.len <= from);
        for run in runs[first..].iter().take_while(|run| run.at < end) {
            let (begin, stop) = (run.at.max(from), (run.at + run.len).min(end));
            let Some(block) = run.block else { continue };
            let at = self.offset(block).and_then(|at| at.checked_add(begin - run.at));
            let at = at.ok_or_else(|| damaged("an extent is beyond the end"))?;
            self.region.read(&mut buf[(begin - from) as usize..(stop - from) as usize], at)?;
        }
        Ok(())
    }

    /// Shows `see` each name of a directory with its inode, until it is content.
    fn each_entry(
        &self,
        number: u64,
        see: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<(), Error> {
        let inode = self.inode(number)?;
        if inode.format == 1 {
            return self.short_form(&inode.fork, see);
        }
        let runs = self.runs(&inode)?;
        let block_len = u64::from(self.directory_block_len);
        let (mut next, mut looked) = (0, 0);
        for run in runs.iter().take_while(|run| run.at < LEAF_OFFSET) {
            let mut at = next.max(run.at / block_len * block_len);
            while at < (run.at + run.len).min(LEAF_OFFSET) {
                looked += block_len;
                if looked > DIRECTORY_MAX {
                    let what = format!("expected at most {DIRECTORY_MAX} bytes of a directory");
                    return Err(Error::new(ErrorKind::TooLarge, what));
                }
                let mut block = vec![0; block_len as usize];
                self.fill(&runs, at, &mut block)?;
                if self.data_block(&block, see)? {
                    return Ok(());
                }
                at += block_len;
                next = at;
            }
        }
        Ok(())
    }

    /// A directory within its inode: a count, whether inode numbers have 8 bytes, the parent, entries.
    fn short_form(
        &self,
        fork: &[u8],
        see: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<(), Error> {
        let [count, wide] = bytes(fork, 0)?;
        let number_len = if wide > 0 { 8 } else { 4 };
        let mut at = 2 + number_len;
        for _ in 0..count {
            let [name_len] = bytes(fork, at)?;
            let name = slice(fork, at + 3, name_len.into())?;
            at += 3 + name.len() + usize::from(self.has_types);
            let number = if wide > 0 { be64(fork, at)? } else { be32(fork, at)?.into() };
            at += number_len;
            if see(name, number) {
                break;
            }
        }
        Ok(())
    }

    /// A block of entries, which may end in an index of its own. Tells whether `see` is content.
    fn data_block(
        &self,
        block: &[u8],
        see: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<bool, Error> {
        const FREE: u16 = 0xffff;
        let index_at = || {
            let count = be32(block, block.len() - 8)? as usize;
            let len = count.checked_mul(8).and_then(|len| len.checked_add(8));
            let at = len.and_then(|len| block.len().checked_sub(len));
            at.ok_or_else(|| damaged("a directory's index is longer than its block"))
        };
        let (mut at, end) = match &block[..4] {
            b"XDD3" => (64, block.len()),
            b"XDB3" => (64, index_at()?),
            b"XD2D" => (16, block.len()),
            b"XD2B" => (16, index_at()?),
            _ => return Err(damaged("a directory's block has no magic number")),
        };
        while at + 8 <= end {
            if be16(block, at)? == FREE {
                let len = usize::from(be16(block, at + 2)?);
                if len == 0 || !len.is_multiple_of(8) {
                    return Err(damaged("free space in a directory has no length"));
                }
                at += len;
                continue;
            }
            let (number, name_len) = (be64(block, at)?, bytes::<1>(block, at + 8)?[0]);
            if see(slice(block, at + 9, name_len.into())?, number) {
                return Ok(true);
            }
            let types = usize::from(self.has_types);
            at += (usize::from(name_len) + 11 + types).next_multiple_of(8);
        }
        Ok(false)
    }
}

/// The block numbers of an inner block, which follow as many keys as there is room for.
fn children(block: &[u8], head: usize, count: u16, found: &mut Vec<u64>) -> Result<(), Error> {
    let room = block.len().saturating_sub(head) / 16;
    if usize::from(count) > room {
        return Err(damaged("a B+tree's block has more entries than room"));
    }
    for index in 0..usize::from(count) {
        found.push(be64(block, head + room * 8 + index * 8)?);
    }
    Ok(())
}

impl Inodes for Xfs {
    type Id = u64;

    fn stat(&self, id: u64) -> Result<(Kind, u64), Error> {
        let inode = self.inode(id)?;
        Ok((inode.kind, inode.size))
    }

    fn lookup(&self, directory: u64, name: &str) -> Result<Option<u64>, Error> {
        let mut found = None;
        self.each_entry(directory, &mut |entry, number| {
            if entry == name.as_bytes() {
                found = Some(number);
            }
            found.is_some()
        })?;
        Ok(found)
    }

    fn list(&self, directory: u64) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        self.each_entry(directory, &mut |entry, _| {
            names.extend(str::from_utf8(entry).map(str::to_owned));
            names.len() > NAMES_MAX
        })?;
        Ok(names)
    }

    fn target(&self, link: u64) -> Result<String, Error> {
        const HEADER: &[u8] = b"XSLM";
        const HEADER_LEN: u64 = 56;
        let inode = self.inode(link)?;
        if inode.size > LINK_MAX {
            return Err(damaged("a symbolic link is too long"));
        }
        let len = inode.size as usize;
        let bytes = if inode.format == 1 {
            slice(&inode.fork, 0, len)?.to_vec()
        } else {
            let mut bytes = vec![0; len + HEADER_LEN as usize];
            self.fill(&self.runs(&inode)?, 0, &mut bytes)?;
            if self.is_v5 && bytes.starts_with(HEADER) {
                bytes.drain(..HEADER_LEN as usize);
            }
            bytes.truncate(len);
            bytes
        };
        String::from_utf8(bytes).map_err(|error| Error::read("a symbolic link is no text", error))
    }

    fn content(&self, file: u64, size: u64) -> Result<Vec<u8>, Error> {
        let inode = self.inode(file)?;
        let runs = self.runs(&inode)?;
        let mut bytes = vec![0; size as usize];
        self.fill(&runs, 0, &mut bytes)?;
        Ok(bytes)
    }
}

impl Rooted for Xfs {
    const KIND: &'static str = "XFS";

    fn roots(&self) -> &[Self::Id] {
        std::slice::from_ref(&self.root)
    }

    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn note(&self) -> Option<&'static str> {
        self.dirty.then_some("its journal holds changes, which are not seen")
    }
}
