//! The header: parsed, checked, and refused by name where it asks for a parent.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::blockmap::{Geometry, Table};
use crate::error::corrupt;
use crate::raw::round_up;
use crate::{Error, ErrorKind};

/// Major and minor number of the only version that anyone writes, since 2007.
const VERSION: u32 = 0x0001_0001;
/// A bound for the bytes of a block, far above the one MiB that everyone uses.
const BLOCK_MAX: u32 = 256 << 20;

/// `VDIPREHEADER` and `VDIHEADER1PLUS`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    text: [u8; 64],
    signature: U32,
    version: U32,
    header_size: U32,
    image_type: U32,
    flags: U32,
    comment: [u8; 256],
    map_offset: U32,
    data_offset: U32,
    geometry: [U32; 3],
    sector_size: U32,
    unused: U32,
    disk_size: U64,
    block_size: U32,
    block_extra: U32,
    blocks: U32,
    blocks_allocated: U32,
    uuid: [u8; 16],
    uuid_modified: [u8; 16],
    uuid_parent: [u8; 16],
    uuid_parent_modified: [u8; 16],
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const VERSION: u64 = 68;
    pub(super) const IMAGE_TYPE: u64 = 76;
    pub(super) const MAP_OFFSET: u64 = 340;
    pub(super) const DATA_OFFSET: u64 = 344;
    pub(super) const SECTOR_SIZE: u64 = 360;
    pub(super) const DISK_SIZE: u64 = 368;
    pub(super) const BLOCK_SIZE: u64 = 376;
    pub(super) const BLOCK_EXTRA: u64 = 380;
    pub(super) const BLOCKS: u64 = 384;
    pub(super) const UUID_PARENT: u64 = 424;
}

/// `VDIIMAGETYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dynamic,
    Fixed,
    Undo,
    Differencing,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "fixed",
            Self::Undo => "undo",
            Self::Differencing => "differencing",
        }
    }
}

/// A header that keeps the format's rules. It may still ask for a parent: see [`Header::refusal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(super) kind: Kind,
    pub(crate) virtual_size: u64,
    pub(super) block: u64,
    pub(super) map_at: u64,
    data_at: u64,
    block_extra: u64,
    blocks: u32,
    has_parent: bool,
}

impl Header {
    /// Parses the header of a file that begins with `head`.
    pub(crate) fn parse(head: &[u8]) -> Result<Self, Error> {
        let (fixed, _) = Fixed::ref_from_prefix(head).map_err(|_| {
            let what = "the file ends inside the VDI header";
            Error::new(ErrorKind::Truncated, what).at(head.len() as u64)
        })?;
        let version = fixed.version.get();
        if version != VERSION {
            let what =
                format!("expected VDI version 1.1, got {}.{}", version >> 16, version & 0xffff);
            return Err(Error::new(ErrorKind::Unsupported, what).at(at::VERSION));
        }
        let kind = match fixed.image_type.get() {
            1 => Kind::Dynamic,
            2 => Kind::Fixed,
            3 => Kind::Undo,
            4 => Kind::Differencing,
            other => {
                let what = format!("expected a VDI image type of 1 to 4, got {other}");
                return Err(Error::new(ErrorKind::Unsupported, what).at(at::IMAGE_TYPE));
            }
        };
        let header = Self {
            kind,
            virtual_size: round_up(fixed.disk_size.get()),
            block: fixed.block_size.get().into(),
            map_at: fixed.map_offset.get().into(),
            data_at: fixed.data_offset.get().into(),
            block_extra: fixed.block_extra.get().into(),
            blocks: fixed.blocks.get(),
            has_parent: fixed.uuid_parent != [0; 16],
        };
        check_sizes(fixed)?;
        header.check_places()?;
        Ok(header)
    }

    /// Why this crate does not read the image, if it does not.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let (what, at) = match self.kind {
            Kind::Undo | Kind::Differencing => (
                format!("the disk is a VDI of the {} kind, over another one", self.kind.name()),
                at::IMAGE_TYPE,
            ),
            _ if self.has_parent => {
                ("the disk is linked to a parent VDI".to_owned(), at::UUID_PARENT)
            }
            _ => return None,
        };
        Some(Error::new(ErrorKind::NeedsOtherFile, what).at(at))
    }

    /// What the map's entries mean: numbers of blocks, with their extra bytes, in the data area.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            virtual_size: self.virtual_size,
            block: self.block,
            unit: self.block_extra + self.block,
            base: self.data_at,
            lead: self.block_extra,
            table: Table { at: self.map_at, entry: 4, chunk: u64::MAX, decode },
            reserved: vec![(0, self.data_at, "header and the block map")],
        }
    }

    /// The header, the map and the data stand in this order without overlap.
    fn check_places(&self) -> Result<(), Error> {
        let mapped = u64::from(self.blocks) * self.block;
        if mapped < self.virtual_size {
            let size = self.virtual_size;
            let what = format!("the block map is for {mapped} bytes of a disk of {size}");
            return Err(corrupt(what, at::BLOCKS));
        }
        if self.map_at < size_of::<Fixed>() as u64 {
            return Err(corrupt("the block map overlaps the header", at::MAP_OFFSET));
        }
        if self.data_at < self.map_at + u64::from(self.blocks) * 4 {
            let what = "the data area begins before the end of the block map";
            return Err(corrupt(what, at::DATA_OFFSET));
        }
        Ok(())
    }
}

/// An entry of the block map. 0xffffffff stands for a block that was never written, 0xfffffffe for
/// one that was and is all zeros.
fn decode(entry: &[u8], at: u64) -> Result<Option<u32>, Error> {
    const DISCARDED: u32 = 0xffff_fffe;
    let entry = U32::read_from_bytes(entry).map_err(|_| corrupt("no entry", at))?.get();
    Ok((entry < DISCARDED).then_some(entry))
}

fn check_sizes(fixed: &Fixed) -> Result<(), Error> {
    let size = fixed.disk_size.get();
    if size > i64::MAX as u64 {
        let what = format!("a disk of {size} bytes is beyond 2^63 - 1");
        return Err(Error::new(ErrorKind::TooLarge, what).at(at::DISK_SIZE));
    }
    let sector = fixed.sector_size.get();
    if sector != 512 {
        return Err(corrupt(
            format!("expected sectors of 512 bytes, got {sector}"),
            at::SECTOR_SIZE,
        ));
    }
    let block = fixed.block_size.get();
    if !block.is_power_of_two() || !(512..=BLOCK_MAX).contains(&block) {
        let what = format!("expected blocks of 2^9 to 2^28 bytes, got {block}");
        return Err(corrupt(what, at::BLOCK_SIZE));
    }
    let extra = fixed.block_extra.get();
    if !extra.is_multiple_of(512) || extra > BLOCK_MAX {
        let what = format!("expected extra data of whole sectors in each block, got {extra} bytes");
        return Err(corrupt(what, at::BLOCK_EXTRA));
    }
    Ok(())
}
