//! One run of a program, measured; and runs of two sides, compared.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::sh;

/// What one run cost, with all processes that it started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Run {
    /// Seconds on the clock.
    pub(super) wall: f64,
    /// Seconds of processors, ours and the kernel's for us.
    pub(super) cpu: f64,
    /// Largest resident memory of any one process, in MiB.
    pub(super) rss: f64,
    /// Written to files, in MiB.
    pub(super) written: f64,
}

/// Runs a program under GNU time, which asks the kernel what it used.
pub(super) fn measure(command: &Command, work: &Path) -> Result<Run> {
    let report = work.join("time");
    let mut timed = sh::cmd("time");
    timed.args(["--quiet", "--format", "%U %S %M %O", "--output"]).arg(&report).arg("--");
    timed.arg(command.get_program()).args(command.get_args());
    timed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    timed.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = timed.output().context("cannot start `time`; run `cargo xtask setup`")?;
    let wall = start.elapsed().as_secs_f64();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed: {}", sh::line(command), stderr.trim());
    parse(&fs_err::read_to_string(&report)?, wall)
}

fn parse(report: &str, wall: f64) -> Result<Run> {
    let numbers: Vec<f64> = report.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [user, system, rss_kib, blocks] =
        numbers.try_into().ok().context("`time` reported something else than four numbers")?;
    // A block of `%O` is 512 bytes, whatever the file system's are.
    Ok(Run { wall, cpu: user + system, rss: rss_kib / 1024.0, written: blocks / 2048.0 })
}

/// One side of a comparison, with its runs.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) name: &'static str,
    pub(super) runs: Vec<Run>,
}

impl Side {
    /// The fastest run and the middle one.
    fn wall(&self) -> (f64, f64) {
        let mut walls: Vec<f64> = self.runs.iter().map(|run| run.wall).collect();
        walls.sort_by(f64::total_cmp);
        (walls[0], walls[walls.len() / 2])
    }

    /// Seconds of the fastest run.
    pub(super) fn wall_min(&self) -> f64 {
        self.wall().0
    }

    /// The smallest value that a run had: what else happens on a machine only adds.
    fn least(&self, value: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(value).fold(f64::INFINITY, f64::min)
    }

    /// The largest value that a run had.
    fn most(&self, value: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(value).fold(0.0, f64::max)
    }

    /// The ratio of our fastest run to theirs.
    pub(super) fn wall_ratio(&self, theirs: &Self) -> f64 {
        self.wall().0 / theirs.wall().0
    }

    /// Peak memory over all runs, in MiB.
    pub(super) fn peak_rss(&self) -> f64 {
        self.most(|run| run.rss)
    }

    /// MiB written by the run that wrote most.
    pub(super) fn written(&self) -> f64 {
        self.most(|run| run.written)
    }
}

