//! The header of a sparse extent, and its copy in the footer.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::descriptor::Descriptor;
use super::unsupported;
use crate::error::{corrupt, too_large};
use crate::raw::SECTOR;
use crate::sniff::printable;
use crate::{Error, ErrorKind, ReadAt};

/// "Hosted Sparse Extents": the header fills a sector.
pub(super) const HEADER_LEN: u64 = SECTOR;

/// "Hosted Sparse Extents", magic number; what a text begins with; the older format of ESX; its
/// newer one, two little-endian numbers of 64 bits.
const MAGIC: &[u8] = b"KDMV";
const TEXT_MAGIC: &[u8] = b"#";
const COWD_MAGIC: &[u8] = b"COWD";
const SESPARSE_MAGIC: &[u8] = b"\xbe\xba\xfe\xca\0\0\0\0\x01\0\0\0\x02\0\0\0";

/// A file begins with its descriptor, or has it near the beginning: all writers put it into
/// sector 1, and give it 20 sectors.
const DESCRIPTOR_END_MAX: u64 = 64 << 10;

/// The largest grain. The specification wants powers of two and more than 8 sectors, and all writers
/// take 128; a compressed grain has to fit into memory.
const GRAIN_SECTORS_MAX: u64 = 4096;

/// The specification's only value for the entries of a grain table.
pub(super) const GTES: u64 = 512;

/// Entries of the grain directories of a disk: those of 32 TiB with grains of 64 KiB, in 4 MiB.
pub(super) const GD_ENTRIES_MAX: u64 = 1 << 20;

/// The grain directory's place is in the footer.
const GD_AT_END: u64 = u64::MAX;

/// What may stand behind the end-of-stream marker: zeros that fill up a block of some storage.
pub(super) const PADDING_MAX: u64 = 64 << 10;

/// The end of a file with a footer: its marker, the footer, the end-of-stream marker.
pub(super) const FOOTER_LEN: u64 = 3 * SECTOR;

/// "Stream-Optimized Compressed Sparse Extents": a grain's marker, behind which its data begins.
pub(super) const MARKER_LEN: u64 = 12;

/// The largest virtual size in sectors: what a file offset can hold.
pub(super) const SECTORS_MAX: u64 = i64::MAX as u64 / SECTOR;

/// "Hosted Sparse Extents".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    capacity: U64,
    grain_size: U64,
    descriptor_offset: U64,
    descriptor_size: U64,
    gtes_per_gt: U32,
    rgd_offset: U64,
    gd_offset: U64,
    overhead: U64,
    unclean_shutdown: u8,
    newlines: [u8; 4],
    compress_algorithm: U16,
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const VERSION: u64 = 4;
    pub(super) const FLAGS: u64 = 8;
    pub(super) const CAPACITY: u64 = 12;
    pub(super) const GRAIN_SIZE: u64 = 20;
    pub(super) const DESCRIPTOR_OFFSET: u64 = 28;
    pub(super) const DESCRIPTOR_SIZE: u64 = 36;
    pub(super) const GTES_PER_GT: u64 = 44;
    pub(super) const RGD_OFFSET: u64 = 48;
    pub(super) const GD_OFFSET: u64 = 56;
    pub(super) const OVERHEAD: u64 = 64;
    pub(super) const NEWLINES: u64 = 73;
    pub(super) const COMPRESS_ALGORITHM: u64 = 77;
}

/// Flags. A reader that does not know one of the upper half must not read the file.
mod flag {
    pub(super) const NEWLINES: u32 = 1 << 0;
    pub(super) const REDUNDANT: u32 = 1 << 1;
    pub(super) const ZEROED: u32 = 1 << 2;
    pub(super) const COMPRESSED: u32 = 1 << 16;
    pub(super) const MARKERS: u32 = 1 << 17;
    pub(super) const UNKNOWN: u32 = 0xffff_0000 & !(COMPRESSED | MARKERS);
}

/// "Hosted Sparse Extents": what a copy as text would have changed.
const NEWLINES: [u8; 4] = *b"\n \r\n";

/// What a file is that is a VMDK, or a part of one.
#[derive(Debug)]
pub(super) enum Start {
    /// A sparse extent.
    Sparse(Header),
    /// A descriptor.
    Text,
}

