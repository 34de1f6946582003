//! Why a source could not be read: one error type with a stable kind for every transport.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use bootyard_spec::{Class, Explain, Platform, SafeUrl, Source, shell_word};
use reqwest::Url;

use crate::Validator;
use crate::server::REDIRECTS_MAX;
use crate::store::Told;

/// A failure to read a source. Shows its path or URL without secrets.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    /// The whole message of this level.
    what: String,
    status: Option<u16>,
    retry_after: Option<Duration>,
    /// How many requests were made before this was the answer to the caller.
    attempts: u32,
    /// What helps here, if that is more than what helps with every error of this kind.
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such file, or the server has nothing under this URL (404, 410).
    NotFound,
    /// Permissions, or the server wants credentials or refuses these (401, 403, 407).
    Denied,
    /// Another HTTP status than success.
    Status,
    /// The host's name is not known.
    Resolve,
    /// Nobody accepts the connection, or not in time.
    Connect,
    /// The connection cannot be made secure.
    Tls,
    /// Too many redirects, or one to where this version does not go.
    Redirect,
    /// The connection closed before all bytes had come.
    Broken,
    /// The server sent nothing for too long.
    Stalled,
    /// The object is another version than the one that was opened.
    Changed,
    /// A ranged read of a source that does not serve ranges.
    NoRanges,
    /// The answer contradicts itself or the request.
    BadAnswer,
    /// The path names something that has no bytes to read: a directory, a pipe.
    NotAFile,
    /// A machine, or who makes the file, may write to it meanwhile.
    InUse,
    /// The operating system failed to read.
    Read,
    /// A container image is not made as it should be, or is not there for the platform.
    Image,
    /// A part of a container image is not the one that its digest is of.
    Digest,
    /// The options or this machine's set-up cannot be used.
    Setup,
}

/// How far a stream had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) received: u64,
    pub(crate) len: Option<u64>,
}

