//! The transport, driven through ports and registers as a guest's driver drives it.

mod balloon;
mod blk;
mod conformance;
mod console;
mod guest;
mod hostile;
mod net;
mod scsi;
mod session;
mod vsock;

use std::sync::Arc;

use guest::{
    ACKNOWLEDGE, COMMON, DRIVER, DRIVER_OK, Driver, EVENT_IDX, FEATURES_OK, GuestQueue, ISR,
    Machine, NEEDS_RESET, VERSION_1, WINDOW, common,
};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::interrupt::MsiMessage;
use crate::pci;
use crate::virtio::{Entropy, Error};

/// Where tests put a virtqueue, and a buffer.
const QUEUE: u64 = 0x10_000;
const BUFFER: u64 = 0x20_000;

fn entropy(queue: &mut GuestQueue<'_, '_>) {
    queue.memory().write_slice(&[0; 64], GuestAddress(BUFFER)).unwrap();
    assert_eq!(queue.transact(&[(BUFFER, 64, true)]), 64);
    let mut bytes = [0; 64];
    queue.memory().read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
    assert_ne!(bytes, [0; 64]);
}

#[test]
fn a_driver_finds_the_device_and_gets_entropy() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    assert_eq!(address.to_string(), "0000:00:01.0");
    assert_eq!(machine.config_read::<4>(0, 0), [0x86, 0x80, 0x57, 0x0d]);
    assert_eq!(machine.config_read::<4>(0, 8), [0, 0, 0, 6]);
    assert_eq!(machine.config_read::<4>(1, 0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(machine.config_read::<4>(2, 0), [0xff; 4]);
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    entropy(&mut queue);
    entropy(&mut queue);
}

#[test]
fn both_ways_to_the_configuration_space_agree() {
    let (machine, _function, _) = Machine::with(Entropy::new());
    for offset in (0..0x100).step_by(4) {
        let mut data = [0; 4];
        machine.ecam.read(1 << 15 | offset, &mut data);
        assert_eq!(data, machine.config_read(1, offset), "offset {offset:#x}");
    }
    for (offset, expected) in [(1 << 15 | 0x100, 0), (1 << 15 | 1 << 12, 0xff), (9 << 15, 0xff)] {
        let mut data = [1; 4];
        machine.ecam.read(offset, &mut data);
        assert_eq!(data, [expected; 4], "offset {offset:#x}");
    }
}

#[test]
fn ports_answer_the_probe_for_configuration_mechanism_1() {
    let machine = Machine::new();
    let mut data = [0; 4];
    machine.ports.write(3, &[1]);
    machine.ports.write(0, &0x8000_0000_u32.to_le_bytes());
    machine.ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
    machine.ports.read(4, &mut data);
    assert_eq!(data, [0x86, 0x80, 0x57, 0x0d]);
    machine.ports.write(0, &0x8001_0000_u32.to_le_bytes());
    machine.ports.read(4, &mut data);
    assert_eq!(data, [0xff; 4], "there is no second bus");
}

#[test]
fn the_bus_and_its_window_have_limits() {
    let machine = Machine::new();
    for _ in 1..32 {
        machine.root.add(machine.function(Entropy::new())).unwrap();
    }
    let full = machine.root.add(machine.function(Entropy::new())).unwrap_err();
    assert_eq!(full, pci::Error::BusFull);

    let mmio = Arc::new(crate::bus::Bus::new());
    let root = pci::PciRoot::new(&mmio, 0x4000..0xa000);
    root.add(machine.function(Entropy::new())).unwrap();
    let full = root.add(machine.function(Entropy::new())).unwrap_err();
    assert_eq!(full, pci::Error::WindowFull { size: 0x4000 });
}

#[test]
fn features_are_agreed_only_if_they_can_work() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let offered = driver.offered();
    assert_eq!(offered, VERSION_1 | EVENT_IDX | 1 << 28);
    for (accepted, agreed) in [(0, false), (EVENT_IDX, false), (VERSION_1 | 1 << 34, false)] {
        driver.reset();
        driver.add_status(ACKNOWLEDGE | DRIVER);
        driver.accept(accepted);
        assert_eq!(driver.add_status(FEATURES_OK) & FEATURES_OK != 0, agreed, "{accepted:#x}");
        assert_eq!(driver.add_status(DRIVER_OK) & DRIVER_OK, 0, "{accepted:#x}");
    }
    driver.accept(VERSION_1);
    driver.add_status(FEATURES_OK);
    driver.accept(0);
    assert_eq!(driver.read::<4>(COMMON, common::DRIVER_FEATURE), [1, 0, 0, 0]);
}

