//! Which files a crate compiles: the `mod` lines, followed from its root.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// Adds a crate's root file and all files that its `mod` lines lead to.
pub(super) fn follow(root: &Path, reached: &mut Vec<PathBuf>) -> Result<()> {
    visit(root, true, reached)
}

fn visit(file: &Path, is_root: bool, reached: &mut Vec<PathBuf>) -> Result<()> {
    if !file.is_file() || reached.iter().any(|known| known == file) {
        return Ok(());
    }
    reached.push(file.to_owned());
    for module in modules(&fs_err::read_to_string(file)?) {
        for candidate in candidates(file, is_root, &module) {
            visit(&candidate, false, reached)?;
        }
    }
    Ok(())
}

/// A `mod name;` line.
#[derive(Debug, PartialEq, Eq)]
struct Module<'a> {
    name: &'a str,
    /// What a `#[path]` above it says.
    path: Option<&'a str>,
}

fn modules(text: &str) -> Vec<Module<'_>> {
    let mut modules = Vec::new();
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(value) = line.strip_prefix("#[path = \"") {
            path = value.strip_suffix("\"]");
            continue;
        }
        let name = line.strip_suffix(';').and_then(|line| {
            let (before, name) = line.rsplit_once("mod ")?;
            let is_plain = before.is_empty() || before.starts_with("pub");
            (is_plain && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
        });
        if let Some(name) = name {
            modules.push(Module { name, path: path.take() });
        } else if !line.starts_with("#[") {
            path = None;
        }
    }
    modules
}

/// Where a module's file may lie.
fn candidates(file: &Path, is_root: bool, module: &Module<'_>) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    if let Some(path) = module.path {
        return vec![folder.join(path)];
    }
    let is_mod = file.file_name().is_some_and(|name| name == "mod.rs");
    let folder = if is_root || is_mod { folder.to_owned() } else { file.with_extension("") };
    let name = module.name;
    vec![folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_line_leads_on_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("lib.rs", "mod a;\npub(crate) mod b;\n// mod no;\n#[path = \"odd.rs\"]\nmod c;\n"),
            ("a.rs", "#[cfg(test)]\nmod tests;\nmod inline {}\n"),
            ("a/tests.rs", ""),
            ("b/mod.rs", "pub mod d;\n"),
            ("b/d.rs", ""),
            ("odd.rs", ""),
            ("c.rs", "not reached"),
            ("no.rs", "not reached"),
            ("inline.rs", "not reached"),
        ];
        for (name, text) in files {
            let path = dir.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let mut reached = Vec::new();
        follow(&dir.path().join("lib.rs"), &mut reached).unwrap();
        for (name, text) in files {
            assert_eq!(reached.contains(&dir.path().join(name)), text != "not reached", "{name}");
        }
    }
}
