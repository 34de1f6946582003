//! xz (the .xz file format 1.2.1) and its forerunner, LZMA alone.
//!
//! [`Blocks`] decodes the blocks of a file, as `xz -T` cuts them, in several threads. [`Xz`] does it
//! all in the caller's.

mod blocks;
mod container;
mod queue;
#[cfg(test)]
mod tests;

use liblzma::stream::{Action, Error as Fault, Status, Stream};

use super::codec::{Codec, Next, Step, damaged, trailing};
use crate::{Error, ErrorKind};

pub(super) use blocks::Blocks;
use container::{MAGIC, PADDING};

const NAME: &str = "xz";
/// The most memory for one decoder: what a dictionary of 256 MiB takes, four times that of `xz -9`.
const MEMORY_MAX: u64 = 320 << 20;

/// Streams one after the other, with padding between them.
#[derive(Default)]
pub(super) struct Xz {
    stream: Option<Stream>,
}

impl Codec for Xz {
    const NAME: &'static str = NAME;

    fn begin(&mut self, head: &[u8]) -> Result<Next, Error> {
        if head.is_empty() {
            return Ok(Next::End);
        }
        if head.starts_with(&PADDING) && self.stream.is_some() {
            return Ok(Next::Padding(PADDING.len()));
        }
        if !head.starts_with(MAGIC) {
            return Err(trailing(NAME));
        }
        if let Some((header, _)) = head.split_first_chunk() {
            container::Flags::parse(header)?;
        }
        // One that has ended is dropped first: its dictionary is no longer needed.
        self.stream = None;
        self.stream = Some(decoder()?);
        Ok(Next::Stream)
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        process(NAME, self.stream.as_mut(), input, out)
    }
}

/// A decoder for a stream.
fn decoder() -> Result<Stream, Error> {
    Stream::new_stream_decoder(MEMORY_MAX, 0).map_err(|fault| refusal(NAME, &fault))
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
