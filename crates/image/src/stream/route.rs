//! Routes a file that only passes by to where its parts go on the disk.
//!
//! A format is a [`Layout`]: it says which tables it wants to see, and what each table names,
//! further tables and data. The [`Router`] keeps a map of what is still needed, ordered by offset
//! in the file. Each part of the file is used for the needs that it covers. What no need covers,
//! nothing may ever ask for; but a table that comes later might, so it goes to the [`Hold`].
//!
//! ```text
//!            file ──► needs ──► table: Layout::table ──► wants ─┬─ ahead: a need
//!                       │                                       ├─ passed: recalled from Hold
//!                       ├─► data, compressed blocks: Pool       └─ zeros: Pool
//!                       └─► unknown: Hold
//! ```
//! What is kept in memory has limits that do not depend on the image: the needs
//! ([`NEEDS_BYTES_MAX`]), what one piece of a table names, what was set aside ([`Hold`]), and the
//! stream's last bytes ([`RECENT_MIN`]).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::resume::{Kept, KeptBytes, Recorder};
use super::{Ended, Hold, Packed, Pool, Push};
use crate::codec::Codec;
use crate::{Disk, Error, ErrorKind, ReadAt};

/// How much memory the needs may take.
const NEEDS_BYTES_MAX: usize = 48 << 20;
/// What one need takes at most: 32 bytes, and the map's nodes may be less than half full.
const NEED_BYTES: usize = 128;
/// How many needs are kept in mind; data that is in one run on the disk and in the file is one. A
/// table that would add more is set aside until the end.
const NEEDS_MAX: usize = NEEDS_BYTES_MAX / NEED_BYTES;
/// How many parts of no use are kept in mind.
const SKIPS_MAX: usize = 1 << 12;
/// Tables are taken in pieces of this many bytes.
pub(crate) const TABLE_PIECE: u64 = 64 << 10;
/// A converter that compresses fills up a cluster of the file even after the next one has become a
/// table, so a compressed block may come a little before its table. Its first and last sectors
/// hold other blocks too, which have been used by then; therefore the stream's last bytes are
/// kept in any case: these many, or as many as four blocks have.
const RECENT_MIN: u64 = 1 << 20;
/// Data that was set aside is handed on in pieces of this many bytes.
const RECALL_PIECE: u64 = 256 << 10;

/// How a format lays out its file.
pub(crate) trait Layout: fmt::Debug + Send {
    /// The kinds of tables, shown as an error names them: "L2 table".
    type Table: Copy + Ord + fmt::Debug + fmt::Display + Send;

    /// The disk's size in bytes; known at the latest when data is wanted.
    fn virtual_size(&self) -> u64;

    /// How compressed blocks are compressed, and their length when they are decompressed.
    fn packing(&self) -> Option<(Codec, usize)> {
        None
    }

    /// Wants what the header, which is known, names. Each byte of the disk must be named once in
    /// the end.
    fn start(&mut self, wants: &mut Wants<Self::Table>) -> Result<(), Error>;

    /// Takes a table that it wanted, or a piece of it, which stands at `place`.
    fn table(
        &mut self,
        table: Self::Table,
        place: Place,
        bytes: &[u8],
        wants: &mut Wants<Self::Table>,
    ) -> Result<(), Error>;

    /// The most that a piece of a table of `len` bytes can name.
    fn most_wants(&self, table: Self::Table, len: usize) -> usize;

    /// The file has ended, after `file_len` bytes.
    fn end(&mut self, _file_len: u64) -> Result<(), Error> {
        Ok(())
    }

    /// Opens the whole file, because [`Wants::hold_all`] was called.
    fn open_held(&mut self, _held: Held) -> Result<Box<dyn Disk>, Error> {
        Err(Error::new(ErrorKind::Unsupported, "the image cannot be read from a stream"))
    }
}

/// Where a piece of a table is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// In the file.
    pub(crate) at: u64,
    /// What its first entry maps of the disk.
    pub(crate) guest: u64,
}

/// What a layout asks for. Neighbours that are alike become one; what lies behind the disk's end
/// is left out.
#[derive(Debug)]
pub(crate) struct Wants<T> {
    list: Vec<Want<T>>,
    virtual_size: u64,
    hold_all: bool,
}

