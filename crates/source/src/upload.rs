//! Sending a file to an upload server: ours, in as many requests as it takes, or CDI's upload proxy.
//!
//! ```text
//! OPTIONS /v1/uploads ─ tus 1.0? ─► POST, then PATCH after PATCH; what breaks goes on by POST again
//!            └─ not there ─► HEAD /v1beta1/upload-async ─► POST of everything, again from byte 0
//! ```
//! The bytes are hashed as they go, and the digest follows them: a server of ours compares it before
//! anything becomes visible.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bootyard_spec::{Digest, SafeUrl, Secret, Source, Verifier};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};
use tokio::time::{sleep, timeout};

use crate::retry::{Failure, Stage, decide};
use crate::server::{dice, retry_after};
use crate::{Error, ErrorKind, Object, Options, Start, Validator, client, open, open_at};

/// The bytes of one request at most: a proxy that keeps a body before it passes it on can do that.
const PATCH_MAX: u64 = 256 << 20;
/// How often it is told how far the upload has come.
const TICK: Duration = Duration::from_millis(100);
/// How long the server may take for its verdict once it has all bytes.
const VERDICT_LIMIT: Duration = Duration::from_secs(3600);
/// How much of a refusal's text is shown.
const REFUSAL_MAX: usize = 2 << 10;

const UPLOADS: &str = "v1/uploads";
const REPR_DIGEST: &str = "repr-digest";

/// What is sent, and where to.
#[derive(Debug, Clone)]
pub struct Upload {
    /// A file, or standard input.
    pub source: Source,
    /// The server, without the endpoint's path.
    pub server: SafeUrl,
    /// What goes behind `Authorization: Bearer`.
    pub token: Option<Secret>,
    /// The file is a tar archive that becomes a folder.
    pub archive: bool,
}

/// How an upload gets on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sending {
    /// So many bytes have been sent, of so many if that is known.
    Sent(u64, Option<u64>),
    /// The server has as many from an attempt before.
    Resumed(u64),
    /// A request failed and is made again; so often by now, and why.
    Retried(u32, String),
    /// All bytes are there, and the server is to give its verdict.
    Verifying,
}

/// What was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// How many bytes the source has.
    pub bytes: u64,
    /// How many of them the server had from an attempt before.
    pub resumed_bytes: u64,
    /// Their digest.
    pub sha256: Digest,
    /// Whether the server has compared the digest.
    pub compared: bool,
    /// How often a request was made again.
    pub retries: u32,
}

/// Sends a file, as [`Options`] say how patiently.
///
/// # Errors
///
/// If the file cannot be read, or the server not be reached after the retries, or refuses it: its text
/// is the cause.
pub async fn upload(
    upload: &Upload,
    options: &Options,
    tell: &dyn Fn(Sending),
) -> Result<Sent, Error> {
    let mut headers = HeaderMap::new();
    if let Some(token) = &upload.token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
        let bad = |_| Error::unusable("the token has characters that no header can hold".into());
        let mut value = value.map_err(bad)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let sender = Sender { client: client::new(options)?, headers, upload, options, tell };
    let mut failed = 0;
    let is_ours = loop {
        match sender.is_ours().await {
            Ok(is_ours) => break is_ours,
            Err(error) => {
                sender.pause(error, &mut failed, Stage::Start).await?;
            }
        }
    };
    if is_ours && !upload.archive { sender.resumable().await } else { sender.whole().await }
}

struct Sender<'a> {
    client: Client,
    headers: HeaderMap,
    upload: &'a Upload,
    options: &'a Options,
    tell: &'a dyn Fn(Sending),
}

/// What all requests of an upload share: how far it is, and the digest so far.
#[derive(Debug, Clone)]
struct Tap {
    /// Bytes of the source that have been handed to a connection.
    sent: Arc<AtomicU64>,
    verifier: Arc<Mutex<Verifier>>,
}

impl Tap {
    fn new() -> Self {
        let verifier = Arc::new(Mutex::new(Verifier::new(Vec::new())));
        Self { sent: Arc::default(), verifier }
    }

    /// Notes the bytes that end at `end`; hashes those of them that have not been yet.
    fn note(&self, chunk: &[u8], end: u64) {
        self.sent.store(end, Relaxed);
        let mut verifier = self.verifier.lock().unwrap_or_else(PoisonError::into_inner);
        let new = end.saturating_sub(verifier.seen());
        if new <= chunk.len() as u64 {
            verifier.update(&chunk[chunk.len() - new as usize..]);
        }
    }

    fn seen(&self) -> u64 {
        self.verifier.lock().unwrap_or_else(PoisonError::into_inner).seen()
    }

