//! QED, QEMU's enhanced disk.
//!
//! The layout is that of QEMU's `docs/interop/qed_spec.rst`, whose sections are named where they
//! apply. All tables have one size, and stand on clusters as the data does. An overlay is read over
//! the backing disk that the caller gives or refused by name.

#[cfg(test)]
mod tests;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::corrupt;
use crate::open::read_head;
use crate::raw::SECTOR;
use crate::sniff::printable;
use crate::twolevel::{Geometry, Mapping, TwoLevelMap, needs_backing, take_backing};
use crate::{Error, ErrorKind, Info, OpenOptions, ReadAt};

pub use crate::twolevel::TwoLevelDisk as Image;

/// "Header", without the backing file's name.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    magic: U32,
    cluster_size: U32,
    table_size: U32,
    header_size: U32,
    features: U64,
    compat_features: U64,
    autoclear_features: U64,
    l1_table_offset: U64,
    image_size: U64,
    backing_filename_offset: U32,
    backing_filename_size: U32,
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const CLUSTER_SIZE: u64 = 4;
    pub(super) const TABLE_SIZE: u64 = 8;
    pub(super) const HEADER_SIZE: u64 = 12;
    pub(super) const FEATURES: u64 = 16;
    pub(super) const L1_TABLE_OFFSET: u64 = 40;
    pub(super) const IMAGE_SIZE: u64 = 48;
    pub(super) const BACKING_FILENAME_OFFSET: u64 = 56;
    pub(super) const BACKING_FILENAME_SIZE: u64 = 60;
}

/// "Feature bits".
mod bit {
    pub(super) const BACKING_FILE: u64 = 1 << 0;
    pub(super) const NEED_CHECK: u64 = 1 << 1;
    /// The backing file is raw, whatever it looks like.
    pub(super) const BACKING_RAW: u64 = 1 << 2;
    pub(super) const KNOWN: u64 = BACKING_FILE | NEED_CHECK | BACKING_RAW;
}

/// Backing file names have at most this many bytes, as QEMU has it.
const BACKING_NAME_MAX: u32 = 1023;

/// A header that keeps the format's rules. It may still ask for what this crate does not give: see
/// [`Header::refusal`].
#[derive(Debug)]
struct Header {
    geometry: Geometry,
    features: u64,
    backing_file: Option<String>,
}

impl Header {
    /// Parses the header of a file that begins with `head`.
    fn parse(head: &[u8]) -> Result<Self, Error> {
        let (fixed, _) = Fixed::ref_from_prefix(head).map_err(|_| {
            let what = "the file ends inside the QED header";
            Error::new(ErrorKind::Truncated, what).at(head.len() as u64)
        })?;
        let (cluster, clusters) = (fixed.cluster_size.get(), fixed.table_size.get());
        if !cluster.is_power_of_two() || !(1 << 12..=1 << 26).contains(&cluster) {
            let what = format!("expected clusters of 2^12 to 2^26 bytes, got {cluster}");
            return Err(corrupt(what, at::CLUSTER_SIZE));
        }
        if !clusters.is_power_of_two() || clusters > 16 {
            let what = format!("expected tables of 1, 2, 4, 8 or 16 clusters, got {clusters}");
            return Err(corrupt(what, at::TABLE_SIZE));
        }
        let table_len = u64::from(cluster) * u64::from(clusters);
        let geometry = Geometry {
            virtual_size: fixed.image_size.get(),
            cluster: cluster.into(),
            l1_at: fixed.l1_table_offset.get(),
            l1_len: table_len,
            l2_len: table_len,
            header_len: u64::from(fixed.header_size.get()) * u64::from(cluster),
            align: cluster.into(),
            word: u64::from_le_bytes,
            decode,
            codec: None,
        };
        check_places(&geometry)?;
        let features = fixed.features.get();
        let has_backing = features & bit::BACKING_FILE != 0;
        let backing_file = has_backing.then(|| backing_file(head, fixed, geometry.header_len));
        Ok(Self { geometry, features, backing_file: backing_file.transpose()? })
    }

