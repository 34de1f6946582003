//! Consecutive bytes of an object, read forward from one answer and asked for again where it breaks.
//!
//! The next request names the first byte that has not come and, with `If-Range`, the version, so
//! that two versions are never mixed.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use tokio::task::yield_now;

use crate::Error;
use crate::error::Progress;
use crate::range::Wanted;
use crate::retry::Stage;
use crate::server::{Server, Version, is_at_end, total};

/// A chunk below this size is worth looking for more.
const SMALL: usize = 32 << 10;

/// Enough bytes gathered: at this size what a chunk costs by itself is nothing.
const GATHERED: usize = 256 << 10;

/// A request that brings this many bytes has not failed, although it breaks off: the attempts start
/// anew. A few bytes do not count, since a server that sends only these would be asked for ever.
const WORTHWHILE: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Part {
    server: Arc<Server>,
    version: Version,
    /// The next byte, and the end if it is not the object's.
    wanted: Wanted,
    /// Whether the server can be asked to go on, and tells then if the version is another.
    resumable: bool,
    /// The first byte: a part that has brought none can begin again, resumable or not.
    start: u64,
    /// Bytes of the object came before this part, so that its failure is that they end.
    in_stream: bool,
    /// The answer whose body is being read; `None` while another one is asked for.
    body: Option<Response>,
    /// How many requests have been made.
    requests: u32,
    /// How many of them, the present one included, since one brought enough.
    attempts: u32,
    /// Where the bytes of the present answers start to count for [`WORTHWHILE`].
    counted: u64,
    /// Small chunks that are not yet given out.
    gathered: BytesMut,
    /// The failure behind the gathered bytes.
    met: Option<Error>,
    /// The part has come to its right end.
    finished: bool,
}

impl Part {
    /// A part that nobody has asked for yet, of an object that serves ranges.
    pub(crate) fn new(server: &Arc<Server>, version: &Version, wanted: Wanted) -> Self {
        Self {
            server: Arc::clone(server),
            version: version.clone(),
            wanted,
            resumable: true,
            start: wanted.start,
            in_stream: true,
            body: None,
            requests: 0,
            attempts: 0,
            counted: wanted.start,
            gathered: BytesMut::new(),
            met: None,
            finished: false,
        }
    }

    /// The part that `answer` begins, which took so many `requests`.
    pub(crate) fn answered(self, answer: Response, requests: u32, resumable: bool) -> Self {
        let finished = is_at_end(&answer);
        let body = Some(answer).filter(|_| !finished);
        Self { body, finished, requests, attempts: requests, resumable, ..self }
    }

    /// A part that stands alone: what keeps its first byte from coming is told as it is.
    pub(crate) fn alone(self) -> Self {
        Self { in_stream: false, ..self }
    }

    /// Holds the whole object to a length that no answer told.
    pub(crate) fn expect_len(&mut self, len: u64) {
        self.version.len = Some(len);
    }

    /// The next bytes, not empty; `None` once the last has been given out.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.finished {
            if self.requests == 0 {
                self.begin().await?;
                continue;
            }
            match self.pull().await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => self.end(),
                // The bytes are there; only the end of the message is missing.
                Err(_) if self.wanted.end == Some(self.wanted.start) => self.end(),
                Err(error) => {
                    self.body = None;
                    self.resume(error).await?;
                }
            }
        }
        Ok(None)
    }

    /// Takes the next bytes from the present answer. What has been taken from it stands in `self`
    /// at every `await`, so that a caller may drop the future and lose nothing.
    async fn pull(&mut self) -> Result<Option<Bytes>, Error> {
        if self.gathered.is_empty() {
            if let Some(error) = self.met.take() {
                return Err(error);
            }
            let body = self.body.as_mut().ok_or_else(Error::ended_early)?;
            match self.server.chunk(body).await? {
                Some(first) if first.len() < SMALL => self.gathered.extend_from_slice(&first),
                chunk => return self.account(chunk),
            }
        }
        self.gather().await;
        let gathered = self.gathered.split().freeze();
        self.account(Some(gathered))
    }

    /// Appends to a small chunk what has come as well, so that who passes chunks on to other threads
    /// pays per [`GATHERED`] bytes and not per frame of the server. Never waits for bytes: it only
    /// lets the connection's task run once. A failure that it meets is told after the bytes.
    async fn gather(&mut self) {
        let Some(body) = &mut self.body else { return };
        let mut yielded = false;
        while self.gathered.len() < GATHERED && self.met.is_none() {
            let next = {
                let mut chunk = pin!(body.chunk());
                poll_fn(|context| Poll::Ready(chunk.as_mut().poll(context))).await
            };
            match next {
                Poll::Ready(Ok(Some(more))) => {
                    self.gathered.extend_from_slice(&more);
                    yielded = false;
                }
                Poll::Ready(Err(error)) => self.met = Some(Error::body(&error)),
                Poll::Pending if !yielded => {
                    yield_now().await;
                    yielded = true;
                }
                Poll::Pending | Poll::Ready(Ok(None)) => return,
            }
        }
    }

    /// Counts the bytes, and lets the part end only where it should.
    fn account(&mut self, chunk: Option<Bytes>) -> Result<Option<Bytes>, Error> {
        self.wanted.start += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let at = self.wanted.start;
        if at - self.counted >= WORTHWHILE {
            (self.attempts, self.counted) = (1, at);
            self.server.moved_on();
        }
        match (self.wanted.end.or(self.version.len), &chunk) {
            (Some(end), None) if at < end => Err(Error::ended_early()),
            (Some(end), _) if at > end => {
                let expected = format!("bytes up to {end}");
                Err(Error::bad_answer(self.server.name(), &expected, "more"))
            }
            _ => Ok(chunk),
        }
    }

    fn end(&mut self) {
        self.finished = true;
        self.body = None;
        self.server.moved_on();
    }

    /// Asks for the first time.
    async fn begin(&mut self) -> Result<(), Error> {
        (self.requests, self.attempts) = (1, 1);
        match self.server.ask(self.wanted, &self.version).await {
            Ok(answer) => self.go_on(answer),
            Err(error) => self.resume(error).await?,
        }
        Ok(())
    }

    /// Asks for the rest until the server answers or it is time to give up.
    async fn resume(&mut self, mut error: Error) -> Result<(), Error> {
        let progress = Progress { received: self.wanted.start, len: self.version.len };
        let stage = match self.resumable || self.wanted.start > self.start {
            true => Stage::Midway { resumable: self.resumable },
            false => Stage::Start,
        };
        loop {
            let pause = self.server.pause(error, self.attempts, stage).await;
            let breaks_off = self.in_stream || self.wanted.start > self.start;
            pause.map_err(|error| match error.after(self.requests) {
                error if breaks_off => error.within(self.server.name(), progress),
                error => error,
            })?;
            self.attempts += 1;
            self.requests += 1;
            match self.server.ask(self.wanted, &self.version).await {
                Ok(answer) => {
                    self.go_on(answer);
                    return Ok(());
                }
                Err(next) => error = next,
            }
        }
    }

    fn go_on(&mut self, answer: Response) {
        self.version.len = self.version.len.or_else(|| total(&answer));
        self.finished = is_at_end(&answer);
        self.body = Some(answer).filter(|_| !self.finished);
    }
}
