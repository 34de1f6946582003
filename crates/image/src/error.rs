//! Why an image could not be read or written: one error type with a stable kind for every format.

use std::fmt;
use std::io;

use crate::sniff::printable;

/// A failure, with the place in the file where it was found.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    /// What was wrong, in lower case: "L1 table ends at 9000000, beyond the end of the file".
    what: String,
    /// Where in the image file the fault is, in bytes.
    offset: Option<u64>,
    /// That file is one that was unpacked.
    unpacked: bool,
    source: Option<io::Error>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are not a disk image at all: a web page, an archive, an empty file.
    NotAnImage,
    /// A field contradicts the format's specification or the file.
    Corrupt,
    /// The file ends before the image does.
    Truncated,
    /// The image needs another file: a backing file or an external data file.
    NeedsOtherFile,
    /// The guest's bytes are encrypted.
    Encrypted,
    /// A feature or format that this version knows by name but does not read.
    Unsupported,
    /// A size or count beyond the limits that this crate sets itself.
    TooLarge,
    /// The caller named or gave something that is not the image's: a snapshot, a backing disk.
    Mismatch,
    /// The caller asked for bytes that the disk does not have.
    OutOfRange,
    /// Reading the image file failed.
    Read,
    /// Storing the disk failed.
    Write,
}

impl Error {
    /// An error of `kind`; `what` says in lower case what is wrong.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), offset: None, unpacked: false, source: None }
    }

    /// The same error, found at `offset` of the image file.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The same error, found in a file that came out of a container: its offset is in there.
    pub(crate) const fn of_unpacked(mut self) -> Self {
        self.unpacked = true;
        self
    }

    /// The failure to read the image file at `offset`. An early end of the file is
    /// [`ErrorKind::Truncated`].
    pub fn read(error: io::Error, offset: u64) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            _ => ErrorKind::Read,
        };
        let what = "reading the image failed".to_owned();
        Self { kind, what, offset: Some(offset), unpacked: false, source: Some(error) }
    }

    /// The failure to store the guest's bytes. If an error of this type is all that `error` holds,
    /// it is returned as it is.
    pub fn write(error: io::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        let what = "storing the disk failed".to_owned();
        Self { kind: ErrorKind::Write, what, offset: None, unpacked: false, source: Some(error) }
    }

    /// The same error, found not in the image but in the file `name` that belongs to it.
    pub(crate) fn within(mut self, name: &str) -> Self {
        self.what = format!("in `{}`: {}", printable(name.as_bytes()), self.what);
        self
    }

    /// The kind of failure.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Where in the image file the fault is, in bytes, if it has a place. If the image is in a
    /// container and the fault is the image's own, the place is in the unpacked image.
    pub const fn offset(&self) -> Option<u64> {
        self.offset
    }
}

/// A field at `at` of the file contradicts the format or the file.
pub(crate) fn corrupt(what: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Corrupt, what).at(at)
}

/// A size or count at `at` of the file is beyond a limit.
pub(crate) fn too_large(what: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::TooLarge, what).at(at)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.offset {
            Some(offset) if self.unpacked => {
                write!(f, " (at offset {offset:#x} of the unpacked image)")
            }
            Some(offset) => write!(f, " (at offset {offset:#x})"),
            None => Ok(()),
        }
    }
}
