//! What a machine's disks are, as its user asks for them.

/// The sizes of a disk's sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize {
    /// The least that is read or written: 512 or 4096 bytes.
    pub logical: u32,
    /// What the storage likes to be written at once: a power of two, not less.
    pub physical: u32,
}

impl Default for BlockSize {
    /// 512 bytes, for which images are partitioned.
    fn default() -> Self {
        Self { logical: 512, physical: 512 }
    }
}
