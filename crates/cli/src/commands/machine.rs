//! `bootyard machine`: the KVM machine in this process. `supervise`'s engine starts it as its child
//! and learns from the exit code how the guest ended.

mod drives;
mod link;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use bootyard_image::Disk;
use bootyard_spec::{Binding, Class, VmNetwork};
use bootyard_supervise::{lifeline, machine_exit};
use bootyard_vmm::sandbox::{self, Role};
use bootyard_vmm::{ErrorKind, Exit, Kvm, Machine, MachineConfig, Reboot, Services};

use self::link::Linked;
use crate::args::MachineArgs;
use crate::error::Failure;
use crate::services::Served;
use crate::{boot, hardware, network, output};

pub(crate) fn run(args: &MachineArgs) -> Result<ExitCode, Failure> {
    network::allow_descriptors();
    // Everything that the machine needs is opened before it gives up the right to.
    let kvm = Kvm::open().map_err(failure)?;
    let drives = drives::open(args)?;
    let lifeline = args.lifeline.map(lifeline::take).transpose().map_err(other)?;
    let link = args.link.map(bootyard_vmm::inherited).transpose().map_err(other)?;
    let linked = Linked::new();
    if args.paused {
        linked.control.pause();
    }
    let (served, services) = Served::new(&args.services.services(), args.hardware.memory)?;
    let mut config = config(args, &linked, services)?;
    if !args.hardware.no_sandbox {
        enter_sandbox(args)?;
    }
    if let Some(pipe) = lifeline {
        lifeline::watch(pipe, || exit(machine_exit::ORPHANED)).map_err(other)?;
    }
    if let Some(socket) = link {
        linked.serve(socket.into(), args, served.balloon.clone())?;
    }
    // A guest has written what is read from here on.
    if !drives.is_empty() {
        let read = sandbox::confined(Role::Disk, || drives::read(drives));
        (config.disks, config.cdroms) = read.map_err(other)??;
    }
    let written: Vec<Arc<dyn Disk>> =
        config.disks.iter().map(|disk| Arc::clone(&disk.disk)).collect();
    let machine = Machine::new(kvm, config);
    let run = machine.and_then(|machine| machine.run(&linked.control));
    let run = run.inspect_err(|error| linked.failed(error));
    // A guest that ended without a flush has lost nothing but by a power cut, and this is none,
    // however the machine ended. One disk that fails is no reason to lose what is on the others.
    let writers = written.iter().filter_map(|disk| disk.writer());
    let flushed = writers.map(|writer| writer.flush()).fold(Ok(()), Result::and);
    let exit = run.map_err(failure)?;
    flushed.map_err(|error| Failure::new(Class::Other, error))?;
    Ok(ExitCode::from(code(&exit)))
}

fn other(error: io::Error) -> Failure {
    Failure::new(Class::Other, error)
}

/// The machine, its drives aside.
fn config(
    args: &MachineArgs,
    linked: &Linked,
    services: Services,
) -> Result<MachineConfig, Failure> {
    let tell = linked.device_failures();
    Ok(MachineConfig {
        name: args.name.clone(),
        topology: hardware::topology(args.hardware.cpus),
        cpu_model: hardware::model(args.hardware.cpu_model),
        memory: args.hardware.memory.bytes(),
        huge_pages: args.hardware.hugepages.map(hardware::huge_pages),
        identity: hardware::identity(&args.hardware.firmware(&args.name)),
        boot: boot::boot(&args.boot.spec())?,
        disks: Vec::new(),
        cdroms: Vec::new(),
        networks: network::interfaces(&args.name, &args.networks)?,
        services,
        serial_output: Box::new(stdout().map_err(other)?),
        serial_input: Some(Box::new(io::stdin())),
        reboot: match args.reboot.as_deref() {
            Some("terminate") => Reboot::Terminate,
            _ => Reboot::Restart,
        },
        report: Arc::new(move |line| {
            output::error(&format!("{line}\n"));
            tell(line);
        }),
    })
}

/// Standard output without the buffer of [`io::Stdout`], which would not let a machine end whose
/// console nobody reads.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Gives up what the machine does not need from here on.
fn enter_sandbox(args: &MachineArgs) -> Result<(), Failure> {
    let is_ours = |network: &VmNetwork| matches!(network.binding, Binding::Masquerade(_));
    let options = sandbox::Options {
        tcp: args.networks.iter().any(is_ours),
        exit_code: machine_exit::CONFINED,
        ..sandbox::Options::default()
    };
    for missing in sandbox::enter(&options).map_err(failure)? {
        output::error(&format!("warning: {missing}\n"));
    }
    Ok(())
}

pub(super) fn failure(error: bootyard_vmm::Error) -> Failure {
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
