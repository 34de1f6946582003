//! bzip2: streams one after the other. Anything else behind the last one is refused, where
//! `bzip2 -d` warns and ignores it.

use ::bzip2::{Decompress, Error as Fault, Status};

use super::codec::{Codec, Next, Step, damaged, trailing};
use crate::Error;

const MAGIC: &[u8] = b"BZh";

/// A decompressor takes 3.7 MB.
pub(super) struct Bzip2(Decompress);

impl Default for Bzip2 {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

impl Codec for Bzip2 {
    const NAME: &'static str = "bzip2";

    fn begin(&mut self, head: &[u8]) -> Result<Next, Error> {
        if head.is_empty() {
            return Ok(Next::End);
        }
        if !head.starts_with(MAGIC) {
            return Err(trailing(Self::NAME));
        }
        *self = Self::default();
        Ok(Next::Stream)
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        let (taken, given) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, out).map_err(|fault| {
            let why = match fault {
                Fault::DataMagic => "it has no bzip2 header",
                _ => "invalid data, or a checksum that does not match",
            };
            damaged(Self::NAME, why)
        })?;
        Ok(Step {
            taken: (self.0.total_in() - taken) as usize,
            given: (self.0.total_out() - given) as usize,
            done: status == Status::StreamEnd,
        })
    }
}
