//! What the guest and the host do together besides disks and network: memory that comes and goes,
//! consoles, channels, sockets.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The channel that QEMU's and KubeVirt's guest agent listens to.
pub const GUEST_AGENT: &str = "org.qemu.guest_agent.0";

/// What there is between a machine's guest and its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestServices {
    /// The guest gives memory back: what it does not use, and what its owner wishes.
    pub balloon: bool,
    /// The socket at which a console of its own is served, `hvc0`.
    pub console: Option<PathBuf>,
    /// Channels with names.
    pub channels: Vec<GuestChannel>,
    /// Stream sockets without a network.
    pub vsock: Option<GuestVsock>,
}

impl Default for GuestServices {
    /// A balloon and nothing else, as KubeVirt has it.
    fn default() -> Self {
        Self { balloon: true, console: None, channels: Vec::new(), vsock: None }
    }
}

/// A channel: `NAME=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestChannel {
    /// What the guest calls it: a file below `/dev/virtio-ports`.
    pub name: String,
    /// The socket at which the host serves it.
    pub socket: PathBuf,
}

/// Stream sockets between guest and host: `cid=NUMBER,socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestVsock {
    /// The guest's context identifier.
    pub cid: u32,
    /// The socket to which clients of the host connect. Services of the host listen at this path with
    /// `_` and their port behind it.
    pub socket: PathBuf,
}

/// The text is no channel, or no socket device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseServiceError {
    /// A channel is something else.
    #[error("expected NAME=SOCKET with a name of letters, digits and . _ -, got `{0}`")]
    Channel(String),
    /// A socket device is something else.
    #[error("expected cid=NUMBER,socket=PATH with a number from 3 to 4294967294, got `{0}`")]
    Vsock(String),
}

/// The longest name of a channel: as of files.
const NAME_MAX: usize = 255;

impl FromStr for GuestChannel {
    type Err = ParseServiceError;

    fn from_str(text: &str) -> Result<Self, ParseServiceError> {
        let wrong = || ParseServiceError::Channel(text.to_owned());
        let (name, socket) = text.split_once('=').ok_or_else(wrong)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let named = (1..=NAME_MAX).contains(&name.len()) && name.chars().all(plain);
        match named && !name.starts_with('.') && !socket.is_empty() {
            true => Ok(Self { name: name.to_owned(), socket: socket.into() }),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for GuestChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.socket.display())
    }
}

impl FromStr for GuestVsock {
    type Err = ParseServiceError;

    fn from_str(text: &str) -> Result<Self, ParseServiceError> {
        let wrong = || ParseServiceError::Vsock(text.to_owned());
        // A path may have commas in it, a number has none.
        let parts = match text.strip_prefix("cid=") {
            Some(rest) => rest.split_once(",socket="),
            None => text
                .strip_prefix("socket=")
                .and_then(|rest| rest.rsplit_once(",cid=").map(|(socket, cid)| (cid, socket))),
        };
        let (cid, socket) = parts.ok_or_else(wrong)?;
        // The others mean something else (virtio 1.2 §5.10.4).
        let cid = cid.parse().ok().filter(|cid| (3..u32::MAX).contains(cid)).ok_or_else(wrong)?;
        if socket.is_empty() {
            return Err(wrong());
        }
        Ok(Self { cid, socket: socket.into() })
    }
}

impl fmt::Display for GuestVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid={},socket={}", self.cid, self.socket.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_parse_back_and_others_are_refused() {
        for text in ["org.qemu.guest_agent.0=/run/a=b,c", "x=a"] {
            assert_eq!(text.parse::<GuestChannel>().unwrap().to_string(), text);
        }
        for text in ["", "x", "=a", "x=", "a/b=c", ".=c", "..=c", "a b=c"] {
            assert!(text.parse::<GuestChannel>().is_err(), "{text:?}");
        }
        for (text, expected) in [
            ("cid=3,socket=/run/a,b", "cid=3,socket=/run/a,b"),
            ("socket=/run/a,cid=x,cid=4294967294", "cid=4294967294,socket=/run/a,cid=x"),
        ] {
            assert_eq!(text.parse::<GuestVsock>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            "3",
            "cid=3",
            "socket=/a",
            "cid=2,socket=/a",
            "cid=4294967295,socket=/a",
            "cid=3,socket=",
            "cid=-3,socket=/a",
        ] {
            assert!(text.parse::<GuestVsock>().is_err(), "{text:?}");
        }
    }
}
