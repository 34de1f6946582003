//! A nameless temporary file, which its last handle takes with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bootyard_image::{ReadAt, WriteAt};
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

use crate::Error;
use crate::fsops;

/// Room for bytes whose place on the disk is not known yet.
#[derive(Debug)]
pub struct SpillFile {
    file: File,
    folder: PathBuf,
}

impl SpillFile {
    /// Makes an empty one in `folder`.
    pub fn create_in(folder: &Path) -> Result<Self, Error> {
        let file = nameless(folder)
            .map_err(|error| Error::io(error, &folder.join("spill"), "cannot spill to disk"))?;
        Ok(Self { file, folder: folder.to_owned() })
    }

    fn failed(&self, error: io::Error, what: &str) -> io::Error {
        let kind = error.kind();
        io::Error::new(kind, Error::io(error, &self.folder.join("spill"), what))
    }
}

fn nameless(folder: &Path) -> io::Result<File> {
    let mut options = fs_err::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let result = options.custom_flags(OFlags::TMPFILE.bits() as i32).open(folder);
    match result {
        Ok(file) => return Ok(file.into_file()),
        // NFS, overlays of old kernels and FUSE have no O_TMPFILE (open(2)).
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported) => {}
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
        Err(error) => return Err(error),
    }
    let path = folder.join(format!(".spill.{}.bootyard-part", std::process::id()));
    let file = options.custom_flags(0).create_new(true).open(&path)?.into_file();
    fs_err::remove_file(&path)?;
    Ok(file)
}

impl ReadAt for SpillFile {
    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| self.failed(error, "cannot read what was spilled"))
    }
}

impl WriteAt for SpillFile {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file
            .write_all_at(data, offset)
            .map_err(|error| self.failed(error, "cannot spill to disk"))
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        fsops::zero(&self.file, offset, len)
            .map_err(|error| self.failed(error, "cannot spill to disk"))
    }

    /// Nobody finds a nameless file after a power cut: there is nothing to make durable.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
