//! A machine from its configuration to its end.
//!
//! A start builds everything anew: memory, processors, devices. A guest's restart is therefore
//! nothing but the next turn of a loop, and no state can leak from one life of the guest to the
//! next. Only disks, console and [`Control`] stay.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use bootyard_bootload::{BootPlan, Options};
use jiff::Timestamp;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::state::CpuState;
use crate::arch::x86_64::{firmware, layout};
use crate::bus::BusDevice;
use crate::config::{Boot, BootFile, DiskConfig, MachineConfig, Reboot, Report};
use crate::control::{Control, Running, start_typing};
use crate::disks::{CacheMode, DiskBus};
use crate::error::Error;
use crate::exit::{Exit, ExitLatch};
use crate::hv::{Buses, Crew, Kvm, Vcpu, VcpuThreads, Vm};
use crate::legacy::{KeyboardController, Output, PanicDevice, PowerPorts, Rtc, SerialPort};
use crate::loader::{Handover, InitState, Kernel, Put, Write};
use crate::memory::{self, program};
use crate::pci::{self, ConfigPorts, Ecam, PciRoot};
use crate::report::Failures;
use crate::sandbox::{self, Role};
use crate::state::By;
use crate::virtio::{Block, Entropy, Net, Scsi, VirtioDevice, VirtioPci};

/// A machine that can be run.
pub struct Machine {
    config: MachineConfig,
    kvm: Kvm,
    output: Output,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine as `config` describes it. Fails if the configuration is impossible.
    pub fn new(kvm: Kvm, mut config: MachineConfig) -> Result<Self, Error> {
        config.check()?;
        let output = std::mem::replace(&mut config.serial_output, Box::new(io::sink()));
        Ok(Self { config, kvm, output: Arc::new(Mutex::new(output)) })
    }

    /// Runs the guest to its end, through its restarts unless the configuration forbids them.
    ///
    /// Blocks. `control` reaches into the running machine from other threads.
    pub fn run(mut self, control: &Control) -> Result<Exit, Error> {
        if let Some(input) = self.config.serial_input.take() {
            start_typing(input, control)?;
        }
        loop {
            let ended = self.run_once(control);
            let restarts = self.restart_after(ended.as_ref(), control);
            control.detach(restarts);
            if restarts.is_none() {
                return ended;
            }
        }
    }

    /// Who wanted the restart that follows such an end, if one does. The reset button works however the
    /// guest may restart.
    fn restart_after(&self, ended: Result<&Exit, &Error>, control: &Control) -> Option<By> {
        if ended.ok() != Some(&Exit::Reset) {
            return None;
        }
        let by = control.take_reset();
        (by == By::User || self.config.reboot == Reboot::Restart).then_some(by)
    }

    /// From power-on to whatever ends it.
    fn run_once(&self, control: &Control) -> Result<Exit, Error> {
        let board = Board::build(&self.kvm, &self.config, &self.output, control)?;
        let exit = Arc::clone(&board.running.exit);
        let crew = Arc::clone(&board.running.crew);
        control.attach(board.running);
        program::release();
        let threads = VcpuThreads::start(&self.config.name, board.vcpus, &board.buses, &exit, crew);
        let ran = threads.map(|_running| exit.wait());
        board.buses.clear();
        ran?;
        exit.take().expect("it was waited for")
    }
}

/// A machine that is about to start.
struct Board {
    vcpus: Vec<Vcpu>,
    buses: Arc<Buses>,
    running: Running,
}

