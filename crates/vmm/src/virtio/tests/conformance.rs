//! Rules of the specification that no other test is about, and the table of all of them.

use std::collections::BTreeSet;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::guest::{
    ACKNOWLEDGE, COMMON, DEVICE, DRIVER, DRIVER_OK, Driver, FEATURES_OK, GuestQueue, Machine,
    VERSION_1, common,
};
use super::{BUFFER, QUEUE};
use crate::virtio::{Balloon, BalloonControl, DeviceConfig, Entropy};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[test]
fn the_table_names_files_and_tests_that_exist() {
    let table = include_str!("../../../CONFORMANCE.md");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut functions = BTreeSet::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs_err::read_to_string(path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
            functions.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
    let rows =
        table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Section"));
    let mut count = 0;
    for row in rows {
        let [section, _rule, file, test] =
            row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("not four columns: {row}");
        };
        assert!(section.split('.').all(|part| part.parse::<u8>().is_ok()), "{row}");
        assert!(source.join("virtio").join(file).is_file(), "no such file: {row}");
        assert!(functions.contains(test), "no such test: {row}");
        count += 1;
    }
    assert!(count > 40, "{count} rules");
}

#[test]
fn a_configuration_can_be_read_before_anything_is_agreed() {
    let control = BalloonControl::new(1 << 20).unwrap();
    control.set_target(3 << 12);
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read::<8>(DEVICE, 0), [3, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_request_may_be_cut_into_any_descriptors() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    for lens in [&[64][..], &[1, 63], &[1; 8], &[0, 64], &[64, 0], &[7, 0, 50]] {
        let mut at = BUFFER;
        let buffers: Vec<(u64, u32, bool)> = lens
            .iter()
            .map(|len| {
                at += 128;
                (at, *len, true)
            })
            .collect();
        assert_eq!(queue.transact(&buffers), lens.iter().sum::<u32>(), "{lens:?}");
    }
}

#[test]
fn writes_go_only_to_what_is_to_be_written() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    queue.memory().write_slice(&[7; 512], GuestAddress(BUFFER)).unwrap();
    let used = queue.transact(&[(BUFFER, 128, false), (BUFFER + 256, 64, true)]);
    assert_eq!(used, 64);
    let mut found = [0; 512];
    queue.memory().read_slice(&mut found, GuestAddress(BUFFER)).unwrap();
    assert!(found[..256].iter().chain(&found[320..]).all(|byte| *byte == 7));
    assert!(found[256..320].iter().any(|byte| *byte != 7));
}

#[test]
fn an_indirect_table_may_stand_behind_ordinary_descriptors() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    for flags in [INDIRECT, INDIRECT | WRITE] {
        let mut queue = driver.start(1 << 28, QUEUE);
        let table = BUFFER + 0x1000;
        queue.describe(0, BUFFER, 16, NEXT | WRITE, 1);
        queue.describe(1, table, 32, flags, 0);
        for (index, len, flags) in [(0, 8_u32, NEXT | WRITE), (1, 4, WRITE)] {
            let mut bytes = Vec::from((BUFFER + 0x100 * (index + 1)).to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(1_u16.to_le_bytes());
            queue.memory().write_slice(&bytes, GuestAddress(table + 16 * index)).unwrap();
        }
        queue.make_available(0);
        queue.ring();
        assert_eq!(queue.wait_used(), (0, 28), "{flags}");
    }
}

#[test]
fn doorbells_for_nothing_do_nothing() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(0, QUEUE);
    for _ in 0..100 {
        queue.ring();
    }
    assert_eq!(queue.transact(&[(BUFFER, 8, true)]), 8);
    assert_eq!(queue.used_index(), 1);
    assert_eq!(machine.pending_interrupts(), []);
}

#[test]
fn features_behind_the_last_word_are_zero() {
    let (machine, _function, address) = Machine::with(Entropy::new());
    let driver = Driver::bind(&machine, address);
    for select in [2_u32, 3, u32::MAX] {
        driver.set(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
        driver.set(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
        driver.set(common::DRIVER_FEATURE, &[0xff; 4]);
        assert_eq!(driver.read::<4>(COMMON, common::DEVICE_FEATURE), [0; 4], "{select}");
        assert_eq!(driver.read::<4>(COMMON, common::DRIVER_FEATURE), [0; 4], "{select}");
    }
}

#[test]
fn the_generation_tells_of_every_change_between_two_reads() {
    let config = DeviceConfig::new(vec![0; 8]);
    let read = |offset| config.read(offset, &mut [0; 4]);
    read(0);
    for changes in [1, 255, 256, 257] {
        let before = config.generation();
        read(0);
        (0..changes).for_each(|_| config.update(|bytes| bytes[0] ^= 1));
        read(4);
        assert_ne!(config.generation(), before, "{changes} changes");
    }
    let before = config.generation();
    read(0);
    assert_eq!(config.generation(), before);
}

#[test]
fn every_doorbell_is_within_its_capability() {
    let control = BalloonControl::new(1 << 20).unwrap();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    let mut next = u64::from(machine.config_read::<1>(address.device(), 0x34)[0]);
    let mut found = false;
    while next != 0 {
        let [id, link] = machine.config_read(address.device(), next);
        let word = |at| u32::from_le_bytes(machine.config_read(address.device(), next + at));
        if (id, machine.config_read(address.device(), next + 3)) == (0x09, [2]) {
            found = true;
            let (offset, length, multiplier) = (word(8), word(12), word(16));
            assert!(offset.is_multiple_of(4) && (multiplier == 0 || multiplier.is_power_of_two()));
            for queue in 0..driver.read16(0x12) {
                driver.set(common::QUEUE_SELECT, &queue.to_le_bytes());
                let place = u32::from(driver.read16(common::QUEUE_NOTIFY_OFF)) * multiplier;
                assert!(place + 2 <= length, "virtqueue {queue}");
            }
        }
        next = u64::from(link);
    }
    assert!(found, "a capability for doorbells");
}

#[test]
fn without_a_vector_nobody_is_interrupted() {
    let control = BalloonControl::new(1 << 20).unwrap();
    let (machine, _function, address) = Machine::with(Balloon::new(&control).unwrap());
    let driver = Driver::bind(&machine, address);
    driver.add_status(ACKNOWLEDGE | DRIVER);
    driver.accept(VERSION_1);
    driver.add_status(FEATURES_OK);
    (0..2).for_each(|vector| driver.enable_vector(vector));
    let mut queue = GuestQueue::set_up(&driver, 1, QUEUE, false);
    driver.set(common::QUEUE_VECTOR, &[0xff, 0xff]);
    driver.add_status(DRIVER_OK);
    queue.offer(0, &[(BUFFER, 4, false)]);
    queue.ring();
    assert_eq!(queue.wait_used(), (0, 0));
    control.set_target(1 << 12);
    driver.reset();
    assert_eq!(machine.pending_interrupts(), []);
}
