//! The block device (§5.2) over a [`Disk`]: 512-byte sectors, whatever the storage below likes,
//! because that is what images are partitioned for; one virtqueue; a volatile write cache that the
//! driver flushes.
//!
//! A size that is not a multiple of 512 bytes: a read-only disk is rounded up and its last sector
//! ends in zeros, so that every byte can be read; a writable one is rounded down, so that every
//! sector can be stored.

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

use bootyard_image::{Disk, WriteDisk};
use virtio_bindings::{virtio_blk as spec, virtio_ids::VIRTIO_ID_BLOCK};

use super::{DeviceConfig, Error, Request, Session, VirtioDevice};

/// Bytes of a sector, the unit of everything in the protocol (§5.2.6).
const SECTOR: u64 = 512;

/// Size of the one virtqueue: as many requests under way as Linux' block layer likes to have.
const QUEUE_SIZE: u16 = 256;

/// Most data segments of a request: a ring's worth without header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Most ranges of one discard or write-zeroes request, and most sectors of each (1 GiB), so that
/// no request keeps the thread busy for long.
const RANGES_MAX: u32 = 32;
const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Bytes of one such range: sector, count, flags.
const RANGE_SIZE: usize = 16;

/// Data goes between guest memory and the disk in pieces of this size. It is all the memory that
/// a device takes, and a multiple of every cluster size that is common.
const BUFFER_SIZE: usize = 256 << 10;

/// Bytes of a request's header: type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of the disk's serial number.
const SERIAL_SIZE: usize = spec::VIRTIO_BLK_ID_BYTES as usize;

const F_SEG_MAX: u64 = 1 << spec::VIRTIO_BLK_F_SEG_MAX;
const F_RO: u64 = 1 << spec::VIRTIO_BLK_F_RO;
const F_BLK_SIZE: u64 = 1 << spec::VIRTIO_BLK_F_BLK_SIZE;
const F_FLUSH: u64 = 1 << spec::VIRTIO_BLK_F_FLUSH;
const F_DISCARD: u64 = 1 << spec::VIRTIO_BLK_F_DISCARD;
const F_WRITE_ZEROES: u64 = 1 << spec::VIRTIO_BLK_F_WRITE_ZEROES;

/// Offsets in the configuration structure (§5.2.4).
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEG: usize = 40;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(super) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    pub(super) const SIZE: usize = 60;
}

/// A disk for the guest.
pub struct Block {
    disk: Arc<dyn Disk>,
    read_only: bool,
    serial: [u8; SERIAL_SIZE],
    buffer: Vec<u8>,
    on_error: Box<dyn Fn(&bootyard_image::Error) + Send>,
}

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

impl Block {
    /// A device over `disk`, read-only if it is asked for or if the disk cannot be written. The
    /// guest sees the first 20 bytes of `serial`, under `/dev/disk/by-id` for instance.
    pub fn new(disk: Arc<dyn Disk>, read_only: bool, serial: &str) -> Self {
        let mut bytes = [0; SERIAL_SIZE];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let read_only = read_only || disk.writer().is_none();
        let buffer = vec![0; BUFFER_SIZE];
        Self { disk, read_only, serial: bytes, buffer, on_error: Box::new(|_| {}) }
    }

    /// The same device, which tells `report` why the disk failed. The guest only learns that it
    /// did. Called on the device's thread, for each request that fails.
    #[must_use]
    pub fn on_error(mut self, report: impl Fn(&bootyard_image::Error) + Send + 'static) -> Self {
        self.on_error = Box::new(report);
        self
    }

    /// Sectors that the guest sees.
    fn capacity(&self) -> u64 {
        let size = self.disk.virtual_size();
        if self.read_only { size.div_ceil(SECTOR) } else { size / SECTOR }
    }

    /// Answers one request. The status byte is written last.
    fn answer(&mut self, request: &mut Request<'_>, features: u64) -> Result<u32, Error> {
        let no_status = Error::Malformed("no room for a block request's status");
        let mut status = request.split_tail(1).ok_or(no_status)?;
        let mut header = [0; HEADER_SIZE];
        let cut = |_| Error::Malformed("a block request shorter than its header");
        request.read_exact(&mut header).map_err(cut)?;
        let code = match self.execute(header, request, features) {
            Ok(()) => spec::VIRTIO_BLK_S_OK,
            Err(Failure::Io) => spec::VIRTIO_BLK_S_IOERR,
            Err(Failure::Unsupported) => spec::VIRTIO_BLK_S_UNSUPP,
        };
        status.write_all(&code.to_le_bytes()[..1])?;
        // The status lies behind the data: it only counts where there is no gap before it.
        Ok(request.written() + u32::from(request.writable() == 0))
    }

