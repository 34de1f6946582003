//! Virtio over PCI (§4.1), modern interface only: the registers through which a driver finds the
//! device, agrees on features, sets up virtqueues and rings their doorbells.
//!
//! ```text
//!            ┌────────────────────── write 0: reset, from everywhere ──────────────────────┐
//!            ▼                                                                             │
//!          reset ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─────► DRIVER_OK ─────────────────┤
//!                                            │ (stays clear     │ the device moves into    │
//!                                            │  if the set      │ its thread               │
//!                                            │  cannot work)    ▼                          │
//!                                            └────────────► NEEDS_RESET ───────────────────┘
//!                                                 the driver broke the rules, or the host failed
//! ```
//!
//! Status bits are only ever added, except by a reset. The reset waits for the device's thread, so
//! when the driver reads the status as 0 nothing touches its memory any more.
//!
//! | BAR 0    | registers                                    |
//! |----------|----------------------------------------------|
//! | `0x0000` | common configuration                         |
//! | `0x1000` | ISR status                                   |
//! | `0x2000` | device configuration, if the device has one  |
//! | `0x3000` | doorbells, 4 bytes for each virtqueue        |
//!
//! BAR 2 holds the MSI-X table. Vectors: one for configuration changes, one for each virtqueue.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::{virtio_config, virtio_ring};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::session::Worker;
use super::{DeviceConfig, Error, Interrupt, OnFault, Session, VirtioDevice, Virtqueue};
use crate::interrupt::{Doorbells, MsiSink};
use crate::pci::{ConfigSpace, Identity, MSIX_REGION_SIZE, MsiX, PciDevice};

/// Bits of the status byte (§2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
    /// The bits that are the driver's to set.
    pub(super) const OF_DRIVER: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
}

/// Features of every device here (§6). Without VERSION_1 there is only the legacy interface.
const F_VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
const F_EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
const F_INDIRECT: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

const REGISTERS_BAR: u8 = 0;
const REGISTERS_SIZE: u64 = 0x4000;
const COMMON: u64 = 0x0000;
const COMMON_SIZE: usize = 0x38;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
/// Bytes from one doorbell to the next.
const NOTIFY_MULTIPLIER: u32 = 4;
const MSIX_BAR: u8 = 2;

/// Vendor-specific capabilities (§4.1.4): the ID, and the types.
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_COMMON: u8 = 1;
const CAPABILITY_NOTIFY: u8 = 2;
const CAPABILITY_ISR: u8 = 3;
const CAPABILITY_DEVICE: u8 = 4;
const CAPABILITY_WINDOW: u8 = 5;
/// Offsets in the access window's capability (§4.1.4.9).
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;

/// Registers of the common configuration (§4.1.4.3).
mod register {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// Descriptor table, driver area and device area: 8 bytes each.
    pub(super) const QUEUE_AREAS: u64 = 0x20;
}

/// A virtio device as a function on the PCI bus.
pub struct VirtioPci {
    kind: u16,
    features: u64,
    device_config: DeviceConfig,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    doorbells: Arc<dyn Doorbells>,
    /// The doorbell of each virtqueue.
    events: Vec<EventFd>,
    config: ConfigSpace,
    /// Offsets of two capabilities that need care when the guest uses them.
    msix_capability: usize,
    window_capability: usize,
    state: Mutex<State>,
}

/// What the driver has told us.
#[derive(Debug)]
struct State {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueSetup>,
    /// The device while it has no thread.
    device: Option<Box<dyn VirtioDevice>>,
    worker: Option<Worker>,
    /// Where the registers are, for the doorbells.
    mapped: Option<u64>,
}

/// A virtqueue as the driver sets it up.
#[derive(Debug, Clone)]
struct QueueSetup {
    size_max: u16,
    size: u16,
    enabled: bool,
    /// Descriptor table, driver area, device area.
    areas: [u64; 3],
}

