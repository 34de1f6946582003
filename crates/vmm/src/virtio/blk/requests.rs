//! The requests of one virtqueue (§5.2.6). Data goes straight between the guest's memory and the file
//! wherever the disk can tell its place there; else through a buffer.
//!
//! ```text
//!  read ─► where is it? ─┬─ file: in the host's memory? ─┬─ yes: copied by one system call ─► done
//!                        │                               └─ no: io_uring; the next request meanwhile
//!                        ├─ zeros ─► done
//!                        └─ only the disk knows ─► buffer ─► done
//! ```
//!
//! Everything else is done before the next request is looked at: writes go to the host's memory, and a
//! flush covers all that was done before it. One interrupt tells of all that is done when there is
//! nothing more to do.

use std::io::{self, Read, Write};
use std::time::Duration;

use bootyard_image::{Located, Location, WriteDisk};
use virtio_bindings::virtio_blk as spec;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::{F_DISCARD, F_FLUSH, F_WRITE_ZEROES, RANGE_SECTORS_MAX, RANGES_MAX};
use super::{SECTOR, SERIAL_SIZE, Shared};
use crate::virtio::disk_io::BUFFER_SIZE;
use crate::virtio::segments::Patience;
use crate::virtio::uring::{FileRead, Reads};
use crate::virtio::{Error, Request, Segments, Session, Virtqueue, Wake};

/// Bytes of a request's header: type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of one range to discard or zero: sector, count, flags.
const RANGE_SIZE: usize = 16;

/// Most requests that are done before the driver hears of it.
const BATCH_MAX: usize = 32;

/// Under which the session tells that reads have ended.
const READS_TOKEN: u32 = 0;

/// Why a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The disk or the request's numbers.
    Io,
    /// A type or flag that is not offered.
    Unsupported,
}

/// A part of the disk that a discard or write-zeroes request names.
struct Range {
    offset: u64,
    len: u64,
    unmap: bool,
}

/// A request whose data is on its way.
struct Pending<'m> {
    head: u16,
    status: Segments<'m>,
    /// Bytes of data.
    len: u32,
    /// Reads that have not ended, and one more while it is being started.
    reads: usize,
    failed: bool,
}

/// One virtqueue at work.
struct Worker<'d, 'm> {
    shared: &'d Shared,
    features: u64,
    reads: Option<Reads<'d, 'm>>,
    /// The file system can tell what it has in memory.
    hurries: bool,
    pending: Vec<Option<Pending<'m>>>,
    /// What is done, and not yet told: head and length.
    done: Vec<(u16, u32)>,
    buffer: Vec<u8>,
}

/// Serves the virtqueue of `session`.
pub(super) fn serve(shared: &Shared, session: &mut Session) -> Result<(), Error> {
    let memory = session.memory();
    let mut worker = Worker::new(shared, session.features());
    if let Some(reads) = &worker.reads {
        session.watch(reads, READS_TOKEN, EventSet::IN)?;
    }
    let mut wakes = Vec::new();
    while session.wait(None, &mut wakes)? {
        for wake in &wakes {
            match *wake {
                Wake::Queue(index) => worker.drain(session, index, &memory)?,
                Wake::Ready { .. } => worker.reap(false)?,
            }
        }
        if let Some(queue) = session.any_queue() {
            worker.tell(queue, &memory)?;
        }
    }
    Ok(())
}