    fn digest(&self) -> Digest {
        let verifier = self.verifier.lock().unwrap_or_else(PoisonError::into_inner).clone();
        verifier.finish().expect("nothing was expected").sha256().clone()
    }
}

impl Sender<'_> {
    fn url(&self, path: &str) -> Url {
        let mut url = self.upload.server.expose().clone();
        let path = format!("{}/{path}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url).headers(self.headers.clone());
        request.header("tus-resumable", "1.0.0")
    }

    /// Makes a request without a body.
    async fn ask(&self, method: Method, url: Url, headers: HeaderMap) -> Result<Response, Error> {
        let limit = self.options.connect_timeout + self.options.stall_timeout;
        let sent = timeout(limit, self.request(method, url).headers(headers).send()).await;
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(Error::no_answer(&self.upload.server.to_string(), limit)),
        }
    }

    fn failed(&self, error: &reqwest::Error) -> Error {
        let server = &self.upload.server;
        let proxy = self.options.proxy.of(server.expose());
        Error::request(server, server.expose(), error).through(proxy)
    }

    /// Whether the server speaks the resumable protocol.
    async fn is_ours(&self) -> Result<bool, Error> {
        let response = self.ask(Method::OPTIONS, self.url(UPLOADS), HeaderMap::new()).await?;
        if response.status().is_success() {
            let versions = response.headers().get("tus-version").and_then(|v| v.to_str().ok());
            return Ok(versions.is_some_and(|all| all.split(',').any(|v| v.trim() == "1.0.0")));
        }
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.refused(response).await),
            StatusCode::BAD_REQUEST if self.upload.token.is_none() => {
                Err(self.refused(response).await)
            }
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                Err(self.refused(response).await)
            }
            _ => Ok(false),
        }
    }

    /// What a refusal means, with what the server says.
    async fn refused(&self, mut response: Response) -> Error {
        let mut text = Vec::new();
        let pause = Duration::from_secs(5);
        while text.len() < REFUSAL_MAX
            && let Ok(Ok(Some(chunk))) = timeout(pause, response.chunk()).await
        {
            text.extend_from_slice(&chunk);
        }
        text.truncate(REFUSAL_MAX);
        let (server, status) = (&self.upload.server, response.status().as_u16());
        let after = retry_after(response.headers());
        Error::upload(server, status, after, String::from_utf8_lossy(&text).trim())
    }

    async fn accept(&self, response: Response) -> Result<Response, Error> {
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response).await)
        }
    }

    /// Waits before the next attempt and gives its reason, or the error back if there shall be none.
    async fn pause(&self, error: Error, failed: &mut u32, stage: Stage) -> Result<String, Error> {
        *failed += 1;
        let failure = Failure {
            kind: error.kind(),
            status: error.http_status(),
            retry_after: error.retry_after(),
            attempts: *failed,
            stage,
        };
        let Some(pause) = decide(failure, self.options, dice()) else {
            return Err(error.after(*failed));
        };
        sleep(pause).await;
        Ok(error.to_string())
    }

    /// Sends a request whose body passes the tap, and tells how far it is. What stands still for too
    /// long, `verdict` aside, has failed.
    async fn send(
        &self,
        request: RequestBuilder,
        tap: &Tap,
        len: Option<u64>,
    ) -> Result<Response, Error> {
        let mut sending = Box::pin(request.send());
        let (mut at, mut still, mut told) = (tap.sent.load(Relaxed), Duration::ZERO, false);
        loop {
            if let Ok(sent) = timeout(TICK, &mut sending).await {
                (self.tell)(Sending::Sent(tap.sent.load(Relaxed), len));
                return match sent {
                    Ok(response) => self.accept(response).await,
                    Err(error) => Err(self.failed(&error)),
                };
            }
            let now = tap.sent.load(Relaxed);
            (self.tell)(Sending::Sent(now, len));
            still = if now == at { still + TICK } else { Duration::ZERO };
            at = now;
            let is_whole = len == Some(now);
            if is_whole && !told {
                (self.tell)(Sending::Verifying);
                told = true;
            }
            let limit = if is_whole { VERDICT_LIMIT } else { self.options.stall_timeout };
            if still > limit {
                return Err(Error::no_answer(&self.upload.server.to_string(), limit));
            }
        }
    }

    /// Everything in one request, as CDI's servers want it; again from the first byte if it fails.
    async fn whole(&self) -> Result<Sent, Error> {
        let endpoint = match self.upload.archive {
            true => "v1beta1/upload-archive",
            false => {
                let url = self.url("v1beta1/upload-async");
                let found = self.ask(Method::HEAD, url, HeaderMap::new()).await?;
                if found.status().is_success() { "v1beta1/upload-async" } else { "v1beta1/upload" }
            }
        };
        let mut failed = 0;
        loop {
            let tap = Tap::new();
            let object = open(&self.upload.source, self.options).await?;
            let len = object.len();
            let body = Body::wrap_stream(chunks(object, tap.clone(), u64::MAX));
            let mut request = self.request(Method::POST, self.url(endpoint)).body(body);
            if let Some(len) = len {
                request = request.header(CONTENT_LENGTH, len);
            }
            let stage = match self.upload.source {
                Source::Stdin => Stage::Midway { resumable: false },
                _ => Stage::Midway { resumable: true },
            };
            let why = match self.send(request, &tap, len).await {
                Ok(response) => {
                    let sha256 = tap.digest();
                    let compared = self.compare(&response, &sha256)?;
                    let (bytes, resumed_bytes, retries) = (tap.seen(), 0, failed);
                    return Ok(Sent { bytes, resumed_bytes, sha256, compared, retries });
                }
                Err(error) => self.pause(error, &mut failed, stage).await?,
            };
            (self.tell)(Sending::Retried(failed, why));
        }
    }

    /// Whether the server tells the digest of what it took. One that differs is an error.
    fn compare(&self, response: &Response, sha256: &Digest) -> Result<bool, Error> {
        let Some(told) = response.headers().get(REPR_DIGEST) else { return Ok(false) };
        if told.as_bytes() == repr_digest(sha256).as_bytes() {
            return Ok(true);
        }
        let name = self.upload.server.to_string();
        Err(Error::bad_answer(&name, &format!("the digest {sha256}"), "another one"))
    }

    /// In as many requests as it takes.
    async fn resumable(&self) -> Result<Sent, Error> {
        let object = open(&self.upload.source, self.options).await?;
        let facts = Facts::of(&object);
        let Some(len) = facts.len else { return self.once(object, &facts).await };
        let (tap, mut failed, mut retries) = (Tap::new(), 0, 0);
        let (mut resumed_bytes, mut at_failure) = (None, 0);
        let stage = Stage::Midway { resumable: true };
        while let Err(error) = self.attempt(&facts, len, &tap, &mut resumed_bytes).await {
            // What has moved on counts anew.
            let sent = tap.sent.load(Relaxed);
            if sent > at_failure {
                (failed, at_failure) = (0, sent);
            }
            let why = self.pause(error, &mut failed, stage).await?;
            retries += 1;
            (self.tell)(Sending::Retried(retries, why));
        }
        let resumed_bytes = resumed_bytes.unwrap_or(0);
        Ok(Sent { bytes: len, resumed_bytes, sha256: tap.digest(), compared: true, retries })
    }

    /// Goes on from where the server is to the end.
    async fn attempt(
        &self,
        facts: &Facts,
        len: u64,
        tap: &Tap,
        resumed: &mut Option<u64>,
    ) -> Result<(), Error> {
        let (url, mut offset) = self.create(facts).await?;
        if resumed.is_none() && offset > 0 {
            (self.tell)(Sending::Resumed(offset));
        }
        resumed.get_or_insert(offset);
        // What another process has sent is a part of the digest too.
        let mut object = self.open_at(facts, tap.seen().min(offset)).await?;
        while tap.seen() < offset {
            let Some(chunk) = object.next().await? else { break };
            tap.note(&chunk, object.received());
        }
        tap.sent.store(offset, Relaxed);
        while offset < len {
            let object = self.open_at(facts, offset).await?;
            let part = PATCH_MAX.min(len - offset);
            let body = Body::wrap_stream(chunks(object, tap.clone(), part));
            let request = self.patch(&url, offset, body).header(CONTENT_LENGTH, part);
            self.send_on(request, tap, Some(len)).await?;
            offset += part;
        }
        let sha256 = tap.digest();
        let last = self.patch(&url, offset, Body::default());
        let last = last.header(CONTENT_LENGTH, 0).header(REPR_DIGEST, repr_digest(&sha256));
        let response = self.send_on(last, tap, Some(len)).await?;
        self.compare(&response, &sha256).map(|_| ())
    }

    /// Of a length that only its end tells: in one request, and without a second one if that fails.
    async fn once(&self, object: Object, facts: &Facts) -> Result<Sent, Error> {
        let (url, offset) = self.create(facts).await?;
        let tap = Tap::new();
        let body = Body::wrap_stream(chunks(object, tap.clone(), u64::MAX));
        self.send_on(self.patch(&url, offset, body), &tap, None).await?;
        let (len, sha256) = (tap.seen(), tap.digest());
        let last = self.patch(&url, len, Body::default()).header("upload-length", len);
        let last = last.header(CONTENT_LENGTH, 0).header(REPR_DIGEST, repr_digest(&sha256));
        let response = self.send_on(last, &tap, Some(len)).await?;
        self.compare(&response, &sha256)?;
        Ok(Sent { bytes: len, resumed_bytes: 0, sha256, compared: true, retries: 0 })
    }

    async fn open_at(&self, facts: &Facts, at: u64) -> Result<Object, Error> {
        let start = Start { at, validator: facts.validator.clone() };
        open_at(&self.upload.source, self.options, &start).await
    }

    /// Begins the upload, or finds it: where it is, and how many bytes the server has.
    async fn create(&self, facts: &Facts) -> Result<(Url, u64), Error> {
        let mut headers = HeaderMap::new();
        match facts.len {
            Some(len) => headers.insert("upload-length", HeaderValue::from(len)),
            None => headers.insert("upload-defer-length", HeaderValue::from_static("1")),
        };
        let metadata = HeaderValue::from_str(&facts.metadata).expect("base64 is plain text");
        headers.insert("upload-metadata", metadata);
        let response = self.ask(Method::POST, self.url(UPLOADS), headers).await?;
        let response = self.accept(response).await?;
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let bad = |expected: &str| {
            Error::bad_answer(&self.upload.server.to_string(), expected, "something else")
        };
        let id = text("location").and_then(|location| location.rsplit('/').next());
        let id = id.filter(|id| !id.is_empty()).ok_or_else(|| bad("a `Location`"))?;
        let offset = text("upload-offset").map_or(Ok(0), str::parse);
        let offset = offset.ok().filter(|offset| facts.len.is_none_or(|len| *offset <= len));
        let offset = offset.ok_or_else(|| bad("an `Upload-Offset` within the file"))?;
        Ok((self.url(&format!("{UPLOADS}/{id}")), offset))
    }

    fn patch(&self, url: &Url, offset: u64, body: Body) -> RequestBuilder {
        self.request(Method::PATCH, url.clone())
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .header("upload-offset", offset)
            .body(body)
    }

    /// As [`Sender::send`]. That the server has lost the upload, or is elsewhere in it, may pass.
    async fn send_on(
        &self,
        request: RequestBuilder,
        tap: &Tap,
        len: Option<u64>,
    ) -> Result<Response, Error> {
        self.send(request, tap, len).await.map_err(|error| match error.http_status() {
            Some(404 | 409 | 423) => {
                let what = format!("`{}` lost the upload", self.upload.server);
                Error::new(ErrorKind::Broken, what).because(error)
            }
            _ => error,
        })
    }
}

