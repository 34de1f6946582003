//! What the clients of a control socket reach: the machine that runs now, if one does, the serial port,
//! and everything that happens.
#![expect(clippy::disallowed_methods, reason = "events are told with the time at which they came")]

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bootyard_spec::GuestEnd;
use serde_json::{Value, json};

use super::backlog::Backlog;
use super::prometheus;
use super::wire::{
    self, About, COMMANDS, Command, ErrorBody, ErrorCode, Event, EventLine, Format, Greeting,
    MachineState, PROTOCOL, Statistics, Status,
};
use crate::console::Console;
use crate::engine::{Ended, Running};
use crate::strategy::State;
use crate::{Cancel, LaunchPlan};

/// A machine that runs, and does what it is told.
pub trait Remote: Send + Sync + fmt::Debug {
    /// Does what `command` says, or tells why not.
    fn execute(&self, command: &Command) -> Result<Value, ErrorBody>;

    /// Where its events go.
    fn events(&self) -> &EventSink;
}

/// Takes a machine's events, and keeps them until somebody listens.
#[derive(Default)]
pub struct EventSink(Mutex<Sink>);

type Listener = Box<dyn Fn(Event) + Send>;

enum Sink {
    Early(Vec<Event>),
    Heard(Listener),
}

impl Default for Sink {
    fn default() -> Self {
        Self::Early(Vec::new())
    }
}

/// Events that are kept until somebody listens.
const EARLY_MAX: usize = 64;

impl EventSink {
    /// From now on `listener` is told, beginning with what came before.
    pub fn listen(&self, listener: Listener) {
        let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Sink::Early(events) = std::mem::take(&mut *sink) {
            events.into_iter().for_each(&listener);
        }
        *sink = Sink::Heard(listener);
    }

    /// Tells an event.
    pub(crate) fn send(&self, event: Event) {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::Early(events) if events.len() < EARLY_MAX => events.push(event),
            Sink::Early(_) => {}
            Sink::Heard(listener) => listener(event),
        }
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventSink").finish_non_exhaustive()
    }
}

/// What clients reach. Clones are the same.
#[derive(Debug, Clone)]
pub struct Station(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    engine: &'static str,
    memory: u64,
    console: Console,
    cancel: Cancel,
    machine: Mutex<Machine>,
    subscribers: Mutex<Vec<Subscriber>>,
}

#[derive(Debug)]
struct Machine {
    state: MachineState,
    runs: u32,
    pid: Option<u32>,
    remote: Option<Arc<dyn Remote>>,
}

#[derive(Debug)]
struct Subscriber {
    backlog: Backlog,
    lost: u64,
}

impl Station {
    /// The station of the machine of `plan` on `engine`. `cancel` is what `stop` turns on.
    pub fn new(plan: &LaunchPlan, engine: &'static str, console: Console, cancel: Cancel) -> Self {
        let machine = Machine { state: MachineState::Stopped, runs: 0, pid: None, remote: None };
        Self(Arc::new(Shared {
            name: plan.name.clone(),
            engine,
            memory: plan.memory.bytes(),
            console,
            cancel,
            machine: Mutex::new(machine),
            subscribers: Mutex::default(),
        }))
    }

    /// A run has begun.
    pub fn launched(&self, running: &dyn Running) {
        let remote = running.remote();
        let run = {
            let mut machine = self.machine();
            machine.runs += 1;
            machine.pid = Some(running.pid());
            machine.remote.clone_from(&remote);
            machine.runs
        };
        self.tell(Event::Started { run });
        if let Some(remote) = remote {
            let station = Arc::downgrade(&self.0);
            remote.events().listen(Box::new(move |event| {
                if let Some(shared) = station.upgrade() {
                    Self(shared).heard(event);
                }
            }));
        }
    }

    /// The run strategy came to another state.
    pub fn changed(&self, state: State) {
        let (state, event) = match state {
            State::Stopped => (MachineState::Stopped, None),
            State::Starting { .. } => (MachineState::Starting, None),
            // A machine that starts paused may have said so before.
            State::Running { .. } if self.machine().state == MachineState::Paused => return,
            State::Running { .. } => (MachineState::Running, None),
            State::Stopping { .. } => (MachineState::Stopping, None),
            State::BackOff { failures, .. } => {
                (MachineState::BackOff, Some(Event::BackOff { failures }))
            }
            State::Done { .. } => (MachineState::Done, None),
        };
        self.machine().state = state;
        if let Some(event) = event {
            self.tell(event);
        }
    }

