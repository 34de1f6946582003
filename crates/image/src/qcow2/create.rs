//! New images: empty ones, and overlays over a backing file. Also the header that every image of
//! ours begins with. Opens no backing file.

use super::header::{BACKING_NAME_MAX, L1_BYTES_MAX, REFCOUNT_TABLE_BYTES_MAX};
use crate::raw::round_up;
use crate::{Error, ErrorKind, WriteAt};

/// Refcounts have 2^4 bits.
pub(super) const REFCOUNT_ORDER: u32 = 4;
/// Clusters of 64 KiB.
pub(super) const CLUSTER_BITS: u32 = 16;

/// "Header" of version 3: without optional fields, and with the compression type.
const HEADER_LEN: u64 = 104;
const HEADER_LEN_COMPRESSION: u64 = 112;
/// "Incompatible features", bit 3: the compression type is not zlib.
const COMPRESSION_BIT: u64 = 1 << 3;
/// "Compression type": zstd.
const ZSTD: u64 = 1;
/// "Header extensions": the backing file's format.
const BACKING_FORMAT: u64 = 0xe279_2aca;

/// What a new image shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// The disk's size in bytes. It is rounded up to sectors.
    pub virtual_size: u64,
    /// Clusters have 2 to the power of this many bytes: 9 to 21.
    pub cluster_bits: u32,
    /// The file under an overlay. The disk may be larger than it.
    pub backing: Option<Backing>,
}

/// The file that an overlay lies over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name as it shall stand in the image: a path, relative to the image or absolute.
    pub name: String,
    /// The format, which is always named: who guesses it can be fooled by a guest that writes the
    /// header of another format to its raw disk.
    pub format: BackingFormat,
}

/// The formats that a backing file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackingFormat {
    /// The file's bytes are the guest's.
    Raw,
    /// Another qcow2.
    Qcow2,
}

impl BackingFormat {
    /// The name that stands in the image.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Create {
    /// An empty disk of `virtual_size` bytes with clusters of 64 KiB.
    pub const fn new(virtual_size: u64) -> Self {
        Self { virtual_size, cluster_bits: CLUSTER_BITS, backing: None }
    }
}

/// Makes an empty image of version 3 in `target`, whose old contents do not matter. Equal options
/// give equal bytes.
pub fn create(target: &impl WriteAt, options: &Create) -> Result<(), Error> {
    let bits = options.cluster_bits;
    if !(9..=21).contains(&bits) {
        let what = format!("expected clusters of 2^9 to 2^21 bytes, got 2^{bits}");
        return Err(Error::new(ErrorKind::OutOfRange, what));
    }
    let cluster = 1_u64 << bits;
    let mut layout = Layout::new(options.virtual_size, bits)?;
    let block_entries = block_entries(bits, REFCOUNT_ORDER);
    let others = 1 + layout.refcount_table_clusters + layout.l1_clusters();
    let blocks = blocks_for(others, block_entries);
    layout.l1_offset = (1 + layout.refcount_table_clusters + blocks) * cluster;
    let header = layout.header(options.backing.as_ref(), false)?;
    let first_block = layout.refcount_table_offset + layout.refcount_table_clusters * cluster;
    let store = || {
        // Until the header is there, what was in the target before must not pass for an image.
        target.zero_at((others + blocks) * cluster, 0)?;
        target.sync()?;
        let table = (0..blocks).flat_map(|index| (first_block + index * cluster).to_be_bytes());
        target.write_all_at(&table.collect::<Vec<u8>>(), layout.refcount_table_offset)?;
        target.write_all_at(&[0, 1].repeat((others + blocks) as usize), first_block)?;
        target.sync()?;
        target.write_all_at(&header, 0)?;
        target.sync()
    };
    store().map_err(Error::write)
}

/// How many refcounts of 2^`order` bits a block has.
pub(super) const fn block_entries(cluster_bits: u32, order: u32) -> u64 {
    1 << (cluster_bits + 3 - order)
}

