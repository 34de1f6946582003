//! What runs a guest: a child process behind one trait.
//!
//! | engine | process | boots | the guest's end is known by |
//! |---|---|---|---|
//! | [`KvmEngine`] | this program's `machine` subcommand | the kernel that `bootload` finds | exit code |
//! | [`QemuEngine`] | `qemu-system-x86_64` | SeaBIOS and the disk's own boot loader | QMP events |

mod child;
mod kvm;
mod qemu;
mod qmp;

use std::process::Stdio;
use std::time::Duration;

use bootyard_spec::{Class, GuestEnd};

pub use kvm::KvmEngine;
pub use qemu::QemuEngine;

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
    /// The id of its process.
    fn pid(&self) -> u32;

    /// Waits until the machine has ended, `cancel` is on or `timeout` has passed. Once it has
    /// ended, it answers so each time.
    fn wait(&mut self, cancel: &Cancel, timeout: Option<Duration>) -> Result<Woken, Error>;

    /// Kills the machine's process, as pulling the plug would. Its end is then waited for with
    /// [`Running::join`].
    fn kill(&mut self) -> Result<(), Error>;

    /// Waits for the end of a machine, however long it takes.
    fn join(&mut self) -> Result<Ended, Error>;
}

/// Both directions of a machine's first serial port.
#[derive(Debug)]
pub struct Serial {
    /// What the guest reads.
    pub input: Stdio,
    /// Where goes what the guest writes.
    pub output: Stdio,
}

impl Serial {
    /// This process's own standard input and output.
    pub fn inherit() -> Self {
        Self { input: Stdio::inherit(), output: Stdio::inherit() }
    }
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