    /// A run has ended.
    pub fn ended(&self, ended: &Ended) {
        {
            let mut machine = self.machine();
            (machine.pid, machine.remote) = (None, None);
            machine.state = MachineState::Stopping;
        }
        self.tell(match ended.end {
            GuestEnd::PowerOff => Event::PowerOff,
            GuestEnd::Reset => Event::GuestReset,
            GuestEnd::Crash => Event::Crash { reason: ended.note.clone() },
            GuestEnd::TimedOut => Event::TimedOut,
            GuestEnd::Stopped => Event::Stopped,
            GuestEnd::EngineFailed => {
                let failure = ended.failure.as_ref();
                let said = failure.map(|failure| format!("{}: {}", failure.status, failure.stderr));
                Event::Failed { reason: said.unwrap_or_default() }
            }
        });
    }

    /// The machine itself tells something.
    fn heard(&self, event: Event) {
        {
            let mut machine = self.machine();
            match event {
                Event::Paused => machine.state = MachineState::Paused,
                Event::Resumed => machine.state = MachineState::Running,
                _ => {}
            }
        }
        self.tell(event);
    }

    fn tell(&self, event: Event) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time_ms = since.as_millis() as u64;
        let line = |event| wire::line(&EventLine { event, time_ms });
        let told = line(event);
        let mut subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain_mut(|subscriber| {
            if subscriber.lost > 0
                && subscriber.backlog.push(&line(Event::Lost { count: subscriber.lost }))
            {
                subscriber.lost = 0;
            }
            if subscriber.lost > 0 || !subscriber.backlog.push(&told) {
                subscriber.lost += 1;
            }
            !subscriber.backlog.is_closed()
        });
    }

    /// From now on events go to `backlog`, after what `answer` puts there.
    pub(super) fn subscribe(&self, backlog: &Backlog, answer: impl FnOnce()) {
        let mut subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        answer();
        if !subscribers.iter().any(|subscriber| subscriber.backlog.is(backlog)) {
            subscribers.push(Subscriber { backlog: backlog.clone(), lost: 0 });
        }
    }

    pub(super) fn unsubscribe(&self, backlog: &Backlog) {
        let mut subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| !subscriber.backlog.is(backlog));
    }

    pub(super) fn greeting(&self) -> Greeting {
        Greeting {
            bootyard: About {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                machine: self.0.name.clone(),
                engine: self.0.engine.to_owned(),
                commands: COMMANDS.map(str::to_owned).into(),
            },
        }
    }

    /// The serial port.
    pub(super) fn console(&self) -> &Console {
        &self.0.console
    }

    /// Does what a client wants, but for what concerns its own connection.
    pub(super) fn execute(&self, command: &Command) -> Result<Value, ErrorBody> {
        match command {
            Command::Status => Ok(json!(self.status())),
            Command::Stop => {
                self.0.cancel.cancel();
                Ok(json!({}))
            }
            Command::Statistics(format) => {
                let statistics = self.statistics()?;
                Ok(match format.clone().unwrap_or_default().format {
                    Format::Json => json!(statistics),
                    Format::Prometheus => {
                        json!({ "text": prometheus::text(&self.0.name, &statistics) })
                    }
                })
            }
            other => self.remote()?.execute(other),
        }
    }

    fn status(&self) -> Status {
        let machine = self.machine();
        Status {
            name: self.0.name.clone(),
            engine: self.0.engine.to_owned(),
            state: machine.state,
            runs: machine.runs,
            pid: machine.pid,
        }
    }

    fn statistics(&self) -> Result<Statistics, ErrorBody> {
        let remote = self.remote()?;
        let told = remote.execute(&Command::Statistics(None))?;
        let statistics: Statistics = serde_json::from_value(told)
            .map_err(|error| ErrorBody::new(ErrorCode::Failed, error.to_string()))?;
        let resident_bytes = self.machine().pid.and_then(resident);
        Ok(Statistics { memory_bytes: Some(self.0.memory), resident_bytes, ..statistics })
    }

    fn remote(&self) -> Result<Arc<dyn Remote>, ErrorBody> {
        let machine = self.machine();
        machine.remote.clone().ok_or_else(|| {
            let message = format!("no machine runs now: it is {}", machine.state.name());
            ErrorBody::new(ErrorCode::NotRunning, message)
        })
    }

    /// Ends every connection that hears events or the console, after what they have still to hear.
    pub(super) fn close(&self, limit: Duration) {
        let subscribers =
            std::mem::take(&mut *self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner));
        let backlogs = subscribers.into_iter().map(|subscriber| subscriber.backlog);
        let backlogs: Vec<Backlog> = backlogs.chain(self.0.console.detach_all()).collect();
        backlogs.iter().for_each(Backlog::close);
        backlogs.iter().for_each(|backlog| backlog.drain(limit));
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a process takes of the host's memory (proc_pid_status(5)).
fn resident(pid: u32) -> Option<u64> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}
