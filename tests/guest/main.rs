//! Real guests on both engines. `cargo xtask test` runs these with `BOOTYARD_XTASK` set to its own
//! program, which knows how to build the guest and how to start the lab.
#![expect(clippy::disallowed_methods, reason = "guests are run by another program")]

mod alpine;
mod devices;
mod ends;
mod fixtures;
mod machine;
mod main_job;
mod mounts;
mod seeds;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use bootyard_testkit::run;

/// Runs `xtask` with these words to its end; what it says goes to the test's log. Gives what it
/// printed as its result, or `None` where the test is not run by `cargo xtask test`.
fn xtask(arguments: &[&str]) -> Option<String> {
    let program = std::env::var_os("BOOTYARD_XTASK")?;
    Some(run(Command::new(program).args(arguments).stderr(Stdio::inherit())))
}

/// The Debian guest as a qcow2, built if need be.
fn guest() -> Option<PathBuf> {
    Some(xtask(&["guest"])?.trim().into())
}

/// Leaves a test that `cargo xtask test` did not start.
macro_rules! need {
    ($result:expr) => {
        match $result {
            Some(value) => value,
            None => skip!("no xtask: run `cargo xtask test`"),
        }
    };
}
pub(crate) use need;
