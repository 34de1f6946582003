//! A raw disk as a stream: every byte is in its place, unless the last ones are the footer of a
//! fixed VHD.

use bytes::{Bytes, BytesMut};

use super::{Ended, Kept, Pool, Push};
use crate::raw::round_up;
use crate::sniff::refuse_tail;
use crate::vhd::{FOOTER_LEN, FixedFooter};
use crate::{Error, Format};

/// How far the stream has come.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// What was handed on.
    pos: u64,
    /// The last bytes, which may be a footer.
    tail: Bytes,
    /// They are not.
    is_raw: bool,
}

impl Raw {
    /// Goes on at `pos`; a disk that is known to be raw has no footer.
    pub(super) fn at(pos: u64, is_raw: bool) -> Self {
        Self { pos, tail: Bytes::new(), is_raw }
    }

    fn put(&mut self, bytes: Bytes, pool: &mut Pool) -> Result<(), Error> {
        let guest = self.pos;
        self.pos += bytes.len() as u64;
        if bytes.is_empty() { Ok(()) } else { pool.data(guest, bytes) }
    }
}

impl Push for Raw {
    fn push(&mut self, mut part: Bytes, pool: &mut Pool) -> Result<(), Error> {
        if part.len() < FOOTER_LEN {
            let mut both = BytesMut::from(&self.tail[..]);
            both.extend_from_slice(&part);
            part = both.freeze();
        } else {
            let tail = std::mem::take(&mut self.tail);
            self.put(tail, pool)?;
        }
        self.tail = part.split_off(part.len().saturating_sub(FOOTER_LEN));
        self.put(part, pool)
    }

    fn settled(&self) -> Option<u64> {
        Some(self.pos)
    }

    fn replay(&mut self, _: &[Kept], _: &mut Pool) -> Result<(), Error> {
        Ok(())
    }

    fn finish(mut self: Box<Self>, pool: &mut Pool) -> Result<Ended, Error> {
        let mut format = None;
        let mut tail = std::mem::take(&mut self.tail);
        let len = self.pos + tail.len() as u64;
        if !self.is_raw {
            refuse_tail(&tail, len)?;
            if let Some(footer) = FixedFooter::parse(&tail, len)? {
                tail.truncate((footer.virtual_size - self.pos) as usize);
                format = Some(Format::Vhd);
            }
        }
        self.put(tail, pool)?;
        let size = round_up(self.pos);
        pool.zero(self.pos, size - self.pos)?;
        Ok(Ended { format, virtual_size: size, spilled_bytes: 0 })
    }
}
