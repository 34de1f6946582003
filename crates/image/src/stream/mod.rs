//! Push decoding: a file that only passes by, once, from its first byte to its last.
//!
//! [`Head`] takes the first bytes until the format is known, and the disk's size where the format
//! tells it; then [`Decoder`] takes all of them and gives the disk's pieces to a [`Sink`]. Blocks
//! are decompressed, searched for zeros and stored on worker threads; the caller's thread only
//! reads tables and cuts. Memory does not grow with the image: see [`QUEUE_BYTES`].
//!
//! A format that keeps its tables before its data, as every converter writes them, streams
//! without anything being set aside. Bytes whose use is not yet known wait in memory, and beyond
//! a limit in [`Options::spill`].
//!
//! A disk may stand in containers: see [`Probe::chain`]. They are unpacked on one more thread, which
//! feeds the disk's own decoder.

mod gather;
mod hold;
mod pool;
mod raw;
mod resume;
mod route;
mod unpack;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use hold::Hold;
pub(crate) use pool::{Packed, Pool};
pub(crate) use route::{Held, Layout, Place, Router, TABLE_PIECE, Wants};

use crate::sniff::{HEAD_LEN, refuse_text};
use crate::{Error, ErrorKind, Format, ReadAt, Sink, WriteAt, sniff};
use crate::{parallels, qcow1, qcow2, qed, vdi, vhd, vhdx, vmdk};

use gather::Gather;
pub use pool::QUEUE_BYTES;
use resume::Recorder;
pub use resume::{Checkpoint, KEPT_MAX, Kept, KeptBytes};
pub use unpack::Decompressed;
pub(crate) use unpack::look;
pub use unpack::{LayerContents, LayerRules, Scan, Scanned};

/// Storage that is written and read back.
pub trait Storage: ReadAt + WriteAt {}

impl<T: ReadAt + WriteAt + ?Sized> Storage for T {}

/// How many bytes of a stream are collected until they tell what disk is in its containers.
const HEAD_MAX: usize = 16 << 20;

/// What the first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// The containers round the disk from the outermost on, then the disk's own format.
    pub chain: Vec<Format>,
    /// The disk's own format, the last of the chain. What seems to be raw may turn out to be a
    /// fixed VHD at its end.
    pub format: Format,
    /// The disk's size in bytes, if its format or the container round it tells. A raw disk is as
    /// long as its stream.
    pub virtual_size: Option<u64>,
    /// Whether the first table comes so late that data before it is set aside, on a disk.
    pub late_tables: bool,
    /// Whether the disk's format compresses, so that it may be larger than the stream.
    pub packed: bool,
    /// Whether a decoder can be made to go on in its midst: [`Decoder::checkpoint`].
    pub settles: bool,
}

impl Probe {
    fn raw() -> Self {
        Self {
            chain: vec![Format::Raw],
            format: Format::Raw,
            virtual_size: None,
            late_tables: false,
            packed: false,
            settles: true,
        }
    }
}

/// The first bytes of a stream, collected until they tell what it is.
#[derive(Debug, Default)]
pub struct Head {
    chunks: Vec<Bytes>,
    /// How many bytes these have, and how many it takes until unpacking them is tried again.
    len: usize,
    wanted: usize,
    /// A copy of the first bytes in one piece, as many as the format's header may need.
    bytes: Vec<u8>,
    probe: Option<Probe>,
    /// It is a layer of a container image.
    rules: Option<LayerRules>,
    /// It is raw, whatever it seems to be.
    is_raw: bool,
}

impl Head {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The head of a layer in which a [`Scan`] with these rules has found the disk. `chunks` are its
    /// first bytes, as many as have been kept; the decoder wants all that follow.
    pub fn of_layer(probe: Probe, rules: LayerRules, chunks: Vec<Bytes>) -> Self {
        let len = chunks.iter().map(Bytes::len).sum();
        Self { chunks, len, probe: Some(probe), rules: Some(rules), ..Self::default() }
    }

    /// Starts a disk that is known to be raw, whatever its first bytes show: a guest may have written
    /// the header of another format there.
    pub fn raw() -> Self {
        Self { is_raw: true, ..Self::default() }
    }

