//! Local files and block devices.

use std::fs::TryLockError;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fs_err::os::unix::fs::FileExt;
use rustix::fs::Advice;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::error::Progress;
use crate::{Error, Start, Validator};

/// The bytes of one read: large enough that the calls cost nothing beside the copying.
const BLOCK: u64 = 1 << 20;

/// How many blocks are read ahead of who takes them.
const AHEAD: usize = 2;

/// How often, and after what pause, a lock is asked for.
const LOOKS_MAX: u32 = 4;
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    name: String,
    file: Arc<fs_err::File>,
    /// Where the object begins in the file.
    base: u64,
    len: u64,
    validator: Option<Validator>,
    received: u64,
    /// The blocks as a thread reads them; started by the first call of `next`.
    blocks: Option<mpsc::Receiver<io::Result<Bytes>>>,
}

impl File {
    pub(crate) async fn open_at(path: &Path, start: &Start) -> Result<Self, Error> {
        Self::open_part(path, 0..u64::MAX, start).await
    }

    /// Opens a part of a file as if it were one by itself.
    pub(crate) async fn open_part(
        path: &Path,
        part: Range<u64>,
        start: &Start,
    ) -> Result<Self, Error> {
        let (path, start) = (path.to_owned(), start.clone());
        blocking(move || {
            let name = path.display().to_string();
            let (mut file, len) = open(&path)?;
            let metadata = file.metadata().map_err(|error| Error::file(&path, error))?;
            let validator = Validator::of_file(&metadata);
            let (base, len) = (part.start, part.end.min(len).saturating_sub(part.start));
            let changed = start.validator.is_some() && start.validator != validator;
            if changed || start.at > len {
                return Err(Error::changed(&name, start.validator.as_ref(), validator.as_ref()));
            }
            let received = start.at;
            let seek = file.seek(SeekFrom::Start(base + received));
            seek.map_err(|error| Error::file(&path, error))?;
            let file = Arc::new(file);
            Ok(Self { path, name, file, base, len, validator, received, blocks: None })
        })
        .await
    }

    pub(crate) fn validator(&self) -> Option<&Validator> {
        self.validator.as_ref()
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let blocks =
            self.blocks.get_or_insert_with(|| read_ahead(&self.file, self.received..self.len));
        match blocks.recv().await {
            Some(Ok(block)) => {
                self.received += block.len() as u64;
                Ok(Some(block))
            }
            Some(Err(error)) => Err(Error::file(&self.path, error)),
            None if self.received < self.len => {
                let progress = Progress { received: self.received, len: Some(self.len) };
                Err(Error::ended_early().within(&self.name, progress))
            }
            None => Ok(None),
        }
    }

    pub(crate) async fn read_range(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let file = Arc::clone(&self.file);
        let (path, base) = (self.path.clone(), self.base);
        blocking(move || {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            match file.read_exact_at(&mut bytes, base + range.start) {
                Ok(()) => Ok(bytes.into()),
                Err(error) => Err(Error::file(&path, error)),
            }
        })
        .await
    }
}

/// Opens what can be read as a disk and measures it. The kind is asked for first, because to open
/// a pipe would wait for its writer.
pub(crate) fn open(path: &Path) -> Result<(fs_err::File, u64), Error> {
    let fail = |error| Error::file(path, error);
    let kind = fs_err::metadata(path).map_err(fail)?.file_type();
    let found = if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_char_device() {
        Some("a character device")
    } else {
        None
    };
    if let Some(found) = found {
        return Err(Error::not_a_file(path, found));
    }
    let mut file = fs_err::File::open(path).map_err(fail)?;
    if is_locked(file.file()) {
        return Err(Error::in_use(path));
    }
    // A block device has no length in its metadata.
    let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
    Ok((file, len))
}

/// Whether somebody has the file for himself, as a machine has the disk that it writes to. If nobody
/// has, then nobody gets it until it is closed here. File systems without locks have no holders.
fn is_locked(file: &std::fs::File) -> bool {
    let refused = || matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    // Some only look whether the lock is free.
    (0..LOOKS_MAX).all(|look| {
        if look > 0 {
            std::thread::sleep(LOOK);
        }
        refused()
    })
}

/// Reads `part`, at whose start the file stands, block by block on a thread of its own.
fn read_ahead(file: &Arc<fs_err::File>, part: Range<u64>) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let file = Arc::clone(file);
    spawn_blocking(move || {
        // Only advice: a file system that does not take it reads a little slower.
        let _ = rustix::fs::fadvise(file.file(), 0, None, Advice::Sequential);
        let mut left = part.end - part.start;
        while left > 0 {
            let block = read_block(&file, left.min(BLOCK));
            let read = block.as_ref().map_or(0, |block| block.len() as u64);
            if matches!(&block, Ok(block) if block.is_empty()) {
                // An early end, which the other side sees as the channel's end.
                return;
            }
            if sender.blocking_send(block).is_err() || read == 0 {
                return;
            }
            left -= read;
        }
    });
    receiver
}

/// The next `size` bytes, fewer only at the end of the file.
fn read_block(file: &fs_err::File, size: u64) -> io::Result<Bytes> {
    let mut block = Vec::with_capacity(size as usize);
    let mut reader = file;
    Read::by_ref(&mut reader).take(size).read_to_end(&mut block)?;
    Ok(block.into())
}

/// Runs what may block on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.expect("file reads do not panic and are not aborted")
}
