//! What holds a machine whose guest has taken over a device.
//!
//! ```text
//!   open disks, /dev/kvm, sockets        as whoever started the machine
//!   enter()     ─► a user of its own, no new privileges, no core dumps
//!               ─► Landlock: no file but those that are named, no TCP unless the network needs it
//!               ─► the widest list of system calls, for the threads that start others
//!   confined()  ─► image formats and the boot loader read the guest's bytes under a list of their own
//!   spawn()     ─► every processor and device runs under the list of its [`Role`]
//! ```
//!
//! A system call that is on no list ends the process with a line that names it. Asking for a file is
//! only refused, as by a file system, since libraries ask for files that they can do without.
//!
//! Filters only ever add up, and a thread inherits them from the one that starts it. A processor's
//! list is narrow, and it is a processor that sees the driver start a device; so one thread under the
//! widest list does nothing but start others, and [`spawn`] asks it.

mod calls;
mod filter;
mod lockdown;
mod threads;

pub use calls::Role;
pub use lockdown::Files;
pub(crate) use threads::confined_beside;
pub use threads::{confined, spawn};

use crate::error::Error;

/// What the sandbox leaves open.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Files and folders that are opened later.
    pub files: Files,
    /// The guest's network is made of this process's own TCP sockets.
    pub tcp: bool,
    /// The exit code of a process that is ended for a system call.
    pub exit_code: u8,
}

/// Restricts this process for good. Whatever it needs and [`Options`] does not name is open by now.
///
/// Returns what could not be had, in lines for people: a kernel may be without Landlock, and a container
/// without another user. That system calls cannot be filtered is an error.
///
/// # Errors
///
/// Also where the process has started threads, which would stay as they are.
pub fn enter(options: &Options) -> Result<Vec<String>, Error> {
    lockdown::require_one_thread()?;
    let mut missing = Vec::new();
    missing.extend(lockdown::drop_user()?);
    lockdown::forbid_dumps()?;
    missing.extend(lockdown::restrict_files(options)?);
    filter::report_violations(options.exit_code)?;
    filter::install(Role::Main)?;
    threads::start()?;
    Ok(missing)
}

/// A step of the sandbox failed.
fn failed(step: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |source| Error::Sandbox { step, source }
}

#[cfg(test)]
mod tests;
