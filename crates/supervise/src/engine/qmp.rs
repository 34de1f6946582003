//! QEMU's machine protocol (QMP). Its events say how the guest ended, which the exit code does not;
//! its commands are what [`super::qemu_remote`] makes of ours.

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
use serde_json::Value;

use super::child::PIPE_GRACE;
use super::qemu_remote::{Answer, QemuRemote, Refusal};
use crate::LaunchPlan;
use crate::control::wire::{Event, ResetBy};
use crate::control::{OpenMedium, Remote};

/// What QEMU sends; fields that are not listed are skipped.
#[derive(Debug, Deserialize)]
struct Message {
    event: Option<String>,
    #[serde(default)]
    data: Data,
    /// Of the command that is answered.
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    reason: Option<String>,
    /// Of a disk, as `-drive` names it.
    device: Option<String>,
    /// "read" or "write".
    operation: Option<String>,
    /// Whether the guest wanted it.
    guest: Option<bool>,
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
    fn hear(&mut self, message: &Message) {
        if message.event.as_deref() == Some("BLOCK_IO_ERROR") {
            self.disk_error.get_or_insert_with(|| disk_error(&message.data));
        } else if self.end != Some(GuestEnd::Crash) {
            self.end = end(message).or(self.end);
        }
    }
}

/// Our end of the connection.
#[derive(Debug)]
pub(super) struct Qmp {
    heard: Arc<Mutex<Heard>>,
    /// Closed when nothing more is heard.
    over: Receiver<()>,
    remote: Arc<QemuRemote>,
    qemu: Option<OwnedFd>,
}

impl Qmp {
    /// A connection whose other end QEMU inherits.
    pub(super) fn new(plan: &LaunchPlan, open_medium: OpenMedium) -> io::Result<Self> {
        let (ours, qemu) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Another child that is started at this moment inherits this end too and may hold it open
        // when QEMU is gone: that is why the end of the events is waited for with a limit.
        fcntl_setfd(&qemu, FdFlags::empty())?;
        let mut stream = UnixStream::from(ours);
        // QEMU sends no events before this; it may well wait in the socket until QEMU is up.
        stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        let remote = Arc::new(QemuRemote::new(stream.try_clone()?, plan, open_medium));
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (listening, over) = mpsc::channel();
        let (shared, answered) = (Arc::clone(&heard), Arc::clone(&remote));
        let listen = move || {
            for message in serde_json::Deserializer::from_reader(stream).into_iter::<Message>() {
                let Ok(mut message) = message else { break };
                if let Some((id, answer)) = answer(&mut message) {
                    answered.answer(id, answer);
                    continue;
                }
                let mut heard = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let told = tell(&message, &heard);
                heard.hear(&message);
                drop(heard);
                if told == Some(Event::Reset { by: ResetBy::Guest }) {
                    answered.guest_was_reset();
                }
                if let Some(event) = told {
                    answered.events().send(event);
                }
            }
            answered.close();
            drop::<Sender<()>>(listening);
        };
        thread::Builder::new().name("qmp".to_owned()).spawn(listen)?;
        Ok(Self { heard, over, remote, qemu: Some(qemu) })
    }

    /// What reaches into QEMU.
    pub(super) fn remote(&self) -> Arc<dyn Remote> {
        Arc::clone(&self.remote) as Arc<dyn Remote>
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

/// An answer to a command that had an id.
fn answer(message: &mut Message) -> Option<(u64, Answer)> {
    let id = message.id?;
    Some((
        id,
        message.error.take().map_or_else(|| Ok(message.value.take().unwrap_or_default()), Err),
    ))
}

/// What an event says to who listens to a machine.
fn tell(message: &Message, heard: &Heard) -> Option<Event> {
    match message.event.as_deref()? {
        // A guest that crashed is stopped before it is gone.
        "STOP" if heard.end.is_none() => Some(Event::Paused),
        "RESUME" => Some(Event::Resumed),
        "RESET" if message.data.guest == Some(true) => Some(Event::Reset { by: ResetBy::Guest }),
        "RESET" => Some(Event::Reset { by: ResetBy::User }),
        "BLOCK_IO_ERROR" => Some(Event::DeviceFailure { message: disk_error(&message.data) }),
        _ => None,
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
fn disk_error(data: &Data) -> String {
    let doing = if data.operation.as_deref() == Some("write") { "writing" } else { "reading" };
    let device = data.device.as_deref().unwrap_or_default();
    let reason = data.reason.as_deref().unwrap_or("no reason given");
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
            heard.hear(&serde_json::from_str(text).unwrap());
        }
        let disk_error = Some("writing `disk0` failed: No space left on device".to_owned());
        assert_eq!(heard, Heard { end: Some(GuestEnd::Crash), disk_error });
    }
}
