//! Whether and when a failed request is made again. Pure: the clock and the dice are the caller's.
//!
//! ```text
//!  no byte has come yet ── Broken, Stalled, status 408 425 429 500 502 503 504 ─► again
//!  bytes have come ─────── these, and Connect, Resolve, Tls (a server that restarts) ─► resume
//!  all else, or attempts used up, or not resumable ─► give up
//! ```

use std::time::Duration;

use crate::{ErrorKind, Options};

/// The longest pause between two requests that we choose ourselves.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// The longest pause that a server's `Retry-After` makes us wait: more than a minute is for the user
/// to decide.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A request that failed, and what is left to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    /// The HTTP status, if it is the failure.
    pub(crate) status: Option<u16>,
    pub(crate) retry_after: Option<Duration>,
    /// How many requests have failed since the stream moved on, this one included.
    pub(crate) attempts: u32,
    pub(crate) stage: Stage,
}

/// Where the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No byte has come: the next request may ask for all of them again.
    Start,
    /// The next request must go on where the bytes end.
    Midway {
        /// The source serves ranges and can tell whether it is still the same version.
        resumable: bool,
    },
}

/// How long to wait before the next request; `None` to give up. `dice` from 0 to 1 spreads the
/// clients of a server that failed them all at once.
pub(crate) fn decide(failure: Failure, options: &Options, dice: f64) -> Option<Duration> {
    let attempts = failure.attempts;
    let lost = failure.stage == Stage::Midway { resumable: false };
    if attempts >= options.attempts || lost || !is_transient(failure) {
        return None;
    }
    let doubled = options.retry_delay.saturating_mul(1_u32.checked_shl(attempts - 1)?);
    let ours = doubled.min(DELAY_MAX).mul_f64(0.5 + dice / 2.0);
    let asked = failure.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    Some(ours.max(asked))
}

fn is_transient(failure: Failure) -> bool {
    match (failure.kind, failure.status) {
        (ErrorKind::Broken | ErrorKind::Stalled, _) => true,
        (ErrorKind::Status, Some(408 | 425 | 429 | 500 | 502 | 503 | 504)) => true,
        (ErrorKind::Connect | ErrorKind::Resolve | ErrorKind::Tls, _) => {
            failure.stage != Stage::Start
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Failure = Failure {
        kind: ErrorKind::Broken,
        status: None,
        retry_after: None,
        attempts: 1,
        stage: Stage::Start,
    };
    const MIDWAY: Stage = Stage::Midway { resumable: true };

    const fn status(status: u16) -> Failure {
        Failure { kind: ErrorKind::Status, status: Some(status), ..FIRST }
    }

    fn retried(failure: Failure) -> bool {
        decide(failure, &Options::default(), 1.0).is_some()
    }

    #[test]
    fn only_what_may_pass_is_retried() {
        for (failure, expected) in [
            (FIRST, true),
            (Failure { kind: ErrorKind::Stalled, ..FIRST }, true),
            (Failure { stage: MIDWAY, ..FIRST }, true),
            (Failure { stage: Stage::Midway { resumable: false }, ..FIRST }, false),
            (Failure { attempts: 4, ..FIRST }, true),
            (Failure { attempts: 5, ..FIRST }, false),
            (status(503), true),
            (status(429), true),
            (status(501), false),
            (status(416), false),
            (Failure { kind: ErrorKind::NotFound, status: Some(404), ..FIRST }, false),
            (Failure { kind: ErrorKind::Denied, status: Some(403), stage: MIDWAY, ..FIRST }, false),
            (Failure { kind: ErrorKind::Connect, ..FIRST }, false),
            (Failure { kind: ErrorKind::Connect, stage: MIDWAY, ..FIRST }, true),
            (Failure { kind: ErrorKind::Resolve, stage: MIDWAY, ..FIRST }, true),
            (Failure { kind: ErrorKind::Changed, stage: MIDWAY, ..FIRST }, false),
            (Failure { kind: ErrorKind::BadAnswer, stage: MIDWAY, ..FIRST }, false),
        ] {
            assert_eq!(retried(failure), expected, "{failure:?}");
        }
    }

    #[test]
    fn pauses_double_with_jitter_up_to_their_limits() {
        let seconds = Duration::from_secs;
        let patient = Options { attempts: 100, ..Options::default() };
        for (attempts, retry_after, dice, expected) in [
            (1, None, 1.0, Duration::from_millis(200)),
            (1, None, 0.0, Duration::from_millis(100)),
            (2, None, 1.0, Duration::from_millis(400)),
            (4, None, 1.0, Duration::from_millis(1600)),
            (20, None, 1.0, DELAY_MAX),
            (1, Some(seconds(3)), 1.0, seconds(3)),
            (1, Some(seconds(3600)), 1.0, RETRY_AFTER_MAX),
            (20, Some(seconds(3)), 1.0, DELAY_MAX),
        ] {
            let failure = Failure { attempts, retry_after, ..status(503) };
            assert_eq!(decide(failure, &patient, dice), Some(expected), "{failure:?}");
        }
        // Beyond what a shift can hold nobody is patient any more.
        assert_eq!(decide(Failure { attempts: 50, ..FIRST }, &patient, 1.0), None);
    }
}
