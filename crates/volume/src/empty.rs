//! Empty disks, as KubeVirt's emptyDisk has them: sparse qcow2 images of a size that is always given.
//! They are scratch space: one that lies in no store is not made durable.

use std::io;

use bootyard_image::WriteAt;
use bootyard_image::qcow2::{Create, create};

use crate::{Error, Published, Staged};

impl Staged {
    /// Makes this target an empty qcow2 of `capacity` bytes, and publishes it.
    pub fn publish_empty(self, capacity: u64) -> Result<Published, Error> {
        self.start_over()?;
        create(&Unseen(&self), &Create::new(capacity)).map_err(|error| {
            let what = format!("cannot make an empty disk of `{}`", self.path().display());
            Error::io(io::Error::other(error), self.path(), what)
        })?;
        self.publish_scratch()
    }
}

/// A target that is made durable when it becomes visible, and not before.
struct Unseen<'a>(&'a Staged);

impl WriteAt for Unseen<'_> {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    /// The target was emptied, so that it only has to grow.
    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.0.reserve(offset + len).map_err(io::Error::other)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bootyard_image::raw::FileAt;

    use super::*;

    #[test]
    fn an_empty_disk_is_a_small_file_of_the_capacity() {
        let folder = tempfile::tempdir().unwrap();
        for capacity in [1 << 20, 10 << 30, 1 << 42] {
            let path = folder.path().join(format!("{capacity}.qcow2"));
            let published = Staged::for_path(&path).unwrap().publish_empty(capacity).unwrap();
            assert!(
                published.allocated_bytes.is_some_and(|bytes| bytes <= 1 << 20),
                "{published:?}"
            );
            let file = fs_err::File::open(&path).unwrap().into_file();
            let disk = bootyard_image::open(FileAt::new(file).unwrap()).unwrap();
            assert_eq!(disk.virtual_size(), capacity);
            assert!(disk.extent_at(0).unwrap().zero);
        }
    }

    #[test]
    fn what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        fs_err::write(&path, "mine").unwrap();
        assert!(Staged::for_path(&path).is_err());
        assert_eq!(fs_err::read(&path).unwrap(), b"mine");
    }
}
