//! Imports by the real binary from real servers: what lands equals what `qemu-img` makes of the
//! same image, and what fails leaves nothing behind.
#![expect(clippy::disallowed_methods, reason = "tools and file systems are prepared by programs")]

mod access;
mod cache;
mod corpus;
mod export;
mod faults;
mod formats;
mod importer;
mod joined;
mod memory;
mod metrics;
mod registry;
mod resume;
mod s3;
mod targets;
mod upload;

use std::path::{Path, PathBuf};

use bootyard_testkit::{Cli, qemu_img, sparse_image};

/// A raw image with data and holes, and qcow2 images of it in a folder to serve.
struct Images {
    folder: tempfile::TempDir,
}

impl Images {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        sparse_image(folder.path().join("disk.raw"), 24 << 20, 7);
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes `name` from the raw image with these options of `qemu-img convert`.
    fn convert(&self, name: &str, options: &[&str]) -> PathBuf {
        let [raw, made] = [self.path("disk.raw"), self.path(name)];
        let paths = [raw.display().to_string(), made.display().to_string()];
        let words = ["convert", "-f", "raw", "-O", "qcow2"];
        let paths = [paths[0].as_str(), paths[1].as_str()];
        qemu_img([&words[..], options, &paths].concat());
        made
    }
}

/// Nothing stands under the volume's name, and no half-written file beside it.
#[track_caller]
fn assert_nothing_left(cli: &Cli) {
    let mut left = Vec::new();
    collect(&cli.store(), &mut left);
    assert!(left.is_empty(), "{left:?}");
}

/// Nothing stands under the volume's name, but what the next attempt goes on with may be hidden.
#[track_caller]
fn assert_nothing_visible(cli: &Cli) {
    let mut left = Vec::new();
    collect(&cli.store(), &mut left);
    let hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
    assert!(left.iter().all(hidden), "{left:?}");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.path() {
            path if path.is_dir() => collect(&path, files),
            // What the store knows, which is tested elsewhere.
            path if path.to_string_lossy().contains("bootyard.db") => {}
            path => files.push(path),
        }
    }
}
