//! A guest for tests: memory, a PCI bus, and a driver that finds the device, agrees on features and
//! uses virtqueues as the specification tells drivers to, through ports and registers only.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, BusDevice};
use crate::interrupt::{Doorbells, MsiMessage, MsiSink};
use crate::pci::{ConfigPorts, Ecam, PciAddress, PciRoot};
use crate::virtio::{Error, VirtioDevice, VirtioPci};

pub(super) const WINDOW: Range<u64> = 0xc000_0000..0xc010_0000;
pub(super) const RAM_SIZE: usize = 4 << 20;
/// Long enough for a slow machine, and a failure where it is reached.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const VERSION_1: u64 = 1 << 32;

/// Registers of the common configuration that tests name.
pub(super) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(crate) const DEVICE_FEATURE: u64 = 0x04;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(crate) const DRIVER_FEATURE: u64 = 0x0c;
    pub(crate) const CONFIG_VECTOR: u64 = 0x10;
    pub(crate) const STATUS: u64 = 0x14;
    pub(crate) const QUEUE_SELECT: u64 = 0x16;
    pub(crate) const QUEUE_SIZE: u64 = 0x18;
    pub(crate) const QUEUE_VECTOR: u64 = 0x1a;
    pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(crate) const QUEUE_AREAS: u64 = 0x20;
}

/// A machine without processors.
pub(super) struct Machine {
    pub(super) memory: GuestMemoryMmap,
    pub(super) mmio: Arc<Bus>,
    pub(super) root: Arc<PciRoot>,
    pub(super) ports: ConfigPorts,
    pub(super) ecam: Ecam,
    pub(super) doorbells: Arc<FakeDoorbells>,
    messages: Mutex<Receiver<MsiMessage>>,
    faults: Arc<Mutex<Vec<Error>>>,
    sink: Arc<FakeSink>,
}

struct FakeSink(Mutex<Sender<MsiMessage>>);

impl MsiSink for FakeSink {
    fn signal(&self, message: MsiMessage) -> io::Result<()> {
        self.0.lock().unwrap().send(message).map_err(io::Error::other)
    }
}

#[derive(Default)]
pub(super) struct FakeDoorbells(Mutex<BTreeMap<u64, EventFd>>);

impl FakeDoorbells {
    pub(super) fn attached(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }
}

impl Doorbells for FakeDoorbells {
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let before = self.0.lock().unwrap().insert(address, event.try_clone()?);
        assert!(before.is_none(), "two doorbells at {address:#x}");
        Ok(())
    }

    fn detach(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let before = self.0.lock().unwrap().remove(&address);
        assert!(before.is_some(), "no doorbell at {address:#x}");
        Ok(())
    }
}

impl Machine {
    pub(super) fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let mmio = Arc::new(Bus::new());
        let root = Arc::new(PciRoot::new(&mmio, WINDOW));
        let (sender, messages) = channel();
        Self {
            memory,
            mmio,
            ports: ConfigPorts::new(Arc::clone(&root)),
            ecam: Ecam::new(Arc::clone(&root)),
            root,
            doorbells: Arc::default(),
            messages: Mutex::new(messages),
            faults: Arc::default(),
            sink: Arc::new(FakeSink(Mutex::new(sender))),
        }
    }

    pub(super) fn with(device: impl VirtioDevice + 'static) -> (Self, Arc<VirtioPci>, PciAddress) {
        let machine = Self::new();
        let function = machine.function(device);
        let address = machine.root.add(function.clone()).unwrap();
        (machine, function, address)
    }

    pub(super) fn function(&self, device: impl VirtioDevice + 'static) -> Arc<VirtioPci> {
        let (sink, doorbells) = (self.sink.clone(), self.doorbells.clone());
        let memory = self.memory.clone();
        let faults = Arc::clone(&self.faults);
        let on_fault = Box::new(move |fault| faults.lock().unwrap().push(fault));
        Arc::new(VirtioPci::new(Box::new(device), memory, sink, doorbells, on_fault).unwrap())
    }

    /// Why a device last stopped, once.
    pub(super) fn take_fault(&self) -> Option<Error> {
        self.faults.lock().unwrap().pop()
    }

    /// The next interrupt.
    pub(super) fn interrupt(&self) -> MsiMessage {
        self.messages.lock().unwrap().recv_timeout(PATIENCE).expect("an interrupt")
    }

    /// The interrupts that have come and that nobody has waited for.
    pub(super) fn pending_interrupts(&self) -> Vec<MsiMessage> {
        self.messages.lock().unwrap().try_iter().collect()
    }

    pub(super) fn config_read<const N: usize>(&self, device: u8, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.select(device, offset);
        self.ports.read(4 + offset % 4, &mut data);
        data
    }

    pub(super) fn config_write(&self, device: u8, offset: u64, data: &[u8]) {
        self.select(device, offset);
        self.ports.write(4 + offset % 4, data);
    }

    fn select(&self, device: u8, offset: u64) {
        let address = 1 << 31 | u32::from(device) << 11 | u32::try_from(offset).unwrap() & 0xfc;
        self.ports.write(0, &address.to_le_bytes());
    }

    /// A memory write as the hypervisor handles it: doorbells first.
    pub(super) fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.doorbells.0.lock().unwrap().get(&address) {
            Some(event) => event.write(1).unwrap(),
            None => self.mmio.write(address, data),
        }
    }

    pub(super) fn mmio_read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(address, &mut data);
        data
    }

    pub(super) fn bar(&self, device: u8, bar: u8) -> u64 {
        let low = 0x10 + 4 * u64::from(bar);
        let high = u64::from(u32::from_le_bytes(self.config_read(device, low + 4)));
        high << 32 | u64::from(u32::from_le_bytes(self.config_read(device, low)) & !0xf)
    }
}

