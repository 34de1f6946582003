//! HTTP and HTTPS: one object as a stream, over one connection or several, and ranged reads.
//!
//! The first request asks for the first segment only. A 206 to it proves that the server serves
//! ranges, whatever its `Accept-Ranges` says, and tells the length: then further segments are asked
//! for ([`segments`](crate::segments)). A 200 is the whole object in one stream. `HEAD` is never
//! sent: servers that sign their URLs refuse it, and it proves nothing about `GET`. The bytes are
//! taken as the server holds them (`Accept-Encoding: identity`).

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT_RANGES, CONTENT_TYPE, TRANSFER_ENCODING};
use reqwest::{Response, StatusCode};

use crate::origin::Origin;
use crate::part::Part;
use crate::range::Wanted;
use crate::retry::Stage;
use crate::segments::{SEGMENT, Segments};
use crate::server::{Server, Version, text, total};
use crate::{Error, Options, Start, Validator};

#[derive(Debug)]
pub(crate) struct Http {
    server: Arc<Server>,
    facts: Facts,
    stream: Stream,
    received: u64,
}

#[derive(Debug)]
enum Stream {
    /// One request for all of it.
    Whole(Box<Part>),
    Ranged(Box<Segments>),
}

/// What the first answer tells about the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) version: Version,
    pub(crate) accepts_ranges: bool,
    pub(crate) content_type: Option<String>,
    /// The body's end is marked: by its length or by chunks (RFC 9112 §6.3). Otherwise it ends with
    /// the connection, which a broken one does as well.
    pub(crate) ends_surely: bool,
    /// The server says that it serves ranges; it may be a cache that does so only later.
    announces_ranges: bool,
    /// The answer is a part of the object.
    is_partial: bool,
}

impl Http {
    pub(crate) async fn open_at(
        origin: Box<dyn Origin>,
        options: &Options,
        start: &Start,
    ) -> Result<Self, Error> {
        let server = Arc::new(Server::new(origin, options)?);
        let end = (options.connections > 1).then(|| start.at.saturating_add(SEGMENT));
        let mut first = First { wanted: Wanted { start: start.at, end }, requests: 0 };
        let (mut answer, mut facts) = first.ask(&server, start).await?;
        if facts.is_partial && !facts.holds_together(first.wanted) {
            // Two segments could be of two versions: better one stream that may break off.
            first.wanted.end = None;
            (answer, facts) = first.ask(&server, start).await?;
        }
        let (version, mut wanted) = (&facts.version, first.wanted);
        let len = version.len.filter(|_| facts.is_partial && wanted.end.is_some());
        wanted.end = len.and_then(|len| wanted.end.map(|end| end.min(len)));
        let resumable = version.validator.is_some() && facts.announces_ranges;
        let part = Part::new(&server, version, wanted);
        let part = part.answered(answer, first.requests, resumable);
        let stream = match len {
            Some(len) => {
                Stream::Ranged(Box::new(Segments::new(&server, version, (start.at, len), part)))
            }
            None => Stream::Whole(Box::new(part)),
        };
        Ok(Self { server, facts, stream, received: start.at })
    }

    /// Holds the object to a length that is known from elsewhere.
    pub(crate) fn expect_len(mut self, len: u64) -> Result<Self, Error> {
        match self.len() {
            Some(announced) if announced != len => {
                return Err(Error::wrong_size(self.name(), len, announced));
            }
            _ => self.facts.version.len = Some(len),
        }
        if let Stream::Whole(part) = &mut self.stream {
            part.expect_len(len);
        }
        self.facts.ends_surely = true;
        Ok(self)
    }

    pub(crate) fn len(&self) -> Option<u64> {
        self.facts.version.len
    }

    pub(crate) fn validator(&self) -> Option<&Validator> {
        self.facts.version.validator.as_ref()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn name(&self) -> &str {
        self.server.name()
    }

    pub(crate) fn retries(&self) -> u32 {
        self.server.retries()
    }

    pub(crate) fn is_ranged(&self) -> bool {
        matches!(self.stream, Stream::Ranged(_))
    }

    pub(crate) fn connections(&self) -> usize {
        if self.is_ranged() { self.server.connections() } else { 1 }
    }

    /// The offset of the byte behind the last one that was given out.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let chunk = match &mut self.stream {
            Stream::Whole(part) => part.next().await,
            Stream::Ranged(segments) => segments.next().await,
        }?;
        self.received += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(chunk)
    }

    pub(crate) async fn read_range(&self, range: Range<u64>) -> Result<Bytes, Error> {
        if !self.facts.accepts_ranges {
            return Err(Error::no_ranges(self.server.name()));
        }
        let wanted = Wanted { start: range.start, end: Some(range.end) };
        let mut part = Part::new(&self.server, &self.facts.version, wanted).alone();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = part.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// The request that tells what the object is.
struct First {
    wanted: Wanted,
    requests: u32,
}

impl First {
    async fn ask(&mut self, server: &Server, start: &Start) -> Result<(Response, Facts), Error> {
        let known = Version { len: None, validator: start.validator.clone() };
        let mut attempts = 0;
        loop {
            attempts += 1;
            self.requests += 1;
            match server.ask(self.wanted, &known).await {
                Ok(answer) => {
                    let facts = Facts::of(&answer, start, self.wanted.end.is_some());
                    return Ok((answer, facts));
                }
                // Some servers have no other way to say that they serve no ranges.
                Err(error) if error.http_status() == Some(416) && self.wanted.end.is_some() => {
                    self.wanted.end = None;
                }
                Err(error) => server.pause(error, attempts, Stage::Start).await?,
            }
        }
    }
}

impl Facts {
    fn of(answer: &Response, start: &Start, asked_for_range: bool) -> Self {
        let (headers, len) = (answer.headers(), total(answer));
        let announced = text(headers, ACCEPT_RANGES);
        let announced = announced.is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"));
        let proven = answer.status() != StatusCode::OK;
        let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
        let codings = last.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let coding = codings.rsplit(',').next().unwrap_or_default();
        // A 206 to `If-Range` may leave the time out (§15.3.7).
        let validator = Validator::from_headers(headers).or_else(|| start.validator.clone());
        Self {
            version: Version { len, validator },
            accepts_ranges: proven || (announced && !asked_for_range),
            content_type: text(headers, CONTENT_TYPE).map(str::to_owned),
            ends_surely: len.is_some() || coding.trim().eq_ignore_ascii_case("chunked"),
            announces_ranges: proven || announced,
            is_partial: answer.status() == StatusCode::PARTIAL_CONTENT,
        }
    }

    /// Whether the parts behind the one that was `wanted` are known to be, and to be of the same
    /// version; or there are none.
    fn holds_together(&self, wanted: Wanted) -> bool {
        match (self.version.len, wanted.end) {
            (Some(len), Some(end)) => len <= end || self.version.validator.is_some(),
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }
}
