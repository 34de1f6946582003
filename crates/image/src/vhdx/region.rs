//! The region table (§2.2.3): where the metadata and the block allocation table are.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{Header, is_valid};
use super::{MIB, show_guid};
use crate::blockmap::check_inside;
use crate::error::corrupt;
use crate::{Error, ErrorKind, ReadAt};

/// Where the copies of the table are, and how many bytes each has.
const TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
pub(super) const TABLE_LEN: usize = 64 << 10;
/// The end of the last copy.
pub(super) const TABLES_END: u64 = TABLES_AT[1] + TABLE_LEN as u64;
const ENTRIES_MAX: u32 = 2047;

/// 2DC27766-F623-4200-9D64-115E9BFD4A08
const BAT: [u8; 16] = 0x6677c22d23f600429d64115e9bfd4a08_u128.to_be_bytes();
/// 8B7CA206-4790-4B9A-B8FE-575F050F886E
const METADATA: [u8; 16] = 0x06a27c8b90479a4bb8fe575f050f886e_u128.to_be_bytes();

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    signature: [u8; 4],
    checksum: U32,
    entries: U32,
    reserved: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Entry {
    guid: [u8; 16],
    offset: U64,
    len: U32,
    flags: U32,
}

/// The regions that are needed: from where to where each is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) metadata: (u64, u64),
    pub(super) bat: (u64, u64),
}

impl Regions {
    /// Reads the first valid copy of the table.
    pub(super) fn read(source: &impl ReadAt, header: &Header) -> Result<Self, Error> {
        for at in TABLES_AT {
            let mut bytes = vec![0; TABLE_LEN];
            source.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
            if is_valid(&mut bytes, b"regi") {
                return Self::parse(&bytes, at, header.log);
            }
        }
        let what = "neither copy of the region table has its signature and checksum";
        Err(corrupt(what, TABLES_AT[0]))
    }

    fn parse(bytes: &[u8], at: u64, log: (u64, u64)) -> Result<Self, Error> {
        let (fixed, rest) =
            Fixed::ref_from_prefix(bytes).expect("a table is longer than its start");
        let count = fixed.entries.get();
        if count > ENTRIES_MAX {
            let what = format!("expected at most {ENTRIES_MAX} regions, got {count}");
            return Err(corrupt(what, at + 8));
        }
        let mut taken = vec![(0, MIB), log];
        let (mut bat, mut metadata) = (None, None);
        for (index, entry) in rest.chunks_exact(32).take(count as usize).enumerate() {
            let at = at + 16 + index as u64 * 32;
            let (entry, _) = Entry::ref_from_prefix(entry).expect("a chunk is an entry");
            let region = place(entry, &mut taken, at)?;
            match entry.guid {
                BAT => bat = Some(region),
                METADATA => metadata = Some(region),
                guid if entry.flags.get() & 1 != 0 => {
                    let what = format!("the unknown region {} is required", show_guid(&guid));
                    return Err(Error::new(ErrorKind::Unsupported, what).at(at));
                }
                _ => {}
            }
        }
        let missing = |what: &str| corrupt(format!("the region table does not name {what}"), at);
        Ok(Self {
            bat: bat.ok_or_else(|| missing("the block allocation table"))?,
            metadata: metadata.ok_or_else(|| missing("the metadata region"))?,
        })
    }

    /// Checks that the regions are in a file of `len` bytes.
    pub(super) fn check_inside(&self, len: u64) -> Result<(), Error> {
        for (what, (from, to)) in
            [("metadata region", self.metadata), ("block allocation table", self.bat)]
        {
            check_inside(what, from, to - from, len)?;
        }
        Ok(())
    }
}

/// Where the region of `entry` is. It must not share bytes with what is `taken`, and is then.
fn place(entry: &Entry, taken: &mut Vec<(u64, u64)>, at: u64) -> Result<(u64, u64), Error> {
    let (from, len) = (entry.offset.get(), u64::from(entry.len.get()));
    let whole = from.is_multiple_of(MIB) && len.is_multiple_of(MIB) && len > 0;
    if !whole || from > i64::MAX as u64 {
        let what = format!("expected a region of whole MiB, got {len} bytes at {from:#x}");
        return Err(corrupt(what, at + 16));
    }
    let to = from + len;
    if taken.iter().any(|(begin, end)| from < *end && *begin < to) {
        let what = format!("the region at {from:#x} overlaps another one, the log or the headers");
        return Err(corrupt(what, at + 16));
    }
    taken.push((from, to));
    Ok((from, to))
}
