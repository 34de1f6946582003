//! One import of what arrives, on the server's own thread.

use bootyard_import::{self as import, ArchiveReport, ArchiveRequest, Cancel, Events, Report};
use bootyard_source::{self as source, Inlet};
use bootyard_spec::{ByteSize, Digest, ImportRequest, Source, Target};
use bootyard_volume::{Store, UnpackOptions};
use hyper::StatusCode;
use tokio::sync::oneshot;

use crate::Options;
use crate::error::Refusal;

/// What an upload became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A disk.
    Disk(Box<Report>),
    /// A folder.
    Archive(ArchiveReport),
}

/// What is told while a server runs: the events of its imports, and these.
pub trait Watch: Events {
    /// An upload has begun: "upload from 10.0.0.7".
    fn begun(&self, name: &str);
    /// It failed, and another one may come.
    fn failed(&self, name: &str, error: &import::Error);
}

/// How an import ended for the client: the SHA-256 of what it sent, or why not.
pub(crate) type Ended = Result<Digest, Refusal>;

/// What the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Disk,
    Archive,
}

/// An import to be run.
#[derive(Debug)]
pub(crate) struct Job {
    /// "upload from 10.0.0.7"; the same for all attempts at one upload.
    pub(crate) name: String,
    pub(crate) content: Content,
    pub(crate) checksum: Option<Digest>,
    pub(crate) inlet: Inlet,
    pub(crate) ended: oneshot::Sender<Ended>,
}

impl Job {
    /// Imports, and tells both sides what came of it.
    pub(crate) fn run(
        self,
        options: &Options,
        store: &Store,
        watch: &dyn Watch,
        cancel: &Cancel,
    ) -> Option<Outcome> {
        watch.begun(&self.name);
        let Self { name, content, checksum, inlet, ended } = self;
        let transport = source::Options { inlet: Some(inlet), ..source::Options::default() };
        let source = Source::Upload(name.clone());
        let done = match (content, &options.target) {
            (Content::Disk, _) => {
                let request = disk_request(source, checksum, options);
                import::run(&request, store, &transport, watch, cancel)
                    .map(|report| Outcome::Disk(Box::new(report)))
            }
            (Content::Archive, Target::Path(folder)) => {
                let limits = UnpackOptions::default();
                let bytes_max = options.max_size.or(options.size).map(ByteSize::bytes);
                let bytes_max = bytes_max.unwrap_or(limits.bytes_max);
                let options = UnpackOptions { bytes_max, ..limits };
                let request = ArchiveRequest { source, folder: folder.clone(), checksum, options };
                import::unpack(&request, &transport, watch, cancel).map(Outcome::Archive)
            }
            (Content::Archive, Target::Volume(_)) => {
                let text = "an archive becomes a folder, and this server's target is a volume";
                let _ = ended.send(Err(Refusal::bad_request(text)));
                return None;
            }
        };
        // A client that is gone by now need not know.
        let _ = ended.send(match &done {
            Ok(Outcome::Disk(report)) => Ok(report.sha256.clone()),
            Ok(Outcome::Archive(report)) => Ok(report.sha256.clone()),
            Err(error) => Err(Refusal::of_import(error)),
        });
        done.map_err(|error| watch.failed(&name, &error)).ok()
    }
}

fn disk_request(source: Source, checksum: Option<Digest>, options: &Options) -> ImportRequest {
    ImportRequest {
        source,
        target: options.target.clone(),
        claim: options.claim.clone(),
        size: options.size,
        max_size: options.max_size,
        checksum,
        output_format: options.output_format,
        preallocation: options.preallocation,
        relocate_gpt: false,
        cache: None,
    }
}

/// The verdict of a job, however long it takes.
pub(crate) async fn verdict(ended: oneshot::Receiver<Ended>) -> Ended {
    let stopped =
        || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server was stopped meanwhile");
    ended.await.unwrap_or_else(|_| Err(stopped()))
}
