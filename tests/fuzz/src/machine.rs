//! A machine without processors, and a driver without scruples: it does to the PCI bus and the device
//! on it whatever bytes say, much of it so that it makes sense, since chance alone never gets a
//! virtqueue to work.
//!
//! | Byte | What follows it                                                | What it does               |
//! |------|----------------------------------------------------------------|----------------------------|
//! | `s`  | features not to accept, shifted how far                        | resets, starts the device  |
//! | `c`  | virtqueue, count, length and kind of each buffer, their bytes  | offers a chain, rings      |
//! | `h`  | length, bytes                                                  | the host's end gets them   |
//! | `r`  |                                                                | resets the device          |
//! | `p`  | function, register, width, bytes                               | writes to the configuration space |
//! | `g`  | function, register                                             | reads it through the ports |
//! | `b`  | region, offset, width, bytes                                   | writes to a BAR, then reads |
//! | `m`  | address, length, bytes                                         | writes to memory           |
//! | `R`  |                                                                | resets the machine         |
//!
//! A new device takes a file in `targets`, its `[[bin]]`, and a line in the list of `cargo xtask fuzz`.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootyard_vmm::bus::{Bus, BusDevice};
use bootyard_vmm::interrupt::{Doorbells, MsiMessage, MsiSink};
use bootyard_vmm::pci::{ConfigPorts, Ecam, PciRoot};
use bootyard_vmm::virtio::{VirtioDevice, VirtioPci};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Memory of the guest, in bytes.
const RAM: usize = 1 << 20;
/// Where BARs may be.
const WINDOW: Range<u64> = 0xc000_0000..0xc010_0000;
/// Where virtqueues are: descriptors, available ring, used ring and an indirect table, a page each.
const QUEUES: u64 = 0x8_0000;
const PAGE: u64 = 0x1000;
/// The size of each virtqueue, if the device allows as much.
const QUEUE_SIZE: u16 = 16;
/// Buffers of one chain.
const BUFFERS_MAX: u8 = 6;
/// The longest script that is followed: the rest is as good in another one.
const STEPS_MAX: usize = 256;
/// How long a device has for what it was told of.
const SETTLE: Duration = Duration::from_micros(300);

/// Where each region of BAR 0 is that `b` names; the last is BAR 2, the table of MSI-X.
const REGIONS: [u64; 5] = [0x0000, 0x1000, 0x2000, 0x3000, 0x4000];

/// Registers of the common configuration (virtio 1.2 §4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_AREAS: u64 = 0x20;
}

const INDIRECT: u16 = 4;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

/// Interrupts and doorbells that nobody hears: the bus takes the doorbells.
struct Deaf;

