//! The SCSI host device and its drives, command by command, as a guest's driver sends them.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, Extent, WriteDisk};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{DEVICE, Driver, GuestQueue, Machine};
use super::{BUFFER, QUEUE};
use crate::scsi::{Drive, EjectError, Tray};
use crate::virtio::Scsi;

const HEADER: u64 = BUFFER;
const RESPONSE: u64 = BUFFER + 0x200;
const DATA: u64 = BUFFER + 0x1000;

/// Blocks of the disk of 512 bytes.
const BLOCKS: u64 = 4096;

const OK: u8 = 0;
const BAD_TARGET: u8 = 3;
const CHECK: u8 = 2;

/// Targets of [`drives`].
const DISK: u8 = 0;
const READ_ONLY: u8 = 1;
const CDROM: u8 = 2;
const NO_DISC: u8 = 3;

fn file(len: u64) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| (at / 512) as u8).collect();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

fn raw(file: &std::fs::File) -> Arc<dyn Disk> {
    Arc::new(RawDisk::new(FileAt::new(file.try_clone().unwrap()).unwrap()))
}

fn drives(disk: &std::fs::File, disc: &std::fs::File) -> Vec<Arc<Drive>> {
    [
        Drive::disk(raw(disk), false, "disk-1"),
        Drive::disk(raw(disk), true, "disk-2"),
        Drive::cdrom(Some(raw(disc)), "cd-1"),
        Drive::cdrom(None, "cd-2"),
    ]
    .into_iter()
    .map(|drive| Arc::new(drive.unwrap()))
    .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    response: u8,
    status: u8,
    /// Key, code and qualifier.
    sense: [u8; 3],
    residual: u32,
    data: Vec<u8>,
}

fn address(target: u8) -> [u8; 8] {
    [1, target, 0x40, 0, 0, 0, 0, 0]
}

/// Sends a command with `out`, and with room for `room` bytes.
fn send(
    queue: &mut GuestQueue<'_, '_>,
    to: [u8; 8],
    block: &[u8],
    out: &[u8],
    room: usize,
) -> Answer {
    let mut header = [&to[..], &[0; 11], block].concat();
    header.resize(51, 0);
    let memory = queue.memory();
    memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    memory.write_slice(&[0xee; 108], GuestAddress(RESPONSE)).unwrap();
    memory.write_slice(out, GuestAddress(DATA)).unwrap();
    let mut buffers = vec![(HEADER, 51, false)];
    if !out.is_empty() {
        buffers.push((DATA, out.len() as u32, false));
    }
    buffers.push((RESPONSE, 108, true));
    let half = room as u32 / 2;
    if room > 0 {
        // In two pieces, so that it never is one slice of memory.
        let all = [(DATA, half, true), (DATA + u64::from(half), room as u32 - half, true)];
        buffers.extend(all.into_iter().filter(|(_, len, _)| *len > 0));
    }
    let used = queue.transact(&buffers) as usize;
    let mut bytes = [0; 108];
    queue.memory().read_slice(&mut bytes, GuestAddress(RESPONSE)).unwrap();
    let mut data = vec![0; used - 108];
    queue.memory().read_slice(&mut data, GuestAddress(DATA)).unwrap();
    let sense_len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(bytes[8..10], [0, 0]);
    assert!(matches!(sense_len, 0 | 18));
    Answer {
        response: bytes[11],
        status: bytes[10],
        sense: [bytes[14], bytes[24], bytes[25]],
        residual: u32::from_le_bytes(bytes[4..8].try_into().unwrap()),
        data,
    }
}

fn good(queue: &mut GuestQueue<'_, '_>, target: u8, block: &[u8], room: usize) -> Vec<u8> {
    let answer = send(queue, address(target), block, &[], room);
    assert_eq!((answer.response, answer.status), (OK, 0), "{block:x?}: {answer:?}");
    assert_eq!(answer.residual as usize, room - answer.data.len());
    answer.data
}

