//! Results go to standard output, everything else to standard error: the only two functions that
//! print. Colours reach terminals only.

use std::io::{self, Write};

use crate::error::Failure;

/// How every error begins, where there is no colour.
pub(crate) const ERROR: &str = "error: ";

/// Writes a result.
pub(crate) fn result(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::AutoStream::auto(io::stdout().lock());
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}

/// Writes one JSON object as a line of the result.
pub(crate) fn json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string(value).map_err(|e| Failure::stdout(e.into()))?;
    line.push('\n');
    result(&line)
}

/// Writes a message for people. Standard error that cannot be written is nobody's to hear of.
pub(crate) fn error(text: &str) {
    let mut stderr = anstream::AutoStream::auto(io::stderr().lock());
    let _ = stderr.write_all(text.as_bytes());
}
