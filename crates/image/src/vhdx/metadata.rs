//! The metadata table (§2.6): the sizes of the disk, its blocks and sectors, and its parent.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::show_guid;
use crate::error::corrupt;
use crate::sniff::printable;
use crate::{Error, ErrorKind, ReadAt};

/// The bytes of the table; the items are behind it.
const TABLE_LEN: u64 = 64 << 10;
const ENTRIES_MAX: u16 = 2047;
const ITEM_MAX: u64 = 1 << 20;
/// Of a parent locator no more is looked at than this.
const LOCATOR_MAX: u64 = 64 << 10;
const LOCATOR_ENTRIES_MAX: u16 = 64;
/// "Virtual Disk Size": 64 TiB.
const VIRTUAL_SIZE_MAX: u64 = 64 << 40;

/// CAA16737-FA36-4D43-B3B6-33F0AA44E76B
const FILE_PARAMETERS: [u8; 16] = 0x3767a1ca36fa434db3b633f0aa44e76b_u128.to_be_bytes();
/// 2FA54224-CD1B-4876-B211-5DBED83BF4B8
const VIRTUAL_SIZE: [u8; 16] = 0x2442a52f1bcd7648b2115dbed83bf4b8_u128.to_be_bytes();
/// 8141BF1D-A96F-4709-BA47-F233A8FAAB5F
const LOGICAL_SECTOR: [u8; 16] = 0x1dbf41816fa90947ba47f233a8faab5f_u128.to_be_bytes();
/// CDA348C7-445D-4471-9CC9-E9885251C556
const PHYSICAL_SECTOR: [u8; 16] = 0xc748a3cd5d4471449cc9e9885251c556_u128.to_be_bytes();
/// BECA12AB-B2E6-4523-93EF-C309E000C746
const PAGE_83: [u8; 16] = 0xab12cabee6b2234593efc309e000c746_u128.to_be_bytes();
/// A8D35F2D-B30B-454D-ABF7-D3D84834AB0C
const PARENT_LOCATOR: [u8; 16] = 0x2d5fd3a80bb34d45abf7d3d84834ab0c_u128.to_be_bytes();

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    signature: [u8; 8],
    reserved: U16,
    entries: U16,
    reserved_too: [u8; 20],
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Entry {
    id: [u8; 16],
    offset: U32,
    len: U32,
    flags: U32,
    reserved: U32,
}

/// What the items tell, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) block: u64,
    pub(super) virtual_size: u64,
    pub(super) sector: u32,
    /// The file that the disk is an overlay over, by the first of its names.
    pub(super) parent: Option<String>,
    fixed: bool,
    has_parent: bool,
    parameters_at: u64,
}

impl Metadata {
    /// Reads the items in the region that goes `from` here `to` there.
    pub(super) fn read(source: &impl ReadAt, (from, to): (u64, u64)) -> Result<Self, Error> {
        let mut table = vec![0; TABLE_LEN as usize];
        source.read_exact_at(&mut table, from).map_err(|error| Error::read(error, from))?;
        let items = Items::parse(&table, from, to)?;
        let (parameters_at, [block, flags]) =
            items.words(source, FILE_PARAMETERS, "file parameters")?;
        let (size_at, [low, high]) = items.words(source, VIRTUAL_SIZE, "virtual disk size")?;
        let (sector_at, [sector]) = items.words(source, LOGICAL_SECTOR, "logical sector size")?;
        let metadata = Self {
            block: block.into(),
            virtual_size: u64::from(high) << 32 | u64::from(low),
            sector,
            fixed: flags & 1 != 0,
            has_parent: flags & 2 != 0,
            parent: items.find(PARENT_LOCATOR).and_then(|(at, len)| parent(source, at, len)),
            parameters_at,
        };
        metadata.check(size_at, sector_at)?;
        Ok(metadata)
    }

    fn check(&self, size_at: u64, sector_at: u64) -> Result<(), Error> {
        let Self { block, virtual_size, sector, .. } = self;
        if !block.is_power_of_two() || !(1 << 20..=256 << 20).contains(block) {
            let what = format!("expected blocks of 2^20 to 2^28 bytes, got {block}");
            return Err(corrupt(what, self.parameters_at));
        }
        if !matches!(sector, 512 | 4096) {
            let what = format!("expected sectors of 512 or 4096 bytes, got {sector}");
            return Err(corrupt(what, sector_at));
        }
        if *virtual_size > VIRTUAL_SIZE_MAX {
            let what = format!("expected a disk of at most 64 TiB, got {virtual_size} bytes");
            return Err(Error::new(ErrorKind::TooLarge, what).at(size_at));
        }
        if !virtual_size.is_multiple_of(u64::from(*sector)) {
            let what = format!("{virtual_size} bytes are not whole sectors of {sector}");
            return Err(corrupt(what, size_at));
        }
        Ok(())
    }

    /// "Chunk Ratio" (§2.5): after so many entries for blocks comes one for a bitmap.
    pub(super) fn chunk_ratio(&self) -> u64 {
        (u64::from(self.sector) << 23) / self.block
    }

