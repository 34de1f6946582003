//! `bootyard control`: asks something of a machine through its control socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_spec::{ByteSize, Class};
use bootyard_supervise::control::wire::{
    Balloon, Command, Drive, EventLine, Format, Medium, StatisticsFormat, Status,
};
use bootyard_supervise::control::{Client, ClientError};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::error::Failure;
use crate::output;

/// Ask something of a machine that `bootyard run --control SOCKET` runs.
#[derive(Debug, Args)]
pub(crate) struct ControlCommandArgs {
    /// The machine's control socket
    pub(crate) socket: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: ControlCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ControlCommand {
    /// Show where the machine is
    Status,
    /// Stop the processors
    Pause,
    /// Let the processors go on
    Resume,
    /// Press the reset button
    Reset,
    /// Press the power button, which asks the guest to shut down
    PowerButton,
    /// Send a non-maskable interrupt
    Nmi,
    /// End the machine at once, as if its plug were pulled
    Stop,
    /// Take the medium out of a CD-ROM drive
    Eject {
        /// The drive
        drive: String,
    },
    /// Put an image into a CD-ROM drive
    Insert {
        /// The drive
        drive: String,
        /// The image
        image: PathBuf,
    },
    /// Change how much of its memory the guest keeps
    Balloon {
        /// What it keeps, such as 512Mi
        size: ByteSize,
    },
    /// Show what the machine has done, as metrics of Prometheus
    Statistics,
    /// Show what happens, until the machine ends
    Events,
}

pub(crate) fn run(args: &ControlCommandArgs) -> Result<ExitCode, Failure> {
    let mut client = connect(&args.socket)?;
    match command(&args.command, args.json)? {
        Command::Events => events(client, args)?,
        command => {
            let answer =
                client.ask(command.clone()).map_err(|error| failed(&args.socket, &error))?;
            if args.json {
                output::json_line(&answer)?;
            } else {
                show(&command, answer)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects to a machine's socket.
pub(crate) fn connect(socket: &Path) -> Result<Client, Failure> {
    Client::connect(socket).map_err(|error| failed(socket, &error))
}

/// What went wrong at a socket.
pub(crate) fn failed(socket: &Path, error: &ClientError) -> Failure {
    let what = format!("`{}`: {}", socket.display(), chain(error));
    let failure = Failure::new(Class::Other, what);
    match error {
        ClientError::Connect(_) => failure.with_hint(
            "name the socket of a machine that runs with `bootyard run --control SOCKET`",
        ),
        _ => failure,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn command(asked: &ControlCommand, json: bool) -> Result<Command, Failure> {
    Ok(match asked {
        ControlCommand::Status => Command::Status,
        ControlCommand::Pause => Command::Pause,
        ControlCommand::Resume => Command::Resume,
        ControlCommand::Reset => Command::Reset,
        ControlCommand::PowerButton => Command::PowerButton,
        ControlCommand::Nmi => Command::Nmi,
        ControlCommand::Stop => Command::Stop,
        ControlCommand::Eject { drive } => Command::Eject(Drive { drive: drive.clone() }),
        ControlCommand::Insert { drive, image } => {
            // The machine may be in another folder.
            let path = std::path::absolute(image);
            let path = path.map_err(|error| Failure::new(Class::Usage, error))?;
            Command::Insert(Medium { drive: drive.clone(), path })
        }
        ControlCommand::Balloon { size } => Command::Balloon(Balloon { bytes: size.bytes() }),
        ControlCommand::Statistics => {
            let format = if json { Format::Json } else { Format::Prometheus };
            Command::Statistics(Some(StatisticsFormat { format }))
        }
        ControlCommand::Events => Command::Events,
    })
}

/// Shows an answer that has something to show.
fn show(command: &Command, answer: Value) -> Result<(), Failure> {
    match command {
        Command::Status => {
            let status: Status = serde_json::from_value(answer)
                .map_err(|error| Failure::new(Class::Other, error))?;
            output::result(&format!("{}\n", describe(&status)))
        }
        Command::Statistics(_) => output::result(answer["text"].as_str().unwrap_or_default()),
        _ => Ok(()),
    }
}

/// "web: running (engine qemu, process 4711, started once)".
fn describe(status: &Status) -> String {
    let mut about = vec![format!("engine {}", status.engine)];
    about.extend(status.pid.map(|pid| format!("process {pid}")));
    about.push(match status.runs {
        0 => "never started".to_owned(),
        1 => "started once".to_owned(),
        runs => format!("started {runs} times"),
    });
    format!("{}: {} ({})", status.name, status.state.name(), about.join(", "))
}

fn events(mut client: Client, args: &ControlCommandArgs) -> Result<(), Failure> {
    let broken = |error: ClientError| failed(&args.socket, &error);
    client.subscribe().map_err(broken)?;
    while let Some(line) = client.event().map_err(broken)? {
        if args.json {
            output::json_line(&line)?;
        } else {
            output::result(&format!("{}\n", output::plain_line(&in_words(&line)?)))?;
        }
    }
    Ok(())
}

/// "reset by=guest": the event's name, and what else there is.
fn in_words(line: &EventLine) -> Result<String, Failure> {
    let failed = |error| Failure::new(Class::Other, error);
    let Value::Object(mut fields) = serde_json::to_value(&line.event).map_err(failed)? else {
        return Ok(String::new());
    };
    let name = fields.remove("event").unwrap_or_default();
    let mut words = name.as_str().unwrap_or_default().to_owned();
    for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        words.push_str(&format!(" {key}={value}"));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use bootyard_supervise::control::wire::{Event, MachineState, ResetBy};

    use super::*;

    #[test]
    fn answers_are_said_in_words() {
        let status = |runs, pid| Status {
            name: "web".to_owned(),
            engine: "kvm".to_owned(),
            state: MachineState::Paused,
            runs,
            pid,
        };
        assert_eq!(
            describe(&status(1, Some(7))),
            "web: paused (engine kvm, process 7, started once)"
        );
        assert_eq!(describe(&status(0, None)), "web: paused (engine kvm, never started)");
        for (event, words) in [
            (Event::Paused, "paused"),
            (Event::Reset { by: ResetBy::User }, "reset by=user"),
            (Event::Crash { reason: None }, "crash"),
            (Event::Crash { reason: Some("panic".into()) }, "crash reason=panic"),
            (Event::BackOff { failures: 2 }, "back-off failures=2"),
        ] {
            assert_eq!(in_words(&EventLine { event, time_ms: 1 }).unwrap(), words);
        }
    }
}
