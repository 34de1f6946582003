//! Decompresses the blocks of .xz files (§3) in several threads, in bounded memory.
//!
//! Where a block ends is told by the headers of its LZMA2 chunks, without decompressing them, whether
//! its own header tells its sizes or not. Each block goes as it is to one of the [`Queue`]'s threads,
//! where liblzma checks it. Headers of streams, the index and the footer are checked here: that the
//! index lists the very blocks that came.
//!
//! A fault comes up where it is: everything before it is read first.

use std::io::{self, BufRead, Read};
use std::num::NonZeroUsize;

use flate2::Crc;

use super::container::{
    CHUNK_HEADER_MAX, Chunk, Flags, Header, NUMBER_MAX, PADDING, Records, STREAM_LEN, header_len,
    parse_number,
};
use super::queue::{ALREADY, Buffer, End, Kind, Output, Queue};
use super::{MAGIC, NAME};
use crate::ErrorKind;
use crate::stream::unpack::codec::{damaged, trailing};
use crate::stream::unpack::peek::Peek;
use crate::stream::unpack::refuse;

/// Reads what is in the blocks of all streams of a file.
pub(in crate::stream::unpack) struct Blocks {
    walk: Walk,
    queue: Queue,
    /// What is being read, and up to where.
    current: Option<(Buffer, usize)>,
}

impl Blocks {
    /// Decompresses in up to `threads` threads, fewer where the dictionaries are large.
    pub(in crate::stream::unpack) fn new(inner: Peek, threads: NonZeroUsize) -> Self {
        let walk = Walk { inner, at: At::Between { first: true } };
        Self { walk, queue: Queue::new(threads), current: None }
    }

    /// How many buffers there are when all is read.
    #[cfg(test)]
    pub(super) fn buffers(&self) -> usize {
        self.queue.free_buffers()
    }

    /// The next buffer. `None` at the end.
    fn next(&mut self) -> io::Result<Option<Buffer>> {
        loop {
            match self.queue.next(self.walk.goes_on()).map_err(io::Error::other)? {
                Output::Some(buffer) => return Ok(Some(buffer)),
                Output::Feed => {
                    if let Err(error) = self.walk.step(&mut self.queue) {
                        self.queue.end(End::Cut);
                        self.walk.at = At::Failed(error);
                    }
                }
                Output::End => {
                    let At::Failed(error) = &mut self.walk.at else { return Ok(None) };
                    return Err(std::mem::replace(error, io::Error::other(ALREADY)));
                }
            }
        }
    }
}

impl Read for Blocks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (buffer, at) = match self.current.take() {
            Some(current) => current,
            None => match self.next()? {
                Some(buffer) => (buffer, 0),
                None => return Ok(0),
            },
        };
        let rest = &buffer.filled()[at..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        if len == rest.len() {
            self.queue.done_with(buffer);
        } else {
            self.current = Some((buffer, at + len));
        }
        Ok(len)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Goes through the compressed file.
struct Walk {
    inner: Peek,
    at: At,
}

enum At {
    /// Before a stream, or at the end.
    Between {
        first: bool,
    },
    /// Before a block or the index.
    Stream(Flags, Records),
    Block(Flags, Records, Block),
    End,
    /// What is to be said when all blocks before it have been read.
    Failed(io::Error),
}

/// How far a block was walked.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// How long its header is.
    header: u64,
    /// How long its chunks are so far, and what comes out of them.
    packed: u64,
    plain: u64,
    /// How much of the present chunk is left, or of the padding and the check behind the last.
    left: u64,
    last: bool,
}

impl Walk {
    const fn goes_on(&self) -> bool {
        !matches!(self.at, At::End | At::Failed(_))
    }

    /// Reads one header, or some of a block.
    fn step(&mut self, queue: &mut Queue) -> io::Result<()> {
        self.at = match std::mem::replace(&mut self.at, At::End) {
            At::Between { first } => self.between(first)?,
            At::Stream(flags, records) => match header_len(self.take::<1>()?[0]) {
                None => {
                    self.index(flags, records)?;
                    At::Between { first: false }
                }
                Some(len) => At::Block(flags, records, self.block(flags, len, queue)?),
            },
            At::Block(flags, mut records, mut block) => {
                let mut buffer = queue.buffer();
                let filled = self.fill(flags, &mut block, &mut buffer);
                queue.feed(buffer);
                if filled? {
                    let check = flags.check_len();
                    records.add(block.header + block.packed + check, block.plain);
                    let packed = block.header + block.packed.next_multiple_of(4) + check;
                    queue.end(End::Whole { packed, plain: block.plain });
                    At::Stream(flags, records)
                } else {
                    At::Block(flags, records, block)
                }
            }
            ended => ended,
        };
        Ok(())
    }

