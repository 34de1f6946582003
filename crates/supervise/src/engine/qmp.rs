//! QEMU's machine protocol (QMP), of which only events are listened to: they say how the guest
//! ended, which the exit code does not.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Of a disk, as `-drive` names it.
    device: Option<String>,
    /// "read" or "write".
    operation: Option<String>,
}

/// What matters of the events of a QEMU that has exited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// How the guest ended. A panic counts for more than the power-off that follows it.
    pub(super) end: Option<GuestEnd>,
    /// The first error of a disk: those that follow have the same cause more often than not.
    pub(super) disk_error: Option<String>,
}

impl Heard {
    fn hear(&mut self, message: Message) {
        if message.event.as_deref() == Some("BLOCK_IO_ERROR") {
            self.disk_error.get_or_insert_with(|| disk_error(message.data));
        } else if self.end != Some(GuestEnd::Crash) {
            self.end = end(&message).or(self.end);
        }
    }
}

/// Our end of the connection.
#[derive(Debug)]
pub(super) struct Qmp {
    heard: Arc<Mutex<Heard>>,
    /// Closed when nothing more is heard.
    over: Receiver<()>,
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
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (listening, over) = mpsc::channel();
        let shared = Arc::clone(&heard);
        let listen = move || {
            for message in serde_json::Deserializer::from_reader(stream).into_iter() {
                let Ok(message) = message else { break };
                shared.lock().unwrap_or_else(PoisonError::into_inner).hear(message);
            }
            drop::<Sender<()>>(listening);
        };
        thread::Builder::new().name("qmp".to_owned()).spawn(listen)?;
        Ok(Self { heard, over, qemu: Some(qemu) })
    }

    /// The number of the descriptor that QEMU inherits.
    pub(super) fn number(&self) -> i32 {
        self.qemu.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Closes this process's copy of QEMU's end, once QEMU has its own.
    pub(super) fn handed_over(&mut self) {
        self.qemu = None;
    }

    /// What a QEMU said that has exited.
    pub(super) fn heard(&self) -> Heard {
        let _ = self.over.recv_timeout(PIPE_GRACE);
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What an event says about the guest's end.
fn end(message: &Message) -> Option<GuestEnd> {
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

/// "writing `disk0` failed: No space left on device".
fn disk_error(data: Data) -> String {
    let doing = if data.operation.as_deref() == Some("write") { "writing" } else { "reading" };
    let device = data.device.unwrap_or_default();
    let reason = data.reason.unwrap_or_else(|| "no reason given".to_owned());
    format!("{doing} `{device}` failed: {reason}")
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
            assert_eq!(end(&message), expected, "{text}");
        }
    }

    #[test]
    fn a_panic_and_the_first_disk_error_are_remembered() {
        let mut heard = Heard::default();
        for text in [
            r#"{"event": "BLOCK_IO_ERROR", "data": {"device": "disk0", "operation": "write", "action": "report", "reason": "No space left on device"}}"#,
            r#"{"event": "BLOCK_IO_ERROR", "data": {"device": "disk1", "operation": "read"}}"#,
            r#"{"event": "GUEST_PANICKED", "data": {"action": "poweroff"}}"#,
            r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
        ] {
            heard.hear(serde_json::from_str(text).unwrap());
        }
        let disk_error = Some("writing `disk0` failed: No space left on device".to_owned());
        assert_eq!(heard, Heard { end: Some(GuestEnd::Crash), disk_error });
    }
}
