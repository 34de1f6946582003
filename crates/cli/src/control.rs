//! How a machine that `run` starts is reached meanwhile: the flags, and what serves them.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::thread;

use bootyard_spec::{ByteSize, Class, RebootPolicy};
use bootyard_supervise::control::{Server, Station};
use bootyard_supervise::strategy::State;
use bootyard_supervise::{
    Cancel, Console, Ended, LaunchPlan, LogLimits, Running, Serial, SerialLog,
};
use clap::Args;

use crate::error::Failure;
use crate::output;
use crate::terminal::RawTerminal;

/// Less would rotate at every other line.
const LOG_SIZE_MIN: ByteSize = ByteSize::from_bytes(64 << 10);

/// How a machine is reached while it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Control")]
pub(crate) struct ControlArgs {
    /// Socket on which `bootyard control` and `bootyard console` reach the machine
    #[arg(long = "control", value_name = "SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// File that gets what the guest writes to its serial port, behind what is there already
    #[arg(long, value_name = "FILE")]
    pub(crate) serial_log: Option<PathBuf>,
    /// Size at which the log becomes FILE.1 and another one begins
    #[arg(long, value_name = "QTY", default_value = "16Mi", requires = "serial_log")]
    pub(crate) serial_log_size: ByteSize,
    /// Older logs that are kept, as FILE.1, FILE.2 and so on
    #[arg(long, value_name = "N", default_value = "4", requires = "serial_log")]
    pub(crate) serial_log_count: u32,
    /// Let the machine stand still until it is resumed
    #[arg(long, requires = "socket")]
    pub(crate) paused: bool,
    /// What a guest's wish to restart does: Reboot in place, or Terminate the machine
    #[arg(long, value_name = "POLICY", default_value = "Reboot")]
    pub(crate) reboot_policy: RebootPolicy,
}

/// The serial port of a machine, and the socket on which it is reached.
pub(crate) struct Reach {
    port: Console,
    /// Dropped before the port: what the guest said last still reaches who is attached.
    served: Option<(Server, Station)>,
}

impl Reach {
    /// Opens the log and the socket that the flags ask for.
    pub(crate) fn open(
        args: &ControlArgs,
        plan: &LaunchPlan,
        engine: &'static str,
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        let port = Console::new(log(args)?);
        let Some(path) = &args.socket else { return Ok(Self { port, served: None }) };
        let station = Station::new(plan, engine, port.clone(), cancel.clone());
        let server = Server::listen(path, station.clone())?;
        Ok(Self { port, served: Some((server, station)) })
    }

    /// Takes the terminal, if standard input is one; else types what comes from there, if others may type
    /// too.
    pub(crate) fn take_input(
        &self,
        escaped: impl FnOnce() + Send + 'static,
    ) -> Result<Option<RawTerminal>, Failure> {
        let port = self.port.clone();
        // A guest that reads nothing must not keep the escape from being seen.
        let terminal = RawTerminal::enter(escaped, move |keys| port.type_in(keys, &|| true));
        // From a terminal that is not ours to take nobody reads: that would stop this command.
        if terminal.is_none() && self.served.is_some() && !io::stdin().is_terminal() {
            let port = self.port.clone();
            let pump = move || pump(&port);
            let started = thread::Builder::new().name("stdin".to_owned()).spawn(pump);
            started.map_err(|error| Failure::new(Class::Other, error))?;
        }
        Ok(terminal)
    }

    /// The serial port of the run that is about to start.
    pub(crate) fn serial(&self) -> io::Result<Serial> {
        let Serial { input, output } = Serial::inherit();
        let is_shared = io::stdin().is_terminal() || self.served.is_some();
        let input = if is_shared { self.port.keys()?.into() } else { input };
        Ok(Serial { input, output: self.port.output(output) })
    }

    /// Tells those who are connected.
    pub(crate) fn launched(&self, machine: &dyn Running) {
        if let Some(station) = self.station() {
            station.launched(machine);
        }
    }

    /// Tells those who are connected.
    pub(crate) fn changed(&self, state: State) {
        if let Some(station) = self.station() {
            station.changed(state);
        }
    }

    /// Tells those who are connected.
    pub(crate) fn ended(&self, ended: &Ended) {
        if let Some(station) = self.station() {
            station.ended(ended);
        }
    }

    fn station(&self) -> Option<&Station> {
        self.served.as_ref().map(|(_, station)| station)
    }
}

fn log(args: &ControlArgs) -> Result<Option<SerialLog>, Failure> {
    let Some(path) = &args.serial_log else { return Ok(None) };
    if args.serial_log_size < LOG_SIZE_MIN {
        let what = format!("expected at least {LOG_SIZE_MIN}, got {}", args.serial_log_size);
        return Err(Failure::new(Class::Usage, format!("--serial-log-size: {what}")));
    }
    let limits = LogLimits { size: args.serial_log_size.bytes(), older: args.serial_log_count };
    let warn = Box::new(|line: &str| output::error(&format!("warning: {line}\r\n")));
    let log = SerialLog::open(path, limits, warn);
    log.map(Some).map_err(|error| Failure::new(Class::Usage, error))
}

/// Types standard input, to its end.
fn pump(port: &Console) {
    let mut bytes = [0; 4096];
    loop {
        match io::stdin().read(&mut bytes) {
            Ok(0) => return,
            Ok(len) => port.type_in(&bytes[..len], &|| false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
