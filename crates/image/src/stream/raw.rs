//! A raw disk as a stream: every byte is in its place.

use bytes::Bytes;

use super::{Ended, Pool, Push};
use crate::Error;
use crate::raw::round_up;

/// How far the stream has come.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pos: u64,
}

impl Push for Raw {
    fn push(&mut self, part: Bytes, pool: &mut Pool) -> Result<(), Error> {
        let guest = self.pos;
        self.pos += part.len() as u64;
        pool.data(guest, part)
    }

    /// Fills up the last sector.
    fn finish(self: Box<Self>, pool: &mut Pool) -> Result<Ended, Error> {
        let virtual_size = round_up(self.pos);
        pool.zero(self.pos, virtual_size - self.pos)?;
        Ok(Ended { virtual_size, spilled_bytes: 0 })
    }
}
