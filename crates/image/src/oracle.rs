//! `qemu-img` makes images and says what is in them; the corpus has those that others made.
#![expect(clippy::disallowed_methods, reason = "qemu-io is an oracle of these tests")]

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bootyard_testkit::{corpus_entries, qemu_img, require_tool, run, sha256_file, sparse_image};
use fs_err::File;
use tempfile::TempDir;

use crate::disk::Pieces;
use crate::raw::FileAt;
use crate::support::{SIZE_MAX, decode, push};
use crate::{
    Body, Disk, Error, Format, Info, Piece, Sink, WriteAt, conformance, inspect, open, zero,
};

/// Formats of one module under test, as `qemu-img` names them, and a folder for their files.
pub(crate) struct Oracle {
    pub(crate) format: Format,
    pub(crate) driver: &'static str,
    /// Whether images are also decoded as streams.
    pub(crate) streams: bool,
    pub(crate) dir: TempDir,
}

fn file_at(path: &Path) -> FileAt {
    FileAt::new(File::open(path).unwrap().into()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Oracle {
    pub(crate) fn new(format: Format, driver: &'static str, streams: bool) -> Self {
        Self { format, driver, streams, dir: tempfile::tempdir().unwrap() }
    }

    /// An image with holes, zeros and data of a disk of `len` bytes, made with `options`.
    pub(crate) fn convert(&self, len: u64, options: &[&str]) -> PathBuf {
        let raw = self.dir.path().join("source");
        sparse_image(&raw, len, len ^ 7);
        // What begins with a sector of text is not taken for a disk.
        let file = File::options().write(true).open(&raw).unwrap();
        file.file().write_all_at(b"\xeb\x63\x90\0", 0).unwrap();
        let path = self.dir.path().join(format!("{len}-{}", options.join("-").replace('/', "_")));
        let fixed = ["convert", "-f", "raw", "-O", self.driver];
        qemu_img(fixed.iter().chain(options).copied().chain([text(&raw), text(&path)]));
        path
    }

    /// An image that was created empty and then changed.
    pub(crate) fn create(&self, size: &str, options: &[&str], commands: &[&str]) -> PathBuf {
        let path = self.dir.path().join(format!("made-{size}-{}", options.join("-")));
        let fixed = ["create", "-q", "-f", self.driver];
        qemu_img(fixed.iter().chain(options).copied().chain([text(&path), size]));
        self.change(&path, commands);
        path
    }

    pub(crate) fn change(&self, path: &Path, commands: &[&str]) {
        let mut command = Command::new("qemu-io");
        command.args(["-f", self.driver]);
        for part in commands {
            command.args(["-c", part]);
        }
        run(command.arg(path));
    }

    /// Reads the image at `path` both ways and compares it with what `qemu-img` makes of it.
    /// Returns its description.
    pub(crate) fn check(&self, path: &Path) -> Info {
        let raw = path.with_extension("expected");
        qemu_img(["convert", "-f", self.driver, "-O", "raw", text(path), text(&raw)]);
        let expected = fs_err::read(&raw).unwrap();
        let disk = open(file_at(path)).unwrap();
        conformance::check(&*disk, expected.len() as u64);
        assert!(conformance::read_all(&*disk) == expected, "{} by random access", path.display());
        if self.streams {
            let (streamed, summary) = decode(&fs_err::read(path).unwrap(), &[50_001]).unwrap();
            assert!(streamed == expected, "{} as a stream", path.display());
            assert_eq!(summary.format, self.format);
            assert_eq!(summary.spilled_bytes, 0, "{}", path.display());
        }
        let info = inspect(&file_at(path)).unwrap();
        assert_eq!(info.format, self.format);
        assert_eq!(info.refused, None);
        assert_eq!(info.virtual_size, Some(expected.len() as u64));
        assert!(info.allocated.is_some_and(|bytes| bytes <= expected.len() as u64));
        info
    }

    /// Compares the disk in `copy` with what the manifest says of the image `file`. A hash of a
    /// large disk takes too long, but `qemu-img` passes over what is not there; not in a VHDX.
    fn judge(&self, copy: &Path, file: &[u8], digest: &str) {
        let len = fs_err::metadata(copy).unwrap().len();
        if len <= SIZE_MAX {
            assert_eq!(sha256_file(copy), digest);
        } else if (self.driver != "vhdx" || len <= 1 << 30) && require_tool("qemu-img") {
            let image = self.dir.path().join("image");
            fs_err::write(&image, file).unwrap();
            if self.driver == "vhdx" {
                // Replays the log.
                qemu_img(["check", "-q", "-r", "all", "-f", self.driver, text(&image)]);
            }
            qemu_img(["compare", "-q", "-f", "raw", "-F", self.driver, text(copy), text(&image)]);
        }
    }

    /// Reads what the corpus has of the format, which also knows it as `name`, both ways. What
    /// the manifest has no digest for must be refused. Returns how many there are.
    pub(crate) fn check_corpus(&self, name: &str) -> usize {
        let entries = corpus_entries();
        let wrapped = [name.to_owned(), format!("gz({name})"), format!("bz2({name})")];
        let of_format = entries.iter().filter(|entry| wrapped.contains(&entry.format));
        let digest = |text: &Option<String>| text.clone().filter(|text| text.len() == 64);
        of_format
            .map(|entry| self.check_sample(&entry.path, digest(&entry.sha256_raw).as_deref()))
            .count()
    }

    fn check_sample(&self, path: &Path, digest: Option<&str>) {
        let name = path.display();
        let Some(file) = unwrapped(path) else { return };
        let disk = match open(file.clone()) {
            Ok(disk) => disk,
            Err(error) => {
                assert_eq!(digest, None, "{name}: {error}");
                if self.streams {
                    let target = Arc::new(Target::new(&self.dir.path().join("refused")));
                    assert!(push(&file, &[50_001], target).is_err(), "{name} as a stream");
                }
                return;
            }
        };
        let copy = self.dir.path().join("copy");
        copy_disk(&*disk, &copy).unwrap();
        self.judge(&copy, &file, digest.unwrap_or_else(|| panic!("{name} was read")));
        if disk.virtual_size() <= SIZE_MAX {
            conformance::check(&*disk, disk.virtual_size());
        }
        assert_eq!(inspect(&file).unwrap().virtual_size, Some(disk.virtual_size()), "{name}");
        if self.streams {
            let streamed = self.dir.path().join("streamed");
            let target = Target::new(&streamed);
            target.0.file().set_len(disk.virtual_size()).unwrap();
            let summary = push(&file, &[50_001], Arc::new(target)).unwrap();
            assert_eq!(
                (summary.format, summary.virtual_size),
                (self.format, disk.virtual_size()),
                "{name}"
            );
            same(&copy, &streamed);
        }
    }
}

/// The bytes of an image that may be in a gzip or bzip2 file; `None` for large ones, which take
/// too long.
pub(crate) fn unwrapped(path: &Path) -> Option<Vec<u8>> {
    const LEN_MAX: u64 = 128 << 20;
    let file = File::open(path).unwrap();
    let mut bytes = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => {
            flate2::read::MultiGzDecoder::new(file).take(LEN_MAX + 1).read_to_end(&mut bytes)
        }
        Some("bz2") => {
            bzip2::read::MultiBzDecoder::new(file).take(LEN_MAX + 1).read_to_end(&mut bytes)
        }
        _ => File::open(path).unwrap().read_to_end(&mut bytes),
    }
    .unwrap();
    (bytes.len() as u64 <= LEN_MAX).then_some(bytes)
}

/// Compares two raw files.
fn same(one: &Path, other: &Path) {
    if require_tool("qemu-img") {
        qemu_img(["compare", "-q", "-f", "raw", "-F", "raw", text(one), text(other)]);
    }
}

/// Stores the data of `disk` in a sparse file.
fn copy_disk(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let target = Target::new(path);
    target.0.file().set_len(disk.virtual_size()).unwrap();
    let mut buf = vec![0; 64 << 10];
    for piece in Pieces::new(disk) {
        let (offset, extent) = piece?;
        for at in (0..extent.len).step_by(buf.len()).take_while(|_| !extent.zero) {
            let part = &mut buf[..(extent.len - at).min(64 << 10) as usize];
            disk.read_at(part, offset + at)?;
            if !zero::is_zero(part) {
                target.0.write_all_at(part, offset + at).unwrap();
            }
        }
    }
    Ok(())
}

/// A raw file as a sink.
struct Target(FileAt);

impl Target {
    fn new(path: &Path) -> Self {
        Self(FileAt::new(File::create(path).unwrap().into()).unwrap())
    }
}

impl Sink for Target {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        match piece.body {
            Body::Data(data) => self.0.write_all_at(data, piece.offset),
            Body::Zero(_) => Ok(()),
        }
    }
}
