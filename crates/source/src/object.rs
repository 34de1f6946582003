//! What the other crates see of a source, whichever transport it has.

use bootyard_spec::Digest;
use bytes::Bytes;

use crate::file::File;
use crate::http::Http;
use crate::inlet::Body;
use crate::stdin::{self, Stdin};
use crate::{Error, Validator};

/// An opened source.
///
/// The stream starts at the first byte, or at [`Start::at`](crate::Start), and goes forward once.
/// Ranged reads are independent of it and of each other.
#[derive(Debug)]
pub struct Object {
    transport: Transport,
    digest: Option<Digest>,
}

#[derive(Debug)]
enum Transport {
    File(File),
    Stdin(Stdin),
    // Much larger than a file, and there is one of it per import.
    Http(Box<Http>),
    Body(Body),
}

impl From<File> for Object {
    fn from(file: File) -> Self {
        Self { transport: Transport::File(file), digest: None }
    }
}

impl From<Stdin> for Object {
    fn from(stdin: Stdin) -> Self {
        Self { transport: Transport::Stdin(stdin), digest: None }
    }
}

impl From<Body> for Object {
    fn from(body: Body) -> Self {
        Self { transport: Transport::Body(body), digest: None }
    }
}

impl From<Http> for Object {
    fn from(http: Http) -> Self {
        Self { transport: Transport::Http(Box::new(http)), digest: None }
    }
}

impl Object {
    /// The length in bytes as announced; `None` if the server did not tell.
    pub fn len(&self) -> Option<u64> {
        match &self.transport {
            Transport::File(file) => Some(file.len()),
            Transport::Stdin(_) => None,
            Transport::Http(http) => http.len(),
            Transport::Body(body) => body.len(),
        }
    }

    /// The digest that its bytes must have, if whatever named it tells. Who reads it to its end
    /// verifies it.
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same object, whose bytes must have this digest.
    #[must_use]
    pub fn with_digest(self, digest: Option<Digest>) -> Self {
        Self { digest, ..self }
    }

    /// Whether the source announced that it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// What tells this version of the object from another one.
    pub fn validator(&self) -> Option<&Validator> {
        match &self.transport {
            Transport::File(file) => file.validator(),
            Transport::Stdin(_) => None,
            Transport::Http(http) => http.validator(),
            Transport::Body(body) => body.validator(),
        }
    }

    /// The offset in the object of the byte that the stream gives next.
    pub fn received(&self) -> u64 {
        match &self.transport {
            Transport::File(file) => file.received(),
            Transport::Stdin(stdin) => stdin.received(),
            Transport::Http(http) => http.received(),
            Transport::Body(body) => body.received(),
        }
    }

    /// Whether [`Object::read_range`] is worth trying.
    pub fn accepts_ranges(&self) -> bool {
        match &self.transport {
            Transport::File(_) => true,
            Transport::Stdin(_) => false,
            Transport::Http(http) => http.facts().accepts_ranges,
            Transport::Body(_) => false,
        }
    }

    /// Whether [`open_at`](crate::open_at) can begin the stream at any offset: a body that arrives can
    /// be sent on from there, though no part of it be had again.
    pub fn reopens(&self) -> bool {
        match &self.transport {
            Transport::Body(body) => body.validator().is_some(),
            _ => self.accepts_ranges(),
        }
    }

    /// The digest that came behind the bytes, once they have ended: it is to be compared as well.
    pub fn late_digest(&self) -> Option<&Digest> {
        match &self.transport {
            Transport::Body(body) => body.late_digest(),
            _ => None,
        }
    }

    /// Whether the stream comes in ranges over several connections.
    pub fn is_ranged(&self) -> bool {
        match &self.transport {
            Transport::File(_) => false,
            Transport::Stdin(_) => false,
            Transport::Http(http) => http.is_ranged(),
            Transport::Body(_) => false,
        }
    }

    /// How many requests at once the stream makes at most.
    pub fn connections(&self) -> usize {
        match &self.transport {
            Transport::File(_) => 0,
            Transport::Stdin(_) => 0,
            Transport::Http(http) => http.connections(),
            Transport::Body(_) => 0,
        }
    }

    /// The server's `Content-Type`. Only a hint: `text/html` is most often an error page.
    pub fn content_type(&self) -> Option<&str> {
        match &self.transport {
            Transport::File(_) => None,
            Transport::Stdin(_) => None,
            Transport::Http(http) => http.facts().content_type.as_deref(),
            Transport::Body(_) => None,
        }
    }

    /// Whether a stream that is cut short cannot look whole. `false` for an answer of HTTP that tells
    /// neither its length nor its end: only a digest, or the bytes themselves, can tell then.
    pub fn ends_surely(&self) -> bool {
        match &self.transport {
            Transport::File(_) => true,
            Transport::Stdin(_) => false,
            Transport::Http(http) => http.facts().ends_surely,
            Transport::Body(_) => true,
        }
    }

    /// The path or the URL, without its secrets: for messages.
    pub fn name(&self) -> String {
        match &self.transport {
            Transport::File(file) => file.name().to_owned(),
            Transport::Stdin(_) => stdin::NAME.to_owned(),
            Transport::Http(http) => http.name().to_owned(),
            Transport::Body(body) => body.name().to_owned(),
        }
    }

    /// How often the stream was asked for again, from its start or from where it broke.
    pub fn retries(&self) -> u32 {
        match &self.transport {
            Transport::File(_) => 0,
            Transport::Stdin(_) => 0,
            Transport::Http(http) => http.retries(),
            Transport::Body(_) => 0,
        }
    }

    /// The next bytes of the stream, at most about 1 MiB; `None` at its end, once exactly the
    /// announced bytes have come. Never empty bytes. After an error the stream is over. The future may
    /// be dropped, as `select!` does, and no byte is lost; but the pause before a retry then starts
    /// again, so that who drops it at short intervals waits for ever.
    ///
    /// # Errors
    ///
    /// If the source breaks off, stalls or changes, and the retries do not help.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.transport {
            Transport::File(file) => file.next().await,
            Transport::Stdin(stdin) => stdin.next().await,
            Transport::Http(http) => http.next().await,
            Transport::Body(body) => body.next().await,
        }
    }

    /// The bytes from `offset` on: `len` of them, or fewer at the end of the source.
    ///
    /// # Errors
    ///
    /// If the source serves no ranges ([`ErrorKind::NoRanges`](crate::ErrorKind::NoRanges)), sends
    /// others than were asked for, or is no longer the version that was opened.
    pub async fn read_range(&self, offset: u64, len: u64) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len).min(self.len().unwrap_or(u64::MAX));
        if offset >= end {
            return Ok(Bytes::new());
        }
        match &self.transport {
            Transport::File(file) => file.read_range(offset..end).await,
            Transport::Stdin(_) => Err(Error::no_ranges(stdin::NAME)),
            Transport::Http(http) => http.read_range(offset..end).await,
            Transport::Body(body) => Err(Error::no_ranges(body.name())),
        }
    }
}
