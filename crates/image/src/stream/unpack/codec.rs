//! The loop that every compression shares: streams one after the other, input to output.

use std::io::{self, BufRead, Read};

use super::peek::Peek;
use super::refuse;
use crate::{Error, ErrorKind};

/// How many bytes a codec sees of what begins: the longest frame header, zstd's (RFC 8878 §3.1.1).
pub(super) const BEGIN_LEN: usize = 18;

/// A decompressor of one format.
pub(super) trait Codec: Send {
    /// The name in messages.
    const NAME: &'static str;

    /// Decides by the bytes that follow, at most [`BEGIN_LEN`], what follows. They are fewer where
    /// the end is near, and none at the end.
    fn begin(&mut self, head: &[u8]) -> Result<Next, Error>;

    /// Decompresses some bytes of a stream. `input` is empty only at its end.
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error>;
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A stream, for which the codec is ready.
    Stream,
    /// As many bytes without a meaning.
    Padding(usize),
    /// Nothing.
    End,
}

/// What was done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) taken: usize,
    pub(super) given: usize,
    /// The stream has ended, and its checksum was right.
    pub(super) done: bool,
}

/// Reads what a codec makes of a compressed file.
#[derive(Debug)]
pub(super) struct Unpack<C> {
    codec: C,
    inner: Peek,
    within: bool,
}

impl<C: Codec> Unpack<C> {
    pub(super) const fn new(codec: C, inner: Peek) -> Self {
        Self { codec, inner, within: false }
    }
}

impl<C: Codec> Read for Unpack<C> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A codec that neither takes nor gives may do so once, to say that it needs more room.
        let mut idle = false;
        loop {
            if !self.within {
                let next = self.codec.begin(self.inner.head(BEGIN_LEN)?);
                match next.map_err(io::Error::other)? {
                    Next::Stream => self.within = true,
                    Next::Padding(len) => self.inner.consume(len),
                    Next::End => return Ok(0),
                }
                continue;
            }
            let input = self.inner.fill_buf()?;
            let ended = input.is_empty();
            let step = self.codec.step(input, buf).map_err(io::Error::other)?;
            self.inner.consume(step.taken);
            self.within = !step.done;
            if step.given > 0 {
                return Ok(step.given);
            }
            let stuck = step.taken == 0 && !step.done;
            if stuck && ended {
                let what = format!("the {} stream is cut off", C::NAME);
                return Err(refuse(ErrorKind::Truncated, what));
            }
            if stuck && std::mem::replace(&mut idle, true) {
                let what = format!("the {} stream makes no progress", C::NAME);
                return Err(refuse(ErrorKind::Corrupt, what));
            }
        }
    }
}

/// The refusal of a damaged stream, in the words of the library that found it.
pub(super) fn damaged(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the {name} stream is damaged: {why}"))
}

/// The refusal of what stands behind the last stream and is neither another nor padding.
pub(super) fn trailing(name: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the {name} stream is followed by other bytes"))
}
