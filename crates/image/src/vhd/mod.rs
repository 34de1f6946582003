//! VHD, the "Virtual Hard Disk Image Format Specification" 1.0: dynamic and fixed disks.
//!
//! A *footer* of one sector ends every file. A fixed disk has nothing else round it, so that only
//! its end tells it from a raw one. A dynamic disk begins with a copy of its footer; the *dynamic
//! disk header* and the *block allocation table* follow in any place. Each block has a bitmap of
//! its sectors before its data.
//!
//! * The copy at the start is what is read of a dynamic disk, as QEMU does it and as a stream must;
//!   the footer at the end may be damaged or cut off.
//! * The bitmaps of a dynamic disk are not looked at, as in QEMU: a block is zeroed when it is
//!   added, so that a sector that was never written reads as zeros anyway, and there are writers
//!   that leave the bits alone. They only matter in a differencing disk, which is refused.

mod footer;
mod header;
#[cfg(test)]
mod tests;

use crate::blockmap::{BlockDisk, BlockMap};
use crate::open::read_head;
use crate::raw::RawDisk;
use crate::sniff::refuse_tail;
use crate::{Disk, Error, ErrorKind, Extent, Info, ReadAt};

pub(crate) use footer::{FOOTER_LEN, FixedFooter};
use footer::{Footer, Kind};
use header::{HEADER_LEN, Header};

/// A disk in a VHD.
#[derive(Debug)]
pub struct Image<R>(Inner<R>);

#[derive(Debug)]
enum Inner<R> {
    Fixed(RawDisk<R>),
    Dynamic(BlockDisk<R>),
}

/// Opens the image in `source` for reading.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    match fixed(&source)? {
        Some(footer) => Ok(open_fixed(source, &footer)),
        None => Ok(Image(Inner::Dynamic(open_dynamic(source)?))),
    }
}

/// Opens the fixed disk in `source`, whose footer was found.
pub(crate) fn open_fixed<R: ReadAt>(source: R, footer: &FixedFooter) -> Image<R> {
    Image(Inner::Fixed(RawDisk::first(source, footer.virtual_size)))
}

/// The footer of the fixed disk in `source`, if it is one. A file that begins as a dynamic disk is
/// not looked at.
pub(crate) fn fixed(source: &(impl ReadAt + ?Sized)) -> Result<Option<FixedFooter>, Error> {
    let len = source.len();
    let mut tail = vec![0; len.min(FOOTER_LEN as u64) as usize];
    let at = len - tail.len() as u64;
    let read = |tail: &mut [u8], at| {
        source.read_exact_at(tail, at).map_err(|error| Error::read(error, at))
    };
    read(&mut tail[..len.min(8) as usize], 0)?;
    if Footer::is_at_start_of(&tail) {
        return Ok(None);
    }
    read(&mut tail, at)?;
    refuse_tail(&tail, len)?;
    FixedFooter::parse(&tail, len)
}

fn open_dynamic<R: ReadAt>(source: R) -> Result<BlockDisk<R>, Error> {
    let footer = Footer::parse(&read_head(&source)?, 0)?;
    let header = Header::read(&source, &footer)?;
    if let Some(refusal) = header.refusal(&footer) {
        return Err(refusal);
    }
    BlockDisk::open(source, header.geometry(&footer))
}

/// Decodes the stream of a dynamic disk that begins with `head`.
pub(crate) fn layout(head: &[u8]) -> Result<BlockMap, Error> {
    let footer = Footer::parse(head, 0)?;
    let at = footer.header_at()?;
    if at > (head.len() - HEADER_LEN.min(head.len())) as u64
        && head.len() == crate::qcow2::HEADER_MAX
    {
        let what = "the dynamic disk header comes too late to read the image from a stream";
        return Err(Error::new(ErrorKind::Unsupported, what).at(at));
    }
    let header = Header::read(&head.to_vec(), &footer)?;
    if let Some(refusal) = header.refusal(&footer) {
        return Err(refusal);
    }
    BlockMap::new(header.geometry(&footer))
}

/// Describes the dynamic or differencing image in `source`, also one that [`open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let footer = Footer::parse(&read_head(source)?, 0)?;
    let header = Header::read(source, &footer)?;
    footer.describe(info);
    info.virtual_size = Some(footer.dynamic_size());
    info.cluster_size = Some(header.block);
    info.backing_file = (footer.kind == Kind::Differencing).then(|| header.parent_name.clone());
    if footer.is_missing_at_end_of(source) {
        let note = "the footer at the end is missing or damaged; its copy at the start is used";
        info.notes.push(note.to_owned());
    }
    info.take_disk(open_dynamic(source));
    Ok(())
}

impl<R: ReadAt> Image<R> {
    fn disk(&self) -> &dyn Disk {
        match &self.0 {
            Inner::Fixed(disk) => disk,
            Inner::Dynamic(disk) => disk,
        }
    }
}

impl<R: ReadAt> Disk for Image<R> {
    fn virtual_size(&self) -> u64 {
        self.disk().virtual_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.disk().read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        self.disk().extent_at(offset)
    }
}