impl Board {
    fn build(
        kvm: &Kvm,
        config: &MachineConfig,
        output: &Output,
        control: &Control,
    ) -> Result<Self, Error> {
        let memory = memory::allocate(config.memory_size(), config.huge_pages)?;
        let (vm, vcpus) = boot(config, &memory, || {
            let vm = Arc::new(kvm.create_vm(memory.clone())?);
            let vcpus = kvm.create_vcpus(&vm, config.topology, config.cpu_model)?;
            Ok((vm, vcpus))
        })?;

        let exit = Arc::new(ExitLatch::default());
        let (line, button) = (interrupt_line()?, interrupt_line()?);
        vm.wire_interrupt(&line, layout::SERIAL_IRQ)?;
        vm.wire_interrupt(&button, layout::EVENT_IRQ)?;
        let serial = Arc::new(SerialPort::new(line, Arc::clone(output), exit.clone()));
        let crew = Arc::new(Crew::new(vcpus.len() as u32, Arc::clone(control.gate())));
        let buses = Arc::new(Buses::default());
        let legacy: [(_, Arc<dyn BusDevice>); 5] = [
            (layout::SERIAL_PORTS, serial.clone()),
            (layout::KEYBOARD_PORTS, Arc::new(KeyboardController::new(exit.clone()))),
            (layout::CMOS_PORTS, Arc::new(Rtc::new(Timestamp::now))),
            (layout::PANIC_PORT, Arc::new(PanicDevice::new(exit.clone()))),
            (layout::POWER_PORTS, Arc::new(PowerPorts::new(exit.clone()))),
        ];
        for (ports, device) in legacy {
            buses.ports.insert(ports, device).expect("the layout's ports are disjoint");
        }
        add_pci(config, &vm, &buses, control)?;
        Ok(Self { vcpus, buses, running: Running { exit, button, serial, crew } })
    }
}

/// Puts the PCI bus with its devices on the buses of the processors.
fn add_pci(
    config: &MachineConfig,
    vm: &Arc<Vm>,
    buses: &Buses,
    control: &Control,
) -> Result<(), Error> {
    let root = Arc::new(PciRoot::new(&buses.memory, layout::PCI_WINDOW));
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Device {
        device: "PCI devices",
        source,
    };
    let scsi = scsi_device(config, control)?;
    let services = config.services.devices(&config.report)?;
    let devices = network_devices(config, control).chain(virtio_devices(config, control));
    for (device, failures) in devices.chain(scsi).chain(services) {
        let (msi, doorbells) = (Arc::clone(vm), Arc::clone(vm));
        let on_fault = Box::new(move |fault| failures.add(&fault));
        let device = VirtioPci::new(device, vm.memory().clone(), msi, doorbells, on_fault);
        let device = device.map_err(|error| failed(error.into()))?;
        root.add(Arc::new(device)).map_err(|error| failed(error.into()))?;
    }
    let ports = Arc::new(ConfigPorts::new(Arc::clone(&root)));
    buses.ports.insert(pci::CONFIG_PORTS, ports).expect("the layout's ports are disjoint");
    let ecam = buses.memory.insert(layout::ECAM, Arc::new(Ecam::new(root)));
    ecam.expect("the layout's ranges are disjoint");
    Ok(())
}

/// A device of the bus, and where its failures go.
type Attached = (Box<dyn VirtioDevice>, Failures);

/// The network interfaces, and where their failures go. They have the first slots, so that what the guest
/// calls them does not change with the number of disks.
fn network_devices(config: &MachineConfig, control: &Control) -> impl Iterator<Item = Attached> {
    config.networks.iter().map(|network| -> Attached {
        let failures = Failures::new(&config.report, &format!("network `{}`", network.name));
        let failed = failures.clone();
        let net = Net::new(network.mac, Arc::clone(&network.backend))
            .captured_in(network.capture.clone())
            .counted_by(control.counters().network(&network.name))
            .on_error(move |error| failed.add(error));
        (Box::new(net), failures)
    })
}

/// The other devices in the order of their slots, and where their failures go.
fn virtio_devices(config: &MachineConfig, control: &Control) -> impl Iterator<Item = Attached> {
    let own = |disk: &&DiskConfig| disk.options.bus == DiskBus::Virtio;
    let disks = config.disks.iter().filter(own).map(move |disk| -> Attached {
        let failures = Failures::new(&config.report, &format!("disk `{}`", disk.name));
        let failed = failures.clone();
        let block = Block::new(Arc::clone(&disk.disk), disk.read_only, &disk.serial)
            .queues(config.topology.count().unwrap_or(1))
            .write_through(disk.options.cache == CacheMode::WriteThrough)
            .block_size(disk.options.block_size)
            .counters(control.counters().disk(&disk.name));
        (Box::new(block.on_error(move |error| failed.add(error))), failures)
    });
    let entropy = Failures::new(&config.report, "entropy device");
    disks.chain([(Box::new(Entropy::new()) as Box<dyn VirtioDevice>, entropy)])
}