/// A driver of the virtqueues, which has been told of the power-on.
fn start<'d, 'm>(driver: &'d Driver<'m>, targets: u8) -> Vec<GuestQueue<'d, 'm>> {
    let mut queues = driver.start_queues(0, QUEUE, 3);
    for target in 0..targets {
        let answer = send(&mut queues[2], address(target), &[0; 6], &[], 0);
        assert_eq!((answer.status, answer.sense), (CHECK, [6, 0x29, 0]), "target {target}");
    }
    queues
}

fn be(number: u64, len: usize) -> Vec<u8> {
    number.to_be_bytes()[8 - len..].to_vec()
}

/// A command that names blocks, in each of its lengths.
fn on_blocks(codes: [u8; 4], first: u64, count: u64) -> Vec<Vec<u8>> {
    let [six, ten, twelve, sixteen] = codes;
    let mut all = Vec::new();
    if six != 0xff {
        let mut short = [&[six][..], &be(first, 3), &[(count % 256) as u8, 0]].concat();
        short[1] &= 0x1f;
        all.push(short);
    }
    all.push([&[ten, 0][..], &be(first, 4), &[0], &be(count, 2), &[0]].concat());
    if twelve != 0xff {
        all.push([&[twelve, 0][..], &be(first, 4), &be(count, 4), &[0, 0]].concat());
    }
    all.push([&[sixteen, 0][..], &be(first, 8), &be(count, 4), &[0, 0]].concat());
    all
}

const READ: [u8; 4] = [0x08, 0x28, 0xa8, 0x88];
const WRITE: [u8; 4] = [0x0a, 0x2a, 0xaa, 0x8a];

