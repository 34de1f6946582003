//! The bytes of an image out of a request's body, with a limit on how long nothing may come.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bootyard_spec::Digest;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};
use tokio::time::timeout;

use crate::error::Refusal;
use crate::form::FormReader;

/// RFC 9530 §3: the digest of what is represented, here of all bytes of the image as sent.
pub(crate) const REPR_DIGEST: &str = "repr-digest";

/// How long the rest of a refused body is still taken, so that the client sees the answer instead of a
/// broken connection.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A body as it passes.
#[derive(Debug)]
pub(crate) struct Chunks {
    body: Incoming,
    form: Option<FormReader>,
    /// Out of the form, and not given yet.
    ready: VecDeque<Bytes>,
    stall_timeout: Duration,
}

impl Chunks {
    /// The bytes of `body`.
    pub(crate) fn new(body: Incoming, stall_timeout: Duration) -> Self {
        Self { body, form: None, ready: VecDeque::new(), stall_timeout }
    }

    /// Only the bytes of the file in the form that the body is.
    pub(crate) fn read_form(&mut self, form: FormReader) {
        self.form = Some(form);
    }

    /// The next bytes; `None` behind the last one of a whole body. May be dropped without a loss.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            let Ok(frame) = timeout(self.stall_timeout, self.body.frame()).await else {
                let text = format!("nothing came for {:?}", self.stall_timeout);
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, text));
            };
            let bad_form = |error: crate::form::BadForm| Refusal::bad_request(error.to_string());
            match (frame, &mut self.form) {
                (Some(Err(error)), _) => {
                    return Err(Refusal::bad_request(format!("the body broke off: {error}")));
                }
                (None, Some(form)) => return form.end().map(|()| None).map_err(bad_form),
                (None, None) => return Ok(None),
                (Some(Ok(frame)), form) => match (frame.into_data(), form) {
                    (Ok(data), Some(form)) => {
                        self.ready.extend(form.push(&data).map_err(bad_form)?);
                    }
                    (Ok(data), None) => return Ok(Some(data)),
                    // Trailers.
                    (Err(_), _) => {}
                },
            }
        }
    }

    /// Takes what still comes, and drops it.
    pub(crate) fn drain(self) {
        let mut body = self.body;
        tokio::spawn(timeout(
            DRAIN_LIMIT,
            async move { while let Some(Ok(_)) = body.frame().await {} },
        ));
    }
}

/// The SHA-256 of the whole image, if the request tells it.
pub(crate) fn digest(headers: &HeaderMap) -> Result<Option<Digest>, Refusal> {
    let Some(value) = headers.get(REPR_DIGEST) else { return Ok(None) };
    let bad = || Refusal::bad_request("expected `Repr-Digest: sha-256=:BASE64:`");
    let text = value.to_str().map_err(|_| bad())?;
    let mut members = text.split(',').filter_map(|member| member.trim().split_once('='));
    let Some((_, value)) = members.find(|(name, _)| *name == "sha-256") else { return Err(bad()) };
    let value = value.strip_prefix(':').and_then(|value| value.strip_suffix(':'));
    let bytes = STANDARD.decode(value.ok_or_else(bad)?).map_err(|_| bad())?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().map(Some).map_err(|_| bad())
}

/// The value of [`REPR_DIGEST`] for a SHA-256.
pub(crate) fn repr_digest(sha256: &Digest) -> String {
    let digits = sha256.hex();
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or("0"));
    let bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap_or(0)).collect();
    format!("sha-256=:{}:", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        // RFC 9530 appendix B.1, whose content is `{"hello": "world"}` and a line feed.
        const TEXT: &str = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REPR_DIGEST, text.parse().unwrap());
            digest(&headers)
        };
        let read = parse(TEXT).unwrap().unwrap();
        assert!(read.hex().starts_with("44aff4ab2d7c3250"));
        assert_eq!(repr_digest(&read), TEXT);
        assert_eq!(parse(&format!("sha-512=:AA==:, {TEXT}")).unwrap().unwrap(), read);
        for text in ["", "sha-256", "sha-256=RK/0", "sha-256=:AA==:", "sha-512=:AA==:"] {
            assert_eq!(parse(text).unwrap_err().status, StatusCode::BAD_REQUEST, "{text}");
        }
        assert_eq!(digest(&HeaderMap::new()), Ok(None));
    }
}
