//! The balloon, from both of its ends.

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::guest::{DEVICE, Driver, GuestQueue, Machine, RAM_SIZE};
use super::{BUFFER, QUEUE};
use crate::virtio::{Balloon, BalloonControl};

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;
const ALL: u64 = F_STATS_VQ | F_DEFLATE_ON_OOM;

const PAGE: u64 = 4096;
/// Where tests have pages that they give away.
const PAGES: u64 = 0x10_0000;
/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn control() -> BalloonControl {
    BalloonControl::new(RAM_SIZE as u64).unwrap()
}

/// The target and the actual number of pages, as the driver reads them.
fn sizes(driver: &Driver<'_>) -> [u32; 2] {
    [0, 4].map(|at| u32::from_le_bytes(driver.read(DEVICE, at)))
}

/// Names pages in one request.
fn name_pages(queue: &mut GuestQueue<'_, '_>, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    queue.memory().write_slice(&bytes, GuestAddress(BUFFER)).unwrap();
    assert_eq!(queue.transact(&[(BUFFER, u32::try_from(bytes.len()).unwrap(), false)]), 0);
}

fn fill(memory: &GuestMemoryMmap, first: u64, count: usize) {
    memory.write_slice(&vec![7; count * PAGE as usize], GuestAddress(first * PAGE)).unwrap();
}

/// The first byte of a page.
fn byte(memory: &GuestMemoryMmap, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE)).unwrap()
}

#[test]
fn the_guest_follows_its_owner_and_pages_go_back_to_the_host() {
    let control = control();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    assert_eq!(machine.config_read::<4>(1, 0), [0xf4, 0x1a, 0x45, 0x10]);
    let mut queues = driver.start_queues(ALL, QUEUE, 3);
    assert_eq!(sizes(&driver), [0, 0]);

    assert_eq!(control.set_target(4 * PAGE + 1), 4 * PAGE);
    assert_eq!(machine.interrupt().data, 0x4000, "the configuration changed");
    assert_eq!(sizes(&driver), [4, 0]);

    let first = PAGES / PAGE;
    fill(&machine.memory, first - 1, 6);
    let pages = [3, 1, 0, 2].map(|page| u32::try_from(first).unwrap() + page);
    name_pages(&mut queues[0], &pages);
    machine.mmio_write(driver.registers[&DEVICE] + 4, &4_u32.to_le_bytes());
    let found: Vec<u8> = (first - 1..first + 5).map(|page| byte(&machine.memory, page)).collect();
    assert_eq!(found, [7, 0, 0, 0, 0, 7]);
    assert_eq!((control.actual(), control.released_bytes()), (4 * PAGE, 4 * PAGE));

    name_pages(&mut queues[1], &pages[..2]);
    machine.mmio_write(driver.registers[&DEVICE] + 4, &2_u32.to_le_bytes());
    fill(&machine.memory, u64::from(pages[0]), 1);
    assert_eq!(byte(&machine.memory, u64::from(pages[0])), 7);
    assert_eq!(control.actual(), 2 * PAGE);
}

#[test]
fn numbers_that_are_no_memory_are_passed_over() {
    let control = control();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    let mut queues = driver.start_queues(ALL, QUEUE, 3);
    let last = (RAM_SIZE as u64 / PAGE) as u32 - 1;
    fill(&machine.memory, u64::from(last), 1);
    // The run that begins with the last page of memory ends behind it.
    name_pages(&mut queues[0], &[u32::MAX, last, last + 1, 0x10_0000, u32::MAX - 1]);
    assert_eq!(byte(&machine.memory, u64::from(last)), 0);
    assert_eq!(control.released_bytes(), PAGE);
    // Three bytes are no number, and an answer is no place to look for one.
    assert_eq!(queues[0].transact(&[(BUFFER, 3, false), (BUFFER, 64, true)]), 0);
    assert_eq!(control.released_bytes(), PAGE);
}

#[test]
fn the_owner_cannot_wish_for_more_than_there_is() {
    let control = control();
    assert_eq!(control.set_target(u64::MAX), RAM_SIZE as u64);
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    assert_eq!(sizes(&driver), [RAM_SIZE as u32 / 4096, 0], "a wish from before the machine");
}

