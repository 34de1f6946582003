//! Mode pages (SPC-4 §7.5): what a drive's cache does, and what a CD-ROM drive can do. Nothing in them
//! can be changed.

use super::command::{Command, Failure};
use super::drive::{Drive, DriveKind};
use super::{Sense, opcode};

const ERROR_RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CAPABILITIES: u8 = 0x2a;
const ALL: u8 = 0x3f;

/// Which values are asked for.
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

impl Drive {
    pub(super) fn mode_sense(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let (wanted, control) = (command.byte(2) & 0x3f, command.byte(2) >> 6);
        if control == SAVED {
            return Err(Sense::SAVING_UNSUPPORTED.into());
        }
        // Subpages there are none of; all of them are none.
        if !matches!(command.byte(3), 0 | 0xff) {
            return Err(Sense::INVALID_FIELD.into());
        }
        let mut pages = Vec::new();
        for number in [ERROR_RECOVERY, CACHING, CAPABILITIES] {
            if wanted != number && wanted != ALL {
                continue;
            }
            if let Some(mut body) = self.page(number) {
                if control == CHANGEABLE {
                    body.fill(0);
                }
                pages.extend([number, body.len() as u8]);
                pages.extend(body);
            }
        }
        if pages.is_empty() {
            return Err(Sense::INVALID_FIELD.into());
        }
        // Write protection, and that "force unit access" is heard.
        let protected = u8::from(self.read_only) << 7;
        let device = if self.kind == DriveKind::Disk { protected | 0x10 } else { 0 };
        let (mut data, allocated) = if command.opcode() == opcode::MODE_SENSE_6 {
            (vec![pages.len() as u8 + 3, 0, device, 0], command.number(4, 1))
        } else {
            (vec![0, pages.len() as u8 + 6, 0, device, 0, 0, 0, 0], command.number(7, 2))
        };
        data.extend(pages);
        command.answer(&data, allocated)
    }

    fn page(&self, number: u8) -> Option<Vec<u8>> {
        match (number, self.kind) {
            (ERROR_RECOVERY, _) => Some(vec![0; 10]),
            (CACHING, DriveKind::Disk) => {
                let mut body = vec![0; 18];
                body[0] = if self.write_through || self.read_only { 0 } else { 0x04 };
                Some(body)
            }
            (CAPABILITIES, DriveKind::Cdrom) => {
                let mut body = vec![0; 18];
                // Reads all kinds of discs; a tray that locks and ejects; speeds like QEMU's.
                (body[0], body[2], body[3], body[4]) = (0x3b, 0x70, 0x00, 0x29);
                body[6..8].copy_from_slice(&(50 * 176_u16).to_be_bytes());
                body[12..14].copy_from_slice(&(16 * 176_u16).to_be_bytes());
                Some(body)
            }
            _ => None,
        }
    }

    /// Takes only what changes nothing.
    pub(super) fn mode_select(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let short = command.opcode() == opcode::MODE_SELECT_6;
        let len = if short { command.number(4, 1) } else { command.number(7, 2) };
        if command.bit(1, 0) {
            return Err(Sense::INVALID_FIELD.into());
        }
        match len {
            0 => Ok(()),
            _ => Err(Sense::INVALID_PARAMETER.into()),
        }
    }
}
