//! Looks for the disk in a layer of a container image, which passes once and may be of any size.

use std::fmt;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::peek::Gauge;
use super::source::Parts;
use super::{Found, LayerContents, LayerRules, Opened, open_layer, own};
use crate::sniff::HEAD_LEN;
use crate::stream::{Probe, head_len};
use crate::{Error, ErrorKind, sniff};

/// What a layer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// The disk.
    Disk(Probe),
    /// No disk: all of it has been looked at.
    Other(LayerContents),
}

/// Looks for the disk in a layer, on a thread of its own. Dropping it ends the thread. Memory does
/// not grow with the layer.
pub struct Scan {
    sender: Option<Sender<Bytes>>,
    handle: Option<JoinHandle<Result<Scanned, Error>>>,
    gauge: Arc<Gauge>,
}

impl Scan {
    /// Starts with no bytes seen.
    pub fn new(rules: LayerRules) -> Result<Self, Error> {
        // Whoever hands over a chunk waits until the one before has been looked at: then none is
        // handed over behind the one in which the disk begins.
        let (sender, receiver) = bounded(0);
        let gauge = Arc::new(Gauge::new(u64::MAX));
        let shared = gauge.clone();
        let handle = std::thread::Builder::new()
            .name("scan".to_owned())
            .spawn(move || run(receiver, rules, &shared))
            .map_err(Error::write)?;
        Ok(Self { sender: Some(sender), handle: Some(handle), gauge })
    }

    /// Takes the next chunk. Answers once the disk has begun, which may be in an earlier chunk; then
    /// the scan is over. Fails where the layer is damaged, or its disk cannot be read.
    pub fn push(&mut self, chunk: Bytes) -> Result<Option<Probe>, Error> {
        if chunk.is_empty() {
            return Ok(None);
        }
        match self.sender.as_ref().map(|sender| sender.send(chunk)) {
            Some(Ok(())) => Ok(None),
            _ => match self.join()? {
                Scanned::Disk(probe) => Ok(Some(probe)),
                Scanned::Other(_) => Err(already_ended()),
            },
        }
    }

    /// The layer has ended.
    pub fn finish(mut self) -> Result<Scanned, Error> {
        if let Some(sender) = &self.sender {
            // A thread that is gone has found the disk, or failed.
            let _ = sender.send(Bytes::new());
        }
        self.join()
    }

    fn join(&mut self) -> Result<Scanned, Error> {
        self.sender = None;
        let handle = self.handle.take().ok_or_else(already_ended)?;
        handle.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

fn already_ended() -> Error {
    Error::new(ErrorKind::Corrupt, "the layer's scan has ended")
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.gauge.stop();
        self.sender = None;
        if let Some(handle) = self.handle.take() {
            // Nobody is left to tell of a failure.
            drop(handle.join());
        }
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("position", &self.gauge.position()).finish_non_exhaustive()
    }
}

fn run(receiver: Receiver<Bytes>, rules: LayerRules, gauge: &Arc<Gauge>) -> Result<Scanned, Error> {
    let failed = |error| own(error, gauge.position());
    let source = Box::new(Parts::new(receiver));
    let opened = open_layer(source, rules, gauge, NonZeroUsize::MIN).map_err(failed)?;
    let Opened { mut chain, mut reader, len } = match opened {
        Ok(opened) => opened,
        Err(contents) => return Ok(Scanned::Other(contents)),
    };
    let wanted = head_len(reader.head(HEAD_LEN).map_err(failed)?);
    let head = reader.head(wanted).map_err(failed)?.to_vec();
    chain.push(sniff(&head));
    Found { chain, head, len }.probe().map(Scanned::Disk)
}