#[test]
fn blocks_are_read_and_written_by_commands_of_every_length() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 4);
    let queue = &mut queues[2];
    for block in on_blocks(READ, 7, 2) {
        assert_eq!(good(queue, DISK, &block, 1024), [[7; 512], [8; 512]].concat(), "{block:x?}");
        let disc = [[28; 512], [29; 512], [30; 512], [31; 512]].concat();
        assert_eq!(good(queue, CDROM, &block, 4096)[..2048], disc, "{block:x?}");
    }
    // None means 256 in six bytes, and none in more.
    for (block, len) in on_blocks(READ, 0, 0).iter().zip([256 * 512, 0, 0, 0]) {
        assert_eq!(good(queue, DISK, block, 256 * 512).len(), len, "{block:x?}");
    }
    for (value, block) in (1..).zip(on_blocks(WRITE, 100, 3)) {
        let answer = send(queue, address(DISK), &block, &[value; 1536], 0);
        assert_eq!((answer.response, answer.status), (OK, 0), "{block:x?}");
        let mut found = [0; 2560];
        disk.read_exact_at(&mut found, 99 * 512).unwrap();
        assert!(found == [&[99; 512][..], &[value; 1536], &[103; 512]].concat()[..], "{block:x?}");
    }
    for block in [&[0x35; 1][..], &[0x91]] {
        good(queue, DISK, block, 0);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_sense_data_for_it() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let mut before = vec![0; 512 * BLOCKS as usize];
    disk.read_exact_at(&mut before, 0).unwrap();
    let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 4);
    let queue = &mut queues[2];
    let out_of_range = [5, 0x21, 0];
    for codes in [READ, WRITE] {
        for (first, count) in [(BLOCKS, 1), (BLOCKS - 1, 2)] {
            for block in on_blocks(codes, first, count) {
                let answer = send(queue, address(DISK), &block, &[1; 1024], 1024);
                assert_eq!((answer.status, answer.sense), (CHECK, out_of_range), "{block:x?}");
                assert_eq!((answer.residual, answer.data.len()), (2048, 0));
            }
        }
    }
    let far = [&[0x88, 0][..], &[0xff; 8], &[0xff; 4], &[0, 0]].concat();
    let invalid_field = [5, 0x24, 0];
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let list = |first: u64, count: u64| {
        [&[0, 22, 0, 16, 0, 0, 0, 0][..], &be(first, 8), &be(count, 4), &[0; 4]].concat()
    };
    for (target, block, out, sense) in [
        (DISK, &far[..], vec![], out_of_range),
        (DISK, &[0xff; 6], vec![], [5, 0x20, 0]),
        (DISK, &[0x43; 10], vec![], [5, 0x20, 0]),
        (CDROM, &[0x2a; 10], vec![1; 2048], [5, 0x20, 0]),
        (DISK, &[0x28, 0xe0, 0, 0, 0, 0, 0, 0, 1, 0], vec![], invalid_field),
        (DISK, &[0x12, 1, 0x77, 0, 64, 0], vec![], invalid_field),
        (DISK, &[0x12, 0, 0x80, 0, 64, 0], vec![], invalid_field),
        (CDROM, &[0x12, 1, 0xb0, 0, 64, 0], vec![], invalid_field),
        (DISK, &[0x1a, 0, 0x2a, 0, 64, 0], vec![], invalid_field),
        (DISK, &[0x1a, 0, 0xff, 0, 64, 0], vec![], [5, 0x39, 0]),
        (DISK, &[0x15, 0, 0, 0, 12, 0], vec![0; 12], [5, 0x26, 0]),
        (DISK, &[0x9e, 0x11, 0, 0], vec![], invalid_field),
        (DISK, &unmap, list(BLOCKS, 1), out_of_range),
        (DISK, &unmap, list(0, 1 << 22), [5, 0x26, 0]),
        (DISK, &unmap, vec![0; 23], [5, 0x1a, 0]),
        (DISK, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], vec![0; 512], invalid_field),
        (READ_ONLY, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], vec![1; 512], [7, 0x27, 0]),
        (READ_ONLY, &unmap, list(0, 1), [7, 0x27, 0]),
        (NO_DISC, &[0; 6], vec![], [2, 0x3a, 1]),
        (NO_DISC, &[0x25; 10], vec![], [2, 0x3a, 1]),
        (CDROM, &[0x43, 0, 5, 0, 0, 0, 0, 0, 64, 0], vec![], invalid_field),
        (CDROM, &[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0], vec![], invalid_field),
    ] {
        let answer = send(queue, address(target), block, &out, 64);
        assert_eq!((answer.status, answer.sense), (CHECK, sense), "{target} {block:x?}");
    }
    let mut after = vec![0; before.len()];
    disk.read_exact_at(&mut after, 0).unwrap();
    assert!(before == after, "nothing was written");
}

