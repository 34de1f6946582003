//! Results go to standard output, everything else to standard error: the only functions that
//! print. Colours reach terminals only.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use crate::error::Failure;

/// How every error begins, where there is no colour.
pub(crate) const ERROR: &str = "error: ";

/// Writes a result.
pub(crate) fn result(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let text = if stdout.is_terminal() { plain(text) } else { text.into() };
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}

/// Writes a file's content: byte for byte, but for what would act on a terminal.
pub(crate) fn bytes(content: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        drop(stdout);
        return result(&String::from_utf8_lossy(content));
    }
    stdout.write_all(content).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}

/// Writes a result with colours in it, which only a terminal gets. What it was made of has to have
/// gone through [`plain`].
pub(crate) fn styled_result(text: &str) -> Result<(), Failure> {
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

/// The text with what would act on a terminal made visible: control characters other than line
/// feeds, and those that turn the direction of writing. File names, URLs, images and servers put
/// such things into messages.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return text.into();
    }
    let shown = |c: char| if acts(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect::<String>().into()
}

/// The same for what has to stay on its line.
pub(crate) fn plain_line(text: &str) -> String {
    plain(text).replace('\n', "\\n")
}

/// The same for the lines of files, in which tabs are common.
pub(crate) fn plain_lines(text: &str) -> String {
    text.split('\t').map(plain).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_the_terminal() {
        assert_eq!(plain("ä\n\u{1b}[2J\r\u{202e}x"), "ä\n\\u{1b}[2J\\r\\u{202e}x");
        assert!(matches!(plain("plain"), Cow::Borrowed(_)));
        assert_eq!(plain_line("a\u{1b}[31m\nlabel  b\r"), "a\\u{1b}[31m\\nlabel  b\\r");
        assert_eq!(plain_lines("\ta\u{1b}\n\tb\r\n"), "\ta\\u{1b}\n\tb\\r\n");
    }
}
