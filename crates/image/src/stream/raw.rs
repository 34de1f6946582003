//! A raw disk as a stream: every byte is in its place.

use bytes::Bytes;

use super::pool::Pool;
use crate::Error;
use crate::raw::round_up;

/// How far the stream has come.
#[derive(Debug, Default)]
pub(super) struct Push {
    pos: u64,
}

impl Push {
    pub(super) fn push(&mut self, part: Bytes, pool: &mut Pool) -> Result<(), Error> {
        let guest = self.pos;
        self.pos += part.len() as u64;
        pool.data(guest, part)
    }

    /// Fills up the last sector. Returns the disk's size.
    pub(super) fn finish(self, pool: &mut Pool) -> Result<u64, Error> {
        let size = round_up(self.pos);
        pool.zero(self.pos, size - self.pos)?;
        Ok(size)
    }
}
