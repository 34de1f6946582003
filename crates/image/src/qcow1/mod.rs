//! qcow, version 1: QEMU's format of 2004 to 2008, with clusters that may be compressed.
//!
//! There is no specification; the layout is that of QEMU's `block/qcow.c`. A header of 48 bytes is
//! followed by the name of a backing file, if there is one, and the L1 table; then come L2 tables,
//! clusters and compressed clusters in any order. There are no refcounts and no snapshots. An
//! overlay is read over the backing disk that the caller gives or refused by name; encryption is
//! refused.

#[cfg(test)]
mod tests;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::codec::Codec;
use crate::error::corrupt;
use crate::open::read_head;
use crate::raw::SECTOR;
use crate::sniff::printable;
use crate::twolevel::{Geometry, Mapping, TwoLevelMap, needs_backing, take_backing};
use crate::{Error, ErrorKind, Info, OpenOptions, ReadAt};

pub use crate::twolevel::TwoLevelDisk as Image;

/// An entry of an L2 table: the cluster is compressed.
const COMPRESSED: u64 = 1 << 63;
/// Backing file names have at most this many bytes.
const BACKING_NAME_MAX: u32 = 1023;

/// `QCowHeader`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    magic: U32,
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    mtime: U32,
    size: U64,
    cluster_bits: u8,
    l2_bits: u8,
    padding: U16,
    crypt_method: U32,
    l1_table_offset: U64,
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const BACKING_FILE_OFFSET: u64 = 8;
    pub(super) const BACKING_FILE_SIZE: u64 = 16;
    pub(super) const SIZE: u64 = 24;
    pub(super) const CLUSTER_BITS: u64 = 32;
    pub(super) const L2_BITS: u64 = 33;
    pub(super) const CRYPT_METHOD: u64 = 36;
    pub(super) const L1_TABLE_OFFSET: u64 = 40;
}

/// A header that keeps the format's rules. It may still ask for what this crate does not give: see
/// [`Header::refusal`].
#[derive(Debug)]
struct Header {
    geometry: Geometry,
    backing_file: Option<String>,
    crypt_method: u32,
}

impl Header {
    /// Parses the header of a file that begins with `head`.
    fn parse(head: &[u8]) -> Result<Self, Error> {
        let (fixed, _) = Fixed::ref_from_prefix(head).map_err(|_| {
            let what = "the file ends inside the qcow header";
            Error::new(ErrorKind::Truncated, what).at(head.len() as u64)
        })?;
        let (cluster_bits, l2_bits) = (fixed.cluster_bits, fixed.l2_bits);
        if !(9..=16).contains(&cluster_bits) {
            let what = format!("expected clusters of 2^9 to 2^16 bytes, got 2^{cluster_bits}");
            return Err(corrupt(what, at::CLUSTER_BITS));
        }
        if !(6..=13).contains(&l2_bits) {
            let what = format!("expected L2 tables of 2^6 to 2^13 entries, got 2^{l2_bits}");
            return Err(corrupt(what, at::L2_BITS));
        }
        // What is left over of the last sector is not seen, as QEMU has it.
        let size = fixed.size.get();
        let geometry = Geometry {
            virtual_size: size - size % SECTOR,
            cluster: 1 << cluster_bits,
            l1_at: fixed.l1_table_offset.get(),
            l1_len: size.div_ceil(1 << (cluster_bits + l2_bits)) * 8,
            l2_len: 8 << l2_bits,
            header_len: size_of::<Fixed>() as u64,
            align: SECTOR,
            word: u64::from_be_bytes,
            decode,
            codec: Some(Codec::Deflate),
        };
        geometry.check(at::SIZE, at::L1_TABLE_OFFSET)?;
        let backing_file = backing_file(head, fixed)?;
        Ok(Self { geometry, backing_file, crypt_method: fixed.crypt_method.get() })
    }

    /// Why this crate does not read the image, even if its backing disk is given.
    fn refusal(&self) -> Option<Error> {
        let (kind, what) = match self.crypt_method {
            0 => return None,
            1 => (ErrorKind::Encrypted, "the disk is encrypted with AES".to_owned()),
            other => (ErrorKind::Unsupported, format!("unknown encryption method {other}")),
        };
        Some(Error::new(kind, what).at(at::CRYPT_METHOD))
    }

    /// Parses the header of an image that is read, if its backing disk is given.
    fn readable(head: &[u8]) -> Result<Self, Error> {
        let header = Self::parse(head)?;
        header.refusal().map_or(Ok(header), Err)
    }
}

/// The backing file's name, if there is one.
fn backing_file(head: &[u8], fixed: &Fixed) -> Result<Option<String>, Error> {
    let (offset, len) = (fixed.backing_file_offset.get(), fixed.backing_file_size.get());
    if offset == 0 {
        return Ok(None);
    }
    if len > BACKING_NAME_MAX {
        let what =
            format!("expected a backing file name of at most {BACKING_NAME_MAX} bytes, got {len}");
        return Err(corrupt(what, at::BACKING_FILE_SIZE));
    }
    let name = usize::try_from(offset).ok().and_then(|at| head.get(at..)?.get(..len as usize));
    let Some(name) = name else {
        let what = format!("the backing file name at {offset:#x} is not in the header");
        return Err(corrupt(what, at::BACKING_FILE_OFFSET));
    };
    Ok(Some(printable(name)))
}

/// An entry of an L2 table. That of a compressed cluster has its length in the bits between the
/// highest and those of the offset, as many as a cluster's offsets have.
const fn decode(entry: u64, cluster: u64) -> Mapping {
    if entry == 0 {
        return Mapping::Absent;
    }
    if entry & COMPRESSED == 0 {
        return Mapping::Data { host: entry };
    }
    let offset_bits = 63 - cluster.trailing_zeros();
    let host = entry & ((1 << offset_bits) - 1);
    Mapping::Packed { host, len: (entry & !COMPRESSED) >> offset_bits }
}

/// Opens the image in `source` for reading, which needs nothing besides.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    open_with(source, OpenOptions::default())
}

/// Opens the image in `source` for reading, with the backing disk of `options`.
pub fn open_with<R: ReadAt>(source: R, options: OpenOptions) -> Result<Image<R>, Error> {
    let header = Header::readable(&read_head(&source)?)?;
    let name = header.backing_file.as_deref();
    let backing = take_backing(options, name, at::BACKING_FILE_OFFSET)?;
    Image::open(source, header.geometry, backing)
}

/// Decodes a stream that begins with `head`.
pub(crate) fn layout(head: &[u8]) -> Result<TwoLevelMap, Error> {
    let header = Header::readable(head)?;
    match header.backing_file {
        Some(name) => Err(needs_backing(&name, at::BACKING_FILE_OFFSET)),
        None => Ok(TwoLevelMap::new(header.geometry)),
    }
}

/// Describes the image in `source`, also one that [`open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let header = Header::parse(&read_head(source)?)?;
    info.version = Some(1);
    info.virtual_size = Some(header.geometry.virtual_size);
    info.cluster_size = Some(header.geometry.cluster);
    info.compression = Some("zlib");
    if header.crypt_method != 0 {
        info.features.push("encrypted");
    }
    info.backing_file = header.backing_file;
    info.take_two_level(open(source));
    Ok(())
}