/// What tells one upload from another.
struct Facts {
    len: Option<u64>,
    validator: Option<Validator>,
    /// The value of `Upload-Metadata`.
    metadata: String,
}

impl Facts {
    fn of(object: &Object) -> Self {
        let (len, validator, name) = (object.len(), object.validator().cloned(), object.name());
        let version = validator.as_ref().map(ToString::to_string).unwrap_or_default();
        // Two files that agree in all of this and are not the same are found out by the digest.
        let identity = format!("{name}\n{len:?}\n{version}");
        let identity = ring::digest::digest(&ring::digest::SHA256, identity.as_bytes());
        let hex: String = identity.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let file_name = name.rsplit('/').next().unwrap_or_default();
        let file_name = STANDARD.encode(file_name.replace(char::is_control, "_"));
        let id = match len {
            Some(_) => format!(",id {}", STANDARD.encode(&hex[..32])),
            None => String::new(),
        };
        Self { len, validator, metadata: format!("filename {file_name}{id},sha256") }
    }
}

/// The next `len` bytes of an object, which pass the tap.
fn chunks(
    object: Object,
    tap: Tap,
    len: u64,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    stream::try_unfold((object, len), move |(mut object, left)| {
        let tap = tap.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let Some(mut chunk) = object.next().await? else { return Ok(None) };
            let end = object.received();
            let over = (chunk.len() as u64).saturating_sub(left);
            chunk.truncate(chunk.len() - over as usize);
            tap.note(&chunk, end - over);
            let left = left - chunk.len() as u64;
            Ok(Some((chunk, (object, left))))
        }
    })
}

/// RFC 9530's `Repr-Digest` of a SHA-256.
fn repr_digest(sha256: &Digest) -> String {
    let digits = sha256.hex();
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or("0"));
    let bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap_or(0)).collect();
    format!("sha-256=:{}:", STANDARD.encode(bytes))
}
