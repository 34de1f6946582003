//! How a failure reaches the user: one `error:`, its causes, a `hint:`, and an exit code.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::Path;

use bootyard_spec::{ByteSize, Class, Explain, exit_code};
use bootyard_supervise::control::wire::{ErrorBody, ErrorCode};

use crate::output::plain;

/// Any command's failure, ready to be shown.
#[derive(Debug)]
pub(crate) struct Failure {
    class: Class,
    error: Box<dyn StdError + Send + Sync>,
    hint: Option<String>,
    /// The output's reader is gone: nothing to say, and nobody to say it to.
    broken_pipe: bool,
}

impl Failure {
    /// A failure of `class` without a remedy of its own.
    pub(crate) fn new(class: Class, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { class, error: error.into(), hint: None, broken_pipe: false }
    }

    /// The same failure with a sentence that helps.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether it is of this class.
    pub(crate) fn is(&self, class: Class) -> bool {
        self.class == class
    }

    /// The same failure in another class: here it means something else than where it was found.
    pub(crate) fn with_class(self, class: Class) -> Self {
        Self { class, ..self }
    }

    /// The same failure, in what the user calls `name`: where it was found, that was not known.
    pub(crate) fn about(self, name: &str) -> Self {
        let error = Box::new(About { name: name.to_owned(), error: self.error });
        Self { error, ..self }
    }

    /// The failure to write a result to standard output.
    pub(crate) fn stdout(error: io::Error) -> Self {
        let broken_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { broken_pipe, ..Self::new(Class::Other, error) }
    }

    /// The exit code. A reader that closed the pipe has what it wanted.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.broken_pipe { 0 } else { exit_code(self.class) }
    }

    /// The message, its causes and the hint, as lines for standard error.
    pub(crate) fn render(&self) -> String {
        if self.broken_pipe {
            return String::new();
        }
        let [red, bold, reset] = ["\x1b[1;31m", "\x1b[1;36m", "\x1b[0m"];
        let mut text = format!("{red}error{reset}: {}\n", plain(&self.message()));
        for cause in self.causes() {
            let _ = writeln!(text, "  caused by: {}", plain(&cause));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{bold}hint{reset}: {}", plain(hint));
        }
        text
    }

    /// The causes' own messages, outermost first. A cause that only repeats what encloses it (an
    /// I/O error that wraps another) is left out.
    pub(crate) fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut said = self.error.to_string();
        let mut next = self.error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.contains(&text) {
                causes.push(text.clone());
            }
            said = text;
            next = cause.source();
        }
        causes
    }

    /// The message alone.
    pub(crate) fn message(&self) -> String {
        self.error.to_string()
    }

    /// The same for whoever asked over a control socket, in one line.
    pub(crate) fn into_body(self) -> ErrorBody {
        let said: Vec<String> = std::iter::once(self.message()).chain(self.causes()).collect();
        let hint = self.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        ErrorBody::new(ErrorCode::Failed, format!("{}{hint}", said.join(": ")))
    }

    /// The remedy, if there is one.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// An error with the name of what it is about.
#[derive(Debug, thiserror::Error)]
#[error("`{name}`: {error}")]
struct About {
    name: String,
    error: Box<dyn StdError + Send + Sync>,
}

impl<E: Explain + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let (class, hint) = (error.class(), error.hint());
        Self { class, error: Box::new(error), hint, broken_pipe: false }
    }
}

/// The most bytes that are read of one input: as many as a whole seed image has at most.
const INPUT_MAX: u64 = 240 << 20;

/// Reads a file that the user named; `-` is standard input.
pub(crate) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    if path == Path::new("-") {
        return bounded(io::stdin().lock(), path, INPUT_MAX);
    }
    bounded(fs_err::File::open(path).map_err(failed)?, path, INPUT_MAX)
}

fn bounded(input: impl Read, path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::new(Class::Usage, error))?;
    if bytes.len() as u64 > limit {
        let limit = ByteSize::from_bytes(limit);
        let what = format!("`{}` is too large: expected at most {limit}", path.display());
        return Err(Failure::new(Class::Usage, what));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_without_end_is_refused() {
        let failure = bounded(io::repeat(1), Path::new("-"), 1024).unwrap_err();
        assert_eq!(failure.message(), "`-` is too large: expected at most 1Ki");
        assert_eq!(bounded(io::repeat(1).take(1024), Path::new("-"), 1024).unwrap(), [1; 1024]);
    }
}
