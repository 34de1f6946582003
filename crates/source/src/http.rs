//! HTTP and HTTPS: one request for the stream, more where it breaks, and ranged reads.
//!
//! The bytes are taken as the server holds them (`Accept-Encoding: identity`). A stream that breaks
//! is resumed with `Range` and `If-Range`, so that two versions are never mixed. Not for which
//! failures are worth another request: that is [`retry`](crate::retry).

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bootyard_spec::SafeUrl;
use bytes::{Bytes, BytesMut};
use reqwest::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    HeaderName, IF_RANGE, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::{Certificate, Client, ClientBuilder, Response, StatusCode, Url, redirect};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::error::Progress;
use crate::origin::{Location, Origin, Refusal};
use crate::range::{ContentRange, Wanted, total_of_unsatisfied};
use crate::retry::{Failure, Stage, decide};
use crate::{Error, Options, Start, Validator};

/// How many redirects are followed: what browsers and curl users are used to is enough for mirrors.
pub(crate) const REDIRECTS_MAX: usize = 10;

/// A chunk below this size is worth looking for more.
const SMALL: usize = 32 << 10;

/// Enough bytes gathered: at this size what a chunk costs by itself is nothing.
const GATHERED: usize = 256 << 10;

/// A request that brings this many bytes has not failed, although it breaks off: the attempts start
/// anew. A few bytes do not count, since a server that sends only these would be asked for ever.
const WORTHWHILE: u64 = 64 << 10;

/// How much of a refusal's body is read, and how long its next part may take. What stores have to
/// say stands at the front.
const REFUSAL_MAX: usize = 4 << 10;
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Http {
    server: Server,
    facts: Facts,
    /// The answer whose body is being read; `None` while another one is asked for.
    body: Option<Response>,
    received: u64,
    /// How many requests have been made for the stream.
    requests: u32,
    /// How many of them, the present one included, since one brought enough.
    attempts: u32,
    /// Where the bytes of the present answers start to count for [`WORTHWHILE`].
    counted: u64,
    /// Small chunks that are not yet given out.
    gathered: BytesMut,
    /// The failure behind the gathered bytes.
    met: Option<Error>,
    /// The stream has come to its right end.
    finished: bool,
}

/// What a first answer tells about the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) len: Option<u64>,
    pub(crate) validator: Option<Validator>,
    pub(crate) accepts_ranges: bool,
    pub(crate) content_type: Option<String>,
    /// The body's end is marked: by its length or by chunks (RFC 9112 §6.3). Otherwise it ends with
    /// the connection, which a broken one does as well.
    pub(crate) ends_surely: bool,
}

/// Whom to ask, and how.
#[derive(Debug)]
struct Server {
    client: Client,
    origin: Box<dyn Origin>,
    name: String,
    options: Options,
    hop: Hop,
}

/// Where the last redirect led: the client's errors do not tell. Requests at the same time share
/// it, so that it is for messages only.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hop(Arc<Mutex<Option<Url>>>);

impl Http {
    pub(crate) async fn open_at(
        origin: Box<dyn Origin>,
        options: &Options,
        start: &Start,
    ) -> Result<Self, Error> {
        let hop = Hop::default();
        let client = client(options, &hop).map_err(|error| Error::setup(&error))?;
        let server = Server { client, name: origin.name(), origin, options: options.clone(), hop };
        let wanted = Wanted { start: start.at, end: None };
        let known = Facts::before(start);
        let mut attempts = 1;
        let answer = loop {
            match server.ask(wanted, &known).await {
                Ok(answer) => break answer,
                Err(error) => server.pause(error, attempts, Stage::Start).await?,
            }
            attempts += 1;
        };
        let facts = Facts::of(&answer, start);
        let finished = is_at_end(&answer);
        Ok(Self {
            server,
            facts,
            body: Some(answer).filter(|_| !finished),
            received: start.at,
            requests: attempts,
            attempts,
            counted: start.at,
            gathered: BytesMut::new(),
            met: None,
            finished,
        })
    }

    /// Holds the object to a length that is known from elsewhere.
    pub(crate) fn expect_len(mut self, len: u64) -> Result<Self, Error> {
        match self.facts.len {
            Some(announced) if announced != len => {
                Err(Error::wrong_size(&self.server.name, len, announced))
            }
            _ => {
                self.facts.len = Some(len);
                self.facts.ends_surely = true;
                Ok(self)
            }
        }
    }

