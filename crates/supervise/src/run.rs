//! The foreground supervisor: acts on what the run strategy decides, until the machine is done.
#![expect(clippy::disallowed_methods, reason = "this is where the supervisor meets the clock")]

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bootyard_spec::GuestEnd;

use crate::engine::{Ended, Engine, Failure, Running, Serial, Woken};
use crate::strategy::{Action, Event, Policy, State};
use crate::{Cancel, Error, LaunchPlan};

/// Who is told what a supervised machine does, and gives its serial port.
pub trait Observer {
    /// The machine's state changed.
    fn changed(&mut self, state: State);

    /// A run has begun, in this machine.
    fn launched(&mut self, _: &dyn Running) {}

    /// A run ended; called before the state changes for it.
    fn ended(&mut self, ended: &Ended);

    /// A run is about to start, and with it a new life of the disks that live no longer than one.
    fn starting(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// The serial port of the run that is about to start.
    fn serial(&mut self) -> Result<Serial, Error> {
        Ok(Serial::inherit())
    }
}

/// How a supervised machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How the last run ended.
    pub end: GuestEnd,
    /// How often it was started.
    pub runs: u32,
    /// Why the engine failed, if `end` is that it did.
    pub failure: Option<Failure>,
    /// What else there is to say about that end, as in [`Ended::note`].
    pub note: Option<String>,
}

/// Starts a machine and keeps it as `policy` asks, until it is done or `cancel` is on. An engine
/// that cannot be started at all is an error; one that fails later is an end like others.
pub fn run(
    policy: &Policy,
    plan: &LaunchPlan,
    engine: &dyn Engine,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Outcome, Error> {
    if plan.disks.is_empty() && plan.boot.kernel.is_none() {
        return Err(Error::NoDisk(plan.name.clone()));
    }
    let mut supervisor = Supervisor {
        policy,
        plan,
        engine,
        observer,
        cancel,
        epoch: Instant::now(),
        state: State::Stopped,
        machine: None,
        runs: 0,
        last: None,
    };
    supervisor.event(Event::Start)?;
    loop {
        if let State::Done { end } = supervisor.state {
            let runs = supervisor.runs;
            // Who is stopped while backing off does not end as the run before did.
            let last = supervisor.last.filter(|last| last.end == end);
            let (failure, note) = last.map_or((None, None), |last| (last.failure, last.note));
            return Ok(Outcome { end, runs, failure, note });
        }
        let event = supervisor.next_event()?;
        supervisor.event(event)?;
    }
}

struct Supervisor<'a> {
    policy: &'a Policy,
    plan: &'a LaunchPlan,
    engine: &'a dyn Engine,
    observer: &'a mut dyn Observer,
    cancel: &'a Cancel,
    epoch: Instant,
    state: State,
    machine: Option<Box<dyn Running>>,
    runs: u32,
    last: Option<Ended>,
}

impl Supervisor<'_> {
    /// Waits for what happens next.
    fn next_event(&mut self) -> Result<Event, Error> {
        let deadline = self.policy.deadline(self.state);
        let timeout = deadline.map(|deadline| deadline.saturating_sub(self.epoch.elapsed()));
        let Some(machine) = &mut self.machine else {
            let (cancelled, _) =
                self.cancel.wait(None, timeout).map_err(Error::system("waiting"))?;
            return Ok(if cancelled { Event::Stop } else { Event::Tick });
        };
        let woken = match self.state {
            // It was killed: how its process ended does not matter any more.
            State::Stopping { cause, .. } => {
                let note = machine.join()?.note;
                Woken::Ended(Ended { end: cause, failure: None, note })
            }
            _ => machine.wait(self.cancel, timeout)?,
        };
        Ok(match woken {
            Woken::Cancelled => Event::Stop,
            Woken::TimedOut => Event::Tick,
            Woken::Ended(ended) => {
                self.observer.ended(&ended);
                self.machine = None;
                let end = ended.end;
                self.last = Some(ended);
                Event::Ended(end)
            }
        })
    }

    /// Moves the state machine, and does what it asks for.
    fn event(&mut self, event: Event) -> Result<(), Error> {
        let now = self.epoch.elapsed();
        let (state, action) = self.policy.step(self.state, event, now, jitter());
        if std::mem::replace(&mut self.state, state) != state {
            self.observer.changed(state);
        }
        match action {
            None => Ok(()),
            Some(Action::Refuse(why)) => Err(Error::Refused(why)),
            Some(Action::Kill) => self.machine.as_mut().map_or(Ok(()), |machine| machine.kill()),
            Some(Action::Launch) => {
                self.observer.starting()?;
                let serial = self.observer.serial()?;
                let machine = self.engine.spawn(self.plan, serial)?;
                self.observer.launched(machine.as_ref());
                self.machine = Some(machine);
                self.runs += 1;
                self.event(Event::EngineStarted)
            }
        }
    }
}

/// A random number from 0 to 1, good enough to keep machines from retrying in step.
fn jitter() -> f64 {
    let random = RandomState::new().hash_one(Duration::ZERO);
    f64::from(random as u32) / f64::from(u32::MAX)
}
