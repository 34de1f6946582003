//! Runs the system's tools for what has no other interface: loop devices and LVM.
#![expect(clippy::disallowed_methods, reason = "losetup and LVM are programs")]

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Error, ErrorKind};

/// Runs a program to its end, and returns what it printed. `path` is what it works on.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    path: &Path,
) -> Result<String, Error> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let what = format!("`{program}` is not installed");
            let package = if program == "losetup" { "mount" } else { "lvm2" };
            Error::new(ErrorKind::Unsupported, path, what)
                .with_hint(format!("install it: `apt install {package}`"))
        }
        _ => Error::io(error, path, format!("cannot run `{program}`")),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("`{program}` failed for `{}`: {}", path.display(), said.trim());
    let hint = "it needs the rights of root";
    let error = Error::new(ErrorKind::Io, path, what);
    Err(if rustix::process::geteuid().is_root() { error } else { error.with_hint(hint) })
}
