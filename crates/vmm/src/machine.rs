//! A machine from its configuration to its end.
//!
//! A start builds everything anew: memory, processors, devices. A guest's restart is therefore
//! nothing but the next turn of a loop, and no state can leak from one life of the guest to the
//! next. Only disks, console and [`Control`] stay.

use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bootyard_bootload::{BootPlan, Options};
use jiff::Timestamp;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::layout;
use crate::bus::BusDevice;
use crate::config::{Boot, MachineConfig, Reboot};
use crate::error::Error;
use crate::exit::{Exit, ExitLatch};
use crate::hv::{Buses, Kvm, Vcpu, VcpuThreads, Vm};
use crate::legacy::{KeyboardController, Output, PanicDevice, PowerPorts, Rtc, SerialPort};
use crate::loader::{BootFiles, InitState, Kernel};
use crate::pci::{self, ConfigPorts, Ecam, PciRoot};
use crate::report::Failures;
use crate::virtio::{Block, Entropy, VirtioDevice, VirtioPci};

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
    /// A machine as `config` describes it. Fails if the configuration is impossible or this host
    /// has no KVM.
    pub fn new(mut config: MachineConfig) -> Result<Self, Error> {
        config.check()?;
        let kvm = Kvm::open()?;
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
            let exit = self.run_once(control)?;
            if exit != Exit::Reset || self.config.reboot == Reboot::Terminate {
                return Ok(exit);
            }
        }
    }

    /// From power-on to whatever ends it.
    fn run_once(&self, control: &Control) -> Result<Exit, Error> {
        let board = Board::build(&self.kvm, &self.config, &self.output)?;
        let exit = Arc::clone(&board.running.exit);
        control.attach(board.running);
        let threads = VcpuThreads::start(&self.config.name, board.vcpus, &board.buses, &exit);
        let ran = threads.map(|_running| exit.wait());
        control.detach();
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

/// What [`Control`] reaches of a started machine.
#[derive(Debug)]
struct Running {
    exit: Arc<ExitLatch>,
    button: EventFd,
    serial: Arc<SerialPort>,
}

impl Board {
    fn build(kvm: &Kvm, config: &MachineConfig, output: &Output) -> Result<Self, Error> {
        let memory = guest_memory(config.memory_size())?;
        let vm = Arc::new(kvm.create_vm(memory.clone())?);
        let vcpus = kvm.create_vcpus(&vm, config.cpus)?;
        boot(config, &memory, &vcpus)?;

        let exit = Arc::new(ExitLatch::default());
        let (line, button) = (interrupt_line()?, interrupt_line()?);
        vm.wire_interrupt(&line, layout::SERIAL_IRQ)?;
        vm.wire_interrupt(&button, layout::EVENT_IRQ)?;
        let serial = Arc::new(SerialPort::new(line, Arc::clone(output), exit.clone()));
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
        add_pci(config, &vm, &buses)?;
        Ok(Self { vcpus, buses, running: Running { exit, button, serial } })
    }
}

/// Puts the PCI bus with its devices on the buses of the processors.
fn add_pci(config: &MachineConfig, vm: &Arc<Vm>, buses: &Buses) -> Result<(), Error> {
    let root = Arc::new(PciRoot::new(&buses.memory, layout::PCI_WINDOW));
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Device {
        device: "PCI devices",
        source,
    };
    for (device, failures) in virtio_devices(config) {
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

/// The devices in the order of their slots, and where their failures go.
fn virtio_devices(
    config: &MachineConfig,
) -> impl Iterator<Item = (Box<dyn VirtioDevice>, Failures)> {
    let disks = config.disks.iter().map(|disk| -> (Box<dyn VirtioDevice>, _) {
        let failures = Failures::new(&config.report, &format!("disk `{}`", disk.name));
        let failed = failures.clone();
        let block = Block::new(Arc::clone(&disk.disk), disk.read_only, &disk.serial);
        (Box::new(block.on_error(move |error| failed.add(error))), failures)
    });
    let entropy = Failures::new(&config.report, "entropy device");
    disks.chain([(Box::new(Entropy::new()) as Box<dyn VirtioDevice>, entropy)])
}

fn guest_memory(size: u64) -> Result<GuestMemoryMmap, Error> {
    let ranges: Vec<(GuestAddress, usize)> = layout::ram(size)
        .into_iter()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
        .collect();
    let failed = |error| Error::Memory { bytes: size, source: io::Error::other(error) };
    let _gap = align_next_mapping();
    GuestMemoryMmap::from_ranges(&ranges).map_err(failed)
}

/// Fills the gap down to the next multiple of a large page, so that the mapping that follows below
/// it begins at one. KVM can use large pages only then, and Linux aligns large mappings by itself
/// from 6.7 on. Where the mapping lands elsewhere, the guest is slower and nothing else.
fn align_next_mapping() -> Option<MmapRegion> {
    const PAGE: usize = 0x1000;
    const LARGE_PAGE: usize = 2 << 20;
    let probe = MmapRegion::<()>::new(PAGE).ok()?;
    let gap = (probe.as_ptr() as usize + PAGE) % LARGE_PAGE;
    drop(probe);
    if gap == 0 { None } else { MmapRegion::new(gap).ok() }
}

/// Loads what the configuration boots and readies the processors for it.
fn boot(config: &MachineConfig, memory: &GuestMemoryMmap, vcpus: &[Vcpu]) -> Result<(), Error> {
    let plan;
    let files = match &config.boot {
        Boot::Kernel { kernel, initrd, cmdline } => BootFiles { kernel, initrd, cmdline },
        Boot::FromDisk(options) => {
            plan = find_on_disk(config, options)?;
            BootFiles { kernel: &plan.kernel, initrd: &plan.initrd, cmdline: &plan.cmdline }
        }
    };
    let kernel = Kernel::parse(files.kernel, config.memory_size())?;
    let InitState { writes, cpu } = kernel.load(&files, config.memory_size(), config.cpus)?;
    for write in writes {
        let placed = memory.write_slice(&write.bytes, GuestAddress(write.address));
        placed.expect("the loader checked every address against the memory");
    }
    for vcpu in vcpus {
        vcpu.set_firmware_registers()?;
    }
    vcpus.first().expect("there is at least one processor").set_state(&cpu)
}

fn find_on_disk(config: &MachineConfig, options: &Options) -> Result<BootPlan, Error> {
    let disk = config.disks.first().expect("the configuration was checked");
    let options = Options { memory: Some(config.memory_size()), ..options.clone() };
    bootyard_bootload::find(&disk.disk, &options)
        .map_err(|source| Error::FindBoot { disk: disk.name.clone(), source })
}

fn interrupt_line() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK)
        .map_err(|error| Error::Device { device: "interrupt lines", source: error.into() })
}

/// Reaches into a running machine from other threads. Clones reach the same machine.
#[derive(Debug, Clone, Default)]
pub struct Control {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    running: Mutex<Option<Running>>,
}

impl Control {
    /// A control that no machine runs under yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the machine at once, as if its plug were pulled. Also one that has not begun.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.with_running(|running| running.exit.post(Ok(Exit::Stopped)));
    }

    /// Presses the power button, which asks the guest to shut down. Tells whether there is a
    /// machine to hear it.
    pub fn press_power_button(&self) -> bool {
        self.with_running(|running| running.button.write(1).is_ok()).unwrap_or(false)
    }

    fn attach(&self, running: Running) {
        let exit = Arc::clone(&running.exit);
        *self.lock() = Some(running);
        if self.shared.stopped.load(Ordering::SeqCst) {
            exit.post(Ok(Exit::Stopped));
        }
    }

    fn detach(&self) {
        *self.lock() = None;
    }

    fn with_running<T>(&self, act: impl FnOnce(&Running) -> T) -> Option<T> {
        self.lock().as_ref().map(act)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are taken from the console's input at once.
const INPUT_CHUNK: usize = 256;

/// Starts the thread that types `input` into whichever guest runs under `control`. It ends with
/// its input, or at the first input after the last machine has gone.
fn start_typing(mut input: Box<dyn Read + Send>, control: &Control) -> Result<(), Error> {
    let shared: Weak<Shared> = Arc::downgrade(&control.shared);
    let body = move || {
        let mut buffer = [0; INPUT_CHUNK];
        loop {
            let len = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let Some(shared) = shared.upgrade() else { return };
            let serial = Control { shared }.with_running(|running| Arc::clone(&running.serial));
            // Between two lives of a guest nobody reads.
            if let Some(serial) = serial {
                serial.feed(&buffer[..len]);
            }
        }
    };
    match std::thread::Builder::new().name("console-input".to_owned()).spawn(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Device { device: "console input", source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use bootyard_image::{Disk, Extent};
    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::config::DiskConfig;

    #[test]
    fn guest_memory_begins_at_large_pages() {
        for size in [64 << 20, 128 << 20, 4 << 30] {
            let memory = guest_memory(size).unwrap();
            for range in layout::ram(size) {
                let host = memory.get_host_address(GuestAddress(range.start)).unwrap();
                assert_eq!(host as usize % (2 << 20), 0, "{range:x?} of {size:#x}");
            }
        }
    }

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

    #[test]
    fn a_disk_that_does_not_boot_is_called_by_its_name() {
        let disk = DiskConfig {
            name: "/vm/root.raw".to_owned(),
            disk: Arc::new(Broken),
            read_only: true,
            serial: "disk-0".to_owned(),
        };
        let config = MachineConfig {
            name: "vm".to_owned(),
            cpus: std::num::NonZeroU32::MIN,
            memory: 64 << 20,
            boot: Boot::FromDisk(Options::default()),
            disks: vec![disk],
            serial_output: Box::new(io::sink()),
            serial_input: None,
            reboot: Reboot::Restart,
            report: Arc::new(|_| {}),
        };
        let error = find_on_disk(&config, &Options::default()).unwrap_err();
        assert_eq!(error.to_string(), "cannot boot from disk `/vm/root.raw`");
    }

    #[test]
    fn a_control_that_was_stopped_early_stops_the_machine_that_comes() {
        let control = Control::new();
        assert!(!control.press_power_button());
        control.stop();
        let exit = Arc::new(ExitLatch::default());
        let (line, button) = (interrupt_line().unwrap(), interrupt_line().unwrap());
        let output: Output = Arc::new(Mutex::new(Box::new(io::sink())));
        let serial = Arc::new(SerialPort::new(line, output, exit.clone()));
        control.attach(Running { exit: exit.clone(), button, serial });
        assert!(control.press_power_button());
        assert_eq!(exit.take().transpose().unwrap(), Some(Exit::Stopped));
    }
}
