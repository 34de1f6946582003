//! The SCSI host device (§5.6): a bus with one target for each drive, each with one logical unit. One
//! thread serves all virtqueues, one command after the other, so that when a task management function
//! is answered nothing of its tasks is under way.
//!
//! | Virtqueue | What goes through it                                                       |
//! |-----------|----------------------------------------------------------------------------|
//! | 0         | task management, subscriptions                                             |
//! | 1         | events: that a medium has changed, for who has subscribed to that          |
//! | 2         | commands                                                                   |

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_SCSI;
use vmm_sys_util::epoll::EventSet;

use super::{DeviceConfig, Error, Request, Session, VirtioDevice, Wake};
use crate::scsi::{Command, Drive, Failure, Sense};

const CONTROL: u16 = 0;
const EVENTS: u16 = 1;
const COMMANDS: u16 = 2;
/// Sizes of the virtqueues.
const QUEUE_SIZES: [u16; 3] = [16, 16, 256];

/// Most drives: numbers of targets that fit in the address.
pub(crate) const TARGETS_MAX: usize = 255;

/// Most data segments of a command: a ring's worth without header and response.
const SEGMENTS_MAX: u32 = QUEUE_SIZES[COMMANDS as usize] as u32 - 2;

/// Offsets in the configuration structure (§5.6.4).
mod config {
    pub(super) const NUM_QUEUES: usize = 0;
    pub(super) const SEG_MAX: usize = 4;
    pub(super) const MAX_SECTORS: usize = 8;
    pub(super) const CMD_PER_LUN: usize = 12;
    pub(super) const EVENT_INFO_SIZE: usize = 16;
    pub(super) const SENSE_SIZE: usize = 20;
    pub(super) const CDB_SIZE: usize = 24;
    pub(super) const MAX_TARGET: usize = 30;
    pub(super) const SIZE: usize = 36;
}

/// Bytes of a command's header before the command block: address, tag, attributes (§5.6.6.1).
const HEADER_SIZE: usize = 19;
/// Bytes of a response before the sense data.
const RESPONSE_SIZE: usize = 12;
/// Defaults for what the driver may change, and the most that is taken.
const CDB_SIZE: u32 = 32;
const SENSE_SIZE: u32 = 96;
const CDB_SIZE_MAX: u32 = 260;
const SENSE_SIZE_MAX: u32 = 252;

/// Bytes of an event (§5.6.6.3).
const EVENT_SIZE: usize = 16;
const EVENT_ASYNC_NOTIFY: u32 = 2;
const EVENTS_MISSED: u32 = 1 << 31;
/// The asynchronous event "media change" (§5.6.6.2).
const NOTIFY_MEDIA: u32 = 16;

/// Responses (§5.6.6.1, §5.6.6.2).
mod response {
    pub(super) const OK: u8 = 0;
    pub(super) const OVERRUN: u8 = 1;
    pub(super) const BAD_TARGET: u8 = 3;
    pub(super) const FUNCTION_REJECTED: u8 = 11;
    pub(super) const INCORRECT_LUN: u8 = 12;
}

/// Requests on the control virtqueue, and task management functions (§5.6.6.2).
mod control {
    pub(super) const TASK_MANAGEMENT: u32 = 0;
    pub(super) const QUERY: u32 = 1;
    pub(super) const SUBSCRIBE: u32 = 2;
    pub(super) const ABORT_TASK: u32 = 0;
    pub(super) const ABORT_TASK_SET: u32 = 1;
    pub(super) const CLEAR_TASK_SET: u32 = 3;
    pub(super) const NEXUS_RESET: u32 = 4;
    pub(super) const UNIT_RESET: u32 = 5;
    pub(super) const QUERY_TASK: u32 = 6;
    pub(super) const QUERY_TASK_SET: u32 = 7;
}

/// Status of a command (SAM-5 §5.3).
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;

/// The SCSI host device.
pub struct Scsi {
    drives: Vec<Arc<Drive>>,
    config: DeviceConfig,
    /// The events that the driver has subscribed to, by target.
    subscribed: Vec<u32>,
    /// An event found no buffer.
    missed: bool,
}

/// Where a command goes.
enum Address {
    Unit(usize),
    /// There is the target, but not this unit of it.
    NoUnit,
    NoTarget,
}

impl Scsi {
    /// A bus with these drives, the first 255 of them, by the numbers of their targets. Fails where
    /// the host has no event.
    pub fn new(mut drives: Vec<Arc<Drive>>) -> io::Result<Self> {
        drives.truncate(TARGETS_MAX);
        let config = DeviceConfig::writable(
            defaults(drives.len()),
            config::SENSE_SIZE..config::CDB_SIZE + 4,
        )?;
        let subscribed = vec![0; drives.len()];
        Ok(Self { drives, config, subscribed, missed: false })
    }

