//! The host bridge and what hangs below it: gives every function its number and its addresses,
//! takes the guest's configuration accesses, and keeps the memory bus in step with them.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::{ConfigSpace, Identity, PciDevice};
use crate::bus::{Bus, BusDevice};

/// The I/O ports of [`ConfigPorts`]: address register and data window (PCI 3.0 §3.2.2.3.2).
pub const CONFIG_PORTS: Range<u64> = 0xcf8..0xd00;

/// Bytes of memory-mapped configuration space: 4 KiB for each of 256 functions of one bus (PCI
/// Express 3.0 §7.2.2).
pub const ECAM_SIZE: u64 = 1 << 20;

/// Devices on the one bus, the host bridge among them.
const DEVICES_MAX: usize = 32;

/// The bridge that Cloud Hypervisor presents. Firmware for virtual machines looks the machine's
/// kind up by it and finds one without legacy chips, which is what this is; Linux only needs the
/// class.
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x8086, device: 0x0d57, class: 0x06_00_00, revision: 0, subsystem: (0, 0) };

/// Where a function is: bus 0, function 0 of `device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    device: u8,
}

impl PciAddress {
    /// The device number, 1 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.device)
    }
}

/// Why a device cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// All device numbers are taken.
    #[error("the PCI bus is full: it has room for {} devices", DEVICES_MAX - 1)]
    BusFull,
    /// The device's registers don't fit what is left of the memory window.
    #[error("no {size:#x} bytes are left in the PCI memory window")]
    WindowFull {
        /// The size of the region that was to be placed.
        size: u64,
    },
}

/// The root of the PCI bus.
pub struct PciRoot {
    /// Weak, because the bus holds the root through [`Ecam`].
    mmio: Weak<Bus>,
    /// What the bridge forwards. A BAR that the guest puts elsewhere is not decoded, so it can
    /// never cover RAM or another chip.
    window: Range<u64>,
    functions: Mutex<Vec<Function>>,
}

struct Function {
    config: ConfigSpace,
    /// What [`PciRoot::reset`] goes back to: the power-on state with the addresses assigned.
    initial: ConfigSpace,
    /// None for the host bridge.
    device: Option<Arc<dyn PciDevice>>,
    /// Where each BAR is on the bus now.
    mapped: [Option<u64>; super::BAR_COUNT],
}

/// The bus's way to one region of a device.
struct Region {
    device: Arc<dyn PciDevice>,
    bar: usize,
}

impl PciRoot {
    /// A bus with only the host bridge on it, which forwards `window` of the memory bus `mmio`.
    pub fn new(mmio: &Arc<Bus>, window: Range<u64>) -> Self {
        let config = ConfigSpace::new(HOST_BRIDGE);
        let bridge =
            Function { initial: config.clone(), config, device: None, mapped: Default::default() };
        Self { mmio: Arc::downgrade(mmio), window, functions: Mutex::new(vec![bridge]) }
    }

    /// Puts `device` on the bus: assigns the next device number and addresses for its BARs, and
    /// makes it answer there, as firmware would. Call it before the guest runs.
    pub fn add(&self, device: Arc<dyn PciDevice>) -> Result<PciAddress, Error> {
        let mut functions = self.functions();
        if functions.len() == DEVICES_MAX {
            return Err(Error::BusFull);
        }
        let number = u8::try_from(functions.len()).expect("less than DEVICES_MAX");
        let mut config = device.config();
        let mut free = functions.iter().filter_map(Function::assigned_end).max();
        for (bar, size) in config.bars() {
            let address = self.place(free, size).ok_or(Error::WindowFull { size })?;
            config.set_bar_address(bar, address);
            free = Some(address + size);
        }
        config.enable_memory();
        functions.push(Function {
            initial: config.clone(),
            config,
            device: Some(device),
            mapped: Default::default(),
        });
        self.remap(&mut functions);
        Ok(PciAddress { device: number })
    }

    /// The first aligned place for `size` bytes in the window from `free` on.
    fn place(&self, free: Option<u64>, size: u64) -> Option<u64> {
        // Page alignment keeps two devices from sharing a page, whatever their sizes.
        let align = size.max(0x1000);
        let address = free.unwrap_or(self.window.start).checked_next_multiple_of(align)?;
        (address.checked_add(size)? <= self.window.end).then_some(address)
    }

    /// Puts every device back into its state after [`PciRoot::add`]: the machine's reset line.
    pub fn reset(&self) {
        let mut functions = self.functions();
        for function in functions.iter_mut() {
            if let Some(device) = &function.device {
                device.reset();
            }
            function.config = function.initial.clone();
        }
        self.remap(&mut functions);
    }