/// The SCSI host device, if there is anything on its bus.
fn scsi_device(config: &MachineConfig, control: &Control) -> Result<Option<Attached>, Error> {
    let drives = control.make_drives(config)?;
    if drives.is_empty() {
        return Ok(None);
    }
    let failed = |error: io::Error| Error::Device { device: "SCSI bus", source: error.into() };
    let device = Box::new(Scsi::new(drives).map_err(failed)?);
    Ok(Some((device, Failures::new(&config.report, "SCSI bus"))))
}

/// Loads what the configuration boots, while `create` makes the machine around its memory, and readies the
/// processors for it.
fn boot(
    config: &MachineConfig,
    memory: &GuestMemoryMmap,
    create: impl FnOnce() -> Result<(Arc<Vm>, Vec<Vcpu>), Error>,
) -> Result<(Arc<Vm>, Vec<Vcpu>), Error> {
    let (source, disk, firmware) = (&config.boot, config.disks.first(), firmware(config));
    let report = &config.report;
    // A guest has written what is read here.
    let read = || load(source, disk, firmware, memory, report);
    let done = sandbox::confined_beside(Role::Reader, read, create);
    let (loaded, created) = done
        .map_err(|error| Error::Device { device: "boot loader's thread", source: error.into() })?;
    let ((vm, vcpus), cpu) = (created?, loaded?);
    for vcpu in &vcpus {
        vcpu.set_firmware_registers()?;
    }
    vcpus.first().expect("there is at least one processor").set_state(&cpu)?;
    Ok((vm, vcpus))
}

