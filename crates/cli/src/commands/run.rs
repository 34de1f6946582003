//! `bootyard run`: from the arguments to a machine, from the guest's end to an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use bootyard_cloudinit::DiskImage;
use bootyard_spec::{
    ByteSize, Class, CpuTopology, DiskAttachment, DiskLife, Explain, GuestEnd, VmDisk, VmSpec,
    VolumeName,
};
use bootyard_supervise::strategy::{Policy, State};
use bootyard_supervise::{
    Cancel, Choice, Ended, Engine, Error, KvmEngine, LaunchPlan, Observer, Outcome, QemuEngine,
    Running, Serial, check_networks_for_qemu, choose_engine,
};
use bootyard_vmm::{CPUS_MAX, MEMORY_MAX, MEMORY_MIN};
use bootyard_volume::{Access, AttachedDisk, ErrorKind, Store};

use crate::args::RunArgs;
use crate::commands::seed_lint;
use crate::control::Reach;
use crate::disks::{self, Disks, Scratch};
use crate::error::Failure;
use crate::terminal::RawTerminal;
use crate::{boot, hardware, host, output, settings, signals};

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let cancel = Cancel::new().map_err(|error| Failure::new(Class::Other, error))?;
    let fetching = bootyard_import::Cancel::new();
    let switches = (cancel.clone(), fetching.clone());
    signals::once(move || {
        switches.1.cancel();
        switches.0.cancel();
    })?;
    let seed = seed(args)?;
    if let Some(given) = args.boot.spec().kernel {
        boot::check(&given)?;
    }
    let mut disks = disks::resolve(args, &fetching)?;
    if let Some(image) = seed {
        let path = disks.scratch.seed(&image.into_bytes())?;
        disks.disks.push(seed_disk(path));
    }
    let spec = spec(args, &disks)?;
    let plan = LaunchPlan::of(&spec, |path| Ok::<_, Failure>(host::format_by_name(path)))?;
    let (choice, why) = choose_engine(spec.engine, &host::facts())?;
    let _locks = match choice {
        Choice::Qemu { .. } => prepare_for_qemu(&spec)?,
        Choice::Kvm => Vec::new(),
    };
    let engine = engine(choice)?;
    let policy = Policy::of(&spec);
    output::error(&format!("{}: engine {} ({why})\n", spec.name, engine.name()));
    let switch = cancel.clone();
    let reach = Reach::open(&args.control, &plan, engine.name(), &cancel)?;
    let terminal = reach.take_input(move || switch.cancel())?;
    let scratch = &disks.scratch;
    let mut console = Console { name: &spec.name, reach, terminal, last: None, scratch };
    let outcome = bootyard_supervise::run(&policy, &plan, engine.as_ref(), &mut console, &cancel)?;
    drop(console);
    verdict(&spec, &outcome)
}

impl RunArgs {
    /// The name of what is booted, without its folder and ending.
    fn machine_name(&self) -> String {
        let name = self.disks.machine_name();
        if name.is_empty() { self.boot.machine_name() } else { name }
    }
}

/// The seed that flags ask for.
fn seed(args: &RunArgs) -> Result<Option<DiskImage>, Failure> {
    let image = args.seed_args.machine_seed(&args.machine_name())?;
    if image.is_some() && args.seed.is_some() {
        let what = "`--seed` is given, and flags that make another seed";
        return Err(Failure::new(Class::Usage, what).with_hint(
            "leave out `--seed`, or `--hostname`, `--user-data` and the others like them",
        ));
    }
    if let Some(path) = args.seed.as_ref().filter(|_| !args.seed_args.no_lint) {
        seed_lint::before_run(path);
    }
    Ok(image)
}

fn seed_disk(path: PathBuf) -> VmDisk {
    VmDisk { path, read_only: true, life: DiskLife::Kept, attachment: DiskAttachment::default() }
}

