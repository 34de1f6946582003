//! Parallels disks, plain (`WithoutFreeSpace`) and extended (`WithouFreSpacExt`).
//!
//! The layout is that of QEMU's `docs/interop/parallels.txt`: a header, the *block allocation
//! table* right behind it, then clusters in any order. In the plain kind an entry counts sectors,
//! in the extended one clusters. A *format extension* holds bitmaps that are not needed for
//! reading.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::blockmap::{BlockMap, Geometry, Table};
use crate::error::corrupt;
use crate::open::read_head;
use crate::raw::SECTOR;
use crate::{Error, ErrorKind, Info, ReadAt};

pub use crate::blockmap::BlockDisk as Image;

/// A bound for the bytes of a cluster, far above the one MiB that everyone uses.
const CLUSTER_MAX: u64 = 256 << 20;
/// What "inuse" is while someone writes to the image.
const IN_USE: u32 = 0x746f_6e59;

/// "Format header".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    magic: [u8; 16],
    version: U32,
    heads: U32,
    cylinders: U32,
    tracks: U32,
    entries: U32,
    sectors: U64,
    in_use: U32,
    data_offset: U32,
    flags: U32,
    extension_offset: U64,
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const VERSION: u64 = 16;
    pub(super) const TRACKS: u64 = 28;
    pub(super) const ENTRIES: u64 = 32;
    pub(super) const SECTORS: u64 = 36;
    pub(super) const DATA_OFFSET: u64 = 48;
    pub(super) const EXTENSION_OFFSET: u64 = 56;
}

/// A header that keeps the format's rules.
#[derive(Debug)]
struct Header {
    extended: bool,
    virtual_size: u64,
    cluster: u64,
    in_use: bool,
    table_end: u64,
    extension: Option<u64>,
}

impl Header {
    fn parse(head: &[u8]) -> Result<Self, Error> {
        let (fixed, _) = Fixed::ref_from_prefix(head).map_err(|_| {
            let what = "the file ends inside the Parallels header";
            Error::new(ErrorKind::Truncated, what).at(head.len() as u64)
        })?;
        let version = fixed.version.get();
        if version != 2 {
            let what = format!("expected Parallels version 2, got {version}");
            return Err(Error::new(ErrorKind::Unsupported, what).at(at::VERSION));
        }
        let cluster = u64::from(fixed.tracks.get()) * SECTOR;
        if cluster == 0 || cluster > CLUSTER_MAX {
            let what = format!("expected clusters of 1 to 2^19 sectors, got {}", fixed.tracks);
            return Err(corrupt(what, at::TRACKS));
        }
        let extended = &fixed.magic == b"WithouFreSpacExt";
        // The plain kind has a number of 32 bits there, and nothing of worth behind it.
        let sectors = fixed.sectors.get() & if extended { u64::MAX } else { u32::MAX.into() };
        let entries = u64::from(fixed.entries.get());
        if sectors > i64::MAX as u64 / SECTOR || sectors * SECTOR > entries * cluster {
            let what = format!("a table of {entries} entries is too short for {sectors} sectors");
            let at = if entries == 0 { at::ENTRIES } else { at::SECTORS };
            return Err(corrupt(what, at));
        }
        let table_end = size_of::<Fixed>() as u64 + entries * 4;
        let data = u64::from(fixed.data_offset.get()) * SECTOR;
        if data != 0 && data < table_end {
            return Err(corrupt("the data begins inside the block table", at::DATA_OFFSET));
        }
        Ok(Self {
            extended,
            virtual_size: sectors * SECTOR,
            cluster,
            in_use: fixed.in_use.get() == IN_USE,
            table_end,
            extension: extension(fixed.extension_offset.get())?,
        })
    }

    fn geometry(&self) -> Geometry {
        let mut reserved = vec![(0, self.table_end, "header and the block table")];
        if let Some(at) = self.extension {
            reserved.push((at, at + self.cluster, "format extension"));
        }
        Geometry {
            virtual_size: self.virtual_size,
            block: self.cluster,
            unit: if self.extended { self.cluster } else { SECTOR },
            base: 0,
            lead: 0,
            table: Table { at: size_of::<Fixed>() as u64, entry: 4, chunk: u64::MAX, decode },
            reserved,
        }
    }
}

/// Where the format extension is, by its sector.
fn extension(sector: u64) -> Result<Option<u64>, Error> {
    match sector.checked_mul(SECTOR) {
        Some(0) => Ok(None),
        Some(at) if at < i64::MAX as u64 => Ok(Some(at)),
        _ => {
            let what = format!("the format extension is at sector {sector:#x}");
            Err(corrupt(what, at::EXTENSION_OFFSET))
        }
    }
}

/// "BAT": zero is a cluster that is not there.
fn decode(entry: &[u8], at: u64) -> Result<Option<u32>, Error> {
    let entry = U32::read_from_bytes(entry).map_err(|_| corrupt("no entry", at))?.get();
    if entry == u32::MAX {
        let what = format!("a cluster at {entry:#x} is beyond any file");
        return Err(Error::new(ErrorKind::Truncated, what).at(at));
    }
    Ok((entry != 0).then_some(entry))
}

/// Opens the image in `source` for reading.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    let geometry = Header::parse(&read_head(&source)?)?.geometry();
    Image::open(source, geometry)
}

/// Decodes a stream that begins with `head`.
pub(crate) fn layout(head: &[u8]) -> Result<BlockMap, Error> {
    BlockMap::new(Header::parse(head)?.geometry())
}

/// Describes the image in `source`.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let header = Header::parse(&read_head(source)?)?;
    info.variant = Some(if header.extended { "extended" } else { "plain" }.to_owned());
    info.version = Some(2);
    info.virtual_size = Some(header.virtual_size);
    info.cluster_size = Some(header.cluster);
    if header.in_use {
        let note =
            "the image was not closed by whoever wrote it, and may lack what was written last";
        info.notes.push(note.to_owned());
    }
    if header.extension.is_some() {
        info.notes.push("the format extension, with bitmaps, is ignored".to_owned());
    }
    info.take_disk(open(source));
    Ok(())
}

#[cfg(test)]
mod tests {
    use bootyard_testkit::require_tool;

    use crate::oracle::Oracle;
    use crate::{Format, hostile};

    #[test]
    fn reads_what_qemu_img_makes() {
        if !require_tool("qemu-io") {
            return;
        }
        let oracle = Oracle::new(Format::Parallels, "parallels", true);
        for (len, options) in [
            (512, &[][..]),
            (12 * (1 << 20) + 512 * 77, &[]),
            (12 * (1 << 20) + 512, &["-o", "cluster_size=32256"]),
        ] {
            let info = oracle.check(&oracle.convert(len, options));
            assert_eq!(info.variant.as_deref(), Some("extended"));
        }
        let writes = ["write -P 7 9M 1k", "write -P 8 5M 2500k", "write -P 9 0 1"];
        let info = oracle.check(&oracle.create("20M", &[], &writes));
        assert_eq!((info.allocated, info.cluster_size), (Some(5 << 20), Some(1 << 20)));
    }

    #[test]
    fn reads_the_corpus() {
        let oracle = Oracle::new(Format::Parallels, "parallels", true);
        let count = oracle.check_corpus("parallels");
        assert!(count == 0 || count >= 2, "{count} images");
    }

    #[test]
    fn hostile_files_are_refused_or_read() {
        hostile::check("parallels/*", &[]);
    }
}
