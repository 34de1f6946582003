//! VMDK: VMware's disks, sparse, compressed for a stream, and in several files.
//!
//! The layout is that of VMware's "Virtual Disk Format 5.0", whose sections are named where they
//! apply, with what VMware, `VirtualBox`, QEMU and others make of it. A disk is described by a text
//! ([`descriptor`]), which stands in the disk's only file or in one of its own. The disk's parts,
//! its *extents*, are as they are (flat) or sparse: cut into *grains*, found by a directory of
//! tables ([`header`], [`table`]). A stream-optimized extent has compressed grains, each behind a
//! marker that says where it goes ([`push`]).
//!
//! What a description names is opened only by the [`crate::Directory`] that the caller gives.
//! Deltas, which need their parent, and the formats of old and new ESX hosts (COWD, seSparse) are
//! refused by name.

mod describe;
mod descriptor;
mod header;
mod image;
mod ledger;
mod map;
mod push;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use describe::describe;
pub use image::{Image, open, open_with};

use self::descriptor::{Descriptor, Kind};
use self::header::{Header, Start};
use self::map::Map;
use self::push::Stream;
use crate::error::corrupt;
use crate::qcow2::HEADER_MAX;
use crate::raw::SECTOR;
use crate::{Error, ErrorKind};

/// The decoder for a disk that comes as a stream.
#[derive(Debug)]
pub(crate) enum Streamed {
    Plain(Map),
    Packed(Stream),
}

impl Streamed {
    /// Tells by the first bytes, as many as any header needs; refuses what no stream holds.
    pub(crate) fn new(head: &[u8]) -> Result<Self, Error> {
        let header = match Start::parse(head)? {
            Start::Sparse(header) => header,
            Start::Text => return Err(text_refusal(head)),
        };
        if let Some(refusal) = header.descriptor(head)?.and_then(|text| text.refusal()) {
            return Err(refusal);
        }
        let virtual_size = nominal_sectors(&header, head)? * SECTOR;
        Ok(match header.compressed {
            true => Self::Packed(Stream::new(header, virtual_size)?),
            false => Self::Plain(Map::new(header, virtual_size)),
        })
    }

    /// Where the grain directory stands; 0 where grains tell by themselves what they are.
    pub(crate) const fn first_table(&self) -> u64 {
        match self {
            Self::Plain(map) => map.directory_at(),
            Self::Packed(_) => 0,
        }
    }

    pub(crate) const fn virtual_size(&self) -> u64 {
        match self {
            Self::Plain(map) => map.virtual_size,
            Self::Packed(stream) => stream.virtual_size,
        }
    }
}

/// Why a descriptor that begins with `head` cannot be a disk without the files that it names.
fn text_refusal(head: &[u8]) -> Error {
    // The last line may be cut off.
    let end = match head.len() {
        HEADER_MAX.. => head.iter().rposition(|byte| *byte == b'\n').unwrap_or(head.len()),
        len => len,
    };
    match Descriptor::parse(&head[..end], 0) {
        Err(error) => error,
        Ok(text) => text
            .refusal()
            .or_else(|| text.extents_refusal())
            .unwrap_or_else(|| text.needs_extents()),
    }
}

/// The size of the disk in a sparse extent that is alone in its file, which begins with `head`. A
/// header may round it up to whole grains; the descriptor does not.
fn nominal_sectors(header: &Header, head: &[u8]) -> Result<u64, Error> {
    let Some(descriptor) = header.descriptor(head)? else {
        let what = "the file is one extent of a disk that another file describes";
        return Err(Error::new(ErrorKind::NeedsOtherFile, what).at(0));
    };
    let [extent] = &descriptor.extents[..] else {
        let count = descriptor.extents.len();
        return Err(unsupported(format!("the disk is in this file and {} others", count - 1), 0));
    };
    if extent.kind != Kind::Sparse {
        return Err(corrupt("a sparse extent is described as another kind", extent.at));
    }
    match header.capacity.checked_sub(extent.sectors) {
        Some(more) if more < header.grain_sectors => Ok(extent.sectors),
        _ => {
            let (told, there) = (extent.sectors, header.capacity);
            let what = format!("the descriptor tells of {told} sectors, the header of {there}");
            Err(corrupt(what, extent.at))
        }
    }
}

fn unsupported(what: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Unsupported, what).at(at)
}
