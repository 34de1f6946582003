//! The blocks in work: compressed bytes go in at one end, and the threads that decompress them hand
//! theirs out at the other, in the blocks' order.
//!
//! Memory is counted in buffers of [`BUFFER`] bytes, which are used over and over. Beside these there
//! are the decoders' dictionaries, [`DECODERS_MAX`] together unless a single one is larger. The
//! thread whose block is next always gets on; those ahead of it share what is left.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use liblzma::stream::{Action, Stream};

use super::container::Flags;
use super::{NAME, decoder, refusal};
use crate::stream::unpack::codec::damaged;
use crate::{Error, ErrorKind};

/// How long a buffer is.
pub(super) const BUFFER: usize = 128 << 10;
/// How many buffers of compressed bytes wait: 5 MiB. The block behind the next one can be begun while
/// so much of the next one is still ahead.
const INPUT_MAX: usize = (5 << 20) / BUFFER;
/// How many buffers of decompressed bytes there are until only the next block gets more: 12 MiB, half
/// of a block of `xz -6 -T`. With that two threads keep each other busy: while one hands out the
/// second half of its block, the other does the first half of the one after it.
const AHEAD_MAX: usize = (12 << 20) / BUFFER;
/// How many of the next block may wait at all times.
const NEXT_MAX: usize = (1 << 20) / BUFFER;
/// The most memory for decoders, two of `xz -6`. One alone may take more.
const DECODERS_MAX: u64 = 18 << 20;
/// What is said to whoever reads on behind an error.
pub(super) const ALREADY: &str = "reading has already failed";
/// What a decoder takes besides its dictionary.
const DECODER_OVERHEAD: u64 = 256 << 10;

/// A buffer and how much of it is filled.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pub(super) len: usize,
}

impl Buffer {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.len..]
    }
}

/// What decides on the decoder for a block: one that was used for another such is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) flags: Flags,
    /// How much of its dictionary it will use.
    pub(super) dictionary: u64,
}

impl Kind {
    const fn memory(self) -> u64 {
        self.dictionary + DECODER_OVERHEAD
    }
}

/// What is known of a block when its last compressed byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// How long it is with its header, padding and check, and how long decompressed.
    Whole { packed: u64, plain: u64 },
    /// Nobody knows the rest.
    Cut,
}

/// What there is to be read.
#[derive(Debug)]
pub(super) enum Output {
    Some(Buffer),
    /// Nothing as yet, and there is room for compressed bytes.
    Feed,
    /// All blocks have been read.
    End,
}

/// The near end of the queue. Dropping it ends the threads.
#[derive(Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The threads wait here, for anything that they need,
    work: Condvar,
    /// and whoever reads here.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The blocks of which something is left, in their order, and the number of the first.
    blocks: VecDeque<Block>,
    first: usize,
    /// Buffers of compressed bytes that wait, buffers of decompressed ones, and unused ones.
    input: usize,
    output: usize,
    free: Vec<Vec<u8>>,
    /// Decoders that have no block, and the memory of all.
    idle: Vec<(Kind, Decoder)>,
    memory: u64,
    stopped: bool,
}

#[derive(Debug)]
struct Block {
    kind: Kind,
    begun: bool,
    input: VecDeque<Buffer>,
    end: Option<End>,
    output: VecDeque<Buffer>,
    done: Option<Result<(), Error>>,
}

impl Queue {
    pub(super) fn new(threads: NonZeroUsize) -> Self {
        let state = Mutex::new(State::default());
        let shared = Shared { state, work: Condvar::new(), news: Condvar::new() };
        Self { shared: Arc::new(shared), threads: Vec::new(), threads_max: threads.get() }
    }

