//! Containers round a disk: compression and archives, one adapter each, stacked as they are found.
//!
//! An adapter is a [`Read`] over a [`Peek`] and keeps one promise: it answers `Ok(0)` only after
//! its whole container was read and found good, checksums included, with nothing behind it but the
//! padding that its format allows. So whoever reads the innermost to its end has checked all.
//!
//! Memory: each codec takes what its format needs, up to a limit that its module names; all else is
//! a few buffers of [`peek::BUFFER`] bytes.

mod bzip2;
mod codec;
mod decompressed;
mod gzip;
mod layer;
mod lz4;
mod member;
mod ova;
mod peek;
mod scan;
mod snappy;
mod source;
mod tar;
#[cfg(test)]
mod tests;
mod thread;
mod xz;
mod zip;
mod zstd;

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;

use super::Probe;
use crate::sniff::HEAD_LEN;
use crate::{Error, ErrorKind, Format, chain_name, raw, sniff};

use codec::Unpack;
pub use decompressed::Decompressed;
pub use layer::{LayerContents, LayerRules};
use peek::{Gauge, Peek};
pub use scan::{Scan, Scanned};
use source::Collected;
pub(super) use thread::Thread;

/// How many containers there may be round a disk: a compressed disk in a compressed archive, and
/// one more.
const DEPTH_MAX: usize = 4;
/// How many bytes may come out of the containers, all in all, before the disk begins: other members
/// of an archive have to be passed.
const PASSED_MAX: u64 = 64 << 20;

/// A stack of adapters, down to a disk that no container is round.
struct Opened {
    /// The containers, from the outermost on.
    chain: Vec<Format>,
    reader: Peek,
    /// The length of what comes, if the innermost container tells.
    len: Option<u64>,
}

/// Stacks adapters on `source` until what comes out is no container.
fn open(
    source: Box<dyn Read + Send>,
    gauge: &Arc<Gauge>,
    threads: NonZeroUsize,
) -> io::Result<Opened> {
    let reader = Peek::outermost(source, gauge.clone());
    open_on(Opened { chain: Vec::new(), reader, len: None }, gauge, threads)
}

/// As [`open`], of a file that is a layer of a container image: a tar archive, compressed or not.
fn open_layer(
    source: Box<dyn Read + Send>,
    rules: LayerRules,
    gauge: &Arc<Gauge>,
    threads: NonZeroUsize,
) -> io::Result<Result<Opened, LayerContents>> {
    let mut reader = Peek::outermost(source, gauge.clone());
    let mut chain = Vec::new();
    // An empty layer is nothing but zeros, which no magic tells.
    let packing = sniff(reader.head(HEAD_LEN)?);
    if packing.is_container() && !matches!(packing, Format::Tar | Format::Ova) {
        chain.push(packing);
        (reader, _) = unpack(packing, reader, gauge, threads)?;
    }
    chain.push(Format::Tar);
    match tar::Tar::layer(reader, rules)? {
        tar::Layer::Other(contents) => Ok(Err(contents)),
        tar::Layer::Disk(tar, len) => {
            let reader = Peek::new(tar, gauge.clone());
            open_on(Opened { chain, reader, len: Some(len) }, gauge, threads).map(Ok)
        }
    }
}

fn open_on(mut opened: Opened, gauge: &Arc<Gauge>, threads: NonZeroUsize) -> io::Result<Opened> {
    loop {
        let format = sniff(opened.reader.head(HEAD_LEN)?);
        if !format.is_container() {
            return Ok(opened);
        }
        opened.chain.push(format);
        if opened.chain.len() > DEPTH_MAX {
            let what = format!(
                "expected at most {DEPTH_MAX} containers round a disk, got {}",
                chain_name(&opened.chain)
            );
            return Err(refuse(ErrorKind::Unsupported, what));
        }
        (opened.reader, opened.len) = unpack(format, opened.reader, gauge, threads)?;
    }
}

