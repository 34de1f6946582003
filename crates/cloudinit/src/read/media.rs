//! The bytes of an image by their place, none of them outside it.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};

use crate::{Error, ErrorKind};

/// What an image is read from.
pub(super) trait Input: Read + Seek {}

impl<T: Read + Seek + ?Sized> Input for T {}

/// Most bytes of directories and tables that are read of an image, each as often as something leads
/// there: sixteen times what the largest image of ours has.
const TABLES_MAX: u64 = 64 << 20;

/// An image, or a partition of one.
pub(super) struct Media<'a> {
    input: &'a mut dyn Input,
    /// Where the partition begins in the image.
    begin: u64,
    len: u64,
    /// How many more bytes of tables may be read.
    tables_left: u64,
}

impl<'a> Media<'a> {
    pub(super) fn new(input: &'a mut dyn Input) -> Result<Self, Error> {
        let len = input.seek(SeekFrom::End(0)).map_err(|error| failed(0, &error))?;
        Ok(Self { input, begin: 0, len, tables_left: TABLES_MAX })
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// The partition of `len` bytes at `begin`, as far as it is inside the image.
    pub(super) fn part(&mut self, begin: u64, len: u64) -> Media<'_> {
        let begin = begin.min(self.len);
        let len = len.min(self.len - begin);
        let tables_left = self.tables_left;
        Media { input: self.input, begin: self.begin + begin, len, tables_left }
    }

    /// Up to `len` bytes from the beginning: all there are, if the image is shorter.
    pub(super) fn head(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        self.read(0, self.len.min(len as u64) as usize)
    }

    /// A part of a table or directory that errors call `what`.
    pub(super) fn table(
        &mut self,
        what: &dyn fmt::Display,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        self.tables_left = self.tables_left.checked_sub(len as u64).ok_or_else(|| {
            let what = format!("more than {} MiB of directories and tables", TABLES_MAX >> 20);
            damaged(self.begin + offset, what)
        })?;
        self.data(what, offset, len)
    }

    /// A part of a file's content. The caller counts how much that is altogether.
    pub(super) fn data(
        &mut self,
        what: &dyn fmt::Display,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            let place = self.begin.saturating_add(offset);
            let what = format!(
                "{what} has {len} bytes at offset {place}, but the image ends at {}",
                self.begin + self.len
            );
            return Err(Error::new(ErrorKind::Image, what).with_hint(CUT));
        }
        self.read(offset, len)
    }

    /// The error for something damaged at `offset`.
    pub(super) fn damaged(&self, offset: u64, what: impl fmt::Display) -> Error {
        damaged(self.begin.saturating_add(offset), what)
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let place = self.begin + offset;
        let mut bytes = vec![0; len];
        self.input
            .seek(SeekFrom::Start(place))
            .and_then(|_| self.input.read_exact(&mut bytes))
            .map_err(|error| failed(place, &error))?;
        Ok(bytes)
    }
}

const CUT: &str = "the file seems to be cut short or damaged; copy it again, or make the seed anew \
                   with `bootyard seed build`";

fn damaged(offset: u64, what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Image, format!("damaged image: {what} (offset {offset})")).with_hint(CUT)
}

fn failed(offset: u64, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Read, format!("cannot read the image at offset {offset}: {error}"))
}

/// The little-endian number of 16 bits at `at`; the caller has checked the length.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The little-endian number of 32 bits at `at`; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
