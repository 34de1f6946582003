//! Bytes that arrive by themselves: the stream of a [`Source::Upload`](bootyard_spec::Source::Upload),
//! which somebody else feeds.
//!
//! ```text
//! feeder: Openings::next ◄── where it begins ── Inlet::open ◄── open_at(Source::Upload)
//!         Feed::send ────── chunks, bounded ─► Object::next
//! ```
//! Who reads says where the stream begins: at its first byte, or where an earlier reader stopped if the
//! bytes have a version. Who feeds waits while the reader is behind.

use std::fmt;
use std::sync::Arc;

use bootyard_spec::Digest;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::{ErrorKind, Start, Validator};

/// How many chunks wait for the reader. A chunk of a server is some 10 KiB to 1 MiB.
const CHUNKS_QUEUED: usize = 8;

/// Where the bytes come in. Clones are the same inlet.
#[derive(Debug, Clone)]
pub struct Inlet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    len: Option<u64>,
    validator: Option<Validator>,
    openings: mpsc::UnboundedSender<Feed>,
}

/// Tells who feeds when, and at which offset, the bytes are wanted.
#[derive(Debug)]
pub struct Openings(mpsc::UnboundedReceiver<Feed>);

/// One opening of an inlet: takes the bytes from [`Feed::at`] on. Dropped before [`Feed::finish`], it
/// leaves the reader with an error.
#[derive(Debug)]
pub struct Feed {
    at: u64,
    chunks: mpsc::Sender<Message>,
}

#[derive(Debug)]
enum Message {
    Chunk(Bytes),
    End(Option<Digest>),
}

/// The reader has ended; its own error says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl PartialEq for Inlet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Inlet {}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads any more")
    }
}

impl std::error::Error for Closed {}

impl Inlet {
    /// An inlet for an object of `len` bytes, if that is known. Only one with a `validator` can be
    /// opened behind its first byte.
    pub fn new(len: Option<u64>, validator: Option<Validator>) -> (Self, Openings) {
        let (openings, opened) = mpsc::unbounded_channel();
        (Self(Arc::new(Inner { len, validator, openings })), Openings(opened))
    }

    pub(crate) fn open(&self, name: &str, start: &Start) -> Result<Body, Error> {
        let Inner { len, validator, openings } = &*self.0;
        if start.at > 0 {
            if validator.is_none() {
                return Err(Error::no_ranges(name));
            }
            if *validator != start.validator || len.is_some_and(|len| len < start.at) {
                return Err(Error::changed(name, start.validator.as_ref(), validator.as_ref()));
            }
        }
        let (chunks, receiver) = mpsc::channel(CHUNKS_QUEUED);
        // Without a feeder the stream ends at once, with an error.
        let _ = openings.send(Feed { at: start.at, chunks });
        Ok(Body {
            name: name.to_owned(),
            len: *len,
            validator: validator.clone(),
            received: start.at,
            chunks: receiver,
            ended: None,
        })
    }
}

impl Openings {
    /// The next opening; `None` once nobody can open the inlet any more.
    pub async fn next(&mut self) -> Option<Feed> {
        self.0.recv().await
    }

    /// The opening that has come by now, if there is one.
    pub fn try_next(&mut self) -> Option<Feed> {
        self.0.try_recv().ok()
    }
}

impl Feed {
    /// The offset of the first byte that is wanted.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Hands over the next bytes, and waits while the reader is behind.
    ///
    /// # Errors
    ///
    /// If nobody reads any more.
    pub async fn send(&self, chunk: Bytes) -> Result<(), Closed> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.chunks.send(Message::Chunk(chunk)).await.map_err(|_| Closed)
    }

    /// Says that all bytes have been sent, and the SHA-256 that all of them from the first on must
    /// have, if it is known.
    ///
    /// # Errors
    ///
    /// As [`Feed::send`].
    pub async fn finish(self, sha256: Option<Digest>) -> Result<(), Closed> {
        self.chunks.send(Message::End(sha256)).await.map_err(|_| Closed)
    }
}

/// The reader's end of an opening.
#[derive(Debug)]
pub(crate) struct Body {
    name: String,
    len: Option<u64>,
    validator: Option<Validator>,
    received: u64,
    chunks: mpsc::Receiver<Message>,
    /// The stream is over, and this digest came with its end.
    ended: Option<Option<Digest>>,
}

