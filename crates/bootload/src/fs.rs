//! File systems, read-only, behind one small trait. A file system that is added later is one more
//! implementor and one more line in [`open`].
//!
//! ext4 comes from a library. XFS, btrfs and FAT are [`walk::Inodes`]: they answer for one inode at
//! a time, and [`walk`] follows paths and symbolic links for all of them.

mod btrfs;
mod ext4;
mod fat;
mod field;
mod known;
mod lzo;
#[cfg(test)]
mod tests;
mod walk;
mod xfs;

pub(crate) use known::known;

use crate::Error;
use crate::partition::Region;

/// Names in a directory that are looked at.
const NAMES_MAX: usize = 4096;
/// Bytes of all directories that are looked through for one name.
const DIRECTORY_MAX: u64 = 16 << 20;

/// Files by their path, which is absolute on this file system. Symbolic links are followed within
/// it.
pub(crate) trait FileSystem {
    /// The name of its kind, for messages.
    fn kind(&self) -> &'static str;

    /// The UUID as tools print it, in lower case.
    fn uuid(&self) -> String;

    /// The volume label, empty if there is none.
    fn label(&self) -> String;

    /// The size of a file or directory, or nothing if there is none of that name.
    fn size(&self, path: &str) -> Result<Option<u64>, Error>;

    /// The bytes of a file of at most `limit` bytes, or nothing if there is none of that name.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error>;

    /// The first `len` bytes of a file, or all if it has fewer; nothing if there is none of that name.
    fn head(&self, path: &str, len: u64) -> Result<Option<Vec<u8>>, Error>;

    /// The names in a directory in the order of their bytes, or nothing if there is none of that
    /// name. Names that are no text are left out.
    fn names(&self, path: &str) -> Result<Option<Vec<String>>, Error>;

    /// What is to be said of its state, such as changes that only a mount would bring in.
    fn note(&self) -> Option<&'static str> {
        None
    }
}

/// The file system in `region`, or nothing if it is of no kind that this crate reads.
pub(crate) fn open(region: &Region) -> Result<Option<Box<dyn FileSystem>>, Error> {
    if let Some(fs) = ext4::open(region)? {
        return Ok(Some(Box::new(fs)));
    }
    if let Some(fs) = xfs::open(region)? {
        return Ok(Some(Box::new(fs)));
    }
    if let Some(fs) = btrfs::open(region)? {
        return Ok(Some(Box::new(fs)));
    }
    Ok(fat::open(region)?.map(|fs| Box::new(fs) as Box<dyn FileSystem>))
}