/// Puts kernel, initrd and what firmware leaves into memory. They are gone from ours then.
fn load(
    source: &Boot,
    disk: Option<&DiskConfig>,
    firmware: [Write<'static>; 3],
    memory: &GuestMemoryMmap,
    report: &Report,
) -> Result<CpuState, Error> {
    let size = memory.iter().map(GuestMemoryRegion::len).sum();
    let mut put = |address: u64, bytes: &[u8]| {
        let placed = memory.write_slice(bytes, GuestAddress(address));
        placed.expect("the loader checked every address against the memory");
    };
    match source {
        Boot::Kernel { kernel, initrd, cmdline } => {
            let initrd_len = initrd.as_ref().map_or(0, |initrd| initrd.bytes.len());
            let kernel = read(kernel, size)?;
            let given = Handover { initrd_len, cmdline };
            let (at, cpu) = place(&kernel, &given, size, firmware, &mut put)?;
            drop(kernel);
            initrd.as_ref().map_or(Ok(()), |initrd| copy(initrd, initrd_len, at, &mut put))?;
            Ok(cpu)
        }
        Boot::FromDisk(options) => {
            let options = Options { memory: Some(size), ..options.clone() };
            let disk = disk.expect("the configuration was checked");
            let BootPlan { kernel, initrd, cmdline, .. } = find_on_disk(disk, &options, report)?;
            let given = Handover { initrd_len: initrd.len() as u64, cmdline: &cmdline };
            let (at, cpu) = place(&kernel, &given, size, firmware, &mut put)?;
            put(at, &initrd);
            Ok(cpu)
        }
    }
}

/// Puts into a memory of `size` bytes what a guest begins with. Gives the place of its initrd, and what the
/// boot processor begins with.
fn place(
    kernel: &[u8],
    given: &Handover<'_>,
    size: u64,
    firmware: [Write<'static>; 3],
    put: &mut Put<'_>,
) -> Result<(u64, CpuState), Error> {
    let kernel = Kernel::place(kernel, size, put)?;
    let InitState { writes, initrd, cpu } = kernel.load(given, size, firmware)?;
    writes.iter().for_each(|write| put(write.address, &write.bytes));
    Ok((initrd, cpu))
}

/// All of a file that fits into `memory` bytes; of a larger one so much that it is found not to fit.
fn read(file: &BootFile, memory: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; file.bytes.len().min(memory) as usize];
    let read = file.bytes.read_exact_at(&mut bytes, 0);
    read.map_err(|source| Error::ReadBoot { file: file.name.clone(), source })?;
    Ok(bytes)
}

/// Puts the first `len` bytes of a file to `address`, a piece at a time.
fn copy(file: &BootFile, len: u64, address: u64, put: &mut Put<'_>) -> Result<(), Error> {
    const PIECE: u64 = 1 << 20;
    let mut piece = vec![0; PIECE.min(len) as usize];
    for at in (0..len).step_by(PIECE as usize) {
        let piece = &mut piece[..PIECE.min(len - at) as usize];
        let read = file.bytes.read_exact_at(piece, at);
        read.map_err(|source| Error::ReadBoot { file: file.name.clone(), source })?;
        put(address + at, piece);
    }
    Ok(())
}

fn find_on_disk(disk: &DiskConfig, options: &Options, report: &Report) -> Result<BootPlan, Error> {
    let plan = bootyard_bootload::find(&disk.disk, options)
        .map_err(|source| Error::FindBoot { disk: disk.name.clone(), source })?;
    if !plan.console_on_serial {
        let BootPlan { entry, .. } = &plan;
        report(&format!(
            "the boot entry `{entry}` does not speak on the serial port, for which its command \
             line needs `console=ttyS0`"
        ));
    }
    Ok(plan)
}

fn interrupt_line() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK)
        .map_err(|error| Error::Device { device: "interrupt lines", source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bootyard_image::{Disk, Extent};

    /// A disk of a host that cannot read it.
    struct Broken;

    impl Disk for Broken {
        fn virtual_size(&self) -> u64 {
            1 << 20
        }

        fn read_at(&self, _: &mut [u8], offset: u64) -> Result<(), bootyard_image::Error> {
            Err(bootyard_image::Error::read(io::Error::other("bad sector"), offset))
        }

        fn extent_at(&self, offset: u64) -> Result<Extent, bootyard_image::Error> {
            Ok(Extent { len: self.virtual_size() - offset, zero: false })
        }
    }

    /// A file that others made shorter.
    struct Shorter;

    impl bootyard_image::ReadAt for Shorter {
        fn len(&self) -> u64 {
            8
        }

        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    #[test]
    fn a_kernel_that_cannot_be_read_is_called_by_its_name() {
        let file = BootFile { name: "/boot/vmlinuz".to_owned(), bytes: Arc::new(Shorter) };
        let error = read(&file, 1 << 20).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/boot/vmlinuz`");
        let error = copy(&file, 8, 0, &mut |_, _| ()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/boot/vmlinuz`");
        let file = BootFile { bytes: Arc::new(vec![7_u8; 9]), ..file };
        assert_eq!(read(&file, 1 << 20).unwrap(), [7; 9]);
    }

    #[test]
    fn an_initrd_is_copied_a_piece_at_a_time() {
        for len in [0, 1, 1 << 20, (2 << 20) + 5] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let file = BootFile { name: "initrd".to_owned(), bytes: Arc::new(bytes.clone()) };
            let mut copied = Vec::new();
            copy(&file, len as u64, 0x5000, &mut |address, piece| {
                assert_eq!(address, 0x5000 + copied.len() as u64);
                copied.extend_from_slice(piece);
            })
            .unwrap();
            assert_eq!(copied, bytes, "{len}");
        }
    }

    #[test]
    fn a_disk_that_does_not_boot_is_called_by_its_name() {
        let disk = DiskConfig {
            name: "/vm/root.raw".to_owned(),
            disk: Arc::new(Broken),
            read_only: true,
            serial: "disk-0".to_owned(),
            options: crate::disks::DiskOptions::default(),
        };
        let error = {
            let report: Report = Arc::new(|_| {});
            find_on_disk(&disk, &Options::default(), &report).unwrap_err()
        };
        assert_eq!(error.to_string(), "cannot boot from disk `/vm/root.raw`");
    }
}