    /// Takes the next chunk. Answers once enough is known, and from then on. Of a container as much
    /// is unpacked, and thrown away, as it takes to see the disk in it.
    ///
    /// Fails where the bytes are no disk image, or one that this crate does not read.
    pub fn push(&mut self, chunk: Bytes) -> Result<Option<Probe>, Error> {
        let missing = qcow2::HEADER_MAX.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(missing)]);
        self.len += chunk.len();
        self.chunks.push(chunk);
        if self.probe.is_none() && self.bytes.len() >= head_len(&self.bytes) {
            self.probe = self.decide(false)?;
        }
        Ok(self.probe.clone())
    }

    /// The stream has ended: decides by what there is.
    pub fn end(&mut self) -> Result<Probe, Error> {
        if self.probe.is_none() {
            self.probe = self.decide(true)?;
        }
        self.probe.clone().ok_or_else(|| {
            Error::new(ErrorKind::Truncated, "the file ends before its disk begins")
                .at(self.len as u64)
        })
    }

    fn decide(&mut self, ended: bool) -> Result<Option<Probe>, Error> {
        if self.is_raw {
            return Ok(Some(Probe::raw()));
        }
        if !sniff(&self.bytes).is_container() {
            return probe(&self.bytes).map(Some);
        }
        if !ended && self.len < self.wanted {
            return Ok(None);
        }
        // Each try starts anew, with twice as much.
        self.wanted = self.len * 2;
        match look(&self.chunks, ended)? {
            None if self.len > HEAD_MAX => {
                let what = format!("the disk does not begin in the first {HEAD_MAX} bytes");
                Err(Error::new(ErrorKind::TooLarge, what).at(self.len as u64))
            }
            found => found.map(unpack::Found::probe).transpose(),
        }
    }
}

/// How many bytes the decision needs.
fn head_len(head: &[u8]) -> usize {
    match sniff(head) {
        Format::Qcow1 | Format::Qcow2 | Format::Qed | Format::Vhd | Format::Vmdk => {
            qcow2::HEADER_MAX
        }
        _ => HEAD_LEN,
    }
}

fn probe(head: &[u8]) -> Result<Probe, Error> {
    let format = sniff(head);
    if let Some(refusal) = format.refusal() {
        return Err(refusal);
    }
    let mut first_table = 0;
    let mut settles = true;
    let virtual_size = match format {
        Format::Qcow2 => {
            let header = qcow2::Header::parse(head)?;
            first_table = header.l1_offset;
            if let Some(refusal) = header.refusal(qcow2::Given::default()) {
                return Err(refusal);
            }
            refuse_polyglot(head)?;
            Some(header.virtual_size)
        }
        Format::Vmdk => {
            let streamed = vmdk::Streamed::new(head)?;
            first_table = streamed.first_table();
            settles = matches!(streamed, vmdk::Streamed::Plain(_));
            Some(streamed.virtual_size())
        }
        Format::Vdi => Some(vdi::layout(head)?.virtual_size()),
        Format::Vhd => Some(vhd::layout(head)?.virtual_size()),
        Format::Vhdx => None,
        Format::Parallels => Some(parallels::layout(head)?.virtual_size()),
        Format::Qcow1 => Some(qcow1::layout(head)?.virtual_size()),
        Format::Qed => Some(qed::layout(head)?.virtual_size()),
        _ => {
            refuse_text(head.get(..HEAD_LEN).unwrap_or(head))?;
            None
        }
    };
    let late_tables = first_table > hold::MEMORY_MAX as u64;
    let packed = matches!(format, Format::Qcow1 | Format::Qcow2) || !settles;
    Ok(Probe { chain: vec![format], format, virtual_size, late_tables, packed, settles })
}

/// Refuses a file that is a disk image for one reader and a CD for another (ECMA-119 §8.1: the
/// volume descriptors begin at sector 16).
pub(crate) fn refuse_polyglot(head: &[u8]) -> Result<(), Error> {
    const ISO_MARK: usize = 16 * 2048 + 1;
    if head.get(ISO_MARK..).is_some_and(|tail| tail.starts_with(b"CD001")) {
        let what = "the file claims to be both qcow2 and ISO 9660";
        return Err(Error::new(ErrorKind::NotAnImage, what).at(ISO_MARK as u64));
    }
    Ok(())
}

/// How a stream is decoded.
pub struct Options {
    /// How many threads decompress and store.
    pub workers: NonZeroUsize,
    /// Makes the storage for bytes that arrive before their table. It is called at most once, and
    /// only if memory does not suffice; the storage reads back what was written at an offset.
    pub spill: Box<dyn FnMut() -> io::Result<Box<dyn Storage>> + Send>,
    /// How many bytes may be written there.
    pub spill_limit: u64,
    /// Whether [`Decoder::checkpoint`] will be asked.
    pub checkpoints: bool,
    /// Whether the disk is known to be raw, as for [`Head::raw`].
    pub is_raw: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("workers", &self.workers)
            .field("spill_limit", &self.spill_limit)
            .finish_non_exhaustive()
    }
}

/// What was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The containers round the disk from the outermost on, then the disk's own format.
    pub chain: Vec<Format>,
    /// The disk's own format, the last of the chain.
    pub format: Format,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// How many bytes of data the sink was given.
    pub data_bytes: u64,
    /// How many bytes of zeros it was told of.
    pub zero_bytes: u64,
    /// How many bytes had to be spilled. None in what the usual converters write.
    pub spilled_bytes: u64,
}

