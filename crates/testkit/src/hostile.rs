//! Hostile and damaged files, made by the generator that stands beside the repository.
#![expect(clippy::disallowed_methods, reason = "the generator is another program")]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{require_tool, run, workspace_root};

/// What a reader of untrusted files should do with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Refuse it, with a message that names the cause.
    Reject,
    /// Read it or refuse it, within the limits of time and memory.
    Bound,
    /// Read it: it is odd but valid.
    Accept,
}

/// One file of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostileFile {
    /// Its name, with its group: `qcow2/l2-past-eof.qcow2`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What should become of it.
    pub expect: Expect,
    /// What is wrong with it.
    pub reason: String,
}

/// Some of the files, in a directory that goes away with this.
#[derive(Debug)]
pub struct HostileFiles {
    /// In the generator's order.
    pub files: Vec<HostileFile>,
    _dir: TempDir,
}

/// Makes those files whose names match the glob `only`, as `vmdk/*`. `None` where the generator is
/// missing: the test says so and ends, as with [`require_tool`].
///
/// # Panics
///
/// If the generator fails, or makes nothing.
pub fn hostile_files(only: &str) -> Option<HostileFiles> {
    let generator = workspace_root().parent()?.join("shared/tools/make_hostile_images.py");
    if !generator.is_file() {
        crate::announce(format_args!("no make_hostile_images.py"));
        return None;
    }
    if !(require_tool("python3") && require_tool("qemu-img")) {
        return None;
    }
    let dir = crate::temp_dir();
    let table = run(Command::new("python3").arg(generator).arg(dir.path()).args(["--only", only]));
    let files = parse(dir.path(), &table);
    assert!(!files.is_empty(), "no hostile file matches {only}");
    Some(HostileFiles { files, _dir: dir })
}

/// The generator's table: file, expect, bytes, reason.
fn parse(dir: &Path, table: &str) -> Vec<HostileFile> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, expect, _, reason, ..] = fields[..] else { panic!("{line} is no row") };
        HostileFile {
            name: name.to_owned(),
            path: dir.join(name),
            expect: match expect {
                "reject" => Expect::Reject,
                "bound" => Expect::Bound,
                "accept" => Expect::Accept,
                _ => panic!("{expect} is nothing to expect"),
            },
            reason: reason.to_owned(),
        }
    };
    table.lines().skip(1).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_what_matches() {
        let Some(made) = hostile_files("raw/*") else { return };
        assert!(made.files.iter().all(|f| f.name.starts_with("raw/") && f.path.exists()));
        assert!(made.files.iter().any(|f| f.expect == Expect::Reject && !f.reason.is_empty()));
    }
}