    /// Begins a block.
    pub(super) fn begin(&mut self, kind: Kind) -> Result<(), Error> {
        let mut state = self.shared.lock();
        let block = Block {
            kind,
            begun: false,
            input: VecDeque::new(),
            end: None,
            output: VecDeque::new(),
            done: None,
        };
        state.blocks.push_back(block);
        let more = state.blocks.len() > self.threads.len() && self.threads.len() < self.threads_max;
        drop(state);
        if more {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("xz-{}", self.threads.len()))
                .spawn(move || shared.run())
                .map_err(Error::write)?;
            self.threads.push(thread);
        }
        self.shared.work.notify_all();
        Ok(())
    }

    /// A buffer for compressed bytes.
    pub(super) fn buffer(&self) -> Buffer {
        self.shared.lock().buffer()
    }

    /// Adds compressed bytes to the last block that was begun.
    pub(super) fn feed(&self, buffer: Buffer) {
        let mut state = self.shared.lock();
        match state.blocks.back_mut() {
            Some(block) if buffer.len > 0 => {
                block.input.push_back(buffer);
                state.input += 1;
            }
            _ => state.free.push(buffer.bytes),
        }
        self.shared.work.notify_all();
    }

    /// The block that was begun last has no more compressed bytes.
    pub(super) fn end(&self, end: End) {
        if let Some(block) = self.shared.lock().blocks.back_mut() {
            block.end.get_or_insert(end);
        }
        self.shared.work.notify_all();
    }

    /// What comes next. Waits where there is nothing, unless it `feeds` and there is room for more.
    pub(super) fn next(&self, feeds: bool) -> Result<Output, Error> {
        let mut state = self.shared.lock();
        loop {
            if state.stopped {
                return Err(Error::new(ErrorKind::Corrupt, ALREADY));
            }
            let Some(block) = state.blocks.front_mut() else {
                return Ok(if feeds { Output::Feed } else { Output::End });
            };
            if let Some(buffer) = block.output.pop_front() {
                return Ok(Output::Some(buffer));
            }
            match block.done.take() {
                Some(Ok(())) => {
                    state.blocks.pop_front();
                    state.first += 1;
                    self.shared.work.notify_all();
                }
                Some(Err(error)) => {
                    state.stopped = true;
                    self.shared.work.notify_all();
                    return Err(error);
                }
                None if feeds && state.input < INPUT_MAX => return Ok(Output::Feed),
                None => state = wait(&self.shared.news, state),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn free_buffers(&self) -> usize {
        self.shared.lock().free.len()
    }

    /// Gives back what [`Self::next`] has given.
    pub(super) fn done_with(&self, buffer: Buffer) {
        let mut state = self.shared.lock();
        state.output -= 1;
        state.free.push(buffer.bytes);
        self.shared.work.notify_all();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has made an error of its block.
            drop(thread.join());
        }
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition.wait(state).unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn buffer(&mut self) -> Buffer {
        let bytes = self.free.pop().unwrap_or_else(|| vec![0; BUFFER]);
        Buffer { bytes, len: 0 }
    }

    /// A block that nobody has begun, if there is memory for it: its number, and perhaps a decoder.
    fn take(&mut self) -> Option<(usize, Kind, Option<Decoder>)> {
        let index = self.blocks.iter().position(|block| !block.begun)?;
        let kind = self.blocks[index].kind;
        let idle = self.idle.iter().position(|(idle, _)| *idle == kind);
        let decoder = idle.map(|idle| self.idle.swap_remove(idle).1);
        if decoder.is_none() {
            for (idle, _) in self.idle.drain(..) {
                self.memory -= idle.memory();
            }
            if self.memory > 0 && self.memory + kind.memory() > DECODERS_MAX {
                return None;
            }
            self.memory += kind.memory();
        }
        self.blocks[index].begun = true;
        Some((self.first + index, kind, decoder))
    }

    fn block(&mut self, number: usize) -> &mut Block {
        &mut self.blocks[number - self.first]
    }

    /// True if the thread with that block may fill another buffer.
    fn has_room(&mut self, number: usize) -> bool {
        self.output < AHEAD_MAX
            || number == self.first && self.block(number).output.len() < NEXT_MAX
    }
}

/// Why a thread leaves its block.
enum Left {
    /// Nobody wants it.
    Stopped,
    Failed(Error),
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn run(&self) {
        let mut state = self.lock();
        while !state.stopped {
            let Some((number, kind, decoder)) = state.take() else {
                state = wait(&self.work, state);
                continue;
            };
            drop(state);
            let mut work = Work { shared: self, number, out: None };
            let done = work.block(kind, decoder);
            work.finish(done.is_ok());
            state = self.lock();
            match done {
                Ok(decoder) => {
                    state.idle.push((kind, decoder));
                    state.block(number).done = Some(Ok(()));
                }
                Err(Left::Failed(error)) => state.block(number).done = Some(Err(error)),
                Err(Left::Stopped) => return,
            }
            self.news.notify_one();
            self.work.notify_all();
        }
    }
}

/// A block in a thread's hands.
struct Work<'a> {
    shared: &'a Shared,
    number: usize,
    /// What is being filled.
    out: Option<Buffer>,
}

impl Work<'_> {
    /// Decompresses all of the block, whose checks liblzma makes. Gives the decoder back.
    fn block(&mut self, kind: Kind, decoder: Option<Decoder>) -> Result<Decoder, Left> {
        let mut decoder = match decoder {
            Some(decoder) => decoder,
            None => Decoder::new(kind.flags)?,
        };
        let begin = decoder.totals();
        loop {
            match self.input()? {
                Ok(buffer) => {
                    self.decode(&mut decoder, buffer.filled())?;
                    self.give_back(buffer);
                }
                // Whoever reads says what is wrong once all before it has been read.
                Err(End::Cut) => return Ok(decoder),
                Err(End::Whole { packed, plain }) => {
                    let (taken, given) = decoder.totals();
                    return match (taken - begin.0, given - begin.1) == (packed, plain) {
                        true => Ok(decoder),
                        false => Err(damaged(NAME, "a block has another size").into()),
                    };
                }
            }
        }
    }

    /// The next compressed bytes, or what is known of the end.
    fn input(&self) -> Result<Result<Buffer, End>, Left> {
        let mut state = self.shared.lock();
        loop {
            if state.stopped {
                return Err(Left::Stopped);
            }
            let block = state.block(self.number);
            if let Some(buffer) = block.input.pop_front() {
                state.input -= 1;
                self.shared.news.notify_one();
                return Ok(Ok(buffer));
            }
            if let Some(end) = block.end {
                return Ok(Err(end));
            }
            state = wait(&self.shared.work, state);
        }
    }

    fn give_back(&self, buffer: Buffer) {
        self.shared.lock().free.push(buffer.bytes);
    }

    /// Decompresses `input` and hands out buffers that get full.
    fn decode(&mut self, decoder: &mut Decoder, mut input: &[u8]) -> Result<(), Left> {
        loop {
            let mut out = match self.out.take() {
                Some(out) => out,
                None => self.room()?,
            };
            let (taken, given) = decoder.step(input, out.room())?;
            input = &input[taken..];
            out.len += given;
            let full = out.room().is_empty();
            self.out = Some(out);
            if full {
                self.hand_out();
            } else if input.is_empty() {
                return Ok(());
            } else if taken == 0 && given == 0 {
                return Err(damaged(NAME, "there is more than its end").into());
            }
        }
    }

    /// A buffer to fill, once it is this block's turn or there is room.
    fn room(&self) -> Result<Buffer, Left> {
        let mut state = self.shared.lock();
        loop {
            if state.stopped {
                return Err(Left::Stopped);
            }
            if state.has_room(self.number) {
                state.output += 1;
                return Ok(state.buffer());
            }
            state = wait(&self.shared.work, state);
        }
    }

    fn hand_out(&mut self) {
        let Some(out) = self.out.take() else { return };
        let mut state = self.shared.lock();
        if out.len > 0 {
            state.block(self.number).output.push_back(out);
        } else {
            state.output -= 1;
            state.free.push(out.bytes);
        }
        self.shared.news.notify_one();
    }

    /// Hands out what is left.
    fn finish(&mut self, good: bool) {
        if !good && let Some(out) = &mut self.out {
            out.len = 0;
        }
        self.hand_out();
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(ErrorKind::Corrupt, "unpacking xz has panicked");
            self.shared.lock().block(self.number).done = Some(Err(error));
            self.shared.news.notify_one();
        }
    }
}

/// liblzma's decoder of a stream whose blocks are those that come to it.
struct Decoder(Stream);

impl Decoder {
    fn new(flags: Flags) -> Result<Self, Error> {
        let mut decoder = Self(decoder()?);
        let header = flags.header();
        match decoder.step(&header, &mut [])? {
            (taken, 0) if taken == header.len() => Ok(decoder),
            _ => Err(damaged(NAME, "its header is invalid")),
        }
    }

    /// How many bytes it has taken and given.
    fn totals(&self) -> (u64, u64) {
        (self.0.total_in(), self.0.total_out())
    }

    /// Takes bytes of `input` and gives bytes to `out`: how many.
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), Error> {
        let (taken, given) = self.totals();
        self.0.process(input, out, Action::Run).map_err(|fault| refusal(NAME, &fault))?;
        let now = self.totals();
        Ok(((now.0 - taken) as usize, (now.1 - given) as usize))
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("totals", &self.totals()).finish_non_exhaustive()
    }
}
