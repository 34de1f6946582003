//! Tests that need something which this machine may lack: skipped by a developer, failed by CI.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test reads the environment and tells the reader of its log why it did not run"
)]

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where Debian puts servers and disk tools, which a plain user's `PATH` may leave out.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Leaves the test with `skipped: REASON`, or fails it where `BOOTYARD_NO_SKIP=1` (as in CI).
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::announce(format_args!($($reason)+));
        return;
    }};
}

/// Whether the program `name` is installed. If it is not, says `skipped: no NAME`, or fails the test
/// where `BOOTYARD_NO_SKIP=1`: `if !require_tool("nginx") { return; }`.
pub fn require_tool(name: &str) -> bool {
    let found = find_tool(name).is_some();
    if !found {
        announce(format_args!("no {name}"));
    }
    found
}

/// What [`skip!`](crate::skip!) does before it returns from the test.
///
/// # Panics
///
/// Where `BOOTYARD_NO_SKIP=1`.
#[doc(hidden)]
pub fn announce(reason: fmt::Arguments<'_>) {
    assert!(
        env::var_os("BOOTYARD_NO_SKIP").is_none_or(|value| value != "1"),
        "cannot run here ({reason}), and BOOTYARD_NO_SKIP=1 forbids to skip"
    );
    eprintln!("skipped: {reason}");
}

/// The path of an installed program.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SBIN.iter().map(|dir| Path::new(dir).to_path_buf()))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_installed_and_nothing_else() {
        assert!(require_tool("sh"));
        assert_eq!(find_tool("no-such-tool-of-bootyard"), None);
    }
}
