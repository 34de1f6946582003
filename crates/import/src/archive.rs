//! A tar archive, compressed or not, becomes a folder (CDI's `contentType: archive`).
//!
//! One pass, as for a disk: what comes is hashed on this thread and unpacked on another, and the folder
//! gets its contents once the verdict is good. Not resumed: a tar has no place to go on from.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bootyard_image::stream::Decompressed;
use bootyard_source as source;
use bootyard_spec::{Digest, Source, Verifier};
use bootyard_volume::{Unpack, UnpackOptions, Unpacked};
use bytes::Bytes;

use crate::run::runtime;
use crate::transfer::unless;
use crate::{Cancel, Error, Event, Events, Moved, Phase};

/// How many chunks, of 1 MiB at most, wait to be unpacked.
const CHUNKS_QUEUED: usize = 8;

/// What is unpacked, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRequest {
    /// Where the archive comes from.
    pub source: Source,
    /// An empty folder, or a name that is free.
    pub folder: PathBuf,
    /// The digest of the archive's bytes as sent.
    pub checksum: Option<Digest>,
    /// How much may come out.
    pub options: UnpackOptions,
}

/// What an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveReport {
    /// The folder.
    pub path: PathBuf,
    /// How many bytes the source had.
    pub source_bytes: u64,
    /// The digest of these.
    pub sha256: Digest,
    /// What came out.
    pub unpacked: Unpacked,
}

/// Unpacks an archive.
///
/// Needs [`source::install_crypto_provider`] to have been called, and must not be called from async
/// code.
///
/// # Errors
///
/// The first cause; nothing of the archive is in the folder then.
pub fn unpack(
    request: &ArchiveRequest,
    options: &source::Options,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<ArchiveReport, Error> {
    events.event(Event::Phase(Phase::Connecting));
    let mut target = Unpack::claim(&request.folder, request.options)?;
    let (sender, receiver) = sync_channel(CHUNKS_QUEUED);
    let (pumped, unpacked) = thread::scope(|scope| {
        let worker = thread::Builder::new().name("unpack".into());
        let work = || unpack_chunks(&mut target, receiver, &request.source);
        let worker = worker.spawn_scoped(scope, work).map_err(Error::Setup)?;
        let pumped = pump(request, options, events, cancel, &sender);
        // Without an end before, this tells the other thread that there will be none.
        drop(sender);
        let unpacked = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Error>((pumped, unpacked))
    })?;
    let (verifier, unpacked) = (pumped?, unpacked?);
    events.event(Event::Phase(Phase::Verifying));
    let source_name = || request.source.to_string();
    let verified =
        verifier.finish().map_err(|error| Error::Checksum { source_name: source_name(), error })?;
    events.event(Event::Phase(Phase::Publishing));
    let path = target.publish(&verified)?;
    let (source_bytes, sha256) = (verified.source_len(), verified.sha256().clone());
    Ok(ArchiveReport { path, source_bytes, sha256, unpacked })
}

/// Fetches and hashes everything. Ends quietly where the other thread does: that one says why.
fn pump(
    request: &ArchiveRequest,
    options: &source::Options,
    events: &dyn Events,
    cancel: &Cancel,
    sender: &SyncSender<Option<Bytes>>,
) -> Result<Verifier, Error> {
    let runtime = runtime()?;
    let mut verifier = Verifier::new(request.checksum.iter().cloned().collect());
    let opening = source::open(&request.source, options);
    let mut object = runtime.block_on(unless(cancel, opening))??;
    events.event(Event::Phase(Phase::Transferring));
    let (mut fetched, total) = (0, object.len());
    loop {
        let chunk = runtime.block_on(unless(cancel, object.next()))??;
        let is_last = chunk.is_none();
        if let Some(chunk) = &chunk {
            verifier.update(chunk);
            fetched += chunk.len() as u64;
            events.event(Event::Moved(Moved { fetched, total, written: 0 }));
        }
        if sender.send(chunk).is_err() || is_last {
            object.late_digest().into_iter().for_each(|digest| verifier.expect(digest.clone()));
            return Ok(verifier);
        }
    }
}

fn unpack_chunks(
    target: &mut Unpack,
    receiver: Receiver<Option<Bytes>>,
    source: &Source,
) -> Result<Unpacked, Error> {
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut tar = Decompressed::new(Chunks::new(receiver), threads)
        .map_err(|error| Error::image(error, source, None))?;
    target.unpack(&mut tar).map_err(Error::from)
}

/// The chunks as one stream; an error where they stop without an end.
pub(crate) struct Chunks {
    receiver: Receiver<Option<Bytes>>,
    chunk: Bytes,
    ended: bool,
}

impl Chunks {
    pub(crate) const fn new(receiver: Receiver<Option<Bytes>>) -> Self {
        Self { receiver, chunk: Bytes::new(), ended: false }
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.receiver.recv() {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => self.ended = true,
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let len = buf.len().min(self.chunk.len());
        buf[..len].copy_from_slice(&self.chunk.split_to(len));
        Ok(len)
    }
}
