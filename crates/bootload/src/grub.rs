//! GRUB's boot menu: a script in GRUB's own language, of which the subset is understood that
//! `grub-mkconfig` and image builders write.
//!
//! [`script`] turns text into commands, [`eval`] runs them, [`env`] reads the environment block.
//! All of it is a pure function of the text and of what [`Files`] answers.

mod condition;
mod env;
pub(crate) mod eval;
mod script;
#[cfg(test)]
mod tests;

use crate::{Error, ErrorKind};

/// What a script may ask about the disk.
pub(crate) trait Files {
    /// The device (`hd0,gpt3`) of the first file system that matches.
    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, Error>;

    /// The size of a file or directory of a device, or nothing if there is none of that name.
    fn size(&self, device: &str, path: &str) -> Result<Option<u64>, Error>;

    /// The bytes of a file of a device, or nothing if there is none of that name.
    fn read(&self, device: &str, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error>;

    /// The names in a directory of a device; none if there is no such directory.
    fn names(&self, device: &str, path: &str) -> Result<Vec<String>, Error>;
}

/// By what `search` looks for a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SearchBy {
    Uuid,
    Label,
    File,
}

/// A file of a device, as scripts name it: `(hd0,gpt1)/boot/vmlinuz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) device: String,
    pub(crate) path: String,
}

/// A place in a script, for messages. A file that has no lines is meant as a whole by number 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) file: std::rc::Rc<str>,
    pub(crate) number: u32,
}

impl Line {
    /// An error of this line.
    pub(crate) fn error(&self, what: impl std::fmt::Display) -> Error {
        self.error_of(ErrorKind::Config, what)
    }

    pub(crate) fn error_of(&self, kind: ErrorKind, what: impl std::fmt::Display) -> Error {
        let Self { file, number } = self;
        Error::new(
            kind,
            match number {
                0 => format!("`{file}`: {what}"),
                _ => format!("`{file}` line {number}: {what}"),
            },
        )
    }
}