    /// The next `N` bytes, which are not taken.
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.inner.head(N)?.try_into().map_err(|_| cut_off())
    }

    fn between(&mut self, first: bool) -> io::Result<At> {
        let head = self.inner.head(STREAM_LEN)?;
        if head.is_empty() && !first {
            return Ok(At::End);
        }
        if head.starts_with(&PADDING) && !first {
            self.inner.consume(PADDING.len());
            return Ok(At::Between { first });
        }
        if !head.starts_with(MAGIC) {
            return Err(io::Error::other(trailing(NAME)));
        }
        let flags = Flags::parse(&self.take()?).map_err(io::Error::other)?;
        self.inner.consume(STREAM_LEN);
        Ok(At::Stream(flags, Records::default()))
    }

    /// Begins the block whose header has `len` bytes.
    fn block(&mut self, flags: Flags, len: usize, queue: &mut Queue) -> io::Result<Block> {
        let header = self.inner.head(len)?;
        if header.len() < len {
            return Err(cut_off());
        }
        let Header { dictionary, plain } = Header::parse(header).map_err(io::Error::other)?;
        let dictionary = dictionary.min(plain.unwrap_or(u64::MAX));
        queue.begin(Kind { flags, dictionary }).map_err(io::Error::other)?;
        Ok(Block { header: len as u64, packed: 0, plain: 0, left: len as u64, last: false })
    }

    /// Fills a buffer with bytes of the block. True at its end.
    fn fill(&mut self, flags: Flags, block: &mut Block, buffer: &mut Buffer) -> io::Result<bool> {
        loop {
            while block.left > 0 {
                let room = buffer.room();
                if room.is_empty() {
                    return Ok(false);
                }
                let max = usize::try_from(block.left).unwrap_or(usize::MAX).min(room.len());
                let part = self.inner.fill_buf()?;
                let len = part.len().min(max);
                if len == 0 {
                    return Err(cut_off());
                }
                room[..len].copy_from_slice(&part[..len]);
                self.inner.consume(len);
                buffer.len += len;
                block.left -= len as u64;
            }
            if block.last {
                return Ok(true);
            }
            self.chunk(flags, block)?;
        }
    }

    /// Looks at the header of the next chunk.
    fn chunk(&mut self, flags: Flags, block: &mut Block) -> io::Result<()> {
        let head = self.inner.head(CHUNK_HEADER_MAX)?;
        let control = *head.first().ok_or_else(cut_off)?;
        let len = Chunk::header_len(control)
            .ok_or_else(|| io::Error::other(damaged(NAME, "invalid data")))?;
        match Chunk::parse(head.get(..len).ok_or_else(cut_off)?) {
            Chunk::Of { packed, plain } => {
                block.left = packed;
                block.packed += packed;
                block.plain += plain;
            }
            Chunk::End => {
                block.packed += 1;
                let padding = block.packed.next_multiple_of(4) - block.packed;
                block.left = 1 + padding + flags.check_len();
                block.last = true;
            }
        }
        Ok(())
    }

    /// Reads the index (§4) and the footer of a stream with `records`.
    fn index(&mut self, flags: Flags, records: Records) -> io::Result<()> {
        let mut index = Index { inner: &mut self.inner, crc: Crc::new() };
        let bad = || io::Error::other(damaged(NAME, "its index does not match"));
        index.byte()?;
        if index.number()? != records.count() {
            return Err(bad());
        }
        let mut listed = Records::default();
        while listed.count() < records.count() {
            listed.add(index.number()?, index.number()?);
        }
        while !index.crc.amount().is_multiple_of(4) {
            if index.byte()? != 0 {
                return Err(bad());
            }
        }
        let (sum, len) = (index.crc.sum(), u64::from(index.crc.amount()) + 4);
        if self.take()? != sum.to_le_bytes() || !listed.agree(records) {
            return Err(bad());
        }
        self.inner.consume(4);
        flags.check_footer(&self.take()?, len).map_err(io::Error::other)?;
        self.inner.consume(STREAM_LEN);
        Ok(())
    }
}

/// Reads the index while its checksum is made.
struct Index<'a> {
    inner: &'a mut Peek,
    crc: Crc,
}

impl Index<'_> {
    fn byte(&mut self) -> io::Result<u8> {
        let byte = *self.inner.head(1)?.first().ok_or_else(cut_off)?;
        self.crc.update(&[byte]);
        self.inner.consume(1);
        Ok(byte)
    }

    fn number(&mut self) -> io::Result<u64> {
        let head = self.inner.head(NUMBER_MAX)?;
        let Some((number, len)) = parse_number(head) else {
            let whole = head.len() == NUMBER_MAX;
            let bad = damaged(NAME, "its index is invalid");
            return Err(if whole { io::Error::other(bad) } else { cut_off() });
        };
        self.crc.update(&head[..len]);
        self.inner.consume(len);
        Ok(number)
    }
}

fn cut_off() -> io::Error {
    refuse(ErrorKind::Truncated, "the xz stream is cut off")
}