impl MsiSink for Deaf {
    fn signal(&self, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

impl Doorbells for Deaf {
    fn attach(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn detach(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// The guest, and what it knows of the virtqueues of function 1.
struct Guest {
    memory: GuestMemoryMmap,
    mmio: Arc<Bus>,
    root: Arc<PciRoot>,
    ports: ConfigPorts,
    ecam: Ecam,
    queues: Vec<Queue>,
}

/// A virtqueue that works.
#[derive(Clone, Copy)]
struct Queue {
    size: u16,
    /// Chains that were made available.
    available: u16,
}

/// Does to `device` what `input` says. `host` gets what comes to the host's end of it.
///
/// # Panics
///
/// Panics if the device does not answer as after power-on once it is reset.
pub fn drive(device: impl VirtioDevice + 'static, input: &[u8], host: &mut dyn FnMut(&[u8])) {
    let mut guest = Guest::new(vec![Box::new(device)]);
    let offered = guest.offered();
    guest.follow(&mut Script(input), host);
    guest.root.reset();
    assert_eq!(guest.common::<1>(common::STATUS), [0], "a reset device has no status");
    assert_eq!(guest.offered(), offered, "a reset device offers what it offered");
    guest.start(0);
    let [status] = guest.common::<1>(common::STATUS);
    assert_eq!(status & 0x4f, 0x0f, "a reset device works");
    guest.root.reset();
}

/// Does to a bus with several functions what `input` says.
///
/// # Panics
///
/// Panics if the bus is not as after power-on once it is reset.
pub fn drive_bus(devices: Vec<Box<dyn VirtioDevice>>, input: &[u8]) {
    let mut guest = Guest::new(devices);
    let before = guest.config_spaces();
    guest.follow(&mut Script(input), &mut |_| {});
    guest.root.reset();
    assert!(guest.config_spaces() == before, "a reset bus is as it was");
}

/// What is left of the input. Where it ends, everything is zero.
struct Script<'i>(&'i [u8]);

impl<'i> Script<'i> {
    fn take(&mut self, len: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A length that a register may have, and as many bytes.
    fn data(&mut self) -> &'i [u8] {
        let width = usize::from(self.byte() & 3);
        self.take(1 << width)
    }
}

impl Guest {
    fn new(devices: Vec<Box<dyn VirtioDevice>>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
        let mmio = Arc::new(Bus::new());
        let root = Arc::new(PciRoot::new(&mmio, WINDOW));
        let deaf = Arc::new(Deaf);
        for device in devices {
            let (memory, on_fault) = (memory.clone(), Box::new(|_| {}));
            let function = VirtioPci::new(device, memory, deaf.clone(), deaf.clone(), on_fault);
            root.add(Arc::new(function.expect("descriptors"))).expect("a free slot");
        }
        let (ports, ecam) = (ConfigPorts::new(root.clone()), Ecam::new(root.clone()));
        Self { memory, mmio, root, ports, ecam, queues: Vec::new() }
    }

    fn follow(&mut self, script: &mut Script<'_>, host: &mut dyn FnMut(&[u8])) {
        for _ in 0..STEPS_MAX {
            if script.0.is_empty() {
                return;
            }
            match script.byte() {
                b's' => {
                    let (without, shift) = (script.half(), script.byte() % 48);
                    self.start(u64::from(without) << shift);
                }
                b'c' => self.offer_chain(script),
                b'h' => {
                    let len = script.byte();
                    host(script.take(usize::from(len)));
                    std::thread::sleep(SETTLE);
                }
                b'r' => self.set_common(common::STATUS, &[0]),
                b'p' => {
                    let at = Self::config_offset(script);
                    self.ecam.write(at, script.data());
                }
                b'g' => self.read_through_ports(script),
                b'b' => self.access_bar(script),
                b'm' => {
                    let (address, len) = (u64::from(script.half()) << 4, script.byte());
                    let _ = self.memory.write(script.take(usize::from(len)), GuestAddress(address));
                }
                b'R' => self.root.reset(),
                _ => {}
            }
        }
    }

    /// Offset in the memory-mapped configuration space.
    fn config_offset(script: &mut Script<'_>) -> u64 {
        let (function, register) = (script.byte(), script.byte());
        u64::from(function % 5) << 15 | u64::from(register)
    }

    fn read_through_ports(&self, script: &mut Script<'_>) {
        let (function, register, mut data) = (script.byte(), script.byte(), [0; 4]);
        let address = 0x8000_0000 | u32::from(function) << 11 | u32::from(register);
        self.ports.write(0, &address.to_le_bytes());
        self.ports.read(4 + u64::from(function & 3), &mut data[..1 + usize::from(register & 1)]);
    }

    fn access_bar(&self, script: &mut Script<'_>) {
        let (region, offset) = (script.byte(), script.half());
        let at = REGIONS[usize::from(region) % REGIONS.len()] + u64::from(offset);
        let base = if at < 0x4000 { self.bar(1, 0) } else { self.bar(1, 2) };
        let address = base.wrapping_add(at % 0x4000);
        let (data, mut read) = (script.data(), [0; 8]);
        // A bus hands on accesses of 1 to 8 bytes.
        if !data.is_empty() {
            self.mmio.write(address, data);
            self.mmio.read(address, &mut read[..data.len()]);
        }
    }

    /// Where a BAR of 64 bits is now.
    fn bar(&self, function: u64, bar: u64) -> u64 {
        let mut address = [0; 8];
        for (half, bytes) in (0..).zip(address.chunks_exact_mut(4)) {
            self.ecam.read(function << 15 | (0x10 + 4 * (bar + half)), bytes);
        }
        u64::from_le_bytes(address) & !0xf
    }

    fn config_spaces(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for word in (0..4 * (1 << 15)).step_by(4).filter(|at| at % (1 << 15) < 0x100) {
            let mut data = [0; 4];
            self.ecam.read(word, &mut data);
            all.extend(data);
        }
        all
    }

    fn common<const N: usize>(&self, register: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(self.bar(1, 0).wrapping_add(register), &mut data);
        data
    }

    fn set_common(&self, register: u64, data: &[u8]) {
        self.mmio.write(self.bar(1, 0).wrapping_add(register), data);
    }

    fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.set_common(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.common(common::DEVICE_FEATURE)))
        };
        half(0) | half(1) << 32
    }

    /// From reset to DRIVER_OK, with all virtqueues and the offered features but `without`.
    fn start(&mut self, without: u64) {
        self.set_common(common::STATUS, &[0]);
        self.set_common(common::STATUS, &[3]);
        let accepted = self.offered() & (!without | 1 << 32);
        for (select, half) in [(0_u32, accepted as u32), (1, (accepted >> 32) as u32)] {
            self.set_common(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.set_common(common::DRIVER_FEATURE, &half.to_le_bytes());
        }
        self.set_common(common::STATUS, &[0x0b]);
        let queues = u16::from_le_bytes(self.common(common::NUM_QUEUES)).min(32);
        self.queues.clear();
        for index in 0..queues {
            self.set_common(common::QUEUE_SELECT, &index.to_le_bytes());
            let size = u16::from_le_bytes(self.common(common::QUEUE_SIZE)).min(QUEUE_SIZE);
            self.set_common(common::QUEUE_SIZE, &size.to_le_bytes());
            self.queues.push(Queue { size: size.max(1), available: 0 });
            for (register, place) in (common::QUEUE_AREAS..).step_by(8).zip(Self::rings(index)) {
                let _ = self.memory.write(&[0; 0x200], GuestAddress(place));
                self.set_common(register, &place.to_le_bytes());
            }
            self.set_common(common::QUEUE_VECTOR, &(index + 1).to_le_bytes());
            self.set_common(common::QUEUE_ENABLE, &[1, 0]);
        }
        self.set_common(common::STATUS, &[0x0f]);
    }

    /// Descriptors, available ring and used ring of a virtqueue.
    fn rings(index: u16) -> [u64; 3] {
        let base = QUEUES + u64::from(index) * 4 * PAGE;
        [base, base + PAGE, base + 2 * PAGE]
    }

    /// Chains buffers and rings. The script's bytes are what the device may read.
    fn offer_chain(&mut self, script: &mut Script<'_>) {
        let (number, count, flags) = (script.byte(), script.byte(), script.byte());
        let number = usize::from(number) % self.queues.len().max(1);
        let Some(queue) = self.queues.get_mut(number) else { return };
        let Queue { size, available } = *queue;
        queue.available = available.wrapping_add(1);
        let [descriptors, ring, _] = Self::rings(number as u16);
        let head = available % size;
        let (table, first) = match flags & 1 {
            0 => (descriptors, head),
            _ => (descriptors + 3 * PAGE, 0),
        };
        let count = u16::from(count % BUFFERS_MAX) + 1;
        for buffer in 0..count {
            let (len, kind) = (u32::from(script.half() % 0x2000), script.byte());
            let at = (first + buffer) % QUEUE_SIZE;
            // The last place is none.
            let place = u64::from(kind & 0x7e) << 12;
            let address = if place == 0x7e_000 { RAM as u64 - 0x40 } else { place };
            let written = if kind & 1 != 0 { WRITABLE } else { 0 };
            if written == 0 {
                let _ = self.memory.write(script.take(len as usize), GuestAddress(address));
            }
            let more = buffer + 1 < count || kind & 0x80 != 0;
            let flags = written | if more { NEXT } else { 0 };
            self.describe(table, at, (address, len, flags, (at + 1) % QUEUE_SIZE));
        }
        if table != descriptors {
            self.describe(descriptors, head, (table, 16 * u32::from(count), INDIRECT, 0));
        }
        let slot = GuestAddress(ring + 4 + 2 * u64::from(head));
        let _ = self.memory.write_obj(head, slot);
        let _ = self.memory.write_obj(available.wrapping_add(1), GuestAddress(ring + 2));
        self.mmio.write(self.bar(1, 0).wrapping_add(REGIONS[3] + 4 * number as u64), &[0, 0]);
        self.settle(number as u16, available.wrapping_add(1));
    }

    fn describe(&self, table: u64, at: u16, descriptor: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = descriptor;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let _ = self.memory.write(&bytes, GuestAddress(table + 16 * u64::from(at)));
    }

    /// Gives the device time to use what it was offered. Some keep it until the host has something.
    fn settle(&self, queue: u16, available: u16) {
        let used = GuestAddress(Self::rings(queue)[2] + 2);
        let begin = Instant::now();
        while begin.elapsed() < SETTLE {
            if self.memory.read_obj::<u16>(used).ok() == Some(available) {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Where the chips at fixed ports are, each with the port behind it.
const PORTS: [Range<u64>; 5] = [0x3f8..0x401, 0x60..0x66, 0x70..0x73, 0x505..0x507, 0x600..0x604];

/// Does to the chips at fixed ports what `input` says: port, width and bytes of one access each.
pub fn drive_ports(input: &[u8]) {
    let bus = bootyard_vmm::legacy_ports().expect("descriptors");
    let mut script = Script(input);
    for _ in 0..STEPS_MAX {
        let (chip, port, data) = (script.byte(), script.byte(), script.data());
        if data.is_empty() {
            return;
        }
        let ports = &PORTS[usize::from(chip) % PORTS.len()];
        let port = ports.start + u64::from(port) % (ports.end - ports.start);
        let mut read = [0; 8];
        bus.write(port, data);
        bus.read(port, &mut read[..data.len()]);
    }
}