/// The innermost cause of a library's error, as text: the layers above it say nothing to a user,
/// and some repeat the URL with its secrets.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: String) -> Self {
        let (status, retry_after, hint, source) = (None, None, None, None);
        Self(Box::new(Inner { kind, what, status, retry_after, attempts: 1, hint, source }))
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error with a remedy of its own.
    pub(crate) fn with_hint(mut self, hint: String) -> Self {
        self.0.hint = Some(hint);
        self
    }

    /// There are no bytes behind this kind of source.
    pub(crate) fn unsupported(source: &Source) -> Self {
        Self::new(ErrorKind::Setup, format!("`{source}` cannot be read as one object"))
    }

    /// The failure of an operation on a local file.
    pub(crate) fn file(path: &Path, error: io::Error) -> Self {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                Self::new(ErrorKind::NotFound, format!("`{shown}` does not exist"))
            }
            io::ErrorKind::PermissionDenied => {
                Self::new(ErrorKind::Denied, format!("`{shown}` may not be read"))
            }
            _ => Self::new(ErrorKind::Read, format!("cannot read `{shown}`")).because(error),
        }
    }

    /// The path names `found`, which is no file: "a directory".
    pub(crate) fn not_a_file(path: &Path, found: &str) -> Self {
        let what = format!("`{}` is {found}; expected a file or block device", path.display());
        Self::new(ErrorKind::NotAFile, what)
    }

    /// Somebody has locked the file for himself.
    pub(crate) fn in_use(path: &Path) -> Self {
        let what = format!("`{}` is in use by a process that may write to it", path.display());
        let hint =
            format!("stop its machine first; see which with `fuser -v {}`", shell_word(path));
        Self::new(ErrorKind::InUse, what).with_hint(hint)
    }

    /// The server answered with this status.
    pub(crate) fn status(
        url: &SafeUrl,
        last: &Url,
        status: u16,
        retry_after: Option<Duration>,
    ) -> Self {
        let kind = match status {
            300..=303 | 307 | 308 => ErrorKind::Redirect,
            404 | 410 => ErrorKind::NotFound,
            401 | 403 | 407 => ErrorKind::Denied,
            _ => ErrorKind::Status,
        };
        let name = route(url, redirected(url, last).as_ref());
        let what = match kind {
            ErrorKind::Redirect => format!("{name} redirects to no URL, with HTTP status {status}"),
            _ => format!("{name} answered with HTTP status {status}"),
        };
        let mut error = Self::new(kind, what);
        error.0.status = Some(status);
        error.0.retry_after = retry_after;
        error
    }

    /// The same error with what the answer's body says; of `name`, since the URL is not the user's.
    pub(crate) fn told(mut self, name: &str, told: &Told) -> Self {
        let status = self.0.status.unwrap_or_default();
        let Told { code, message, hint, .. } = told;
        let said = if message.is_empty() { code.clone() } else { format!("{code}: {message}") };
        self.0.what = format!("`{name}` answered with HTTP status {status} ({said})");
        self.0.hint.clone_from(hint);
        self
    }

    /// The server took no part of a new object.
    #[cfg(feature = "s3")]
    pub(crate) fn put(name: &str, status: u16, retry_after: Option<Duration>) -> Self {
        let kind = match status {
            404 | 410 => ErrorKind::NotFound,
            401 | 403 | 407 => ErrorKind::Denied,
            _ => ErrorKind::Status,
        };
        let mut error = Self::new(kind, format!("`{name}` answered with HTTP status {status}"));
        error.0.status = Some(status);
        error.0.retry_after = retry_after;
        error
    }

    /// Nobody knows who we are to this server.
    #[cfg(feature = "s3")]
    pub(crate) fn no_credentials(
        name: &str,
        error: impl Into<Box<dyn StdError + Send + Sync>>,
        hint: &str,
    ) -> Self {
        let mut own = Self::new(ErrorKind::Denied, format!("no credentials for `{name}`"));
        own.0.hint = Some(hint.to_owned());
        own.because(error)
    }

    /// The options or a name cannot be used.
    pub(crate) fn unusable(what: String) -> Self {
        Self::new(ErrorKind::Setup, what)
    }

    /// The HTTP client cannot be made with these options.
    pub(crate) fn setup(error: &reqwest::Error) -> Self {
        let what = "cannot set up the HTTP client".to_owned();
        Self::new(ErrorKind::Setup, what).because(innermost(error))
    }

    /// Redirects do not end.
    pub(crate) fn redirects(url: &SafeUrl) -> Self {
        let what = format!("`{url}` redirects more than {REDIRECTS_MAX} times");
        Self::new(ErrorKind::Redirect, what)
    }

    /// A redirect leads to where nobody can go, for the reason `why`.
    pub(crate) fn redirect(url: &SafeUrl, why: String) -> Self {
        let what = format!("cannot follow a redirect of `{url}`");
        Self::new(ErrorKind::Redirect, what).because(Cause(why))
    }

    /// A request failed before its answer came; `last` is where redirects had led.
    pub(crate) fn request(url: &SafeUrl, last: &Url, error: &reqwest::Error) -> Self {
        let last = redirected(url, last);
        let name = route(url, last.as_ref());
        let failed = last.as_ref().unwrap_or(url).expose();
        let host = failed.host_str().unwrap_or_default();
        let port = failed.port_or_known_default().unwrap_or_default();
        let from = last.as_ref().map(|_| format!(", to which `{url}` redirects"));
        let peer = format!("`{host}:{port}`{}", from.unwrap_or_default());
        let (kind, what) = match classify(error) {
            kind @ ErrorKind::Resolve => (kind, format!("cannot find the address of {name}")),
            kind @ ErrorKind::Connect => (kind, format!("cannot connect to {peer}")),
            kind @ ErrorKind::Tls => (kind, format!("no secure connection to {peer}")),
            kind => (kind, format!("{name} gave no answer")),
        };
        Self::new(kind, what).because(innermost(error))
    }

    /// The same failure of a request that went through a proxy, which then is the one to look at.
    pub(crate) fn through(mut self, proxy: Option<&SafeUrl>) -> Self {
        if let (Some(proxy), ErrorKind::Connect | ErrorKind::Resolve) = (proxy, self.kind()) {
            self.0.what += &format!(" through the proxy `{proxy}`");
            let hint = "check that proxy: `http_proxy`, `https_proxy` and `no_proxy` choose it";
            self.0.hint = Some(hint.to_owned());
        }
        self
    }

    /// Nothing at all came for `limit` after a request.
    pub(crate) fn no_answer(name: &str, limit: Duration) -> Self {
        Self::new(ErrorKind::Stalled, format!("`{name}` gave no answer for {limit:?}"))
    }

    /// The body of an answer broke off. Says why, not of what: [`Error::within`] adds that.
    pub(crate) fn body(error: &reqwest::Error) -> Self {
        Self::new(ErrorKind::Broken, innermost(error).0)
    }

    /// A body ended too early, without anybody calling that an error. As [`Error::body`].
    pub(crate) fn ended_early() -> Self {
        Self::new(ErrorKind::Broken, "the end came too early".to_owned())
    }

    /// Nothing came for `limit` within a body. As [`Error::body`].
    pub(crate) fn stalled(limit: Duration) -> Self {
        Self::new(ErrorKind::Stalled, format!("nothing came for {limit:?}"))
    }

    /// The validator or the length is not the one of the answer that the stream started with.
    pub(crate) fn changed(name: &str, old: Option<&Validator>, new: Option<&Validator>) -> Self {
        let what = match old.zip(new) {
            Some((old, new)) if old != new => {
                format!("`{name}` changed while it was read: was {old}, is {new}")
            }
            _ => format!("`{name}` changed its length while it was read"),
        };
        Self::new(ErrorKind::Changed, what)
    }

    /// A ranged request was answered with everything.
    pub(crate) fn no_ranges(name: &str) -> Self {
        Self::new(ErrorKind::NoRanges, format!("`{name}` cannot be read in parts"))
    }

    /// The answer is not one to the question.
    pub(crate) fn bad_answer(name: &str, expected: &str, got: &str) -> Self {
        let what = format!("`{name}` answered wrongly: expected {expected}, got {got}");
        Self::new(ErrorKind::BadAnswer, what)
    }

    /// What names an object says that it has another length.
    pub(crate) fn wrong_size(name: &str, expected: u64, got: u64) -> Self {
        let what = format!("`{name}` has {got} bytes; its manifest says {expected}");
        Self::new(ErrorKind::Digest, what)
    }

    /// What has to be read whole is larger than anything of its kind.
    pub(crate) fn too_large(name: &str, limit: u64) -> Self {
        let what = format!("`{name}` is too large: expected at most {limit} bytes");
        Self::new(ErrorKind::Image, what)
    }

    /// The container image is not made as it should be: "its manifest is malformed: …".
    pub(crate) fn image(image: &str, what: &str) -> Self {
        Self::new(ErrorKind::Image, format!("cannot use `{image}`: {what}"))
    }

    /// The container image is only there for other platforms.
    pub(crate) fn no_platform(image: &str, wanted: &Platform, offered: &[Platform]) -> Self {
        let offered: Vec<String> = offered.iter().map(ToString::to_string).collect();
        let what = match &offered[..] {
            [] => "expected an image, got none".to_owned(),
            offered => format!("expected one for {wanted}, got {}", offered.join(", ")),
        };
        let error = Self::image(image, &what);
        match offered.first() {
            Some(first) => {
                error.with_hint(format!("to take another one, add `--platform {first}`"))
            }
            None => error,
        }
    }

    /// There are none or several container images with this name.
    pub(crate) fn which_image(image: &str, all: &[String]) -> Self {
        let what = match all {
            [] => "it holds no image".to_owned(),
            all => format!("expected one image, got a choice of {}", all.join(", ")),
        };
        let error = Self::image(image, &what);
        match all.first() {
            Some(first) => error.with_hint(format!("name one behind a colon, such as `:{first}`")),
            None => error,
        }
    }

    /// The archive of a container image is compressed, so that it cannot be read in place.
    pub(crate) fn packed_archive(path: &Path) -> Self {
        let what = "its archive is compressed, and is read where it lies";
        let hint = format!("unpack it first, such as with `gunzip {}`", shell_word(path));
        Self::image(&path.display().to_string(), what).with_hint(hint)
    }

    /// The same error after so many requests.
    pub(crate) fn after(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// The error by which a stream of bytes ended, unless it says by itself that no further byte
    /// could be right.
    pub(crate) fn within(self, name: &str, progress: Progress) -> Self {
        let kind = match self.kind() {
            ErrorKind::Changed | ErrorKind::BadAnswer => return self,
            ErrorKind::Stalled => ErrorKind::Stalled,
            _ => ErrorKind::Broken,
        };
        let what = format!("`{name}` broke off: received {progress}");
        let attempts = self.0.attempts;
        let cause = self.after(1);
        Self::new(kind, what).because(cause).after(attempts)
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The HTTP status, if an answer with one is the failure.
    pub fn http_status(&self) -> Option<u16> {
        self.0.status
    }

    /// An upload server answered with this status, and said `text`.
    pub(crate) fn upload(
        server: &SafeUrl,
        status: u16,
        retry_after: Option<Duration>,
        text: &str,
    ) -> Self {
        let kind = match status {
            401 | 403 => ErrorKind::Denied,
            _ => ErrorKind::Status,
        };
        let mut error = Self::new(kind, format!("`{server}` refused the upload with {status}"));
        if !text.is_empty() {
            error = error.because(Cause(text.to_owned()));
        }
        error.0.status = Some(status);
        error.0.retry_after = retry_after;
        match status {
            401 if text.contains("certificate") => {
                error.with_hint("give a certificate that it knows with `--client-cert`".to_owned())
            }
            400 | 401 | 403 if kind == ErrorKind::Denied || text.contains("Bearer") => {
                error.with_hint("give a token that is valid now with `--token-file`".to_owned())
            }
            409 => error.with_hint("start a new server, for another target".to_owned()),
            _ => error,
        }
    }

    /// How long the server asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

/// Where redirects have led, if that is not the URL that was asked for.
fn redirected(asked: &SafeUrl, last: &Url) -> Option<SafeUrl> {
    // The client takes credentials out of the URL to send them, and never sends a fragment.
    let sent = |url: &Url| {
        let mut sent = url.clone();
        sent.set_fragment(None);
        // Only a URL without a host refuses these.
        let _ = (sent.set_username(""), sent.set_password(None));
        sent
    };
    (sent(last) != sent(asked.expose())).then(|| SafeUrl::from(sent(last)))
}

/// The URL that was asked for, and the last one after redirects.
fn route(asked: &SafeUrl, last: Option<&SafeUrl>) -> String {
    match last {
        Some(last) => format!("`{asked}` (redirected to `{last}`)"),
        None => format!("`{asked}`"),
    }
}

/// Sorts a failed request by what the user can do about it.
fn classify(error: &reqwest::Error) -> ErrorKind {
    let layers: Vec<&(dyn StdError + 'static)> = layers(error).collect();
    if layers.iter().any(|layer| layer.is::<rustls::Error>()) {
        return ErrorKind::Tls;
    }
    // The connector's own type for this is private to it; its text is pinned by a test.
    if layers.iter().any(|layer| layer.to_string() == "dns error") {
        return ErrorKind::Resolve;
    }
    if error.is_connect() { ErrorKind::Connect } else { ErrorKind::Broken }
}

/// The error and what caused it, outermost first. `io::Error::source` skips the error that it
/// wraps, so that one is looked into.
fn layers<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&layer| {
        match layer.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => layer.source(),
        }
    })
}