#[test]
fn commands_find_their_unit_or_hear_that_there_is_none() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
    let driver = Driver::bind(&machine, place);
    assert_eq!(driver.read::<4>(DEVICE, 0), [1, 0, 0, 0]);
    assert_eq!(driver.read::<2>(DEVICE, 30), [3, 0], "the last target");
    let mut queues = start(&driver, 4);
    let queue = &mut queues[2];
    for none in [[1, 4, 0x40, 0, 0, 0, 0, 0], [0; 8], [2, 0, 0, 0, 0, 0, 0, 0], [0xff; 8]] {
        assert_eq!(send(queue, none, &[0; 6], &[], 0).response, BAD_TARGET, "{none:?}");
    }
    for there in [[1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0x40, 0, 0, 0, 0, 0]] {
        assert_eq!(send(queue, there, &[0; 6], &[], 0).status, 0, "{there:?}");
    }
    let second = [1, 0, 0x40, 1, 0, 0, 0, 0];
    assert_eq!(send(queue, second, &[0x12, 0, 0, 0, 36, 0], &[], 36).data[0], 0x7f);
    assert_eq!(send(queue, second, &[0; 6], &[], 0).sense, [5, 0x25, 0]);
    let list = good(queue, DISK, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], 16);
    assert_eq!(list, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn drives_tell_what_they_are() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 4);
    let queue = &mut queues[2];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut inquire = |target, page: Option<u8>| {
        let block = [0x12, u8::from(page.is_some()), page.unwrap_or(0), 0, 200, 0];
        good(queue, target, &block, 200)
    };
    let standard = inquire(DISK, None);
    assert_eq!(standard[..8], [0, 0, 5, 0x12, 31, 0, 0, 2]);
    assert_eq!(text(&standard[8..]), "BOOTYARDDISK            1   ");
    assert_eq!(inquire(CDROM, None)[..2], [5, 0x80]);
    assert_eq!(inquire(DISK, Some(0)), [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(inquire(CDROM, Some(0)), [5, 0, 0, 3, 0, 0x80, 0x83]);
    assert_eq!(text(&inquire(DISK, Some(0x80))[4..]), "disk-1");
    let name = inquire(READ_ONLY, Some(0x83));
    assert_eq!(name[..8], [0, 0x83, 0, 34, 2, 1, 0, 30]);
    assert_eq!(text(&name[8..]), "BOOTYARDDISK            disk-2");
    let limits = inquire(DISK, Some(0xb0));
    assert_eq!((limits.len(), &limits[20..28]), (64, &[0, 0x20, 0, 0, 0, 0, 0, 32][..]));
    assert_eq!(inquire(DISK, Some(0xb1))[..6], [0, 0xb1, 0, 60, 0, 1]);
    assert_eq!(inquire(DISK, Some(0xb2)), [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
    assert_eq!(inquire(READ_ONLY, Some(0xb2))[4..], [0; 4]);

    let queue = &mut queues[2];
    // Cut off where the initiator says so.
    assert_eq!(good(queue, DISK, &[0x12, 0, 0, 0, 5, 0], 200), [0, 0, 5, 0x12, 31]);
    let last = (BLOCKS as u32 - 1).to_be_bytes();
    assert_eq!(good(queue, DISK, &[0x25], 8), [&last[..], &[0, 0, 2, 0]].concat());
    assert_eq!(good(queue, CDROM, &[0x25], 8), [0, 0, 1, 0xff, 0, 0, 8, 0]);
    let mut long = vec![0x9e, 0x10];
    long.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]);
    let capacity = good(queue, DISK, &long, 32);
    assert_eq!(capacity[..16], [0, 0, 0, 0, 0, 0, 0xf, 0xff, 0, 0, 2, 0, 0, 0, 0xc0, 0]);
    let caching = good(queue, DISK, &[0x1a, 0, 8, 0, 64, 0], 64);
    assert_eq!(caching[..7], [23, 0, 0x10, 0, 8, 18, 4]);
    assert_eq!(good(queue, READ_ONLY, &[0x1a, 0, 0x3f, 0, 64, 0], 64)[2], 0x90);
    let ten = good(queue, CDROM, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 64, 0], 64);
    assert_eq!(ten[..10], [0, 26, 0, 0, 0, 0, 0, 0, 0x2a, 18]);
}

#[test]
fn blocks_are_given_back_zeroed_and_filled() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 1);
    let queue = &mut queues[2];
    let unmap = [
        &[0, 38, 0, 32, 0, 0, 0, 0][..],
        &be(8, 8),
        &be(4, 4),
        &[0; 4],
        &be(20, 8),
        &be(1, 4),
        &[0; 4],
    ]
    .concat();
    let same_16 =
        |flags, first, count| [&[0x93, flags][..], &be(first, 8), &be(count, 4), &[0, 0]].concat();
    for (block, out) in [
        (vec![0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], unmap),
        (same_16(8, 30, 2), vec![0; 512]),
        (same_16(1, 33, 1), vec![]),
        (vec![0x41, 0, 0, 0, 0, 40, 0, 0, 3, 0], vec![0xab; 512]),
        (same_16(0, 50, 200), vec![0xcd; 512]),
    ] {
        let answer = send(queue, address(DISK), &block, &out, 0);
        assert_eq!((answer.response, answer.status), (OK, 0), "{block:x?} {answer:?}");
    }
    let mut found = vec![0; 512 * 256];
    disk.read_exact_at(&mut found, 0).unwrap();
    for (block, found) in found.chunks(512).enumerate() {
        let expected = match block {
            8..12 | 20 | 30 | 31 | 33 => 0,
            40..43 => 0xab,
            50..250 => 0xcd,
            _ => block as u8,
        };
        assert!(found == [expected; 512], "block {block}");
    }
}

