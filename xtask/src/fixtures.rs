//! `cargo xtask fixtures`: small disks that are laid out as distributions lay out theirs.
//!
//! Each boots Debian's cloud kernel with an initial RAM disk that says which disk it is, and with
//! which command line, and powers the machine off. The file systems are made by their own tools, and
//! filled by the Linux kernel where no tool can do it, for which one must be root.

mod layouts;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use self::layouts::{Content, Kind, LAYOUTS, Layout, Part};
use crate::setup::{self, Need};
use crate::{cache, deb, dirs, lab, sh};

const MIB: u64 = 1 << 20;
/// What the disks are made by: a change to any of it makes others.
const RECIPE: [&str; 2] = [include_str!("fixtures.rs"), include_str!("fixtures/layouts.rs")];

/// The first process of every fixture.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
/bin/busybox echo \"FIXTURE $(/bin/busybox cat /proc/cmdline)\"
/bin/busybox poweroff -f
";

pub(crate) fn main() -> Result<()> {
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    println!("{}", build_once()?.display());
    Ok(())
}

/// The folder with the disks, each `NAME.raw`, and with the `kernel` and `initrd` that are on them;
/// made if there is none of the present recipe.
fn build_once() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    RECIPE.iter().for_each(|part| hash.update(part));
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    cache::once(&dirs::target().join("fixtures"), &name, |work| {
        ensure!(
            sh::is_root()?,
            "file systems are mounted to be filled, for which one must be root"
        );
        eprintln!("building {} disks, once", LAYOUTS.len());
        let made = work.join("made");
        fs_err::create_dir(&made)?;
        let parts = Parts::fetch(work)?;
        fs_err::copy(&parts.kernel, made.join("kernel"))?;
        fs_err::copy(&parts.initrd, made.join("initrd"))?;
        for layout in LAYOUTS {
            let disk = made.join(format!("{}.raw", layout.name));
            assemble(layout, &parts, work, &disk)
                .with_context(|| format!("the fixture `{}` could not be made", layout.name))?;
        }
        Ok(made)
    })
}

/// What is on the disks.
struct Parts {
    kernel: PathBuf,
    initrd: PathBuf,
    /// Debian's systemd-boot, and the stub of unified kernel images.
    systemd_boot: PathBuf,
    stub: PathBuf,
}

impl Parts {
    fn fetch(work: &Path) -> Result<Self> {
        let (kernel, archive) = lab::small_guest(INIT, &[], &[])?;
        let initrd = work.join("initrd");
        fs_err::write(&initrd, archive)?;
        let systemd = work.join("systemd");
        deb::unpack("systemd-boot-efi", &systemd)?;
        let efi = systemd.join("usr/lib/systemd/boot/efi");
        let (systemd_boot, stub) = (efi.join("systemd-bootx64.efi"), efi.join("linuxx64.efi.stub"));
        Ok(Self { kernel, initrd, systemd_boot, stub })
    }

    /// Puts `content` at `to`.
    fn place(&self, content: &Content, fixture: &str, to: &Path) -> Result<()> {
        let copy = |from: &Path| fs_err::copy(from, to).map(drop);
        match content {
            Content::Kernel => copy(&self.kernel)?,
            Content::Initrd => copy(&self.initrd)?,
            Content::SystemdBoot => copy(&self.systemd_boot)?,
            Content::Text(text) => fs_err::write(to, text.replace("{fixture}", fixture))?,
            Content::Uki { release, cmdline } => {
                self.unified(release, &cmdline.replace("{fixture}", fixture), to)?;
            }
        }
        Ok(())
    }

    /// A unified kernel image, as `ukify` makes it: sections one after the other behind the stub's.
    fn unified(&self, release: &str, cmdline: &str, to: &Path) -> Result<()> {
        let work = tempfile::tempdir()?;
        let text = |name: &str, text: &str| -> Result<PathBuf> {
            let path = work.path().join(name);
            fs_err::write(&path, text)?;
            Ok(path)
        };
        let mut address = 0x20_0000;
        let mut objcopy = sh::cmd("objcopy");
        for (name, path) in [
            (".osrel", text("osrel", release)?),
            (".cmdline", text("cmdline", cmdline)?),
            (".linux", self.kernel.clone()),
            (".initrd", self.initrd.clone()),
        ] {
            objcopy.arg("--add-section").arg(format!("{name}={}", path.display()));
            objcopy.arg("--change-section-vma").arg(format!("{name}={address:#x}"));
            address += fs_err::metadata(&path)?.len().next_multiple_of(MIB);
        }
        sh::run(objcopy.arg(&self.stub).arg(to))
    }
}

