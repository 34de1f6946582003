//! How a disk is attached to a machine: KubeVirt's words, in the `key=value` form of the command line.

use std::fmt;
use std::str::FromStr;

/// What a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DiskBus {
    /// A virtio block device of its own.
    #[default]
    Virtio,
    /// The machine's virtio SCSI host device.
    Scsi,
}

/// What the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DiskDevice {
    /// A disk.
    #[default]
    Disk,
    /// A CD-ROM drive with a disc in it.
    Cdrom,
}

/// When what the guest writes is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DiskCache {
    /// When the guest flushes.
    #[default]
    WriteBack,
    /// When it is written.
    WriteThrough,
}

/// A disk's serial number: up to 20 letters, digits, `_`, `-`, `.` and `+`, which is what a virtio disk has
/// room for and udev makes names of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskSerial(String);

impl DiskSerial {
    /// Most characters.
    pub const LEN_MAX: usize = 20;

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a disk is attached.
///
/// As text: `bus=scsi,cache=writethrough,serial=DATA-1`, and only what is not the default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct DiskAttachment {
    /// What the guest sees.
    pub device: DiskDevice,
    /// What it is attached to. CD-ROM drives are always on the SCSI bus.
    pub bus: DiskBus,
    /// When what the guest writes is durable.
    pub cache: DiskCache,
    /// Under which serial number the guest sees it; one by its place, if there is none.
    pub serial: Option<DiskSerial>,
}

impl DiskAttachment {
    /// A CD-ROM drive.
    pub fn cdrom() -> Self {
        Self { device: DiskDevice::Cdrom, bus: DiskBus::Scsi, ..Self::default() }
    }

    /// Takes one `key=value`. False if it is no option of an attachment.
    pub fn set(&mut self, option: &str) -> Result<bool, ParseAttachmentError> {
        let Some((key, value)) = option.split_once('=') else { return Ok(false) };
        let unknown = |expected| {
            let (key, value) = (key.to_owned(), value.to_owned());
            Err(ParseAttachmentError { key, value, expected })
        };
        match (key, value) {
            ("device", "disk") => self.device = DiskDevice::Disk,
            ("device", "cdrom") => self.device = DiskDevice::Cdrom,
            ("device", _) => return unknown("disk or cdrom"),
            ("bus", "virtio") => self.bus = DiskBus::Virtio,
            ("bus", "scsi") => self.bus = DiskBus::Scsi,
            ("bus", _) => return unknown("virtio or scsi"),
            ("cache", "writeback") => self.cache = DiskCache::WriteBack,
            ("cache", "writethrough") => self.cache = DiskCache::WriteThrough,
            ("cache", _) => return unknown("writeback or writethrough"),
            ("serial", _) => {
                let fits = (1..=DiskSerial::LEN_MAX).contains(&value.len());
                let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.+".contains(&byte);
                if !fits || !value.bytes().all(good) {
                    return unknown("1 to 20 letters, digits, `_`, `-`, `.` or `+`");
                }
                self.serial = Some(DiskSerial(value.to_owned()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl fmt::Display for DiskAttachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let mut option = |key: &str, value: &str| {
            write!(f, "{comma}{key}={value}")?;
            comma = ",";
            Ok(())
        };
        if self.device == DiskDevice::Cdrom {
            option("device", "cdrom")?;
        }
        if self.bus == DiskBus::Scsi {
            option("bus", "scsi")?;
        }
        if self.cache == DiskCache::WriteThrough {
            option("cache", "writethrough")?;
        }
        match &self.serial {
            Some(serial) => option("serial", serial.as_str()),
            None => Ok(()),
        }
    }
}

impl FromStr for DiskAttachment {
    type Err = ParseAttachmentError;

    fn from_str(text: &str) -> Result<Self, ParseAttachmentError> {
        let mut attachment = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            if !attachment.set(option)? {
                let (key, value) = option.split_once('=').unwrap_or((option, ""));
                let expected = "bus, cache, serial or device before the `=`";
                let (key, value) = (key.to_owned(), value.to_owned());
                return Err(ParseAttachmentError { key, value, expected });
            }
        }
        Ok(attachment)
    }
}

/// The text is no attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}={value}`: expected {expected}")]
pub struct ParseAttachmentError {
    key: String,
    value: String,
    expected: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_parse_back_and_say_no_more_than_they_must() {
        for text in [
            "",
            "bus=scsi",
            "device=cdrom,bus=scsi",
            "cache=writethrough",
            "bus=scsi,cache=writethrough,serial=a_B-9.+",
        ] {
            let parsed: DiskAttachment = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!("bus=virtio,cache=writeback".parse(), Ok(DiskAttachment::default()));
        assert_eq!("device=cdrom,bus=scsi".parse(), Ok(DiskAttachment::cdrom()));
    }

    #[test]
    fn what_is_no_attachment_is_refused_by_name() {
        for (text, error) in [
            ("bus=sata", "`bus=sata`: expected virtio or scsi"),
            ("cache=none", "`cache=none`: expected writeback or writethrough"),
            ("serial=", "`serial=`: expected 1 to 20 letters, digits, `_`, `-`, `.` or `+`"),
            ("size=1", "`size=1`: expected bus, cache, serial or device before the `=`"),
        ] {
            assert_eq!(text.parse::<DiskAttachment>().unwrap_err().to_string(), error);
        }
        for serial in ["a b", "a,b", "a".repeat(21).as_str(), "\u{e4}"] {
            assert!(format!("serial={serial}").parse::<DiskAttachment>().is_err(), "{serial}");
        }
    }
}
