//! An upload in one request: CDI's endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Request, Response};

use crate::body::{Chunks, REPR_DIGEST, digest, repr_digest};
use crate::error::Refusal;
use crate::form::FormReader;
use crate::job::{Content, Ended, verdict};
use crate::route::Form;
use crate::server::{Finished, Running, Shared, Start};

/// Marks what CDI's cloner sends,
const CDI_CONTENT_TYPE: &str = "x-cdi-content-type";
/// and what that may be.
const CLONES: [&[u8]; 2] = [b"filesystem-clone", b"blockdevice-clone"];

/// Receives an upload to its end. Is to be run as a task of its own: once all bytes are here, it does
/// not matter whether the client still is.
pub(crate) async fn receive(
    shared: Arc<Shared>,
    client: IpAddr,
    form: Form,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let (head, body) = request.into_parts();
    let len = body.size_hint().exact().filter(|_| form != Form::Multipart);
    let mut chunks = Chunks::new(body, shared.options.stall_timeout);
    let received = take(&shared, client, form, &head.headers, len, &mut chunks).await;
    if received.is_err() {
        chunks.drain();
    }
    received
}

async fn take(
    shared: &Arc<Shared>,
    client: IpAddr,
    form: Form,
    headers: &HeaderMap,
    len: Option<u64>,
    chunks: &mut Chunks,
) -> Result<Response<Full<Bytes>>, Refusal> {
    shared.sessions.make_way(shared.options.stall_timeout).await;
    let claim = shared.claim()?;
    // Both are snappy, of a disk or of a tar with one in it: its first bytes say so themselves.
    let kind = headers.get(CDI_CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind.is_some_and(|kind| !CLONES.contains(&kind)) {
        let text = format!(
            "expected `{CDI_CONTENT_TYPE}: filesystem-clone` or `blockdevice-clone`, or none"
        );
        return Err(Refusal::bad_request(text));
    }
    if form == Form::Multipart {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let reader = FormReader::new(content_type.unwrap_or_default());
        chunks.read_form(reader.map_err(|error| Refusal::bad_request(error.to_string()))?);
    }
    let content = if form == Form::Archive { Content::Archive } else { Content::Disk };
    let name = format!("upload from {client}");
    let checksum = digest(headers)?;
    let start = Start { name, content, checksum, len, validator: None };
    let sha256 = pass_on(chunks, shared.begin(start).await?).await?;
    let response = Response::builder().header(REPR_DIGEST, repr_digest(&sha256));
    claim.done(Finished { id: None, len: 0, sha256 });
    Ok(response.body(Full::default()).expect("a digest is a header's value"))
}

/// Feeds a whole body to the import, and waits for its verdict.
async fn pass_on(chunks: &mut Chunks, running: Running) -> Ended {
    let Running { feed, ended, .. } = running;
    loop {
        match chunks.next().await {
            Ok(Some(chunk)) => {
                if feed.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok(None) => {
                // That it has ended already is the verdict's to say.
                let _ = feed.finish(None).await;
                break;
            }
            Err(refusal) => {
                // Without its feed the import ends; nobody else may begin before.
                drop(feed);
                let _ = verdict(ended).await;
                return Err(refusal);
            }
        }
    }
    verdict(ended).await
}