#[derive(Debug, Clone, Copy)]
struct Want<T> {
    need: Need<T>,
    len: u64,
}

/// A part of the file that has a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Need<T> {
    at: u64,
    what: What<T>,
    /// Where it goes on the disk; of a piece of a table, what its first entry maps.
    guest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What<T> {
    /// Known to be of no use.
    Skip,
    Table(T),
    Data,
    /// Data that something else may refer to too.
    SharedData,
    Packed,
    /// No part of the file: this much of the disk is zero.
    Zero,
}

impl<T: fmt::Display> What<T> {
    /// True for what can only be used when all of it is there.
    const fn is_whole(&self) -> bool {
        matches!(self, Self::Table(_) | Self::Packed)
    }
}

impl<T: fmt::Display> fmt::Display for What<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip | Self::Zero => f.write_str("unused part"),
            Self::Table(table) => table.fmt(f),
            Self::Data | Self::SharedData => f.write_str("data cluster"),
            Self::Packed => f.write_str("compressed cluster"),
        }
    }
}

impl<T: Copy> Wants<T> {
    const fn new(virtual_size: u64) -> Self {
        Self { list: Vec::new(), virtual_size, hold_all: false }
    }

    /// A table of `len` bytes at `at`, which maps the disk from `guest` on, `per_byte` bytes of the
    /// disk for each byte of the table. It may come in pieces of [`TABLE_PIECE`].
    pub(crate) fn table(&mut self, table: T, at: u64, len: u64, (guest, per_byte): (u64, u64)) {
        for begin in (0..len).step_by(TABLE_PIECE as usize) {
            let guest = guest + begin * per_byte;
            let need = Need { at: at + begin, what: What::Table(table), guest };
            self.list.push(Want { need, len: TABLE_PIECE.min(len - begin) });
        }
    }

    /// `len` bytes at `at` that are the disk's at `guest`.
    pub(crate) fn data(&mut self, at: u64, guest: u64, len: u64) {
        self.add(at, What::Data, guest, len);
    }

    /// The same, but something else may name the same part of the file.
    pub(crate) fn shared_data(&mut self, at: u64, guest: u64, len: u64) {
        self.add(at, What::SharedData, guest, len);
    }

    /// `len` bytes at `at` that hold a compressed block of the disk at `guest`.
    pub(crate) fn packed(&mut self, at: u64, guest: u64, len: u64) {
        if guest < self.virtual_size {
            self.list.push(Want { need: Need { at, what: What::Packed, guest }, len });
        }
    }

    /// `len` bytes of the disk at `guest` are zero.
    pub(crate) fn zero(&mut self, guest: u64, len: u64) {
        self.add(0, What::Zero, guest, len);
    }

    /// `len` bytes at `at` that nothing will ask for.
    pub(crate) fn skip(&mut self, at: u64, len: u64) {
        self.list.push(Want { need: Need { at, what: What::Skip, guest: 0 }, len });
    }

    /// All of the file is set aside, and opened by [`Layout::open_held`] when it has ended. Must be
    /// called before much of the file has passed; what was wanted before is forgotten.
    pub(crate) fn hold_all(&mut self) {
        self.hold_all = true;
    }

    fn add(&mut self, at: u64, what: What<T>, guest: u64, len: u64) {
        let len = len.min(self.virtual_size.saturating_sub(guest));
        if len == 0 {
            return;
        }
        if let Some(Want { need, len: run }) = self.list.last_mut()
            && need.guest + *run == guest
        {
            match (need.what, what) {
                (What::Zero, What::Zero) => return *run += len,
                (What::Data, What::Data) | (What::SharedData, What::SharedData)
                    if need.at + *run == at =>
                {
                    return *run += len;
                }
                _ => {}
            }
        }
        self.list.push(Want { need: Need { at, what, guest }, len });
    }
}

/// A whole file that was set aside.
#[derive(Debug)]
pub(crate) struct Held {
    hold: Mutex<Hold>,
    len: u64,
}

impl ReadAt for Held {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.hold.lock().unwrap_or_else(PoisonError::into_inner).read(buf, offset) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(io::Error::other(error)),
        }
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