/// Decodes a stream of one format, whose header is known, part by part.
pub(crate) trait Push: fmt::Debug + Send {
    /// Takes the next part.
    fn push(&mut self, part: Bytes, pool: &mut Pool) -> Result<(), Error>;

    /// Where the stream would have to be given again from, if everything handed to the pool so far
    /// is stored; `None` if that is not known, or its beginning.
    fn settled(&self) -> Option<u64> {
        None
    }

    /// What of the stream before that must be given again, as far as it is new.
    fn take_kept(&mut self) -> Vec<Kept> {
        Vec::new()
    }

    /// Takes what was kept, in the order of the stream, and goes on where it was made to.
    fn replay(&mut self, _kept: &[Kept], _pool: &mut Pool) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Unsupported, "a stream of this format cannot be resumed"))
    }

    /// The stream has ended: hands the last pieces to `pool`.
    fn finish(self: Box<Self>, pool: &mut Pool) -> Result<Ended, Error>;
}

/// What a [`Push`] says in the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// The format, if the stream's end tells another one than its head.
    pub(crate) format: Option<Format>,
    /// The disk's size in bytes.
    pub(crate) virtual_size: u64,
    /// How many bytes were spilled.
    pub(crate) spilled_bytes: u64,
}

/// Decodes one stream. After an error the decoder is of no more use; dropping it ends its threads.
#[derive(Debug)]
pub struct Decoder {
    gather: Gather,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Direct(Direct),
    Unpack(unpack::Thread),
}

impl Decoder {
    /// Starts the worker threads and decodes what `head` has collected.
    pub fn new(mut head: Head, sink: Arc<dyn Sink>, options: Options) -> Result<Self, Error> {
        let work = match &head.end()?.chain[..] {
            [_] => Work::Direct(Direct::new(&head.bytes, sink, options, 0)?),
            _ => {
                let options = Options { checkpoints: false, is_raw: false, ..options };
                Work::Unpack(unpack::Thread::start(head.rules, sink, options)?)
            }
        };
        let mut decoder = Self { gather: Gather::default(), work };
        for chunk in head.chunks {
            decoder.push(chunk)?;
        }
        Ok(decoder)
    }

    /// A decoder that goes on at the offset `at` of a stream whose earlier bytes one has decoded that
    /// was settled there or farther on. `kept` is what that one's checkpoints have given, in order;
    /// this one's give only what is new.
    ///
    /// Fails where these do not suffice.
    pub fn resume(
        mut kept: Vec<Kept>,
        at: u64,
        sink: Arc<dyn Sink>,
        options: Options,
    ) -> Result<Self, Error> {
        let lost = || Error::new(ErrorKind::Unsupported, "the image's head was not kept");
        let first = kept.first().filter(|kept| kept.at == 0).ok_or_else(lost)?;
        let KeptBytes::Data(head) = first.bytes.clone() else { return Err(lost()) };
        kept.sort_by_key(|kept| kept.at);
        let mut direct = Direct::new(&head, sink, options, at)?;
        direct.input.replay(&kept, &mut direct.pool)?;
        // What has been kept for this one will do for the next.
        direct.head = None;
        direct.input.take_kept();
        Ok(Self { gather: Gather::default(), work: Work::Direct(direct) })
    }

    /// How far the decoder has come, so that another one could go on there.
    pub fn checkpoint(&mut self) -> Checkpoint {
        match &mut self.work {
            Work::Direct(direct) => direct.checkpoint(),
            Work::Unpack(_) => Checkpoint::default(),
        }
    }

    /// Waits until everything that was pushed is stored, as far as it can be by now; for a last
    /// checkpoint before the decoder is dropped.
    pub fn drain(&mut self) -> Result<(), Error> {
        match &mut self.work {
            Work::Direct(direct) => {
                direct.note_settling(1);
                direct.pool.drain()
            }
            Work::Unpack(_) => Ok(()),
        }
    }

    /// Takes the next chunk. Waits while the workers have enough to do. An error may be that of an
    /// earlier chunk.
    pub fn push(&mut self, mut chunk: Bytes) -> Result<(), Error> {
        while let Some(part) = self.gather.next(&mut chunk) {
            self.work.push(part)?;
        }
        Ok(())
    }

    /// The stream has ended: waits until all of the disk is stored.
    pub fn finish(mut self) -> Result<Summary, Error> {
        if let Some(part) = self.gather.rest() {
            self.work.push(part)?;
        }
        match self.work {
            Work::Direct(direct) => direct.finish(),
            Work::Unpack(thread) => thread.finish(),
        }
    }
}

impl Work {
    fn push(&mut self, part: Bytes) -> Result<(), Error> {
        match self {
            Self::Direct(direct) => direct.push(part),
            Self::Unpack(thread) => thread.push(part),
        }
    }
}

