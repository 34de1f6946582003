//! Rate and remaining time of a transfer: pure, so that whoever shows them brings the clock.

use std::time::Duration;

use crate::Moved;

/// Over which time the rate is averaged: long enough to read it, short enough to see a change.
const WINDOW: Duration = Duration::from_secs(5);

/// How fast a transfer is, and how long it will take.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    moved: Moved,
    /// When `moved` was noted, counted from the start.
    at: Duration,
    /// Bytes a second, once time has passed.
    rate: Option<f64>,
}

impl Progress {
    /// A transfer that begins now.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes what has moved until `now`, which counts from the start of the transfer.
    pub fn update(&mut self, now: Duration, moved: Moved) {
        let passed = now.saturating_sub(self.at);
        if passed.is_zero() {
            self.moved = moved;
            return;
        }
        let bytes = moved.fetched.saturating_sub(self.moved.fetched);
        let current = bytes as f64 / passed.as_secs_f64();
        // An average that forgets: what happened one window ago counts 1/e.
        let weight = 1.0 - (-passed.as_secs_f64() / WINDOW.as_secs_f64()).exp();
        self.rate = Some(self.rate.map_or(current, |rate| rate + (current - rate) * weight));
        (self.moved, self.at) = (moved, now);
    }

    /// What has moved.
    pub const fn moved(&self) -> Moved {
        self.moved
    }

    /// Bytes that come from the source a second, averaged over the last few seconds.
    pub fn rate(&self) -> Option<u64> {
        self.rate.map(|rate| rate as u64)
    }

    /// How long the rest takes at this rate; `None` where the source does not tell its length or
    /// nothing moves.
    pub fn eta(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate >= 1.0)?;
        let left = self.moved.total?.saturating_sub(self.moved.fetched);
        Duration::try_from_secs_f64(left as f64 / rate).ok()
    }

    /// The part of the source that has come, from 0 to 1; `None` where its length is not known.
    pub fn fraction(&self) -> Option<f64> {
        let total = self.moved.total?;
        Some(if total == 0 { 1.0 } else { self.moved.fetched as f64 / total as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(fetched: u64, total: Option<u64>) -> Moved {
        Moved { fetched, total, written: 0 }
    }

    #[test]
    fn a_steady_transfer_has_its_rate_and_end() {
        let mut progress = Progress::new();
        assert_eq!((progress.rate(), progress.eta(), progress.fraction()), (None, None, None));
        for tenth in 0..=40 {
            let now = Duration::from_millis(100 * tenth);
            progress.update(now, moved(1000 * tenth, Some(100_000)));
        }
        assert_eq!(progress.rate(), Some(10_000));
        assert_eq!(progress.eta().map(|eta| eta.as_secs_f64().round()), Some(6.0));
        assert_eq!(progress.fraction(), Some(0.4));
    }

    #[test]
    fn a_change_of_rate_shows_within_the_window() {
        let mut progress = Progress::new();
        progress.update(Duration::from_secs(10), moved(10_000, None));
        assert_eq!((progress.rate(), progress.eta()), (Some(1000), None));
        progress.update(Duration::from_secs(25), moved(10_000, None));
        assert!(progress.rate().is_some_and(|rate| rate < 60), "{progress:?}");
    }

    #[test]
    fn odd_clocks_and_sources_break_nothing() {
        let mut progress = Progress::new();
        progress.update(Duration::from_secs(5), moved(500, Some(1000)));
        progress.update(Duration::from_secs(5), moved(600, Some(1000)));
        progress.update(Duration::from_secs(4), moved(600, Some(1000)));
        assert_eq!(progress.rate(), Some(100));
        // More than was announced, an empty source, and a stall.
        progress.update(Duration::from_secs(6), moved(1200, Some(1000)));
        assert_eq!(progress.eta(), Some(Duration::ZERO));
        progress.update(Duration::from_secs(7), moved(1200, Some(0)));
        assert_eq!(progress.fraction(), Some(1.0));
        progress.update(Duration::from_secs(500), moved(1200, Some(u64::MAX)));
        assert_eq!(progress.eta(), None);
    }
}