impl Start {
    /// Tells by the first bytes; a sparse extent's header must keep the rules.
    pub(super) fn parse(head: &[u8]) -> Result<Self, Error> {
        if head.starts_with(MAGIC) {
            return Header::parse(head, 0).map(Self::Sparse);
        }
        if head.starts_with(TEXT_MAGIC) {
            return Ok(Self::Text);
        }
        if head.starts_with(COWD_MAGIC) {
            return Err(unsupported(
                "VMDK extents in the COWD format (vmfsSparse) are not supported",
                0,
            ));
        }
        if head.starts_with(SESPARSE_MAGIC) {
            return Err(unsupported("VMDK extents in the seSparse format are not supported", 0));
        }
        Err(corrupt("expected a VMDK header or descriptor", 0))
    }
}

/// A header that keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    /// The extent's size in sectors.
    pub(super) capacity: u64,
    pub(super) grain_sectors: u64,
    /// The grains are compressed, each behind a marker.
    pub(super) compressed: bool,
    pub(super) unclean: bool,
    /// Where the first grain may be, in bytes.
    pub(super) overhead: u64,
    /// A grain table's entry of 1 means zeros.
    zeroed: bool,
    /// Where the descriptor stands, in bytes.
    descriptor: Option<(u64, u64)>,
    /// Where the grain directory stands, in bytes; `None` if the footer tells.
    gd_offset: Option<u64>,
    /// Where the directory stands that repeats it.
    redundant_gd: Option<u64>,
}

impl Header {
    /// Parses the header that stands at `base` of the file, or a footer.
    fn parse(bytes: &[u8], base: u64) -> Result<Self, Error> {
        let (fixed, _) = Fixed::ref_from_prefix(bytes).map_err(|_| {
            let what = "the file ends inside the VMDK header";
            Error::new(ErrorKind::Truncated, what).at(base + bytes.len() as u64)
        })?;
        let flags = fixed.flags.get();
        check_kind(fixed, flags, base)?;
        let (capacity, grain_sectors) = (fixed.capacity.get(), fixed.grain_size.get());
        if !grain_sectors.is_power_of_two() || grain_sectors > GRAIN_SECTORS_MAX {
            let what = format!(
                "expected grains of a power of two up to {GRAIN_SECTORS_MAX} sectors, got {grain_sectors}"
            );
            return Err(corrupt(what, base + at::GRAIN_SIZE));
        }
        if u64::from(fixed.gtes_per_gt.get()) != GTES {
            let what =
                format!("expected {GTES} entries in a grain table, got {}", fixed.gtes_per_gt);
            return Err(corrupt(what, base + at::GTES_PER_GT));
        }
        let gd_entries = capacity.div_ceil(GTES * grain_sectors);
        if capacity > SECTORS_MAX || gd_entries > GD_ENTRIES_MAX {
            let what = format!("a sparse extent of {capacity} sectors is beyond the limits");
            return Err(too_large(what, base + at::CAPACITY));
        }
        let (gd_offset, redundant_gd) = directories(fixed, flags, base)?;
        let descriptor =
            match bytes_at(fixed.descriptor_offset.get(), base + at::DESCRIPTOR_OFFSET)? {
                0 => None,
                at => {
                    Some((at, bytes_at(fixed.descriptor_size.get(), base + at::DESCRIPTOR_SIZE)?))
                }
            };
        let header = Self {
            version: fixed.version.get(),
            capacity,
            grain_sectors,
            compressed: flags & flag::COMPRESSED != 0,
            unclean: fixed.unclean_shutdown != 0,
            overhead: bytes_at(fixed.overhead.get(), base + at::OVERHEAD)?,
            zeroed: flags & flag::ZEROED != 0,
            descriptor,
            gd_offset,
            redundant_gd,
        };
        header.check_gd(base)?;
        Ok(header)
    }

    /// The extent's size in bytes.
    pub(super) const fn len(&self) -> u64 {
        self.capacity * SECTOR
    }

    /// The bytes of a grain.
    pub(super) const fn grain_size(&self) -> u64 {
        self.grain_sectors * SECTOR
    }

    /// The bytes of the disk that a grain table maps.
    pub(super) const fn gt_coverage(&self) -> u64 {
        GTES * self.grain_size()
    }

    /// The bytes of a grain table.
    pub(super) const fn gt_len() -> u64 {
        GTES * 4
    }

    /// The bytes of the grain directory.
    pub(super) const fn gd_len(&self) -> u64 {
        self.len().div_ceil(self.gt_coverage()) * 4
    }

    /// Where the grain directory stands; `None` if the footer tells.
    pub(super) const fn gd_offset(&self) -> Option<u64> {
        self.gd_offset
    }

    /// Where the directory stands that repeats the first one, if there is one.
    pub(super) const fn redundant_gd(&self) -> Option<u64> {
        self.redundant_gd
    }