/// How many refcount blocks it takes for `others` clusters and the blocks themselves.
pub(super) const fn blocks_for(others: u64, block_entries: u64) -> u64 {
    others.div_ceil(block_entries - 1)
}

/// Where the tables of a new image are that have a fixed size.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) virtual_size: u64,
    cluster_bits: u32,
    pub(super) l1_entries: u64,
    pub(super) l1_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u64,
}

impl Layout {
    /// Lays out a disk of `virtual_size` bytes: header, refcount table, L1 table. The refcount
    /// table is large enough for when every cluster is used, within QEMU's limit.
    pub(super) fn new(virtual_size: u64, cluster_bits: u32) -> Result<Self, Error> {
        let cluster = 1_u64 << cluster_bits;
        let virtual_size = round_up(virtual_size);
        let most = (L1_BYTES_MAX / 8) << (2 * cluster_bits - 3);
        if virtual_size > most.min(i64::MAX as u64) {
            let what =
                format!("a disk of {virtual_size} bytes does not fit in clusters of {cluster}");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let l1_entries = virtual_size.div_ceil(1 << (2 * cluster_bits - 3));
        let l1_clusters = (l1_entries * 8).div_ceil(cluster);
        let all = virtual_size.div_ceil(cluster) + l1_entries + l1_clusters + 1;
        let block_entries = block_entries(cluster_bits, REFCOUNT_ORDER);
        // A block counts for its table too, of whose clusters there are fewer than blocks.
        let blocks = all.div_ceil(block_entries - 2) + 1;
        let table_len = (blocks * 8).min(REFCOUNT_TABLE_BYTES_MAX);
        let refcount_table_clusters = table_len.div_ceil(cluster);
        Ok(Self {
            virtual_size,
            cluster_bits,
            l1_entries,
            l1_offset: (1 + refcount_table_clusters) * cluster,
            refcount_table_offset: cluster,
            refcount_table_clusters,
        })
    }

    pub(super) const fn l1_clusters(&self) -> u64 {
        (self.l1_entries * 8).div_ceil(1 << self.cluster_bits)
    }

    /// The header with its extensions and the backing file's name, in the order of "Header".
    pub(super) fn header(&self, backing: Option<&Backing>, zstd: bool) -> Result<Vec<u8>, Error> {
        let header_len = if zstd { HEADER_LEN_COMPRESSION } else { HEADER_LEN };
        let format = backing.map_or("", |backing| backing.format.name());
        let extensions =
            if backing.is_some() { 8 + format.len().next_multiple_of(8) + 8 } else { 8 };
        let name = backing.map_or("", |backing| &backing.name);
        let name_offset = if backing.is_some() { header_len + extensions as u64 } else { 0 };
        let most = ((1 << self.cluster_bits) - name_offset).min(u64::from(BACKING_NAME_MAX));
        if name.len() as u64 > most || backing.is_some() && name.is_empty() {
            let what =
                format!("expected a backing file name of 1 to {most} bytes, got {}", name.len());
            return Err(Error::new(ErrorKind::OutOfRange, what));
        }
        let mut words = vec![
            0x5146_49fb << 32 | 3,
            name_offset,
            (name.len() as u64) << 32 | u64::from(self.cluster_bits),
            self.virtual_size,
            self.l1_entries, // Above it: no encryption.
            self.l1_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters << 32, // And no snapshots,
            0,                                  // so their table is nowhere.
            if zstd { COMPRESSION_BIT } else { 0 },
            0, // Compatible and
            0, // autoclear features.
            u64::from(REFCOUNT_ORDER) << 32 | header_len,
        ];
        if zstd {
            words.push(ZSTD << 56);
        }
        if backing.is_some() {
            let mut padded = [0; 8];
            padded[..format.len()].copy_from_slice(format.as_bytes());
            words.extend([BACKING_FORMAT << 32 | format.len() as u64, u64::from_be_bytes(padded)]);
        }
        words.push(0); // The end of the extensions.
        let mut header: Vec<u8> = words.into_iter().flat_map(u64::to_be_bytes).collect();
        header.extend(name.as_bytes());
        Ok(header)
    }
}