/// Decodes one image of the layout `L`.
#[derive(Debug)]
pub(crate) struct Router<L: Layout> {
    layout: L,
    /// How far the stream has come.
    pos: u64,
    ended: bool,
    /// The needs that are not met yet, with their lengths.
    needs: BTreeMap<Need<L::Table>, u64>,
    /// What the layout has asked for and was not looked at yet, the next one last.
    wants: Vec<Want<L::Table>>,
    skips: usize,
    window: Window,
    /// How far back the window reaches at least.
    recent: u64,
    hold: Hold,
    hold_all: bool,
    /// Tables that were set aside.
    deferred: Vec<Want<L::Table>>,
    recorder: Recorder,
    /// While tables that an earlier process has seen are taken again: the data that they name
    /// before this offset is stored.
    resumed_at: u64,
}

impl<L: Layout> Router<L> {
    /// Starts before the first byte of the file, whose header is known already.
    /// What it has to keep is told to `recorder`.
    pub(crate) fn new(
        layout: L,
        hold: Hold,
        recorder: Recorder,
        resumed_at: u64,
        pool: &mut Pool,
    ) -> Result<Self, Error> {
        let block = layout.packing().map_or(0, |(_, block)| block as u64);
        let mut router = Self {
            layout,
            pos: 0,
            ended: false,
            needs: BTreeMap::new(),
            wants: Vec::new(),
            skips: 0,
            window: Window::default(),
            recent: RECENT_MIN.max(4 * block),
            hold,
            hold_all: false,
            deferred: Vec::new(),
            recorder,
            resumed_at,
        };
        router.ask(|layout, wants| layout.start(wants), pool)?;
        router.settle(pool)?;
        Ok(router)
    }
}

impl<L: Layout> Push for Router<L> {
    fn push(&mut self, mut part: Bytes, pool: &mut Pool) -> Result<(), Error> {
        // A table tells what the bytes behind it are, so the part is taken up to there first.
        while !part.is_empty() {
            let end = self.pos + part.len() as u64;
            let stop = self
                .begun_before(end)
                .filter(|(need, _)| matches!(need.what, What::Table(_)))
                .map(|(need, len)| need.at + len)
                .min()
                .unwrap_or(end);
            let until = stop.min(end) - self.pos;
            self.advance(&part.split_to(until as usize), pool)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, pool: &mut Pool) -> Result<Ended, Error> {
        self.ended = true;
        self.layout.end(self.pos)?;
        if self.hold_all {
            return self.finish_held(pool);
        }
        self.cut_off(pool)?;
        for Want { need, len } in std::mem::take(&mut self.deferred) {
            self.recall(need, len, pool)?;
            self.settle(pool)?;
        }
        if let Some((need, _)) = self.needs.iter().find(|(need, _)| need.what != What::Skip) {
            let what = format!("the file ends before the {} at {:#x}", need.what, need.at);
            return Err(Error::new(ErrorKind::Truncated, what).at(self.pos));
        }
        Ok(Ended {
            format: None,
            virtual_size: self.layout.virtual_size(),
            spilled_bytes: self.hold.spilled(),
        })
    }

    fn settled(&self) -> Option<u64> {
        if self.hold_all || !self.deferred.is_empty() || !self.recorder.is_complete() {
            return None;
        }
        let begun = self.begun_before(self.pos).find(|(need, _)| need.what.is_whole());
        let oldest = begun.map_or(self.pos, |(need, _)| need.at);
        Some(oldest.min(self.pos.saturating_sub(self.recent)))
    }

    fn take_kept(&mut self) -> Vec<Kept> {
        self.recorder.take()
    }

    fn replay(&mut self, kept: &[Kept], pool: &mut Pool) -> Result<(), Error> {
        let until = self.resumed_at;
        for Kept { at, bytes } in kept {
            self.skip_to((*at).min(until))?;
            let past = self.pos.saturating_sub(*at);
            let room = until - self.pos;
            match bytes {
                KeptBytes::Data(bytes) if past < bytes.len() as u64 => {
                    let rest = bytes.slice(past as usize..);
                    let len = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                    self.push(rest.slice(..len), pool)?;
                    // It counts as kept, and is.
                    self.recorder.take();
                }
                KeptBytes::Zero(len) if past < *len => {
                    let len = (len - past).min(room);
                    self.hold.keep_zeros(self.pos, len);
                    self.skip_to(self.pos + len)?;
                }
                _ => {}
            }
        }
        self.skip_to(until)?;
        // What tables from here on name has not been stored.
        self.resumed_at = 0;
        Ok(())
    }
}

impl<L: Layout> Router<L> {
    /// Goes to `end` without the bytes before it, none of which is needed.
    fn skip_to(&mut self, end: u64) -> Result<(), Error> {
        if end <= self.pos {
            return Ok(());
        }
        if let Some((need, _)) = self.begun_before(end).find(|(need, _)| need.what.is_whole()) {
            let what = format!("the {} was not kept", need.what);
            return Err(Error::new(ErrorKind::Unsupported, what).at(need.at));
        }
        self.window.parts.clear();
        self.pos = end;
        Ok(())
    }

