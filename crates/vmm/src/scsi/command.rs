//! A command on its way: the command block, and the guest's memory for its data.

use std::io::Write;

use super::Sense;
use crate::virtio::Segments;

/// Longest command block that any command here has.
pub(crate) const BLOCK_SIZE: usize = 32;

/// A command with the data that came with it, and room for the data that it asks for.
pub(crate) struct Command<'a, 'm> {
    block: [u8; BLOCK_SIZE],
    pub(super) sent: &'a mut Segments<'m>,
    pub(super) room: &'a mut Segments<'m>,
}

/// Why a command was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// CHECK CONDITION with this sense data.
    Check(Sense),
    /// It moves more data than there is memory for.
    Overrun,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// Blocks that a command names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl<'a, 'm> Command<'a, 'm> {
    /// The command in the beginning of `block`.
    pub(crate) fn new(
        block: &[u8],
        sent: &'a mut Segments<'m>,
        room: &'a mut Segments<'m>,
    ) -> Self {
        let mut copy = [0; BLOCK_SIZE];
        for (to, from) in copy.iter_mut().zip(block) {
            *to = *from;
        }
        Self { block: copy, sent, room }
    }

    pub(super) const fn opcode(&self) -> u8 {
        self.block[0]
    }

    pub(super) const fn byte(&self, at: usize) -> u8 {
        self.block[at]
    }

    pub(super) const fn bit(&self, at: usize, bit: u8) -> bool {
        self.block[at] & 1 << bit != 0
    }

    /// The number of `len` bytes at `at`.
    pub(super) fn number(&self, at: usize, len: usize) -> u64 {
        self.block[at..at + len].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The blocks that a read, write or alike names, where its length puts them (SPC-4 §4.2.5).
    pub(super) fn blocks(&self) -> Blocks {
        let (first, count) = match self.opcode() >> 5 {
            // In six bytes, none means 256.
            0 => (self.number(1, 3) & 0x1f_ffff, (self.number(4, 1) + 255) % 256 + 1),
            1 | 2 => (self.number(2, 4), self.number(7, 2)),
            5 => (self.number(2, 4), self.number(6, 4)),
            _ => (self.number(2, 8), self.number(10, 4)),
        };
        Blocks { first, count }
    }

    /// Answers with `data`, cut off at the `allocated` bytes that the initiator wants.
    pub(super) fn answer(&mut self, data: &[u8], allocated: u64) -> Result<(), Failure> {
        let len = data.len().min(usize::try_from(allocated).unwrap_or(usize::MAX));
        self.room.write_all(&data[..len]).map_err(|_| Failure::Overrun)
    }
}