    /// True if a grain table's entry of 1 means zeros.
    pub(super) const fn has_zeroed_grains(&self) -> bool {
        self.zeroed
    }

    /// The length of a compressed grain, as the marker at `at` tells it. Deflate makes what it
    /// cannot shrink only a little longer.
    pub(super) fn check_packed_len(&self, len: u32, at: u64) -> Result<u64, Error> {
        let (len, most) = (u64::from(len), 2 * self.grain_size());
        if len > most {
            let what = format!("expected a compressed grain of at most {most} bytes, got {len}");
            return Err(corrupt(what, at));
        }
        Ok(len)
    }

    /// What a grain or a table must not overlap.
    pub(super) fn fixed_parts(&self) -> [(u64, u64); 3] {
        let part = |(begin, len)| (begin, begin + len);
        [
            (0, HEADER_LEN),
            self.descriptor.map_or((0, 0), part),
            self.gd_offset.map_or((0, 0), |gd| part((gd, self.gd_len()))),
        ]
    }

    /// The descriptor in the file that begins with `head`, if there is one.
    pub(super) fn descriptor(&self, head: &[u8]) -> Result<Option<Descriptor>, Error> {
        let Some((at, len)) = self.descriptor else { return Ok(None) };
        if at.checked_add(len).is_none_or(|end| end > DESCRIPTOR_END_MAX) {
            let what =
                format!("the descriptor of {len} bytes at {at:#x} is not near the beginning");
            return Err(too_large(what, at::DESCRIPTOR_SIZE));
        }
        let text = head.get(at as usize..(at + len) as usize).ok_or_else(|| {
            let what = "the file ends inside the descriptor";
            Error::new(ErrorKind::Truncated, what).at(head.len() as u64)
        })?;
        // Extents of a split disk have none, and QEMU leaves room for it even there.
        if text.first().is_none_or(|byte| *byte == 0) {
            Ok(None)
        } else {
            Descriptor::parse(text, at).map(Some)
        }
    }

    /// The header that holds for the grains: this one, or if the grain directory is at the end, the
    /// footer of `source`.
    pub(super) fn with_footer(self, source: &dyn ReadAt) -> Result<Self, Error> {
        if self.gd_offset.is_some() {
            return Ok(self);
        }
        let (tail, begin) = read_tail(source)?;
        // The last sector that is not zero is the footer: behind it is only the end-of-stream marker.
        let last = tail.iter().rposition(|byte| *byte != 0).unwrap_or_default() as u64 / SECTOR;
        let Some(marker) = last.checked_sub(1).filter(|_| (last + 2) * SECTOR <= tail.len() as u64)
        else {
            let what = "the grain directory should be at the end, but there is no footer";
            return Err(Error::new(ErrorKind::Truncated, what).at(source.len()));
        };
        let (marker, footer) = ((marker * SECTOR) as usize, (last * SECTOR) as usize);
        if Marker::parse(&tail[marker..]) != Some(Marker::Footer { sectors: 1 }) {
            let what = "expected a footer marker";
            return Err(Error::new(ErrorKind::Truncated, what).at(begin + marker as u64));
        }
        self.check_footer(&tail[footer..], begin + footer as u64)
    }

    /// Parses the footer, which stands at `at`. It repeats this header and knows the directory.
    pub(super) fn check_footer(&self, bytes: &[u8], at: u64) -> Result<Self, Error> {
        if !bytes.starts_with(MAGIC) {
            return Err(corrupt("the footer is not a VMDK header", at));
        }
        let footer = Self::parse(bytes, at)?;
        if footer.gd_offset.is_none() {
            let what = "the footer says that the grain directory is at the end";
            return Err(corrupt(what, at + at::GD_OFFSET));
        }
        let known = |header: &Self| (header.capacity, header.grain_sectors, header.compressed);
        if known(self) != known(&footer) {
            return Err(corrupt("the footer contradicts the header", at));
        }
        Ok(Self { descriptor: self.descriptor, zeroed: self.zeroed, ..footer })
    }

    fn check_gd(&self, base: u64) -> Result<(), Error> {
        let refuse = |what: &str| Err(corrupt(what, base + at::GD_OFFSET));
        match self.gd_offset {
            None if !self.compressed => {
                refuse("the grain directory can be at the end only of a stream")
            }
            Some(gd) if self.gd_len() > 0 && gd < HEADER_LEN => {
                refuse("the grain directory overlaps the header")
            }
            Some(gd) if gd + self.gd_len() > SECTORS_MAX * SECTOR => {
                refuse("the grain directory ends beyond 2^63 - 1")
            }
            _ => Ok(()),
        }
    }
}

