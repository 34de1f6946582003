//! What the tests of this crate share: a sink that checks its decoder, memory as storage.

use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::raw::FileAt;
use crate::stream::{Decoder, Head, Options, Storage, Summary};
use crate::{Body, Error, ErrorKind, Format, Piece, Sink, open};

/// Disks larger than this are not decoded into memory.
pub(crate) const SIZE_MAX: u64 = 64 << 20;

/// Takes a disk into memory and notes what it was given.
#[derive(Default)]
pub(crate) struct Memory {
    disk: Mutex<Vec<u8>>,
    runs: Mutex<Vec<(u64, u64)>>,
}

impl Memory {
    /// The disk, if its pieces covered each of its `size` bytes exactly once.
    pub(crate) fn into_disk(self, size: u64) -> Vec<u8> {
        let mut runs = self.runs.into_inner().unwrap();
        runs.sort_unstable();
        let mut end = 0;
        for (offset, len) in runs {
            assert_eq!(offset, end, "pieces cover each byte once");
            assert!(len > 0, "no piece is empty");
            end += len;
        }
        assert_eq!(end, size, "pieces cover the disk");
        let mut disk = self.disk.into_inner().unwrap();
        disk.resize(size as usize, 0);
        disk
    }
}

impl Memory {
    /// The first `size` bytes of the disk, however it came together.
    pub(crate) fn bytes(&self, size: u64) -> Vec<u8> {
        let mut disk = self.disk.lock().unwrap().clone();
        disk.resize(size as usize, 0);
        disk
    }
}

impl Sink for Memory {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        let len = match piece.body {
            Body::Zero(len) => len,
            Body::Data(data) => {
                let end = piece.offset as usize + data.len();
                if end as u64 > SIZE_MAX {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let mut disk = self.disk.lock().unwrap();
                if disk.len() < end {
                    disk.resize(end, 0);
                }
                disk[piece.offset as usize..end].copy_from_slice(data);
                data.len() as u64
            }
        };
        self.runs.lock().unwrap().push((piece.offset, len));
        Ok(())
    }
}

pub(crate) fn options(workers: usize) -> Options {
    let spill = || Ok(Box::new(FileAt::new(tempfile::tempfile()?)?) as Box<dyn Storage>);
    Options {
        workers: NonZeroUsize::new(workers).unwrap(),
        spill: Box::new(spill),
        spill_limit: SIZE_MAX,
        checkpoints: false,
        is_raw: false,
    }
}

/// Pushes `file` in chunks of the lengths that `lens` gives over and over, into `sink`.
pub(crate) fn push(file: &[u8], lens: &[usize], sink: Arc<dyn Sink>) -> Result<Summary, Error> {
    let mut chunks = Vec::new();
    let mut rest = Bytes::copy_from_slice(file);
    for len in lens.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        chunks.push(rest.split_to(rest.len().min(*len)));
    }
    let mut chunks = chunks.into_iter();
    let mut head = Head::new();
    for chunk in chunks.by_ref() {
        if head.push(chunk)?.is_some() {
            break;
        }
    }
    let probe = head.end()?;
    let mut decoder = Decoder::new(head, sink, options(3))?;
    for chunk in chunks {
        decoder.push(chunk)?;
    }
    let summary = decoder.finish()?;
    let fixed_vhd = probe.format == Format::Raw && summary.format == Format::Vhd;
    assert!(fixed_vhd || probe.format == summary.format);
    assert!(probe.virtual_size.is_none_or(|size| size == summary.virtual_size));
    Ok(summary)
}

/// Decodes `file` into memory.
pub(crate) fn decode(file: &[u8], lens: &[usize]) -> Result<(Vec<u8>, Summary), Error> {
    let sink = Arc::new(Memory::default());
    let summary = push(file, lens, sink.clone())?;
    if summary.virtual_size > SIZE_MAX {
        return Err(Error::write(io::ErrorKind::StorageFull.into()));
    }
    let sink = Arc::into_inner(sink).expect("the decoder has ended its threads");
    assert_eq!(summary.data_bytes + summary.zero_bytes, summary.virtual_size);
    Ok((sink.into_disk(summary.virtual_size), summary))
}

/// Reads the disk in `file` by random access, as far as [`SIZE_MAX`].
pub(crate) fn read(file: &[u8]) -> Result<Vec<u8>, Error> {
    let disk = open(file.to_vec())?;
    let mut whole = vec![0; disk.virtual_size().min(SIZE_MAX) as usize];
    disk.read_at(&mut whole, 0)?;
    Ok(whole)
}

/// Reads a damaged `file` both ways, which must agree, but that a stream may not be decodable.
pub(crate) fn check_damaged(file: &[u8], lens: &[usize]) {
    match (decode(file, lens), read(file)) {
        (Ok((streamed, _)), Ok(opened)) => assert!(streamed == opened),
        (Err(error), Ok(_)) => assert!(
            matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Write),
            "{error}, but random access reads it"
        ),
        (Ok(_), Err(error)) => panic!("streamed, but {error}"),
        (Err(_), Err(_)) => {}
    }
}
