//! The footer: parsed, checked, and the size that it gives.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::corrupt;
use crate::raw::{SECTOR, round_up};
use crate::{Error, ErrorKind, Format, Info, ReadAt};

/// The bytes of a footer. Those before Virtual PC 2004 are one byte shorter.
pub(crate) const FOOTER_LEN: usize = 512;
const OLD_FOOTER_LEN: u64 = 511;
const COOKIE: &[u8; 8] = b"conectix";

/// "Hard Disk Footer Format".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    data_offset: U64,
    time_stamp: U32,
    creator: [u8; 4],
    creator_version: U32,
    creator_host: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    disk_type: U32,
    checksum: U32,
    uuid: [u8; 16],
    saved_state: u8,
}

/// Offsets of footer fields that errors point at.
mod at {
    pub(super) const VERSION: u64 = 12;
    pub(super) const DATA_OFFSET: u64 = 16;
    pub(super) const CURRENT_SIZE: u64 = 48;
    pub(super) const DISK_TYPE: u64 = 60;
    pub(super) const CHECKSUM: u64 = 64;
}

/// "Disk Type".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

/// A footer whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) kind: Kind,
    /// Where it was found.
    at: u64,
    data_offset: u64,
    creator: [u8; 4],
    current_size: u64,
    /// Cylinders, heads, sectors.
    geometry: [u64; 3],
    saved_state: bool,
}

impl Footer {
    /// True if `bytes` begin as a footer does.
    pub(super) fn is_at_start_of(bytes: &[u8]) -> bool {
        bytes.starts_with(COOKIE)
    }

    /// Parses the footer that `bytes` begin with, which stand at `at` of the file.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<Self, Error> {
        let bytes = bytes.get(..FOOTER_LEN).ok_or_else(|| {
            let what = "the file ends inside the VHD footer";
            Error::new(ErrorKind::Truncated, what).at(at + bytes.len() as u64)
        })?;
        let (fixed, _) = Fixed::ref_from_prefix(bytes).expect("a footer is longer than its fields");
        check_sum("footer", bytes, at, at::CHECKSUM as usize)?;
        let version = fixed.version.get();
        if version >> 16 != 1 {
            let what = format!("expected VHD version 1, got {}", version >> 16);
            return Err(Error::new(ErrorKind::Unsupported, what).at(at + at::VERSION));
        }
        let kind = match fixed.disk_type.get() {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => {
                let what = format!("expected a VHD disk type of 2 to 4, got {other}");
                return Err(Error::new(ErrorKind::Unsupported, what).at(at + at::DISK_TYPE));
            }
        };
        Ok(Self {
            kind,
            at,
            data_offset: fixed.data_offset.get(),
            creator: fixed.creator,
            current_size: fixed.current_size.get(),
            geometry: [fixed.cylinders.get().into(), fixed.heads.into(), fixed.sectors.into()],
            saved_state: fixed.saved_state != 0,
        })
    }

    /// Where the dynamic disk header is.
    pub(super) fn header_at(&self) -> Result<u64, Error> {
        let (header, at) = (self.data_offset, self.at + at::DATA_OFFSET);
        if self.kind == Kind::Fixed {
            let what = "the file begins with the footer of a fixed VHD, which has no copy there";
            return Err(corrupt(what, self.at + at::DISK_TYPE));
        }
        if header < FOOTER_LEN as u64 {
            return Err(corrupt("the dynamic disk header overlaps the footer's copy", at));
        }
        if header > i64::MAX as u64 {
            return Err(corrupt(format!("the dynamic disk header is at {header:#x}"), at));
        }
        Ok(header)
    }

    /// The size of a dynamic disk.
    ///
    /// Virtual PC, and QEMU in its image, give a guest what cylinders, heads and sectors tell,
    /// which may be a little less than the size that is written down. All others use the size; and
    /// these two must, where the geometry is the largest that there is. (QEMU goes by the geometry
    /// also for writers that it does not know, such as `VirtualBox`, and cuts off their last bytes.)
    pub(super) fn dynamic_size(&self) -> u64 {
        const BY_GEOMETRY: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];
        const LARGEST: [u64; 3] = [65535, 16, 255];
        let by_geometry = BY_GEOMETRY.contains(&self.creator);
        match self.geometry.iter().product::<u64>() * SECTOR {
            size if by_geometry && size > 0 && self.geometry != LARGEST => size,
            _ => self.current_size - self.current_size % SECTOR,
        }
    }

    /// True if the file in `source` has an end that can be read, and it is not this footer.
    pub(super) fn is_missing_at_end_of(&self, source: &dyn ReadAt) -> bool {
        let at = source.len().saturating_sub(FOOTER_LEN as u64);
        let mut bytes = [0; FOOTER_LEN];
        let read = source.read_exact_at(&mut bytes, at).is_ok();
        let same = || Self::parse(&bytes, self.at).is_ok_and(|end| end == *self);
        read && !(Self::is_at_start_of(&bytes) && same())
    }

    pub(super) fn describe(&self, info: &mut Info) {
        info.variant = Some(self.kind.name().to_owned());
        info.version = Some(1);
        if self.saved_state {
            info.notes.push("the disk belongs to a machine whose state was saved".to_owned());
        }
    }
}

