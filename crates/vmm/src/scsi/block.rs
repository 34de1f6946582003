//! Commands that read and write blocks (SBC-3).

use std::io::Read;
use std::sync::Arc;

use bootyard_image::{Disk, WriteDisk};

use super::command::{Blocks, Command, Failure};
use super::drive::Drive;
use super::{Sense, opcode};
use crate::virtio::disk_io;

/// Limits that the page on block limits tells: blocks of one UNMAP or WRITE SAME, and ranges of one
/// UNMAP, so that no command keeps the thread busy for long.
pub(super) const UNMAP_BLOCKS_MAX: u32 = 1 << 21;
pub(super) const UNMAP_RANGES_MAX: u32 = 32;
pub(super) const SAME_BLOCKS_MAX: u32 = 1 << 15;

/// Bytes of a block that is written again and again at once.
const SAME_STEP: usize = 64 << 10;

/// Service action of SERVICE ACTION IN (16).
const READ_CAPACITY_16: u8 = 0x10;

impl Drive {
    pub(super) fn block_command(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        match command.opcode() {
            opcode::READ_6 | opcode::READ_10 | opcode::READ_12 | opcode::READ_16 => {
                self.read(command)
            }
            opcode::WRITE_6 | opcode::WRITE_10 | opcode::WRITE_12 | opcode::WRITE_16 => {
                self.write(command)
            }
            opcode::READ_CAPACITY_10 => self.read_capacity_10(command),
            opcode::SERVICE_ACTION_IN_16 if command.byte(1) & 0x1f == READ_CAPACITY_16 => {
                self.read_capacity_16(command)
            }
            opcode::SYNCHRONIZE_CACHE_10 | opcode::SYNCHRONIZE_CACHE_16 => {
                let medium = self.medium()?;
                self.range(&*medium, command.blocks())?;
                self.flush(&*medium)
            }
            opcode::VERIFY_10 | opcode::VERIFY_16 => self.verify(command),
            opcode::UNMAP => self.unmap(command),
            opcode::WRITE_SAME_10 | opcode::WRITE_SAME_16 => self.write_same(command),
            opcode::SERVICE_ACTION_IN_16 => Err(Sense::INVALID_FIELD.into()),
            _ => Err(Sense::INVALID_OPCODE.into()),
        }
    }

    /// Offset and length of blocks in bytes, if the medium has them.
    fn range(&self, medium: &dyn Disk, blocks: Blocks) -> Result<(u64, u64), Sense> {
        let there = self.block_count(medium);
        match blocks.first.checked_add(blocks.count) {
            Some(end) if end <= there => {
                let block = u64::from(self.block.logical);
                Ok((blocks.first * block, blocks.count * block))
            }
            _ => Err(Sense::OUT_OF_RANGE),
        }
    }

    pub(super) fn read(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let medium = self.medium()?;
        self.check_protection(command)?;
        self.counters.read_requests.add(1);
        let (offset, len) = self.range(&*medium, command.blocks())?;
        if len > command.room.left() as u64 {
            return Err(Failure::Overrun);
        }
        let room = &mut command.room.take_front(len as usize);
        disk_io::read(&*medium, offset, room).map_err(|error| self.failed(&error))?;
        self.counters.read_bytes.add(len);
        Ok(())
    }

    fn write(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let medium = self.medium()?;
        self.check_protection(command)?;
        self.counters.write_requests.add(1);
        let writer = self.writer(&medium)?;
        let (offset, len) = self.range(&*medium, command.blocks())?;
        if len > command.sent.left() as u64 {
            return Err(Failure::Overrun);
        }
        let data = command.sent.take_front(len as usize);
        writer.write_payload_at(&data, offset).map_err(|error| self.failed(&error))?;
        self.counters.written_bytes.add(len);
        // "Force unit access", which six bytes have no place for.
        let force = command.opcode() != opcode::WRITE_6 && command.bit(1, 3);
        if force || self.write_through { self.flush(&*medium) } else { Ok(()) }
    }

    /// Refuses the protection information that no block here has.
    fn check_protection(&self, command: &Command<'_, '_>) -> Result<(), Sense> {
        let short = matches!(command.opcode(), opcode::READ_6 | opcode::WRITE_6);
        if !short && command.byte(1) >> 5 != 0 { Err(Sense::INVALID_FIELD) } else { Ok(()) }
    }

