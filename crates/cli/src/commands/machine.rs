//! `bootyard machine`: the KVM machine in this process. `supervise`'s engine starts it as its child
//! and learns from the exit code how the guest ended.

mod link;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use bootyard_image::raw::RawDisk;
use bootyard_image::{Disk, qcow2};
use bootyard_spec::{Class, DiskAttachment, DiskCache, DiskDevice};
use bootyard_supervise::{
    DiskFormat, DiskUsage, lifeline, machine_exit, parse_backing_argument, parse_disk_argument,
};
use bootyard_vmm::{
    CacheMode, CdromConfig, DiskBus, DiskConfig, DiskOptions, ErrorKind, Exit, Machine,
    MachineConfig, Reboot,
};
use bootyard_volume::AttachedDisk;

use self::link::Linked;
use crate::args::MachineArgs;
use crate::error::Failure;
use crate::{boot, hardware, host, network, output};

pub(crate) fn run(args: &MachineArgs) -> Result<ExitCode, Failure> {
    let mut backings = backings(&args.backings)?;
    let mut attachments = attachments(&args.attachments)?;
    let (mut disks, mut cdroms) = (Vec::new(), Vec::new());
    for (index, disk) in args.disks.iter().enumerate() {
        let attachment = attachments.remove(&index).unwrap_or_default();
        let disk = open(index, disk, backings.remove(&index), &attachment)?;
        match attachment.device {
            DiskDevice::Disk => disks.push(disk),
            DiskDevice::Cdrom => cdroms.push(CdromConfig {
                name: disk.name,
                medium: Some(disk.disk),
                serial: disk.serial,
            }),
        }
    }
    let written: Vec<Arc<dyn Disk>> = disks.iter().map(|disk| disk.disk.clone()).collect();
    let linked = Linked::new(args.link.as_deref())?;
    if args.paused {
        linked.control.pause();
    }
    let tell = linked.device_failures();
    let config = MachineConfig {
        name: args.name.clone(),
        topology: hardware::topology(args.hardware.cpus),
        cpu_model: hardware::model(args.hardware.cpu_model),
        memory: args.hardware.memory.bytes(),
        huge_pages: args.hardware.hugepages.map(hardware::huge_pages),
        identity: hardware::identity(&args.hardware.firmware(&args.name)),
        boot: boot::boot(&args.boot.spec())?,
        disks,
        cdroms,
        networks: network::interfaces(&args.name, &args.networks)?,
        serial_output: Box::new(stdout().map_err(|error| Failure::new(Class::Other, error))?),
        serial_input: Some(Box::new(io::stdin())),
        reboot: match args.reboot.as_deref() {
            Some("terminate") => Reboot::Terminate,
            _ => Reboot::Restart,
        },
        report: Arc::new(move |line| {
            output::error(&format!("{line}\n"));
            tell(line);
        }),
    };
    if let Some(number) = args.lifeline {
        lifeline::watch(number, || exit(machine_exit::ORPHANED))
            .map_err(|error| Failure::new(Class::Other, error))?;
    }
    let run = Machine::new(config).and_then(|machine| machine.run(&linked.control));
    let run = run.inspect_err(|error| linked.failed(error));
    // A guest that ended without a flush has lost nothing but by a power cut, and this is none,
    // however the machine ended. One disk that fails is no reason to lose what is on the others.
    let writers = written.iter().filter_map(|disk| disk.writer());
    let flushed = writers.map(|writer| writer.flush()).fold(Ok(()), Result::and);
    let exit = run.map_err(failure)?;
    flushed.map_err(|error| Failure::new(Class::Other, error))?;
    Ok(ExitCode::from(code(&exit)))
}

/// Standard output without the buffer of [`io::Stdout`], which would not let a machine end whose
/// console nobody reads.
fn stdout() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Opens what overlays lie over, by the number of the overlay. The process that started this one, and
/// whose end is its end, has it locked.
fn backings(arguments: &[String]) -> Result<BTreeMap<usize, Box<dyn Disk>>, Failure> {
    let opened = arguments.iter().map(|argument| {
        let parsed = parse_backing_argument(argument);
        let what = || format!("expected INDEX:PATH, got `{argument}`");
        let (index, path) = parsed.ok_or_else(|| Failure::new(Class::Usage, what()))?;
        Ok((index, host::look_at(&path)?))
    });
    opened.collect()
}

