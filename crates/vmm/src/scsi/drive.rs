//! A drive: a disk that is always there, or a CD-ROM drive with its tray. The guest's commands come from
//! its device's thread, and media from its owner's.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bootyard_image::Disk;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::command::{Command, Failure};
use super::sense::Sense;
use super::{cdrom, opcode};
use crate::disks::BlockSize;
use crate::statistics::BlockCounters;

/// Bytes of a CD-ROM's block.
const CDROM_BLOCK: u32 = 2048;

/// What a drive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveKind {
    /// A disk.
    Disk,
    /// A CD-ROM drive, whose medium may be changed.
    Cdrom,
}

/// Where a CD-ROM drive's tray is, and what lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tray {
    /// Closed, with a medium.
    Loaded,
    /// Closed, without one.
    Empty,
    /// Open.
    Open,
}

/// Why a tray did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EjectError {
    /// The guest uses the medium. It has been told that somebody wants it.
    #[error("the guest has locked the medium, and was asked for it")]
    Locked,
    /// It is no CD-ROM drive.
    #[error("the drive has no tray")]
    NoTray,
}

/// What happened to the medium, for the initiator that asks for it (MMC-6 table 98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MediaEvent {
    EjectRequest = 1,
    NewMedia = 2,
    MediaRemoval = 3,
}

/// A disk or CD-ROM drive on a SCSI bus.
pub struct Drive {
    pub(super) kind: DriveKind,
    pub(super) serial: String,
    pub(super) read_only: bool,
    pub(super) write_through: bool,
    pub(super) block: BlockSize,
    pub(super) counters: Arc<BlockCounters>,
    on_error: Box<dyn Fn(&bootyard_image::Error) + Send + Sync>,
    state: Mutex<State>,
    /// Something happened to the medium.
    changed: EventFd,
}

pub(super) struct State {
    pub(super) medium: Option<Arc<dyn Disk>>,
    pub(super) open: bool,
    /// The guest does not want the medium to be taken.
    pub(super) locked: bool,
    /// What the next command is told instead of being done.
    attention: Option<Sense>,
    /// What the next question for events is answered.
    pub(super) event: Option<MediaEvent>,
    /// What the device has not yet told of.
    untold: Option<MediaEvent>,
}

impl Drive {
    /// A disk. The guest sees `serial` in it. Fails where the host has no event.
    pub fn disk(disk: Arc<dyn Disk>, read_only: bool, serial: &str) -> io::Result<Self> {
        let read_only = read_only || disk.writer().is_none();
        let drive = Self::new(DriveKind::Disk, Some(disk), serial)?;
        Ok(Self { read_only, ..drive })
    }

    /// A CD-ROM drive with this medium, or none. Fails where the host has no event.
    pub fn cdrom(medium: Option<Arc<dyn Disk>>, serial: &str) -> io::Result<Self> {
        let block = BlockSize { logical: CDROM_BLOCK, physical: CDROM_BLOCK };
        Ok(Self { block, ..Self::new(DriveKind::Cdrom, medium, serial)? })
    }

