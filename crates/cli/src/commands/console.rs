//! `bootyard console`: a machine's serial port on this terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bootyard_spec::Class;
use bootyard_supervise::control::{Keys, RawConsole};
use clap::Args;

use super::control::{connect, failed};
use crate::error::Failure;
use crate::terminal::RawTerminal;
use crate::{output, signals};

/// How long a guest that has answered is silent, and how often that is waited for.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_TRIES: u32 = 10;

/// Attach this terminal to the serial port of a machine.
///
/// Every key goes to the guest, but for Ctrl-], which detaches. Several can be attached at once; all see
/// the output, beginning with the last of it from before, and what each types goes to the guest. What is no
/// terminal is typed to its end; then this waits until the guest has been silent for a second (10 seconds at
/// most), and detaches.
#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// The machine's control socket
    pub(crate) socket: PathBuf,
    /// Begin with what the guest writes from now on
    #[arg(long)]
    pub(crate) no_scrollback: bool,
}

pub(crate) fn run(args: &ConsoleArgs) -> Result<ExitCode, Failure> {
    let client = connect(&args.socket)?;
    let name = client.about().machine.clone();
    let console =
        client.console(!args.no_scrollback).map_err(|error| failed(&args.socket, &error))?;
    let failed = |error| Failure::new(Class::Other, error);
    let stopped = Arc::new(AtomicBool::new(false));
    let (hang_up, told) = (console.keys().map_err(failed)?, Arc::clone(&stopped));
    // Whatever ends this command ends the connection, and with it what follows; then the terminal is given
    // back.
    signals::once(move || {
        told.store(true, Ordering::SeqCst);
        hang_up.hang_up();
    })?;
    let shown = Arc::new(AtomicU64::new(0));
    let terminal = terminal(&console, &shown).map_err(failed)?;
    if terminal.is_some() {
        output::error(&format!("{name}: attached; Ctrl-] detaches\r\n"));
    }
    let copied = copy(console, &shown);
    drop(terminal);
    if stopped.load(Ordering::SeqCst) {
        return Err(Failure::new(Class::Interrupted, "interrupted"));
    }
    if io::stderr().is_terminal() {
        output::error(&format!("\n{name}: detached\n"));
    }
    copied.map(|()| ExitCode::SUCCESS).map_err(Failure::stdout)
}

/// Takes the terminal; what is no terminal is typed to its end. `shown` are the bytes that the guest has written.
fn terminal(console: &RawConsole, shown: &Arc<AtomicU64>) -> io::Result<Option<RawTerminal>> {
    let (mut keys, hang_up) = (console.keys()?, console.keys()?);
    let mut more = console.keys()?;
    let terminal = RawTerminal::enter(
        move || hang_up.hang_up(),
        move |typed| {
            // A connection that is gone ends the command at its other end.
            let _ = keys.type_in(typed);
        },
    );
    if terminal.is_none() {
        let shown = Arc::clone(shown);
        thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            pump(&mut more);
            await_silence(&shown);
            more.hang_up();
        })?;
    }
    Ok(terminal)
}

fn pump(keys: &mut Keys) {
    let mut bytes = [0; 4096];
    while let Ok(len @ 1..) = io::stdin().read(&mut bytes) {
        if keys.type_in(&bytes[..len]).is_err() {
            return;
        }
    }
}

/// Waits until the guest has answered, as far as can be told.
fn await_silence(shown: &AtomicU64) {
    let mut before = shown.load(Ordering::SeqCst);
    for _ in 0..SILENCE_TRIES {
        thread::sleep(SILENCE);
        let now = shown.load(Ordering::SeqCst);
        if std::mem::replace(&mut before, now) == now {
            return;
        }
    }
}

/// Shows what the guest writes, and counts it, until the connection ends. Only standard output can fail.
fn copy(mut console: RawConsole, shown: &AtomicU64) -> io::Result<()> {
    let mut bytes = [0; 4096];
    let mut stdout = io::stdout().lock();
    while let Ok(len @ 1..) = console.read(&mut bytes) {
        stdout.write_all(&bytes[..len])?;
        stdout.flush()?;
        shown.fetch_add(len as u64, Ordering::SeqCst);
    }
    Ok(())
}
