//! The block device over a real file, request by request.

mod model;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, Error, Extent, ReadAt, WriteDisk};
use vm_memory::{Bytes, GuestAddress};

use super::guest::{DEVICE, Driver, EVENT_IDX, GuestQueue, Machine};
use super::{BUFFER, QUEUE};
use crate::disks::BlockSize;
use crate::statistics::BlockCounters;
use crate::virtio::Block;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const ALL: u64 = !EVENT_IDX;

/// Sectors of the test disk.
const SECTORS: u64 = 4096;

const HEADER: u64 = BUFFER;
const STATUS: u64 = BUFFER + 0x100;
const DATA: u64 = BUFFER + 0x1000;

/// A disk whose sector `n` is filled with the low byte of `n`, and a second handle of its file.
fn disk() -> (Arc<dyn Disk>, FileAt) {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8; 512]).collect();
    file.write_all_at(&bytes, 0).unwrap();
    let disk = RawDisk::new(FileAt::new(file.try_clone().unwrap()).unwrap());
    (Arc::new(disk), FileAt::new(file).unwrap())
}

fn stored(file: &FileAt, sector: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, sector * 512).unwrap();
    bytes
}

struct Answer {
    status: u8,
    data: Vec<u8>,
    used: u32,
}

/// Sends one request with `out` as device-readable data and room for `room` bytes.
fn send(queue: &mut GuestQueue<'_, '_>, kind: u32, sector: u64, out: &[u8], room: u32) -> Answer {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    let memory = queue.memory();
    memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
    memory.write_slice(out, GuestAddress(DATA)).unwrap();
    let mut buffers = vec![(HEADER, 16, false)];
    // Data in two pieces, so that it never is one slice of memory.
    let split = |len: u32, writable| {
        [(DATA, len / 2, writable), (DATA + u64::from(len / 2), len - len / 2, writable)]
    };
    if !out.is_empty() {
        buffers.extend(split(u32::try_from(out.len()).unwrap(), false));
    }
    if room > 0 {
        buffers.extend(split(room, true));
    }
    buffers.push((STATUS, 1, true));
    let used = queue.transact(&buffers);
    let mut data = vec![0; room as usize];
    queue.memory().read_slice(&mut data, GuestAddress(DATA)).unwrap();
    Answer { status: queue.memory().read_obj(GuestAddress(STATUS)).unwrap(), data, used }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn sectors_are_read_and_written_through_to_the_file() {
    let (disk, file) = disk();
    let (machine, _function, address) = Machine::with(Block::new(disk, false, "vda"));
    let driver = Driver::bind(&machine, address);
    assert_eq!(driver.read::<8>(DEVICE, 0), SECTORS.to_le_bytes());
    assert_eq!(driver.read::<4>(DEVICE, 20), 512_u32.to_le_bytes());
    let mut queue = driver.start(ALL | EVENT_IDX, QUEUE);

    let answer = send(&mut queue, IN, 7, &[], 1024);
    assert_eq!((answer.status, answer.used), (OK, 1025));
    assert_eq!(answer.data, [[7; 512], [8; 512]].concat());

    let answer = send(&mut queue, OUT, 100, &[0xab; 1536], 0);
    assert_eq!((answer.status, answer.used), (OK, 1));
    assert_eq!(stored(&file, 99, 2560), [&[99; 512][..], &[0xab; 1536], &[103; 512]].concat());
    assert_eq!(send(&mut queue, FLUSH, 0, &[], 0).status, OK);
}

#[test]
fn a_request_larger_than_the_buffer_is_whole() {
    let (disk, file) = disk();
    let (machine, _function, address) = Machine::with(Block::new(disk, false, "vda"));
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(ALL, QUEUE);
    let len = 700 * 1024;
    let answer = send(&mut queue, IN, 3, &[], len);
    assert_eq!((answer.status, answer.used), (OK, len + 1));
    assert!(answer.data == stored(&file, 3, len as usize));
    let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
    assert_eq!(send(&mut queue, OUT, 11, &bytes, 0).status, OK);
    assert!(bytes == stored(&file, 11, len as usize));
}

#[test]
fn what_is_not_on_the_disk_is_an_i_o_error() {
    let (disk, file) = disk();
    let before = stored(&file, 0, 512 * SECTORS as usize);
    let (machine, _function, address) = Machine::with(Block::new(disk, false, "vda"));
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(ALL, QUEUE);
    for (kind, sector, out, room, status) in [
        (IN, SECTORS, &[][..], 512, IOERR),
        (IN, SECTORS - 1, &[], 1024, IOERR),
        (IN, u64::MAX, &[], 512, IOERR),
        (IN, u64::MAX / 512 + 1, &[], 512, IOERR),
        (IN, 0, &[], 511, IOERR),
        (OUT, SECTORS, &[1; 512], 0, IOERR),
        (OUT, u64::MAX, &[1; 1024], 0, IOERR),
        (OUT, 0, &[1; 513], 0, IOERR),
        (DISCARD, 0, &range(SECTORS, 1, 0), 0, IOERR),
        (DISCARD, 0, &range(u64::MAX, 8, 0), 0, IOERR),
        (DISCARD, 0, &range(0, 1, 0)[..15], 0, IOERR),
        (DISCARD, 0, &range(0, 1, 1), 0, UNSUPP),
        (WRITE_ZEROES, 0, &range(0, u32::MAX, 0), 0, IOERR),
        (WRITE_ZEROES, 0, &range(0, 1, 2), 0, UNSUPP),
        (WRITE_ZEROES, 0, &[range(0, 1, 0), range(0, 1, 4)].concat(), 0, UNSUPP),
        (2, 0, &[], 512, UNSUPP),
        (0x8000_0000, 0, &[], 0, UNSUPP),
    ] {
        let answer = send(&mut queue, kind, sector, out, room);
        assert_eq!(answer.status, status, "type {kind} sector {sector} {out:?} room {room}");
        assert_eq!(answer.used, u32::from(room == 0), "type {kind} sector {sector}");
    }
    assert!(before == stored(&file, 0, 512 * SECTORS as usize), "nothing was written");
    assert_eq!(send(&mut queue, IN, SECTORS - 1, &[], 512).status, OK);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    let (disk, file) = disk();
    let (machine, _function, address) = Machine::with(Block::new(disk, false, "vda"));
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(ALL, QUEUE);
    for (kind, ranges) in [
        (DISCARD, range(8, 4, 0)),
        (WRITE_ZEROES, range(20, 1, 0)),
        (WRITE_ZEROES, range(30, 2, 1)),
        (DISCARD, [range(40, 1, 0), range(42, 1, 0)].concat()),
    ] {
        assert_eq!(send(&mut queue, kind, 0, &ranges, 0).status, OK);
    }
    for sector in 0..50 {
        let zero = matches!(sector, 0 | 8..12 | 20 | 30..32 | 40 | 42);
        let expected = if zero { 0 } else { sector as u8 };
        assert_eq!(stored(&file, sector, 512), [expected; 512], "sector {sector}");
    }
}

#[test]
fn the_serial_number_is_cut_or_filled_to_20_bytes() {
    for (serial, expected) in [
        ("root-disk", "root-disk\0\0\0\0\0\0\0\0\0\0\0"),
        ("a-serial-number-that-is-too-long", "a-serial-number-that"),
    ] {
        let (machine, _function, address) = Machine::with(Block::new(disk().0, true, serial));
        let driver = Driver::bind(&machine, address);
        let mut queue = driver.start(ALL, QUEUE);
        let answer = send(&mut queue, GET_ID, 0, &[], 20);
        assert_eq!((answer.status, answer.used), (OK, 21));
        assert_eq!(answer.data, expected.as_bytes());
    }
}

#[test]
fn a_read_only_disk_refuses_every_way_to_write() {
    let (disk, file) = disk();
    let before = stored(&file, 0, 512 * SECTORS as usize);
    let (machine, _function, address) = Machine::with(Block::new(disk, true, "vda"));
    let driver = Driver::bind(&machine, address);
    assert_ne!(driver.offered() & F_RO, 0);
    let mut queue = driver.start(ALL, QUEUE);
    assert_eq!(send(&mut queue, OUT, 0, &[1; 512], 0).status, IOERR);
    assert_eq!(send(&mut queue, DISCARD, 0, &range(1, 1, 0), 0).status, UNSUPP);
    assert_eq!(send(&mut queue, WRITE_ZEROES, 0, &range(1, 1, 0), 0).status, UNSUPP);
    assert_eq!(send(&mut queue, FLUSH, 0, &[], 0).status, OK);
    assert_eq!(send(&mut queue, IN, 5, &[], 512).data, [5; 512]);
    assert!(before == stored(&file, 0, 512 * SECTORS as usize));
}

/// A disk of 700 bytes, all 7, that counts flushes and fails where it is told to.
#[derive(Default)]
struct Odd {
    flushes: AtomicUsize,
    fails: bool,
}

impl Disk for Odd {
    fn virtual_size(&self) -> u64 {
        700
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        assert!(offset + buf.len() as u64 <= 700);
        buf.fill(7);
        if self.fails { Err(broken()) } else { Ok(()) }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        Ok(Extent { len: 700 - offset, zero: false })
    }

    fn writer(&self) -> Option<&dyn WriteDisk> {
        Some(self)
    }
}

impl WriteDisk for Odd {
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), Error> {
        if self.fails { Err(broken()) } else { Ok(()) }
    }

    fn zero_at(&self, _: u64, _: u64, _: bool) -> Result<(), Error> {
        if self.fails { Err(broken()) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Error> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        if self.fails { Err(broken()) } else { Ok(()) }
    }
}

fn broken() -> Error {
    Error::write(std::io::ErrorKind::StorageFull.into())
}

#[test]
fn a_size_in_odd_bytes_is_rounded_so_that_nothing_is_lost() {
    for (read_only, sectors) in [(true, 2_u64), (false, 1)] {
        let block = Block::new(Arc::new(Odd::default()), read_only, "odd");
        let (machine, _function, address) = Machine::with(block);
        let driver = Driver::bind(&machine, address);
        assert_eq!(driver.read::<8>(DEVICE, 0), sectors.to_le_bytes());
        let mut queue = driver.start(ALL, QUEUE);
        let answer = send(&mut queue, IN, 0, &[], 1024);
        if read_only {
            assert_eq!(answer.data, [&[7; 700][..], &[0; 324]].concat());
        } else {
            assert_eq!(answer.status, IOERR);
        }
    }
}

#[test]
fn a_failing_disk_fails_requests_and_nothing_else() {
    let disk = Arc::new(Odd { fails: true, ..Odd::default() });
    let (sender, errors) = std::sync::mpsc::channel();
    let block = Block::new(disk, false, "odd");
    let block = block.on_error(move |error| sender.send(error.to_string()).unwrap());
    let (machine, _function, address) = Machine::with(block);
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(ALL, QUEUE);
    assert_eq!(send(&mut queue, IN, 0, &[], 512).status, IOERR);
    assert_eq!(send(&mut queue, OUT, 0, &[1; 512], 0).status, IOERR);
    assert_eq!(send(&mut queue, FLUSH, 0, &[], 0).status, IOERR);
    assert_eq!(send(&mut queue, DISCARD, 0, &range(0, 1, 0), 0).status, IOERR);
    assert_eq!(send(&mut queue, GET_ID, 0, &[], 20).status, OK);
    assert_eq!(errors.try_iter().collect::<Vec<_>>(), ["storing the disk failed"; 4]);
}

#[test]
fn a_reset_ends_requests_that_never_run_out() {
    let (machine, _function, address) = Machine::with(Block::new(disk().0, false, "vda"));
    let driver = Driver::bind(&machine, address);
    let mut queue = driver.start(ALL, QUEUE);
    queue.offer(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let reset = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !reset.load(Ordering::Acquire) {
                queue.make_available(0);
                queue.ring();
            }
        });
        machine.interrupt();
        driver.reset();
        reset.store(true, Ordering::Release);
    });
}