    /// The unit at an address: `1, target, unit` in the flat or peripheral format (§5.6.6.1).
    fn address(&self, address: [u8; 8]) -> Address {
        let [1, target, high, low, 0, 0, 0, 0] = address else { return Address::NoTarget };
        match usize::from(target) {
            at if at >= self.drives.len() => Address::NoTarget,
            at if matches!(high, 0 | 0x40) && low == 0 => Address::Unit(at),
            _ => Address::NoUnit,
        }
    }

    /// The sizes that the driver has set: of command blocks, and of sense data.
    fn sizes(&self) -> Result<(usize, usize), Error> {
        let bytes = self.config.bytes();
        let number = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were cut out"))
        };
        let (cdb, sense) = (number(config::CDB_SIZE), number(config::SENSE_SIZE));
        if cdb > CDB_SIZE_MAX || sense > SENSE_SIZE_MAX {
            return Err(Error::Malformed("a command block or sense data of an impossible size"));
        }
        Ok((cdb as usize, sense as usize))
    }

    /// Does a command and answers it.
    fn command(&self, request: &mut Request<'_>) -> Result<u32, Error> {
        let (cdb_size, sense_size) = self.sizes()?;
        let mut header = [0; HEADER_SIZE + CDB_SIZE_MAX as usize];
        let header = &mut header[..HEADER_SIZE + cdb_size];
        let cut = |_| Error::Malformed("a SCSI command shorter than its header");
        request.read_exact(header).map_err(cut)?;
        if request.writable() < RESPONSE_SIZE + sense_size {
            return Err(Error::Malformed("no room for a SCSI command's response"));
        }
        let mut answer = request.room().take_front(RESPONSE_SIZE + sense_size);
        let mut sent = std::mem::take(request.sent());
        let mut room = std::mem::take(request.room());
        let room_size = room.left();
        let block = &header[HEADER_SIZE..];
        let result = match self.address(header[..8].try_into().expect("eight of them")) {
            Address::Unit(at) => {
                Ok(self.drives[at].execute(&mut Command::new(block, &mut sent, &mut room)))
            }
            Address::NoUnit if block.first() == Some(&0x12) => {
                // A qualifier says that there is no such unit.
                let none = [0x7f, 0, 5, 0x12, 0];
                let len = none.len().min(room.left());
                Ok(room.write_all(&none[..len]).map_err(|_| Failure::Overrun))
            }
            Address::NoUnit => Ok(Err(Sense::NO_SUCH_UNIT.into())),
            Address::NoTarget => Err(response::BAD_TARGET),
        };
        let (code, status, sense) = match result {
            Ok(Ok(())) => (response::OK, GOOD, None),
            Ok(Err(Failure::Check(sense))) => (response::OK, CHECK_CONDITION, Some(sense)),
            Ok(Err(Failure::Overrun)) => (response::OVERRUN, GOOD, None),
            Err(code) => (code, GOOD, None),
        };
        let sense = sense.map(Sense::bytes);
        let sense = sense.as_ref().map_or(&[][..], |sense| &sense[..sense_size.min(sense.len())]);
        let residual = (sent.left() + room.left()) as u32;
        let mut bytes = vec![0; RESPONSE_SIZE + sense_size];
        bytes[..4].copy_from_slice(&(sense.len() as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&residual.to_le_bytes());
        (bytes[10], bytes[11]) = (status, code);
        bytes[RESPONSE_SIZE..][..sense.len()].copy_from_slice(sense);
        answer.write_all(&bytes)?;
        Ok((bytes.len() + room_size - room.left()) as u32)
    }

    /// Answers a request of the control virtqueue. The commands before it are done.
    fn control(&mut self, request: &mut Request<'_>) -> Result<u32, Error> {
        let cut = |_| Error::Malformed("a SCSI control request that is cut off");
        let mut kind = [0; 4];
        request.read_exact(&mut kind).map_err(cut)?;
        match u32::from_le_bytes(kind) {
            control::TASK_MANAGEMENT => {
                // Function, address, tag.
                let mut body = [0; 20];
                request.read_exact(&mut body).map_err(cut)?;
                let function = u32::from_le_bytes(body[..4].try_into().expect("four of them"));
                let address = body[4..12].try_into().expect("eight of them");
                let code = self.manage(function, address);
                request.write_all(&[code]).map_err(cut)?;
            }
            kind @ (control::QUERY | control::SUBSCRIBE) => {
                // Address, events.
                let mut body = [0; 12];
                request.read_exact(&mut body).map_err(cut)?;
                let wanted = u32::from_le_bytes(body[8..].try_into().expect("four of them"));
                let address = body[..8].try_into().expect("eight of them");
                let (events, code) = match self.address(address) {
                    Address::Unit(at) => {
                        let events = wanted & NOTIFY_MEDIA;
                        if kind == control::SUBSCRIBE {
                            self.subscribed[at] = events;
                        }
                        (events, response::OK)
                    }
                    Address::NoUnit => (0, response::INCORRECT_LUN),
                    Address::NoTarget => (0, response::BAD_TARGET),
                };
                request.write_all(&events.to_le_bytes()).map_err(cut)?;
                request.write_all(&[code]).map_err(cut)?;
            }
            _ => request.write_all(&[response::FUNCTION_REJECTED]).map_err(cut)?,
        }
        Ok(request.written())
    }

    /// A task management function. There are no tasks left that it could be about.
    fn manage(&self, function: u32, address: [u8; 8]) -> u8 {
        let at = match self.address(address) {
            Address::Unit(at) => at,
            Address::NoUnit => return response::INCORRECT_LUN,
            Address::NoTarget => return response::BAD_TARGET,
        };
        match function {
            control::ABORT_TASK | control::ABORT_TASK_SET | control::CLEAR_TASK_SET => response::OK,
            control::NEXUS_RESET | control::UNIT_RESET => {
                self.drives[at].reset();
                response::OK
            }
            // "Complete": none is under way.
            control::QUERY_TASK | control::QUERY_TASK_SET => response::OK,
            _ => response::FUNCTION_REJECTED,
        }
    }

    /// Tells a driver that has subscribed what happened to a medium, if it has a buffer for that.
    fn tell(&mut self, session: &mut Session, at: usize) -> Result<(), Error> {
        let Some(event) = self.drives[at].take_untold() else { return Ok(()) };
        if self.subscribed[at] & NOTIFY_MEDIA == 0 {
            return Ok(());
        }
        let memory = session.memory();
        let Some(queue) = session.queue(EVENTS) else { return Ok(()) };
        let Some(mut request) = queue.next(&memory)? else {
            self.missed = true;
            return Ok(());
        };
        let missed = if std::mem::take(&mut self.missed) { EVENTS_MISSED } else { 0 };
        let mut bytes = [0; EVENT_SIZE];
        bytes[..4].copy_from_slice(&(EVENT_ASYNC_NOTIFY | missed).to_le_bytes());
        bytes[4..8].copy_from_slice(&[1, at as u8, 0x40, 0]);
        bytes[12..].copy_from_slice(&(NOTIFY_MEDIA | (event as u32) << 8).to_le_bytes());
        let len = EVENT_SIZE.min(request.writable());
        request.write_all(&bytes[..len])?;
        let head = request.head();
        queue.complete(&memory, head, len as u32)
    }
}