/// "Checksum": the one's complement of the sum of the other bytes.
pub(super) fn check_sum(what: &str, bytes: &[u8], at: u64, field: usize) -> Result<(), Error> {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let expected = !(sum(&bytes[..field]) + sum(&bytes[field + 4..]));
    let got = U32::read_from_bytes(&bytes[field..field + 4]).map_or(0, U32::get);
    if expected == got {
        return Ok(());
    }
    let what = format!("the {what}'s checksum is {got:#010x}, expected {expected:#010x}");
    Err(corrupt(what, at + field as u64))
}

/// The footer of a fixed disk.
///
/// The disk's size is the one that is written down, whoever wrote it: it is also how much of the
/// file comes before the footer, and a stream of it is over before its geometry is known.
#[derive(Debug)]
pub(crate) struct FixedFooter {
    pub(crate) virtual_size: u64,
    footer: Footer,
}

impl FixedFooter {
    /// Looks for a footer in `tail`, the last bytes of a file of `len` bytes. Something that begins
    /// as one but is not right is an error.
    pub(crate) fn parse(tail: &[u8], len: u64) -> Result<Option<Self>, Error> {
        let footer_len = match len % SECTOR {
            0 => FOOTER_LEN as u64,
            OLD_FOOTER_LEN => OLD_FOOTER_LEN,
            _ => return Ok(None),
        };
        let Some(skip) = (tail.len() as u64).checked_sub(footer_len) else { return Ok(None) };
        let mut bytes = tail[skip as usize..].to_vec();
        if !Footer::is_at_start_of(&bytes) {
            return Ok(None);
        }
        bytes.resize(FOOTER_LEN, 0);
        let at = len - footer_len;
        let footer = Footer::parse(&bytes, at)?;
        if footer.kind != Kind::Fixed {
            let kind = footer.kind.name();
            let what = format!("the file ends as a {kind} VHD, but does not begin as one");
            return Err(corrupt(what, at + at::DISK_TYPE));
        }
        let size = footer.current_size;
        if size != at {
            let what = format!("the footer is that of a fixed VHD of {size} bytes, got {at} bytes");
            return Err(corrupt(what, at + at::CURRENT_SIZE));
        }
        Ok(Some(Self { virtual_size: round_up(size), footer }))
    }

    pub(crate) fn describe(&self, info: &mut Info) {
        info.format = Format::Vhd;
        info.chain = vec![Format::Vhd];
        info.virtual_size = Some(self.virtual_size);
        info.allocated = Some(self.virtual_size);
        self.footer.describe(info);
    }
}
