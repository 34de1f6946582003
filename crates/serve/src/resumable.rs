//! An upload in as many requests as it takes: the core of tus 1.0 with its extensions `creation` and
//! `creation-defer-length` (<https://tus.io/protocols/resumable-upload>), and a digest at the end.
//!
//! ```text
//! POST  /v1/uploads      Upload-Length, Upload-Metadata  ─► 201 Location, Upload-Offset
//! HEAD  /v1/uploads/ID                                   ─► 200 Upload-Offset
//! PATCH /v1/uploads/ID   Upload-Offset, bytes            ─► 204 Upload-Offset
//! ```
//! The import begins with the POST and waits for the next bytes while no client is there. The answer to
//! the request that completes the upload is the import's verdict. A POST with the `id` of an upload that
//! was begun before goes on with it, also after the server was restarted: the offset is then the one up
//! to which the import's journal reaches, or 0.
//!
//! Keys of `Upload-Metadata` that mean something: `id`, what makes this version of this file another one
//! than all others; `filename`, for messages; `sha256`, in hexadecimal digits, or without a value if the
//! last request, an empty one, will have it as `Repr-Digest`.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bootyard_source::{Feed, Openings, Validator};
use bootyard_spec::Digest;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Mutex, MutexGuard, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::body::{Chunks, REPR_DIGEST, digest, repr_digest};
use crate::error::Refusal;
use crate::job::{Content, Ended, verdict};
use crate::route::UPLOADS;
use crate::server::{Claim, Finished, Running, Shared, Start};

const VERSION: &str = "1.0.0";
const TUS_RESUMABLE: &str = "tus-resumable";
const UPLOAD_LENGTH: &str = "upload-length";
const UPLOAD_DEFER_LENGTH: &str = "upload-defer-length";
const UPLOAD_METADATA: &str = "upload-metadata";
const UPLOAD_OFFSET: &str = "upload-offset";
const MEDIA_TYPE: &str = "application/offset+octet-stream";

/// How long a request waits until the one before it, whose connection may be dead, lets go.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(10);
/// The most characters of an upload's id.
const ID_MAX: usize = 128;

type Answer = Result<Response<Full<Bytes>>, Refusal>;

/// The one upload that is under way, and who is at it.
#[derive(Debug)]
pub(crate) struct Sessions {
    current: Mutex<Option<Session>>,
    /// Which one it is, for who need not wait for it.
    id: CurrentId,
    /// Counts the requests for it: one that sees a newer one lets go.
    newest: watch::Sender<u64>,
}

/// The id of the upload that is under way.
type CurrentId = Arc<std::sync::Mutex<Option<String>>>;

/// Says which upload is under way, until it is dropped.
#[derive(Debug)]
struct Named(CurrentId);

impl Named {
    fn new(current: &CurrentId, id: &str) -> Self {
        *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
        Self(Arc::clone(current))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// An upload that is not complete.
#[derive(Debug)]
struct Session {
    id: String,
    named: Named,
    len: Option<u64>,
    /// The digest comes with the last request.
    digest_follows: bool,
    offset: u64,
    feed: Feed,
    openings: Openings,
    ended: oneshot::Receiver<Ended>,
    claim: Claim,
    touched: Instant,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        let (current, id) = (Mutex::new(None), CurrentId::default());
        Self { current, id, newest: watch::channel(0).0 }
    }

    /// Lets go of the upload: its import keeps what can be gone on with.
    pub(crate) async fn clear(&self) {
        self.newest.send_modify(|newest| *newest += 1);
        if let Ok(mut current) = timeout(TAKEOVER_LIMIT, self.current.lock()).await {
            current.take();
        }
    }

    /// Lets go of an upload whose client has been silent for so long, so that another one may come.
    pub(crate) async fn make_way(&self, grace: Duration) {
        let Ok(mut current) = self.current.try_lock() else { return };
        if current.as_ref().is_some_and(|session| session.touched.elapsed() >= grace) {
            Session::end(current.take()).await;
        }
    }

    /// Whether the upload of this id is under way.
    fn is_current(&self, id: &str) -> bool {
        self.id.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(id)
    }

    /// The upload of this id, once whoever was at it has let go. A request for another one disturbs
    /// nobody.
    async fn take_over(
        &self,
        id: &str,
    ) -> Result<(MutexGuard<'_, Option<Session>>, Newest), Refusal> {
        if !self.is_current(id) {
            return Err(unknown());
        }
        self.newest.send_modify(|newest| *newest += 1);
        let newest = Newest(self.newest.subscribe());
        let current = timeout(TAKEOVER_LIMIT, self.current.lock()).await;
        let locked = || Refusal::new(StatusCode::LOCKED, "another request is at this upload");
        Ok((current.map_err(|_| locked())?, newest))
    }
}

/// Tells when a newer request has come.
struct Newest(watch::Receiver<u64>);

/// Answers a request for the collection, or for one upload.
pub(crate) async fn receive(
    shared: Arc<Shared>,
    client: IpAddr,
    id: Option<String>,
    request: Request<Incoming>,
) -> Answer {
    let version = request.headers().get(TUS_RESUMABLE);
    if version.is_some_and(|version| version != VERSION) {
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "expected tus 1.0.0"));
    }
    match (request.method().clone(), id) {
        (Method::OPTIONS, _) => Ok(response(
            StatusCode::NO_CONTENT,
            &[("tus-version", VERSION), ("tus-extension", "creation,creation-defer-length")],
        )),
        (Method::POST, None) => create(shared, client, request.headers()).await,
        (Method::HEAD, Some(id)) => state(&shared, &id).await,
        (Method::PATCH, Some(id)) => append(shared, &id, request).await,
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "there is nothing here")),
    }
}