    /// Reads the disk out of the whole file.
    fn finish_held(mut self, pool: &mut Pool) -> Result<Ended, Error> {
        let spilled_bytes = self.hold.spilled();
        let disk = self.layout.open_held(Held { hold: Mutex::new(self.hold), len: self.pos })?;
        for piece in disk.pieces() {
            let (offset, extent) = piece?;
            if extent.zero {
                pool.zero(offset, extent.len)?;
                continue;
            }
            for begin in (0..extent.len).step_by(RECALL_PIECE as usize) {
                let mut bytes = vec![0; RECALL_PIECE.min(extent.len - begin) as usize];
                disk.read_at(&mut bytes, offset + begin)?;
                pool.data(offset + begin, bytes.into())?;
            }
        }
        Ok(Ended { format: None, virtual_size: disk.virtual_size(), spilled_bytes })
    }

    /// The needs that begin before `end`.
    fn begun_before(&self, end: u64) -> impl Iterator<Item = (&Need<L::Table>, &u64)> {
        self.needs.range(..Need { at: end, what: What::Skip, guest: 0 })
    }

    /// Uses a part in which no table ends but at its end.
    fn advance(&mut self, part: &Bytes, pool: &mut Pool) -> Result<(), Error> {
        let Self { needs, hold, window, recorder, .. } = self;
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
                recorder.keep_runs(known, &part[slice(known, from)]);
                hold.keep(known, &part[slice(known, from)])?;
            }
            if matches!(need.what, What::Data | What::SharedData) {
                pool.data(need.guest + (from - need.at), part.slice(slice(from, to)))?;
            }
            if need.what == What::SharedData && known.max(from) < to {
                recorder.keep_runs(known.max(from), &part[slice(known.max(from), to)]);
                hold.keep_used(known.max(from), &part[slice(known.max(from), to)])?;
            }
            known = known.max(to);
            if need.at + len <= end {
                met.push((*need, *len));
            }
        }
        recorder.keep_runs(known, &part[slice(known, end)]);
        hold.keep(known, &part[slice(known, end)])?;
        self.pos = end;
        for (need, len) in met {
            // A table that was met before may have made all needs void.
            if self.needs.remove(&need).is_some() && need.what.is_whole() {
                let bytes = self.window.cut(need.at, need.at + len);
                self.complete(Want { need, len }, bytes, Whence::Now, pool)?;
                self.settle(pool)?;
            }
        }
        let oldest = self
            .begun_before(end)
            .find(|(need, _)| need.what.is_whole())
            .map_or(end, |(need, _)| need.at);
        self.window.forget_before(oldest.min(end.saturating_sub(self.recent)));
        Ok(())
    }

    /// Uses something all of which is there.
    fn complete(
        &mut self,
        Want { need, len }: Want<L::Table>,
        bytes: Bytes,
        whence: Whence,
        pool: &mut Pool,
    ) -> Result<(), Error> {
        match need.what {
            What::Table(table) => {
                let most = self.layout.most_wants(table, bytes.len());
                if !self.ended && self.needs.len() + self.wants.len() + most > NEEDS_MAX {
                    if whence == Whence::Now {
                        self.hold.keep(need.at, &bytes)?;
                    }
                    self.deferred.push(Want { need, len });
                    return Ok(());
                }
                if whence == Whence::Now {
                    self.recorder.keep(need.at, &bytes);
                }
                let place = Place { at: need.at, guest: need.guest };
                self.ask(|layout, wants| layout.table(table, place, &bytes, wants), pool)
            }
            What::Packed => self.complete_packed(need, bytes, whence, pool),
            What::Data | What::SharedData => pool.data(need.guest, bytes),
            What::Skip | What::Zero => Ok(()),
        }
    }

    fn complete_packed(
        &mut self,
        need: Need<L::Table>,
        bytes: Bytes,
        whence: Whence,
        pool: &mut Pool,
    ) -> Result<(), Error> {
        let (codec, block) =
            self.layout.packing().expect("only a layout that compresses names such blocks");
        let packed = Packed {
            codec,
            bytes,
            block,
            needed: block,
            len: (block as u64).min(self.layout.virtual_size() - need.guest) as usize,
            at: need.at,
            cut: whence == Whence::CutOff,
        };
        pool.packed(need.guest, packed)
    }

    /// Asks the layout for wants and puts them before those that wait already.
    fn ask(
        &mut self,
        ask: impl FnOnce(&mut L, &mut Wants<L::Table>) -> Result<(), Error>,
        pool: &mut Pool,
    ) -> Result<(), Error> {
        let mut wants = Wants::new(self.layout.virtual_size());
        ask(&mut self.layout, &mut wants)?;
        if wants.hold_all {
            return self.begin_to_hold();
        }
        // Zeros are known without the file, and there may be many.
        for want in wants.list.into_iter().rev() {
            match want.need.what {
                What::Zero => pool.zero(want.need.guest, want.len)?,
                _ => self.wants.push(want),
            }
        }
        Ok(())
    }

    /// Sets aside what has passed, and forgets what was wanted.
    fn begin_to_hold(&mut self) -> Result<(), Error> {
        self.hold_all = true;
        self.wants.clear();
        self.needs.clear();
        if self.pos > 0 && !self.window.reaches_back_to(0) {
            let what = "the image tells too late that it cannot be read in one pass";
            return Err(Error::new(ErrorKind::Unsupported, what).at(self.pos));
        }
        self.hold.begin_whole();
        self.hold.keep(0, &self.window.cut(0, self.pos))
    }

    /// Looks at what is wanted until there is no more.
    fn settle(&mut self, pool: &mut Pool) -> Result<(), Error> {
        while let Some(want) = self.wants.pop() {
            if let Some(Want { need, len }) = self.not_stored(want) {
                self.want(need, len, pool)?;
            }
        }
        Ok(())
    }

    /// The part of a want that no earlier process has met.
    fn not_stored(&self, Want { need, len }: Want<L::Table>) -> Option<Want<L::Table>> {
        let past = self.resumed_at.saturating_sub(need.at).min(len);
        match need.what {
            What::Table(_) => Some(Want { need, len }),
            _ if past == 0 => Some(Want { need, len }),
            What::Packed => None,
            _ if past == len => None,
            _ => {
                let need = Need { at: need.at + past, guest: need.guest + past, ..need };
                Some(Want { need, len: len - past })
            }
        }
    }

    /// Notes a need, or meets it at once as far as the stream has already passed it.
    fn want(&mut self, need: Need<L::Table>, len: u64, pool: &mut Pool) -> Result<(), Error> {
        let past = self.pos.saturating_sub(need.at).min(len);
        if need.what == What::Skip {
            let room = past == 0 && self.skips < SKIPS_MAX;
            self.skips += usize::from(room);
            return if room { self.note(need, len) } else { Ok(()) };
        }
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
                self.complete(Want { need, len }, bytes, Whence::CutOff, pool)
            }
            What::Data | What::SharedData => {
                self.recall(need, past, pool)?;
                let rest = Need { at: need.at + past, guest: need.guest + past, ..need };
                self.note(rest, len - past)
            }
            _ => Err(late(&need)),
        }
    }

    /// Adds a need, if memory allows.
    fn note(&mut self, need: Need<L::Table>, len: u64) -> Result<(), Error> {
        if self.needs.len() >= NEEDS_MAX {
            let what =
                format!("more than {NEEDS_MAX} tables and clusters would have to be waited for");
            return Err(Error::new(ErrorKind::TooLarge, what).at(need.at));
        }
        self.needs.insert(need, len);
        Ok(())
    }

    /// Meets a need from what was set aside.
    fn recall(&mut self, need: Need<L::Table>, len: u64, pool: &mut Pool) -> Result<(), Error> {
        if need.what.is_whole() {
            let bytes = self.held(need, len)?;
            return self.complete(Want { need, len }, bytes, Whence::Held, pool);
        }
        for begin in (0..len).step_by(RECALL_PIECE as usize) {
            let piece = Need { at: need.at + begin, guest: need.guest + begin, ..need };
            let len = RECALL_PIECE.min(len - begin);
            let bytes = self.held(piece, len)?;
            self.complete(Want { need: piece, len }, bytes, Whence::Held, pool)?;
        }
        Ok(())
    }

    fn held(&self, need: Need<L::Table>, len: u64) -> Result<Bytes, Error> {
        if self.window.reaches_back_to(need.at) {
            return Ok(self.window.cut(need.at, need.at + len));
        }
        let mut bytes = vec![0; len as usize];
        match self.hold.read(&mut bytes, need.at)? {
            true => Ok(bytes.into()),
            false => Err(late(&need)),
        }
    }

    /// Decompresses blocks whose last sector reaches beyond the file: writers round up.
    fn cut_off(&mut self, pool: &mut Pool) -> Result<(), Error> {
        let begun: Vec<Want<L::Table>> = self
            .begun_before(self.pos)
            .filter(|(need, _)| need.what == What::Packed)
            .map(|(need, len)| Want { need: *need, len: *len })
            .collect();
        for want in begun {
            self.needs.remove(&want.need);
            let bytes = self.window.cut(want.need.at, self.pos);
            self.complete(want, bytes, Whence::CutOff, pool)?;
        }
        Ok(())
    }
}

