//! The run strategy of one machine as a pure state machine: state, event and time in, state and
//! actions out. [`crate::run`] acts on it; nothing here starts a process or asks for the time.
//!
//! ```text
//!                 Start                 EngineStarted
//!    Stopped ──────────────► Starting ─────────────────► Running ──┐
//!                            ▲  ▲  │                      │  │     │ Stop, or a Tick
//!             Tick: time over│  │  │ Ended                │  │     │ beyond the limit
//!                            │  │  ▼                Ended │  │     ▼
//!                         BackOff◄── again, failed ◄──────┤  │  Stopping
//!                            │  │                         │  │     │ Ended
//!                            │  └── again, not failed ◄───┘  │     │ (a time-out goes the way
//!                        Stop│                               │     │  of Running's Ended)
//!                            ▼          not again            ▼     ▼
//!                          Done ◄────────────────────────────┴─────┘
//! ```
//!
//! Again or not, after an end that nobody asked for:
//!
//! | | powered off, reset | crash, engine failure, time-out |
//! |---|---|---|
//! | Always | again | again |
//! | RerunOnFailure | done | again |
//! | Manual, Once, Halted | done | done |
//!
//! `Start` works in `Stopped` and `Done`, except under Halted, and under Once after the one run.
//!
//! **Back-off** is KubeVirt's: the n-th failure in a row waits 10·n² seconds and up to half as long
//! again, at most 300. KubeVirt counts only machines that never came to run. Here a machine runs as
//! soon as its process does, so a failure counts if it comes within [`BackOff::settled`] of that;
//! later ones, and ends without failure, start again at once and start the count anew. So a guest
//! that powers off as soon as it is up starts again as often as it does so under Always, as in
//! KubeVirt: there it is the price of a new pod that keeps the pace down, here it is the boot alone.

use std::time::Duration;

use bootyard_spec::{GuestEnd, RunStrategy, VmSpec};

/// The numbers of the back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// The wait after the first failure; the n-th waits n² times as long.
    pub base: Duration,
    /// The longest wait.
    pub cap: Duration,
    /// A machine that has run this long did start properly.
    pub settled: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(10),
            cap: Duration::from_secs(300),
            settled: Duration::from_secs(10),
        }
    }
}

impl BackOff {
    /// The wait after the `failures`-th failure in a row. `jitter`, from 0 to 1, says how much of
    /// the random half is added.
    fn wait(&self, failures: u32, jitter: f64) -> Duration {
        let nominal = self.base.saturating_mul(failures.saturating_mul(failures)).min(self.cap);
        (nominal + (nominal / 2).mul_f64(jitter.clamp(0.0, 1.0))).min(self.cap)
    }
}

/// What does not change while a machine is supervised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When the machine is started, and when again.
    pub strategy: RunStrategy,
    /// How long one run may take.
    pub time_limit: Option<Duration>,
    /// How long to wait after failures.
    pub back_off: BackOff,
}