/// The events that a drive has, as its initiator polls for them: code and status.
fn poll(queue: &mut GuestQueue<'_, '_>, target: u8) -> [u8; 2] {
    let events = good(queue, target, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], 8);
    assert_eq!(events[..4], [0, 6, 4, 0x10]);
    [events[4], events[5]]
}

#[test]
fn a_disc_is_taken_and_put_in_from_both_sides() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let drives = drives(&disk, &disc);
    let (machine, _function, place) = Machine::with(Scsi::new(drives.clone()).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 4);
    let queue = &mut queues[2];
    let drive = &drives[usize::from(CDROM)];
    let (closed, open) = (2, 1);
    assert_eq!(poll(queue, CDROM), [0, closed]);

    // The guest holds it.
    good(queue, CDROM, &[0x1e, 0, 0, 0, 1, 0], 0);
    let eject = [0x1b, 0, 0, 0, 2, 0];
    assert_eq!(send(queue, address(CDROM), &eject, &[], 0).sense, [5, 0x53, 2]);
    assert_eq!(drive.eject(false).err(), Some(EjectError::Locked));
    assert_eq!(drive.insert(raw(&disc)), Err(EjectError::Locked));
    assert_eq!((poll(queue, CDROM), poll(queue, CDROM)), ([1, closed], [0, closed]));
    good(queue, CDROM, &[0x1e, 0, 0, 0, 0, 0], 0);

    // The guest ejects and loads it again.
    good(queue, CDROM, &eject, 0);
    assert_eq!((drive.tray(), poll(queue, CDROM)), (Tray::Open, [3, open]));
    assert_eq!(send(queue, address(CDROM), &[0; 6], &[], 0).sense, [2, 0x3a, 2]);
    good(queue, CDROM, &[0x1b, 0, 0, 0, 3, 0], 0);
    assert_eq!((drive.tray(), poll(queue, CDROM)), (Tray::Loaded, [2, closed]));
    good(queue, CDROM, &[0; 6], 0);

    // Its owner takes it, and puts another one in.
    assert!(drive.eject(false).unwrap().is_some());
    assert_eq!((drive.tray(), poll(queue, CDROM)), (Tray::Open, [3, open]));
    drive.insert(raw(&file(4096))).unwrap();
    assert_eq!(poll(queue, CDROM), [2, closed]);
    assert_eq!(send(queue, address(CDROM), &[0; 6], &[], 0).sense, [6, 0x28, 0]);
    assert_eq!(good(queue, CDROM, &[0x25], 8), [0, 0, 0, 1, 0, 0, 8, 0]);

    // A disk has no tray.
    good(queue, DISK, &eject, 0);
    assert_eq!(drives[0].eject(true).err(), Some(EjectError::NoTray));
    good(queue, DISK, &[0; 6], 0);
    drives[usize::from(NO_DISC)].insert(raw(&disc)).unwrap();
    assert_eq!(drives[usize::from(NO_DISC)].tray(), Tray::Loaded);
}

