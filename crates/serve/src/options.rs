//! What a server takes, from whom, and where it goes.

use std::time::Duration;

use bootyard_spec::{ByteSize, Claim, OutputFormat, Secret, Target};

use crate::token::{Subject, TokenKey};

/// How an upload server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the disk goes; for an archive a folder.
    pub target: Target,
    /// The class and modes of a volume of the store.
    pub claim: Claim,
    /// The size that the volume shall have; a larger disk is refused.
    pub size: Option<ByteSize>,
    /// The largest disk that is accepted, or the most that an archive may hold.
    pub max_size: Option<ByteSize>,
    /// How the disk is stored.
    pub output_format: OutputFormat,
    /// Whether the volume gets all of its space at once, and keeps it.
    pub preallocation: bool,
    /// Whose requests are taken.
    pub access: Access,
    /// TLS; plain HTTP without.
    pub tls: Option<Tls>,
    /// Go on answering after the upload is complete.
    pub keep: bool,
    /// How long a client may send nothing within a request, and how long an upload that waits for its
    /// client stands in the way of another one.
    pub stall_timeout: Duration,
}

/// What a request must carry.
#[derive(Debug, Clone)]
pub enum Access {
    /// Nothing.
    Anyone,
    /// `Authorization: Bearer` and this text.
    Token(Secret),
    /// `Authorization: Bearer` and a token that CDI's API server signed for this target.
    Signed(TokenKey, Subject),
}

/// The server's side of TLS. All of it is PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate, and those up to its authority.
    pub certificates: Vec<u8>,
    /// The certificate's key.
    pub key: Secret,
    /// The authorities of clients; with none, clients need no certificate.
    pub client_ca: Option<Vec<u8>>,
    /// The name that a client's certificate must have; any, if absent.
    pub client_name: Option<String>,
}
