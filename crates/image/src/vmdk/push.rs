//! Decoding a stream-optimized extent from a stream.
//!
//! "Stream-Optimized Compressed Sparse Extents": markers tell what follows them, so the grains find
//! their places without the tables, which may come only behind them. They are checked in the end.
//!
//! ```text
//! header  descriptor  (tables)  │  marker grain  marker grain  …  marker table  …
//!                               │  marker directory  marker footer  end-of-stream  (zeros)
//! ```
//! What is in brackets may be missing: VMware and QEMU write the tables at the front if they can
//! seek, and QEMU then leaves the end-of-stream marker away. Grains may come in any order.

use bytes::{Bytes, BytesMut};

use super::header::{Header, MARKER_LEN, Marker, PADDING_MAX};
use super::ledger::Ledger;
use crate::codec::Codec;
use crate::error::corrupt;
use crate::raw::SECTOR;
use crate::stream::{Ended, Packed, Pool, Push};
use crate::{Error, ErrorKind, zero};

/// What a marker is told by.
const PEEK: usize = MARKER_LEN as usize + 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Metadata up to this offset: what is before the first grain, or what a marker has announced.
    Metadata { end: u64 },
    /// The footer.
    Footer,
    /// A marker.
    Marker,
    /// So many bytes that fill up a sector.
    Fill(usize),
}

/// Decodes one extent.
#[derive(Debug)]
pub(crate) struct Stream {
    header: Header,
    pub(super) virtual_size: u64,
    state: State,
    /// How far the stream has been used.
    pos: u64,
    /// The beginning of something whose end has not come yet.
    waiting: BytesMut,
    ledger: Ledger,
    /// The footer, with the offset of its end.
    footer: Option<(u64, Header)>,
    /// The end of the last thing that is more than zeros.
    used: u64,
}

impl Stream {
    pub(super) fn new(header: Header, virtual_size: u64) -> Result<Self, Error> {
        Ok(Self {
            ledger: Ledger::new(&header)?,
            state: State::Metadata { end: header.overhead },
            header,
            virtual_size,
            pos: 0,
            waiting: BytesMut::new(),
            footer: None,
            used: 0,
        })
    }

    /// The bytes of a grain.
    pub(crate) const fn block(&self) -> usize {
        self.header.grain_size() as usize
    }

    /// Uses the next thing that is all there. False if it is not.
    fn step(&mut self, part: &mut Bytes, pool: &mut Pool) -> Result<bool, Error> {
        match self.state {
            State::Metadata { end } if self.pos >= end => self.state = State::Marker,
            State::Metadata { .. } => {
                let Some(sector) = self.take(part, SECTOR as usize) else { return Ok(false) };
                self.ledger.sector(&sector, self.pos - SECTOR, &self.header)?;
                self.used = self.pos;
            }
            State::Footer => {
                let Some(sector) = self.take(part, SECTOR as usize) else { return Ok(false) };
                let footer = self.header.check_footer(&sector, self.pos - SECTOR)?;
                self.footer = Some((self.pos, footer));
                self.used = self.pos;
                self.state = State::Marker;
            }
            State::Fill(len) => {
                let there = len.min(part.len());
                drop(part.split_to(there));
                self.pos += there as u64;
                self.state = match len - there {
                    0 => State::Marker,
                    rest => State::Fill(rest),
                };
                return Ok(there == len);
            }
            State::Marker => return self.marker(part, pool),
        }
        Ok(true)
    }

    fn marker(&mut self, part: &mut Bytes, pool: &mut Pool) -> Result<bool, Error> {
        let Some(marker) = self.peek(part) else { return Ok(false) };
        let at = self.pos;
        if let Marker::Grain { sector, len } = marker {
            return self.grain(part, sector, len, pool);
        }
        let Some(bytes) = self.take(part, SECTOR as usize) else { return Ok(false) };
        self.state = match marker {
            Marker::EndOfStream if zero::is_zero(&bytes) => return Ok(true),
            Marker::GrainTable { sectors } | Marker::GrainDirectory { sectors } => {
                let end = sectors.checked_mul(SECTOR).and_then(|len| self.pos.checked_add(len));
                let end = end.ok_or_else(|| corrupt("a table of more than 2^64 bytes", at))?;
                if matches!(marker, Marker::GrainDirectory { .. }) {
                    self.ledger.directory_at(self.pos);
                }
                State::Metadata { end }
            }
            Marker::Footer { sectors: 1 } => State::Footer,
            Marker::Progress => State::Marker,
            _ => return Err(corrupt(format!("expected a marker, got {marker:?}"), at)),
        };
        self.used = self.pos;
        Ok(true)
    }

