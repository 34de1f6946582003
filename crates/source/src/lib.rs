//! Bytes from elsewhere: local files and block devices, HTTP and HTTPS, container images.
//!
//! [`open`] turns a [`Source`] into an [`Object`]: a forward stream of bytes with the facts that the
//! other side tells about it (length, validator, whether it serves ranges), and ranged reads where
//! it does. What breaks on the way is resumed here, so that who reads sees either exactly the
//! announced bytes or one [`Error`]. A transport is one file; [`Object`] is all that the other
//! crates see of it.
//!
//! Not for what the bytes mean: formats, digests and decompression belong to others.

pub mod checksums;
mod client;
mod error;
mod file;
mod gcs;
mod header;
mod http;
mod inlet;
mod object;
pub mod oci;
mod origin;
mod part;
mod proxy;
mod range;
mod retry;
mod s3;
mod segments;
mod server;
mod stdin;
mod store;
mod upload;
mod validator;

use std::time::Duration;

use bootyard_spec::{Credentials, Secret, Source};

use crate::origin::Origin;

pub use error::{Error, ErrorKind};
pub use gcs::GcsOptions;
pub use header::{Header, ParseHeaderError};
pub use inlet::{Feed, Inlet, Openings};
pub use object::Object;
pub use proxy::{NoProxy, ProxyOptions};
#[cfg(feature = "s3")]
pub use s3::NewObject;
pub use s3::S3Options;
pub use upload::{Sending, Sent, Upload, upload};
pub use validator::{ParseValidatorError, Validator};

/// How patiently a source is read. The defaults suit an image server on the internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a connection may take to be made, name look-up and TLS included. Default 10 s.
    pub connect_timeout: Duration,
    /// How long a server may send nothing, before its answer or within it. Default 60 s: a mirror
    /// that fetches the object first needs more than a few seconds.
    pub stall_timeout: Duration,
    /// How many requests for consecutive parts of one stream may be under way at once, where the
    /// server serves ranges. Default 4; with 1 there is one request for the whole stream. The parts
    /// that wait to be taken are in memory: this many times 2 MiB at most.
    pub connections: usize,
    /// How many requests in a row may fail, the first included, for one forward stream or for one
    /// ranged read. A stream that breaks off after it has moved on counts anew. Default 5; with 1
    /// nothing is retried.
    pub attempts: u32,
    /// The pause before the second request; each further one is twice as long. Default 200 ms.
    pub retry_delay: Duration,
    /// The `User-Agent` header. Default `bootyard/VERSION`.
    pub user_agent: String,
    /// Certificates (PEM) of authorities that are trusted besides the system's. Default none.
    pub extra_ca: Vec<u8>,
    /// Believes any server to be who it says, whatever its certificate. Default false.
    pub insecure_skip_verify: bool,
    /// Through whom servers are asked. Default nobody.
    pub proxy: ProxyOptions,
    /// Headers besides those of the transfer, for a source that is a URL. Default none.
    pub headers: Vec<Header>,
    /// User and password for the source; for S3 the key pair. Default none.
    pub credentials: Option<Credentials>,
    /// Which container image is meant, and how its registry is spoken to.
    pub image: oci::ImageOptions,
    /// How S3 is spoken to.
    pub s3: S3Options,
    /// How Google's object store is spoken to.
    pub gcs: GcsOptions,
    /// Certificate and key (PEM) by which servers know us. Default none.
    pub client_identity: Option<Secret>,
    /// Where the bytes of a [`Source::Upload`] come in. Default nowhere.
    pub inlet: Option<Inlet>,
}

/// Where a stream begins, and in which version of the object. The default is the first byte of
/// whatever is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// The offset of the first byte that is wanted.
    pub at: u64,
    /// The version that the bytes before `at` came from. Without one nothing but the length can tell
    /// that it is another.
    pub validator: Option<Validator>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            connections: 4,
            attempts: 5,
            retry_delay: Duration::from_millis(200),
            user_agent: concat!("bootyard/", env!("CARGO_PKG_VERSION")).to_owned(),
            extra_ca: Vec::new(),
            insecure_skip_verify: false,
            proxy: ProxyOptions::default(),
            headers: Vec::new(),
            credentials: None,
            image: oci::ImageOptions::default(),
            s3: S3Options::default(),
            gcs: GcsOptions::default(),
            client_identity: None,
            inlet: None,
        }
    }
}

/// Opens a source: the file is there, or the server has answered with the object's first bytes on
/// the way. Needs a tokio runtime with time and I/O, and [`install_crypto_provider`] before.
///
/// # Errors
///
/// If there is nothing to read, after the retries that [`Options`] allow.
pub async fn open(source: &Source, options: &Options) -> Result<Object, Error> {
    open_at(source, options, &Start::default()).await
}

/// Opens a source to read it on from where another reader stopped.
///
/// # Errors
///
/// As [`open`]. [`ErrorKind::Changed`] if the source is another version than the one that `start`
/// names, or ends before it; [`ErrorKind::NoRanges`] if it can only be read from its first byte.
pub async fn open_at(source: &Source, options: &Options, start: &Start) -> Result<Object, Error> {
    let origin: Box<dyn Origin> = match source {
        Source::File(path) => return file::File::open_at(path, start).await.map(Object::from),
        Source::Stdin => return stdin::Stdin::open(start).map(Object::from),
        Source::Http(url) => Box::new(origin::Plain::new(url, options)),
        #[cfg(feature = "s3")]
        Source::S3(object) => Box::new(s3::S3::new(object.clone(), options).await?),
        Source::Gcs(object) => Box::new(gcs::Gcs::new(object.clone(), options)?),
        Source::Upload(name) => {
            let inlet = options.inlet.as_ref().ok_or_else(|| Error::unsupported(source))?;
            return inlet.open(name, start).map(Object::from);
        }
        other => return Err(Error::unsupported(other)),
    };
    http::Http::open_at(origin, options, start).await.map(Object::from)
}

/// Chooses the process's TLS implementation. Call it once, first thing in `main`; another call does
/// nothing.
pub fn install_crypto_provider() {
    // It fails only if a provider was chosen before, which then stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
