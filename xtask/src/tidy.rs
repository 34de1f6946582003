//! `cargo xtask tidy`: the rules of CONTRIBUTING.md that a program can check.
//!
//! Every rule looks at the repository and gives all its findings; nothing is changed.

mod arrows;
mod reach;
mod text;

use std::path::Path;

use anyhow::{Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::{dirs, sh};

/// How many packages the lock file may hold. Each is code that we ship and follow; raise it in the
/// commit that has a reason.
const LOCKED_PACKAGES_MAX: usize = 430;

/// A longer shell script belongs into a Rust program.
const SHELL_LINES_MAX: usize = 50;

pub(crate) fn main() -> Result<()> {
    let findings = check(&dirs::root())?;
    if findings.is_empty() {
        eprintln!("tidy");
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("{} findings", findings.len());
}

/// Every finding in the repository at `root`, as `PLACE: what`.
fn check(root: &Path) -> Result<Vec<String>> {
    let files = sh::output(
        sh::cmd("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root),
    )?;
    // A file may be deleted and still be in the index.
    let files: Vec<&str> = files.lines().filter(|file| root.join(file).is_file()).collect();
    let metadata = MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let mut findings = arrows::findings(&arrows::dependencies(&metadata));
    findings.extend(unreached(root, &metadata, &files)?);
    findings.extend(undescribed_fixtures(&files));
    findings.extend(text_findings(root, &files)?);
    findings.extend(locked_packages(&fs_err::read_to_string(root.join("Cargo.lock"))?));
    Ok(findings)
}

fn text_findings(root: &Path, files: &[&str]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files {
        // Files that are not text are nobody's prose.
        let Ok(text) = String::from_utf8(fs_err::read(root.join(file))?) else { continue };
        if text::is_ours(file) {
            findings.extend(text::banned(file, &text));
        }
        if file.ends_with(".rs") {
            findings.extend(text::rust_findings(file, &text));
        }
        let is_shell =
            text.starts_with("#!") && text.lines().next().is_some_and(|l| l.ends_with("sh"));
        if is_shell && text.lines().count() > SHELL_LINES_MAX {
            findings.push(format!("{file}: a shell script of more than {SHELL_LINES_MAX} lines"));
        }
    }
    Ok(findings)
}

/// Rust files that no crate compiles.
fn unreached(root: &Path, metadata: &Metadata, files: &[&str]) -> Result<Vec<String>> {
    let mut reached = Vec::new();
    for target in metadata.packages.iter().flat_map(|package| &package.targets) {
        reach::follow(target.src_path.as_std_path(), &mut reached)?;
    }
    Ok(files
        .iter()
        .filter(|file| file.ends_with(".rs") && !file.starts_with("tests/fuzz/"))
        .filter(|file| !reached.contains(&root.join(file)))
        .map(|file| format!("{file}: no `mod` leads here"))
        .collect())
}

/// Fixtures without a README in their folder or one above it.
fn undescribed_fixtures(files: &[&str]) -> Vec<String> {
    let is_described = |file: &str| {
        let folders = Path::new(file).ancestors().skip(1);
        folders
            .take_while(|folder| *folder != Path::new("testdata"))
            .any(|folder| files.iter().any(|f| Path::new(f) == folder.join("README.md")))
    };
    files
        .iter()
        .filter(|file| file.starts_with("testdata/") && **file != "testdata/README.md")
        .filter(|file| !is_described(file))
        .map(|file| format!("{file}: no README.md in its folder says how it was made"))
        .collect()
}

fn locked_packages(lock: &str) -> Option<String> {
    let count = lock.lines().filter(|line| *line == "[[package]]").count();
    (count > LOCKED_PACKAGES_MAX)
        .then(|| format!("Cargo.lock: {count} packages; the limit is {LOCKED_PACKAGES_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        assert_eq!(check(&dirs::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_fixture_needs_a_readme_beside_or_above_it() {
        let files = [
            "testdata/README.md",
            "testdata/iso/README.md",
            "testdata/iso/case/seed.iso",
            "testdata/qcow2/a.qcow2",
            "testdata/loose",
            "crates/spec/src/lib.rs",
        ];
        assert_eq!(
            undescribed_fixtures(&files),
            [
                "testdata/qcow2/a.qcow2: no README.md in its folder says how it was made",
                "testdata/loose: no README.md in its folder says how it was made",
            ]
        );
    }

    #[test]
    fn too_many_packages_are_counted() {
        assert_eq!(locked_packages(&"[[package]]\n".repeat(LOCKED_PACKAGES_MAX)), None);
        assert!(locked_packages(&"[[package]]\n".repeat(LOCKED_PACKAGES_MAX + 1)).is_some());
    }
}
