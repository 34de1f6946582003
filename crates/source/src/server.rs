//! Whom to ask for an object, and what counts as an answer: one request with its redirects, the
//! check that the answer is about the wanted bytes of the known version, and the pauses between
//! failures.
//!
//! Redirects are followed here, because the client would take foreign headers along: what an origin
//! sends besides the URL (credentials, tokens, the user's own headers) goes to the scheme, host and
//! port that it was meant for, and is gone for good once a redirect leads elsewhere. Not for which
//! failures are worth another request: that is [`retry`](crate::retry).

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bootyard_spec::{SafeUrl, Secret};
use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::{sleep, timeout};

use crate::origin::{Location, Origin, Refusal};
use crate::range::{ContentRange, Wanted, total_of_unsatisfied};
use crate::retry::{Failure, Stage, decide};
use crate::{Error, Options, Validator, client};

/// How many redirects are followed: what browsers and curl users are used to is enough for mirrors.
pub(crate) const REDIRECTS_MAX: usize = 10;

/// How much of a refusal's body is read, and how long its next part may take. What stores have to
/// say stands at the front.
const REFUSAL_MAX: usize = 4 << 10;
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);

/// The media type of an origin's form.
const FORM: &str = "application/x-www-form-urlencoded";
/// What helps where credentials would have been wanted by whom they were not meant for.
const DROPPED: &str = "credentials and headers are not taken along to another server: if they are \
                       meant for it, give the URL at which the redirects end";

#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    origin: Box<dyn Origin>,
    name: String,
    options: Options,
    health: Health,
}

/// How the server has behaved towards all parts of the object.
#[derive(Debug)]
struct Health {
    /// Requests that have failed since one brought enough, whichever part it was for.
    failed: AtomicU32,
    /// Requests that were made because another one had failed.
    retries: AtomicU32,
    /// The requests at a time that it has not complained about.
    connections: AtomicUsize,
}

/// Which version of the object the bytes must be of, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) len: Option<u64>,
    pub(crate) validator: Option<Validator>,
}

/// Where a request goes, and what may only go there.
struct Hop {
    url: Url,
    private: HeaderMap,
    form: Option<Secret>,
    /// A redirect has led elsewhere, and there was something private.
    has_dropped: bool,
}

impl Server {
    pub(crate) fn new(origin: Box<dyn Origin>, options: &Options) -> Result<Self, Error> {
        let health = Health {
            failed: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            connections: AtomicUsize::new(options.connections.max(1)),
        };
        let client = client::new(options)?;
        Ok(Self { client, name: origin.name(), origin, options: options.clone(), health })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn retries(&self) -> u32 {
        self.health.retries.load(Relaxed)
    }

    /// How many requests may be under way at once.
    pub(crate) fn connections(&self) -> usize {
        self.health.connections.load(Relaxed)
    }

    /// Makes one request, and checks that the answer is the one to it: the wanted bytes, of the
    /// version that is known; or that there are none where they would begin. An origin that learns
    /// from a refusal is asked where to go once more.
    pub(crate) async fn ask(&self, wanted: Wanted, known: &Version) -> Result<Response, Error> {
        let mut has_learned = false;
        loop {
            let (url, hop, answer) = self.follow(wanted, known).await?;
            let Err(error) = self.check(&url, &answer, wanted, known) else { return Ok(answer) };
            let is_401 = error.http_status() == Some(401);
            let error =
                if is_401 && hop.has_dropped { error.with_hint(DROPPED.into()) } else { error };
            let (error, again) = self.explained(error, answer).await;
            if has_learned || !(again || is_401 && self.origin.renew()) {
                return Err(error);
            }
            has_learned = true;
        }
    }

    /// Makes one request and those that its redirects ask for.
    async fn follow(
        &self,
        wanted: Wanted,
        known: &Version,
    ) -> Result<(SafeUrl, Hop, Response), Error> {
        let Location { url, headers } = self.origin.locate().await?;
        let mut hop = Hop::first(&url, headers, self.origin.form().cloned());
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.send(&url, &hop, wanted, known).await?;
            let Some(location) = redirect(&answer) else { return Ok((url, hop, answer)) };
            hop.follow(location).map_err(|why| Error::redirect(&url, why))?;
        }
        Err(Error::redirects(&url))
    }