    /// The offset of the byte behind the last one that was given out.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn name(&self) -> &str {
        &self.server.name
    }

    pub(crate) fn retries(&self) -> u32 {
        self.requests - 1
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.finished {
            match self.pull().await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => self.finished = true,
                Err(error) => {
                    self.body = None;
                    let answer = self.resume(error).await?;
                    self.finished = is_at_end(&answer);
                    self.body = Some(answer).filter(|_| !self.finished);
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

    /// Counts the bytes, and lets the stream end only where it should.
    fn account(&mut self, chunk: Option<Bytes>) -> Result<Option<Bytes>, Error> {
        self.received += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        match (self.facts.len, &chunk) {
            (Some(len), None) if self.received < len => Err(Error::ended_early()),
            (Some(len), _) if self.received > len => {
                Err(Error::bad_answer(&self.server.name, &format!("{len} bytes"), "more"))
            }
            _ => Ok(chunk),
        }
    }

    /// Asks for the rest of the object until the server answers or it is time to give up.
    async fn resume(&mut self, mut error: Error) -> Result<Response, Error> {
        let wanted = Wanted { start: self.received, end: None };
        let progress = Progress { received: self.received, len: self.facts.len };
        let resumable = self.facts.accepts_ranges && self.facts.validator.is_some();
        let stage = if self.received == 0 { Stage::Start } else { Stage::Midway { resumable } };
        if self.received - self.counted >= WORTHWHILE {
            (self.attempts, self.counted) = (1, self.received);
        }
        loop {
            let pause = self.server.pause(error, self.attempts, stage).await;
            let told =
                |error: Error| error.after(self.requests).within(&self.server.name, progress);
            pause.map_err(told)?;
            self.attempts += 1;
            self.requests += 1;
            match self.server.ask(wanted, &self.facts).await {
                Ok(answer) => {
                    self.facts.len = self.facts.len.or_else(|| total(&answer));
                    return Ok(answer);
                }
                Err(next) => error = next,
            }
        }
    }

    /// Reads a part of the object, whole or not at all: a part that breaks is asked for again.
    pub(crate) async fn read_range(&self, range: Range<u64>) -> Result<Bytes, Error> {
        if !self.facts.accepts_ranges {
            return Err(Error::no_ranges(&self.server.name));
        }
        let mut attempts = 1;
        loop {
            match self.server.part(range.clone(), &self.facts).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => self.server.pause(error, attempts, Stage::Start).await?,
            }
            attempts += 1;
        }
    }
}

impl Server {
    /// Makes one request, and checks that the answer is the one to it: the wanted bytes, of the
    /// version that is known. An origin that learns from a refusal is asked where to go once more.
    async fn ask(&self, wanted: Wanted, known: &Facts) -> Result<Response, Error> {
        let mut has_learned = false;
        loop {
            let (url, answer) = self.send(wanted, known).await?;
            let Err(error) = self.check(&url, &answer, wanted, known) else { return Ok(answer) };
            let is_401 = error.http_status() == Some(401);
            let (error, again) = self.explained(error, answer).await;
            if has_learned || !(again || is_401 && self.origin.renew()) {
                return Err(error);
            }
            has_learned = true;
        }
    }

    async fn send(&self, wanted: Wanted, known: &Facts) -> Result<(SafeUrl, Response), Error> {
        let Location { url, headers } = self.origin.locate().await?;
        let request = self.client.get(url.expose().clone()).headers(headers);
        let mut request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(range) = wanted.header() {
            request = request.header(RANGE, range);
            if let Some(value) = known.validator.as_ref().and_then(Validator::if_range) {
                request = request.header(IF_RANGE, value);
            }
        }
        self.hop.set(None);
        let limit = self.options.connect_timeout + self.options.stall_timeout;
        let answer = match timeout(limit, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(Error::request(&url, self.hop.get().as_ref(), &error));
            }
            Err(_) => return Err(Error::no_answer(&self.name, limit)),
        };
        Ok((url, answer))
    }

    /// Adds what the answer's body says to the error that its status is; and whether the origin
    /// would go another way now.
    async fn explained(&self, error: Error, mut answer: Response) -> (Error, bool) {
        if error.http_status().is_none() || !self.origin.reads_refusals() {
            return (error, false);
        }
        let headers = answer.headers().clone();
        let mut body = Vec::new();
        while body.len() < REFUSAL_MAX
            && let Ok(Ok(Some(bytes))) = timeout(REFUSAL_LIMIT, answer.chunk()).await
        {
            body.extend_from_slice(&bytes);
        }
        body.truncate(REFUSAL_MAX);
        match self.origin.explain(&Refusal { headers: &headers, body: &body }) {
            Some(told) => (error.told(&self.name, &told), told.again),
            None => (error, false),
        }
    }

    fn check(
        &self,
        url: &SafeUrl,
        answer: &Response,
        wanted: Wanted,
        known: &Facts,
    ) -> Result<(), Error> {
        let headers = answer.headers();
        let status = answer.status();
        let ranged = wanted.header().is_some();
        let range = match status {
            StatusCode::OK => None,
            StatusCode::PARTIAL_CONTENT if ranged => content_range(headers),
            StatusCode::RANGE_NOT_SATISFIABLE if total(answer).is_some() => None,
            _ => {
                let (status, retry_after) = (status.as_u16(), retry_after(headers));
                return Err(Error::status(url, answer.url(), status, retry_after));
            }
        };
        if let Some(coding) = encoded(headers) {
            return Err(Error::bad_answer(&self.name, "no `Content-Encoding`", coding));
        }
        let total = total(answer);
        let now = Validator::from_headers(headers);
        let ends_before = status == StatusCode::RANGE_NOT_SATISFIABLE && total < Some(wanted.start);
        if ends_before || known.contradicts(now.as_ref(), total) {
            return Err(Error::changed(&self.name, known.validator.as_ref(), now.as_ref()));
        }
        match range {
            // There is nothing behind the bytes that have come: the object ends there.
            None if is_at_end(answer) && total == Some(wanted.start) => Ok(()),
            Some(range) if range.answers(wanted, known.len) => Ok(()),
            None if !ranged => Ok(()),
            None if status == StatusCode::OK => Err(Error::no_ranges(&self.name)),
            _ => {
                let got = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let expected = wanted.header().unwrap_or_default();
                Err(Error::bad_answer(&self.name, &expected, got.unwrap_or("no `Content-Range`")))
            }
        }
    }

    /// The next bytes of an answer, not empty; `None` at its end.
    async fn chunk(&self, answer: &mut Response) -> Result<Option<Bytes>, Error> {
        loop {
            match timeout(self.options.stall_timeout, answer.chunk()).await {
                Ok(Ok(Some(bytes))) if bytes.is_empty() => {}
                Ok(Ok(chunk)) => return Ok(chunk),
                Ok(Err(error)) => return Err(Error::body(&error)),
                Err(_) => return Err(Error::stalled(self.options.stall_timeout)),
            }
        }
    }

    /// Asks once for a part of the object and reads it to its end.
    async fn part(&self, range: Range<u64>, known: &Facts) -> Result<Bytes, Error> {
        let len = range.end - range.start;
        let mut answer =
            self.ask(Wanted { start: range.start, end: Some(range.end) }, known).await?;
        let mut part = BytesMut::new();
        loop {
            let progress = Progress { received: part.len() as u64, len: Some(len) };
            let chunk = match self.chunk(&mut answer).await {
                Ok(None) if progress.received < len => Err(Error::ended_early()),
                chunk => chunk,
            };
            match chunk.map_err(|error| error.within(&self.name, progress))? {
                None => return Ok(part.freeze()),
                Some(bytes) if progress.received + bytes.len() as u64 > len => {
                    return Err(Error::bad_answer(&self.name, &format!("{len} bytes"), "more"));
                }
                Some(bytes) => part.extend_from_slice(&bytes),
            }
        }
    }

    /// Waits before the next request, or gives the error back if there shall be none.
    async fn pause(&self, error: Error, attempts: u32, stage: Stage) -> Result<(), Error> {
        let failure = Failure {
            kind: error.kind(),
            status: error.http_status(),
            retry_after: error.retry_after(),
            attempts,
            stage,
        };
        match decide(failure, &self.options, dice()) {
            Some(delay) => {
                sleep(delay).await;
                Ok(())
            }
            None => Err(error.after(attempts)),
        }
    }
}

