//! Decodes an image of any format to a sparse raw file: `decode IMAGE RAW`.
//!
//! Shows both ways into the crate. What can be opened is read at random access, on all cores; what
//! cannot, because containers are round it, is pushed through as a stream. `cargo xtask bench decode`
//! measures this program.

use std::error::Error;
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bootyard_image::raw::FileAt;
use bootyard_image::stream::{Decoder, Head, Options, Storage};
use bootyard_image::{Body, ErrorKind, Piece, Sink, copy, open};
use bytes::BytesMut;
use fs_err::File;

/// Stores data where it belongs, in a new file, which has holes elsewhere.
struct Sparse(File);

impl Sink for Sparse {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        match piece.body {
            Body::Data(data) => self.0.file().write_all_at(data, piece.offset),
            Body::Zero(_) => Ok(()),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args_os().skip(1);
    let (Some(image), Some(raw)) = (paths.next(), paths.next()) else {
        return Err("usage: decode IMAGE RAW".into());
    };
    let workers = std::thread::available_parallelism()?;
    let sink = Arc::new(Sparse(File::create_new(raw)?));
    let size = match open(FileAt::new(File::open(&image)?.into())?) {
        Ok(disk) => {
            copy(&*disk, &*sink, workers)?;
            disk.virtual_size()
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            stream(File::open(&image)?, sink.clone(), workers)?
        }
        Err(error) => return Err(error.into()),
    };
    sink.0.set_len(size)?;
    Ok(())
}

/// Pushes the file through, and returns the disk's size.
fn stream(mut file: File, sink: Arc<Sparse>, workers: NonZeroUsize) -> Result<u64, Box<dyn Error>> {
    let mut buffer = BytesMut::new();
    let mut next = || {
        buffer.resize(1 << 20, 0);
        let len = file.read(&mut buffer)?;
        Ok::<_, io::Error>(buffer.split_to(len).freeze())
    };
    let mut head = Head::new();
    loop {
        let chunk = next()?;
        if chunk.is_empty() || head.push(chunk)?.is_some() {
            break;
        }
    }
    let spill = || Ok(Box::new(FileAt::new(tempfile::tempfile()?)?) as Box<dyn Storage>);
    let options = Options {
        workers,
        spill: Box::new(spill),
        spill_limit: 64 << 30,
        checkpoints: false,
        is_raw: false,
    };
    let mut decoder = Decoder::new(head, sink, options)?;
    loop {
        let chunk = next()?;
        if chunk.is_empty() {
            return Ok(decoder.finish()?.virtual_size);
        }
        decoder.push(chunk)?;
    }
}
