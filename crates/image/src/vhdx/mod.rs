//! VHDX, the format of [MS-VHDX]: dynamic and fixed disks, with the log replayed in memory.
//!
//! The first megabyte has two headers, of which the valid one with the higher sequence number
//! counts, and two copies of the region table, which names the metadata region and the *block
//! allocation table*. The latter has an entry for each block of the disk and, after each chunk of
//! them, one for a bitmap that only a differencing disk uses; such a disk is refused. Section
//! numbers are those of [MS-VHDX].
//!
//! A file that was not closed has a log. What it says is laid over the file where it is read, in
//! pages of 4 KiB; nothing is written. A stream of such a file is set aside as a whole.
//!
//! [MS-VHDX]: https://learn.microsoft.com/openspecs/windows_protocols/ms-vhdx

mod header;
mod log;
mod metadata;
mod push;
mod region;
#[cfg(test)]
mod tests;

use crate::blockmap::{BlockDisk, Geometry, Table};
use crate::error::corrupt;
use crate::{Error, ErrorKind, Info, ReadAt};

use header::Header;
use log::Replayed;
use metadata::Metadata;
pub(crate) use push::Map;
use region::Regions;

/// A disk in a VHDX.
pub type Image<R> = BlockDisk<Replayed<R>>;

const MIB: u64 = 1 << 20;

/// Opens the image in `source` for reading.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    let header = Header::read(&source)?;
    let source = Replayed::new(source, &header)?;
    let (regions, metadata) = tables(&source, &header)?;
    if let Some(refusal) = metadata.refusal() {
        return Err(refusal);
    }
    BlockDisk::open(source, geometry(&header, &regions, &metadata)?)
}

fn tables(source: &impl ReadAt, header: &Header) -> Result<(Regions, Metadata), Error> {
    let regions = Regions::read(source, header)?;
    let metadata = Metadata::read(source, regions.metadata)?;
    Ok((regions, metadata))
}

/// Describes the image in `source`, also one that [`open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    info.version = Some(1);
    let header = Header::read(source)?;
    let replayed = match Replayed::new(source, &header) {
        Ok(replayed) => replayed,
        Err(error) => {
            info.refused = Some(error.to_string());
            return Ok(());
        }
    };
    if header.has_log() {
        let note = "the disk was not closed; its log is replayed in memory";
        info.notes.push(note.to_owned());
    }
    let (_, metadata) = tables(&replayed, &header)?;
    info.variant = Some(metadata.variant().to_owned());
    info.virtual_size = Some(metadata.virtual_size);
    info.cluster_size = Some(metadata.block);
    info.sector_size = Some(metadata.sector);
    info.backing_file = metadata.parent;
    info.take_disk(open(source));
    Ok(())
}

/// What the entries of the block allocation table mean: megabytes of the file.
fn geometry(header: &Header, regions: &Regions, metadata: &Metadata) -> Result<Geometry, Error> {
    let (at, end) = regions.bat;
    let geometry = Geometry {
        virtual_size: metadata.virtual_size,
        block: metadata.block,
        unit: MIB,
        base: 0,
        lead: 0,
        table: Table { at, entry: 8, chunk: metadata.chunk_ratio(), decode },
        reserved: vec![
            (0, MIB, "header section"),
            (header.log.0, header.log.1, "log"),
            (regions.metadata.0, regions.metadata.1, "metadata region"),
            (at, end, "block allocation table"),
        ],
    };
    let (needed, there) = (geometry.table_len(), end - at);
    if needed > there {
        let what = format!("the block allocation table has {there} bytes, the disk needs {needed}");
        return Err(corrupt(what, at));
    }
    Ok(geometry)
}

/// "Payload BAT Entry States" (§2.5.1.1). What is undefined or unmapped reads as zeros, as in QEMU.
fn decode(entry: &[u8], at: u64) -> Result<Option<u32>, Error> {
    let bytes = entry.try_into().map_err(|_| corrupt("no entry", at))?;
    let entry = u64::from_le_bytes(bytes);
    match entry & 7 {
        // Not present, undefined, zero, unmapped.
        0..=3 => Ok(None),
        6 => match u32::try_from(entry >> 20) {
            Ok(megabyte) if megabyte != u32::MAX => Ok(Some(megabyte)),
            _ => {
                let what = format!("a block at {:#x} MiB is beyond any file", entry >> 20);
                Err(Error::new(ErrorKind::Truncated, what).at(at))
            }
        },
        7 => Err(corrupt("a block is partly in a parent that the disk does not have", at)),
        state => Err(corrupt(format!("a block has the state {state}, which does not exist"), at)),
    }
}

/// A GUID as it stands in the file, written as text.
fn show_guid(guid: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let tail: String = rest[2..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{d:02x}{c:02x}{b:02x}{a:02x}-{f:02x}{e:02x}-{h:02x}{g:02x}-{:02x}{:02x}-{tail}",
        rest[0], rest[1]
    )
}