#[test]
fn a_disc_has_one_track_and_a_profile_by_its_size() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 4);
    let queue = &mut queues[2];
    let toc = |time: u8, format: u8, track: u8| [0x43, time << 1, format, 0, 0, 0, track, 0, 64, 0];
    let blocks = [0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 2, 0];
    let time = [0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xaa, 0, 0, 0, 8, 62];
    for (block, expected) in [
        (toc(0, 0, 0), [&[0, 18, 1, 1][..], &blocks].concat()),
        (toc(1, 0, 1), [&[0, 18, 1, 1][..], &time].concat()),
        (toc(0, 0, 0xaa), [&[0, 10, 1, 1][..], &blocks[8..]].concat()),
        (toc(0, 1, 0), [&[0, 10, 1, 1][..], &blocks[..8]].concat()),
    ] {
        assert_eq!(good(queue, CDROM, &block, 64), expected, "{block:x?}");
    }
    let configuration = [0x46, 0, 0, 0, 0, 0, 0, 0, 128, 0];
    for (target, profile) in [(CDROM, 8), (NO_DISC, 0)] {
        let found = good(queue, target, &configuration, 128);
        assert_eq!(u32::from_be_bytes(found[..4].try_into().unwrap()) as usize, found.len() - 4);
        assert_eq!(found[6..8], [0, profile]);
    }
    assert_eq!(good(queue, CDROM, &[0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0], 34)[..4], [0, 32, 14, 1]);
    assert_eq!(good(queue, CDROM, &[0x4a, 1, 0, 0, 0, 0, 0, 0, 8, 0], 8), [0, 2, 0x80, 0x10]);
}

/// Sends `parts` to the control virtqueue. Gives the answer of `len` bytes.
fn manage(queue: &mut GuestQueue<'_, '_>, parts: &[&[u8]], len: usize) -> Vec<u8> {
    let request = parts.concat();
    queue.memory().write_slice(&request, GuestAddress(HEADER)).unwrap();
    let buffers = [(HEADER, request.len() as u32, false), (RESPONSE, len as u32, true)];
    let used = queue.transact(&buffers) as usize;
    let mut answer = vec![0; used];
    queue.memory().read_slice(&mut answer, GuestAddress(RESPONSE)).unwrap();
    answer
}

#[test]
fn tasks_are_managed_and_events_told_to_who_subscribes() {
    let (disk, disc) = (file(BLOCKS * 512), file(1 << 20));
    let drives = drives(&disk, &disc);
    let (machine, _function, place) = Machine::with(Scsi::new(drives.clone()).unwrap());
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 4);
    let task =
        |function: u32, to: [u8; 8]| [&[0; 4][..], &function.to_le_bytes(), &to, &[9; 8]].concat();
    for (function, to, response) in [
        (0, address(DISK), 0),
        (5, address(DISK), 0),
        (6, address(DISK), 0),
        (2, address(DISK), 11),
        (99, address(DISK), 11),
        (0, address(200), 3),
        (0, [1, 0, 0x40, 7, 0, 0, 0, 0], 12),
    ] {
        assert_eq!(manage(&mut queues[0], &[&task(function, to)], 1), [response], "{function}");
    }
    // The unit was reset.
    assert_eq!(send(&mut queues[2], address(DISK), &[0; 6], &[], 0).sense, [6, 0x29, 0]);

    let subscribe =
        |kind: u8| [&[kind, 0, 0, 0][..], &address(CDROM), &u32::MAX.to_le_bytes()].concat();
    assert_eq!(manage(&mut queues[0], &[&subscribe(1)], 5), [16, 0, 0, 0, 0]);
    assert_eq!(manage(&mut queues[0], &[&subscribe(2)], 5), [16, 0, 0, 0, 0]);
    drives[usize::from(CDROM)].eject(false).unwrap();
    // Whoever has no buffer for it hears of it with the next one. The device looked for one before it
    // answers the second question, whatever it woke up for first.
    assert_eq!([(); 2].map(|()| poll(&mut queues[2], CDROM)), [[3, 1], [0, 1]]);
    queues[1].offer(0, &[(DATA, 16, true)]);
    drives[usize::from(CDROM)].insert(raw(&disc)).unwrap();
    assert_eq!(machine.interrupt().data, 0x4002);
    assert_eq!(queues[1].take_used(), Some((0, 16)));
    let mut event = [0; 16];
    machine.memory.read_slice(&mut event, GuestAddress(DATA)).unwrap();
    assert_eq!(event, [2, 0, 0, 0x80, 1, CDROM, 0x40, 0, 0, 0, 0, 0, 16, 2, 0, 0]);
}

