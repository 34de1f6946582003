//! The thread that unpacks, and feeds what comes out to the disk's own decoder.

use std::fmt;
use std::io::{self, Read};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};

use super::peek::{Gauge, Peek};
use super::source::Parts;
use super::{LayerRules, Opened, open, open_layer, own};
use crate::sniff::HEAD_LEN;
use crate::stream::gather::PART;
use crate::stream::{Direct, Options, Summary, head_len};
use crate::{Error, ErrorKind, Sink};

/// How many parts wait to be unpacked: 1 MiB. What has to be far ahead, xz, has a queue of its own.
const PARTS_QUEUED: usize = (1 << 20) / PART;

/// The caller's end of the thread. Dropping it ends the thread.
pub(in crate::stream) struct Thread {
    sender: Option<Sender<Bytes>>,
    handle: Option<JoinHandle<Result<Summary, Error>>>,
    gauge: Arc<Gauge>,
}

impl Thread {
    /// For a file, or with `rules` for a layer of a container image.
    pub(in crate::stream) fn start(
        rules: Option<LayerRules>,
        sink: Arc<dyn Sink>,
        options: Options,
    ) -> Result<Self, Error> {
        let (sender, receiver) = bounded(PARTS_QUEUED);
        let gauge = Arc::new(Gauge::new(u64::MAX));
        let shared = gauge.clone();
        let handle = std::thread::Builder::new()
            .name("unpack".to_owned())
            .spawn(move || run(Parts::new(receiver), rules, &shared, sink, options))
            .map_err(Error::write)?;
        Ok(Self { sender: Some(sender), handle: Some(handle), gauge })
    }

    /// Hands over the next part, once there is room for it.
    pub(in crate::stream) fn push(&mut self, part: Bytes) -> Result<(), Error> {
        match self.sender.as_ref().map(|sender| sender.send(part)) {
            Some(Ok(())) => Ok(()),
            // The thread has ended, which before the end means that it has failed.
            _ => Err(self.join().err().unwrap_or_else(already_failed)),
        }
    }

    /// All has been handed over: waits for the end.
    pub(in crate::stream) fn finish(mut self) -> Result<Summary, Error> {
        self.push(Bytes::new())?;
        self.join()
    }

    fn join(&mut self) -> Result<Summary, Error> {
        self.sender = None;
        let handle = self.handle.take().ok_or_else(already_failed)?;
        handle.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

fn already_failed() -> Error {
    Error::new(ErrorKind::Corrupt, "unpacking has already failed")
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.gauge.stop();
        self.sender = None;
        if let Some(handle) = self.handle.take() {
            // Nobody is left to tell of a failure.
            drop(handle.join());
        }
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("position", &self.gauge.position()).finish_non_exhaustive()
    }
}

fn run(
    source: Parts,
    rules: Option<LayerRules>,
    gauge: &Arc<Gauge>,
    sink: Arc<dyn Sink>,
    options: Options,
) -> Result<Summary, Error> {
    let failed = |error| own(error, gauge.position());
    let source = Box::new(source);
    let mut opened = match rules {
        None => open(source, gauge, options.workers).map_err(failed)?,
        Some(rules) => {
            let opened = open_layer(source, rules, gauge, options.workers).map_err(failed)?;
            let changed = || Error::new(ErrorKind::Corrupt, "the layer has no disk any more");
            opened.map_err(|_| changed())?
        }
    };
    let wanted = head_len(opened.reader.head(HEAD_LEN).map_err(failed)?);
    let head = opened.reader.head(wanted).map_err(failed)?;
    let mut decoder = Direct::new(head, sink, options, 0).map_err(Error::of_unpacked)?;
    let Opened { mut chain, mut reader, .. } = opened;
    loop {
        let part = read_part(&mut reader).map_err(failed)?;
        if part.is_empty() {
            break;
        }
        decoder.push(part).map_err(Error::of_unpacked)?;
    }
    let mut summary = decoder.finish().map_err(Error::of_unpacked)?;
    chain.append(&mut summary.chain);
    Ok(Summary { chain, ..summary })
}

/// The next part, as long as the decoder likes them. Empty at the end.
fn read_part(reader: &mut Peek) -> io::Result<Bytes> {
    let mut part = vec![0; PART];
    let mut filled = 0;
    while filled < part.len() {
        match reader.read(&mut part[filled..])? {
            0 => break,
            len => filled += len,
        }
    }
    part.truncate(filled);
    Ok(part.into())
}
