//! Strategy × state × event, in tables.

use super::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn policy(strategy: RunStrategy) -> Policy {
    Policy { strategy, time_limit: Some(seconds(100)), back_off: BackOff::default() }
}

const STARTING: State = State::Starting { failures: 0 };
const RUNNING: State = State::Running { since: seconds(1000), failures: 0 };
const STOPPING: State = State::Stopping { cause: GuestEnd::Stopped, failures: 0 };
const BACK_OFF: State = State::BackOff { until: seconds(1020), failures: 1 };
const DONE: State = State::Done { end: GuestEnd::PowerOff };

fn done(end: GuestEnd) -> (State, Option<Action>) {
    (State::Done { end }, None)
}

const AGAIN: (State, Option<Action>) = (STARTING, Some(Action::Launch));

/// After a failure that counts, at second 1005 without jitter.
fn back_off(failures: u32, wait: u64) -> (State, Option<Action>) {
    (State::BackOff { until: seconds(1005 + wait), failures }, None)
}

#[track_caller]
fn check(strategy: RunStrategy, state: State, event: Event, expected: (State, Option<Action>)) {
    let next = policy(strategy).step(state, event, seconds(1005), 0.0);
    assert_eq!(next, expected, "{strategy:?}: {state:?} × {event:?}");
}

#[test]
fn start_follows_the_strategy() {
    for strategy in RunStrategy::ALL {
        let halted = (
            State::Stopped,
            Some(Action::Refuse("the run strategy Halted does not let the machine start")),
        );
        let expected = if strategy == RunStrategy::Halted { halted } else { AGAIN };
        check(strategy, State::Stopped, Event::Start, expected);
        for state in [STARTING, RUNNING, STOPPING, BACK_OFF] {
            check(strategy, state, Event::Start, (state, None));
        }
    }
    for strategy in [RunStrategy::Always, RunStrategy::Manual, RunStrategy::RerunOnFailure] {
        check(strategy, DONE, Event::Start, AGAIN);
    }
    let why = "the run strategy Once lets the machine run once, and it did";
    check(RunStrategy::Once, DONE, Event::Start, (DONE, Some(Action::Refuse(why))));
}

#[test]
fn ends_follow_the_strategy() {
    use GuestEnd::{Crash, EngineFailed, PowerOff, Reset, TimedOut};
    for end in [PowerOff, Reset] {
        check(RunStrategy::Always, RUNNING, Event::Ended(end), AGAIN);
        for strategy in [RunStrategy::RerunOnFailure, RunStrategy::Manual, RunStrategy::Once] {
            check(strategy, RUNNING, Event::Ended(end), done(end));
        }
    }
    for end in [Crash, EngineFailed, TimedOut] {
        for strategy in [RunStrategy::Always, RunStrategy::RerunOnFailure] {
            check(strategy, RUNNING, Event::Ended(end), back_off(1, 10));
            check(strategy, STARTING, Event::Ended(end), back_off(1, 10));
            let failed_before = State::Running { since: seconds(1000), failures: 2 };
            check(strategy, failed_before, Event::Ended(end), back_off(3, 90));
            let settled = State::Running { since: seconds(990), failures: 2 };
            check(strategy, settled, Event::Ended(end), AGAIN);
        }
        for strategy in [RunStrategy::Manual, RunStrategy::Once, RunStrategy::Halted] {
            check(strategy, RUNNING, Event::Ended(end), done(end));
            check(strategy, STARTING, Event::Ended(end), done(end));
        }
    }
}

#[test]
fn a_stop_ends_every_strategy() {
    for strategy in RunStrategy::ALL {
        let killed = (STOPPING, Some(Action::Kill));
        check(strategy, STARTING, Event::Stop, killed);
        check(strategy, RUNNING, Event::Stop, killed);
        check(strategy, STOPPING, Event::Stop, (STOPPING, None));
        check(strategy, BACK_OFF, Event::Stop, done(GuestEnd::Stopped));
        check(strategy, DONE, Event::Stop, (DONE, None));
        check(strategy, State::Stopped, Event::Stop, (State::Stopped, None));
        for end in [GuestEnd::EngineFailed, GuestEnd::PowerOff] {
            check(strategy, STOPPING, Event::Ended(end), done(GuestEnd::Stopped));
        }
        check(strategy, STOPPING, Event::EngineStarted, (STOPPING, Some(Action::Kill)));
    }
}

#[test]
fn time_matters_while_running_and_backing_off() {
    let policy = policy(RunStrategy::RerunOnFailure);
    assert_eq!(policy.deadline(RUNNING), Some(seconds(1100)));
    assert_eq!(policy.deadline(BACK_OFF), Some(seconds(1020)));
    for state in [State::Stopped, STARTING, STOPPING, DONE] {
        assert_eq!(policy.deadline(state), None);
    }
    let tick = |state, now| policy.step(state, Event::Tick, seconds(now), 0.0);
    assert_eq!(tick(RUNNING, 1099), (RUNNING, None));
    let timed_out = State::Stopping { cause: GuestEnd::TimedOut, failures: 0 };
    assert_eq!(tick(RUNNING, 1100), (timed_out, Some(Action::Kill)));
    assert_eq!(tick(BACK_OFF, 1019), (BACK_OFF, None));
    let again = State::Starting { failures: 1 };
    assert_eq!(tick(BACK_OFF, 1020), (again, Some(Action::Launch)));

    // It ran for its whole time, so that it starts again at once; unless the user wants otherwise.
    let killed = Event::Ended(GuestEnd::EngineFailed);
    check(RunStrategy::Always, timed_out, killed, AGAIN);
    check(RunStrategy::RerunOnFailure, timed_out, killed, AGAIN);
    check(RunStrategy::Once, timed_out, killed, done(GuestEnd::TimedOut));
    check(RunStrategy::Always, timed_out, Event::Stop, (STOPPING, None));
}

#[test]
fn the_back_off_grows_to_its_cap() {
    let back_off = BackOff::default();
    for (failures, least, most) in
        [(1, 10, 15), (2, 40, 60), (3, 90, 135), (4, 160, 240), (5, 250, 300), (6, 300, 300)]
    {
        assert_eq!(back_off.wait(failures, 0.0), seconds(least));
        assert_eq!(back_off.wait(failures, 1.0), seconds(most));
    }
    assert_eq!(back_off.wait(u32::MAX, 1.0), seconds(300));
}

#[test]
fn a_limit_beyond_all_time_is_no_limit() {
    let policy = Policy { time_limit: Some(Duration::MAX), ..policy(RunStrategy::Once) };
    assert_eq!(policy.deadline(RUNNING), Some(Duration::MAX));
}
