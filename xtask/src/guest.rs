//! `cargo xtask guest`: a Debian 12 cloud image, made from Debian's packages.
//!
//! The disk looks like the images that Debian publishes: GPT with a BIOS boot partition, an EFI
//! system partition and an ext4 root; GRUB for both kinds of firmware; systemd, sshd, cloud-init
//! and the stock cloud kernel; stored as a zlib-compressed qcow2. It is built without a loop device
//! and, where user namespaces are allowed, without root. Its identifiers are fixed; its packages
//! are today's.

mod disk;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::setup::{self, Need};
use crate::{cache, dirs, sh};

/// A built guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The disk image.
    pub(crate) qcow2: PathBuf,
    /// The image file's SHA-256, in hexadecimal digits.
    pub(crate) sha256: String,
}

/// The image's file name.
pub(crate) const FILE_NAME: &str = "debian-12.qcow2";

const SHA256_NAME: &str = "debian-12.qcow2.sha256";

/// What the guest is made by: a change to any of it makes another guest.
const RECIPE: [&str; 3] =
    [include_str!("guest.rs"), include_str!("guest/disk.rs"), include_str!("guest/tree.rs")];

pub(crate) fn main() -> Result<()> {
    setup::ensure_installed(&[Need::Boot])?;
    let guest = build_once()?;
    println!("{}", guest.qcow2.display());
    Ok(())
}

/// Finds the guest that the present recipe makes, or makes it. Several processes may ask at once.
pub(crate) fn build_once() -> Result<Guest> {
    let parent = dirs::target().join("guest");
    let dir = cache::once(&parent, &recipe_id(), |work| {
        eprintln!("building the Debian 12 guest, once; this takes a minute or two");
        build(work, &parent)
    })?;
    let sums = fs_err::read_to_string(dir.join(SHA256_NAME))?;
    let sha256 = sums.split_whitespace().next().context("the guest's checksum file is empty")?;
    Ok(Guest { qcow2: dir.join(FILE_NAME), sha256: sha256.to_owned() })
}

/// A name for the present recipe.
fn recipe_id() -> String {
    let mut hash = Sha256::new();
    RECIPE.iter().for_each(|part| hash.update(part));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Builds in `work`; gives the folder that holds the results and nothing else.
fn build(work: &Path, logs: &Path) -> Result<PathBuf> {
    let tree = tree::bootstrap(work, &logs.join("mmdebstrap.log"))?;
    let raw = disk::assemble(&tree, work, &logs.join("disk.log"))?;
    let made = work.join("made");
    fs_err::create_dir(&made)?;
    let qcow2 = made.join(FILE_NAME);
    let mut convert = sh::cmd("qemu-img");
    convert.args(["convert", "-c", "-W", "-m", "4", "-f", "raw", "-O", "qcow2"]);
    sh::run(convert.args([&raw, &qcow2]))?;
    let sums = sh::output(sh::cmd("sha256sum").arg(FILE_NAME).current_dir(&made))?;
    fs_err::write(made.join(SHA256_NAME), sums)?;
    Ok(made)
}
