//! INQUIRY: what a drive is, and the pages of vital product data (SPC-4 §6.6, §7.8; SBC-3 §6.6).

use super::Sense;
use super::block::{SAME_BLOCKS_MAX, UNMAP_BLOCKS_MAX, UNMAP_RANGES_MAX};
use super::command::{Command, Failure};
use super::drive::{Drive, DriveKind};

/// Who made it: eight bytes.
const VENDOR: &[u8; 8] = b"BOOTYARD";

/// Pages of vital product data.
mod page {
    pub(super) const SUPPORTED: u8 = 0x00;
    pub(super) const SERIAL: u8 = 0x80;
    pub(super) const IDENTIFICATION: u8 = 0x83;
    pub(super) const BLOCK_LIMITS: u8 = 0xb0;
    pub(super) const BLOCK_CHARACTERISTICS: u8 = 0xb1;
    pub(super) const PROVISIONING: u8 = 0xb2;
}

impl Drive {
    const fn device_type(&self) -> u8 {
        match self.kind {
            DriveKind::Disk => 0x00,
            DriveKind::Cdrom => 0x05,
        }
    }

    const fn product(&self) -> &'static [u8; 16] {
        match self.kind {
            DriveKind::Disk => b"DISK            ",
            DriveKind::Cdrom => b"CD-ROM          ",
        }
    }

    pub(super) fn inquiry(&self, command: &mut Command<'_, '_>) -> Result<(), Failure> {
        let (vital, page) = (command.bit(1, 0), command.byte(2));
        let data = match (vital, page) {
            (true, _) => self.vital_page(page)?,
            (false, 0) => self.standard(),
            (false, _) => return Err(Sense::INVALID_FIELD.into()),
        };
        command.answer(&data, command.number(3, 2))
    }

    fn standard(&self) -> Vec<u8> {
        let mut data = vec![self.device_type(), 0, 5, 0x12, 31, 0, 0, 0x02];
        if self.kind == DriveKind::Cdrom {
            data[1] = 0x80;
        }
        data.extend(VENDOR);
        data.extend(self.product());
        data.extend(b"1   ");
        data
    }

    fn vital_page(&self, number: u8) -> Result<Vec<u8>, Sense> {
        let body = match (number, self.kind) {
            (page::SUPPORTED, DriveKind::Disk) => vec![
                page::SUPPORTED,
                page::SERIAL,
                page::IDENTIFICATION,
                page::BLOCK_LIMITS,
                page::BLOCK_CHARACTERISTICS,
                page::PROVISIONING,
            ],
            (page::SUPPORTED, DriveKind::Cdrom) => {
                vec![page::SUPPORTED, page::SERIAL, page::IDENTIFICATION]
            }
            (page::SERIAL, _) => self.serial.as_bytes().to_vec(),
            (page::IDENTIFICATION, _) => self.identification(),
            (page::BLOCK_LIMITS, DriveKind::Disk) => block_limits(),
            (page::BLOCK_CHARACTERISTICS, DriveKind::Disk) => {
                // It does not rotate.
                let mut body = vec![0; 60];
                body[1] = 1;
                body
            }
            (page::PROVISIONING, DriveKind::Disk) => {
                // UNMAP and both WRITE SAME give blocks back, which read as zeros: thin.
                if self.read_only { vec![0; 4] } else { vec![0, 0xe4, 2, 0] }
            }
            _ => return Err(Sense::INVALID_FIELD),
        };
        let mut data = vec![self.device_type(), number];
        data.extend((body.len() as u16).to_be_bytes());
        data.extend(body);
        Ok(data)
    }

    /// One designator: vendor, product and serial number, in ASCII.
    fn identification(&self) -> Vec<u8> {
        let mut name = VENDOR.to_vec();
        name.extend(self.product());
        name.extend(self.serial.as_bytes());
        let mut body = vec![2, 1, 0, name.len() as u8];
        body.extend(name);
        body
    }
}

fn block_limits() -> Vec<u8> {
    let mut body = vec![0; 60];
    // A count of none is no count for WRITE SAME.
    body[0] = 1;
    body[16..20].copy_from_slice(&UNMAP_BLOCKS_MAX.to_be_bytes());
    body[20..24].copy_from_slice(&UNMAP_RANGES_MAX.to_be_bytes());
    body[24..28].copy_from_slice(&1_u32.to_be_bytes());
    body[32..40].copy_from_slice(&u64::from(SAME_BLOCKS_MAX).to_be_bytes());
    body
}