    fn new(kind: DriveKind, medium: Option<Arc<dyn Disk>>, serial: &str) -> io::Result<Self> {
        let state = State {
            medium,
            open: false,
            locked: false,
            attention: Some(Sense::POWER_ON),
            event: None,
            untold: None,
        };
        Ok(Self {
            kind,
            // What stands in pages is printable ASCII.
            serial: serial.chars().filter(char::is_ascii_graphic).take(36).collect(),
            read_only: true,
            write_through: false,
            block: BlockSize::default(),
            counters: Arc::default(),
            on_error: Box::new(|_| {}),
            state: Mutex::new(state),
            changed: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// The same drive, which tells `report` why its medium failed.
    #[must_use]
    pub fn on_error(
        mut self,
        report: impl Fn(&bootyard_image::Error) + Send + Sync + 'static,
    ) -> Self {
        self.on_error = Box::new(report);
        self
    }

    /// The same drive, which counts what it does.
    #[must_use]
    pub fn counters(mut self, counters: Arc<BlockCounters>) -> Self {
        self.counters = counters;
        self
    }

    /// The same disk, every write of which is durable when it is done.
    #[must_use]
    pub fn write_through(mut self, write_through: bool) -> Self {
        self.write_through = write_through;
        self
    }

    /// The same disk with blocks of these sizes. Those of a CD-ROM are what they are.
    #[must_use]
    pub fn block_size(mut self, size: BlockSize) -> Self {
        if self.kind == DriveKind::Disk {
            self.block = size;
        }
        self
    }

    /// Where the tray is; of a disk, that there is a medium.
    pub fn tray(&self) -> Tray {
        let state = self.state();
        match &state.medium {
            _ if state.open => Tray::Open,
            Some(_) => Tray::Loaded,
            None => Tray::Empty,
        }
    }

    /// Opens the tray and takes the medium, as if by the button at the front. Where the guest has
    /// locked the drive it is only told of the wish, unless `force` pulls the tray out by its
    /// emergency hole. Gives the medium.
    pub fn eject(&self, force: bool) -> Result<Option<Arc<dyn Disk>>, EjectError> {
        if self.kind == DriveKind::Disk {
            return Err(EjectError::NoTray);
        }
        let mut state = self.state();
        if state.locked && !state.open && !force {
            self.happened(&mut state, MediaEvent::EjectRequest);
            return Err(EjectError::Locked);
        }
        state.open = true;
        let medium = state.medium.take();
        if medium.is_some() {
            self.happened(&mut state, MediaEvent::MediaRemoval);
        }
        Ok(medium)
    }

    /// Puts a medium into the tray, in place of what is there, and closes it.
    pub fn insert(&self, medium: Arc<dyn Disk>) -> Result<(), EjectError> {
        self.eject(false)?;
        let mut state = self.state();
        (state.medium, state.open) = (Some(medium), false);
        state.attention = Some(Sense::MEDIUM_CHANGED);
        self.happened(&mut state, MediaEvent::NewMedia);
        Ok(())
    }

    fn happened(&self, state: &mut State, event: MediaEvent) {
        (state.event, state.untold) = (Some(event), Some(event));
        // Fails only for a counter at its limit, which is as good as signalled.
        let _ = self.changed.write(1);
    }

    /// Signalled when something has happened to the medium.
    pub(crate) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// What has happened to the medium since the last time, if the initiator has not asked meanwhile.
    pub(crate) fn take_untold(&self) -> Option<MediaEvent> {
        let _ = self.changed.read();
        self.state().untold.take()
    }

    /// Back to the state after power-on, but for the medium.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.locked = false;
        state.attention = Some(Sense::POWER_ON);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The medium, if it can be reached.
    pub(super) fn medium(&self) -> Result<Arc<dyn Disk>, Sense> {
        let state = self.state();
        match &state.medium {
            _ if state.open => Err(Sense::TRAY_OPEN),
            Some(medium) => Ok(Arc::clone(medium)),
            None => Err(Sense::NO_MEDIUM),
        }
    }

    /// How many blocks `medium` has. What cannot be written is rounded up, so that every byte can be
    /// read.
    pub(super) fn block_count(&self, medium: &dyn Disk) -> u64 {
        let (size, block) = (medium.virtual_size(), u64::from(self.block.logical));
        if self.read_only { size.div_ceil(block) } else { size / block }
    }

    /// The initiator is told by sense data that the medium failed, the machine's owner why.
    pub(super) fn failed(&self, error: &bootyard_image::Error) -> Sense {
        (self.on_error)(error);
        Sense::of(error)
    }

    /// Does a command.
    pub(crate) fn execute(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let result = self.attend(command).and_then(|()| self.dispatch(command));
        self.counters.errors.add(result.is_err().into());
        result
    }

    /// Fails a command that has to be told something first (SAM-5 §5.14).
    fn attend(&self, command: &Command<'_, '_>) -> Result<(), Failure> {
        let told = matches!(
            command.opcode(),
            opcode::INQUIRY
                | opcode::REPORT_LUNS
                | opcode::REQUEST_SENSE
                | opcode::GET_CONFIGURATION
                | opcode::GET_EVENT_STATUS
        );
        match self.state().attention.take_if(|_| !told) {
            Some(sense) => Err(sense.into()),
            None => Ok(()),
        }
    }

    fn dispatch(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        match command.opcode() {
            opcode::TEST_UNIT_READY => self.medium().map(drop).map_err(Failure::from),
            opcode::REQUEST_SENSE => {
                // Sense data comes with the status; what is left is what was not told.
                let sense = self.state().attention.take().unwrap_or(Sense::NOTHING);
                command.answer(&sense.bytes(), command.number(4, 1))
            }
            opcode::INQUIRY => self.inquiry(command),
            opcode::REPORT_LUNS => {
                // One unit, number 0.
                let list = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                command.answer(&list, command.number(6, 4))
            }
            opcode::MODE_SENSE_6 | opcode::MODE_SENSE_10 => self.mode_sense(command),
            opcode::MODE_SELECT_6 | opcode::MODE_SELECT_10 => self.mode_select(command),
            opcode::START_STOP_UNIT => cdrom::start_stop(self, command),
            opcode::PREVENT_ALLOW => {
                self.state().locked = command.bit(4, 0);
                Ok(())
            }
            _ => match self.kind {
                DriveKind::Disk => self.block_command(command),
                DriveKind::Cdrom => cdrom::command(self, command),
            },
        }
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive")
            .field("kind", &self.kind)
            .field("serial", &self.serial)
            .field("tray", &self.tray())
            .finish_non_exhaustive()
    }
}