/// Where the bytes for a need come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whence {
    /// They have just passed.
    Now,
    /// They were set aside.
    Held,
    /// They were, and the file ends in the midst of them.
    CutOff,
}

/// The need is for bytes that have passed and were not set aside: they were used as something else.
fn late<T: fmt::Display>(need: &Need<T>) -> Error {
    let what = format!(
        "the {} is named only after it has passed, and was taken for something else",
        need.what
    );
    Error::new(ErrorKind::Unsupported, what).at(need.at)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use super::*;
    use crate::raw::{FileAt, RawDisk};
    use crate::stream::Storage;
    use crate::support::Memory;

    /// A file that is the disk, but tells so only in its last byte.
    #[derive(Debug)]
    struct Late {
        size: u64,
    }

    impl Layout for Late {
        type Table = u8;

        fn virtual_size(&self) -> u64 {
            self.size
        }

        fn start(&mut self, wants: &mut Wants<u8>) -> Result<(), Error> {
            wants.table(0, 0, 1000, (0, 0));
            Ok(())
        }

        fn table(
            &mut self,
            _: u8,
            _: Place,
            bytes: &[u8],
            wants: &mut Wants<u8>,
        ) -> Result<(), Error> {
            assert_eq!(bytes.len(), 1000);
            wants.data(0, 0, 512);
            wants.hold_all();
            Ok(())
        }

        fn most_wants(&self, _: u8, _: usize) -> usize {
            1
        }

        fn open_held(&mut self, held: Held) -> Result<Box<dyn Disk>, Error> {
            Ok(Box::new(RawDisk::read_only(held)))
        }
    }

    #[test]
    fn a_whole_file_can_be_set_aside_and_opened_in_the_end() {
        let data: Vec<u8> = (0..6 << 20).map(|i: u32| (i >> 9) as u8).collect();
        let sink = Arc::new(Memory::default());
        let spill = || Ok(Box::new(FileAt::new(tempfile::tempfile()?)?) as Box<dyn Storage>);
        let hold = Hold::new(Box::new(spill), 64 << 20);
        let mut pool = Pool::start(NonZeroUsize::MIN, 0, sink.clone()).unwrap();
        let layout = Late { size: data.len() as u64 };
        let mut router =
            Box::new(Router::new(layout, hold, Recorder::default(), 0, &mut pool).unwrap());
        for part in data.chunks(77_777) {
            router.push(Bytes::copy_from_slice(part), &mut pool).unwrap();
        }
        let ended = router.finish(&mut pool).unwrap();
        pool.finish().unwrap();
        assert!(ended.spilled_bytes > 1 << 20);
        let disk = Arc::into_inner(sink).unwrap().into_disk(ended.virtual_size);
        assert!(disk == data);
    }
}
