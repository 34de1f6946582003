//! Decoding from a stream.
//!
//! The decoder keeps a map of what it still needs, ordered by offset in the file: at first the
//! tables that the header names, then the tables that those name, then the clusters that those
//! name. Each part of the file is used for the needs that it covers. What no need covers, nothing
//! may ever ask for; but a table that comes later might, so it goes to the [`Hold`].
//!
//! Refcounts are read for one purpose: the blocks that hold them are not worth holding.
//!
//! What is kept in memory has limits that do not depend on the image: the needs, that is the tables
//! of the active L1 and the clusters of its tables for which the decoder waits
//! ([`NEEDS_BYTES_MAX`]), the L2 tables that have been named ([`Named`]), what was set aside
//! ([`Hold`]), and the stream's last bytes ([`RECENT_MIN`]).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use bytes::Bytes;

use super::header::Header;
use super::table::{Mapping, Named, Tables, entries};
use crate::codec::Codec;
use crate::stream::{Hold, Packed, Pool};
use crate::{Error, ErrorKind};

/// How much memory the needs may take.
const NEEDS_BYTES_MAX: usize = 64 << 20;
/// What one need takes at most: 32 bytes, and the map's nodes may be less than half full.
const NEED_BYTES: usize = 128;
/// How many needs are kept in mind; clusters that follow each other are one. An L2 table that would
/// add more is set aside until the end. An image with more L2 tables to wait for is refused.
const NEEDS_MAX: usize = NEEDS_BYTES_MAX / NEED_BYTES;
/// How many of them may be refcount blocks: those of a file of 8 TiB with clusters of 64 KiB.
const SKIPS_MAX: usize = 1 << 12;
/// The L1 table and the refcount table are taken in pieces of this many bytes.
const TABLE_PIECE: u64 = 64 << 10;
/// A converter that compresses fills up a cluster of the file even after the next one has become an
/// L2 table, so a compressed cluster may come a little before its table. Its first and last sectors
/// hold other clusters too, which have been used by then; therefore the stream's last bytes are
/// kept in any case: these many, or as many as four clusters have.
const RECENT_MIN: u64 = 1 << 20;
/// Data that was set aside is handed on in pieces of this many bytes.
const RECALL_PIECE: u64 = 256 << 10;

/// A part of the file that has a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    at: u64,
    what: What,
    /// Where it goes on the disk; of a piece of a table, what its first entry maps.
    guest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Known to be of no use.
    Skip,
    RefcountTable,
    L1Table,
    L2Table,
    Data,
    /// Data that something else may refer to too.
    SharedData,
    Packed,
}

impl What {
    const fn is_table(self) -> bool {
        matches!(self, Self::RefcountTable | Self::L1Table | Self::L2Table)
    }

    /// True for what can only be used when all of it is there.
    const fn is_whole(self) -> bool {
        self.is_table() || matches!(self, Self::Packed)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "refcount block",
            Self::RefcountTable => "refcount table",
            Self::L1Table => "L1 table",
            Self::L2Table => "L2 table",
            Self::Data | Self::SharedData => "data cluster",
            Self::Packed => "compressed cluster",
        })
    }
}

/// The last bytes of the stream, as far back as something has begun and not ended, and a little
/// farther: see [`RECENT_MIN`].
#[derive(Debug, Default)]
struct Window {
    parts: VecDeque<(u64, Bytes)>,
}

impl Window {
    /// The bytes from `begin` to `end`: without a copy if they came in one part.
    fn cut(&self, begin: u64, end: u64) -> Bytes {
        let first = self.parts.partition_point(|(at, part)| at + part.len() as u64 <= begin);
        let mut whole = Vec::new();
        for (at, part) in self.parts.range(first..) {
            let from = begin.saturating_sub(*at) as usize;
            let to = (end.saturating_sub(*at) as usize).min(part.len());
            if from == 0 && to == 0 {
                break;
            }
            if begin >= *at && to as u64 + at == end {
                return part.slice(from..to);
            }
            if whole.is_empty() {
                whole.reserve_exact((end - begin) as usize);
            }
            whole.extend_from_slice(&part[from..to]);
        }
        whole.into()
    }

    /// True if nothing from `offset` on has been forgotten.
    fn reaches_back_to(&self, offset: u64) -> bool {
        self.parts.front().is_some_and(|(at, _)| *at <= offset)
    }

