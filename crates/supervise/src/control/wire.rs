//! What goes over a control socket: one JSON object in a line, as `docs/control-socket.md` tells clients.
//! Fields are added, never renamed; a change that old clients cannot bear raises [`PROTOCOL`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the protocol.
pub const PROTOCOL: u32 = 1;

/// The longest line that a server reads.
pub const LINE_MAX: usize = 64 << 10;

/// The longest line that a server sends.
pub const ANSWER_MAX: usize = 1 << 20;

/// Every command.
pub const COMMANDS: [&str; 13] = [
    "status",
    "pause",
    "resume",
    "reset",
    "power-button",
    "nmi",
    "stop",
    "eject",
    "insert",
    "balloon",
    "statistics",
    "console",
    "events",
];

/// The first line of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Everything that there is to say.
    pub bootyard: About,
}

/// Who serves a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The version of the program.
    pub version: String,
    /// The machine's name.
    pub machine: String,
    /// The engine: "kvm" or "qemu".
    pub engine: String,
    /// The commands that the server knows.
    pub commands: Vec<String>,
}

/// A client's line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What is wanted.
    #[serde(flatten)]
    pub command: Command,
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", content = "arguments", rename_all = "kebab-case")]
pub enum Command {
    /// Where the machine is: [`Status`].
    Status,
    /// Stop the processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Press the reset button.
    Reset,
    /// Press the power button, which asks the guest to shut down.
    PowerButton,
    /// Send a non-maskable interrupt.
    Nmi,
    /// End the machine at once, as if its plug were pulled.
    Stop,
    /// Take the medium out of a drive.
    Eject(Drive),
    /// Put a medium into a drive.
    Insert(Medium),
    /// Change how much memory the guest shall have.
    Balloon(Balloon),
    /// What the machine has done: [`Statistics`].
    Statistics(Option<StatisticsFormat>),
    /// Turn the connection into the serial port.
    Console(Option<ConsoleOptions>),
    /// Hear of everything that happens: [`Event`].
    Events,
}

/// A drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name.
    pub drive: String,
}

/// A medium for a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Medium {
    /// The drive's name.
    pub drive: String,
    /// The image, as the server's process finds it.
    pub path: PathBuf,
}

/// A size for the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Bytes that the guest shall keep.
    pub bytes: u64,
}

/// How statistics are written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsFormat {
    /// JSON, or Prometheus' text.
    pub format: Format,
}

/// How statistics are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// [`Statistics`].
    #[default]
    Json,
    /// `{"text": "…"}` in Prometheus' text format.
    Prometheus,
}

/// How a console begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleOptions {
    /// Begin with the last output from before.
    pub scrollback: bool,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: Option<u64>,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Result(Value),
    /// It was not.
    Error(ErrorBody),
}

impl Outcome {
    /// The same as a [`Result`].
    pub fn into_result(self) -> Result<Value, ErrorBody> {
        match self {
            Self::Result(value) => Ok(value),
            Self::Error(error) => Err(error),
        }
    }
}

impl From<Result<Value, ErrorBody>> for Outcome {
    fn from(result: Result<Value, ErrorBody>) -> Self {
        result.map_or_else(Self::Error, Self::Result)
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

/// The kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The line is no JSON object with a command.
    BadRequest,
    /// The line is longer than [`LINE_MAX`].
    LineTooLong,
    /// There is no such command.
    UnknownCommand,
    /// The command takes other arguments.
    BadArguments,
    /// There are connections enough.
    TooManyConnections,
    /// No machine runs at this moment.
    NotRunning,
    /// This engine, or this machine, cannot do it.
    NotSupported,
    /// The machine did not answer in time.
    TimedOut,
    /// It was tried and went wrong.
    Failed,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

impl ErrorBody {
    /// An error with this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Reads a client's line. The id is told also of a request that is none.
pub fn parse_request(line: &[u8]) -> (Option<u64>, Result<Command, ErrorBody>) {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Envelope {
        id: Option<u64>,
        command: String,
        #[serde(default)]
        arguments: Value,
    }
    let refuse = |code, message: String| Err(ErrorBody::new(code, message));
    let object: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => return (None, refuse(ErrorCode::BadRequest, format!("no JSON: {error}"))),
    };
    if !object.is_object() {
        return (None, refuse(ErrorCode::BadRequest, "expected a JSON object".to_owned()));
    }
    let id = object.get("id").and_then(Value::as_u64);
    let envelope: Envelope = match serde_json::from_value(object) {
        Ok(envelope) => envelope,
        Err(error) => return (id, refuse(ErrorCode::BadRequest, error.to_string())),
    };
    let Envelope { id, command: name, arguments } = envelope;
    if !COMMANDS.contains(&name.as_str()) {
        let message = format!("unknown command `{name}`; there are {}", COMMANDS.join(", "));
        return (id, refuse(ErrorCode::UnknownCommand, message));
    }
    let mut tagged =
        serde_json::Map::from_iter([("command".to_owned(), Value::from(name.clone()))]);
    // No arguments and none at all are the same.
    if arguments.as_object().map_or(!arguments.is_null(), |some| !some.is_empty()) {
        tagged.insert("arguments".to_owned(), arguments);
    }
    let command = serde_json::from_value(Value::Object(tagged)).map_err(|error| {
        ErrorBody::new(ErrorCode::BadArguments, format!("arguments of `{name}`: {error}"))
    });
    (id, command)
}

/// What the command `status` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's name.
    pub name: String,
    /// The engine: "kvm" or "qemu".
    pub engine: String,
    /// Where it is.
    pub state: MachineState,
    /// How often it was started.
    pub runs: u32,
    /// The id of its process, if there is one.
    pub pid: Option<u32>,
}

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// It never ran.
    Stopped,
    /// Its process is being started.
    Starting,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// It is being ended.
    Stopping,
    /// It failed, and waits to be started again.
    BackOff,
    /// It has ended for good.
    Done,
}

