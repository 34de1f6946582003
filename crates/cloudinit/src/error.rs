//! Why a seed could not be made or read: one error type, with the input and line that is at fault.

use std::fmt;

use bootyard_spec::{Class, Explain};

/// A failure, with the input in which it was found.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    /// What was wrong, in lower case.
    what: String,
    /// The input at fault, as the caller named it: usually a path.
    input: Option<String>,
    /// The line in that input, counted from 1.
    line: Option<usize>,
    hint: Option<String>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A hostname, an instance id, a format or a data source is not one.
    Value,
    /// A text is not an SSH public key.
    SshKey,
    /// A private key was given where a public one belongs.
    PrivateKey,
    /// User-data or vendor-data that cloud-init would ignore or could not run.
    UserData,
    /// Meta-data of the user's own that is none.
    MetaData,
    /// A password or a password hash that is none.
    Password,
    /// Two inputs that say different things about the same.
    Conflict,
    /// A network configuration in a form that the data source does not read.
    NetworkConfig,
    /// A file name that the image cannot hold.
    FileName,
    /// More or larger files than the image's format or our own limits allow.
    TooLarge,
    /// A time that the image's format cannot express.
    Timestamp,
    /// An image that holds no files we can read, or is damaged.
    Image,
    /// The image cannot be read.
    Read,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), input: None, line: None, hint: None }
    }

    /// The same error, found in `input`.
    #[must_use]
    pub fn in_input(mut self, input: &str) -> Self {
        self.input = Some(input.to_owned());
        self
    }

    /// The same error, found at `line`, counted from 1.
    #[must_use]
    pub(crate) const fn at_line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    /// The same error with a remedy.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The kind of failure.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The input at fault, as the caller named it.
    pub fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    /// The line in that input, counted from 1.
    pub const fn line(&self) -> Option<usize> {
        self.line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.input, self.line) {
            (Some(input), Some(line)) => write!(f, "`{input}` line {line}: {}", self.what),
            (Some(input), None) => write!(f, "`{input}`: {}", self.what),
            (None, _) => f.write_str(&self.what),
        }
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self.kind {
            ErrorKind::Image => Class::Image,
            ErrorKind::Read => Class::Source,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}
