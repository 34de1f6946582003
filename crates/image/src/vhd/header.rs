//! The dynamic disk header: parsed, checked, and refused by name where the disk has a parent.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::footer::{FOOTER_LEN, Footer, Kind, check_sum};
use crate::blockmap::{Geometry, Table};
use crate::error::corrupt;
use crate::raw::SECTOR;
use crate::sniff::printable;
use crate::{Error, ErrorKind, ReadAt};

/// The bytes of a header.
pub(super) const HEADER_LEN: usize = 1024;
/// A bound for the bytes of a block, far above the two MiB that everyone uses.
const BLOCK_MAX: u32 = 256 << 20;
/// The largest dynamic disk, 2040 GiB: QEMU's and Hyper-V's limit.
const VIRTUAL_SIZE_MAX: u64 = 0xff00_0000 * SECTOR;

/// "Dynamic Disk Header Format".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    version: U32,
    max_entries: U32,
    block_size: U32,
    checksum: U32,
    parent_uuid: [u8; 16],
    parent_time_stamp: U32,
    reserved: U32,
    parent_name: [[u8; 2]; 256],
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const TABLE_OFFSET: u64 = 16;
    pub(super) const VERSION: u64 = 24;
    pub(super) const MAX_ENTRIES: u64 = 28;
    pub(super) const BLOCK_SIZE: u64 = 32;
    pub(super) const CHECKSUM: u64 = 36;
    pub(super) const PARENT_NAME: u64 = 64;
}

/// A header that keeps the format's rules. It may still ask for a parent: see [`Header::refusal`].
#[derive(Debug)]
pub(super) struct Header {
    pub(super) block: u64,
    pub(super) parent_name: String,
    at: u64,
    table_at: u64,
    table_end: u64,
}

impl Header {
    /// Reads and checks the header that `footer` names.
    pub(super) fn read(source: &(impl ReadAt + ?Sized), footer: &Footer) -> Result<Self, Error> {
        let at = footer.header_at()?;
        let mut bytes = [0; HEADER_LEN];
        source.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
        let (fixed, _) =
            Fixed::ref_from_prefix(&bytes).expect("a header is longer than its fields");
        if &fixed.cookie != b"cxsparse" {
            return Err(corrupt("the footer names a dynamic disk header that is none", at));
        }
        check_sum("dynamic disk header", &bytes, at, at::CHECKSUM as usize)?;
        let version = fixed.version.get();
        if version >> 16 != 1 {
            let what = format!("expected dynamic disk header version 1, got {}", version >> 16);
            return Err(Error::new(ErrorKind::Unsupported, what).at(at + at::VERSION));
        }
        let header = Self {
            block: fixed.block_size.get().into(),
            parent_name: parent_name(&fixed.parent_name),
            at,
            table_at: fixed.table_offset.get(),
            table_end: fixed
                .table_offset
                .get()
                .saturating_add(u64::from(fixed.max_entries.get()) * 4),
        };
        header.check(fixed, footer.dynamic_size())?;
        Ok(header)
    }

    fn check(&self, fixed: &Fixed, virtual_size: u64) -> Result<(), Error> {
        let block = fixed.block_size.get();
        if !block.is_power_of_two() || !(512..=BLOCK_MAX).contains(&block) {
            let what = format!("expected blocks of 2^9 to 2^28 bytes, got {block}");
            return Err(corrupt(what, self.at + at::BLOCK_SIZE));
        }
        if virtual_size > VIRTUAL_SIZE_MAX {
            let what = format!("expected a disk of at most 2040 GiB, got {virtual_size} bytes");
            return Err(Error::new(ErrorKind::TooLarge, what).at(self.at));
        }
        let mapped = u64::from(fixed.max_entries.get()) * self.block;
        if mapped < virtual_size {
            let what = format!("the block table is for {mapped} bytes of a disk of {virtual_size}");
            return Err(corrupt(what, self.at + at::MAX_ENTRIES));
        }
        let (table, end) = (self.table_at, self.table_end);
        let header_end = self.at + HEADER_LEN as u64;
        let overlaps = table < FOOTER_LEN as u64 || (table < header_end && self.at < end);
        if overlaps || end > i64::MAX as u64 {
            let what = format!("the block table is at {table:#x}, in a header or beyond any file");
            return Err(corrupt(what, self.at + at::TABLE_OFFSET));
        }
        Ok(())
    }

    /// Why this crate does not read the image, if it does not.
    pub(super) fn refusal(&self, footer: &Footer) -> Option<Error> {
        (footer.kind == Kind::Differencing).then(|| {
            let what = format!("the disk is a differencing VHD over `{}`", self.parent_name);
            Error::new(ErrorKind::NeedsOtherFile, what).at(self.at + at::PARENT_NAME)
        })
    }

    /// What the table's entries mean: the sector where a block's bitmap is, with its data behind.
    pub(super) fn geometry(&self, footer: &Footer) -> Geometry {
        let bitmap = (self.block / SECTOR).div_ceil(8);
        Geometry {
            virtual_size: footer.dynamic_size(),
            block: self.block,
            unit: SECTOR,
            base: 0,
            lead: bitmap.next_multiple_of(SECTOR),
            table: Table { at: self.table_at, entry: 4, chunk: u64::MAX, decode },
            reserved: vec![
                (0, FOOTER_LEN as u64, "copy of the footer"),
                (self.at, self.at + HEADER_LEN as u64, "dynamic disk header"),
                (self.table_at, self.table_end, "block table"),
            ],
        }
    }
}

/// "Block Allocation Table": an entry that is not used is 0xffffffff.
fn decode(entry: &[u8], at: u64) -> Result<Option<u32>, Error> {
    let entry = U32::read_from_bytes(entry).map_err(|_| corrupt("no entry", at))?.get();
    Ok((entry != u32::MAX).then_some(entry))
}

/// "Parent Unicode Name": UTF-16, big-endian.
fn parent_name(units: &[[u8; 2]]) -> String {
    let units = units.iter().map(|unit| u16::from_be_bytes(*unit)).take_while(|unit| *unit != 0);
    let name: String =
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    printable(name.as_bytes())
}