impl MachineState {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::BackOff => "back-off",
            Self::Done => "done",
        }
    }
}

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// What.
    #[serde(flatten)]
    pub event: Event,
    /// Milliseconds since 1970; 0 between a machine and its supervisor.
    #[serde(default)]
    pub time_ms: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The machine's process runs.
    Started {
        /// Which start this is, counted from 1.
        run: u32,
    },
    /// The guest stands still.
    Paused,
    /// The guest goes on.
    Resumed,
    /// The guest starts again in place.
    Reset {
        /// "guest" or "user".
        by: ResetBy,
    },
    /// A disk or another device failed on the host's side.
    DeviceFailure {
        /// What happened.
        message: String,
    },
    /// A processor left the guest for a reason that nobody can answer. The machine ends.
    UnhandledExit(UnhandledExit),
    /// The guest powered itself off.
    PowerOff,
    /// The guest wanted to restart, and its machine was told to end instead.
    GuestReset,
    /// The guest crashed.
    Crash {
        /// Why, if it is known.
        reason: Option<String>,
    },
    /// The machine's process failed or was killed.
    Failed {
        /// What it said.
        reason: String,
    },
    /// The time limit passed.
    TimedOut,
    /// Someone stopped the machine.
    Stopped,
    /// The machine failed and waits to be started again.
    BackOff {
        /// Failures in a row.
        failures: u32,
    },
    /// This client was too slow to hear everything.
    Lost {
        /// How many events it missed.
        count: u64,
    },
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// Who wanted a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetBy {
    /// The guest itself.
    Guest,
    /// Somebody outside.
    User,
}

/// Where a processor stood that could not go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnhandledExit {
    /// The processor.
    pub processor: u32,
    /// What KVM said.
    pub reason: String,
    /// The instruction pointer.
    pub rip: Option<u64>,
    /// The privilege level: 0 is the kernel.
    pub privilege: Option<u8>,
    /// How it read instructions.
    pub mode: Option<String>,
    /// The bytes at the instruction pointer, as hexadecimal digits.
    pub bytes: String,
    /// What kind of instruction they are.
    pub instruction: Option<String>,
    /// What helps.
    pub hint: Option<String>,
}

/// What a machine has done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Bytes of memory that the machine was given.
    pub memory_bytes: Option<u64>,
    /// Bytes of the host's memory that the machine's process takes.
    pub resident_bytes: Option<u64>,
    /// What the balloon knows of the guest's memory, by name.
    pub balloon: BTreeMap<String, u64>,
    /// How often the guest was started again in place since the machine's process was started.
    pub restarts: Option<u64>,
    /// The processors.
    pub processors: Vec<Processor>,
    /// The disks.
    pub disks: Vec<Disk>,
    /// The network interfaces; directions are the guest's.
    pub networks: Vec<Network>,
}

/// What a processor has done since its guest started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Processor {
    /// Seconds that its thread has had a processor of the host.
    pub seconds: Option<f64>,
    /// How often it left the guest, by reason.
    pub exits: BTreeMap<String, u64>,
}

/// What a guest has done with a disk.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    pub name: String,
    pub read_bytes: u64,
    pub read_requests: u64,
    pub written_bytes: u64,
    pub write_requests: u64,
    pub flushes: u64,
    pub discards: u64,
    pub errors: u64,
}