    fn grain(
        &mut self,
        part: &mut Bytes,
        sector: u64,
        len: u32,
        pool: &mut Pool,
    ) -> Result<bool, Error> {
        let at = self.pos;
        let len = self.header.check_packed_len(len, at)?;
        let Some(bytes) = self.take(part, (MARKER_LEN + len) as usize) else { return Ok(false) };
        self.ledger.grain(sector, at)?;
        let guest = sector * SECTOR;
        let block = self.header.grain_size();
        let on_disk = self.virtual_size.saturating_sub(guest).min(block) as usize;
        let packed = Packed {
            codec: Codec::Zlib,
            bytes: bytes.slice(MARKER_LEN as usize..),
            block: block as usize,
            // The last grain may end with the extent.
            needed: (self.header.len() - guest).min(block) as usize,
            len: on_disk,
            at: at + MARKER_LEN,
            cut: false,
        };
        if on_disk > 0 {
            pool.packed(guest, packed)?;
        }
        self.used = self.pos;
        self.state = State::Fill((self.pos.next_multiple_of(SECTOR) - self.pos) as usize);
        Ok(true)
    }

    /// The marker that comes next, if enough of it is there.
    fn peek(&mut self, part: &mut Bytes) -> Option<Marker> {
        if self.waiting.is_empty() && part.len() >= PEEK {
            return Marker::parse(part);
        }
        let missing = PEEK.saturating_sub(self.waiting.len()).min(part.len());
        self.waiting.extend_from_slice(&part.split_to(missing));
        Marker::parse(&self.waiting)
    }

    /// The next `len` bytes, once they are there: without a copy if they came in one part.
    fn take(&mut self, part: &mut Bytes, len: usize) -> Option<Bytes> {
        if self.waiting.is_empty() && part.len() >= len {
            self.pos += len as u64;
            return Some(part.split_to(len));
        }
        let missing = len.saturating_sub(self.waiting.len()).min(part.len());
        self.waiting.extend_from_slice(&part.split_to(missing));
        if self.waiting.len() < len {
            return None;
        }
        self.pos += len as u64;
        Some(std::mem::take(&mut self.waiting).freeze())
    }

    /// The header that knows where the grain directory is: behind a footer come only zeros.
    fn final_header(&self) -> Result<&Header, Error> {
        if self.header.gd_offset().is_some() {
            return Ok(&self.header);
        }
        let truncated = |what: &str| Err(Error::new(ErrorKind::Truncated, what).at(self.pos));
        match &self.footer {
            Some((end, footer)) if *end == self.used => match self.pos - end {
                0 => truncated("the file ends before its end-of-stream marker"),
                zeros if zeros > SECTOR + PADDING_MAX => {
                    truncated("too many zeros follow the end-of-stream marker")
                }
                _ => Ok(footer),
            },
            _ => truncated("the file ends before its footer"),
        }
    }
}

impl Push for Stream {
    fn push(&mut self, mut part: Bytes, pool: &mut Pool) -> Result<(), Error> {
        while self.step(&mut part, pool)? {}
        Ok(())
    }

    fn finish(self: Box<Self>, pool: &mut Pool) -> Result<Ended, Error> {
        // The last sector of a file need not be whole.
        let rest = !zero::is_zero(&self.waiting) || !matches!(self.state, State::Marker);
        if rest && !matches!(self.state, State::Fill(_)) {
            let at = self.pos + self.waiting.len() as u64;
            return Err(
                Error::new(ErrorKind::Truncated, "the file ends inside a marker or grain").at(at)
            );
        }
        let header = self.final_header()?;
        let ended = self.pos > self.used.next_multiple_of(SECTOR);
        self.ledger.check(header, !ended)?;
        self.ledger.gaps(|sector, sectors| {
            let (guest, len) = (sector * SECTOR, sectors * SECTOR);
            let end = (guest + len).min(self.virtual_size);
            pool.zero(guest, end.saturating_sub(guest))
        })?;
        Ok(Ended { format: None, virtual_size: self.virtual_size, spilled_bytes: 0 })
    }
}