fn spec(args: &RunArgs, disks: &Disks) -> Result<VmSpec, Failure> {
    let mut disks = disks.disks.clone();
    disks.extend(args.seed.clone().map(seed_disk));
    Ok(VmSpec {
        name: args.machine_name(),
        cpus: cpus(args.hardware.cpus)?,
        cpu_model: args.hardware.cpu_model,
        memory: memory(args.hardware.memory)?,
        huge_pages: args.hardware.hugepages,
        firmware: args.hardware.firmware(&args.machine_name()),
        sandbox: !args.hardware.no_sandbox,
        disks,
        networks: args.networks.networks(&args.disks.machine_name())?,
        services: args.services.services(),
        boot: args.boot.spec(),
        engine: args.engine,
        run_strategy: args.run_strategy,
        time_limit: args.timeout,
        reboot_policy: args.control.reboot_policy,
        start_paused: args.control.paused,
    })
}

/// The limits are the kvm engine's, and hold for both, so that a machine runs on either.
fn memory(asked: ByteSize) -> Result<ByteSize, Failure> {
    let [min, max] = [MEMORY_MIN, MEMORY_MAX].map(ByteSize::from_bytes);
    if (min..=max).contains(&asked) {
        return Ok(asked);
    }
    let what = format!("expected {min} to {max} of memory, got {asked}");
    Err(Failure::new(Class::Usage, what))
}

fn cpus(asked: CpuTopology) -> Result<CpuTopology, Failure> {
    let count = asked.count();
    if count <= CPUS_MAX {
        return Ok(asked);
    }
    Err(Failure::new(Class::Usage, format!("expected 1 to {CPUS_MAX} processors, got {count}")))
}

/// What has a slash is a path, everything else the name of a volume: what a command does shall not
/// depend on which files happen to lie in the folder.
pub(crate) fn resolve(store: &Store, disk: &str) -> Result<PathBuf, Failure> {
    attach(store, disk, true).map(|(path, _)| path)
}

/// [`resolve`] for a disk that is written to, or not; and how it may be opened then.
pub(crate) fn attach(
    store: &Store,
    disk: &str,
    read_only: bool,
) -> Result<(PathBuf, Access), Failure> {
    if disk.contains('/') {
        host::check_name(disk.as_ref())?;
        return Ok((disk.into(), if read_only { Access::Read } else { Access::Write }));
    }
    let name = disk.parse::<VolumeName>().map_err(|error| no_volume(disk, error))?;
    store.attach(&name, read_only).map_err(|error| match std::path::Path::new(disk).exists() {
        true => no_volume(disk, error),
        false if error.kind() == ErrorKind::NotFound => {
            Failure::from(error).with_class(Class::Usage)
        }
        false => Failure::from(error),
    })
}

/// As [`resolve`], for a disk that is read as it stands: also how it is opened for that.
pub(crate) fn resolve_to_read(store: &Store, disk: &str) -> Result<(PathBuf, Access), Failure> {
    let path = resolve(store, disk)?;
    let access = match disk.parse() {
        Ok(name) if !disk.contains('/') => store.original(&name)?.0.reading(),
        _ => Access::Read,
    };
    Ok((path, access))
}

/// The user most likely means the file of that name.
fn no_volume(disk: &str, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(Class::Usage, error).with_hint(format!("a file is named with a slash: `./{disk}`"))
}

/// Refuses what QEMU would wait for silently, or open on a guest's word. QEMU's own locks keep out
/// other QEMUs; those that are returned keep out our own machine.
fn prepare_for_qemu(spec: &VmSpec) -> Result<Vec<AttachedDisk>, Failure> {
    check_networks_for_qemu(&spec.networks)?;
    if let Some(size) = spec.huge_pages {
        let checked = hardware::huge_pages(size).check(spec.memory.bytes());
        checked.map_err(super::machine::failure)?;
    }
    let mut locks = Vec::new();
    for (index, VmDisk { path, read_only, life, .. }) in spec.disks.iter().enumerate() {
        let path = match life {
            DiskLife::Kept | DiskLife::Shared => path,
            DiskLife::Overlay(below) => below,
            DiskLife::Empty => continue,
        };
        let disk = host::look_at(path)?;
        if index == 0 && spec.boot.kernel.is_none() {
            host::check_boot_sector(path, disk.as_ref())?;
        }
        let access = match life {
            DiskLife::Kept if !read_only => Access::Write,
            DiskLife::Shared if !read_only => Access::WriteShared,
            // The scratch has the lock of what is below.
            DiskLife::Overlay(_) => continue,
            _ => Access::Read,
        };
        locks.push(AttachedDisk::open_for(path, access)?);
    }
    Ok(locks)
}