/// A disk whose host fails.
struct Broken(std::io::ErrorKind);

impl Disk for Broken {
    fn virtual_size(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, _: &mut [u8], at: u64) -> Result<(), bootyard_image::Error> {
        Err(bootyard_image::Error::read(self.0.into(), at))
    }

    fn extent_at(&self, at: u64) -> Result<Extent, bootyard_image::Error> {
        Ok(Extent { len: (1 << 20) - at, zero: false })
    }

    fn writer(&self) -> Option<&dyn WriteDisk> {
        Some(self)
    }
}

impl WriteDisk for Broken {
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), bootyard_image::Error> {
        Err(bootyard_image::Error::write(self.0.into()))
    }

    fn zero_at(&self, _: u64, _: u64, _: bool) -> Result<(), bootyard_image::Error> {
        Err(bootyard_image::Error::write(self.0.into()))
    }

    fn flush(&self) -> Result<(), bootyard_image::Error> {
        Err(bootyard_image::Error::write(self.0.into()))
    }
}

#[test]
fn a_failing_host_is_told_to_both_sides() {
    use std::io::ErrorKind::{Other, StorageFull};
    let (sender, errors) = std::sync::mpsc::channel();
    let drive = |kind| {
        let sender = sender.clone();
        let drive = Drive::disk(Arc::new(Broken(kind)), false, "broken").unwrap();
        Arc::new(drive.on_error(move |error| sender.send(error.to_string()).unwrap()))
    };
    let device = Scsi::new(vec![drive(StorageFull), drive(Other)]).unwrap();
    let (machine, _function, place) = Machine::with(device);
    let driver = Driver::bind(&machine, place);
    let mut queues = start(&driver, 2);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for (target, block, sense) in [
        (0, &write[..], [7, 0x27, 7]),
        (1, &write, [3, 0x0c, 0]),
        (1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], [3, 0x11, 0]),
        (1, &[0x35], [3, 0x0c, 0]),
    ] {
        let answer = send(&mut queues[2], address(target), block, &[1; 512], 512);
        assert_eq!((answer.status, answer.sense), (CHECK, sense), "{block:x?}");
    }
    assert_eq!(errors.try_iter().count(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_command_block_is_answered(
        target in 0_u8..4,
        code in prop_oneof![
            prop::sample::select(vec![
                0x00_u8, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2f, 0x35,
                0x41, 0x42, 0x43, 0x46, 0x4a, 0x51, 0x55, 0x5a, 0x88, 0x8a, 0x8f, 0x91, 0x93, 0x9e,
                0xa0, 0xa8, 0xaa, 0xbb, 0xbd,
            ]),
            any::<u8>(),
        ],
        rest in prop::collection::vec(prop_oneof![Just(0), Just(0xff), 0_u8..20, any::<u8>()], 31),
        out in prop::collection::vec(any::<u8>(), 0..3000),
        room in 0_usize..3000,
    ) {
        let (disk, disc) = (file(64 * 512), file(64 * 2048));
        let (machine, _function, place) = Machine::with(Scsi::new(drives(&disk, &disc)).unwrap());
        let driver = Driver::bind(&machine, place);
        let mut queues = start(&driver, 4);
        let block = [&[code][..], &rest].concat();
        let answer = send(&mut queues[2], address(target), &block, &out, room);
        prop_assert!(matches!(answer.response, 0 | 1), "{answer:?}");
        // Whatever it was, the disk is still there.
        prop_assert_eq!(good(&mut queues[2], READ_ONLY, &[0x25], 8), [0, 0, 0, 63, 0, 0, 2, 0]);
    }
}
