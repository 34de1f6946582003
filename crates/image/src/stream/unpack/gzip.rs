//! gzip, RFC 1952: members one after the other.
//!
//! As `gzip -d` has it, zeros may fill up the end (tapes do). Anything else behind the last member
//! is refused, where `gzip -d` warns, ignores it, and exits with 2.

use flate2::{Decompress, FlushDecompress, Status};

use super::codec::{Codec, Next, Step, damaged, trailing};
use crate::Error;

/// A member's first bytes (§2.3.1).
const MAGIC: &[u8] = b"\x1f\x8b";
/// The base-2 logarithm of deflate's largest window (RFC 1951 §2).
const WINDOW_BITS: u8 = 15;

#[derive(Debug)]
pub(super) struct Gzip {
    inflate: Decompress,
    /// The members are over; zeros may come.
    padded: bool,
}

impl Default for Gzip {
    fn default() -> Self {
        Self { inflate: Decompress::new_gzip(WINDOW_BITS), padded: false }
    }
}

impl Codec for Gzip {
    const NAME: &'static str = "gzip";

    fn begin(&mut self, head: &[u8]) -> Result<Next, Error> {
        match head.iter().take_while(|byte| **byte == 0).count() {
            _ if head.is_empty() => Ok(Next::End),
            0 if head.starts_with(MAGIC) && !self.padded => {
                self.inflate.reset(true);
                Ok(Next::Stream)
            }
            0 => Err(trailing(Self::NAME)),
            zeros => {
                self.padded = true;
                Ok(Next::Padding(zeros))
            }
        }
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        let (taken, given) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(input, out, FlushDecompress::None);
        let status = status
            .map_err(|error| damaged(Self::NAME, error.message().unwrap_or("invalid data")))?;
        Ok(Step {
            taken: (self.inflate.total_in() - taken) as usize,
            given: (self.inflate.total_out() - given) as usize,
            done: status == Status::StreamEnd,
        })
    }
}
