//! Why a server cannot serve, and what a client is told whose request fails.

use std::error::Error as StdError;
use std::io;

use bootyard_import as import;
use bootyard_spec::{Class, Explain};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

/// A server that could not begin, or was stopped before it was done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The certificate, the key or the clients' authorities cannot be used.
    #[error("cannot use the {what}")]
    Tls {
        /// Which of them: "certificate".
        what: &'static str,
        /// Why.
        #[source]
        error: Box<dyn StdError + Send + Sync>,
    },
    /// This machine gives no more threads or descriptors.
    #[error("cannot start the server")]
    Setup(#[source] io::Error),
    /// It was stopped before an upload was complete.
    #[error("the server was stopped before an upload was complete")]
    Stopped,
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Tls { .. } => Class::Usage,
            Self::Setup(_) => Class::Other,
            Self::Stopped => Class::Interrupted,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Tls { .. } => Some("expected files in PEM form, the key unencrypted".to_owned()),
            Self::Stopped => {
                Some("start it again: what can be gone on with is kept for the client".to_owned())
            }
            Self::Setup(_) => None,
        }
    }
}

/// The answer to a request that is not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// One line or more for people.
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn unauthorized(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, text)
    }

    pub(crate) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "another upload is under way")
    }

    pub(crate) fn done() -> Self {
        Self::new(StatusCode::CONFLICT, "the upload is already done: this server takes one")
    }

    /// What a failed import means to the client that sent the bytes: 400 where other bytes would have
    /// helped, 500 where this side is at fault or the connection broke.
    pub(crate) fn of_import(error: &import::Error) -> Self {
        let status = match error.class() {
            Class::Image | Class::Checksum | Class::Usage => StatusCode::BAD_REQUEST,
            Class::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut text = error.to_string();
        let mut said = text.clone();
        let mut next = error.source();
        while let Some(cause) = next {
            let own = cause.to_string();
            if !said.contains(&own) {
                text += &format!("\n  caused by: {own}");
            }
            said = own;
            next = cause.source();
        }
        Self { status, text }
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.text + "\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // The rest of a body may still be on its way: the next request takes a new connection.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(hyper::header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}