/// Decodes a disk that no container is round.
#[derive(Debug)]
struct Direct {
    format: Format,
    input: Box<dyn Push>,
    pool: Pool,
    /// The first bytes, until a checkpoint has given them out.
    head: Option<Bytes>,
    /// Offsets that are settled once the pool has stored what comes before a mark.
    settling: VecDeque<(u64, u64)>,
    checkpoints: bool,
}

/// How far apart the offsets are that a checkpoint can tell.
const CHECKPOINT_STEP: u64 = 1 << 20;

impl Direct {
    /// Starts the worker threads. `head` is as much as [`head_len`] asks for. The stream will be
    /// given from `at` on, after a replay if that is not its beginning.
    fn new(head: &[u8], sink: Arc<dyn Sink>, options: Options, at: u64) -> Result<Self, Error> {
        let format = if options.is_raw { Format::Raw } else { probe(head)?.format };
        let checkpoints = options.checkpoints;
        let hold = Hold::new(options.spill, options.spill_limit);
        let start = Start { hold, workers: options.workers, sink, checkpoints, at };
        let (input, pool): (Box<dyn Push>, Pool) = match format {
            Format::Qcow2 => start.routed(qcow2::Map::new(&qcow2::Header::parse(head)?))?,
            Format::Vmdk => match vmdk::Streamed::new(head)? {
                vmdk::Streamed::Plain(map) => start.routed(map)?,
                vmdk::Streamed::Packed(stream) => {
                    let block = stream.block();
                    (Box::new(stream), start.pool(block)?)
                }
            },
            Format::Vdi => start.routed(vdi::layout(head)?)?,
            Format::Vhd => start.routed(vhd::layout(head)?)?,
            Format::Vhdx => start.routed(vhdx::Map::default())?,
            Format::Parallels => start.routed(parallels::layout(head)?)?,
            Format::Qcow1 => start.routed(qcow1::layout(head)?)?,
            Format::Qed => start.routed(qed::layout(head)?)?,
            _ => (Box::new(raw::Raw::at(at, options.is_raw)), start.pool(0)?),
        };
        let head = checkpoints.then(|| Bytes::copy_from_slice(head));
        Ok(Self { format, input, pool, head, settling: VecDeque::new(), checkpoints })
    }

    fn checkpoint(&mut self) -> Checkpoint {
        let mut settled = None;
        while let Some((at, _)) =
            self.settling.pop_front_if(|(_, mark)| self.pool.has_stored(*mark))
        {
            settled = Some(at);
        }
        let head = self.head.take().map(|head| Kept { at: 0, bytes: KeptBytes::Data(head) });
        let kept = head.into_iter().chain(self.input.take_kept()).collect();
        Checkpoint { settled, kept }
    }

    /// Notes where the stream is settled, if that is at least `step` farther on.
    fn note_settling(&mut self, step: u64) {
        let last = self.settling.back().map_or(0, |(at, _)| *at);
        if let Some(at) = self.input.settled().filter(|at| *at >= last + step) {
            self.settling.push_back((at, self.pool.mark()));
        }
    }

    fn push(&mut self, part: Bytes) -> Result<(), Error> {
        let (len, before) = (part.len(), self.pool.handed());
        self.input.push(part, &mut self.pool)?;
        if self.checkpoints {
            self.note_settling(CHECKPOINT_STEP);
        }
        self.pool.keeps_part(len, before)
    }

    fn finish(mut self) -> Result<Summary, Error> {
        let ended = self.input.finish(&mut self.pool)?;
        let stored = self.pool.finish()?;
        let format = ended.format.unwrap_or(self.format);
        Ok(Summary {
            chain: vec![format],
            format,
            virtual_size: ended.virtual_size,
            data_bytes: stored.data,
            zero_bytes: stored.zero,
            spilled_bytes: ended.spilled_bytes,
        })
    }
}

/// What decoders are made of.
struct Start {
    hold: Hold,
    workers: NonZeroUsize,
    sink: Arc<dyn Sink>,
    checkpoints: bool,
    at: u64,
}

impl Start {
    /// The workers for blocks of up to `block` bytes.
    fn pool(self, block: usize) -> Result<Pool, Error> {
        Pool::start(self.workers, block, self.sink)
    }

    /// A decoder for `layout` and the workers for its blocks.
    fn routed<L: Layout + 'static>(self, layout: L) -> Result<(Box<dyn Push>, Pool), Error> {
        let block = layout.packing().map_or(0, |(_, block)| block);
        let mut pool = Pool::start(self.workers, block, self.sink)?;
        let recorder = Recorder::new(self.checkpoints);
        let router = Router::new(layout, self.hold, recorder, self.at, &mut pool)?;
        Ok((Box::new(router), pool))
    }
}
