//! Ends the process in the middle of what it does, as a kill would, for tests of what is left then.
//! Release builds have none of it.

#[cfg(debug_assertions)]
use std::sync::OnceLock;

#[cfg(debug_assertions)]
static POINT: OnceLock<String> = OnceLock::new();

/// From now on the process ends when it comes to `point`. For tests.
pub fn set(point: String) {
    #[cfg(debug_assertions)]
    let _ = POINT.set(point);
    #[cfg(not(debug_assertions))]
    drop(point);
}

/// A place where the process may end: nothing is dropped, flushed or told.
pub(crate) fn at(point: &str) {
    #[cfg(debug_assertions)]
    if POINT.get().is_some_and(|wanted| wanted == point) {
        let pid = rustix::process::getpid();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}
