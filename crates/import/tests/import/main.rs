//! Whole imports: real images, from real servers and from ones with faults, into real files.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod cache;
mod containers;
mod faults;
mod formats;
mod resume;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use bootyard_import::{Besides, Cancel, Error, Event, Events, Plan, Report, rehearse, run};
use bootyard_source::{Options, install_crypto_provider};
use bootyard_spec::{ImportRequest, OutputFormat, Target};
use bootyard_volume::Store;
use tempfile::TempDir;

/// A store and a folder for targets, both empty.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        install_crypto_provider();
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A request for a raw file `disk` of this place.
    fn request(&self, source: &str) -> ImportRequest {
        ImportRequest {
            source: source.parse().unwrap(),
            target: Target::Path(self.path("disk")),
            claim: bootyard_spec::Claim::default(),
            size: None,
            max_size: None,
            checksum: None,
            output_format: OutputFormat::Raw,
            preallocation: false,
            relocate_gpt: false,
            cache: None,
        }
    }

    fn import(&self, request: &ImportRequest) -> Result<Report, Error> {
        self.import_with(request, &(), &Cancel::new())
    }

    fn import_with(
        &self,
        request: &ImportRequest,
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Result<Report, Error> {
        let store = Store::open(&self.path("home"));
        let options =
            Options { attempts: 2, retry_delay: Duration::from_millis(1), ..Options::default() };
        run(request, &store, &options, events, cancel)
    }

    fn rehearse(&self, request: &ImportRequest) -> Result<Plan, Error> {
        rehearse(
            request,
            &Besides::default(),
            &Store::open(&self.path("home")),
            &Options::default(),
            &Cancel::new(),
        )
    }

    /// Every file of this place.
    fn files(&self) -> Vec<String> {
        files_of(self.0.path())
    }
}

/// Every file under a folder, hidden ones too, sorted.
fn files_of(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_of(&path));
        } else {
            files.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    files.sort();
    files
}

/// Notes the names of events, each once in a row.
#[derive(Default)]
struct Names(Mutex<Vec<String>>);

impl Names {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Events for Names {
    fn event(&self, event: Event<'_>) {
        let name = match event {
            Event::Phase(phase) => phase.to_string(),
            Event::Planned(plan) => format!("planned {}", plan.format),
            Event::Moved(_) => "moved".to_owned(),
            Event::Retried(count) => format!("retried {count}"),
            _ => "?".to_owned(),
        };
        let mut names = self.0.lock().unwrap();
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
}
