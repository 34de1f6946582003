//! What is known of an image without decoding it.

use crate::Format;

/// A description of an image, for people and scripts. Text that comes from the image is made fit
/// for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The containers round the disk from the outermost on, then the disk's own format.
    pub chain: Vec<Format>,
    /// The disk's own format, the last of the chain.
    pub format: Format,
    /// Which of the format's kinds it is, by the format's own word: `streamOptimized`, `dynamic`.
    pub variant: Option<String>,
    /// What a raw disk, or a fixed VHD, begins with.
    pub content: Option<Content>,
    /// The disk's size in bytes, if it is known without decoding.
    pub virtual_size: Option<u64>,
    /// How many of the disk's bytes the image stores, compressed or not, if its tables are read
    /// easily.
    pub allocated: Option<u64>,
    /// The format's version, where it counts them.
    pub version: Option<u32>,
    /// The bytes of a cluster, where the format has them: also called grains or blocks.
    pub cluster_size: Option<u64>,
    /// The bytes of a sector as the guest sees it, where the format tells.
    pub sector_size: Option<u32>,
    /// How clusters that are compressed are compressed.
    pub compression: Option<&'static str>,
    /// The bits of a refcount, where the format has them.
    pub refcount_bits: Option<u32>,
    /// Features that are in use, by the names that `qemu-img` gives them.
    pub features: Vec<&'static str>,
    /// The internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// The file that the image is an overlay over.
    pub backing_file: Option<String>,
    /// That file's format.
    pub backing_format: Option<String>,
    /// The file that holds the guest's data.
    pub data_file: Option<String>,
    /// The files that hold the parts of a VMDK that is only a description.
    pub extents: Vec<String>,
    /// What a reader should know: that something in the image is ignored, and why.
    pub notes: Vec<String>,
    /// Why [`crate::open`] does not open the image, in one line.
    pub refused: Option<String>,
}

/// What the first sectors of a raw disk say of its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Content {
    /// A GUID partition table.
    Gpt,
    /// A master boot record with partitions.
    Mbr,
    /// An ISO 9660 file system.
    Iso9660,
}

/// One internal snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The identifier, a number in text.
    pub id: String,
    /// The name that its maker gave it.
    pub name: String,
    /// The size of the disk at that time, in bytes.
    pub virtual_size: u64,
    /// The bytes of the machine's state that are kept with it.
    pub vm_state_size: u64,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
}

impl Info {
    /// What the head of a stream tells: its containers with the disk's own format, and the disk's
    /// size in bytes if it is known. `None` for a chain without a format.
    pub fn of_stream(chain: Vec<Format>, virtual_size: Option<u64>) -> Option<Self> {
        let format = *chain.last()?;
        Some(Self { chain, virtual_size, ..Self::new(format) })
    }

    /// A description that says only the format.
    pub(crate) fn new(format: Format) -> Self {
        Self {
            chain: vec![format],
            format,
            variant: None,
            content: None,
            virtual_size: None,
            allocated: None,
            version: None,
            cluster_size: None,
            sector_size: None,
            compression: None,
            refcount_bits: None,
            features: Vec::new(),
            snapshots: Vec::new(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            extents: Vec::new(),
            notes: Vec::new(),
            refused: None,
        }
    }
}