#[test]
fn writes_are_flushed_at_once_only_for_drivers_that_never_flush() {
    for (features, flushes) in [(ALL, 0), (ALL & !F_FLUSH, 2)] {
        let disk = Arc::new(Odd::default());
        let (machine, _function, address) = Machine::with(Block::new(disk.clone(), false, "odd"));
        let driver = Driver::bind(&machine, address);
        let mut queue = driver.start(features, QUEUE);
        assert_eq!(send(&mut queue, OUT, 0, &[1; 512], 0).status, OK);
        assert_eq!(send(&mut queue, WRITE_ZEROES, 0, &range(0, 1, 0), 0).status, OK);
        assert_eq!(disk.flushes.load(Ordering::Relaxed), flushes);
    }
}

#[test]
fn a_request_without_header_or_status_stops_the_device() {
    let (machine, _function, address) = Machine::with(Block::new(disk().0, false, "vda"));
    let driver = Driver::bind(&machine, address);
    for buffers in [&[(HEADER, 16, false)][..], &[(HEADER, 15, false), (STATUS, 1, true)]] {
        let mut queue = driver.start(ALL, QUEUE);
        queue.offer(0, buffers);
        queue.ring();
        driver.wait_needs_reset();
        driver.reset();
        assert!(machine.take_fault().is_some());
        machine.pending_interrupts();
    }
    assert_eq!(send(&mut driver.start(ALL, QUEUE), IN, 5, &[], 512).data, [5; 512]);
}

