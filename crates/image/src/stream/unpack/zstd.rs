//! Zstandard, RFC 8878: frames one after the other, some of them to be skipped.

use std::io;

use ::zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::codec::{BEGIN_LEN, Codec, Next, Step, damaged, trailing};
use super::refuse;
use crate::{Error, ErrorKind};

/// The base-2 logarithm of the largest window: 128 MiB, as `zstd -d` has it without `--long`.
const WINDOW_LOG_MAX: u32 = 27;
/// A frame's first bytes (§3.1.1),
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// and those of one to be skipped, after one of sixteen (§3.1.2).
const SKIP_MAGIC: [u8; 3] = [0x2a, 0x4d, 0x18];

pub(super) struct Zstd {
    context: DCtx<'static>,
    /// The frame's first bytes, for messages.
    head: [u8; BEGIN_LEN],
}

impl Zstd {
    pub(super) fn new() -> io::Result<Self> {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|code| refuse(ErrorKind::Unsupported, get_error_name(code)))?;
        Ok(Self { context, head: [0; BEGIN_LEN] })
    }

    fn refusal(&self, code: usize) -> Error {
        let frame = Frame::parse(&self.head);
        if let Some(window) = frame.window
            && window > 1 << WINDOW_LOG_MAX
        {
            let what = format!(
                "the zstd frame asks for a window of {window} bytes; expected at most {}",
                1_u64 << WINDOW_LOG_MAX
            );
            return Error::new(ErrorKind::TooLarge, what);
        }
        if frame.dictionary {
            let what = "the zstd frame needs a dictionary, which is not part of it";
            return Error::new(ErrorKind::NeedsOtherFile, what);
        }
        damaged(Self::NAME, &get_error_name(code).to_lowercase())
    }
}

impl Codec for Zstd {
    const NAME: &'static str = "zstd";

    fn begin(&mut self, head: &[u8]) -> Result<Next, Error> {
        if head.is_empty() {
            return Ok(Next::End);
        }
        if !head.starts_with(&MAGIC) && !is_skippable(head) {
            return Err(trailing(Self::NAME));
        }
        self.head = [0; BEGIN_LEN];
        self.head[..head.len()].copy_from_slice(head);
        Ok(Next::Stream)
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        let (mut input, mut out) = (InBuffer::around(input), OutBuffer::around(out));
        let step = self.context.decompress_stream(&mut out, &mut input);
        let hint = step.map_err(|code| self.refusal(code))?;
        Ok(Step { taken: input.pos(), given: out.pos(), done: hint == 0 })
    }
}

/// True for the head of a frame that holds no data, in zstd and LZ4 alike.
pub(super) fn is_skippable(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, rest @ ..] if rest.starts_with(&SKIP_MAGIC))
}

/// What a frame header says (§3.1.1.1), as far as a message needs it.
struct Frame {
    window: Option<u64>,
    dictionary: bool,
}

impl Frame {
    fn parse(head: &[u8; BEGIN_LEN]) -> Self {
        let descriptor = head[4];
        let (single_segment, dictionary) = (descriptor & 0x20 != 0, descriptor & 3);
        let window = if single_segment {
            let at = 5 + [0, 1, 2, 4][usize::from(dictionary)];
            let field = |len: usize| {
                head[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
            };
            match descriptor >> 6 {
                0 => field(1),
                1 => field(2) + 256,
                2 => field(4),
                _ => field(8),
            }
        } else {
            let (exponent, mantissa) = (head[5] >> 3, u64::from(head[5] & 7));
            let base = 1_u64 << (10 + exponent);
            base + base / 8 * mantissa
        };
        Self { window: Some(window), dictionary: dictionary != 0 }
    }
}