fn response(status: StatusCode, headers: &[(&str, &str)]) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status).header(TUS_RESUMABLE, VERSION);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::default()).unwrap_or_default()
}

/// What a client says of its upload.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metadata {
    id: Option<String>,
    file_name: Option<String>,
    sha256: Option<Digest>,
    digest_follows: bool,
}

impl Metadata {
    fn parse(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut metadata = Self::default();
        let Some(text) = headers.get(UPLOAD_METADATA) else { return Ok(metadata) };
        let bad = || Refusal::bad_request("expected `Upload-Metadata: KEY BASE64,…`");
        for pair in text.to_str().map_err(|_| bad())?.split(',').map(str::trim) {
            let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
            let value = STANDARD.decode(value.trim()).ok().and_then(|v| String::from_utf8(v).ok());
            let value = value.ok_or_else(bad)?;
            match key {
                "id" if is_id(&value) => metadata.id = Some(value),
                "id" => {
                    let text = format!("expected an id of 1 to {ID_MAX} letters, digits, - or _");
                    return Err(Refusal::bad_request(text));
                }
                "filename" if value.contains(char::is_control) => {
                    let text = "expected a filename without control characters";
                    return Err(Refusal::bad_request(text));
                }
                "filename" => metadata.file_name = Some(value).filter(|name| !name.is_empty()),
                "sha256" if value.is_empty() => metadata.digest_follows = true,
                "sha256" => {
                    let digest = format!("sha256:{value}").parse();
                    let bad = |error: bootyard_spec::ParseDigestError| error.to_string();
                    let digest = digest.map_err(bad).map_err(Refusal::bad_request)?;
                    metadata.sha256 = Some(digest);
                }
                _ => {}
            }
        }
        Ok(metadata)
    }
}

fn is_id(text: &str) -> bool {
    (1..=ID_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Refusal::bad_request(format!("`{name}` is not a number")))
}

/// Begins an upload, or goes on with the one that has this id.
async fn create(shared: Arc<Shared>, client: IpAddr, headers: &HeaderMap) -> Answer {
    let len = number(headers, UPLOAD_LENGTH)?;
    if len.is_none() && headers.get(UPLOAD_DEFER_LENGTH).is_none_or(|value| value != "1") {
        let text = "expected `Upload-Length`, or `Upload-Defer-Length: 1`";
        return Err(Refusal::bad_request(text));
    }
    let metadata = Metadata::parse(headers)?;
    let wanted = metadata.id.clone();
    let mut current = match &wanted {
        Some(id) if shared.sessions.is_current(id) => shared.sessions.take_over(id).await?.0,
        _ => shared.sessions.current.try_lock().map_err(|_| Refusal::busy())?,
    };
    if let Some(finished) = shared.finished()
        && let Some(id) = wanted.as_deref().filter(|id| finished.id.as_deref() == Some(*id))
    {
        if len.is_some_and(|len| len != finished.len) {
            return Err(Refusal::done());
        }
        finished.compare(metadata.sha256.as_ref())?;
        return Ok(created(id, finished.len));
    }
    if let Some(session) = &mut *current {
        if Some(&session.id) == wanted.as_ref() && session.len == len {
            session.touched = Instant::now();
            return Ok(created(&session.id, session.offset));
        }
        if session.touched.elapsed() < shared.options.stall_timeout {
            return Err(Refusal::busy());
        }
    }
    Session::end(current.take()).await;
    let claim = shared.claim()?;
    // The same for every attempt at this file, from wherever.
    let name = match &metadata.file_name {
        Some(name) => format!("upload of `{name}`"),
        None => format!("upload from {client}"),
    };
    let start = Start {
        name,
        content: Content::Disk,
        checksum: metadata.sha256,
        len,
        validator: wanted.as_ref().map(|id| Validator::ETag(format!("\"{id}\""))),
    };
    let Running { feed, openings, ended } = shared.begin(start).await?;
    let id = wanted.unwrap_or_else(random_id);
    let session = Session {
        named: Named::new(&shared.sessions.id, &id),
        id,
        len,
        digest_follows: metadata.digest_follows,
        offset: feed.at(),
        feed,
        openings,
        ended,
        claim,
        touched: Instant::now(),
    };
    let response = created(&session.id, session.offset);
    *current = Some(session);
    Ok(response)
}

