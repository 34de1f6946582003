//! QEMU's machine protocol (QMP), of which only events are listened to: they say how the guest
//! ended, which the exit code does not.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use bootyard_spec::GuestEnd;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::Deserialize;

use super::child::PIPE_GRACE;

/// What QEMU sends; fields that are not listed are skipped.
#[derive(Debug, Deserialize)]
struct Message {
    event: Option<String>,
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    reason: Option<String>,
}

/// Our end of the connection.
#[derive(Debug)]
pub(super) struct Qmp {
    ends: Receiver<GuestEnd>,
    qemu: Option<OwnedFd>,
}

impl Qmp {
    /// A connection whose other end QEMU inherits.
    pub(super) fn new() -> io::Result<Self> {
        let (ours, qemu) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Another child that is started at this moment inherits this end too and may hold it open
        // when QEMU is gone: that is why the end of the events is waited for with a limit.
        fcntl_setfd(&qemu, FdFlags::empty())?;
        let mut stream = UnixStream::from(ours);
        // QEMU sends no events before this; it may well wait in the socket until QEMU is up.
        stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        let (sender, ends) = mpsc::channel();
        let listen = move || {
            for message in serde_json::Deserializer::from_reader(stream).into_iter() {
                let Ok(message) = message else { return };
                // Nobody listens any more: that is no reason to let QEMU's socket fill up.
                let _ = meaning(&message).map(|end| sender.send(end));
            }
        };
        thread::Builder::new().name("qmp".to_owned()).spawn(listen)?;
        Ok(Self { ends, qemu: Some(qemu) })
    }

    /// The number of the descriptor that QEMU inherits.
    pub(super) fn number(&self) -> i32 {
        self.qemu.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Closes this process's copy of QEMU's end, once QEMU has its own.
    pub(super) fn handed_over(&mut self) {
        self.qemu = None;
    }

    /// How the guest ended, by what a QEMU said that has exited. A panic counts for more than the
    /// power-off that follows it.
    pub(super) fn end(&self) -> Option<GuestEnd> {
        let mut last = None;
        while let Ok(end) = self.ends.recv_timeout(PIPE_GRACE) {
            if last != Some(GuestEnd::Crash) {
                last = Some(end);
            }
        }
        last
    }
}

/// What an event says about the guest's end.
fn meaning(message: &Message) -> Option<GuestEnd> {
    match (message.event.as_deref()?, message.data.reason.as_deref()) {
        ("GUEST_PANICKED", _) | ("SHUTDOWN", Some("guest-panic")) => Some(GuestEnd::Crash),
        ("SHUTDOWN", Some("guest-shutdown")) => Some(GuestEnd::PowerOff),
        // Only where QEMU was told not to reset in place.
        ("SHUTDOWN", Some("guest-reset")) => Some(GuestEnd::Reset),
        // A signal, a closed window, a `quit`: somebody stopped it politely.
        ("SHUTDOWN", Some(_)) => Some(GuestEnd::Stopped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_the_end() {
        for (text, expected) in [
            (r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#, None),
            (r#"{"return": {}}"#, None),
            (
                r#"{"timestamp": {"seconds": 1}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#,
                None,
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
                Some(GuestEnd::PowerOff),
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#,
                Some(GuestEnd::Reset),
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-panic"}}"#,
                Some(GuestEnd::Crash),
            ),
            (
                r#"{"event": "GUEST_PANICKED", "data": {"action": "poweroff"}}"#,
                Some(GuestEnd::Crash),
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}"#,
                Some(GuestEnd::Stopped),
            ),
        ] {
            let message: Message = serde_json::from_str(text).unwrap();
            assert_eq!(meaning(&message), expected, "{text}");
        }
    }
}
