//! The user's terminal as the guest's: every key goes to the guest, but for Ctrl-].

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// Ctrl-], telnet's old escape: no shell and no editor uses it.
const ESCAPE: u8 = 0x1d;

/// DEC's mode 7, which SeaBIOS and GRUB turn off and leave so.
const LINE_WRAP_ON: &[u8] = b"\x1b[?7h";

/// How the terminal was before it was taken, for whoever ends this process.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode, until this is dropped.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Takes the terminal; `None` if standard input is none, or a shell has this command in the background
    /// (`&`), where touching the terminal would stop it. Keys go to `typed`, and at the escape `escaped` is
    /// called.
    pub(crate) fn enter(
        escaped: impl FnOnce() + Send + 'static,
        typed: impl FnMut(&[u8]) + Send + 'static,
    ) -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin).is_ok_and(|group| group != getpgrp()) {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let taken = Self(());
        let pump = move || pump(typed, escaped);
        thread::Builder::new().name("keys".to_owned()).spawn(pump).ok()?;
        Some(taken)
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
fn pump(mut typed: impl FnMut(&[u8]), escaped: impl FnOnce()) {
    let stdin = io::stdin();
    let mut key = [0];
    loop {
        // Whoever shares the terminal may have made it non-blocking.
        let _ = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None);
        match rustix::io::read(&stdin, &mut key) {
            Ok(1) if key[0] == ESCAPE => break,
            Ok(1) => typed(&key),
            Err(Errno::INTR | Errno::AGAIN) => {}
            _ => return,
        }
    }
    escaped();
}