    fn forget_before(&mut self, offset: u64) {
        let outdated = |(at, part): &(u64, Bytes)| at + part.len() as u64 <= offset;
        while self.parts.front().is_some_and(outdated) {
            self.parts.pop_front();
        }
    }
}

/// Decodes one image.
#[derive(Debug)]
pub(crate) struct Push {
    tables: Tables,
    codec: Codec,
    virtual_size: u64,
    cluster_size: u64,
    l2_coverage: u64,
    l1_offset: u64,
    /// How far the stream has come.
    pos: u64,
    ended: bool,
    /// The needs that are not met yet, with their lengths.
    needs: BTreeMap<Need, u64>,
    named: Named,
    skips: usize,
    window: Window,
    /// How far back the window reaches at least.
    recent: u64,
    hold: Hold,
    /// L2 tables that were set aside: their offsets and what they map.
    deferred: Vec<(u64, u64)>,
}

impl Push {
    pub(crate) fn new(header: &Header, hold: Hold) -> Self {
        let mut push = Self {
            tables: Tables::new(header),
            codec: header.codec,
            virtual_size: header.virtual_size,
            cluster_size: header.cluster_size(),
            l2_coverage: header.l2_coverage(),
            l1_offset: header.l1_offset,
            pos: 0,
            ended: false,
            needs: BTreeMap::new(),
            named: Named::default(),
            skips: 0,
            window: Window::default(),
            recent: RECENT_MIN.max(4 * header.cluster_size()),
            hold,
            deferred: Vec::new(),
        };
        push.needs.insert(Need { at: 0, what: What::Skip, guest: 0 }, push.cluster_size);
        for (what, offset, len, coverage) in [
            (What::L1Table, header.l1_offset, header.l1_len(), header.l2_coverage()),
            (What::RefcountTable, header.refcount_table_offset, header.refcount_table_len, 0),
        ] {
            for begin in (0..len).step_by(TABLE_PIECE as usize) {
                let need = Need { at: offset + begin, what, guest: begin / 8 * coverage };
                push.needs.insert(need, TABLE_PIECE.min(len - begin));
            }
        }
        push
    }

    /// Takes the next part of the stream.
    pub(crate) fn push(&mut self, mut part: Bytes, pool: &mut Pool) -> Result<(), Error> {
        // A table tells what the bytes behind it are, so the part is taken up to there first.
        while !part.is_empty() {
            let end = self.pos + part.len() as u64;
            let stop = self
                .needs
                .range(..Need { at: end, what: What::Skip, guest: 0 })
                .filter(|(need, _)| need.what.is_table())
                .map(|(need, len)| need.at + len)
                .min()
                .unwrap_or(end);
            let until = stop.min(end) - self.pos;
            self.advance(&part.split_to(until as usize), pool)?;
        }
        Ok(())
    }

    /// The stream has ended. Returns the disk's size and how many bytes were spilled.
    pub(crate) fn finish(mut self, pool: &mut Pool) -> Result<(u64, u64), Error> {
        self.ended = true;
        self.cut_off(pool)?;
        for (at, guest) in std::mem::take(&mut self.deferred) {
            self.recall(Need { at, what: What::L2Table, guest }, self.cluster_size, pool)?;
        }
        if let Some((need, _)) = self.needs.iter().find(|(need, _)| need.what != What::Skip) {
            let what = format!("the file ends before the {} at {:#x}", need.what, need.at);
            return Err(Error::new(ErrorKind::Truncated, what).at(self.pos));
        }
        Ok((self.virtual_size, self.hold.spilled()))
    }

