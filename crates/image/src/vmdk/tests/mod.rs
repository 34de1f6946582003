//! Tests of reading: descriptors and headers that are refused, `qemu-img` as the judge, streams
//! built by hand, damaged files.

mod built;
mod damaged;
mod descriptor;
mod header;
mod oracle;
mod stream;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use fs_err::File;

use crate::raw::FileAt;
use crate::{Directory, OpenOptions, ReadAt, hostile};

/// The files of a folder.
#[derive(Debug)]
struct Folder(PathBuf);

impl Directory for Folder {
    fn open(&self, name: &str) -> io::Result<Box<dyn ReadAt>> {
        assert!(!name.contains('/') && name != ".." && name != ".", "{name} is no plain name");
        Ok(Box::new(FileAt::new(File::open(self.0.join(name))?.into())?))
    }
}

fn with_folder(path: impl Into<PathBuf>) -> OpenOptions {
    OpenOptions { extents: Some(Arc::new(Folder(path.into()))), ..OpenOptions::default() }
}

#[test]
fn hostile_files_meet_their_makers_expectation() {
    hostile::check("vmdk/*", &[]);
}