impl<'d, 'm> Worker<'d, 'm> {
    fn new(shared: &'d Shared, features: u64) -> Self {
        Self {
            shared,
            features,
            reads: shared.io_uring.then(|| Reads::new().ok()).flatten(),
            hurries: true,
            pending: Vec::new(),
            done: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Answers what the virtqueue holds. Ends early when the session is stopped, because a driver can
    /// refill the virtqueue for ever.
    fn drain(
        &mut self,
        session: &mut Session,
        index: u16,
        memory: &'m GuestMemoryMmap,
    ) -> Result<(), Error> {
        let mut begun = 0;
        loop {
            let Some(queue) = session.queue(index) else { return Ok(()) };
            queue.disable_notification(memory)?;
            while !session.is_stopped()
                && let Some(queue) = session.queue(index)
                && let Some(request) = queue.next(memory)?
            {
                self.begin(request)?;
                begun += 1;
                if begun % BATCH_MAX == 0 {
                    // Reads go on, and end, however long a driver keeps this thread busy.
                    self.reap(false)?;
                }
                if self.done.len() >= BATCH_MAX {
                    self.tell(queue, memory)?;
                }
            }
            if let Some(reads) = &mut self.reads {
                reads.submit()?;
            }
            let Some(queue) = session.queue(index) else { return Ok(()) };
            self.tell(queue, memory)?;
            if !queue.enable_notification(memory)? || session.is_stopped() {
                return Ok(());
            }
        }
    }

    /// Gives back what is done.
    fn tell(&mut self, queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<(), Error> {
        if self.done.is_empty() {
            return Ok(());
        }
        for (head, len) in self.done.drain(..) {
            queue.put_used(memory, head, len)?;
        }
        queue.signal(memory)
    }

    /// Does a request, or starts it.
    fn begin(&mut self, mut request: Request<'m>) -> Result<(), Error> {
        let no_status = Error::Malformed("no room for a block request's status");
        let status = request.split_tail(1).ok_or(no_status)?;
        let mut header = [0; HEADER_SIZE];
        let cut = |_| Error::Malformed("a block request shorter than its header");
        request.read_exact(&mut header).map_err(cut)?;
        let sector = u64_at(&header, 8);
        if u32_at(&header, 0) == spec::VIRTIO_BLK_T_IN {
            self.begin_read(sector, &mut request, status);
            return Ok(());
        }
        let kind = u32_at(&header, 0);
        let counters = &self.shared.counters;
        match kind {
            spec::VIRTIO_BLK_T_OUT => counters.write_requests.add(1),
            spec::VIRTIO_BLK_T_FLUSH => counters.flushes.add(1),
            spec::VIRTIO_BLK_T_DISCARD | spec::VIRTIO_BLK_T_WRITE_ZEROES => {
                counters.discards.add(1);
            }
            _ => {}
        }
        let result = self.execute(kind, sector, &mut request);
        // The status lies behind the data: it only counts where there is no gap before it.
        let len = request.written() + u32::from(request.writable() == 0);
        self.end(request.head(), status, len, result);
        Ok(())
    }

    /// The status byte is written last.
    fn end(&mut self, head: u16, mut status: Segments<'m>, len: u32, result: Result<(), Failure>) {
        self.shared.counters.errors.add(result.is_err().into());
        let code = match result {
            Ok(()) => spec::VIRTIO_BLK_S_OK,
            Err(Failure::Io) => spec::VIRTIO_BLK_S_IOERR,
            Err(Failure::Unsupported) => spec::VIRTIO_BLK_S_UNSUPP,
        };
        status.write_all(&code.to_le_bytes()[..1]).expect("there is room for the status");
        self.done.push((head, len));
    }

    fn begin_read(&mut self, sector: u64, request: &mut Request<'m>, status: Segments<'m>) {
        let (head, len) = (request.head(), request.writable());
        self.shared.counters.read_requests.add(1);
        let offset = match self.offset(sector, len as u64) {
            Ok(offset) => offset,
            Err(failure) => return self.end(head, status, u32::from(len == 0), Err(failure)),
        };
        let used = u32::try_from(len).expect("a chain has less than 2^32 bytes");
        let pending = Pending { head, status, len: used, reads: 1, failed: false };
        let tag = self.pending.iter().position(Option::is_none).unwrap_or(self.pending.len());
        if tag == self.pending.len() {
            self.pending.push(None);
        }
        self.pending[tag] = Some(pending);
        let result = self.read(tag, offset, request.room());
        self.read_ended(tag, result.map_err(|error| self.tell_error(&error)));
    }

    /// Reads, or starts to.
    fn read(
        &mut self,
        tag: usize,
        mut offset: u64,
        room: &mut Segments<'m>,
    ) -> Result<(), bootyard_image::Error> {
        let disk = &*self.shared.disk;
        let size = disk.virtual_size();
        while room.left() > 0 {
            let stored = size.saturating_sub(offset).min(room.left() as u64);
            if stored == 0 {
                room.zero(room.left());
                return Ok(());
            }
            let done = match disk.locate(offset, stored) {
                Some(Located { len, at: Location::Zeros }) => {
                    room.zero(len as usize);
                    len as usize
                }
                Some(Located { len, at: Location::File { file, offset, pin } }) => {
                    let room = room.take_front(len as usize);
                    let iovecs = Vec::new();
                    self.read_file(FileRead { tag, room, file, offset, pin, iovecs })?;
                    len as usize
                }
                None => self.read_by_buffer(offset, stored, room)?,
            };
            offset += done as u64;
        }
        Ok(())
    }

    fn read_file(&mut self, mut read: FileRead<'d, 'm>) -> Result<(), bootyard_image::Error> {
        let failed = |offset| move |error: io::Error| bootyard_image::Error::read(error, offset);
        let wanted = read.room.left();
        if self.reads.is_none() {
            let FileRead { room, file, offset, .. } = &mut read;
            let filled = room.read_from(*file, *offset, wanted, Patience::Waits);
            let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let whole = filled.and_then(|len| if len == wanted { Ok(()) } else { Err(eof()) });
            return whole.map_err(failed(*offset));
        }
        if self.hurries {
            let FileRead { room, file, offset, .. } = &mut read;
            match room.read_from(*file, *offset, wanted, Patience::Hurries) {
                Ok(len) if len == wanted => return Ok(()),
                Ok(len) => *offset += len as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The file system cannot say. Any other error shows again.
                Err(_) => self.hurries = false,
            }
        }
        while self.reads.as_ref().is_some_and(Reads::is_full) {
            self.wait_for_one();
        }
        let pending = self.pending[read.tag].as_mut().expect("its reads are being started");
        pending.reads += 1;
        self.reads.as_mut().expect("there is io_uring").start(read);
        Ok(())
    }

    /// Reads what only the disk can find, as much as there is a buffer for.
    fn read_by_buffer(
        &mut self,
        offset: u64,
        len: u64,
        room: &mut Segments<'m>,
    ) -> Result<usize, bootyard_image::Error> {
        self.unpin();
        self.buffer.resize(BUFFER_SIZE, 0);
        let piece = &mut self.buffer[..len.min(BUFFER_SIZE as u64) as usize];
        self.shared.disk.read_at(piece, offset)?;
        room.write_all(piece).expect("there is room for it");
        Ok(piece.len())
    }

    /// Waits until this thread pins nothing of the disk: what comes next may have to wait for all
    /// pins.
    fn unpin(&mut self) {
        while self.reads.as_ref().is_some_and(Reads::has_pins) {
            self.wait_for_one();
        }
    }

    fn wait_for_one(&mut self) {
        if self.reap(true).is_err() {
            // The kernel is out of memory just now.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes what has ended.
    fn reap(&mut self, wait: bool) -> io::Result<()> {
        let Some(reads) = &mut self.reads else { return Ok(()) };
        let mut ended = Vec::new();
        let reaped = reads.reap(wait, |tag, offset, result| ended.push((tag, offset, result)));
        for (tag, offset, result) in ended {
            let failed = |error| self.tell_error(&bootyard_image::Error::read(error, offset));
            self.read_ended(tag, result.map_err(failed));
        }
        reaped
    }

    /// One of a request's reads has ended, or all are started.
    fn read_ended(&mut self, tag: usize, result: Result<(), Failure>) {
        let pending = self.pending[tag].as_mut().expect("it has not ended");
        pending.failed |= result.is_err();
        pending.reads -= 1;
        if pending.reads > 0 {
            return;
        }
        let Pending { head, status, len, failed, .. } =
            self.pending[tag].take().expect("it has not ended");
        let result = if failed { Err(Failure::Io) } else { Ok(()) };
        // Of data that is not there nothing counts, unless there was none.
        let used = if failed && len > 0 { 0 } else { len + 1 };
        self.shared.counters.read_bytes.add(if failed { 0 } else { len.into() });
        self.end(head, status, used, result);
    }

    fn execute(
        &mut self,
        kind: u32,
        sector: u64,
        request: &mut Request<'m>,
    ) -> Result<(), Failure> {
        match kind {
            spec::VIRTIO_BLK_T_OUT => {
                self.write(sector, request)?;
                self.flush_for_those_who_never_do()
            }
            spec::VIRTIO_BLK_T_FLUSH => self.flush(),
            spec::VIRTIO_BLK_T_GET_ID => {
                let len = request.writable().min(SERIAL_SIZE);
                request.write_all(&self.shared.serial[..len]).map_err(|_| Failure::Io)
            }
            spec::VIRTIO_BLK_T_DISCARD if self.features & F_DISCARD != 0 => {
                for range in self.ranges(request, 0)? {
                    self.zero(&Range { unmap: true, ..range })?;
                }
                Ok(())
            }
            spec::VIRTIO_BLK_T_WRITE_ZEROES if self.features & F_WRITE_ZEROES != 0 => {
                for range in self.ranges(request, spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)? {
                    self.zero(&range)?;
                }
                self.flush_for_those_who_never_do()
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn write(&mut self, sector: u64, request: &mut Request<'m>) -> Result<(), Failure> {
        let offset = self.offset(sector, request.readable() as u64)?;
        self.unpin();
        let written = self.writer()?.write_payload_at(request.sent(), offset);
        written.map_err(|error| self.tell_error(&error))?;
        self.shared.counters.written_bytes.add(request.readable() as u64);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.shared.read_only {
            return Ok(());
        }
        self.unpin();
        self.writer()?.flush().map_err(|error| self.tell_error(&error))
    }

    /// A driver that did not accept FLUSH counts on a write-through cache.
    fn flush_for_those_who_never_do(&mut self) -> Result<(), Failure> {
        if self.features & F_FLUSH == 0 { self.flush() } else { Ok(()) }
    }

    fn zero(&mut self, range: &Range) -> Result<(), Failure> {
        self.unpin();
        let zeroed = self.writer()?.zero_at(range.len, range.offset, range.unmap);
        zeroed.map_err(|error| self.tell_error(&error))
    }

    /// The ranges of a discard or write-zeroes request, all of them checked before anything is
    /// done. Flags beyond `flags` are not supported.
    fn ranges(&self, request: &mut Request<'m>, flags: u32) -> Result<Vec<Range>, Failure> {
        let len = request.readable();
        if !len.is_multiple_of(RANGE_SIZE) || len > RANGE_SIZE * RANGES_MAX as usize {
            return Err(Failure::Io);
        }
        let mut ranges = Vec::with_capacity(len / RANGE_SIZE);
        for _ in 0..len / RANGE_SIZE {
            let mut bytes = [0; RANGE_SIZE];
            request.read_exact(&mut bytes).map_err(|_| Failure::Io)?;
            let (sectors, set) = (u32_at(&bytes, 8), u32_at(&bytes, 12));
            if set & !flags != 0 {
                return Err(Failure::Unsupported);
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(Failure::Io);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = self.offset(u64_at(&bytes, 0), len)?;
            ranges.push(Range { offset, len, unmap: set != 0 });
        }
        Ok(ranges)
    }

    /// The byte at which `len` bytes from `sector` begin, if they are whole sectors of this disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let block = u64::from(self.shared.block_size.logical);
        let end = sector.checked_add(len / SECTOR).ok_or(Failure::Io)?;
        let aligned = len.is_multiple_of(block) && sector.is_multiple_of(block / SECTOR);
        if !aligned || end > self.shared.capacity() {
            return Err(Failure::Io);
        }
        Ok(sector * SECTOR)
    }

    fn writer(&self) -> Result<&'d dyn WriteDisk, Failure> {
        self.shared.disk.writer().filter(|_| !self.shared.read_only).ok_or(Failure::Io)
    }

    /// The guest is told that the disk failed, the machine's owner why.
    fn tell_error(&self, error: &bootyard_image::Error) -> Failure {
        (self.shared.on_error)(error);
        Failure::Io
    }
}

fn u32_at(bytes: &[u8; 16], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8; 16], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
}
