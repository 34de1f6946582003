//! `bootyard run`: from the arguments to a machine, from the guest's end to an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use bootyard_image::Format;
use bootyard_spec::{Class, GuestEnd, VmDisk, VmSpec, VolumeName};
use bootyard_supervise::strategy::{Policy, State};
use bootyard_supervise::{
    Cancel, Choice, DiskFormat, Ended, Engine, Error, KvmEngine, LaunchPlan, Observer, Outcome,
    QemuEngine, Serial, choose_engine,
};
use bootyard_volume::Store;

use crate::args::RunArgs;
use crate::error::Failure;
use crate::terminal::RawTerminal;
use crate::{host, output, settings, signals};

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let spec = spec(args)?;
    let plan = LaunchPlan::of(&spec, format)?;
    let (choice, why) = choose_engine(spec.engine, &host::facts())?;
    let engine = engine(choice)?;
    let policy = Policy::of(&spec);
    let cancel = Cancel::new().map_err(|error| Failure::new(Class::Other, error))?;
    let switch = cancel.clone();
    signals::once(move || switch.cancel())?;
    output::error(&format!("{}: engine {} ({why})\n", spec.name, engine.name()));
    let mut console =
        Console { name: &spec.name, terminal: RawTerminal::enter(), cancel: cancel.clone() };
    let outcome = bootyard_supervise::run(&policy, &plan, engine.as_ref(), &mut console, &cancel)?;
    drop(console);
    verdict(&spec, &outcome)
}

fn spec(args: &RunArgs) -> Result<VmSpec, Failure> {
    let store = Store::open(&settings::store_home()?);
    let mut disks = Vec::new();
    for disk in &args.disks {
        disks.push(VmDisk { path: resolve(&store, disk)?, read_only: false });
    }
    disks.extend(args.seed.clone().map(|path| VmDisk { path, read_only: true }));
    Ok(VmSpec {
        name: machine_name(&args.disks),
        cpus: args.cpus,
        memory: args.memory,
        disks,
        append: args.append.clone(),
        engine: args.engine,
        run_strategy: args.run_strategy,
        time_limit: args.timeout,
    })
}

/// What has a slash is a path, everything else the name of a volume: what a command does shall not
/// depend on which files happen to lie in the folder.
fn resolve(store: &Store, disk: &str) -> Result<PathBuf, Failure> {
    if disk.contains('/') {
        return Ok(disk.into());
    }
    let name = disk.parse::<VolumeName>().map_err(|error| no_volume(disk, error))?;
    store.get(&name).map(|volume| volume.path).map_err(|error| {
        match std::path::Path::new(disk).exists() {
            true => no_volume(disk, error),
            false => Failure::from(error).with_class(Class::Usage),
        }
    })
}

/// The user most likely means the file of that name.
fn no_volume(disk: &str, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(Class::Usage, error)
        .with_hint(format!("a file is named with a slash: `--disk ./{disk}`"))
}

/// The first disk's name without its folder and ending.
fn machine_name(disks: &[String]) -> String {
    let first = disks.first().map(String::as_str).unwrap_or_default();
    let stem = std::path::Path::new(first).file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

fn format(disk: &VmDisk) -> Result<DiskFormat, Failure> {
    Ok(match host::disk_format(&disk.path)? {
        Format::Qcow2 => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    })
}

fn engine(choice: Choice) -> Result<Box<dyn Engine>, Failure> {
    Ok(match choice {
        Choice::Kvm => Box::new(KvmEngine { program: settings::own_executable()? }),
        Choice::Qemu { program, kvm } => Box::new(QemuEngine { program, kvm }),
    })
}

/// Tells on standard error what the machine does, in the few words that fit between serial lines.
struct Console<'a> {
    name: &'a str,
    terminal: Option<RawTerminal>,
    cancel: Cancel,
}

impl Console<'_> {
    /// A terminal in raw mode wants the carriage return too.
    fn say(&self, what: &str) {
        let end = if self.terminal.is_some() { "\r\n" } else { "\n" };
        output::error(&format!("{}: {what}{end}", self.name));
    }
}

impl Observer for Console<'_> {
    fn changed(&mut self, state: State) {
        match state {
            State::Running { .. } if self.terminal.is_some() => {
                self.say("running; Ctrl-] stops it");
            }
            State::Running { .. } => self.say("running"),
            State::BackOff { failures, .. } => {
                self.say(&format!("failed {failures}× in a row; waiting to start it again"));
            }
            _ => {}
        }
    }

    fn ended(&mut self, ended: &Ended) {
        self.say(&ended.end.to_string());
    }

    fn serial(&mut self) -> Result<Serial, Error> {
        let mut serial = Serial::inherit();
        if let Some(terminal) = &self.terminal {
            let cancel = self.cancel.clone();
            serial.input = terminal
                .keys(move || cancel.cancel())
                .map_err(|source| Error::System { what: "taking the terminal", source })?;
        }
        Ok(serial)
    }
}

/// The exit code that the guest's end stands for; an engine's own failure is an error.
fn verdict(spec: &VmSpec, outcome: &Outcome) -> Result<ExitCode, Failure> {
    let class = match (outcome.end, &outcome.failure) {
        (GuestEnd::PowerOff | GuestEnd::Reset, _) => return Ok(ExitCode::SUCCESS),
        (GuestEnd::Crash, _) => Class::GuestCrash,
        (GuestEnd::TimedOut, _) => Class::GuestTimeout,
        (GuestEnd::Stopped, _) => Class::Interrupted,
        (GuestEnd::EngineFailed, failure) => {
            failure.as_ref().map_or(Class::Engine, |failure| failure.class)
        }
    };
    let mut what = format!("{}: {}", spec.name, outcome.end);
    if let Some(failure) = &outcome.failure {
        let said = failure.stderr.trim_end();
        what = match said.strip_prefix(output::ERROR) {
            // Our own machine's error, complete with causes and hint.
            Some(own) => own.to_owned(),
            None => format!("{what} ({})\n{said}", failure.status),
        };
    }
    Err(Failure::new(class, what))
}
