//! A small read-only disk with files on it: what a seed is, and what configMap, secret and sysprep
//! disks are.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::{Error, ErrorKind, Tree, fat, iso};

/// Images are padded to a multiple of this: a host that opens the file with `O_DIRECT` on a disk
/// with 4 KiB sectors, or a guest that sees such a disk, meets no partial sector at the end.
pub(crate) const ALIGNMENT: usize = 1 << 20;

/// Most bytes of an image, which is made in memory. A seed has a few KiB; configMaps and secrets
/// end at 1 MiB.
pub(crate) const SIZE_MAX: usize = 240 << 20;

/// Last second that both formats can express: the end of 2107 (FAT; ISO 9660 ends in 2155).
const TIMESTAMP_MAX: i64 = 4_354_819_199;

/// The file system of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// ISO 9660 with Rock Ridge and Joliet.
    Iso,
    /// FAT12 or FAT16, by size, with long names and sectors of 4 KiB, which a guest can mount from
    /// a disk of 512-byte and of 4 KiB sectors alike. Linux mounts ISO 9660 only from the former.
    Fat,
}

impl ImageFormat {
    /// Its name, as [`ImageFormat::from_str`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iso => "iso",
            Self::Fat => "fat",
        }
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "iso" => Ok(Self::Iso),
            "fat" => Ok(Self::Fat),
            _ => {
                let what = format!("unknown image format `{text}`; expected iso or fat");
                Err(Error::new(ErrorKind::Value, what))
            }
        }
    }
}

/// How a tree of files becomes an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// The file system.
    pub format: ImageFormat,
    /// The volume's label: printable ASCII, at most 11 characters for FAT and 32 for ISO 9660, of
    /// which Joliet shows 16.
    pub label: &'a str,
    /// The time of every file and of the volume, in seconds since 1970. FAT shows times before 1980
    /// as 1980.
    pub timestamp: i64,
}

impl Image<'_> {
    /// Writes the image. The same tree, label and time make the same bytes.
    pub fn build(&self, tree: &Tree) -> Result<DiskImage, Error> {
        let label_max = match self.format {
            ImageFormat::Iso => 32,
            ImageFormat::Fat => 11,
        };
        let is_printable = self.label.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        if self.label.is_empty() || self.label.len() > label_max || !is_printable {
            let label = self.label;
            let what =
                format!("expected a label of 1 to {label_max} characters of ASCII, got `{label}`");
            return Err(Error::new(ErrorKind::Value, what));
        }
        let time = civil(self.timestamp)?;
        match self.format {
            ImageFormat::Iso => iso::write(tree, self.label, time),
            ImageFormat::Fat => fat::write(tree, self.label, time),
        }
    }
}

/// An image that was made. What fills it up is not in memory, and need not be on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    content: Vec<u8>,
    len: usize,
}

impl DiskImage {
    /// An image of `len` bytes, which `content` begins and zeros end.
    pub(crate) const fn filled(content: Vec<u8>, len: usize) -> Self {
        Self { content, len }
    }

    /// The bytes up to the zeros at the end.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// The size of the disk in bytes, a multiple of 1 MiB.
    pub const fn size(&self) -> usize {
        self.len
    }

    /// All bytes of the disk.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.content.resize(self.len, 0);
        self.content
    }
}

fn civil(timestamp: i64) -> Result<DateTime, Error> {
    let outside = || {
        let what = format!("the time {timestamp} is not between 1970 and 2107");
        Error::new(ErrorKind::Timestamp, what)
    };
    if !(0..=TIMESTAMP_MAX).contains(&timestamp) {
        return Err(outside());
    }
    let instant = Timestamp::from_second(timestamp).map_err(|_| outside())?;
    Ok(TimeZone::UTC.to_datetime(instant))
}

/// The error for files that together make an image beyond [`SIZE_MAX`].
pub(crate) fn too_large() -> Error {
    let what = format!("the files need an image larger than {} MiB", SIZE_MAX >> 20);
    Error::new(ErrorKind::TooLarge, what)
}
