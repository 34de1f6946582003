//! `bootyard importer`: stands in for the importer container of KubeVirt's CDI. It takes what CDI's
//! controller puts into the pod, and answers as the controller expects; `docs/importer.md` holds it
//! against CDI case by case. All that it does in between is an ordinary import.

mod answer;
mod environment;
mod metrics;
mod target;

use std::error::Error as StdError;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use bootyard_import::{ArchiveRequest, Error, Event, Events, Report};
use bootyard_spec::{ByteSize, Claim, ImportRequest, OutputFormat, SafeUrl, Source, Target};
use bootyard_volume::{Store, UnpackOptions};

use crate::metrics::Metrics;
use crate::output;
use crate::progress::Display;
use crate::settings;
use answer::Answer;
use environment::{Content, Job, Paths};
use target::Place;

pub(crate) use environment::Variables;

/// How long the server of an image in the pod may take to be ready, in seconds: as long as CDI waits.
const READY_LIMIT: u32 = 60;

/// Something in the pod that cannot be used. The text is the whole termination message.
#[derive(Debug)]
struct Refused(String);

impl Refused {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    fn from_error(error: impl StdError) -> Self {
        Self(chain(&error))
    }
}

/// Runs the import that the environment describes.
pub(crate) fn run() -> ExitCode {
    let variables = settings::variables();
    for line in variables.ignored() {
        log(&line);
    }
    let paths = variables.paths();
    let metrics = Metrics::new(variables.owner_uid());
    // Without them the import is as good, and only its progress is not seen.
    if let Err(refused) = variables.metrics().and_then(|options| metrics::serve(&metrics, &options))
    {
        log(&refused.0);
    }
    let answer = match variables.job(&paths) {
        Ok(job) => job.run(&paths, &metrics),
        Err(refused) => Answer::Failed(refused.0),
    };
    log(answer.message());
    if let Err(error) = answer.write(&paths) {
        log(&format!("cannot write the termination message: {error}"));
    }
    answer.exit_code()
}

impl Job {
    fn run(mut self, paths: &Paths, metrics: &Metrics) -> Answer {
        if let Err(refused) = self.wait_until_ready() {
            return Answer::Failed(refused.0);
        }
        let place = match Place::prepare(paths, &self) {
            Ok(place) => place,
            Err(refused) => return Answer::Failed(refused.0),
        };
        let display = Display::new(false);
        let both = Both { metrics, display: &display };
        match self.import(&place, &both) {
            Ok(report) => match place.hand_over() {
                Ok(()) => {
                    metrics.done();
                    self.touch_done_file();
                    Answer::complete(self.preallocation, report.as_ref())
                }
                Err(refused) => Answer::unable(&refused.0),
            },
            Err(error) => answer::of_error(&error, place.limit),
        }
    }

    /// Imports; where the disk is larger than what the file system can surely hold but not larger
    /// than the limit, the volume gets the disk's size and nothing more, as CDI has it.
    fn import(&self, place: &Place, events: &dyn Events) -> Result<Option<Report>, Error> {
        if self.source.is_none() && !place.is_file && !self.preallocation {
            // CDI calls a block device blank as it comes from its storage class.
            return Ok(None);
        }
        let cancel = crate::commands::import::cancel_on_signal().unwrap_or_default();
        if let (Content::Archive, Some(source)) = (self.content, &self.source) {
            let request = ArchiveRequest {
                source: source.clone(),
                folder: place.path.clone(),
                checksum: self.checksum.clone(),
                options: UnpackOptions {
                    bytes_max: place.limit.map_or(u64::MAX, ByteSize::bytes),
                    // As CDI's `tar --preserve-permissions`.
                    special_modes: true,
                    ..UnpackOptions::default()
                },
            };
            bootyard_import::unpack(&request, &self.options, events, &cancel)?;
            return Ok(None);
        }
        let store = Store::open(Path::new("/nonexistent"));
        let request = |size| ImportRequest {
            source: self.source.clone().unwrap_or(Source::Blank),
            target: Target::Path(place.path.clone()),
            claim: Claim::default(),
            size,
            max_size: place.limit,
            checksum: self.checksum.clone(),
            output_format: OutputFormat::Raw,
            preallocation: self.preallocation,
            relocate_gpt: false,
            cache: None,
        };
        let run = |size: Option<ByteSize>| {
            bootyard_import::run(&request(size), &store, &self.options, events, &cancel)
        };
        match run(place.size) {
            Err(Error::SizeTooSmall { virtual_size, .. }) => run(Some(virtual_size)).map(Some),
            done => done.map(Some),
        }
    }

    /// Waits for the server of an image in this pod. Its file may hold the image's name there.
    fn wait_until_ready(&mut self) -> Result<(), Refused> {
        let Some(file) = &self.ready_file else { return Ok(()) };
        let shown = file.display();
        for _ in 0..READY_LIMIT {
            if file.exists() {
                let name = fs_err::read_to_string(file).map_err(Refused::from_error)?;
                if let Some(Source::Http(url)) = &mut self.source {
                    *url = named(url, name.trim());
                }
                return Ok(());
            }
            sleep(Duration::from_secs(1));
        }
        Err(Refused::new(format!("Timeout waiting for file {shown}")))
    }

    /// The image's server waits for this file. That it is there already is no failure.
    fn touch_done_file(&self) {
        if let Some(file) = &self.done_file
            && let Err(error) = fs_err::write(file, "")
        {
            log(&error.to_string());
        }
    }
}

/// The URL with the image's own name in place of `disk.img`.
fn named(url: &SafeUrl, name: &str) -> SafeUrl {
    let mut named = url.expose().clone();
    if !name.is_empty() && named.path().ends_with(target::DISK) {
        let path = named.path().strip_suffix(target::DISK).unwrap_or_default().to_owned();
        named.set_path(&format!("{path}{name}"));
    }
    SafeUrl::from(named)
}

/// Two that listen.
struct Both<'a> {
    metrics: &'a Metrics,
    display: &'a Display,
}

impl Events for Both<'_> {
    fn event(&self, event: Event<'_>) {
        self.metrics.event(event);
        self.display.event(event);
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn StdError) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

fn log(line: &str) {
    output::error(&format!("{line}\n"));
}
