//! What runs a guest: a child process behind one trait.
//!
//! | engine | process | boots | the guest's end is known by |
//! |---|---|---|---|
//! | [`KvmEngine`] | this program's `machine` subcommand | the kernel that `bootload` finds | exit code |
//! | [`QemuEngine`] | `qemu-system-x86_64` | SeaBIOS and the disk's own boot loader | QMP events |

mod child;
mod hardware;
mod kvm;
mod network;
mod qemu;
mod qemu_remote;
mod qmp;
mod services;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bootyard_spec::{Class, GuestEnd};

use rustix::fs::{FileType, Mode, OFlags, fcntl_setfl, fstat, open};

pub use kvm::KvmEngine;
pub use network::check_networks_for_qemu;
pub use qemu::QemuEngine;

use crate::control::Remote;
use crate::{Cancel, Error, LaunchPlan};

/// Starts machines.
pub trait Engine {
    /// Its name, as `--engine` takes it.
    fn name(&self) -> &'static str;

    /// Starts one machine whose first serial port is `serial`.
    fn spawn(&self, plan: &LaunchPlan, serial: Serial) -> Result<Box<dyn Running>, Error>;
}

/// A machine that was started.
pub trait Running {
    /// What reaches into it.
    fn remote(&self) -> Option<Arc<dyn Remote>> {
        None
    }

    /// The id of its process.
    fn pid(&self) -> u32;

    /// Waits until the machine has ended, `cancel` is on or `timeout` has passed. Once it has
    /// ended, it answers so each time.
    fn wait(&mut self, cancel: &Cancel, timeout: Option<Duration>) -> Result<Woken, Error>;

    /// Ends the machine, as pulling the guest's plug would: its process is asked to, stores what it was
    /// given for the disks, and is killed if that takes long. Its end is then waited for with
    /// [`Running::join`].
    fn kill(&mut self) -> Result<(), Error>;

    /// Waits for the end of a machine, however long it takes.
    fn join(&mut self) -> Result<Ended, Error>;
}

/// Both directions of a machine's first serial port.
pub struct Serial {
    /// What the guest reads. Not a terminal: machines are process groups of their own, which are
    /// stopped when they read one. And nothing that others read too: QEMU makes it non-blocking.
    pub input: Stdio,
    /// Where goes what the guest writes.
    pub output: Box<dyn Write + Send>,
}

impl Serial {
    /// This process's own standard input, unless that is a terminal, and output.
    pub fn inherit() -> Self {
        let stdin = io::stdin();
        let input = match reopened(&stdin) {
            _ if stdin.is_terminal() => Stdio::null(),
            Some(pipe) => pipe.into(),
            None => Stdio::inherit(),
        };
        Self { input, output: Box::new(io::stdout()) }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("input", &self.input).finish_non_exhaustive()
    }
}

/// The same pipe with flags of its own. `None` for everything else: a file's position would be
/// another one, and a file does not block.
fn reopened(pipe: &(impl AsFd + AsRawFd)) -> Option<OwnedFd> {
    let mode = fstat(pipe).ok()?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::Fifo {
        return None;
    }
    // Non-blocking, because opening waits for a writer, and the last one may be gone.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let reopened = open(path, flags, Mode::empty()).ok()?;
    fcntl_setfl(&reopened, OFlags::empty()).ok()?;
    Some(reopened)
}

/// Why a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Woken {
    /// The machine ended.
    Ended(Ended),
    /// The caller's [`Cancel`] is on.
    Cancelled,
    /// The time is over.
    TimedOut,
}

/// How a machine's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What that means for the guest.
    pub end: GuestEnd,
    /// Why, if the engine failed.
    pub failure: Option<Failure>,
    /// What else there is to say: why the guest crashed, the first error of a disk.
    pub note: Option<String>,
}

/// Why an engine failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The class of the cause.
    pub class: Class,
    /// How the process ended: "exit status: 1", "signal: 9 (SIGKILL)".
    pub status: String,
    /// The last lines that it wrote to its standard error.
    pub stderr: String,
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::fcntl_getfl;

    use super::*;

    #[test]
    fn a_reopened_pipe_shares_what_is_in_it_but_no_flags() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"key").unwrap();
        drop(writer);
        let own = reopened(&reader).unwrap();
        assert!(!fcntl_getfl(&own).unwrap().contains(OFlags::NONBLOCK));
        fcntl_setfl(&own, OFlags::NONBLOCK).unwrap();
        assert!(!fcntl_getfl(&reader).unwrap().contains(OFlags::NONBLOCK));
        let mut read = String::new();
        io::PipeReader::from(own).read_to_string(&mut read).unwrap();
        assert_eq!(read, "key");
        assert!(reopened(&tempfile::tempfile().unwrap()).is_none());
    }
}
