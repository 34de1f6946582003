//! Things that are built once and kept, such as the guest.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const LOCK: &str = "lock";

/// Gives `parent/name`, which `build` makes if it is absent: in a folder that it is given, of which
/// it names the part to keep. Nothing half-made appears under the name, several processes may ask
/// at once, and what earlier builds left in `parent` is removed when a new one succeeds.
pub(crate) fn once(
    parent: &Path,
    name: &str,
    build: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    fs_err::create_dir_all(parent)?;
    let lock = fs_err::File::create(parent.join(LOCK))?;
    lock.file().lock().with_context(|| format!("cannot lock `{}`", parent.display()))?;
    let dir = parent.join(name);
    if dir.exists() {
        return Ok(dir);
    }
    let work = tempfile::Builder::new().prefix("work-").tempdir_in(parent)?;
    let made = build(work.path())?;
    fs_err::rename(made, &dir)?;
    for entry in fs_err::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.path() != dir && entry.path() != work.path() {
            fs_err::remove_dir_all(entry.path())?;
        }
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn make(work: &Path) -> Result<PathBuf> {
        fs_err::create_dir(work.join("made"))?;
        Ok(work.join("made"))
    }

    #[test]
    fn builds_once_and_removes_what_is_old() {
        let parent = tempfile::tempdir().unwrap();
        once(parent.path(), "old", make).unwrap();
        let dir = once(parent.path(), "new", make).unwrap();
        assert_eq!(dir, parent.path().join("new"));
        assert_eq!(once(parent.path(), "new", |_| bail!("asked twice")).unwrap(), dir);
        assert_eq!(names(parent.path()), ["lock", "new"]);
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        once(parent.path(), "old", make).unwrap();
        once(parent.path(), "new", |_| bail!("broken")).unwrap_err();
        assert_eq!(names(parent.path()), ["lock", "old"]);
    }
}
