//! The user's terminal as the guest's: every key goes to the guest, and Ctrl-] ends the run.

use std::io::{self, IsTerminal, PipeWriter, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-], telnet's old escape: no shell and no editor uses it.
const ESCAPE: u8 = 0x1d;

/// DEC's mode 7, which SeaBIOS and GRUB turn off and leave so.
const LINE_WRAP_ON: &[u8] = b"\x1b[?7h";

/// How the terminal was before it was taken, for whoever ends this process.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode, until this is dropped.
pub(crate) struct RawTerminal {
    /// The machine that runs now.
    machine: Arc<Mutex<Option<PipeWriter>>>,
}

impl RawTerminal {
    /// Takes the terminal; `None` if standard input is none. At the escape `escaped` is called.
    pub(crate) fn enter(escaped: impl FnOnce() + Send + 'static) -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let machine = Arc::new(Mutex::new(None));
        let keys = Arc::clone(&machine);
        let pump = move || pump(&keys, escaped);
        thread::Builder::new().name("keys".to_owned()).spawn(pump).ok()?;
        Some(Self { machine })
    }

    /// The input of the machine that starts now; the one before gets no more keys.
    pub(crate) fn keys(&self) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(reader.into())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if it was taken.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        if io::stdout().is_terminal() {
            let _ = rustix::io::write(io::stdout(), LINE_WRAP_ON);
        }
    }
}

/// Passes keys on until the terminal is gone, or the escape is typed.
fn pump(machine: &Mutex<Option<PipeWriter>>, escaped: impl FnOnce()) {
    let stdin = io::stdin();
    let mut key = [0];
    loop {
        // Whoever shares the terminal may have made it non-blocking.
        let _ = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None);
        match rustix::io::read(&stdin, &mut key) {
            Ok(1) if key[0] == ESCAPE => break,
            Ok(1) => {
                let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
                // Between two runs there is nobody to type to.
                let _ = machine.as_mut().map(|machine| machine.write_all(&key));
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            _ => return,
        }
    }
    escaped();
}