    pub(super) const fn variant(&self) -> &'static str {
        match (self.has_parent, self.fixed) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        }
    }

    /// Why this crate does not read the image, if it does not.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.has_parent.then(|| {
            let what = match &self.parent {
                Some(name) => format!("the disk is a differencing VHDX over `{name}`"),
                None => "the disk is a differencing VHDX that does not name its parent".to_owned(),
            };
            Error::new(ErrorKind::NeedsOtherFile, what).at(self.parameters_at + 4)
        })
    }
}

/// The items that this crate knows: identifier, place, length.
struct Items {
    known: Vec<([u8; 16], u64, u64)>,
    table_at: u64,
}

impl Items {
    fn parse(table: &[u8], from: u64, to: u64) -> Result<Self, Error> {
        let (fixed, rest) =
            Fixed::ref_from_prefix(table).expect("a table is longer than its start");
        if &fixed.signature != b"metadata" {
            return Err(corrupt("the metadata region does not begin with a metadata table", from));
        }
        let count = fixed.entries.get();
        if count > ENTRIES_MAX {
            let what = format!("expected at most {ENTRIES_MAX} metadata items, got {count}");
            return Err(corrupt(what, from + 10));
        }
        let mut known = Vec::new();
        for (index, entry) in rest.chunks_exact(32).take(count.into()).enumerate() {
            let at = from + 32 + index as u64 * 32;
            let (entry, _) = Entry::ref_from_prefix(entry).expect("a chunk is an entry");
            let (offset, len) = (u64::from(entry.offset.get()), u64::from(entry.len.get()));
            if (offset < TABLE_LEN && len > 0) || offset + len > to - from || len > ITEM_MAX {
                let what = format!("a metadata item of {len} bytes at {offset:#x} does not fit");
                return Err(corrupt(what, at + 16));
            }
            match entry.id {
                FILE_PARAMETERS | VIRTUAL_SIZE | LOGICAL_SECTOR | PARENT_LOCATOR => {
                    known.push((entry.id, from + offset, len));
                }
                PHYSICAL_SECTOR | PAGE_83 => {}
                // "IsRequired".
                id if entry.flags.get() & 4 != 0 => {
                    let what = format!("the unknown metadata item {} is required", show_guid(&id));
                    return Err(Error::new(ErrorKind::Unsupported, what).at(at));
                }
                _ => {}
            }
        }
        Ok(Self { known, table_at: from })
    }

    fn find(&self, id: [u8; 16]) -> Option<(u64, u64)> {
        self.known.iter().find(|item| item.0 == id).map(|(_, at, len)| (*at, *len))
    }

    /// Where the item `id` is, and its `N` numbers of 32 bits.
    fn words<const N: usize>(
        &self,
        source: &impl ReadAt,
        id: [u8; 16],
        name: &str,
    ) -> Result<(u64, [u32; N]), Error> {
        let missing = || corrupt(format!("the metadata does not tell the {name}"), self.table_at);
        let (at, len) = self.find(id).ok_or_else(missing)?;
        if len != 4 * N as u64 {
            let what = format!("expected {} bytes of {name}, got {len}", 4 * N);
            return Err(corrupt(what, at));
        }
        let mut words = [0; N];
        for (at, word) in (at..).step_by(4).zip(&mut words) {
            let mut bytes = [0; 4];
            source.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
            *word = u32::from_le_bytes(bytes);
        }
        Ok((at, words))
    }
}

/// "Parent Locator" (§2.6.2.6): one of the parent's names, if there is any in the right form.
fn parent(source: &impl ReadAt, at: u64, len: u64) -> Option<String> {
    let mut bytes = vec![0; len.min(LOCATOR_MAX) as usize];
    source.read_exact_at(&mut bytes, at).ok()?;
    let count = u16::from_le_bytes([*bytes.get(18)?, *bytes.get(19)?]).min(LOCATOR_ENTRIES_MAX);
    let text = |offset: &[u8], len: &[u8]| -> Option<String> {
        let offset = u32::from_le_bytes(offset.try_into().ok()?) as usize;
        let len = u16::from_le_bytes(len.try_into().ok()?) as usize;
        let units = bytes.get(offset..)?.get(..len)?.chunks_exact(2);
        let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let c = |c: Result<char, _>| c.unwrap_or(char::REPLACEMENT_CHARACTER);
        Some(char::decode_utf16(units).map(c).collect())
    };
    let pairs: Vec<(String, String)> = bytes[20..]
        .chunks_exact(12)
        .take(count.into())
        .filter_map(|e| Some((text(&e[..4], &e[8..10])?, text(&e[4..8], &e[10..12])?)))
        .collect();
    ["relative_path", "absolute_win32_path", "volume_path"].iter().find_map(|key| {
        let (_, value) = pairs.iter().find(|(name, _)| name == key)?;
        Some(printable(value.as_bytes()))
    })
}