/// How disks are attached, by their numbers.
fn attachments(arguments: &[String]) -> Result<BTreeMap<usize, DiskAttachment>, Failure> {
    let parse = |argument: &String| {
        let (index, options) = argument.split_once(':')?;
        Some((index.parse().ok()?, options.parse().ok()?))
    };
    let parse = |argument| {
        let what = || format!("expected INDEX:OPTIONS, got `{argument}`");
        parse(argument).ok_or_else(|| Failure::new(Class::Usage, what()))
    };
    arguments.iter().map(parse).collect()
}

fn options(attachment: &DiskAttachment) -> DiskOptions {
    DiskOptions {
        bus: match attachment.bus {
            bootyard_spec::DiskBus::Virtio => DiskBus::Virtio,
            bootyard_spec::DiskBus::Scsi => DiskBus::Scsi,
        },
        cache: match attachment.cache {
            DiskCache::WriteBack => CacheMode::WriteBack,
            DiskCache::WriteThrough => CacheMode::WriteThrough,
        },
        ..DiskOptions::default()
    }
}

/// Opens one disk, over another one if it is an overlay. The guest's writes go straight to it.
fn open(
    index: usize,
    argument: &str,
    backing: Option<Box<dyn Disk>>,
    attachment: &DiskAttachment,
) -> Result<DiskConfig, Failure> {
    let (path, usage) = parse_disk_argument(argument);
    let read_only = usage == DiskUsage::Read;
    let storage = AttachedDisk::open_for(&path, host::access(usage))?;
    let disk: Arc<dyn Disk> = match host::format_by_name(&path) {
        DiskFormat::Raw if read_only => Arc::new(RawDisk::read_only(storage)),
        DiskFormat::Raw => Arc::new(RawDisk::new(storage)),
        DiskFormat::Qcow2 if read_only => {
            let opened = bootyard_image::open(storage);
            Arc::from(opened.map_err(|error| host::unusable(&path, &error))?)
        }
        DiskFormat::Qcow2 => {
            let opened = qcow2::edit(storage, backing);
            Arc::new(opened.map_err(|error| host::unusable(&path, &error))?)
        }
    };
    Ok(DiskConfig {
        name: path.display().to_string(),
        disk,
        read_only,
        serial: match &attachment.serial {
            Some(serial) => serial.as_str().to_owned(),
            None => format!("disk-{index}"),
        },
        options: options(attachment),
    })
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

#[cfg(test)]
mod tests {
    use bootyard_image::qcow2::{Create, create};
    use bootyard_image::raw::FileAt;

    use super::*;

    #[test]
    fn a_qcow2_is_written_to_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let file = fs_err::File::create_new(&path).unwrap();
        create(&FileAt::new(file.into()).unwrap(), &Create::new(1 << 20)).unwrap();
        for value in 1..3 {
            let config = open(0, path.to_str().unwrap(), None, &DiskAttachment::default()).unwrap();
            let writer = config.disk.writer().unwrap();
            let mut sector = [0; 512];
            config.disk.read_at(&mut sector, 512).unwrap();
            assert_eq!(sector, [value - 1; 512]);
            writer.write_at(&[value; 512], 512).unwrap();
            writer.flush().unwrap();
        }
    }

    #[test]
    fn an_overlay_is_written_and_what_is_below_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let home = bootyard_volume::RunFolder::create(folder.path()).unwrap();
        let base = folder.path().join("base:1.raw");
        fs_err::write(&base, vec![5; 1 << 20]).unwrap();
        let overlay = home.disk(1);
        home.make(&overlay, 2 << 20, Some(qcow2::BackingFormat::Raw)).unwrap();
        let mut below = backings(&[format!("1:{}", base.display())]).unwrap();
        let config =
            open(1, overlay.to_str().unwrap(), below.remove(&1), &DiskAttachment::default())
                .unwrap();
        let writer = config.disk.writer().unwrap();
        writer.write_at(&[6; 512], 512).unwrap();
        writer.flush().unwrap();
        let mut found = [0; 1536];
        config.disk.read_at(&mut found, 0).unwrap();
        assert_eq!((found[511], found[512], found[1023], found[1024]), (5, 6, 6, 5));
        assert_eq!(config.disk.virtual_size(), 2 << 20);
        assert!(fs_err::read(&base).unwrap() == vec![5; 1 << 20]);
        assert!(open(1, overlay.to_str().unwrap(), None, &DiskAttachment::default()).is_err());
    }
}
