//! `bootyard machine`: the KVM machine in this process. `supervise`'s engine starts it as its child
//! and learns from the exit code how the guest ended.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bootyard_image::Disk;
use bootyard_image::raw::RawDisk;
use bootyard_spec::Class;
use bootyard_supervise::{DiskFormat, lifeline, machine_exit, parse_disk_argument};
use bootyard_vmm::{Boot, Control, DiskConfig, ErrorKind, Exit, Machine, MachineConfig, Reboot};
use bootyard_volume::AttachedDisk;

use crate::args::MachineArgs;
use crate::error::Failure;
use crate::{host, output};

pub(crate) fn run(args: &MachineArgs) -> Result<ExitCode, Failure> {
    let disks = args.disks.iter().enumerate().map(|(index, disk)| open(index, disk));
    let config = MachineConfig {
        name: args.name.clone(),
        cpus: args.cpus,
        memory: args.memory,
        boot: Boot::FromDisk(bootyard_bootload::Options {
            append: args.append.clone(),
            ..bootyard_bootload::Options::default()
        }),
        disks: disks.collect::<Result<_, _>>()?,
        serial_output: Box::new(stdout().map_err(|error| Failure::new(Class::Other, error))?),
        serial_input: Some(Box::new(io::stdin())),
        reboot: Reboot::Restart,
        report: Arc::new(|line| output::error(&format!("{line}\n"))),
    };
    if let Some(number) = args.lifeline {
        lifeline::watch(number, || exit(machine_exit::ORPHANED))
            .map_err(|error| Failure::new(Class::Other, error))?;
    }
    let run = Machine::new(config).and_then(|machine| machine.run(&Control::new()));
    Ok(ExitCode::from(code(&run.map_err(failure)?)))
}

/// Standard output without the buffer of [`io::Stdout`], which would not let a machine end whose
/// console nobody reads.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Opens one disk. The guest's writes go straight to a raw disk; a qcow2 is read only so far.
fn open(index: usize, argument: &str) -> Result<DiskConfig, Failure> {
    let (path, read_only) = parse_disk_argument(argument);
    let storage = AttachedDisk::open(&path, read_only)?;
    let disk: Arc<dyn Disk> = match host::format_by_name(&path) {
        DiskFormat::Raw if read_only => Arc::new(RawDisk::read_only(storage)),
        DiskFormat::Raw => Arc::new(RawDisk::new(storage)),
        DiskFormat::Qcow2 if read_only => {
            let opened = bootyard_image::open(storage);
            Arc::from(opened.map_err(|error| Failure::new(Class::Image, error))?)
        }
        DiskFormat::Qcow2 => return Err(no_writer(&path)),
    };
    Ok(DiskConfig {
        name: path.display().to_string(),
        disk,
        read_only,
        serial: format!("disk-{index}"),
    })
}

fn no_writer(path: &Path) -> Failure {
    let what = format!("the kvm engine cannot write to `{}`: it is a qcow2", path.display());
    Failure::new(Class::Usage, what).with_hint(format!(
        "import it into a volume, which is raw: `bootyard import {} --name NAME`; or use \
         `--engine qemu`",
        path.display()
    ))
}

fn failure(error: bootyard_vmm::Error) -> Failure {
    let class = match error.kind() {
        ErrorKind::KvmMissing | ErrorKind::KvmBroken | ErrorKind::Device => Class::Engine,
        ErrorKind::Config => Class::Usage,
        ErrorKind::Boot => Class::Boot,
    };
    let other = "use `--engine qemu`, which boots through firmware as a PC would".to_owned();
    let hint = error.hint().or_else(|| (class == Class::Boot).then_some(other));
    let failure = Failure::new(class, error);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}

fn code(exit: &Exit) -> u8 {
    match exit {
        Exit::PowerOff => machine_exit::POWER_OFF,
        Exit::Reset => machine_exit::RESET,
        Exit::Crash { why } => {
            output::error(&format!("{why}\n"));
            machine_exit::CRASH
        }
        Exit::Stopped => machine_exit::ORPHANED,
    }
}

/// Nobody is left who wants this machine, and its threads are inside the guest.
#[expect(clippy::exit, reason = "the supervisor is gone")]
fn exit(code: u8) {
    std::process::exit(code.into())
}
