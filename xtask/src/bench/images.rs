//! The disk that the benches use, and its images in every format and compression.
//!
//! It is an ext4 file system of 4 GiB with 1.4 GiB of this machine's own files in it, as an installed
//! system has them. It is made once, and so are its images.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{cache, dirs, sh};

/// How much of the disk is files, in bytes, and the disk's size.
const FILES: u64 = 1_400 << 20;
const DISK: &str = "4G";

/// The images by file name, and the commands of the shell that make them from `$RAW` as `$IMAGE`.
const IMAGES: &[(&str, &str)] = &[
    ("zlib.qcow2", "qemu-img convert -c -W -m 16 -O qcow2 $RAW $IMAGE"),
    ("zstd.qcow2", "qemu-img convert -c -W -m 16 -O qcow2 -o compression_type=zstd $RAW $IMAGE"),
    ("plain.qcow2", "qemu-img convert -O qcow2 $RAW $IMAGE"),
    ("sparse.vmdk", "qemu-img convert -O vmdk $RAW $IMAGE"),
    ("stream.vmdk", "qemu-img convert -O vmdk -o subformat=streamOptimized $RAW $IMAGE"),
    ("plain.vdi", "qemu-img convert -O vdi $RAW $IMAGE"),
    ("plain.vhdx", "qemu-img convert -O vhdx $RAW $IMAGE"),
    ("raw.xz", "xz -T2 -c $RAW > $IMAGE"),
    ("raw.gz", "pigz -c $RAW > $IMAGE"),
    ("raw.zst", "zstd -q -T2 -c $RAW > $IMAGE"),
];

/// The folder with the disk and all its images.
pub(super) fn all() -> Result<PathBuf> {
    let parent = dirs::target().join("bench/decode");
    cache::once(&parent, "images", |work| {
        let made = work.join("made");
        fs_err::create_dir(&made)?;
        let raw = made.join("raw");
        make_disk(work, &raw)?;
        for (file, make) in IMAGES {
            sh::run(&mut shell(make, &raw, &made.join(file), Path::new("")))?;
        }
        Ok(made)
    })
}

/// Fills an ext4 file system with files of this machine.
fn make_disk(work: &Path, raw: &Path) -> Result<()> {
    let tree = work.join("tree");
    let mut total = 0;
    let list =
        sh::output(sh::cmd("find").args(["/usr", "-xdev", "-type", "f", "-printf", "%s %p\\n"]))?;
    let mut files: Vec<(&str, u64)> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(size, path)| Some((path, size.parse().ok()?)))
        .collect();
    // In the order of their paths every folder would be whole; a system's disk has some of each.
    files.sort_by_key(|(path, _)| path.bytes().rev().collect::<Vec<_>>());
    for (path, size) in files {
        if total + size > FILES {
            continue;
        }
        total += size;
        let copy = tree.join(path.trim_start_matches('/'));
        fs_err::create_dir_all(copy.parent().context("a file lies in a folder")?)?;
        fs_err::copy(path, copy)?;
    }
    ensure!(total > FILES / 2, "`/usr` holds too little to fill the disk: {total} bytes");
    let mut mke2fs = sh::cmd("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(raw).arg(DISK);
    sh::run(&mut mke2fs)?;
    fs_err::remove_dir_all(tree)?;
    Ok(())
}

/// A line for the shell, with the names that it uses.
pub(super) fn shell(line: &str, raw: &Path, image: &Path, out: &Path) -> Command {
    let mut command = sh::cmd("sh");
    command.args(["-c", line]).env("RAW", raw).env("IMAGE", image).env("OUT", out);
    command
}