#[test]
fn every_virtqueue_is_served_and_counted() {
    let (disk, file) = disk();
    let counters = Arc::new(BlockCounters::default());
    let block = Block::new(disk, false, "vda").queues(3).counters(Arc::clone(&counters));
    let (machine, _function, address) = Machine::with(block);
    let driver = Driver::bind(&machine, address);
    assert_ne!(driver.offered() & F_MQ, 0);
    assert_eq!(driver.read::<2>(DEVICE, 34), [3, 0]);
    for round in 0..3 {
        let mut queues = driver.start_queues(ALL, QUEUE, 3);
        for (index, queue) in (0_u8..).zip(&mut queues) {
            let value = 16 * round + index;
            assert_eq!(send(queue, OUT, u64::from(value), &[value; 512], 0).status, OK);
        }
        for (index, queue) in (0_u8..3).rev().zip(&mut queues) {
            let value = 16 * round + index;
            assert_eq!(send(queue, IN, u64::from(value), &[], 512).data, [value; 512]);
            assert_eq!(stored(&file, u64::from(value), 512), [value; 512]);
        }
    }
    let counted = counters.read();
    assert_eq!((counted.read_requests, counted.read_bytes), (9, 9 * 512));
    assert_eq!((counted.write_requests, counted.written_bytes, counted.errors), (9, 9 * 512, 0));
}