    /// Uses a part in which no table ends but at its end.
    fn advance(&mut self, part: &Bytes, pool: &mut Pool) -> Result<(), Error> {
        let Self { needs, hold, window, .. } = self;
        let begin = self.pos;
        let end = begin + part.len() as u64;
        let slice = |from: u64, to: u64| (from - begin) as usize..(to - begin) as usize;
        window.parts.push_back((begin, part.clone()));
        let mut met = Vec::new();
        // Everything before this offset is used or held.
        let mut known = begin;
        for (need, len) in needs.range(..Need { at: end, what: What::Skip, guest: 0 }) {
            let (from, to) = (need.at.max(begin), (need.at + len).min(end));
            if from > known {
                hold.keep(known, &part[slice(known, from)])?;
            }
            if matches!(need.what, What::Data | What::SharedData) {
                pool.data(need.guest + (from - need.at), part.slice(slice(from, to)))?;
            }
            if need.what == What::SharedData && known.max(from) < to {
                hold.keep_used(known.max(from), &part[slice(known.max(from), to)])?;
            }
            known = known.max(to);
            if need.at + len <= end {
                met.push((*need, *len));
            }
        }
        hold.keep(known, &part[slice(known, end)])?;
        self.pos = end;
        for (need, len) in met {
            self.needs.remove(&need);
            if need.what.is_whole() {
                let bytes = self.window.cut(need.at, need.at + len);
                self.complete(need, bytes, false, pool)?;
            }
        }
        let mut begun = self.needs.range(..Need { at: end, what: What::Skip, guest: 0 });
        let oldest = begun.find(|(need, _)| need.what.is_whole()).map_or(end, |(need, _)| need.at);
        self.window.forget_before(oldest.min(end.saturating_sub(self.recent)));
        Ok(())
    }

    /// Uses something all of which is there.
    fn complete(
        &mut self,
        need: Need,
        bytes: Bytes,
        cut: bool,
        pool: &mut Pool,
    ) -> Result<(), Error> {
        match need.what {
            What::RefcountTable => self.take_refcount_table(&bytes),
            What::L1Table => self.take_l1_table(need, &bytes, pool)?,
            What::L2Table => self.take_l2_table(need, &bytes, pool)?,
            What::Packed => {
                let packed = Packed {
                    codec: self.codec,
                    bytes,
                    block: self.cluster_size as usize,
                    len: self.cluster_size.min(self.virtual_size - need.guest) as usize,
                    at: need.at,
                    cut,
                };
                pool.packed(need.guest, packed)?;
            }
            What::Data | What::SharedData => pool.data(need.guest, bytes)?,
            What::Skip => {}
        }
        Ok(())
    }

    /// "Refcount table": each entry is the offset of a block.
    fn take_refcount_table(&mut self, table: &[u8]) {
        let ahead = |block: &u64| *block >= self.pos && block.is_multiple_of(self.cluster_size);
        let blocks: Vec<u64> = entries(table).filter(ahead).collect();
        let room = SKIPS_MAX - self.skips;
        self.skips += blocks.len().min(room);
        for at in blocks.into_iter().take(room) {
            self.needs.insert(Need { at, what: What::Skip, guest: 0 }, self.cluster_size);
        }
    }

    fn take_l1_table(&mut self, piece: Need, table: &[u8], pool: &mut Pool) -> Result<(), Error> {
        let mut zeros = piece.guest..piece.guest;
        for (index, entry) in (0..).zip(entries(table)) {
            let guest = piece.guest + index * self.l2_coverage;
            if guest >= self.virtual_size {
                break;
            }
            let at = self.l1_offset + guest / self.l2_coverage * 8;
            match self.tables.l2_offset(entry, at)? {
                None => zeros.end = (guest + self.l2_coverage).min(self.virtual_size),
                Some(l2) => {
                    self.named.add(l2, at)?;
                    pool.zero(zeros.start, zeros.end - zeros.start)?;
                    zeros = guest + self.l2_coverage..guest + self.l2_coverage;
                    let need = Need { at: l2, what: What::L2Table, guest };
                    self.want(need, self.cluster_size, pool)?;
                }
            }
        }
        pool.zero(zeros.start, zeros.end - zeros.start)
    }

    fn take_l2_table(&mut self, table: Need, bytes: &[u8], pool: &mut Pool) -> Result<(), Error> {
        if !self.ended && self.needs.len() + bytes.len() / 8 > NEEDS_MAX {
            // One that was recalled is held already.
            if table.at + self.cluster_size == self.pos {
                self.hold.keep(table.at, bytes)?;
            }
            self.deferred.push((table.at, table.guest));
            return Ok(());
        }
        let mut run: Option<(u64, u64, Mapping)> = None;
        for (index, entry) in (0..).zip(entries(bytes)) {
            let guest = table.guest + index * self.cluster_size;
            if guest >= self.virtual_size {
                break;
            }
            let len = self.cluster_size.min(self.virtual_size - guest);
            let mapping = self.tables.mapping(entry, table.at + index * 8)?;
            match &mut run {
                Some((_, run_len, first)) if first.continues(*run_len, mapping) => *run_len += len,
                _ => {
                    if let Some(run) = run.replace((guest, len, mapping)) {
                        self.take_run(run, pool)?;
                    }
                }
            }
        }
        run.map_or(Ok(()), |run| self.take_run(run, pool))
    }

