//! Why nothing could be booted: one error type with a stable kind.

use std::error::Error as StdError;

/// A failure, with the partition, file or line where it was found in its text.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No file system of the disk holds a boot menu that this crate reads. The text says what was
    /// looked at, partition by partition.
    NotBootable,
    /// The menu has no entry of the name that was asked for.
    NoSuchEntry,
    /// The boot menu cannot be understood; the text names file and line.
    Config,
    /// A file that the chosen entry names is not there.
    Missing,
    /// A size, count or depth beyond the limits that this crate sets itself.
    TooLarge,
    /// The disk or its file system cannot be read.
    Read,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    pub(crate) fn read(
        what: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind: ErrorKind::Read, what: what.into(), source: Some(source.into()) }
    }

    /// The same failure once more, its causes as part of its text.
    pub(crate) fn again(&self) -> Self {
        Self::new(self.kind, chain(self))
    }

    /// The kind of failure.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = StdError::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