impl VirtioPci {
    /// `device` as a PCI function that reads and writes `memory`. `on_fault` is told why whenever
    /// it stops with DEVICE_NEEDS_RESET.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        msi: Arc<dyn MsiSink>,
        doorbells: Arc<dyn Doorbells>,
        on_fault: OnFault,
    ) -> io::Result<Self> {
        let queues: Vec<_> = device.queue_sizes().iter().copied().map(QueueSetup::new).collect();
        let msix = MsiX::new(queues.len() + 1, msi);
        let kind = device.kind();
        let device_config = device.config();
        let mut config = ConfigSpace::new(identity(kind));
        config.add_bar(usize::from(REGISTERS_BAR), REGISTERS_SIZE);
        config.add_bar(usize::from(MSIX_BAR), MSIX_REGION_SIZE);
        let window_capability = add_capabilities(&mut config, queues.len(), device_config.len());
        let (id, body, writable) = msix.capability(MSIX_BAR);
        let msix_capability = config.add_capability(id, &body, &writable);
        let events =
            queues.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        let interrupt = Arc::new(Interrupt::new(msix, queues.len(), on_fault));
        device_config.attach(&interrupt);
        Ok(Self {
            kind,
            features: device.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT,
            device_config,
            memory,
            interrupt,
            doorbells,
            events,
            config,
            msix_capability,
            window_capability,
            state: Mutex::new(State::new(queues, device)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The common configuration as it reads now.
    fn common(&self, state: &State) -> [u8; COMMON_SIZE] {
        let mut registers = [0; COMMON_SIZE];
        let mut set = |at: u64, bytes: &[u8]| {
            registers[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let offered = half(self.features, state.device_feature_select);
        let accepted = half(state.driver_features, state.driver_feature_select);
        set(register::DEVICE_FEATURE_SELECT, &state.device_feature_select.to_le_bytes());
        set(register::DEVICE_FEATURE, &offered.to_le_bytes());
        set(register::DRIVER_FEATURE_SELECT, &state.driver_feature_select.to_le_bytes());
        set(register::DRIVER_FEATURE, &accepted.to_le_bytes());
        set(register::CONFIG_MSIX_VECTOR, &self.interrupt.config_vector().to_le_bytes());
        set(register::NUM_QUEUES, &(state.queues.len() as u16).to_le_bytes());
        set(register::DEVICE_STATUS, &[self.interrupt.status()]);
        set(register::CONFIG_GENERATION, &[self.device_config.generation()]);
        set(register::QUEUE_SELECT, &state.queue_select.to_le_bytes());
        let vector = self.interrupt.queue_vector(state.queue_select);
        set(register::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        // A virtqueue that does not exist has size 0.
        if let Some(queue) = state.queues.get(usize::from(state.queue_select)) {
            set(register::QUEUE_SIZE, &queue.size.to_le_bytes());
            set(register::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            set(register::QUEUE_NOTIFY_OFF, &state.queue_select.to_le_bytes());
            for (at, area) in (register::QUEUE_AREAS..).step_by(8).zip(queue.areas) {
                set(at, &area.to_le_bytes());
            }
        }
        registers
    }

    /// Takes a write to the common configuration. Only the registers' own widths count (§4.1.3.1);
    /// an 8-byte area may be written whole or in halves.
    fn common_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let state = &mut *state;
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        match (offset, data.len()) {
            (register::DEVICE_FEATURE_SELECT, 4) => state.device_feature_select = value as u32,
            (register::DRIVER_FEATURE_SELECT, 4) => state.driver_feature_select = value as u32,
            (register::DRIVER_FEATURE, 4) => self.accept_features(state, value),
            (register::CONFIG_MSIX_VECTOR, 2) => self.interrupt.set_config_vector(value as u16),
            (register::DEVICE_STATUS, 1) => self.set_status(state, value as u8),
            (register::QUEUE_SELECT, 2) => state.queue_select = value as u16,
            (register::QUEUE_MSIX_VECTOR, 2) => {
                self.interrupt.set_queue_vector(state.queue_select, value as u16);
            }
            _ => {
                if let Some(queue) = state.queue_in_setup() {
                    queue.write(offset, data.len(), value);
                }
            }
        }
    }

    fn accept_features(&self, state: &mut State, value: u64) {
        // After FEATURES_OK the set is agreed.
        if self.interrupt.status() & status::FEATURES_OK == 0 {
            match state.driver_feature_select {
                0 => state.driver_features = state.driver_features & !0xffff_ffff | value,
                1 => state.driver_features = state.driver_features & 0xffff_ffff | value << 32,
                _ => {}
            }
        }
    }

    fn set_status(&self, state: &mut State, written: u8) {
        if written == 0 {
            return self.reset_device(state);
        }
        let before = self.interrupt.status();
        let mut added = written & status::OF_DRIVER & !before;
        let possible = state.driver_features & !self.features == 0;
        if !possible || state.driver_features & F_VERSION_1 == 0 {
            added &= !status::FEATURES_OK;
        }
        if (before | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.interrupt.add_status(added);
        if added & status::DRIVER_OK != 0
            && let Err(fault) = self.start(state)
        {
            self.interrupt.fail(fault);
        }
    }

    /// Moves the device into its thread.
    fn start(&self, state: &mut State) -> Result<(), Error> {
        let mut queues = Vec::with_capacity(state.queues.len());
        for ((index, setup), event) in (0..).zip(&state.queues).zip(&self.events) {
            if setup.enabled {
                let event_idx = state.driver_features & F_EVENT_IDX != 0;
                let broken = |source| Error::Queue { index, source };
                let queue = setup.build(event_idx).map_err(broken)?;
                let (event, interrupt) = (event.try_clone()?, Arc::clone(&self.interrupt));
                queues.push(Virtqueue::new(index, queue, &self.memory, event, interrupt)?);
            }
        }
        let session = Session::new(self.memory.clone(), state.driver_features, queues)?;
        let lost = || io::Error::other("the host had no thread for the device");
        let device = state.device.take().ok_or_else(lost)?;
        state.worker = Some(Worker::start(device, session, Arc::clone(&self.interrupt))?);
        Ok(())
    }

    /// Takes the device out of its thread and forgets what the driver has said.
    fn reset_device(&self, state: &mut State) {
        if let Some(worker) = state.worker.take() {
            state.device = Some(worker.stop());
        }
        for event in &self.events {
            // Forgets a doorbell of the past. Fails where there was none.
            let _ = event.read();
        }
        self.interrupt.reset();
        // Only now: what it changes in its configuration is no news to a driver that has reset it.
        if let Some(device) = &mut state.device {
            device.reset();
        }
        state.forget_driver();
    }

    /// Rings the doorbell at `offset` into the doorbells: what the hypervisor does by itself where
    /// it can.
    fn notify(&self, offset: u64) {
        let index = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).ok();
        if let Some(event) = index.and_then(|index| self.events.get(index)) {
            // Fails only for a counter at its limit, which is as good as rung.
            let _ = event.write(1);
        }
    }

    /// Moves the doorbells to the registers' new place. Where the hypervisor refuses one, the
    /// guest's writes come through [`VirtioPci::notify`].
    fn move_doorbells(&self, address: Option<u64>) {
        let mut state = self.state();
        let places = |base: u64| (base + NOTIFY..).step_by(NOTIFY_MULTIPLIER as usize);
        if let Some(base) = state.mapped {
            for (place, event) in places(base).zip(&self.events) {
                let _ = self.doorbells.detach(place, event);
            }
        }
        if let Some(base) = address {
            for (place, event) in places(base).zip(&self.events) {
                let _ = self.doorbells.attach(place, event);
            }
        }
        state.mapped = address;
    }

    /// Offset and length of the access that the guest has set up in the window, if it is a valid
    /// one (§4.1.4.9).
    fn window(&self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let at = self.window_capability;
        let [bar] = config.get(at + WINDOW_BAR);
        let offset = u32::from_le_bytes(config.get(at + WINDOW_OFFSET));
        let length = u32::from_le_bytes(config.get(at + WINDOW_LENGTH));
        let valid =
            bar == REGISTERS_BAR && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        valid.then_some((u64::from(offset), length as usize))
    }

    fn touches_window(&self, offset: usize, len: usize) -> bool {
        let data = self.window_capability + WINDOW_DATA;
        offset < data + 4 && offset.saturating_add(len) > data
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if bar == usize::from(MSIX_BAR) {
            return self.interrupt.msix.read(offset, data);
        }
        data.fill(0);
        match offset {
            COMMON..ISR => copy(&self.common(&self.state()), offset - COMMON, data),
            ISR => data[0] = self.interrupt.take_isr(),
            DEVICE..NOTIFY => self.device_config.read(offset - DEVICE, data),
            _ => {}
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar == usize::from(MSIX_BAR) {
            return self.interrupt.msix.write(offset, data);
        }
        match offset {
            COMMON..ISR => self.common_write(offset - COMMON, data),
            DEVICE..NOTIFY => self.device_config.write(offset - DEVICE, data),
            NOTIFY.. => self.notify(offset - NOTIFY),
            // The ISR status is read-only.
            _ => {}
        }
    }

    fn bar_mapped(&self, bar: usize, address: Option<u64>) {
        if bar == usize::from(REGISTERS_BAR) {
            self.move_doorbells(address);
        }
    }

    fn config_before_read(&self, config: &mut ConfigSpace, offset: usize, len: usize) {
        if self.touches_window(offset, len)
            && let Some((offset, len)) = self.window(config)
        {
            let mut data = [0; 4];
            self.bar_read(usize::from(REGISTERS_BAR), offset, &mut data[..len]);
            config.set(self.window_capability + WINDOW_DATA, &data[..len]);
        }
    }

    fn config_after_write(&self, config: &ConfigSpace, offset: usize, len: usize) {
        if self.touches_window(offset, len)
            && let Some((offset, len)) = self.window(config)
        {
            let data: [u8; 4] = config.get(self.window_capability + WINDOW_DATA);
            self.bar_write(usize::from(REGISTERS_BAR), offset, &data[..len]);
        }
        let control = self.msix_capability + 2;
        if offset < control + 2 && offset.saturating_add(len) > control {
            self.interrupt.msix.set_control(u16::from_le_bytes(config.get(control)));
        }
    }

    fn reset(&self) {
        self.reset_device(&mut self.state());
        self.interrupt.msix.reset();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.reset();
        self.move_doorbells(None);
    }
}

impl State {
    fn new(queues: Vec<QueueSetup>, device: Box<dyn VirtioDevice>) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            device: Some(device),
            worker: None,
            mapped: None,
        }
    }

    fn forget_driver(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.size_max);
        }
    }

    /// The selected virtqueue, if it exists and is not in use.
    fn queue_in_setup(&mut self) -> Option<&mut QueueSetup> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled && self.worker.is_none()).then_some(queue)
    }
}

impl QueueSetup {
    fn new(size_max: u16) -> Self {
        Self { size_max, size: size_max, enabled: false, areas: [0; 3] }
    }

    fn write(&mut self, offset: u64, len: usize, value: u64) {
        let area = offset.wrapping_sub(register::QUEUE_AREAS);
        match (offset, len) {
            (register::QUEUE_SIZE, 2) => self.size = value as u16,
            (register::QUEUE_ENABLE, 2) => self.enabled = value == 1,
            (register::QUEUE_AREAS.., 4 | 8) if area.is_multiple_of(len as u64) && area < 24 => {
                let slot = &mut self.areas[area as usize / 8];
                let mut bytes = slot.to_le_bytes();
                let at = area as usize % 8;
                bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
                *slot = u64::from_le_bytes(bytes);
            }
            _ => {}
        }
    }

    /// The ring over what the driver has set up, if size and alignments are valid.
    fn build(&self, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        let [descriptors, driver, device] = self.areas.map(GuestAddress);
        let mut queue = Queue::new(self.size_max)?;
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(descriptors)?;
        queue.try_set_avail_ring_address(driver)?;
        queue.try_set_used_ring_address(device)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What the function says that it is (§4.1.2.1): a modern device of its type, and a class for
/// firmware that looks for disks by it.
fn identity(kind: u16) -> Identity {
    const DEVICE_ID_MODERN: u16 = 0x1040;
    let class = match kind {
        1 => 0x02_00_00,
        2 => 0x01_80_00,
        _ => 0xff_00_00,
    };
    let vendor = 0x1af4;
    let (device, subsystem) = (DEVICE_ID_MODERN + kind, (vendor, DEVICE_ID_MODERN + kind));
    Identity { vendor, device, class, revision: 1, subsystem }
}

/// Adds the capabilities that say where the registers are. Gives the access window's offset.
fn add_capabilities(config: &mut ConfigSpace, queues: usize, device_config: usize) -> usize {
    let mut add = |kind: u8, offset: u64, len: usize, extra: &[u8], writable: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, REGISTERS_BAR, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body.extend(extra);
        config.add_capability(CAPABILITY_VENDOR, &body, writable)
    };
    add(CAPABILITY_COMMON, COMMON, COMMON_SIZE, &[], &[]);
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    add(CAPABILITY_NOTIFY, NOTIFY, queues * NOTIFY_MULTIPLIER as usize, &multiplier, &[]);
    add(CAPABILITY_ISR, ISR, 1, &[], &[]);
    if device_config > 0 {
        add(CAPABILITY_DEVICE, DEVICE, device_config, &[], &[]);
    }
    // The driver may write BAR number, offset, length and data.
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    add(CAPABILITY_WINDOW, 0, 0, &[0; 4], &writable)
}

/// Copies what `from` has at `offset` to the front of `to`.
pub(super) fn copy(from: &[u8], offset: u64, to: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|offset| from.get(offset..)).unwrap_or(&[]);
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