/// Writes a disk: its partitions one after the other from 1 MiB on.
fn assemble(layout: &Layout, parts: &Parts, work: &Path, disk: &Path) -> Result<()> {
    if layout.table == "none" {
        return file_system(&layout.parts[0], parts, layout.name, work, disk);
    }
    let (mut script, mut start) = (format!("label: {}\n", layout.table), 1);
    for part in layout.parts {
        let (number, size) = (part.number, part.mib);
        script += &format!(
            "{number}: start={start}MiB, size={size}MiB, type={}\n",
            part.kind.code(layout.table)
        );
        start += part.mib;
    }
    fs_err::File::create(disk)?.set_len((start + 1) * MIB)?;
    let mut sfdisk = sh::cmd("sfdisk").arg("--quiet").arg(disk).stdin(Stdio::piped()).spawn()?;
    sfdisk.stdin.take().context("a pipe to sfdisk")?.write_all(script.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk failed");
    let mut at = 1;
    for part in layout.parts {
        let image = work.join("part");
        file_system(part, parts, layout.name, work, &image)?;
        let mut dd = sh::cmd("dd");
        dd.args(["bs=1M", "conv=notrunc,sparse", "status=none"]).arg(format!("seek={at}"));
        sh::run(dd.arg(format!("if={}", image.display())).arg(format!("of={}", disk.display())))?;
        fs_err::remove_file(image)?;
        at += part.mib;
    }
    Ok(())
}

/// Writes a file system with its files into a new image.
fn file_system(part: &Part, parts: &Parts, fixture: &str, work: &Path, image: &Path) -> Result<()> {
    fs_err::File::create(image)?.set_len(part.mib * MIB)?;
    let Some(mut mkfs) = part.kind.mkfs(part.uuid) else { return Ok(()) };
    sh::output(mkfs.arg(image))?;
    if part.kind == Kind::Fat {
        return fill_fat(part, parts, fixture, work, image);
    }
    let point = work.join("mount");
    fs_err::create_dir_all(&point)?;
    sh::run(sh::cmd("mount").args(["-o", "loop"]).args([image, &point]))?;
    let filled = fill(part, parts, fixture, &point);
    sh::run(sh::cmd("umount").arg(&point))?;
    filled
}

fn fill(part: &Part, parts: &Parts, fixture: &str, root: &Path) -> Result<()> {
    for subvolume in part.subvolumes {
        let mut create = sh::cmd("btrfs");
        sh::output(create.args(["subvolume", "create"]).arg(root.join(subvolume)))?;
    }
    if let Some(default) = part.subvolumes.last().filter(|_| part.last_is_default) {
        let mut set = sh::cmd("btrfs");
        sh::output(set.args(["subvolume", "set-default"]).arg(root.join(default)))?;
    }
    for (path, content) in part.files {
        let path = root.join(path);
        fs_err::create_dir_all(path.parent().context("a path of a file")?)?;
        match path.to_string_lossy().split_once(" -> ") {
            Some((link, target)) => fs_err::os::unix::fs::symlink(target, link)?,
            None => parts.place(content, fixture, &path)?,
        }
    }
    Ok(())
}

fn fill_fat(part: &Part, parts: &Parts, fixture: &str, work: &Path, image: &Path) -> Result<()> {
    let tree = work.join("esp");
    let _ = fs_err::remove_dir_all(&tree);
    fs_err::create_dir(&tree)?;
    fill(part, parts, fixture, &tree)?;
    for entry in fs_err::read_dir(&tree)? {
        let mut copy = sh::cmd("mcopy");
        sh::run(copy.args(["-s", "-Q", "-i"]).args([image, &entry?.path()]).arg("::/"))?;
    }
    Ok(())
}

impl Kind {
    /// The partition's type, as sfdisk knows it.
    const fn code(self, table: &str) -> &'static str {
        match (self, table.as_bytes()) {
            (Self::Fat, b"gpt") => "uefi",
            (Self::Empty, b"gpt") => "21686148-6449-6E6F-744E-656564454649",
            _ => "L",
        }
    }

    fn mkfs(self, uuid: &str) -> Option<Command> {
        let (program, words) = match self {
            Self::Empty => return None,
            Self::Ext4 => ("mkfs.ext4", vec!["-q", "-U", uuid]),
            Self::Xfs => ("mkfs.xfs", vec!["-q", "-m", uuid]),
            Self::Btrfs => ("mkfs.btrfs", vec!["-q", "-U", uuid]),
            Self::Fat => ("mkfs.vfat", vec!["-i", uuid]),
        };
        let mut mkfs = sh::cmd(program);
        mkfs.args(words);
        Some(mkfs)
    }
}