/// A driver bound to one device.
pub(super) struct Driver<'m> {
    pub(super) machine: &'m Machine,
    pub(super) device: u8,
    /// Where the registers of each capability type are.
    pub(super) registers: BTreeMap<u8, u64>,
    notify_multiplier: u64,
    pub(super) msix_capability: u64,
    pub(super) msix_table: u64,
    pub(super) window_capability: u64,
}

pub(super) const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
pub(super) const ISR: u8 = 3;
pub(super) const DEVICE: u8 = 4;

impl<'m> Driver<'m> {
    /// Walks the capability list as a driver does.
    pub(super) fn bind(machine: &'m Machine, address: PciAddress) -> Self {
        let device = address.device();
        let mut driver = Self {
            machine,
            device,
            registers: BTreeMap::new(),
            notify_multiplier: 0,
            msix_capability: 0,
            msix_table: 0,
            window_capability: 0,
        };
        assert_eq!(machine.config_read::<2>(device, 0), 0x1af4_u16.to_le_bytes());
        let mut next = u64::from(machine.config_read::<1>(device, 0x34)[0]);
        while next != 0 {
            let [id, link] = machine.config_read(device, next);
            let word = |at| u32::from_le_bytes(machine.config_read(device, next + at));
            let [bar] = machine.config_read(device, next + 4);
            match id {
                0x09 => match machine.config_read(device, next + 3) {
                    [5] => driver.window_capability = next,
                    [kind] => {
                        let place = machine.bar(device, bar) + u64::from(word(8));
                        driver.registers.insert(kind, place);
                        if kind == NOTIFY {
                            driver.notify_multiplier = u64::from(word(16));
                        }
                    }
                },
                0x11 => {
                    driver.msix_capability = next;
                    let bar = u8::try_from(word(4) & 7).unwrap();
                    driver.msix_table = machine.bar(device, bar) + u64::from(word(4) & !7);
                }
                _ => panic!("unknown capability {id:#x}"),
            }
            next = u64::from(link);
        }
        driver
    }

    pub(super) fn read<const N: usize>(&self, kind: u8, offset: u64) -> [u8; N] {
        self.machine.mmio_read(self.registers[&kind] + offset)
    }

    pub(super) fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(COMMON, offset))
    }

    pub(super) fn set(&self, offset: u64, data: &[u8]) {
        self.machine.mmio_write(self.registers[&COMMON] + offset, data);
    }

    pub(super) fn status(&self) -> u8 {
        self.read::<1>(COMMON, common::STATUS)[0]
    }

    /// Waits for the device to say that it needs a reset.
    pub(super) fn wait_needs_reset(&self) {
        for _ in 0..2000 {
            if self.status() & NEEDS_RESET != 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the device still works");
    }

    pub(super) fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.set(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(COMMON, common::DEVICE_FEATURE)))
        };
        half(0) | half(1) << 32
    }

    pub(super) fn accept(&self, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.set(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.set(common::DRIVER_FEATURE, &half.to_le_bytes());
        }
    }

    pub(super) fn add_status(&self, bits: u8) -> u8 {
        self.set(common::STATUS, &[self.status() | bits]);
        self.status()
    }

    pub(super) fn reset(&self) {
        self.set(common::STATUS, &[0]);
        assert_eq!(self.status(), 0);
    }

    /// Unmasks `vector`, which then sends `0x4000 + vector`, and switches MSI-X on.
    pub(super) fn enable_vector(&self, vector: u16) {
        let entry = self.msix_table + 16 * u64::from(vector);
        self.machine.mmio_write(entry, &0xfee0_0000_u64.to_le_bytes());
        self.machine.mmio_write(entry + 8, &(0x4000 + u32::from(vector)).to_le_bytes());
        self.machine.mmio_write(entry + 12, &[0; 4]);
        self.machine.config_write(self.device, self.msix_capability + 2, &[0, 0x80]);
    }

    /// From reset to DRIVER_OK with the features `wanted`, one virtqueue at `base` and vector 1.
    pub(super) fn start(&self, wanted: u64, base: u64) -> GuestQueue<'_, 'm> {
        self.start_queues(wanted, base, 1).remove(0)
    }

    /// The same with the first `count` virtqueues, 16 KiB for each, and a vector for each.
    pub(super) fn start_queues(
        &self,
        wanted: u64,
        base: u64,
        count: u16,
    ) -> Vec<GuestQueue<'_, 'm>> {
        self.reset();
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.accept(self.offered() & (wanted | VERSION_1));
        assert_ne!(self.add_status(FEATURES_OK) & FEATURES_OK, 0);
        self.set(common::CONFIG_VECTOR, &[0, 0]);
        (0..=count).for_each(|vector| self.enable_vector(vector));
        let set_up = |index| {
            let base = base + 0x4000 * u64::from(index);
            GuestQueue::set_up(self, index, base, wanted & EVENT_IDX != 0)
        };
        let queues = (0..count).map(set_up).collect();
        assert_eq!(self.add_status(DRIVER_OK), 0x0f);
        queues
    }
}