/// A driver's buffer with these figures.
fn figures(memory: &GuestMemoryMmap, at: u64, figures: &[(u16, u64)]) -> (u64, u32, bool) {
    let entry = |(tag, value): &(u16, u64)| {
        [tag.to_le_bytes().as_slice(), value.to_le_bytes().as_slice()].concat()
    };
    let bytes: Vec<u8> = figures.iter().flat_map(entry).collect();
    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    (at, u32::try_from(bytes.len()).unwrap(), false)
}

#[test]
fn figures_are_told_when_they_are_asked_for() {
    let control = control();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    assert_eq!(control.figures(Duration::ZERO), None, "no driver yet");
    let mut queues = driver.start_queues(ALL, QUEUE, 3);
    let queue = &mut queues[2];
    let buffer = figures(&machine.memory, BUFFER, &[(5, 5000), (4, 400), (999, 1)]);
    queue.offer(0, &[buffer]);
    queue.ring();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            // The first buffer may be on its way still.
            while control.figures(Duration::ZERO).is_none() {
                std::thread::yield_now();
            }
            control.figures(PATIENCE).unwrap()
        });
        // Whatever was asked is answered by a new buffer, as Linux does.
        let mut told = 0;
        while !asked.is_finished() {
            if queue.take_used().is_some() {
                told += 1;
                let buffer = figures(&machine.memory, BUFFER, &[(4, 401), (0, told), (5, 5000)]);
                queue.offer(0, &[buffer]);
                queue.ring();
            }
            std::thread::yield_now();
        }
        let names: Vec<_> = asked.join().unwrap().iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["swap_in_bytes", "free_bytes", "total_bytes"]);
    });
    driver.reset();
    assert_eq!(control.figures(Duration::ZERO), None);
}

#[test]
fn a_driver_with_more_than_one_buffer_gets_the_old_ones_back() {
    let control = control();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    let mut queues = driver.start_queues(ALL, QUEUE, 3);
    let queue = &mut queues[2];
    queue.offer(0, &[figures(&machine.memory, BUFFER, &[(4, 1)])]);
    queue.offer(1, &[figures(&machine.memory, BUFFER + 64, &[(4, 2)])]);
    queue.ring();
    assert_eq!(machine.interrupt().data, 0x4003);
    assert_eq!(queue.take_used(), Some((0, 0)));
    while control.figures(Duration::ZERO).and_then(|figures| figures.iter().next())
        != Some(("free_bytes", 2))
    {
        std::thread::yield_now();
    }
}

#[test]
fn a_wish_outlives_the_drivers_reset_and_what_the_driver_said_does_not() {
    let control = control();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    control.set_target(2 * PAGE);
    for _life in 0..2 {
        let mut queues = driver.start_queues(0, QUEUE, 2);
        assert_eq!(sizes(&driver), [2, 0]);
        name_pages(&mut queues[0], &[256, 257]);
        machine.mmio_write(driver.registers[&DEVICE], &[9, 9, 9, 9, 2, 0, 0, 0]);
        assert_eq!(sizes(&driver), [2, 2], "the target is not the driver's to write");
        driver.reset();
        assert_eq!(control.actual(), 0);
    }
}

#[test]
fn reported_pages_go_back_to_the_host_from_wherever_a_driver_reports_them() {
    for (features, index) in [
        (F_PAGE_REPORTING, 2),
        (F_PAGE_REPORTING, 4),
        (F_PAGE_REPORTING | F_STATS_VQ, 3),
        (F_PAGE_REPORTING | F_STATS_VQ, 4),
    ] {
        let control = control();
        let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
        let driver = Driver::bind(&machine, address);
        let mut queues = driver.start_queues(features, QUEUE, 5);
        let first = PAGES / PAGE;
        fill(&machine.memory, first, 8);
        let page = |number: u64| (first + number) * PAGE;
        // Not a whole page, and nothing that is only to be read.
        let report = [
            (page(7), PAGE as u32, false),
            (page(1), 2 * PAGE as u32, true),
            (page(4) + 8, PAGE as u32, true),
            (page(6), PAGE as u32, true),
        ];
        assert_eq!(queues[index].transact(&report), 0);
        let found: Vec<u8> = (first..first + 8).map(|page| byte(&machine.memory, page)).collect();
        assert_eq!(found, [7, 0, 0, 7, 7, 7, 0, 7], "{features:#x} {index}");
        assert_eq!(control.released_bytes(), 3 * PAGE);
    }
}
