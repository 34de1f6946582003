//! Sense data: why a command failed (SPC-4 §4.5).

use std::error::Error as _;
use std::io;

/// A sense key with its additional code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sense {
    key: u8,
    code: u8,
    qualifier: u8,
}

const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense { key, code, qualifier }
}

impl Sense {
    pub(super) const NOTHING: Self = sense(0x0, 0x00, 0x00);
    pub(super) const NO_MEDIUM: Self = sense(0x2, 0x3a, 0x01);
    pub(super) const TRAY_OPEN: Self = sense(0x2, 0x3a, 0x02);
    const READ_ERROR: Self = sense(0x3, 0x11, 0x00);
    const WRITE_ERROR: Self = sense(0x3, 0x0c, 0x00);
    pub(super) const PARAMETER_LIST_LENGTH: Self = sense(0x5, 0x1a, 0x00);
    pub(super) const INVALID_OPCODE: Self = sense(0x5, 0x20, 0x00);
    pub(super) const OUT_OF_RANGE: Self = sense(0x5, 0x21, 0x00);
    pub(super) const INVALID_FIELD: Self = sense(0x5, 0x24, 0x00);
    pub(crate) const NO_SUCH_UNIT: Self = sense(0x5, 0x25, 0x00);
    pub(super) const INVALID_PARAMETER: Self = sense(0x5, 0x26, 0x00);
    pub(super) const SAVING_UNSUPPORTED: Self = sense(0x5, 0x39, 0x00);
    pub(super) const REMOVAL_PREVENTED: Self = sense(0x5, 0x53, 0x02);
    pub(super) const MEDIUM_CHANGED: Self = sense(0x6, 0x28, 0x00);
    pub(super) const POWER_ON: Self = sense(0x6, 0x29, 0x00);
    pub(super) const WRITE_PROTECTED: Self = sense(0x7, 0x27, 0x00);
    const SPACE_ALLOCATION_FAILED: Self = sense(0x7, 0x27, 0x07);

    /// What a disk's failure is called.
    pub(super) fn of(error: &bootyard_image::Error) -> Self {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        match error.kind() {
            bootyard_image::ErrorKind::Write if source.is_some_and(full) => {
                Self::SPACE_ALLOCATION_FAILED
            }
            bootyard_image::ErrorKind::Write => Self::WRITE_ERROR,
            _ => Self::READ_ERROR,
        }
    }

    /// The fixed format (SPC-4 §4.5.3).
    pub(crate) const fn bytes(self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = 10;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }
}