    async fn send(
        &self,
        url: &SafeUrl,
        hop: &Hop,
        wanted: Wanted,
        known: &Version,
    ) -> Result<Response, Error> {
        let request = match &hop.form {
            None => self.client.get(hop.url.clone()),
            Some(form) => {
                let request = self.client.post(hop.url.clone()).header(CONTENT_TYPE, FORM);
                request.body(form.expose().to_owned())
            }
        };
        let request = request.headers(hop.private.clone());
        let mut request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(range) = wanted.header() {
            request = request.header(RANGE, range);
            if let Some(value) = known.validator.as_ref().and_then(Validator::if_range) {
                request = request.header(IF_RANGE, value);
            }
        }
        let limit = self.options.connect_timeout + self.options.stall_timeout;
        match timeout(limit, request.send()).await {
            Ok(sent) => sent.map_err(|error| {
                let proxy = self.options.proxy.of(&hop.url);
                Error::request(url, &hop.url, &error).through(proxy)
            }),
            Err(_) => Err(Error::no_answer(&self.name, limit)),
        }
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
        known: &Version,
    ) -> Result<(), Error> {
        let (headers, status) = (answer.headers(), answer.status());
        let ranged = wanted.header().is_some();
        let total = total(answer);
        match status {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if ranged => {}
            StatusCode::RANGE_NOT_SATISFIABLE if ranged && total.is_some() => {}
            _ => {
                let (status, retry_after) = (status.as_u16(), retry_after(headers));
                return Err(Error::status(url, answer.url(), status, retry_after));
            }
        }
        if let Some(coding) = encoded(headers) {
            return Err(Error::bad_answer(&self.name, "no `Content-Encoding`", coding));
        }
        let now = Validator::from_headers(headers);
        let ends_before = is_at_end(answer) && total < Some(wanted.start);
        if ends_before || known.contradicts(now.as_ref(), total) {
            return Err(Error::changed(&self.name, known.validator.as_ref(), now.as_ref()));
        }
        let good = match status {
            // A first request asks for a range only to see whether it gets one.
            StatusCode::OK if ranged && (wanted.start > 0 || known.len.is_some()) => {
                return Err(Error::no_ranges(&self.name));
            }
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => content_range(headers).is_some_and(|range| {
                let len = range.bytes.end - range.bytes.start;
                let announced = answer.content_length();
                range.answers(wanted, known.len) && announced.is_none_or(|bytes| bytes == len)
            }),
            // There is nothing behind the bytes that have come: the object ends there.
            _ => total == Some(wanted.start),
        };
        if good {
            return Ok(());
        }
        let mut got = text(headers, CONTENT_RANGE).unwrap_or("no `Content-Range`").to_owned();
        if let Some(length) = answer.content_length() {
            got += &format!(" in {length} bytes");
        }
        Err(Error::bad_answer(&self.name, &wanted.header().unwrap_or_default(), &got))
    }

    /// The next bytes of an answer, not empty; `None` at its end.
    pub(crate) async fn chunk(&self, answer: &mut Response) -> Result<Option<Bytes>, Error> {
        loop {
            match timeout(self.options.stall_timeout, answer.chunk()).await {
                Ok(Ok(Some(bytes))) if bytes.is_empty() => {}
                Ok(Ok(chunk)) => return Ok(chunk),
                Ok(Err(error)) => return Err(Error::body(&error)),
                Err(_) => return Err(Error::stalled(self.options.stall_timeout)),
            }
        }
    }

    /// Waits before the next request, or gives the error back if there shall be none. `attempts`
    /// are those of one part; while others move on, its failures are not the server's end.
    pub(crate) async fn pause(
        &self,
        error: Error,
        attempts: u32,
        stage: Stage,
    ) -> Result<(), Error> {
        if matches!(error.http_status(), Some(429 | 503)) {
            let fewer = |connections: usize| (connections > 1).then(|| connections - 1);
            let _ = self.health.connections.fetch_update(Relaxed, Relaxed, fewer);
        }
        let in_a_row = self.health.failed.fetch_add(1, Relaxed) + 1;
        let failure = Failure {
            kind: error.kind(),
            status: error.http_status(),
            retry_after: error.retry_after(),
            attempts: attempts.min(in_a_row),
            stage,
        };
        match decide(failure, &self.options, dice()) {
            Some(delay) => {
                sleep(delay).await;
                self.health.retries.fetch_add(1, Relaxed);
                Ok(())
            }
            None => Err(error.after(attempts)),
        }
    }

    /// A request has brought enough bytes to count as a success.
    pub(crate) fn moved_on(&self) {
        self.health.failed.store(0, Relaxed);
    }
}

impl Hop {
    fn first(url: &SafeUrl, private: HeaderMap, form: Option<Secret>) -> Self {
        Self { url: url.expose().clone(), private, form, has_dropped: false }
    }

    /// Goes on to where a redirect leads, with what is private only within one origin
    /// (RFC 6454 §4). Fails with the reason why it cannot.
    fn follow(&mut self, location: &str) -> Result<(), String> {
        let mut next = self.url.join(location).map_err(|error| error.to_string())?;
        if !matches!(next.scheme(), "http" | "https") {
            return Err("URL scheme is not allowed".to_owned());
        }
        let inside = next.origin() == self.url.origin();
        let (user, password) = match inside {
            true => (self.url.username(), self.url.password()),
            false => ("", None),
        };
        // Only a URL without a host refuses these.
        let _ = (next.set_username(user), next.set_password(password));
        if !inside {
            let user = !self.url.username().is_empty() || self.url.password().is_some();
            self.has_dropped |= user || !self.private.is_empty();
            self.private.clear();
        }
        self.form = None;
        self.url = next;
        Ok(())
    }
}

impl Version {
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

/// Where the answer redirects to.
fn redirect(answer: &Response) -> Option<&str> {
    let follows = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    text(answer.headers(), LOCATION).filter(|_| follows)
}

/// Whether the answer says that the object has no byte where the wanted ones begin.
pub(crate) fn is_at_end(answer: &Response) -> bool {
    answer.status() == StatusCode::RANGE_NOT_SATISFIABLE
}

/// The length of the whole object, as an answer announces it.
pub(crate) fn total(answer: &Response) -> Option<u64> {
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
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, RETRY_AFTER)?.parse().ok().map(Duration::from_secs)
}

/// The coding that the body is in although none was asked for: these are not the object's bytes.
fn encoded(headers: &HeaderMap) -> Option<&str> {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.map(|value| value.to_str().unwrap_or("an unreadable one"));
    codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
}

pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A number from 0 to 1. The hash maps' random keys are random enough to spread clients.
pub(crate) fn dice() -> f64 {
    (RandomState::new().hash_one(()) >> 32) as f64 / f64::from(u32::MAX)
}
