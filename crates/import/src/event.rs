//! What an import tells while it runs.

use std::fmt;

use crate::Plan;

/// What takes the events of an import. Called often and from the thread that reads the source, so
/// that an implementor does no more than note them, or show them every now and then.
pub trait Events {
    /// Takes one event.
    fn event(&self, event: Event<'_>);
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The next phase began.
    Phase(Phase),
    /// The source's head has been read, and it is settled what is done.
    Planned(&'a Plan),
    /// Bytes have moved.
    Moved(Moved),
    /// The source broke off and is read again from there; this often so far.
    Retried(u32),
    /// An import that another process has begun is gone on with, from this offset of the source.
    Resumed(u64),
    /// One cannot be gone on with, and is begun anew.
    StartedOver(&'a str),
}

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Claiming the target and reaching the source.
    Connecting,
    /// Fetching, hashing, decoding and writing, all at once.
    Transferring,
    /// All bytes have come; the last are decoded, and the digest is compared.
    Verifying,
    /// Making the disk durable and giving it its name.
    Publishing,
}

/// How many bytes have moved since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that came from the source.
    pub fetched: u64,
    /// Bytes that the source has, if it tells.
    pub total: Option<u64>,
    /// Bytes of data that were written to the target.
    pub written: u64,
}

impl Phase {
    /// The name in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Transferring => "transferring",
            Self::Verifying => "verifying",
            Self::Publishing => "publishing",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Nobody listens.
impl Events for () {
    fn event(&self, _event: Event<'_>) {}
}
