//! Tells people of devices' failures, without drowning them in a guest's retries.

use std::error::Error as StdError;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Report;

/// The failures of one device.
#[derive(Clone)]
pub(crate) struct Failures {
    report: Report,
    device: Arc<str>,
    count: Arc<AtomicU64>,
}

impl Failures {
    /// Failures of `device`, which go to `report`.
    pub(crate) fn new(report: &Report, device: &str) -> Self {
        Self { report: Arc::clone(report), device: device.into(), count: Arc::default() }
    }

    /// Counts a failure, and reports it if its number is a power of two.
    pub(crate) fn add(&self, error: &dyn StdError) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if !count.is_power_of_two() {
            return;
        }
        let mut line = format!("{}: {error}", self.device);
        let mut source = error.source();
        while let Some(cause) = source {
            write!(line, ": {cause}").expect("strings take everything");
            source = cause.source();
        }
        if count > 1 {
            write!(line, " (failure {count})").expect("strings take everything");
        }
        (self.report)(&line);
    }
}

impl std::fmt::Debug for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Failures").field("device", &self.device).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::virtio::Error;

    #[test]
    fn failures_are_told_ever_more_rarely_and_with_their_causes() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let report: Report = Arc::new(move |line| heard.lock().unwrap().push(line.to_owned()));
        let failures = Failures::new(&report, "disk `/vm/root.raw`");
        let full = || Error::Host(std::io::Error::other("too many open files"));
        (0..1000).for_each(|_| failures.add(&full()));
        let lines = lines.lock().unwrap();
        let first = "disk `/vm/root.raw`: the device's thread cannot run: too many open files";
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], first);
        assert_eq!(lines[9], format!("{first} (failure 512)"));
    }
}
