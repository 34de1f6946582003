//! The block device (§5.2) over a [`Disk`]: 512-byte sectors, whatever the storage below likes,
//! because that is what images are partitioned for; as many virtqueues as it is told, each served by a
//! thread of its own; a volatile write cache that the driver flushes.
//!
//! A size that is not a multiple of a sector: a read-only disk is rounded up and its last sector
//! ends in zeros, so that every byte can be read; a writable one is rounded down, so that every
//! sector can be stored.

mod requests;

use std::fmt;
use std::sync::Arc;

use bootyard_image::Disk;
use virtio_bindings::{virtio_blk as spec, virtio_ids::VIRTIO_ID_BLOCK};

use super::{DeviceConfig, Error, Session, VirtioDevice};
use crate::disks::BlockSize;
use crate::statistics::BlockCounters;

/// Bytes of a sector, the unit of everything in the protocol (§5.2.6).
const SECTOR: u64 = 512;

/// Most virtqueues: more threads than this are no faster on any disk that a file can be on.
const QUEUES_MAX: u16 = 8;

/// Size of a virtqueue: as many requests under way as Linux' block layer likes to have.
const QUEUE_SIZE: u16 = 256;

/// Most data segments of a request: a ring's worth without header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Most ranges of one discard or write-zeroes request, and most sectors of each (1 GiB), so that
/// no request keeps the thread busy for long.
const RANGES_MAX: u32 = 32;
const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// Bytes of the disk's serial number.
const SERIAL_SIZE: usize = spec::VIRTIO_BLK_ID_BYTES as usize;

const F_SEG_MAX: u64 = 1 << spec::VIRTIO_BLK_F_SEG_MAX;
const F_RO: u64 = 1 << spec::VIRTIO_BLK_F_RO;
const F_BLK_SIZE: u64 = 1 << spec::VIRTIO_BLK_F_BLK_SIZE;
const F_FLUSH: u64 = 1 << spec::VIRTIO_BLK_F_FLUSH;
const F_TOPOLOGY: u64 = 1 << spec::VIRTIO_BLK_F_TOPOLOGY;
const F_MQ: u64 = 1 << spec::VIRTIO_BLK_F_MQ;
const F_DISCARD: u64 = 1 << spec::VIRTIO_BLK_F_DISCARD;
const F_WRITE_ZEROES: u64 = 1 << spec::VIRTIO_BLK_F_WRITE_ZEROES;

/// Offsets in the configuration structure (§5.2.4).
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const NUM_QUEUES: usize = 34;
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
    shared: Shared,
    queues: Vec<u16>,
}

/// What the threads of a device have in common.
struct Shared {
    disk: Arc<dyn Disk>,
    read_only: bool,
    /// The driver is not told of a cache that it would have to flush.
    write_through: bool,
    block_size: BlockSize,
    io_uring: bool,
    serial: [u8; SERIAL_SIZE],
    counters: Arc<BlockCounters>,
    on_error: Box<dyn Fn(&bootyard_image::Error) + Send + Sync>,
}

impl Block {
    /// A device over `disk`, read-only if it is asked for or if the disk cannot be written. The
    /// guest sees the first 20 bytes of `serial`, under `/dev/disk/by-id` for instance.
    pub fn new(disk: Arc<dyn Disk>, read_only: bool, serial: &str) -> Self {
        let mut bytes = [0; SERIAL_SIZE];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let shared = Shared {
            read_only: read_only || disk.writer().is_none(),
            disk,
            write_through: false,
            block_size: BlockSize::default(),
            io_uring: true,
            serial: bytes,
            counters: Arc::default(),
            on_error: Box::new(|_| {}),
        };
        Self { shared, queues: vec![QUEUE_SIZE] }
    }

    /// The same device, which tells `report` why the disk failed. The guest only learns that it
    /// did. Called on the device's threads, for each request that fails.
    #[must_use]
    pub fn on_error(
        mut self,
        report: impl Fn(&bootyard_image::Error) + Send + Sync + 'static,
    ) -> Self {
        self.shared.on_error = Box::new(report);
        self
    }

    /// The same device, which counts what it does.
    #[must_use]
    pub fn counters(mut self, counters: Arc<BlockCounters>) -> Self {
        self.shared.counters = counters;
        self
    }

    /// The same device with this many virtqueues, or as many as are of use: one for each processor
    /// spares the guest's processors locks among them.
    #[must_use]
    pub fn queues(mut self, count: u32) -> Self {
        let count = count.clamp(1, u32::from(QUEUES_MAX));
        self.queues = vec![QUEUE_SIZE; count as usize];
        self
    }

    /// The same device, every write of which is durable when it is done.
    #[must_use]
    pub fn write_through(mut self, write_through: bool) -> Self {
        self.shared.write_through = write_through;
        self
    }

    /// The same device, which does without io_uring even where the host has it.
    #[must_use]
    pub fn io_uring(mut self, io_uring: bool) -> Self {
        self.shared.io_uring = io_uring;
        self
    }

    /// The same device with sectors of these sizes.
    #[must_use]
    pub fn block_size(mut self, size: BlockSize) -> Self {
        self.shared.block_size = size;
        self
    }
}

impl Shared {
    /// Sectors that the guest sees.
    fn capacity(&self) -> u64 {
        let (size, block) = (self.disk.virtual_size(), u64::from(self.block_size.logical));
        let blocks = if self.read_only { size.div_ceil(block) } else { size / block };
        blocks * (block / SECTOR)
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn features(&self) -> u64 {
        let Shared { read_only, write_through, block_size, .. } = self.shared;
        let when = |wanted: bool, features| if wanted { features } else { 0 };
        F_SEG_MAX
            | F_BLK_SIZE
            | when(read_only, F_RO)
            | when(!read_only, F_DISCARD | F_WRITE_ZEROES)
            | when(!write_through, F_FLUSH)
            | when(self.queues.len() > 1, F_MQ)
            | when(block_size.physical > block_size.logical, F_TOPOLOGY)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn config(&self) -> DeviceConfig {
        let mut config = vec![0; config::SIZE];
        let mut set = |offset: usize, bytes: &[u8]| {
            config[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let BlockSize { logical, physical } = self.shared.block_size;
        set(config::CAPACITY, &self.shared.capacity().to_le_bytes());
        set(config::SEG_MAX, &SEGMENTS_MAX.to_le_bytes());
        set(config::BLK_SIZE, &logical.to_le_bytes());
        set(config::PHYSICAL_BLOCK_EXP, &[(physical / logical).max(1).ilog2() as u8]);
        set(config::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        if !self.shared.read_only {
            set(config::MAX_DISCARD_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes());
            set(config::MAX_DISCARD_SEG, &RANGES_MAX.to_le_bytes());
            set(config::DISCARD_SECTOR_ALIGNMENT, &(logical / SECTOR as u32).to_le_bytes());
            set(config::MAX_WRITE_ZEROES_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes());
            set(config::MAX_WRITE_ZEROES_SEG, &RANGES_MAX.to_le_bytes());
            set(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        }
        DeviceConfig::new(config)
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let shared = &self.shared;
        session.serve_split("blk", |session| requests::serve(shared, session))
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("capacity", &self.shared.capacity())
            .field("read_only", &self.shared.read_only)
            .field("queues", &self.queues.len())
            .finish_non_exhaustive()
    }
}