    /// Why this crate does not read the image, even if its backing disk is given.
    fn refusal(&self) -> Option<Error> {
        let unknown = self.features & !bit::KNOWN;
        (unknown != 0).then(|| {
            let what = format!("unknown feature bits {unknown:#x}");
            Error::new(ErrorKind::Unsupported, what).at(at::FEATURES)
        })
    }

    /// Parses the header of an image that is read, if its backing disk is given.
    fn readable(head: &[u8]) -> Result<Self, Error> {
        let header = Self::parse(head)?;
        header.refusal().map_or(Ok(header), Err)
    }
}

fn check_places(geometry: &Geometry) -> Result<(), Error> {
    // As QEMU has it.
    if !(1..=u32::MAX.into()).contains(&geometry.header_len) {
        let what = format!("expected a header of 1 to 2^32 - 1 bytes, got {}", geometry.header_len);
        return Err(corrupt(what, at::HEADER_SIZE));
    }
    let (size, l1_at) = (geometry.virtual_size, geometry.l1_at);
    if !size.is_multiple_of(SECTOR) {
        let what = format!("expected a disk of whole sectors, got {size} bytes");
        return Err(corrupt(what, at::IMAGE_SIZE));
    }
    if !l1_at.is_multiple_of(geometry.cluster) {
        let what = format!("the L1 table at {l1_at:#x} is not on a cluster");
        return Err(corrupt(what, at::L1_TABLE_OFFSET));
    }
    geometry.check(at::IMAGE_SIZE, at::L1_TABLE_OFFSET)
}

/// The backing file's name.
fn backing_file(head: &[u8], fixed: &Fixed, header_len: u64) -> Result<String, Error> {
    let (offset, len) = (fixed.backing_filename_offset.get(), fixed.backing_filename_size.get());
    if len > BACKING_NAME_MAX {
        let what =
            format!("expected a backing file name of at most {BACKING_NAME_MAX} bytes, got {len}");
        return Err(corrupt(what, at::BACKING_FILENAME_SIZE));
    }
    let inside = u64::from(offset) + u64::from(len) <= header_len;
    let name = head.get(offset as usize..).and_then(|rest| rest.get(..len as usize));
    let Some(name) = name.filter(|_| inside) else {
        let what = format!("the backing file name at {offset:#x} is not in the header");
        return Err(corrupt(what, at::BACKING_FILENAME_OFFSET));
    };
    Ok(printable(name))
}

/// "Level 2 table": 0 is a cluster that is not there, 1 one that reads as zeros.
const fn decode(entry: u64, _: u64) -> Mapping {
    match entry {
        0 => Mapping::Absent,
        1 => Mapping::Zero,
        host => Mapping::Data { host },
    }
}

/// Opens the image in `source` for reading, which needs nothing besides.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    open_with(source, OpenOptions::default())
}

/// Opens the image in `source` for reading, with the backing disk of `options`.
pub fn open_with<R: ReadAt>(source: R, options: OpenOptions) -> Result<Image<R>, Error> {
    let header = Header::readable(&read_head(&source)?)?;
    let name = header.backing_file.as_deref();
    let backing = take_backing(options, name, at::BACKING_FILENAME_OFFSET)?;
    Image::open(source, header.geometry, backing)
}

/// Decodes a stream that begins with `head`.
pub(crate) fn layout(head: &[u8]) -> Result<TwoLevelMap, Error> {
    let header = Header::readable(head)?;
    match header.backing_file {
        Some(name) => Err(needs_backing(&name, at::BACKING_FILENAME_OFFSET)),
        None => Ok(TwoLevelMap::new(header.geometry)),
    }
}

/// Describes the image in `source`, also one that [`open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let header = Header::parse(&read_head(source)?)?;
    info.virtual_size = Some(header.geometry.virtual_size);
    info.cluster_size = Some(header.geometry.cluster);
    if header.features & bit::NEED_CHECK != 0 {
        let note =
            "the image was not closed by whoever wrote it, and may lack what was written last";
        info.notes.push(note.to_owned());
    }
    let raw = header.backing_file.is_some() && header.features & bit::BACKING_RAW != 0;
    info.backing_format = raw.then(|| "raw".to_owned());
    info.backing_file = header.backing_file;
    info.take_two_level(open(source));
    Ok(())
}
