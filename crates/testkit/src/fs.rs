//! File systems and block devices of the test's own, on loop devices.
#![expect(clippy::disallowed_methods, reason = "mkfs, mount and losetup are other programs")]

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;
use tempfile::TempDir;

use crate::skip::announce;
use crate::{require_tool, run, temp_dir};

/// A loop device over a file, detached when dropped.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// A device over `file`, whose sectors have 512 or 4096 bytes; `None`, and the test is to be
    /// skipped, where the machine gives none.
    pub fn attach(file: &Path, sector: u32) -> Option<Self> {
        let sector = sector.to_string();
        let words = ["--find", "--show", "--sector-size", &sector];
        // Between finding a free device and taking it, another test may take it.
        for _ in 0..5 {
            let output = Command::new("losetup").args(words).arg(file).output().ok()?;
            if output.status.success() {
                return Some(Self(String::from_utf8_lossy(&output.stdout).trim().into()));
            }
        }
        announce(format_args!("no loop device with sectors of {sector} bytes"));
        None
    }

    /// The device's name.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run(Command::new("losetup").arg("--detach").arg(&self.0));
    }
}

/// A file system of its own, unmounted when dropped.
#[derive(Debug)]
pub struct Mount(TempDir);

impl Mount {
    /// Makes and mounts one: `ext4`, `xfs` or `btrfs`, of `mib` MiB (XFS wants at least 300). `None`,
    /// and the test is to be skipped, where the machine cannot.
    ///
    /// # Panics
    ///
    /// If the file system cannot be made.
    pub fn new(kind: &str, mib: u64) -> Option<Self> {
        let mkfs = format!("mkfs.{kind}");
        if ![&mkfs, "mount", "umount"].into_iter().all(require_tool) {
            return None;
        }
        let folder = temp_dir();
        let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
        fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("an image file");
        fs::create_dir(&point).expect("a folder to mount on");
        run(Command::new(mkfs).arg("-q").arg(&image));
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            announce(format_args!("cannot mount {kind} from a loop device"));
            return None;
        }
        Some(Self(folder))
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("mount")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.path()));
    }
}
