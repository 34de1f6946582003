//! VDI, version 1.1: `VirtualBox`'s own format, dynamic and fixed.
//!
//! There is no specification; the layout is that of `VDICore.h` in `VirtualBox` and of QEMU's
//! `block/vdi.c`. A header of one sector is followed by the *block map*, a 32-bit number for each
//! block of the disk, and by the blocks in any order. Each block may have *extra* bytes before its
//! data, which no known writer uses. Undo and differencing images need a parent and are refused.

mod header;
#[cfg(test)]
mod tests;

use crate::blockmap::BlockMap;
use crate::open::read_head;
use crate::{Error, Info, ReadAt};

pub use crate::blockmap::BlockDisk as Image;
use header::Header;

/// Opens the image in `source` for reading.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    let geometry = readable(&read_head(&source)?)?.geometry();
    Image::open(source, geometry)
}

/// Decodes a stream that begins with `head`.
pub(crate) fn layout(head: &[u8]) -> Result<BlockMap, Error> {
    BlockMap::new(readable(head)?.geometry())
}

fn readable(head: &[u8]) -> Result<Header, Error> {
    let header = Header::parse(head)?;
    header.refusal().map_or(Ok(header), Err)
}

/// Describes the image in `source`, also one that [`open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let header = Header::parse(&read_head(source)?)?;
    info.variant = Some(header.kind.name().to_owned());
    info.virtual_size = Some(header.virtual_size);
    info.cluster_size = Some(header.block);
    info.take_disk(open(source));
    Ok(())
}
