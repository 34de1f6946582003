//! What apt knows: the mirrors of this machine, and packages fetched without being installed.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::sh;

/// Where this machine's apt gets Debian from. Mirrors are never named in this repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirrors {
    /// The archive.
    pub(crate) archive: String,
    /// The security archive.
    pub(crate) security: String,
}

impl Mirrors {
    /// Asks apt.
    pub(crate) fn of_this_machine() -> Result<Self> {
        update_if_empty()?;
        let format = "$(LABEL) $(REPO_URI)";
        let targets = sh::output(sh::cmd("apt-get").args(["indextargets", "--format", format]))?;
        Self::parse(&targets).context("apt's sources name no Debian archive and security archive")
    }

    /// Reads lines of label and address.
    fn parse(targets: &str) -> Option<Self> {
        let of = |label| {
            let mut pairs = targets.lines().filter_map(|line| line.split_once(' '));
            let (_, uri) = pairs.find(|(l, _)| *l == label)?;
            Some(uri.trim_end_matches('/').to_owned())
        };
        Some(Self { archive: of("Debian")?, security: of("Debian-Security")? })
    }
}

/// Fetches apt's lists where none are, as in a fresh container.
pub(crate) fn update_if_empty() -> Result<()> {
    if !sh::output(sh::cmd("apt-cache").arg("pkgnames"))?.contains("busybox-static") {
        sh::run(sh::cmd("apt-get").args(["--quiet", "update"]))?;
    }
    Ok(())
}

/// The package that a meta package stands for, such as the current kernel.
pub(crate) fn dependency(meta: &str, prefix: &str) -> Result<String> {
    let depends = sh::output(sh::cmd("apt-cache").args(["depends", "--important", meta]))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .with_context(|| format!("`{meta}` depends on no package `{prefix}…`"))
}

/// Unpacks a package into `dir`, without installing it.
pub(crate) fn unpack(package: &str, dir: &Path) -> Result<()> {
    let download = tempfile::tempdir()?;
    let mut apt = sh::cmd("apt-get");
    // apt's own user cannot enter our folder.
    apt.args(["--quiet", "--option", "APT::Sandbox::User=root", "download", package]);
    sh::run(apt.current_dir(&download))?;
    let files: Vec<_> = fs_err::read_dir(download.path())?.collect::<Result<_, _>>()?;
    ensure!(files.len() == 1, "`apt-get download {package}` left {} files", files.len());
    sh::run(sh::cmd("dpkg-deb").arg("--extract").args([&files[0].path(), dir]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_chosen_by_label() {
        let targets = "Debian http://a.example/debian/\nDebian http://b.example/debian/\n\
                       Other http://c.example/\nDebian-Security http://d.example/security/\n";
        let expected = Mirrors {
            archive: "http://a.example/debian".to_owned(),
            security: "http://d.example/security".to_owned(),
        };
        assert_eq!(Mirrors::parse(targets), Some(expected));
        assert_eq!(Mirrors::parse("Ubuntu http://a.example/ubuntu/\n"), None);
    }
}