#[test]
fn a_reset_forgets_everything_and_the_device_works_again() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    for base in [QUEUE, QUEUE + 0x4000, QUEUE] {
        entropy(&mut driver.start(EVENT_IDX, base));
        driver.reset();
        driver.set(common::QUEUE_SELECT, &[0, 0]);
        assert_eq!(driver.read16(common::QUEUE_SIZE), 8);
        assert_eq!(driver.read16(common::QUEUE_ENABLE), 0);
        assert_eq!(driver.read16(common::QUEUE_VECTOR), 0xffff);
        assert_eq!(driver.read::<8>(COMMON, common::QUEUE_AREAS), [0; 8]);
        assert_eq!(driver.read::<4>(COMMON, common::DRIVER_FEATURE), [0; 4]);
    }
}

#[test]
fn a_machine_reset_puts_bars_vectors_and_devices_back() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let doorbells = machine.doorbells.attached();
    let driver = Driver::bind(&machine, address);
    entropy(&mut driver.start(0, QUEUE));
    // One BAR moves away, and another one takes its place.
    machine.config_write(1, 0x10, &(WINDOW.start as u32 + 0x8_0000).to_le_bytes());
    machine.config_write(1, 0x18, &(WINDOW.start as u32).to_le_bytes());
    machine.root.reset();
    assert_eq!(machine.bar(1, 0), WINDOW.start);
    assert_eq!(machine.doorbells.attached(), doorbells);
    assert_eq!(driver.status(), 0);
    assert_eq!(machine.mmio_read::<4>(driver.msix_table + 12), [1, 0, 0, 0]);
    entropy(&mut Driver::bind(&machine, address).start(0, QUEUE));
}

#[test]
fn a_moved_bar_takes_its_doorbells_along() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let old = machine.bar(1, 0);
    let new = WINDOW.start + 0x8_0000;
    machine.config_write(1, 0x04, &[0x00, 0x00]);
    assert!(machine.doorbells.attached().is_empty());
    assert_eq!(machine.mmio_read::<4>(old), [0xff; 4]);
    machine.config_write(1, 0x10, &[0xff; 4]);
    machine.config_write(1, 0x14, &[0xff; 4]);
    assert_eq!(machine.config_read::<4>(1, 0x10), 0xffff_c004_u32.to_le_bytes());
    machine.config_write(1, 0x10, &(new as u32).to_le_bytes());
    machine.config_write(1, 0x14, &[0; 4]);
    machine.config_write(1, 0x04, &[0x06, 0x04]);
    assert_eq!(machine.doorbells.attached(), [new + 0x3000]);
    assert_eq!(machine.mmio_read::<4>(old), [0xff; 4]);
    let driver = Driver::bind(&machine, address);
    entropy(&mut driver.start(EVENT_IDX, QUEUE));
}

#[test]
fn a_bar_outside_of_the_window_or_over_another_is_not_decoded() {
    let machine = Machine::new();
    for _ in 0..2 {
        machine.root.add(machine.function(Entropy::new())).unwrap();
    }
    let (first, second) = (machine.bar(1, 0), machine.bar(2, 0));
    for place in [0, 0xfee0_0000, u64::MAX << 14, first] {
        machine.config_write(2, 0x10, &(place as u32).to_le_bytes());
        machine.config_write(2, 0x14, &((place >> 32) as u32).to_le_bytes());
        assert_eq!(machine.doorbells.attached(), [first + 0x3000], "{place:#x}");
    }
    machine.config_write(2, 0x10, &(second as u32).to_le_bytes());
    machine.config_write(2, 0x14, &[0; 4]);
    assert_eq!(machine.doorbells.attached(), [first + 0x3000, second + 0x3000]);
}