/// What a guest has done with a network interface.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    pub name: String,
    pub received_bytes: u64,
    pub received_packets: u64,
    pub received_dropped: u64,
    pub receive_errors: u64,
    pub transmitted_bytes: u64,
    pub transmitted_packets: u64,
    pub transmitted_dropped: u64,
    pub transmit_errors: u64,
}

/// An object as a line.
pub(crate) fn line(object: &impl Serialize) -> Vec<u8> {
    // Everything here has names for keys, which is all that could fail.
    let mut line = serde_json::to_vec(object).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        for (line, id, command) in [
            (r#"{"command":"pause"}"#, None, Command::Pause),
            (r#"{"id":7,"command":"power-button"}"#, Some(7), Command::PowerButton),
            (r#"{"id":7,"command":"nmi","arguments":null}"#, Some(7), Command::Nmi),
            (r#"{"id":7,"command":"nmi","arguments":{}}"#, Some(7), Command::Nmi),
            (r#"{"command":"statistics"}"#, None, Command::Statistics(None)),
            (
                r#"{"command":"statistics","arguments":{"format":"prometheus"}}"#,
                None,
                Command::Statistics(Some(StatisticsFormat { format: Format::Prometheus })),
            ),
            (
                r#"{"arguments":{"drive":"cd"},"command":"eject"}"#,
                None,
                Command::Eject(Drive { drive: "cd".to_owned() }),
            ),
        ] {
            assert_eq!(parse_request(line.as_bytes()), (id, Ok(command.clone())), "{line}");
            let back = serde_json::to_string(&Request { id, command: command.clone() }).unwrap();
            assert_eq!(parse_request(back.as_bytes()), (id, Ok(command)), "{back}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        use ErrorCode::{BadArguments, BadRequest, UnknownCommand};
        for (line, id, code, words) in [
            ("", None, BadRequest, "no JSON: EOF"),
            ("pause", None, BadRequest, "no JSON"),
            ("\u{1}", None, BadRequest, "no JSON"),
            (r#"[1,"pause",null]"#, None, BadRequest, "expected a JSON object"),
            ("7", None, BadRequest, "expected a JSON object"),
            (r#"{"id":1}"#, Some(1), BadRequest, "missing field `command`"),
            (r#"{"id":1,"command":"pause","argument":1}"#, Some(1), BadRequest, "unknown field"),
            (r#"{"id":-1,"command":"pause"}"#, None, BadRequest, "-1"),
            (r#"{"id":2,"command":"hibernate"}"#, Some(2), UnknownCommand, "there are status"),
            (r#"{"command":"pause","arguments":{"a":1}}"#, None, BadArguments, "`pause`"),
            (r#"{"command":"pause","arguments":[]}"#, None, BadArguments, "`pause`"),
            (r#"{"command":"eject"}"#, None, BadArguments, "`eject`: missing field"),
            (r#"{"command":"balloon","arguments":{"bytes":-1}}"#, None, BadArguments, "-1"),
            (
                r#"{"command":"eject","arguments":{"drive":"a","force":true}}"#,
                None,
                BadArguments,
                "unknown field `force`",
            ),
        ] {
            let (found, command) = parse_request(line.as_bytes());
            let error = command.unwrap_err();
            assert_eq!((found, error.code), (id, code), "{line}: {error}");
            assert!(error.message.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn every_command_has_its_name() {
        let drive = || "cd".to_owned();
        let commands = [
            Command::Status,
            Command::Pause,
            Command::Resume,
            Command::Reset,
            Command::PowerButton,
            Command::Nmi,
            Command::Stop,
            Command::Eject(Drive { drive: drive() }),
            Command::Insert(Medium { drive: drive(), path: "/a".into() }),
            Command::Balloon(Balloon { bytes: 1 }),
            Command::Statistics(None),
            Command::Console(Some(ConsoleOptions { scrollback: false })),
            Command::Events,
        ];
        for (command, name) in commands.into_iter().zip(COMMANDS) {
            let json = serde_json::to_value(&command).unwrap();
            assert_eq!(json["command"], name);
        }
    }

    #[test]
    fn events_of_later_versions_do_not_break_a_client() {
        for (line, event) in [
            (r#"{"event":"paused","time_ms":5}"#, Event::Paused),
            (r#"{"event":"reset","by":"user","time_ms":5}"#, Event::Reset { by: ResetBy::User }),
            (r#"{"event":"migrated","to":"b","time_ms":5}"#, Event::Unknown),
        ] {
            let read: EventLine = serde_json::from_str(line).unwrap();
            assert_eq!(read, EventLine { event, time_ms: 5 });
        }
        let error: ErrorBody = serde_json::from_str(r#"{"code":"new","message":"m"}"#).unwrap();
        assert_eq!(error.code, ErrorCode::Unknown);
    }
}