/// Runs all sides alternately, each run in a folder of its own in `dir`. `command` makes the command
/// of a side, by its number.
pub(super) fn alternately<const N: usize>(
    names: [&'static str; N],
    runs: usize,
    dir: &Path,
    command: impl Fn(usize, &Path) -> Command,
) -> Result<[Side; N]> {
    let mut sides = names.map(|name| Side { name, runs: Vec::new() });
    for _ in 0..runs {
        for (index, side) in sides.iter_mut().enumerate() {
            let place = tempfile::tempdir_in(dir)?;
            side.runs.push(measure(&command(index, place.path()), place.path())?);
        }
    }
    Ok(sides)
}

/// [`alternately`] for processes of milliseconds, of which starting `time` would be a part: the clock
/// runs for a run of its own, without it.
pub(super) fn briefly<const N: usize>(
    names: [&'static str; N],
    runs: usize,
    dir: &Path,
    command: impl Fn(usize, &Path) -> Command,
) -> Result<[Side; N]> {
    let mut sides = alternately(names, runs, dir, &command)?;
    for number in 0..runs {
        for (index, side) in sides.iter_mut().enumerate() {
            let place = tempfile::tempdir_in(dir)?;
            side.runs[number].wall = wall(&mut command(index, place.path()))?;
        }
    }
    Ok(sides)
}

fn wall(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status =
        command.status().with_context(|| format!("cannot start `{}`", sh::line(command)))?;
    let wall = start.elapsed().as_secs_f64();
    ensure!(status.success(), "`{}` failed", sh::line(command));
    Ok(wall)
}

/// The cases of these names; all, if none is given.
pub(super) fn chosen<T>(
    names: &[String],
    cases: &'static [T],
    name_of: impl Fn(&T) -> &str,
) -> Result<Vec<&'static T>> {
    if names.is_empty() {
        return Ok(cases.iter().collect());
    }
    let find = |name: &String| {
        let all: Vec<&str> = cases.iter().map(&name_of).collect();
        let found = cases.iter().find(|case| name_of(case) == name);
        found.with_context(|| format!("no case `{name}`; there are: {}", all.join("; ")))
    };
    names.iter().map(find).collect()
}

/// What is said of a target.
pub(super) const fn word(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

/// A table of all sides, and the ratio of the first one to each other one.
pub(super) fn table(sides: &[Side]) -> String {
    let mut lines = vec![format!(
        "{:<28} {:>9} {:>9} {:>8} {:>9} {:>9} {:>7} {:>7}",
        "", "wall min", "median", "cpu min", "peak MiB", "written", "wall ×", "cpu ×"
    )];
    let Some(ours) = sides.first() else { return String::new() };
    for side in sides {
        let (min, median) = side.wall();
        let cpu = side.least(|run| run.cpu);
        let (wall_ratio, cpu_ratio) = (ours.wall_ratio(side), ours.least(|run| run.cpu) / cpu);
        lines.push(format!(
            "{:<28} {min:>8.2}s {median:>8.2}s {cpu:>7.2}s {:>9.1} {:>9.1} {wall_ratio:>7.2} \
             {cpu_ratio:>7.2}",
            side.name,
            side.peak_rss(),
            side.written(),
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &'static str, walls: &[f64]) -> Side {
        let run = |wall: &f64| Run { wall: *wall, cpu: wall / 2.0, rss: 10.0, written: 20.0 };
        Side { name, runs: walls.iter().map(run).collect() }
    }

    #[test]
    fn times_report_becomes_seconds_and_mib() {
        let run = parse("1.5 0.25 2048 4096\n", 3.0).unwrap();
        assert_eq!(run, Run { wall: 3.0, cpu: 1.75, rss: 2.0, written: 2.0 });
        assert!(parse("Command exited\n", 3.0).is_err());
    }

    #[test]
    fn children_count() {
        if !bootyard_testkit::require_tool("time") {
            return;
        }
        let work = tempfile::tempdir().unwrap();
        let mut command = sh::cmd("sh");
        command.args(["-c", "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done'"]);
        let run = measure(&command, work.path()).unwrap();
        assert!(run.cpu > 0.01 && run.wall > 0.01 && run.rss > 0.5, "{run:?}");

        let error = measure(sh::cmd("sh").args(["-c", "echo why >&2; exit 3"]), work.path());
        assert!(error.unwrap_err().to_string().ends_with("failed: why"));
    }

    #[test]
    fn the_first_side_is_compared_by_its_fastest_run() {
        let (ours, theirs) = (side("ours", &[2.0, 1.0, 9.0]), side("theirs", &[4.0, 2.0, 3.0]));
        assert!((ours.wall_ratio(&theirs) - 0.5).abs() < 1e-9);
        let table = table(&[ours, theirs]);
        let last = table.lines().last().unwrap();
        assert!(last.starts_with("theirs ") && last.contains("2.00s     3.00s"), "{table}");
        assert!(last.ends_with("0.50    0.50"), "{table}");
    }
}