#[test]
fn a_masked_vector_stays_pending_until_it_is_unmasked() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    let control = driver.msix_capability + 2;
    let (entry, pending) = (driver.msix_table + 16, driver.msix_table + 0x800);
    let mask_vector = |on: u8| machine.mmio_write(entry + 12, &[on, 0, 0, 0]);
    let mask_function = |on: u8| machine.config_write(1, control, &[0, 0x80 | on << 6]);
    let masks: [&dyn Fn(u8); 2] = [&mask_vector, &mask_function];
    for (round, mask) in (1..).zip(masks) {
        mask(1);
        queue.offer(0, &[(BUFFER, 8, true)]);
        queue.ring();
        while machine.mmio_read::<1>(pending) == [0] {
            std::thread::yield_now();
        }
        assert_eq!(queue.used_index(), round);
        assert_eq!(machine.pending_interrupts(), []);
        mask(0);
        assert_eq!(machine.interrupt(), MsiMessage { address: 0xfee0_0000, data: 0x4001 });
        assert_eq!(machine.mmio_read::<1>(pending), [0]);
    }
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    for (register, vector, expected) in [
        (common::CONFIG_VECTOR, 1_u16, 1_u16),
        (common::CONFIG_VECTOR, 2, 0xffff),
        (common::QUEUE_VECTOR, 0, 0),
        (common::QUEUE_VECTOR, 0x7fff, 0xffff),
    ] {
        driver.set(register, &vector.to_le_bytes());
        assert_eq!(driver.read16(register), expected, "{register:#x} {vector}");
    }
    driver.set(common::QUEUE_SELECT, &[1, 0]);
    assert_eq!(driver.read16(common::QUEUE_SIZE), 0, "there is one virtqueue");
}

#[test]
fn without_msix_a_driver_polls_and_reading_the_isr_clears_it() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    machine.config_write(1, driver.msix_capability + 2, &[0, 0]);
    queue.offer(0, &[(BUFFER, 8, true)]);
    queue.ring();
    while driver.read::<1>(ISR, 0) == [0] {
        std::thread::yield_now();
    }
    assert_eq!(queue.used_index(), 1);
    assert_eq!(driver.read::<1>(ISR, 0), [0]);
    assert_eq!(machine.pending_interrupts(), []);
}

#[test]
fn an_event_index_that_is_not_reached_suppresses_interrupts() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(EVENT_IDX, QUEUE);
    queue.set_used_event(3);
    for head in 0..4 {
        queue.offer(head, &[(BUFFER, 8, true)]);
    }
    queue.ring();
    assert_eq!(machine.interrupt().data, 0x4001);
    assert_eq!(queue.used_index(), 4);
    assert_eq!(machine.pending_interrupts(), [], "one interrupt for four buffers");
}

#[test]
fn a_driver_that_polls_by_flag_is_not_interrupted() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    queue.memory().write_obj(1_u16, GuestAddress(queue.avail)).unwrap();
    queue.offer(0, &[(BUFFER, 8, true)]);
    queue.ring();
    while queue.used_index() == 0 {
        std::thread::yield_now();
    }
    driver.reset();
    assert_eq!(machine.pending_interrupts(), []);
}

#[test]
fn buffers_from_before_driver_ok_are_used_after_it() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    driver.add_status(ACKNOWLEDGE | DRIVER);
    driver.accept(VERSION_1);
    driver.add_status(FEATURES_OK);
    driver.enable_vector(1);
    let mut queue = GuestQueue::set_up(&driver, 0, QUEUE, false);
    queue.offer(0, &[(BUFFER, 8, true)]);
    assert_eq!(queue.used_index(), 0);
    driver.add_status(DRIVER_OK);
    machine.interrupt();
    assert_eq!(queue.take_used(), Some((0, 8)));
}