impl Body {
    pub(crate) const fn len(&self) -> Option<u64> {
        self.len
    }

    pub(crate) const fn validator(&self) -> Option<&Validator> {
        self.validator.as_ref()
    }

    pub(crate) const fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn late_digest(&self) -> Option<&Digest> {
        self.ended.as_ref()?.as_ref()
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.ended.is_some() {
            return Ok(None);
        }
        match self.chunks.recv().await {
            Some(Message::Chunk(chunk)) => {
                self.received += chunk.len() as u64;
                match self.len.filter(|len| self.received > *len) {
                    Some(len) => Err(self.wrong_length(len)),
                    None => Ok(Some(chunk)),
                }
            }
            Some(Message::End(digest)) => match self.len.filter(|len| *len != self.received) {
                Some(len) => Err(self.wrong_length(len)),
                None => {
                    self.ended = Some(digest);
                    Ok(None)
                }
            },
            None => {
                let what = format!("{} broke off after {} bytes", self.name, self.received);
                Err(Error::new(ErrorKind::Broken, what))
            }
        }
    }

    fn wrong_length(&self, announced: u64) -> Error {
        let Self { name, received, .. } = self;
        let what = format!("{name} has {received} bytes; expected the {announced} announced");
        Error::new(ErrorKind::BadAnswer, what)
    }
}

#[cfg(test)]
mod tests {
    use bootyard_spec::Source;

    use super::*;
    use crate::{Object, Options, open, open_at};

    async fn read(object: &mut Object) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = object.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn source() -> Source {
        Source::Upload("upload from 10.0.0.7".to_owned())
    }

    #[tokio::test]
    async fn what_is_fed_is_read_with_its_digest() {
        let (inlet, mut openings) = Inlet::new(Some(6), None);
        let options = Options { inlet: Some(inlet), ..Options::default() };
        let mut object = open(&source(), &options).await.unwrap();
        assert_eq!((object.len(), object.name().as_str()), (Some(6), "upload from 10.0.0.7"));
        let feed = openings.next().await.unwrap();
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let expected = digest.clone();
        let feeding = async move {
            for chunk in ["abc", "", "def"] {
                feed.send(Bytes::from_static(chunk.as_bytes())).await.unwrap();
            }
            feed.finish(Some(digest)).await.unwrap();
        };
        let (bytes, ()) = tokio::join!(read(&mut object), feeding);
        assert_eq!(bytes.unwrap(), b"abcdef");
        assert_eq!(object.late_digest(), Some(&expected));
    }

    #[tokio::test]
    async fn neither_a_cut_nor_another_length_is_an_end() {
        for (len, sent, finished, kind) in [
            (None, "abc", false, ErrorKind::Broken),
            (Some(6), "abc", true, ErrorKind::BadAnswer),
            (Some(2), "abc", true, ErrorKind::BadAnswer),
        ] {
            let (inlet, mut openings) = Inlet::new(len, None);
            let options = Options { inlet: Some(inlet), ..Options::default() };
            let mut object = open(&source(), &options).await.unwrap();
            let feed = openings.next().await.unwrap();
            feed.send(Bytes::from_static(sent.as_bytes())).await.unwrap();
            if finished {
                feed.finish(None).await.unwrap();
            } else {
                drop(feed);
            }
            assert_eq!(read(&mut object).await.unwrap_err().kind(), kind, "{len:?}");
        }
    }

    #[tokio::test]
    async fn only_the_same_version_is_read_on() {
        let tag = |text: &str| Some(Validator::ETag(format!("\"{text}\"")));
        for (own, start, expected) in [
            (tag("a"), tag("a"), Ok(4)),
            (tag("a"), tag("b"), Err(ErrorKind::Changed)),
            (None, tag("a"), Err(ErrorKind::NoRanges)),
        ] {
            let (inlet, mut openings) = Inlet::new(Some(6), own);
            let options = Options { inlet: Some(inlet), ..Options::default() };
            let start = Start { at: 4, validator: start };
            let opened = open_at(&source(), &options, &start).await;
            assert_eq!(opened.map(|object| object.received()).map_err(|e| e.kind()), expected);
            assert_eq!(openings.try_next().map(|feed| feed.at()), expected.ok());
        }
    }
}