    fn take_run(
        &mut self,
        (guest, len, mapping): (u64, u64, Mapping),
        pool: &mut Pool,
    ) -> Result<(), Error> {
        match mapping {
            Mapping::Zero => pool.zero(guest, len),
            Mapping::Data { host, shared } => {
                let what = if shared { What::SharedData } else { What::Data };
                self.want(Need { at: host, what, guest }, len, pool)
            }
            Mapping::Packed { host, len } => {
                self.want(Need { at: host, what: What::Packed, guest }, len, pool)
            }
        }
    }

    /// Notes a need, or meets it at once as far as the stream has already passed it.
    fn want(&mut self, need: Need, len: u64, pool: &mut Pool) -> Result<(), Error> {
        let past = self.pos.saturating_sub(need.at).min(len);
        if past == len {
            return self.recall(need, len, pool);
        }
        if past == 0 {
            return self.note(need, len);
        }
        match need.what {
            What::Packed if !self.ended && self.window.reaches_back_to(need.at) => {
                self.note(need, len)
            }
            What::Packed if self.ended => {
                let bytes = self.held(need, past)?;
                self.complete(need, bytes, true, pool)
            }
            What::Data | What::SharedData => {
                self.recall(need, past, pool)?;
                let rest = Need { at: need.at + past, guest: need.guest + past, ..need };
                self.note(rest, len - past)
            }
            _ => Err(late(need)),
        }
    }

    /// Adds a need, if memory allows.
    fn note(&mut self, need: Need, len: u64) -> Result<(), Error> {
        if self.needs.len() >= NEEDS_MAX {
            let what = format!(
                "more than {NEEDS_MAX} tables and clusters of the L1 table would have to be waited for"
            );
            return Err(Error::new(ErrorKind::TooLarge, what).at(need.at));
        }
        self.needs.insert(need, len);
        Ok(())
    }

    /// Meets a need from what was set aside.
    fn recall(&mut self, need: Need, len: u64, pool: &mut Pool) -> Result<(), Error> {
        if need.what.is_whole() {
            let bytes = self.held(need, len)?;
            return self.complete(need, bytes, false, pool);
        }
        for begin in (0..len).step_by(RECALL_PIECE as usize) {
            let piece = Need { at: need.at + begin, guest: need.guest + begin, ..need };
            let bytes = self.held(piece, RECALL_PIECE.min(len - begin))?;
            self.complete(piece, bytes, false, pool)?;
        }
        Ok(())
    }

    fn held(&self, need: Need, len: u64) -> Result<Bytes, Error> {
        if self.window.reaches_back_to(need.at) {
            return Ok(self.window.cut(need.at, need.at + len));
        }
        let mut bytes = vec![0; len as usize];
        match self.hold.read(&mut bytes, need.at)? {
            true => Ok(bytes.into()),
            false => Err(late(need)),
        }
    }

    /// Decompresses clusters whose last sector reaches beyond the file: writers round up.
    fn cut_off(&mut self, pool: &mut Pool) -> Result<(), Error> {
        let end = Need { at: self.pos, what: What::Skip, guest: 0 };
        let begun: Vec<Need> = self
            .needs
            .range(..end)
            .map(|(need, _)| *need)
            .filter(|n| n.what == What::Packed)
            .collect();
        for need in begun {
            self.needs.remove(&need);
            let bytes = self.window.cut(need.at, self.pos);
            self.complete(need, bytes, true, pool)?;
        }
        Ok(())
    }
}

/// The need is for bytes that have passed and were not set aside: they were used as something else.
fn late(need: Need) -> Error {
    let what = format!(
        "the {} is named only after it has passed, and was taken for something else",
        need.what
    );
    Error::new(ErrorKind::Unsupported, what).at(need.at)
}