    /// Reads `data` from the configuration space of `device`. All ones where there is none.
    fn config_read(&self, device: usize, offset: usize, data: &mut [u8]) {
        match self.functions().get_mut(device) {
            Some(function) => {
                if let Some(device) = &function.device {
                    device.config_before_read(&mut function.config, offset, data.len());
                }
                function.config.read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes `data` to the configuration space of `device`.
    fn config_write(&self, device: usize, offset: usize, data: &[u8]) {
        let mut functions = self.functions();
        if let Some(function) = functions.get_mut(device) {
            function.config.write(offset, data);
            if let Some(device) = &function.device {
                device.config_after_write(&function.config, offset, data.len());
            }
            self.remap(&mut functions);
        }
    }

    /// Brings the memory bus in line with the BARs and the command registers. All that moves gives
    /// up its old place before anything takes a new one; where the guest puts two regions in one
    /// place, the one that came first keeps it.
    fn remap(&self, functions: &mut [Function]) {
        let Some(mmio) = self.mmio.upgrade() else { return };
        for function in functions.iter_mut() {
            function.unmap_moved(&mmio, &self.window);
        }
        for function in functions {
            function.map_unmapped(&mmio, &self.window);
        }
    }

    fn functions(&self) -> MutexGuard<'_, Vec<Function>> {
        self.functions.lock().expect("no holder of this lock panics")
    }
}

impl Function {
    fn unmap_moved(&mut self, mmio: &Bus, window: &Range<u64>) {
        let Some(device) = &self.device else { return };
        for (bar, size) in self.config.bars() {
            if self.mapped[bar] != self.wanted(bar, size, window)
                && let Some(place) = self.mapped[bar].take()
            {
                device.bar_mapped(bar, None);
                mmio.remove(place);
            }
        }
    }

    fn map_unmapped(&mut self, mmio: &Bus, window: &Range<u64>) {
        let Some(device) = &self.device else { return };
        for (bar, size) in self.config.bars() {
            let region = || Arc::new(Region { device: Arc::clone(device), bar });
            if self.mapped[bar].is_none()
                && let Some(place) = self.wanted(bar, size, window)
                && mmio.insert(place..place + size, region()).is_ok()
            {
                self.mapped[bar] = Some(place);
                device.bar_mapped(bar, Some(place));
            }
        }
    }

    /// Where the guest wants `bar`, if that is a place that the bridge forwards.
    fn wanted(&self, bar: usize, size: u64, window: &Range<u64>) -> Option<u64> {
        let start = self.config.bar_address(bar);
        let inside = start >= window.start && start.checked_add(size)? <= window.end;
        (inside && self.config.decodes_memory()).then_some(start)
    }

    /// The end of the highest region that was assigned at start.
    fn assigned_end(&self) -> Option<u64> {
        self.initial.bars().map(|(bar, size)| self.initial.bar_address(bar) + size).max()
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self.functions();
        f.debug_list().entries(functions.iter().map(|function| &function.config)).finish()
    }
}

impl BusDevice for Region {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.bar_read(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.bar_write(self.bar, offset, data);
    }
}

/// Configuration access through I/O ports, at [`CONFIG_PORTS`]. The reset control register that
/// PC chipsets hide at port 0xcf9 is not there; a machine resets through ACPI.
#[derive(Debug)]
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: Mutex<u32>,
}

/// Address register: an access to the data window is a configuration access.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Offset of the data window in the ports.
const DATA: u64 = 4;

impl ConfigPorts {
    /// The ports of `root`.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root, address: Mutex::new(0) }
    }

    /// Device number and offset that an access at `port` of the data window means.
    fn target(&self, port: u64) -> Option<(usize, usize)> {
        let address = *self.address.lock().expect("no holder of this lock panics");
        let (device, register) = (address >> 11 & 0x1f, address & 0xfc);
        let elsewhere = address & 0x00ff_0700 != 0 || address & ADDRESS_ENABLE == 0;
        let target = (device as usize, register as usize + usize::try_from(port - DATA).ok()?);
        (!elsewhere).then_some(target)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= DATA {
            match self.target(offset) {
                Some((device, register)) => self.root.config_read(device, register, data),
                None => data.fill(0xff),
            }
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.address.lock().expect("no holder of this lock panics").to_le_bytes();
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= DATA {
            if let Some((device, register)) = self.target(offset) {
                self.root.config_write(device, register, data);
            }
        } else if let (0, Ok(data)) = (offset, data.try_into()) {
            let address = u32::from_le_bytes(data) & (ADDRESS_ENABLE | 0x00ff_fffc);
            *self.address.lock().expect("no holder of this lock panics") = address;
        }
    }
}

/// Memory-mapped configuration access (MMCONFIG) for bus 0, [`ECAM_SIZE`] bytes.
#[derive(Debug)]
pub struct Ecam {
    root: Arc<PciRoot>,
}

impl Ecam {
    /// The configuration spaces of `root`.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root }
    }

    /// Device number and offset of an access at `offset`, if it is to a function 0.
    fn target(offset: u64) -> Option<(usize, usize)> {
        let (slot, register) = (usize::try_from(offset >> 12).ok()?, (offset & 0xfff) as usize);
        (slot % 8 == 0).then_some((slot / 8, register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::target(offset) {
            Some((device, register)) => self.root.config_read(device, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((device, register)) = Self::target(offset) {
            self.root.config_write(device, register, data);
        }
    }
}
