//! How long each stage of a command took, printed at its end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Stages in the order in which they ran.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    done: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// Announces and runs a stage. Its failure is told with the stage's name.
    pub(crate) fn run<T>(
        &mut self,
        name: &'static str,
        stage: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = stage().with_context(|| format!("stage `{name}` failed"));
        self.done.push((name, start.elapsed()));
        result
    }

    /// A line per stage, and the sum.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        let total = ("total", self.done.iter().map(|(_, time)| *time).sum());
        for (name, time) in self.done.iter().chain([&total]) {
            writeln!(table, "{name:<12} {:>7.1} s", time.as_secs_f64()).expect("to a string");
        }
        table
    }
}
