//! HTTP and HTTPS: one request for the stream, more where it breaks, and ranged reads.
//!
//! The bytes are taken as the server holds them (`Accept-Encoding: identity`). A stream that breaks
//! is resumed with `Range` and `If-Range`, so that two versions are never mixed. Not for which
//! failures are worth another request: that is [`retry`](crate::retry).

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::Duration;

use bootyard_spec::SafeUrl;
use bytes::{Bytes, BytesMut};
use reqwest::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, IF_RANGE,
    RANGE, RETRY_AFTER,
};
use reqwest::{Certificate, Client, ClientBuilder, Response, StatusCode, redirect};
use tokio::time::{sleep, timeout};

use crate::error::Progress;
use crate::range::{ContentRange, Wanted};
use crate::retry::{Failure, Stage, decide};
use crate::{Error, Options, Validator};

/// How many redirects are followed: what browsers and curl users are used to is enough for mirrors.
pub(crate) const REDIRECTS_MAX: usize = 10;

#[derive(Debug)]
pub(crate) struct Http {
    server: Server,
    facts: Facts,
    /// The answer whose body is being read; `None` behind its end and after an error.
    body: Option<Response>,
    received: u64,
    /// How many requests have been made for the stream.
    attempts: u32,
}

/// What a first answer tells about the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) len: Option<u64>,
    pub(crate) validator: Option<Validator>,
    pub(crate) accepts_ranges: bool,
    pub(crate) content_type: Option<String>,
}

/// Whom to ask, and how.
#[derive(Debug)]
struct Server {
    client: Client,
    url: SafeUrl,
    name: String,
    options: Options,
}

impl Http {
    pub(crate) async fn open(url: SafeUrl, options: &Options) -> Result<Self, Error> {
        let client = client(options).map_err(|error| Error::setup(&error))?;
        let server = Server { client, name: url.to_string(), url, options: options.clone() };
        let mut attempts = 1;
        let answer = loop {
            match server.ask(Wanted::ALL, None).await {
                Ok(answer) => break answer,
                Err(error) => server.pause(error, attempts, Stage::Start).await?,
            }
            attempts += 1;
        };
        let facts = Facts::of(answer.headers(), answer.content_length());
        Ok(Self { server, facts, body: Some(answer), received: 0, attempts })
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn name(&self) -> &str {
        &self.server.name
    }

    pub(crate) fn retries(&self) -> u32 {
        self.attempts - 1
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(body) = &mut self.body {
            let chunk = self.server.chunk(body).await;
            match chunk.and_then(|chunk| self.account(chunk)) {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => self.body = None,
                Err(error) => {
                    self.body = None;
                    self.body = Some(self.resume(error).await?);
                }
            }
        }
        Ok(None)
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
        loop {
            let pause = self.server.pause(error, self.attempts, stage).await;
            pause.map_err(|error| error.within(&self.server.name, progress))?;
            self.attempts += 1;
            match self.server.ask(wanted, Some(&self.facts)).await {
                Ok(answer) => return Ok(answer),
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
    /// version that is known.
    async fn ask(&self, wanted: Wanted, known: Option<&Facts>) -> Result<Response, Error> {
        let mut request =
            self.client.get(self.url.expose().clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(range) = wanted.header() {
            request = request.header(RANGE, range);
            if let Some(validator) = known.and_then(|facts| facts.validator.as_ref()) {
                request = request.header(IF_RANGE, validator.as_str());
            }
        }
        let limit = self.options.connect_timeout + self.options.stall_timeout;
        let answer = match timeout(limit, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Error::request(&self.url, &error)),
            Err(_) => return Err(Error::no_answer(&self.name, limit)),
        };
        self.check(&answer, wanted, known)?;
        Ok(answer)
    }

    fn check(&self, answer: &Response, wanted: Wanted, known: Option<&Facts>) -> Result<(), Error> {
        let headers = answer.headers();
        let status = answer.status();
        let ranged = wanted.header().is_some();
        let range = match status {
            StatusCode::OK => None,
            StatusCode::PARTIAL_CONTENT if ranged => content_range(headers),
            _ => return Err(Error::status(&self.url, status.as_u16(), retry_after(headers))),
        };
        let total = match &range {
            Some(range) => range.total,
            None => answer.content_length().filter(|_| status == StatusCode::OK),
        };
        let Some(known) = known else { return Ok(()) };
        let now = Validator::from_headers(headers);
        if known.contradicts(now.as_ref(), total) {
            return Err(Error::changed(&self.name, known.validator.as_ref(), now.as_ref()));
        }
        match range {
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
            self.ask(Wanted { start: range.start, end: Some(range.end) }, Some(known)).await?;
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

impl Facts {
    fn of(headers: &HeaderMap, len: Option<u64>) -> Self {
        let accepts = text(headers, ACCEPT_RANGES);
        Self {
            len,
            validator: Validator::from_headers(headers),
            accepts_ranges: accepts.is_some_and(|unit| unit.eq_ignore_ascii_case("bytes")),
            content_type: text(headers, CONTENT_TYPE).map(str::to_owned),
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
fn client(options: &Options) -> Result<Client, reqwest::Error> {
    let extra = Certificate::from_pem_bundle(&options.extra_ca)?;
    let builder = |builder: ClientBuilder| {
        builder
            .user_agent(&options.user_agent)
            .connect_timeout(options.connect_timeout)
            .redirect(redirect::Policy::limited(REDIRECTS_MAX))
            .referer(false)
            .no_proxy()
            .retry(reqwest::retry::never())
            .build()
    };
    let system = Client::builder().tls_certs_merge(extra.clone());
    // A machine without any authorities can still read plain HTTP; HTTPS then fails by itself.
    builder(system).or_else(|_| builder(Client::builder().tls_certs_only(extra)))
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    text(headers, CONTENT_RANGE)?.parse().ok()
}

/// The pause in seconds that the server asks for. The header's other form, a date, is left out: it
/// would trust the server's clock, and our own pauses do.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, RETRY_AFTER)?.parse().ok().map(Duration::from_secs)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A number from 0 to 1. The hash maps' random keys are random enough to spread clients.
fn dice() -> f64 {
    (RandomState::new().hash_one(()) >> 32) as f64 / f64::from(u32::MAX)
}