    fn execute(
        &mut self,
        header: [u8; HEADER_SIZE],
        request: &mut Request<'_>,
        features: u64,
    ) -> Result<(), Failure> {
        let sector = u64_at(&header, 8);
        match u32_at(&header, 0) {
            spec::VIRTIO_BLK_T_IN => self.read(sector, request),
            spec::VIRTIO_BLK_T_OUT => {
                self.write(sector, request)?;
                // A driver that did not accept FLUSH counts on a write-through cache.
                if features & F_FLUSH == 0 { self.flush() } else { Ok(()) }
            }
            spec::VIRTIO_BLK_T_FLUSH => self.flush(),
            spec::VIRTIO_BLK_T_GET_ID => {
                let len = request.writable().min(SERIAL_SIZE);
                request.write_all(&self.serial[..len]).map_err(|_| Failure::Io)
            }
            spec::VIRTIO_BLK_T_DISCARD if features & F_DISCARD != 0 => {
                for range in self.ranges(request, 0)? {
                    self.zero(&Range { unmap: true, ..range })?;
                }
                Ok(())
            }
            spec::VIRTIO_BLK_T_WRITE_ZEROES if features & F_WRITE_ZEROES != 0 => {
                for range in self.ranges(request, spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)? {
                    self.zero(&range)?;
                }
                if features & F_FLUSH == 0 { self.flush() } else { Ok(()) }
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn read(&mut self, sector: u64, request: &mut Request<'_>) -> Result<(), Failure> {
        let mut offset = self.offset(sector, request.writable() as u64)?;
        let size = self.disk.virtual_size();
        while request.writable() > 0 {
            let piece = &mut self.buffer[..request.writable().min(BUFFER_SIZE)];
            let stored = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            let (bytes, tail) = piece.split_at_mut(stored.min(piece.len()));
            self.disk.read_at(bytes, offset).map_err(tell(&*self.on_error))?;
            tail.fill(0);
            request.write_all(piece).map_err(|_| Failure::Io)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, request: &mut Request<'_>) -> Result<(), Failure> {
        let mut offset = self.offset(sector, request.readable() as u64)?;
        let writer = writer(&*self.disk, self.read_only)?;
        while request.readable() > 0 {
            let piece = &mut self.buffer[..request.readable().min(BUFFER_SIZE)];
            request.read_exact(piece).map_err(|_| Failure::Io)?;
            writer.write_at(piece, offset).map_err(tell(&*self.on_error))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Failure> {
        match self.disk.writer() {
            Some(writer) if !self.read_only => writer.flush().map_err(tell(&*self.on_error)),
            _ => Ok(()),
        }
    }

    fn zero(&self, range: &Range) -> Result<(), Failure> {
        let writer = writer(&*self.disk, self.read_only)?;
        let zeroed = writer.zero_at(range.len, range.offset, range.unmap);
        zeroed.map_err(tell(&*self.on_error))
    }

    /// The ranges of a discard or write-zeroes request, all of them checked before anything is
    /// done. Flags beyond `flags` are not supported.
    fn ranges(&self, request: &mut Request<'_>, flags: u32) -> Result<Vec<Range>, Failure> {
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
        let end = sector.checked_add(len / SECTOR).ok_or(Failure::Io)?;
        if !len.is_multiple_of(SECTOR) || end > self.capacity() {
            return Err(Failure::Io);
        }
        Ok(sector * SECTOR)
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn features(&self) -> u64 {
        let writable = F_DISCARD | F_WRITE_ZEROES;
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | if self.read_only { F_RO } else { writable }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> DeviceConfig {
        let mut config = vec![0; config::SIZE];
        let mut set = |offset: usize, bytes: &[u8]| {
            config[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        set(config::CAPACITY, &self.capacity().to_le_bytes());
        set(config::SEG_MAX, &SEGMENTS_MAX.to_le_bytes());
        set(config::BLK_SIZE, &(SECTOR as u32).to_le_bytes());
        if !self.read_only {
            set(config::MAX_DISCARD_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes());
            set(config::MAX_DISCARD_SEG, &RANGES_MAX.to_le_bytes());
            set(config::DISCARD_SECTOR_ALIGNMENT, &1_u32.to_le_bytes());
            set(config::MAX_WRITE_ZEROES_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes());
            set(config::MAX_WRITE_ZEROES_SEG, &RANGES_MAX.to_le_bytes());
            set(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        }
        DeviceConfig::new(config)
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let features = session.features();
        session.serve(|_, request| self.answer(request, features))
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("capacity", &self.capacity())
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// The guest is told that the disk failed, `on_error` why.
fn tell(
    on_error: &dyn Fn(&bootyard_image::Error),
) -> impl FnOnce(bootyard_image::Error) -> Failure {
    |error| {
        on_error(&error);
        Failure::Io
    }
}

fn writer(disk: &dyn Disk, read_only: bool) -> Result<&dyn WriteDisk, Failure> {
    disk.writer().filter(|_| !read_only).ok_or(Failure::Io)
}

fn u32_at(bytes: &[u8; 16], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8; 16], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
}
