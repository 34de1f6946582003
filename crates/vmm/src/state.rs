//! Where a machine is between its start and its end, as a pure function of state and event.
//!
//! ```text
//!              Started                 Pause                  Parked
//!   Starting ───────────► Running ─────────────► Pausing ───────────────► Paused
//!    │    ▲                  ▲                      │                        │  ▲
//!    │    │                  └──────────────────────┴──── Resume ────────────┘  │
//!    │    │ Restart (from any of them)                                          │
//!    │    └──────────────────────────                                           │
//!    └── Started, where the machine is to be paused ────────────────────────────┘
//!
//!   End leads from all of them to Ended, and nothing leads out of it.
//! ```
//!
//! `Starting` is the time in which memory, processors and devices are made anew, at first and at each
//! restart. A pause that comes then, or outlasts a restart, is kept: no processor of the new life enters
//! the guest.

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It is being built, for the first time or for a restart.
    Starting {
        /// It shall be paused as soon as it is there.
        paused: bool,
    },
    /// The guest runs.
    Running,
    /// It shall be paused, and some processor is still in the guest.
    Pausing,
    /// No processor is in the guest, and none enters it.
    Paused,
    /// It has ended.
    Ended,
}

/// What happened to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was built, and its processors start.
    Started,
    /// Someone wants it paused.
    Pause,
    /// No processor is in the guest any more.
    Parked,
    /// Someone wants it to run.
    Resume,
    /// One life of the guest is over, and another begins.
    Restart(By),
    /// It is over.
    End,
}

/// Who wanted something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    /// The guest itself.
    Guest,
    /// Somebody outside, by [`crate::Control`].
    User,
}

/// What observers of a machine hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The guest stands still.
    Paused,
    /// The guest runs again.
    Resumed,
    /// The guest starts again from nothing.
    Reset(By),
}

impl Default for State {
    fn default() -> Self {
        Self::Starting { paused: false }
    }
}

impl State {
    /// True if no processor may enter the guest.
    pub(crate) const fn holds(self) -> bool {
        matches!(self, Self::Starting { paused: true } | Self::Pausing | Self::Paused)
    }

    /// The state after `event`, and what there is to tell. What means nothing in a state changes
    /// nothing: pausing twice is no mistake.
    pub(crate) fn step(self, event: Event) -> (Self, Option<Notice>) {
        match (self, event) {
            (Self::Ended, _) | (_, Event::End) => (Self::Ended, None),
            (_, Event::Restart(by)) => {
                (Self::Starting { paused: self.holds() }, Some(Notice::Reset(by)))
            }
            (Self::Starting { .. }, Event::Pause) => (Self::Starting { paused: true }, None),
            // It may have been paused, and told so, before it was reset.
            (Self::Starting { paused: true }, Event::Resume) => {
                (Self::Starting { paused: false }, Some(Notice::Resumed))
            }
            (Self::Starting { paused: false }, Event::Started) => (Self::Running, None),
            (Self::Starting { paused: true }, Event::Started) => {
                (Self::Paused, Some(Notice::Paused))
            }
            (Self::Running, Event::Pause) => (Self::Pausing, None),
            (Self::Pausing, Event::Parked) => (Self::Paused, Some(Notice::Paused)),
            // Nobody was told that it paused.
            (Self::Pausing, Event::Resume) => (Self::Running, None),
            (Self::Paused, Event::Resume) => (Self::Running, Some(Notice::Resumed)),
            _ => (self, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTING: State = State::Starting { paused: false };
    const HELD: State = State::Starting { paused: true };
    const ALL: [State; 6] =
        [STARTING, HELD, State::Running, State::Pausing, State::Paused, State::Ended];

    #[test]
    fn every_event_in_every_state() {
        use State::{Ended, Paused, Pausing, Running};
        // In the order of `ALL`.
        for (event, expected) in [
            (Event::Started, [Running, Paused, Running, Pausing, Paused, Ended]),
            (Event::Pause, [HELD, HELD, Pausing, Pausing, Paused, Ended]),
            (Event::Parked, [STARTING, HELD, Running, Paused, Paused, Ended]),
            (Event::Resume, [STARTING, STARTING, Running, Running, Running, Ended]),
            (Event::Restart(By::Guest), [STARTING, HELD, STARTING, HELD, HELD, Ended]),
            (Event::End, [Ended; 6]),
        ] {
            assert_eq!(ALL.map(|state| state.step(event).0), expected, "{event:?}");
        }
    }

    #[test]
    fn observers_hear_what_they_can_see() {
        let mut state = STARTING;
        let mut told = Vec::new();
        for event in [
            Event::Started,
            Event::Pause,
            Event::Resume,
            Event::Pause,
            Event::Pause,
            Event::Parked,
            Event::Parked,
            Event::Restart(By::User),
            Event::Started,
            Event::Restart(By::User),
            Event::Resume,
            Event::Resume,
            Event::Started,
            Event::Restart(By::Guest),
            Event::Started,
            Event::End,
            Event::Restart(By::Guest),
        ] {
            let (next, notice) = state.step(event);
            state = next;
            told.extend(notice);
        }
        let expected = [
            Notice::Paused,
            Notice::Reset(By::User),
            Notice::Paused,
            Notice::Reset(By::User),
            Notice::Resumed,
            Notice::Reset(By::Guest),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn who_is_held_stays_held_until_resumed() {
        for state in ALL.into_iter().filter(|state| state.holds()) {
            for event in [Event::Started, Event::Pause, Event::Parked, Event::Restart(By::Guest)] {
                assert!(state.step(event).0.holds(), "{state:?} {event:?}");
            }
            assert!(!state.step(Event::Resume).0.holds());
        }
    }
}