/// The adapter for `format`, and how long its contents are if that is known before they end.
fn unpack(
    format: Format,
    inner: Peek,
    gauge: &Arc<Gauge>,
    threads: NonZeroUsize,
) -> io::Result<(Peek, Option<u64>)> {
    let mut len = None;
    let reader: Box<dyn Read + Send> = match format {
        Format::Tar | Format::Ova => {
            let (tar, disk) = tar::Tar::open(inner)?;
            len = Some(disk);
            Box::new(tar)
        }
        Format::Zip => {
            let (zip, disk) = zip::Zip::open(inner)?;
            len = disk;
            Box::new(zip)
        }
        Format::Gzip => Box::new(Unpack::new(gzip::Gzip::default(), inner)),
        Format::Xz if threads == NonZeroUsize::MIN => {
            Box::new(Unpack::new(xz::Xz::default(), inner))
        }
        Format::Xz => Box::new(xz::Blocks::new(inner, threads)),
        Format::Lzma => Box::new(Unpack::new(xz::Lzma::default(), inner)),
        Format::Zstd => Box::new(Unpack::new(zstd::Zstd::new()?, inner)),
        Format::Bzip2 => Box::new(Unpack::new(bzip2::Bzip2::default(), inner)),
        Format::Lz4 => Box::new(lz4::Lz4::new(inner)),
        Format::Snappy => Box::new(snappy::Snappy::new(inner)),
        other => {
            return Err(other
                .refusal()
                .map_or_else(|| io::ErrorKind::Other.into(), io::Error::other));
        }
    };
    Ok((Peek::new(reader, gauge.clone()), len))
}

/// The start of a disk in its containers.
pub(crate) struct Found {
    /// The containers from the outermost on, then the disk's own format.
    pub(crate) chain: Vec<Format>,
    /// The disk's first bytes, as many as its header may have.
    pub(crate) head: Vec<u8>,
    /// The length of the disk's file, if the innermost container tells.
    pub(crate) len: Option<u64>,
}

impl Found {
    /// The disk's own format.
    pub(crate) fn format(&self) -> Format {
        *self.chain.last().expect("a format behind the containers")
    }

    /// The size of the disk if it is raw. `None` if it may be a fixed VHD, whose footer is a sector
    /// behind the disk: the disks themselves have whole KiBs, by their geometry or by megabytes.
    pub(crate) fn raw_size(&self) -> Option<u64> {
        self.len.map(raw::round_up).filter(|size| size.is_multiple_of(1024))
    }

    /// What it says of the disk, if this crate reads it.
    pub(super) fn probe(self) -> Result<Probe, Error> {
        let probe = super::probe(&self.head).map_err(Error::of_unpacked)?;
        let virtual_size = match probe.format {
            Format::Raw => self.raw_size(),
            _ => probe.virtual_size,
        };
        Ok(Probe { chain: self.chain, virtual_size, packed: true, settles: false, ..probe })
    }
}

/// Looks for a disk in the containers whose first bytes are in `chunks`. `None` if it takes more of
/// them to see it; never if the file has `ended` with them.
pub(crate) fn look(chunks: &[Bytes], ended: bool) -> Result<Option<Found>, Error> {
    let gauge = Arc::new(Gauge::new(PASSED_MAX));
    let source = Collected::new(chunks.to_vec(), ended);
    let looked = open(Box::new(source), &gauge, NonZeroUsize::MIN).and_then(|mut opened| {
        let wanted = super::head_len(opened.reader.head(HEAD_LEN)?);
        let head = opened.reader.head(wanted)?.to_vec();
        Ok((opened, head))
    });
    match looked {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(own(error, gauge.position())),
        Ok((opened, head)) => {
            let Opened { mut chain, len, .. } = opened;
            chain.push(sniff(&head));
            Ok(Some(Found { chain, head, len }))
        }
    }
}

/// A refusal that an adapter hands up through those above it.
fn refuse(kind: ErrorKind, what: impl Into<String>) -> io::Error {
    io::Error::other(Error::new(kind, what))
}

/// The refusal behind `error`, which came up when the file had been read up to `at`.
fn own(error: io::Error, at: u64) -> Error {
    match error.downcast::<Error>() {
        Ok(own) if own.offset().is_none() => own.at(at),
        Ok(own) => own,
        Err(error) => Error::read(error, at),
    }
}