#[test]
fn a_broken_virtqueue_stops_all_of_them_until_a_reset() {
    let (machine, _function, address) = Machine::with(Block::new(disk().0, false, "a").queues(2));
    let driver = Driver::bind(&machine, address);
    for broken in [0, 1] {
        let mut queues = driver.start_queues(ALL, QUEUE, 2);
        queues[broken].offer(0, &[(HEADER, 16, false)]);
        queues[broken].ring();
        driver.wait_needs_reset();
        driver.reset();
        assert!(matches!(machine.take_fault(), Some(crate::virtio::Error::Malformed(_))));
        machine.pending_interrupts();
    }
    assert_eq!(send(&mut driver.start(ALL, QUEUE), IN, 5, &[], 512).data, [5; 512]);
}

#[test]
fn sectors_have_the_size_that_they_are_told_to() {
    let size = BlockSize { logical: 4096, physical: 16384 };
    let block = Block::new(disk().0, false, "a").block_size(size);
    let (machine, _function, address) = Machine::with(block);
    let driver = Driver::bind(&machine, address);
    assert_eq!(driver.read::<4>(DEVICE, 20), 4096_u32.to_le_bytes());
    assert_eq!(driver.read::<1>(DEVICE, 24), [2]);
    assert_ne!(driver.offered() & F_TOPOLOGY, 0);
    let mut queue = driver.start(ALL, QUEUE);
    for (sector, len, status) in [(8, 4096, OK), (7, 4096, IOERR), (8, 512, IOERR)] {
        assert_eq!(send(&mut queue, IN, sector, &[], len).status, status, "{sector} {len}");
    }
}