#[test]
fn the_access_window_reaches_registers_without_a_mapped_bar() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    machine.config_write(1, 0x04, &[0, 0]);
    let at = driver.window_capability;
    let aim = |offset: u32, length: u32| {
        machine.config_write(1, at + 8, &offset.to_le_bytes());
        machine.config_write(1, at + 12, &length.to_le_bytes());
    };
    aim(common::QUEUE_SIZE as u32, 2);
    assert_eq!(machine.config_read::<2>(1, at + 16), [8, 0]);
    aim(common::STATUS as u32, 1);
    machine.config_write(1, at + 16, &[ACKNOWLEDGE]);
    assert_eq!(machine.config_read::<1>(1, at + 16), [ACKNOWLEDGE]);
    for (offset, length) in [(common::STATUS as u32, 3), (common::STATUS as u32 + 1, 2)] {
        aim(offset, length);
        machine.config_write(1, at + 16, &[0; 4]);
    }
    machine.config_write(1, 0x04, &[2, 0]);
    assert_eq!(driver.status(), ACKNOWLEDGE, "invalid accesses do nothing");
}

#[test]
fn a_virtqueue_that_cannot_work_needs_a_reset() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    for (register, value) in [
        (common::QUEUE_SIZE, &[3, 0][..]),
        (common::QUEUE_SIZE, &[16, 0]),
        (common::QUEUE_AREAS, &[8, 0, 0, 0]),
        (common::QUEUE_AREAS + 8, &[1, 0, 0, 0]),
        (common::QUEUE_AREAS + 16, &[2, 0, 0, 0]),
        (common::QUEUE_AREAS + 4, &[0xff; 4]),
    ] {
        driver.reset();
        driver.add_status(ACKNOWLEDGE | DRIVER);
        driver.accept(VERSION_1);
        driver.add_status(FEATURES_OK);
        driver.set(register, value);
        driver.set(common::QUEUE_ENABLE, &[1, 0]);
        assert_ne!(driver.add_status(DRIVER_OK) & NEEDS_RESET, 0, "{register:#x} {value:?}");
        assert!(matches!(machine.take_fault(), Some(Error::Queue { index: 0, .. })));
    }
    entropy(&mut driver.start(0, QUEUE));
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    type Breakage = (&'static str, fn(&mut GuestQueue<'_, '_>));
    let cases: [Breakage; 6] = [
        ("more buffers than fit", |queue| {
            queue.memory().write_obj(99_u16, GuestAddress(queue.avail + 2)).unwrap();
        }),
        ("a head outside of the table", |queue| queue.make_available(8)),
        ("a loop", |queue| {
            queue.describe(0, BUFFER, 8, 3, 0);
            queue.make_available(0);
        }),
        ("a buffer outside of memory", |queue| queue.offer(0, &[(u64::MAX - 3, 8, true)])),
        ("readable behind writable", |queue| {
            queue.offer(0, &[(BUFFER, 8, true), (BUFFER, 8, false)]);
        }),
        ("an empty indirect table", |queue| {
            queue.describe(0, BUFFER, 0, 4, 0);
            queue.make_available(0);
        }),
    ];
    for (what, break_it) in cases {
        let mut queue = driver.start(0, QUEUE);
        break_it(&mut queue);
        queue.ring();
        assert_eq!(machine.interrupt().data, 0x4000, "{what}: a configuration change");
        driver.wait_needs_reset();
        driver.reset();
        assert!(machine.take_fault().is_some(), "{what}");
        entropy(&mut driver.start(0, QUEUE));
    }
}

#[test]
fn a_device_that_panics_asks_for_a_reset_and_survives_it() {
    #[derive(Debug)]
    struct Fragile;

    impl crate::virtio::VirtioDevice for Fragile {
        fn kind(&self) -> u16 {
            42
        }

        fn features(&self) -> u64 {
            0
        }

        fn queue_sizes(&self) -> &[u16] {
            &[4]
        }

        fn run(&mut self, session: &mut crate::virtio::Session) -> Result<(), Error> {
            session.serve(|_, _| panic!("a bug (this is a test)"))
        }
    }

    let (machine, _function, address) = Machine::with(Fragile);
    let driver = Driver::bind(&machine, address);
    for _ in 0..2 {
        let mut queue = driver.start(0, QUEUE);
        queue.offer(0, &[(BUFFER, 8, true)]);
        queue.ring();
        driver.wait_needs_reset();
        driver.reset();
        assert!(matches!(machine.take_fault(), Some(Error::Panicked)));
        machine.pending_interrupts();
    }
}