/// Where the grain directory and the one that repeats it stand.
fn directories(fixed: &Fixed, flags: u32, base: u64) -> Result<(Option<u64>, Option<u64>), Error> {
    let redundant = if flags & flag::REDUNDANT == 0 { 0 } else { fixed.rgd_offset.get() };
    let (first, second) = match (fixed.gd_offset.get(), redundant) {
        (GD_AT_END, _) => return Ok((None, None)),
        (0, other) => (other, 0),
        (first, other) => (first, other),
    };
    let offset = bytes_at(first, base + at::GD_OFFSET)?;
    let second = bytes_at(second, base + at::RGD_OFFSET)?;
    Ok((Some(offset), Some(second).filter(|second| *second != 0 && *second != offset)))
}

/// The offset of a sector, which the field at `at` names.
fn bytes_at(sector: u64, at: u64) -> Result<u64, Error> {
    match sector {
        ..=SECTORS_MAX => Ok(sector * SECTOR),
        _ => Err(corrupt(format!("sector {sector:#x} is beyond 2^63 - 1 bytes"), at)),
    }
}

/// Checks what tells whether the rest is understood.
fn check_kind(fixed: &Fixed, flags: u32, base: u64) -> Result<(), Error> {
    let version = fixed.version.get();
    if !(1..=3).contains(&version) {
        let what = format!("expected VMDK version 1 to 3, got {version}");
        return Err(unsupported(what, base + at::VERSION));
    }
    if flags & flag::NEWLINES != 0 && fixed.newlines != NEWLINES {
        let what = format!(
            "the file was changed by a copy as text: expected `\\n \\r\\n`, got `{}`",
            printable(&fixed.newlines)
        );
        return Err(corrupt(what, base + at::NEWLINES));
    }
    if flags & flag::UNKNOWN != 0 {
        let what = format!("unknown incompatible flags {:#010x}", flags & flag::UNKNOWN);
        return Err(unsupported(what, base + at::FLAGS));
    }
    if (flags & flag::COMPRESSED != 0) != (flags & flag::MARKERS != 0) {
        let what = "compressed grains and markers are supported only together";
        return Err(unsupported(what, base + at::FLAGS));
    }
    let algorithm = fixed.compress_algorithm.get();
    if flags & flag::COMPRESSED != 0 && algorithm != 1 {
        let what = format!("expected compression algorithm 1 (deflate), got {algorithm}");
        return Err(unsupported(what, base + at::COMPRESS_ALGORITHM));
    }
    Ok(())
}

/// The file's end, as much of it as a footer may be in, and where that begins: on a sector.
fn read_tail(source: &dyn ReadAt) -> Result<(Vec<u8>, u64), Error> {
    let begin = source.len().saturating_sub(PADDING_MAX + FOOTER_LEN).next_multiple_of(SECTOR);
    let mut tail = vec![0; source.len().saturating_sub(begin) as usize];
    source.read_exact_at(&mut tail, begin).map_err(|error| Error::read(error, begin))?;
    Ok((tail, begin))
}

/// "Stream-Optimized Compressed Sparse Extents": what stands before each part of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// A compressed grain of `len` bytes, which begins at [`MARKER_LEN`], for this sector.
    Grain { sector: u64, len: u32 },
    /// The end.
    EndOfStream,
    /// A grain table in so many sectors behind the marker's own.
    GrainTable { sectors: u64 },
    /// The grain directory.
    GrainDirectory { sectors: u64 },
    /// The footer.
    Footer { sectors: u64 },
    /// Not in the specification: how far a writer has come. Nothing follows.
    Progress,
    /// None of these.
    Unknown(u32),
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct FixedMarker {
    value: U64,
    size: U32,
    /// In the marker of a grain, its data begins here.
    kind: U32,
}

impl Marker {
    /// The marker at the start of `bytes`; `None` if they are too few.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (marker, _) = FixedMarker::ref_from_prefix(bytes).ok()?;
        let value = marker.value.get();
        Some(match (marker.size.get(), marker.kind.get()) {
            (0, 0) => Self::EndOfStream,
            (0, 1) => Self::GrainTable { sectors: value },
            (0, 2) => Self::GrainDirectory { sectors: value },
            (0, 3) => Self::Footer { sectors: value },
            (0, 4) => Self::Progress,
            (0, kind) => Self::Unknown(kind),
            (len, _) => Self::Grain { sector: value, len },
        })
    }
}
