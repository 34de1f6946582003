//! Running other programs as oracles, and comparing files.
#![expect(clippy::disallowed_methods, reason = "the oracles of the tests are other programs")]

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use fs_err::File;
use sha2::{Digest, Sha256};

/// Runs a program to its end and returns its standard output.
///
/// # Panics
///
/// If it cannot start or fails; the message holds the command and both of its outputs.
pub fn run(command: &mut Command) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("cannot run {command:?}: {error}"),
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed ({})\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Runs `qemu-img` with these arguments, as [`run`] does.
///
/// # Panics
///
/// If it fails. Ask [`require_tool`](crate::require_tool) first.
pub fn qemu_img<I>(arguments: I) -> String
where
    I: IntoIterator<Item: AsRef<OsStr>>,
{
    run(Command::new("qemu-img").args(arguments))
}

/// The SHA-256 of a file, in lower-case hexadecimal digits.
///
/// # Panics
///
/// If the file cannot be read.
pub fn sha256_file(path: impl AsRef<Path>) -> String {
    let mut file = File::open(path.as_ref()).expect("a file to hash");
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).expect("a readable file") {
            0 => return hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            len => hasher.update(&block[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_sha256sum_does() {
        let dir = crate::temp_dir();
        let path = dir.path().join("data");
        fs_err::write(&path, crate::pseudo_random(3 << 20, 1)).unwrap();
        let line = run(Command::new("sha256sum").arg(&path));
        assert_eq!(line.split_whitespace().next(), Some(sha256_file(&path).as_str()));
    }

    #[test]
    fn a_failed_tool_shows_what_it_said() {
        let failing = || run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]));
        let panic = std::panic::catch_unwind(failing).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("no such thing"));
    }
}