fn innermost(error: &reqwest::Error) -> Cause {
    Cause(layers(error).last().map(ToString::to_string).unwrap_or_default())
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len {
            Some(len) => write!(f, "{} of {len} bytes", self.received),
            None => write!(f, "{} bytes", self.received),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        // Of other kinds one is enough, whatever came before.
        let counts =
            matches!(self.0.kind, ErrorKind::Broken | ErrorKind::Stalled | ErrorKind::Status);
        match self.0.attempts {
            attempts if counts && attempts > 1 => write!(f, " in {attempts} attempts"),
            _ => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self.0.kind {
            ErrorKind::Digest => Class::Checksum,
            ErrorKind::Image => Class::Image,
            _ => Class::Source,
        }
    }

    fn hint(&self) -> Option<String> {
        if self.0.hint.is_some() {
            return self.0.hint.clone();
        }
        let hint = match (self.0.kind, self.0.status) {
            (ErrorKind::NotFound, Some(_)) => "check the URL: the server has nothing there",
            (ErrorKind::NotFound, None) => "check the path",
            (ErrorKind::Denied, Some(401)) => {
                "give `--user NAME --password-file FILE`, or the credentials that the server wants"
            }
            (ErrorKind::Denied, Some(407)) => {
                "give the proxy's user and password in its URL: `http://USER:PASSWORD@HOST:PORT`"
            }
            (ErrorKind::Denied, Some(_)) => {
                "check that these credentials may read it, and that a signed URL has not expired"
            }
            (ErrorKind::Denied, None) => "check the permissions of the file and of its folders",
            (ErrorKind::Status, Some(429 | 500..)) => {
                "the server is overloaded or in trouble; run the command again later"
            }
            (ErrorKind::Resolve, _) => "check the host's name and this machine's DNS",
            (ErrorKind::Connect, _) => {
                "check the host and the port, that the server runs, and that no firewall is between"
            }
            (ErrorKind::Tls, _) => {
                "the certificate must be valid for this host, in date, and signed by an authority \
                 that this machine trusts (Debian: package `ca-certificates`) or that `--ca-file \
                 FILE` names"
            }
            (ErrorKind::Redirect, _) => "give the URL at which the redirects end",
            (ErrorKind::Broken | ErrorKind::Stalled, _) => "run the command again",
            (ErrorKind::Changed, _) => "run the command again to read the new version",
            (ErrorKind::NoRanges | ErrorKind::BadAnswer, _) => {
                "download it with another tool and give the file's path"
            }
            (ErrorKind::NotAFile, _) => "give the image file itself",
            (ErrorKind::Digest, _) => {
                "it was changed or damaged in its registry or on its way; have it pushed again"
            }
            (
                ErrorKind::Status
                | ErrorKind::InUse
                | ErrorKind::Read
                | ErrorKind::Image
                | ErrorKind::Setup,
                _,
            ) => return None,
        };
        Some(hint.to_owned())
    }
}
