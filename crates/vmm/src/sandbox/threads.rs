//! Threads that begin under the list of their role.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread::{Builder, JoinHandle};

use super::calls::Role;
use super::{failed, filter};
use crate::error::Error;

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts others, once the process has entered the sandbox. It is the process's own
/// and lives as long: what a filter restricts is the process's, too.
static STARTER: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts the thread that starts others.
pub(super) fn start() -> Result<(), Error> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let body = move || jobs.into_iter().for_each(|job| job());
    let started = Builder::new().name("starter".to_owned()).spawn(body);
    started.map_err(|error| failed("starting a thread")(error.into()))?;
    STARTER.set(sender).map_err(|_| failed("entering it")("it was entered before".into()))
}

/// Starts a thread called `name` that runs `body` under the list of `role`. Outside the sandbox it is
/// an ordinary thread.
pub fn spawn<T: Send + 'static>(
    role: Role,
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let Some(starter) = STARTER.get() else {
        return Builder::new().name(name).spawn(move || listed(role, body));
    };
    let (sender, started) = mpsc::sync_channel(1);
    let job = move || {
        let thread = Builder::new().name(name).spawn(move || listed(role, body));
        // Whoever asked waits for it.
        let _ = sender.send(thread);
    };
    let gone = || io::Error::other("the thread that starts others has ended");
    starter.send(Box::new(job)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

/// Runs `body` under the list of `role`, and waits for it. A panic goes on here.
///
/// # Errors
///
/// Where the host has no thread for it.
pub fn confined<T: Send>(role: Role, body: impl FnOnce() -> T + Send) -> io::Result<T> {
    confined_beside(role, body, || ()).map(|(done, ())| done)
}

/// Like [`confined`], and does something else here until it waits.
pub(crate) fn confined_beside<T: Send, U>(
    role: Role,
    body: impl FnOnce() -> T + Send,
    here: impl FnOnce() -> U,
) -> io::Result<(T, U)> {
    std::thread::scope(|scope| {
        let name = format!("{role:?}").to_lowercase();
        let thread = Builder::new().name(name).spawn_scoped(scope, move || listed(role, body))?;
        let done_here = here();
        let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((done, done_here))
    })
}

/// In the sandbox, and in tests, so that every test of a device is one of its list.
fn listed<T>(role: Role, body: impl FnOnce() -> T) -> T {
    if cfg!(test) || STARTER.get().is_some() {
        filter::install(role).expect("a filter was installed before, and this one is tested");
    }
    body()
}