/// The configuration structure before the driver changes it.
fn defaults(targets: usize) -> Vec<u8> {
    let mut bytes = vec![0; config::SIZE];
    let mut set = |at: usize, number: u32| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    set(config::NUM_QUEUES, 1);
    set(config::SEG_MAX, SEGMENTS_MAX);
    set(config::MAX_SECTORS, 0xffff);
    set(config::CMD_PER_LUN, 128);
    set(config::EVENT_INFO_SIZE, EVENT_SIZE as u32);
    set(config::SENSE_SIZE, SENSE_SIZE);
    set(config::CDB_SIZE, CDB_SIZE);
    let last = targets.saturating_sub(1) as u16;
    bytes[config::MAX_TARGET..][..2].copy_from_slice(&last.to_le_bytes());
    bytes
}

impl VirtioDevice for Scsi {
    fn kind(&self) -> u16 {
        VIRTIO_ID_SCSI as u16
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn reset(&mut self) {
        self.drives.iter().for_each(|drive| drive.reset());
        self.subscribed.fill(0);
        self.missed = false;
        let defaults = defaults(self.drives.len());
        if self.config.bytes() != defaults {
            self.config.update(|bytes| bytes.copy_from_slice(&defaults));
        }
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        for (token, drive) in (0..).zip(&self.drives) {
            session.watch(drive.changed(), token, EventSet::IN)?;
        }
        let mut wakes = Vec::new();
        while session.wait(None, &mut wakes)? {
            // What happened to media was before the commands that ask for it.
            for wake in &wakes {
                if let Wake::Ready { token, .. } = *wake {
                    self.tell(session, token as usize)?;
                }
            }
            // Commands before control: whoever manages tasks counts on it.
            if wakes.iter().any(|wake| matches!(wake, Wake::Queue(COMMANDS | CONTROL))) {
                session.drain(COMMANDS, |_, request| self.command(request))?;
            }
            if wakes.contains(&Wake::Queue(CONTROL)) {
                session.drain(CONTROL, |_, request| self.control(request))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Scsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scsi").field("drives", &self.drives).finish_non_exhaustive()
    }
}
