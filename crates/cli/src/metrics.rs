//! The progress of an import as a metric, by CDI's name: a counter of per cents. The importer serves it;
//! `import --metrics-file` writes it for node_exporter's textfile collector.

#![expect(clippy::disallowed_methods, reason = "a file is written again once time has passed")]

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bootyard_import::{Event, Events, Moved};
use bootyard_spec::{Class, shell_word};
use fs_err::os::unix::fs::OpenOptionsExt;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustix::fs::OFlags;

use crate::error::Failure;
use crate::output;

/// Without the `_total` that a counter gets.
const NAME: &str = "kubevirt_cdi_import_progress";
const HELP: &str = "The import progress in percentage";
const LABEL: &str = "ownerUID";

/// What a counter shows at most before the disk has its name.
const UNFINISHED_MAX: f64 = 99.0;
/// How often a file is written at most.
const FILE_EVERY: Duration = Duration::from_secs(1);

/// The progress of one import. Its clones are the same counter.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    counter: Counter<f64, AtomicU64>,
    shown: Arc<Mutex<f64>>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// The progress of this owner's import: nothing yet.
    pub(crate) fn new(owner: &str) -> Self {
        let family = Family::<Vec<(String, String)>, Counter<f64, AtomicU64>>::default();
        let counter = family.get_or_create_owned(&vec![(LABEL.into(), owner.to_owned())]);
        let mut registry = Registry::default();
        registry.register(NAME, HELP, family);
        Self { counter, shown: Arc::default(), registry: Arc::new(registry) }
    }

    /// The disk has its name.
    pub(crate) fn done(&self) {
        self.rise(100.0);
    }

    /// Never falls, whatever was begun anew.
    fn rise(&self, to: f64) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if to > *shown {
            self.counter.inc_by(to - *shown);
            *shown = to;
        }
    }

    /// In the text format of OpenMetrics.
    pub(crate) fn open_metrics(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// In the older text format (version 0.0.4), which is all that the textfile collector reads. There
    /// a counter's whole name is described, and nothing marks the end.
    fn prometheus(&self) -> String {
        let text = self.open_metrics();
        let lines = text.lines().filter(|line| *line != "# EOF");
        let named = |line: &str| match line.starts_with('#') {
            true => line.replacen(&format!(" {NAME} "), &format!(" {NAME}_total "), 1) + "\n",
            false => format!("{line}\n"),
        };
        lines.map(named).collect()
    }
}

impl Events for Metrics {
    fn event(&self, event: Event<'_>) {
        if let Event::Moved(Moved { fetched, total: Some(total), .. }) = event
            && total > 0
        {
            self.rise((fetched as f64 / total as f64 * 100.0).min(UNFINISHED_MAX));
        }
    }
}

/// A file that shows the metrics: always a whole one, since each replaces the one before.
pub(crate) struct MetricsFile {
    path: PathBuf,
    /// Hidden, and not named as the collector wants its files.
    beside: PathBuf,
    metrics: Metrics,
    /// When it was written.
    written: RefCell<Instant>,
}

impl MetricsFile {
    /// Writes the file for the first time. One that cannot be written is of no use to an import. What is
    /// there already is replaced only if it is metrics, and none of the `others`, which the import reads
    /// or writes.
    pub(crate) fn create(path: &Path, owner: &str, others: &[&Path]) -> Result<Self, Failure> {
        let refused = |why: &str| {
            let what = format!("cannot write metrics to `{}`: {why}", path.display());
            Failure::new(Class::Usage, what)
        };
        if path.is_dir() {
            let file = path.join("bootyard.prom");
            let hint = format!("name a file in it, such as `{}`", shell_word(file));
            return Err(refused("it is a folder").with_hint(hint));
        }
        let Some(name) = path.file_name() else { return Err(refused("it is no name of a file")) };
        if others.iter().any(|other| is_same(path, other)) {
            return Err(refused("the import itself reads or writes this file"));
        }
        if !is_ours(path).map_err(|error| refused(&error.to_string()))? {
            let hint = "name a new file, or one that an earlier import has written its metrics to";
            return Err(refused("something else is there").with_hint(hint));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".bootyard-part");
        let file = Self {
            path: path.to_owned(),
            beside: path.with_file_name(hidden),
            metrics: Metrics::new(owner),
            written: RefCell::new(Instant::now()),
        };
        file.write().map_err(|error| refused(&error.to_string()))?;
        Ok(file)
    }

    /// Writes it for the last time.
    pub(crate) fn finish(&self, is_done: bool) {
        if is_done {
            self.metrics.done();
        }
        // The import is as good without it.
        if let Err(error) = self.write() {
            output::error(&format!("cannot write the metrics: {error}\n"));
        }
    }

    fn write(&self) -> io::Result<()> {
        // What a process that was killed has left. Never written into: it may be a link or a pipe.
        match fs_err::remove_file(&self.beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs_err::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o644).open(&self.beside)?;
        file.write_all(self.metrics.prometheus().as_bytes())?;
        fs_err::rename(&self.beside, &self.path)
    }
}

/// Whether both are, or would become, one file.
fn is_same(path: &Path, other: &Path) -> bool {
    let folder = |path: &Path| match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    bootyard_volume::is_same(path, other)
        || (path.file_name() == other.file_name()
            && bootyard_volume::is_same(&folder(path), &folder(other)))
}

/// Whether nothing is lost if `path` is replaced: it is not there, or a file that is empty or begins as
/// metrics do.
fn is_ours(path: &Path) -> io::Result<bool> {
    match fs_err::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        found => {
            if !found?.is_file() {
                return Ok(false);
            }
        }
    }
    let mut options = fs_err::OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.read(true).custom_flags(flags.bits() as i32).open(path)?;
    let mut head = Vec::new();
    file.take(7).read_to_end(&mut head)?;
    Ok(head.is_empty() || head == b"# HELP " || head == b"# TYPE ")
}

impl Events for MetricsFile {
    fn event(&self, event: Event<'_>) {
        self.metrics.event(event);
        let now = Instant::now();
        if now.duration_since(*self.written.borrow()) >= FILE_EVERY {
            self.written.replace(now);
            // The last time tells whether it could be written.
            let _ = self.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textfile_collector_reads_it() {
        let metrics = Metrics::new("a \"b\"");
        metrics.event(Event::Moved(Moved { fetched: 1, total: Some(8), written: 0 }));
        assert_eq!(
            metrics.prometheus(),
            "# HELP kubevirt_cdi_import_progress_total The import progress in percentage.\n\
             # TYPE kubevirt_cdi_import_progress_total counter\n\
             kubevirt_cdi_import_progress_total{ownerUID=\"a \\\"b\\\"\"} 12.5\n"
        );
    }

    #[test]
    fn nothing_is_done_before_it_is() {
        let metrics = Metrics::new("");
        for (fetched, shown) in [(50, " 50.0\n"), (20, " 50.0\n"), (100, " 99.0\n")] {
            metrics.event(Event::Moved(Moved { fetched, total: Some(100), written: 0 }));
            assert!(metrics.prometheus().ends_with(shown), "{}", metrics.prometheus());
        }
        metrics.done();
        assert!(metrics.prometheus().ends_with(" 100.0\n"));
    }
}