#[test]
fn a_write_through_disk_has_no_cache_to_flush() {
    let disk = Arc::new(Odd::default());
    let block = Block::new(disk.clone(), false, "odd").write_through(true);
    let (machine, _function, address) = Machine::with(block);
    let driver = Driver::bind(&machine, address);
    assert_eq!(driver.offered() & F_FLUSH, 0);
    let mut queue = driver.start(ALL, QUEUE);
    assert_eq!(send(&mut queue, OUT, 0, &[1; 512], 0).status, OK);
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
}

/// A disk whose blocks come from a pipe, and each write to which makes the driver ask for another one, as
/// busy processors do, until the read has ended.
struct Busy {
    pipe: std::io::PipeReader,
    memory: std::sync::OnceLock<vm_memory::GuestMemoryMmap>,
    writes: AtomicUsize,
}

impl Busy {
    const WRITE: u16 = 4;
    const ENOUGH: usize = 5000;
    const AVAIL: u64 = QUEUE + 0x1000;
}

impl Disk for Busy {
    fn virtual_size(&self) -> u64 {
        SECTORS * 512
    }

    fn read_at(&self, buf: &mut [u8], _: u64) -> Result<(), Error> {
        buf.fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        Ok(Extent { len: self.virtual_size() - offset, zero: false })
    }

    fn locate(&self, _: u64, len: u64) -> Option<bootyard_image::Located<'_>> {
        let file = std::os::fd::AsFd::as_fd(&self.pipe);
        let at = bootyard_image::Location::File { file, offset: 0, pin: None };
        Some(bootyard_image::Located { len, at })
    }

    fn writer(&self) -> Option<&dyn WriteDisk> {
        Some(self)
    }
}

impl WriteDisk for Busy {
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), Error> {
        let Some(memory) = self.memory.get() else { return Ok(()) };
        let ended = memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap() != 0xee;
        if !ended && self.writes.fetch_add(1, Ordering::SeqCst) < Self::ENOUGH {
            let next: u16 = memory.read_obj(GuestAddress(Self::AVAIL + 2)).unwrap();
            let slot = Self::AVAIL + 4 + 2 * u64::from(next % 16);
            memory.write_obj(Self::WRITE, GuestAddress(slot)).unwrap();
            memory.write_obj(next.wrapping_add(1), GuestAddress(Self::AVAIL + 2)).unwrap();
        }
        Ok(())
    }

    fn zero_at(&self, _: u64, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_read_ends_however_many_writes_are_behind_it() {
    use std::io::Write;
    let (pipe, mut end) = std::io::pipe().unwrap();
    end.write_all(&[7; 512]).unwrap();
    let disk =
        Arc::new(Busy { pipe, memory: std::sync::OnceLock::new(), writes: AtomicUsize::new(0) });
    let (machine, _function, place) =
        Machine::with(Block::new(Arc::clone(&disk) as Arc<dyn Disk>, false, "busy"));
    let driver = Driver::bind(&machine, place);
    let mut queue = driver.start(ALL, QUEUE);
    disk.memory.set(machine.memory.clone()).unwrap();
    let write_header = HEADER + 0x20;
    machine.memory.write_slice(&[0; 16], GuestAddress(HEADER)).unwrap();
    let header = [&OUT.to_le_bytes()[..], &[0; 12]].concat();
    machine.memory.write_slice(&header, GuestAddress(write_header)).unwrap();
    machine.memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
    queue.offer(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let write = [(write_header, 16, false), (DATA + 0x1000, 512, false), (STATUS + 1, 1, true)];
    queue.offer(Busy::WRITE, &write);
    queue.make_available(Busy::WRITE);
    queue.ring();
    while machine.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap() == 0xee {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let writes = disk.writes.load(Ordering::SeqCst);
    assert!(writes < Busy::ENOUGH, "{writes}");
}
