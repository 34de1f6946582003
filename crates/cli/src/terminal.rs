//! The user's terminal as the guest's: every key goes to the guest, and Ctrl-] ends the run.

use std::io::{self, IsTerminal, PipeWriter, Read, Write};
use std::process::Stdio;
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-], telnet's old escape: no shell and no editor uses it.
const ESCAPE: u8 = 0x1d;

/// Standard input in raw mode, until this is dropped.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Takes the terminal; `None` if standard input is none.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }

    /// An input for a machine that gets every key but the escape, at which `escaped` is called.
    pub(crate) fn keys(&self, escaped: impl FnOnce() + Send + 'static) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        thread::Builder::new().name("keys".to_owned()).spawn(move || pump(writer, escaped))?;
        Ok(reader.into())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Ends with the machine, whose end of the pipe closes, or at the escape.
fn pump(mut machine: PipeWriter, escaped: impl FnOnce()) {
    let mut key = [0];
    while io::stdin().lock().read(&mut key).is_ok_and(|len| len == 1) {
        if key[0] == ESCAPE {
            escaped();
            return;
        }
        if machine.write_all(&key).is_err() {
            return;
        }
    }
}
