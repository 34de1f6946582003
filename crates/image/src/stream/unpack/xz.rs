//! xz (the .xz file format 1.2.1) and its forerunner, LZMA alone.
//!
//! A stream whose block headers tell their sizes, as `xz -T` writes them, is decoded by several
//! threads, each of which holds a block: up to [`THREADS_MEMORY`], then by fewer.

use std::num::NonZeroUsize;

use liblzma::stream::{Action, Error as Fault, MtStreamBuilder, Status, Stream};

use super::codec::{Codec, Next, Step, damaged, trailing};
use crate::{Error, ErrorKind};

/// The most memory for decoding blocks at the same time; one alone may take more.
const THREADS_MEMORY: u64 = 256 << 20;
/// The most memory at all: what a dictionary of 256 MiB takes, four times that of `xz -9`.
const MEMORY_MAX: u64 = 320 << 20;
/// A stream's first bytes (§2.1.1.1).
const MAGIC: &[u8] = b"\xfd7zXZ\0";
/// "Stream Padding" (§2.2) comes in so many zeros.
const PADDING: [u8; 4] = [0; 4];
/// The checks that exist (§2.1.1.2): none, CRC32, CRC64, SHA-256.
const CHECKS: [u8; 4] = [0, 1, 4, 10];

/// Streams one after the other, with padding between them.
pub(super) struct Xz {
    threads: NonZeroUsize,
    stream: Option<Stream>,
}

impl Xz {
    pub(super) const fn new(threads: NonZeroUsize) -> Self {
        Self { threads, stream: None }
    }
}

impl Codec for Xz {
    const NAME: &'static str = "xz";

    fn begin(&mut self, head: &[u8]) -> Result<Next, Error> {
        if head.is_empty() {
            return Ok(Next::End);
        }
        if head.starts_with(&PADDING) && self.stream.is_some() {
            return Ok(Next::Padding(PADDING.len()));
        }
        if !head.starts_with(MAGIC) {
            return Err(trailing(Self::NAME));
        }
        let flags = head.get(MAGIC.len()..MAGIC.len() + 2);
        if let Some([0, check]) = flags
            && !CHECKS.contains(check)
        {
            let what = format!("the xz stream has a check of an unknown kind, {check}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        // One that has ended is dropped first: its threads and buffers are no longer needed.
        self.stream = None;
        let stream = MtStreamBuilder::new()
            .threads(u32::try_from(self.threads.get()).unwrap_or(1))
            .memlimit_threading(THREADS_MEMORY)
            .memlimit_stop(MEMORY_MAX)
            .decoder();
        self.stream = Some(stream.map_err(|fault| refusal(Self::NAME, &fault))?);
        Ok(Next::Stream)
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        process(Self::NAME, self.stream.as_mut(), input, out)
    }
}

/// One stream without a checksum.
#[derive(Default)]
pub(super) struct Lzma {
    stream: Option<Stream>,
}

impl Codec for Lzma {
    const NAME: &'static str = "lzma";

    fn begin(&mut self, head: &[u8]) -> Result<Next, Error> {
        if self.stream.is_none() {
            let stream = Stream::new_lzma_decoder(MEMORY_MAX);
            self.stream = Some(stream.map_err(|fault| refusal(Self::NAME, &fault))?);
            return Ok(Next::Stream);
        }
        if head.is_empty() { Ok(Next::End) } else { Err(trailing(Self::NAME)) }
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        process(Self::NAME, self.stream.as_mut(), input, out)
    }
}

fn process(
    name: &str,
    stream: Option<&mut Stream>,
    input: &[u8],
    out: &mut [u8],
) -> Result<Step, Error> {
    let stream = stream.expect("a stream was begun");
    let (taken, given) = (stream.total_in(), stream.total_out());
    let action = if input.is_empty() { Action::Finish } else { Action::Run };
    let status = stream.process(input, out, action).map_err(|fault| refusal(name, &fault))?;
    Ok(Step {
        taken: (stream.total_in() - taken) as usize,
        given: (stream.total_out() - given) as usize,
        done: status == Status::StreamEnd,
    })
}

fn refusal(name: &str, fault: &Fault) -> Error {
    let (kind, why) = match fault {
        Fault::Mem => (ErrorKind::TooLarge, "there is too little memory to unpack it".to_owned()),
        Fault::MemLimit => {
            let why = format!("it takes more than {} MiB of memory to unpack", MEMORY_MAX >> 20);
            (ErrorKind::TooLarge, why)
        }
        Fault::Options => (ErrorKind::Unsupported, "it has unknown filters or options".to_owned()),
        Fault::Format => return damaged(name, "its header is invalid"),
        _ => return damaged(name, "invalid data, or a checksum that does not match"),
    };
    Error::new(kind, format!("the {name} stream cannot be unpacked: {why}"))
}