fn created(id: &str, offset: u64) -> Response<Full<Bytes>> {
    let (location, offset) = (format!("{UPLOADS}/{id}"), offset.to_string());
    let headers = [(LOCATION.as_str(), location.as_str()), (UPLOAD_OFFSET, offset.as_str())];
    response(StatusCode::CREATED, &headers)
}

fn random_id() -> String {
    let mut bytes = [0; 16];
    // Without randomness two clients without an id could meet; only one of them is let in anyway.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How far an upload has come.
async fn state(shared: &Shared, id: &str) -> Answer {
    if let Some(response) = complete(shared, id, StatusCode::OK) {
        return Ok(response);
    }
    let (mut current, _newest) = shared.sessions.take_over(id).await?;
    if let Some(response) = complete(shared, id, StatusCode::OK) {
        return Ok(response);
    }
    let session = current.as_mut().filter(|session| session.id == id).ok_or_else(unknown)?;
    session.touched = Instant::now();
    let offset = session.offset.to_string();
    let len = session.len.map(|len| len.to_string());
    let length = match &len {
        Some(len) => (UPLOAD_LENGTH, len.as_str()),
        None => (UPLOAD_DEFER_LENGTH, "1"),
    };
    let no_store = (CACHE_CONTROL.as_str(), "no-store");
    Ok(response(StatusCode::OK, &[(UPLOAD_OFFSET, &offset), length, no_store]))
}

/// The answer about an upload that is complete.
fn complete(shared: &Shared, id: &str, status: StatusCode) -> Option<Response<Full<Bytes>>> {
    let finished = shared.finished().filter(|finished| finished.id.as_deref() == Some(id))?;
    let (len, digest) = (finished.len.to_string(), repr_digest(&finished.sha256));
    let no_store = (CACHE_CONTROL.as_str(), "no-store");
    let headers = [(UPLOAD_OFFSET, len.as_str()), (UPLOAD_LENGTH, &len), no_store];
    Some(response(status, &[&headers[..], &[(REPR_DIGEST, &digest)]].concat()))
}

/// The answer to a client that completes an upload once more, as it did before.
fn repeated(
    shared: &Shared,
    id: &str,
    (offset, len): (u64, Option<u64>),
    digest: Option<&Digest>,
) -> Result<Option<Response<Full<Bytes>>>, Refusal> {
    let finished = shared.finished().filter(|finished| finished.id.as_deref() == Some(id));
    let Some(finished) = finished else { return Ok(None) };
    if len.is_some_and(|len| len != finished.len) {
        return Err(other_length());
    }
    if offset != finished.len {
        return Err(wrong_offset(finished.len));
    }
    finished.compare(digest)?;
    Ok(complete(shared, id, StatusCode::NO_CONTENT))
}

fn wrong_offset(expected: u64) -> Refusal {
    Refusal::new(StatusCode::CONFLICT, format!("the next byte is the one at {expected}"))
}

fn other_length() -> Refusal {
    Refusal::bad_request("`Upload-Length` is another one than before")
}

fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such upload; begin it again by POST")
}

/// Takes more of an upload.
async fn append(shared: Arc<Shared>, id: &str, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let mut chunks = Chunks::new(body, shared.options.stall_timeout);
    let appended = append_chunks(&shared, id, &head.headers, &mut chunks).await;
    if appended.is_err() {
        chunks.drain();
    }
    appended
}

