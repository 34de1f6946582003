//! Telling what an image is without importing it.

use std::io;
use std::sync::{Mutex, PoisonError};

use bootyard_image::{Format, Info, ReadAt, sniff};
use bootyard_source::{self as source, Object};
use bootyard_spec::Source;
use bytes::Bytes;
use tokio::runtime::Runtime;

use crate::opened::Lookup;
use crate::run::runtime;
use crate::{Error, Probe, layers};

/// Ranges are fetched in blocks of this many bytes: what most headers and tables fit into.
const BLOCK: u64 = 64 << 10;
/// How many bytes are fetched at most: larger tables are not worth a look.
const RANGES_MAX: u64 = 16 << 20;
/// How much of a stream is read. The headers of every format lie in it.
const HEAD_MAX: usize = 4 << 20;

/// Describes the image that `source` holds, also one that an import would refuse. From a server
/// that serves ranges, and from a file, only the parts are read that tell; else as much of the
/// beginning as is needed, up to a limit. Of a disk in a container image only what its head says is
/// told.
///
/// Needs [`source::install_crypto_provider`] to have been called, and must not be called from
/// async code.
pub fn inspect(source: &Source, options: &source::Options) -> Result<Info, Error> {
    if layers::is_image(source) {
        let opened = runtime()?.block_on(layers::open(source, options, &Lookup::default()))?;
        let Probe { chain, virtual_size, .. } = opened.probe;
        let info = Info::of_stream(chain, virtual_size);
        return Ok(info.expect("a probe has a format"));
    }
    let parts = Parts::open(source, options)?;
    let looks_like = || {
        let head = parts.lock().blocks.first().map(|block| block.1.clone())?;
        (!head.is_empty()).then(|| sniff(&head))
    };
    let info = bootyard_image::inspect(&parts);
    if let Some(error) = parts.lock().error.take() {
        return Err(error.into());
    }
    let mut info = info.map_err(|error| Error::image(error, source, looks_like()))?;
    if !parts.known_len && info.chain == [Format::Raw] {
        info.virtual_size = None;
    }
    Ok(info)
}

/// The parts of a source that have been asked for.
struct Parts {
    len: u64,
    /// False if `len` is only a bound.
    known_len: bool,
    runtime: Runtime,
    fetched: Mutex<Fetched>,
}

struct Fetched {
    object: Object,
    /// By offset, in their order.
    blocks: Vec<(u64, Bytes)>,
    /// What the source failed with.
    error: Option<source::Error>,
}

impl Parts {
    fn open(source: &Source, options: &source::Options) -> Result<Self, Error> {
        let runtime = runtime()?;
        let mut object = runtime.block_on(source::open(source, options))?;
        let mut blocks = Vec::new();
        let len = match object.len() {
            Some(len) if object.accepts_ranges() => Some(len),
            announced => {
                let (head, ended) = runtime.block_on(read_head(&mut object))?;
                let read = head.len() as u64;
                blocks.push((0, head));
                announced.or(ended.then_some(read))
            }
        };
        // Nothing is beyond the end of what may be of any length.
        let (len, known_len) = (len.unwrap_or(i64::MAX as u64), len.is_some());
        let fetched = Mutex::new(Fetched { object, blocks, error: None });
        Ok(Self { len, known_len, runtime, fetched })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Fetched> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the run of blocks from `offset` on that are not there yet, at most up to `end`.
    fn fetch(&self, fetched: &mut Fetched, offset: u64, end: u64) -> io::Result<()> {
        if !fetched.object.accepts_ranges() || fetched.object.len().is_none() {
            let what = "the server serves no ranges, and the first bytes do not tell enough";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let begin = offset / BLOCK * BLOCK;
        let known = fetched.blocks.partition_point(|(at, _)| *at <= begin);
        let next = fetched.blocks.get(known).map_or(self.len, |(at, _)| *at);
        let end = end.next_multiple_of(BLOCK).min(next).min(self.len);
        let total: usize = fetched.blocks.iter().map(|(_, bytes)| bytes.len()).sum();
        if total as u64 + (end - begin) > RANGES_MAX {
            return Err(io::Error::other("the image's tables are too large for a look"));
        }
        match self.runtime.block_on(fetched.object.read_range(begin, end - begin)) {
            Ok(bytes) if bytes.len() as u64 == end - begin => {
                fetched.blocks.insert(known, (begin, bytes));
                Ok(())
            }
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                fetched.error = Some(error);
                Err(io::Error::other("the source failed"))
            }
        }
    }
}

impl ReadAt for Parts {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut fetched = self.lock();
        while !buf.is_empty() {
            let last = fetched.blocks.partition_point(|(at, _)| *at <= offset).checked_sub(1);
            let there = last.and_then(|index| {
                let (at, bytes) = &fetched.blocks[index];
                bytes.get((offset - at) as usize..).filter(|bytes| !bytes.is_empty())
            });
            let Some(there) = there else {
                self.fetch(&mut fetched, offset, end)?;
                continue;
            };
            let len = there.len().min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            part.copy_from_slice(&there[..len]);
            buf = rest;
            offset += len as u64;
        }
        Ok(())
    }
}

/// The first bytes of a source that is only a stream, as many as may be fetched, and whether these
/// are all.
async fn read_head(object: &mut Object) -> Result<(Bytes, bool), source::Error> {
    let mut head = Vec::new();
    while head.len() <= HEAD_MAX {
        let Some(chunk) = object.next().await? else { return Ok((head.into(), true)) };
        head.extend_from_slice(&chunk);
    }
    head.truncate(HEAD_MAX);
    Ok((head.into(), false))
}