impl Hop {
    /// Follows redirects and notes where they lead.
    fn policy(&self) -> redirect::Policy {
        let hop = self.clone();
        redirect::Policy::custom(move |attempt| {
            hop.set(Some(attempt.url().clone()));
            redirect::Policy::limited(REDIRECTS_MAX).redirect(attempt)
        })
    }

    fn set(&self, url: Option<Url>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }

    fn get(&self) -> Option<Url> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Facts {
    /// What an earlier reader's stop tells: that it was promised ranges, or had none of the bytes.
    fn before(start: &Start) -> Self {
        Self {
            len: None,
            validator: start.validator.clone(),
            accepts_ranges: start.at > 0,
            content_type: None,
            ends_surely: false,
        }
    }

    fn of(answer: &Response, start: &Start) -> Self {
        let (headers, len) = (answer.headers(), total(answer));
        let accepts = text(headers, ACCEPT_RANGES);
        let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
        let codings = last.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let coding = codings.rsplit(',').next().unwrap_or_default();
        Self {
            len,
            // A 206 to `If-Range` may leave the time out (§15.3.7).
            validator: Validator::from_headers(headers).or_else(|| start.validator.clone()),
            accepts_ranges: start.at > 0
                || accepts.is_some_and(|unit| unit.eq_ignore_ascii_case("bytes")),
            content_type: text(headers, CONTENT_TYPE).map(str::to_owned),
            ends_surely: len.is_some() || coding.trim().eq_ignore_ascii_case("chunked"),
        }
    }

    /// Whether an answer is about another version. A validator of the other kind, or none, says
    /// nothing; without any the length must do.
    fn contradicts(&self, now: Option<&Validator>, total: Option<u64>) -> bool {
        match (&self.validator, now) {
            (Some(Validator::ETag(old)), Some(Validator::ETag(new)))
            | (Some(Validator::LastModified(old)), Some(Validator::LastModified(new))) => {
                old != new
            }
            _ => self.len.zip(total).is_some_and(|(old, new)| old != new),
        }
    }
}

/// The client of one source: it keeps no cookies and asks no environment for proxies.
pub(crate) fn client(options: &Options, hop: &Hop) -> Result<Client, reqwest::Error> {
    let extra = Certificate::from_pem_bundle(&options.extra_ca)?;
    let builder = |builder: ClientBuilder| {
        builder
            .user_agent(&options.user_agent)
            .connect_timeout(options.connect_timeout)
            .redirect(hop.policy())
            // For one object HTTP/2 only adds frames: measured on loopback with TLS it took 1.6 to
            // 2.4 times as long. Ranged reads in parallel want connections of their own besides.
            .http1_only()
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            .build()
    };
    let system = Client::builder().tls_certs_merge(extra.clone());
    // A machine without any authorities can still read plain HTTP; HTTPS then fails by itself.
    builder(system).or_else(|_| builder(Client::builder().tls_certs_only(extra)))
}

/// Whether the answer says that the object has no byte where the wanted ones begin.
fn is_at_end(answer: &Response) -> bool {
    answer.status() == StatusCode::RANGE_NOT_SATISFIABLE
}

/// The length of the whole object, as an answer announces it.
fn total(answer: &Response) -> Option<u64> {
    match answer.status() {
        StatusCode::OK => answer.content_length(),
        StatusCode::PARTIAL_CONTENT => content_range(answer.headers())?.total,
        StatusCode::RANGE_NOT_SATISFIABLE => {
            total_of_unsatisfied(text(answer.headers(), CONTENT_RANGE)?)
        }
        _ => None,
    }
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    text(headers, CONTENT_RANGE)?.parse().ok()
}

/// The pause in seconds that the server asks for. The header's other form, a date, is left out: it
/// would trust the server's clock, and our own pauses do.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, RETRY_AFTER)?.parse().ok().map(Duration::from_secs)
}

/// The coding that the body is in although none was asked for: these are not the object's bytes.
fn encoded(headers: &HeaderMap) -> Option<&str> {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.map(|value| value.to_str().unwrap_or("an unreadable one"));
    codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A number from 0 to 1. The hash maps' random keys are random enough to spread clients.
fn dice() -> f64 {
    (RandomState::new().hash_one(()) >> 32) as f64 / f64::from(u32::MAX)
}