fn engine(choice: Choice) -> Result<Box<dyn Engine>, Failure> {
    Ok(match choice {
        Choice::Kvm => Box::new(KvmEngine {
            program: settings::own_executable()?,
            open_medium: host::open_medium,
        }),
        Choice::Qemu { program, kvm } => {
            Box::new(QemuEngine { program, kvm, open_medium: host::open_medium })
        }
    })
}

/// Tells on standard error what the machine does, in the few words that fit between serial lines.
struct Console<'a> {
    name: &'a str,
    /// Given back before anything else is waited for.
    terminal: Option<RawTerminal>,
    reach: Reach,
    /// How the last run ended, until it is told.
    last: Option<String>,
    scratch: &'a Scratch,
}

impl Console<'_> {
    /// A terminal in raw mode wants the carriage return too.
    fn say(&self, what: &str) {
        let end = if self.terminal.is_some() { "\r\n" } else { "\n" };
        output::error(&format!("{}: {what}{end}", self.name));
    }
}

impl Observer for Console<'_> {
    /// The last end of all is the command's result, and told there if it is a failure.
    fn changed(&mut self, state: State) {
        self.reach.changed(state);
        match state {
            State::Running { .. } if self.terminal.is_some() => {
                self.say("running; Ctrl-] stops it");
            }
            State::Running { .. } => self.say("running"),
            State::Starting { .. } => {
                if let Some(end) = self.last.take() {
                    self.say(&format!("{end}; starting it again"));
                }
            }
            State::BackOff { failures, .. } => {
                let end = self.last.take().unwrap_or_default();
                self.say(&format!("{end} ({failures}× in a row); waiting to start it again"));
            }
            State::Done { end: GuestEnd::PowerOff | GuestEnd::Reset } => {
                let end = self.last.take().unwrap_or_default();
                self.say(&end);
            }
            _ => {}
        }
    }

    fn launched(&mut self, machine: &dyn Running) {
        self.reach.launched(machine);
    }

    fn starting(&mut self) -> Result<(), Error> {
        self.scratch.begin().map_err(|error| Error::Disks {
            class: error.class(),
            hint: error.hint(),
            source: Box::new(error),
        })
    }

    fn ended(&mut self, ended: &Ended) {
        self.reach.ended(ended);
        self.scratch.end();
        let said = ended.failure.as_ref().map(|failure| &failure.stderr).or(ended.note.as_ref());
        self.last = Some(match said {
            Some(said) => format!("{}: {}", ended.end, said.trim_end()),
            None => ended.end.to_string(),
        });
    }

    fn serial(&mut self) -> Result<Serial, Error> {
        self.reach.serial().map_err(|source| Error::System { what: "taking the terminal", source })
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
    let note = outcome.note.as_ref().map(|note| format!(": {}", note.trim_end()));
    let mut what = format!("{}: {}{}", spec.name, outcome.end, note.unwrap_or_default());
    if let (GuestEnd::EngineFailed, Some(failure)) = (outcome.end, &outcome.failure) {
        let said = failure.stderr.trim_end();
        what = match said.strip_prefix(output::ERROR) {
            // Our own machine's error, complete with causes and hint.
            Some(own) => own.to_owned(),
            None => format!("{what} ({})\n{said}", failure.status),
        };
    }
    Err(Failure::new(class, what))
}