/// Where a machine is. Times are since a moment that the caller chose, as in [`Policy::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It never ran.
    Stopped,
    /// The engine is being started.
    Starting {
        /// Failures in a row before.
        failures: u32,
    },
    /// The engine runs.
    Running {
        /// Since when.
        since: Duration,
        /// Failures in a row before.
        failures: u32,
    },
    /// The engine was killed and has not ended yet.
    Stopping {
        /// For what it was killed.
        cause: GuestEnd,
        /// Failures in a row before.
        failures: u32,
    },
    /// It failed and waits to be started again.
    BackOff {
        /// Until when.
        until: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// It ended and is not started again by itself.
    Done {
        /// How its last run ended.
        end: GuestEnd,
    },
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The user wants it to run.
    Start,
    /// The user wants it to stop.
    Stop,
    /// The engine's process runs.
    EngineStarted,
    /// The engine's process ended.
    Ended(GuestEnd),
    /// Time passed; at the latest due at [`Policy::deadline`].
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the engine, then report [`Event::EngineStarted`] or [`Event::Ended`].
    Launch,
    /// Kill the engine, then report [`Event::Ended`].
    Kill,
    /// Tell the user why not.
    Refuse(&'static str),
}

impl Policy {
    /// The policy that `spec` asks for, with the usual back-off.
    pub fn of(spec: &VmSpec) -> Self {
        let back_off = BackOff::default();
        Self { strategy: spec.run_strategy, time_limit: spec.time_limit, back_off }
    }

    /// The next state, and what to do on the way. `now` is the time since any fixed moment,
    /// `jitter` a random number from 0 to 1. Events that mean nothing in a state change nothing.
    pub fn step(
        &self,
        state: State,
        event: Event,
        now: Duration,
        jitter: f64,
    ) -> (State, Option<Action>) {
        match (state, event) {
            (State::Stopped | State::Done { .. }, Event::Start) => self.start(state),
            (State::Starting { failures }, Event::EngineStarted) => {
                (State::Running { since: now, failures }, None)
            }
            (State::Starting { failures }, Event::Ended(end)) => {
                self.ended(end, failures + 1, now, jitter)
            }
            (State::Running { since, failures }, Event::Ended(end)) => {
                let settled = now.saturating_sub(since) >= self.back_off.settled;
                self.ended(end, if settled { 0 } else { failures + 1 }, now, jitter)
            }
            (State::Starting { failures } | State::Running { failures, .. }, Event::Stop) => {
                (State::Stopping { cause: GuestEnd::Stopped, failures }, Some(Action::Kill))
            }
            (State::Running { since, failures }, Event::Tick) if self.is_over(since, now) => {
                (State::Stopping { cause: GuestEnd::TimedOut, failures }, Some(Action::Kill))
            }
            // The engine came up only after it was to be killed.
            (State::Stopping { .. }, Event::EngineStarted) => (state, Some(Action::Kill)),
            (State::Stopping { failures, .. }, Event::Stop) => {
                (State::Stopping { cause: GuestEnd::Stopped, failures }, None)
            }
            (State::Stopping { cause: GuestEnd::TimedOut, .. }, Event::Ended(_)) => {
                self.ended(GuestEnd::TimedOut, 0, now, jitter)
            }
            (State::Stopping { cause, .. }, Event::Ended(_)) => (State::Done { end: cause }, None),
            (State::BackOff { .. }, Event::Stop) => (State::Done { end: GuestEnd::Stopped }, None),
            (State::BackOff { until, failures }, Event::Tick) if now >= until => {
                (State::Starting { failures }, Some(Action::Launch))
            }
            _ => (state, None),
        }
    }

    /// When the next [`Event::Tick`] is due, if time matters in this state.
    pub fn deadline(&self, state: State) -> Option<Duration> {
        match state {
            State::Running { since, .. } => {
                self.time_limit.map(|limit| since.saturating_add(limit))
            }
            State::BackOff { until, .. } => Some(until),
            _ => None,
        }
    }

    fn is_over(&self, since: Duration, now: Duration) -> bool {
        self.time_limit.is_some_and(|limit| now.saturating_sub(since) >= limit)
    }

    fn start(&self, state: State) -> (State, Option<Action>) {
        let why_not = match (self.strategy, state) {
            (RunStrategy::Halted, _) => "the run strategy Halted does not let the machine start",
            (RunStrategy::Once, State::Done { .. }) => {
                "the run strategy Once lets the machine run once, and it did"
            }
            _ => return (State::Starting { failures: 0 }, Some(Action::Launch)),
        };
        (state, Some(Action::Refuse(why_not)))
    }

    /// After an end that the user did not ask for. `failures` is how many in a row there are if
    /// this end is one, or 0 if it is not to be counted.
    fn ended(
        &self,
        end: GuestEnd,
        failures: u32,
        now: Duration,
        jitter: f64,
    ) -> (State, Option<Action>) {
        // Somebody else's signal stopped the engine politely; KubeVirt takes that for success too.
        let failed = !end.is_success();
        let again = match self.strategy {
            RunStrategy::Always => true,
            RunStrategy::RerunOnFailure => failed,
            RunStrategy::Manual | RunStrategy::Once | RunStrategy::Halted => false,
        };
        if !again {
            (State::Done { end }, None)
        } else if failed && failures > 0 {
            let until = now.saturating_add(self.back_off.wait(failures, jitter));
            (State::BackOff { until, failures }, None)
        } else {
            (State::Starting { failures: 0 }, Some(Action::Launch))
        }
    }
}

#[cfg(test)]
mod tests;