/// A split virtqueue from the driver's side.
pub(super) struct GuestQueue<'d, 'm> {
    driver: &'d Driver<'m>,
    index: u16,
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    doorbell: u64,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
}

impl<'d, 'm> GuestQueue<'d, 'm> {
    pub(super) fn set_up(driver: &'d Driver<'m>, index: u16, base: u64, event_idx: bool) -> Self {
        driver.set(common::QUEUE_SELECT, &index.to_le_bytes());
        let size = driver.read16(common::QUEUE_SIZE).min(16);
        driver.set(common::QUEUE_SIZE, &size.to_le_bytes());
        let (descriptors, avail, used) = (base, base + 0x1000, base + 0x2000);
        for at in [descriptors, avail, used] {
            driver.machine.memory.write_slice(&[0; 0x1000], GuestAddress(at)).unwrap();
        }
        for (at, area) in (common::QUEUE_AREAS..).step_by(8).zip([descriptors, avail, used]) {
            driver.set(at, &(area as u32).to_le_bytes());
            driver.set(at + 4, &((area >> 32) as u32).to_le_bytes());
        }
        driver.set(common::QUEUE_VECTOR, &(index + 1).to_le_bytes());
        driver.set(common::QUEUE_ENABLE, &1_u16.to_le_bytes());
        let offset = u64::from(driver.read16(common::QUEUE_NOTIFY_OFF)) * driver.notify_multiplier;
        let doorbell = driver.registers[&NOTIFY] + offset;
        Self {
            driver,
            index,
            size,
            descriptors,
            avail,
            used,
            doorbell,
            next_avail: 0,
            next_used: 0,
            event_idx,
        }
    }

    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.driver.machine.memory
    }

    /// Writes one descriptor.
    pub(super) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.descriptors + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory().write_slice(&bytes, at).unwrap();
    }

    /// Chains `buffers` (address, length, device may write) from descriptor `head` on and makes
    /// them available, without ringing.
    pub(super) fn offer(&mut self, head: u16, buffers: &[(u64, u32, bool)]) {
        for (at, (address, len, writable)) in (head..).zip(buffers) {
            let last = usize::from(at - head) + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(*writable) << 1;
            self.describe(at, *address, *len, flags, at + 1);
        }
        self.make_available(head);
    }

    pub(super) fn make_available(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory().write_obj(head, GuestAddress(slot)).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.memory().write_obj(self.next_avail, GuestAddress(self.avail + 2)).unwrap();
    }

    pub(super) fn ring(&self) {
        self.driver.machine.mmio_write(self.doorbell, &[0, 0]);
    }

    pub(super) fn used_index(&self) -> u16 {
        self.memory().read_obj(GuestAddress(self.used + 2)).unwrap()
    }

    /// The driver asks to be interrupted when the device has used more than `index` buffers.
    pub(super) fn set_used_event(&self, index: u16) {
        let at = GuestAddress(self.avail + 4 + 2 * u64::from(self.size));
        self.memory().write_obj(index, at).unwrap();
    }

    /// Takes the next used element: head and length.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let element: [u32; 2] = self.memory().read_obj(GuestAddress(at)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_idx {
            self.set_used_event(self.next_used);
        }
        Some((element[0], element[1]))
    }

    /// Waits, without interrupts, until the next element is used.
    pub(super) fn wait_used(&mut self) -> (u32, u32) {
        for _ in 0..20_000 {
            match self.take_used() {
                Some(element) => return element,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        panic!("the device does not use what it was offered");
    }

    /// Offers `buffers`, rings, and waits by interrupt until they are used. Gives the used length.
    pub(super) fn transact(&mut self, buffers: &[(u64, u32, bool)]) -> u32 {
        self.offer(0, buffers);
        self.ring();
        loop {
            let vector = u32::from(self.index) + 1;
            assert_eq!(self.driver.machine.interrupt().data, 0x4000 + vector);
            if let Some((head, len)) = self.take_used() {
                assert_eq!(head, 0);
                return len;
            }
        }
    }
}
