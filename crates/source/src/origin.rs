//! Where an object of HTTP is, and what must be sent along to get it.
//!
//! Presigned URLs and tokens run out in the midst of a long transfer, so the answer is asked for
//! anew before each request; an origin that has to work for it keeps it as long as it is good.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;

use bootyard_spec::{Credentials, SafeUrl, Secret};
use reqwest::header::HeaderMap;

use crate::store::Told;
use crate::{Error, Options};

/// One object of one server, however the way to it is found.
pub(crate) trait Origin: fmt::Debug + Send + Sync {
    /// The object's name for messages, without secrets: what the user gave.
    fn name(&self) -> String;

    /// What the next request is sent to.
    fn locate(&self) -> Locating<'_>;

    /// What is sent as a form, instead of asking for something; not to where a redirect leads.
    fn form(&self) -> Option<&Secret> {
        None
    }

    /// The server wants other credentials (401): forgets the ones it had, if they only may have run
    /// out. Returns whether another request is worth it.
    fn renew(&self) -> bool {
        false
    }

    /// Whether [`Origin::explain`] shall be asked about answers that are no success.
    fn reads_refusals(&self) -> bool {
        false
    }

    /// What such an answer says beyond its status.
    fn explain(&self, _refusal: &Refusal<'_>) -> Option<Told> {
        None
    }
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// The body's start.
    pub(crate) body: &'a [u8],
}

/// The future of [`Origin::locate`].
pub(crate) type Locating<'a> = Pin<Box<dyn Future<Output = Result<Location, Error>> + Send + 'a>>;

/// What one request is sent to.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) url: SafeUrl,
    /// Headers besides those of the engine. Never sent to another host by a redirect.
    pub(crate) headers: HeaderMap,
}

/// A URL that the user gave, with what the user wants sent to it.
#[derive(Debug)]
pub(crate) struct Plain {
    given: SafeUrl,
    location: Location,
}

impl Plain {
    /// The URL as it stands.
    pub(crate) fn bare(url: &SafeUrl) -> Self {
        let location = Location { url: url.clone(), headers: HeaderMap::new() };
        Self { given: url.clone(), location }
    }

    pub(crate) fn new(given: &SafeUrl, options: &Options) -> Self {
        let mut url = given.expose().clone();
        if let Some(Credentials { id, secret }) = &options.credentials {
            // The client takes both out of the URL and decodes them. Only a URL without a host
            // refuses them.
            let encoded = |text: &str| text.replace('%', "%25");
            let _ = url.set_username(&encoded(id));
            let _ = url.set_password(Some(&encoded(secret.expose())));
        }
        let mut headers = HeaderMap::new();
        for header in &options.headers {
            headers.append(header.name(), header.value());
        }
        Self { given: given.clone(), location: Location { url: SafeUrl::from(url), headers } }
    }
}

impl Origin for Plain {
    fn name(&self) -> String {
        self.given.to_string()
    }

    fn locate(&self) -> Locating<'_> {
        Box::pin(ready(Ok(self.location.clone())))
    }
}