async fn append_chunks(
    shared: &Arc<Shared>,
    id: &str,
    headers: &HeaderMap,
    chunks: &mut Chunks,
) -> Answer {
    if headers.get(CONTENT_TYPE).is_none_or(|value| value != MEDIA_TYPE) {
        let text = format!("expected `Content-Type: {MEDIA_TYPE}`");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let offset = number(headers, UPLOAD_OFFSET)?;
    let offset = offset.ok_or_else(|| Refusal::bad_request("expected `Upload-Offset`"))?;
    let (digest, len) = (digest(headers)?, number(headers, UPLOAD_LENGTH)?);
    if let Some(response) = repeated(shared, id, (offset, len), digest.as_ref())? {
        return Ok(response);
    }
    let (mut current, mut newest) = shared.sessions.take_over(id).await?;
    if let Some(response) = repeated(shared, id, (offset, len), digest.as_ref())? {
        return Ok(response);
    }
    let session = current.as_mut().filter(|session| session.id == id).ok_or_else(unknown)?;
    session.announce(len)?;
    if offset != session.offset {
        return Err(wrong_offset(session.offset));
    }
    let reading = session.take(chunks, &mut newest).await;
    session.touched = Instant::now();
    let is_open = reading?;
    let (len, offset) = (session.len, session.offset);
    let is_last = len == Some(offset) && (digest.is_some() || !session.digest_follows);
    if is_open && !is_last {
        return Ok(response(StatusCode::NO_CONTENT, &[(UPLOAD_OFFSET, &offset.to_string())]));
    }
    if !is_open && let Some(feed) = session.openings.try_next() {
        // The import began anew after it had been begun: what it has noted was of no use.
        session.offset = feed.at();
        session.feed = feed;
        return Err(Refusal::new(StatusCode::CONFLICT, "the upload starts over"));
    }
    // It is under way until there is a verdict.
    let taken = current.take().ok_or_else(unknown)?;
    let Session { feed, ended, claim, named: _named, .. } = taken;
    if is_last {
        // That it has ended already is the verdict's to say.
        let _ = feed.finish(digest).await;
    }
    let sha256 = verdict(ended).await?;
    claim.done(Finished { id: Some(id.to_owned()), len: offset, sha256 });
    complete(shared, id, StatusCode::NO_CONTENT).ok_or_else(unknown)
}

impl Session {
    /// Ends an upload; its import keeps what can be gone on with.
    async fn end(session: Option<Self>) {
        if let Some(Self { feed, ended, .. }) = session {
            drop(feed);
            let _ = verdict(ended).await;
        }
    }

    /// Learns the length that was deferred.
    fn announce(&mut self, len: Option<u64>) -> Result<(), Refusal> {
        match (self.len, len) {
            (_, None) => Ok(()),
            (None, len) => {
                self.len = len;
                Ok(())
            }
            (own, len) if own == len => Ok(()),
            _ => Err(other_length()),
        }
    }

    /// Takes the bytes of a request; `false` if the import reads no more.
    async fn take(&mut self, chunks: &mut Chunks, newest: &mut Newest) -> Result<bool, Refusal> {
        loop {
            let chunk = tokio::select! {
                biased;
                _ = newest.0.changed() => {
                    let text = "another request goes on with this upload";
                    return Err(Refusal::new(StatusCode::CONFLICT, text));
                }
                chunk = chunks.next() => chunk?,
            };
            let Some(chunk) = chunk else { return Ok(true) };
            let end = self.offset + chunk.len() as u64;
            if self.len.is_some_and(|len| end > len) {
                let text = "more bytes than `Upload-Length` announced";
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            if self.feed.send(chunk).await.is_err() {
                return Ok(false);
            }
            self.offset = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Metadata, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(UPLOAD_METADATA, text.parse().unwrap());
        Metadata::parse(&headers)
    }

    #[test]
    fn metadata_is_read() {
        let encode = |text: &str| STANDARD.encode(text);
        let digest = "0".repeat(64);
        let text = format!(
            "filename {},id {}, sha256 {},other {}",
            encode("größe.qcow2"),
            encode("a-1_B"),
            encode(&digest),
            encode("x")
        );
        let expected = Metadata {
            id: Some("a-1_B".into()),
            file_name: Some("größe.qcow2".into()),
            sha256: Some(format!("sha256:{digest}").parse().unwrap()),
            digest_follows: false,
        };
        assert_eq!(parse(&text), Ok(expected));
        assert!(parse("sha256").unwrap().digest_follows);
        let forged = format!("filename {}", encode("a\nupload of `b` failed"));
        for text in [
            &forged,
            "id",
            "id YS9i",
            "id !",
            &format!("id {}", encode(&"a".repeat(129))),
            "sha256 YWJj",
        ] {
            assert_eq!(parse(text).unwrap_err().status, StatusCode::BAD_REQUEST, "{text}");
        }
    }
}