    fn writer<'d>(&self, medium: &'d Arc<dyn Disk>) -> Result<&'d dyn WriteDisk, Sense> {
        medium.writer().filter(|_| !self.read_only).ok_or(Sense::WRITE_PROTECTED)
    }

    pub(super) fn flush(&self, medium: &dyn Disk) -> Result<(), Failure> {
        self.counters.flushes.add(1);
        match medium.writer() {
            Some(writer) if !self.read_only => {
                writer.flush().map_err(|error| self.failed(&error).into())
            }
            _ => Ok(()),
        }
    }

    /// Without bytes to compare, that the blocks are there is all that can be verified.
    fn verify(&self, command: &Command<'_, '_>) -> Result<(), Failure> {
        let medium = self.medium()?;
        self.range(&*medium, command.blocks())?;
        // BYTCHK
        if command.byte(1) & 0b110 == 0 { Ok(()) } else { Err(Sense::INVALID_FIELD.into()) }
    }

    pub(super) fn read_capacity_10(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let medium = self.medium()?;
        // Too large a medium is for the other command.
        let last = self.block_count(&*medium).saturating_sub(1);
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        let data = [last.to_be_bytes(), self.block.logical.to_be_bytes()].concat();
        command.answer(&data, data.len() as u64)
    }

    fn read_capacity_16(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let medium = self.medium()?;
        let mut data = [0; 32];
        let last = self.block_count(&*medium).saturating_sub(1);
        data[..8].copy_from_slice(&last.to_be_bytes());
        data[8..12].copy_from_slice(&self.block.logical.to_be_bytes());
        data[13] = (self.block.physical / self.block.logical).max(1).ilog2() as u8;
        // Blocks can be given back, and read as zeros then.
        data[14] = if self.read_only { 0 } else { 0xc0 };
        command.answer(&data, command.number(10, 4))
    }

    fn unmap(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        const HEADER: usize = 8;
        const RANGE: usize = 16;
        let medium = self.medium()?;
        self.counters.discards.add(1);
        let writer = self.writer(&medium)?;
        let len = command.number(7, 2) as usize;
        if len == 0 {
            return Ok(());
        }
        if len < HEADER || len > command.sent.left() {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        let mut list = vec![0; len];
        command.sent.read_exact(&mut list).map_err(|_| Failure::Overrun)?;
        let said = usize::from(u16::from_be_bytes([list[2], list[3]]));
        let ranges = list[HEADER..].chunks_exact(RANGE).take(said / RANGE);
        if said % RANGE != 0 || ranges.len() > UNMAP_RANGES_MAX as usize {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let mut places = Vec::with_capacity(ranges.len());
        for range in ranges {
            let blocks = Blocks { first: number(&range[..8]), count: number(&range[8..12]) };
            if blocks.count > u64::from(UNMAP_BLOCKS_MAX) {
                return Err(Sense::INVALID_PARAMETER.into());
            }
            places.push(self.range(&*medium, blocks)?);
        }
        for (offset, len) in places {
            writer.zero_at(len, offset, true).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn write_same(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let medium = self.medium()?;
        self.check_protection(command)?;
        self.counters.discards.add(1);
        let writer = self.writer(&medium)?;
        let blocks = command.blocks();
        // Neither "to the end" nor more than the limits say.
        if blocks.count == 0 || blocks.count > u64::from(UNMAP_BLOCKS_MAX) {
            return Err(Sense::INVALID_FIELD.into());
        }
        let (offset, len) = self.range(&*medium, blocks)?;
        let unmap = command.bit(1, 3);
        let no_data = command.opcode() == opcode::WRITE_SAME_16 && command.bit(1, 0);
        let mut block = vec![0; self.block.logical as usize];
        if !no_data {
            command.sent.read_exact(&mut block).map_err(|_| Failure::Overrun)?;
        }
        if block.iter().all(|byte| *byte == 0) {
            let zeroed = writer.zero_at(len, offset, unmap);
            zeroed.map_err(|error| self.failed(&error))?;
        } else if blocks.count > u64::from(SAME_BLOCKS_MAX) {
            return Err(Sense::INVALID_FIELD.into());
        } else {
            let many = block.repeat(SAME_STEP / block.len());
            for at in (0..len).step_by(SAME_STEP) {
                let part = &many[..(len - at).min(SAME_STEP as u64) as usize];
                writer.write_at(part, offset + at).map_err(|error| self.failed(&error))?;
            }
        }
        if self.write_through { self.flush(&*medium) } else { Ok(()) }
    }
}
