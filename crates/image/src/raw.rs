//! Raw disks: the file's bytes are the guest's. Opens no files and punches no holes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Content, Disk, Error, ErrorKind, Extent, Located, Location, Payload, ReadAt, WriteAt, WriteDisk,
};

/// A disk's size is counted in sectors of this many bytes: a file of another length is a disk whose
/// last sector is filled up with zeros, as `qemu-img` has it.
pub const SECTOR: u64 = 512;

/// A raw disk over anything that can be read, and written if it was made by [`RawDisk::new`].
pub struct RawDisk<T> {
    storage: T,
    size: u64,
    writer: Option<fn(&Self) -> &dyn WriteDisk>,
}

impl<T: ReadAt + WriteAt + 'static> RawDisk<T> {
    /// A disk that can be written. Its size is the storage's length, in whole sectors.
    pub fn new(storage: T) -> Self {
        Self { writer: Some(|disk| disk), ..Self::read_only(storage) }
    }
}

impl<T: ReadAt> RawDisk<T> {
    /// A disk without a writing half.
    pub fn read_only(storage: T) -> Self {
        Self { size: round_up(storage.len()), storage, writer: None }
    }

    /// A disk that is the first `size` bytes of the storage.
    pub(crate) const fn first(storage: T, size: u64) -> Self {
        Self { size, storage, writer: None }
    }

    /// What the disk is stored in.
    pub const fn storage(&self) -> &T {
        &self.storage
    }
}

/// The size of a raw disk in a file of `len` bytes.
pub(crate) const fn round_up(len: u64) -> u64 {
    match len.checked_next_multiple_of(SECTOR) {
        Some(size) => size,
        None => u64::MAX,
    }
}

impl<T: ReadAt> Disk for RawDisk<T> {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.size, buf.len() as u64, offset)?;
        let stored = self.storage.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (stored, rest) = buf.split_at_mut(stored);
        rest.fill(0);
        if stored.is_empty() {
            return Ok(());
        }
        self.storage.read_exact_at(stored, offset).map_err(|error| Error::read(error, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.size, 1, offset)?;
        Ok(Extent { len: self.size - offset, zero: false })
    }

    fn locate(&self, offset: u64, len: u64) -> Option<Located<'_>> {
        let file = self.storage.file()?;
        let there = self.storage.len().min(self.size).saturating_sub(offset);
        let at = Location::File { file, offset, pin: None };
        (there > 0).then_some(Located { len: len.min(there), at })
    }

    fn writer(&self) -> Option<&dyn WriteDisk> {
        self.writer.map(|writer| writer(self))
    }
}

impl<T: ReadAt + WriteAt> WriteDisk for RawDisk<T> {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.size, data.len() as u64, offset)?;
        self.storage.write_all_at(data, offset).map_err(Error::write)
    }

    fn write_payload_at(&self, data: &dyn Payload, offset: u64) -> Result<(), Error> {
        check_range(self.size, data.size() as u64, offset)?;
        self.storage.write_payload_at(data, 0..data.size(), offset).map_err(Error::write)
    }

    fn zero_at(&self, len: u64, offset: u64, _discard: bool) -> Result<(), Error> {
        check_range(self.size, len, offset)?;
        self.storage.zero_at(len, offset).map_err(Error::write)
    }

    fn flush(&self) -> Result<(), Error> {
        self.storage.sync().map_err(Error::write)
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for RawDisk<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawDisk")
            .field("storage", &self.storage)
            .field("size", &self.size)
            .field("writable", &self.writer.is_some())
            .finish()
    }
}

/// What the disk that begins with `head` holds, if it tells. A CD that is also a disk is a CD.
pub(crate) fn content(head: &[u8]) -> Option<Content> {
    /// ECMA-119 §8.1: the volume descriptors begin at sector 16.
    const ISO_9660: usize = 16 * 2048 + 1;
    let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|tail| tail.starts_with(mark));
    if has(ISO_9660, b"CD001") {
        return Some(Content::Iso9660);
    }
    // UEFI §5.3.2: the header is in the second sector, which has 512 or 4096 bytes.
    if has(512, b"EFI PART") || has(4096, b"EFI PART") {
        return Some(Content::Gpt);
    }
    let entries = head.get(446..510).filter(|_| has(510, b"\x55\xaa"))?.chunks_exact(16);
    // A boot sector of a file system has the same mark at its end, and code in the table's place.
    let plausible = entries.clone().all(|entry| entry[0] & 0x7f == 0);
    let used = entries.into_iter().any(|entry| entry[4] != 0 && entry[12..] != [0; 4]);
    (plausible && used).then_some(Content::Mbr)
}

/// Refuses a request that reaches beyond the disk.
pub(crate) fn check_range(size: u64, len: u64, offset: u64) -> Result<(), Error> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(
            ErrorKind::OutOfRange,
            format!("{len} bytes at {offset} are not on a disk of {size} bytes"),
        )),
    }
}

/// A file or block device that the caller opened. [`WriteAt::zero_at`] writes zeros; storage that
/// can do better has its own adapter.
#[derive(Debug)]
pub struct FileAt {
    file: File,
    len: AtomicU64,
}

impl FileAt {
    /// Takes the file and finds its length, for a block device the device's.
    pub fn new(mut file: File) -> io::Result<Self> {
        let len = AtomicU64::new(file.seek(SeekFrom::End(0))?);
        Ok(Self { file, len })
    }

    /// The file.
    pub const fn file(&self) -> &File {
        &self.file
    }
}

impl ReadAt for FileAt {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl WriteAt for FileAt {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(data, offset)?;
        self.len.fetch_max(offset + data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn write_payload_at(
        &self,
        data: &dyn Payload,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<()> {
        let end = offset + range.len() as u64;
        data.write_to(range, self.file.as_fd(), offset)?;
        self.len.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROS.len() as u64);
            self.write_all_at(&ZEROS[..part as usize], offset + done)?;
            done += part;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    fn file(len: u64) -> FileAt {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        FileAt::new(file).unwrap()
    }

    #[test]
    fn conforms() {
        for len in [0, 512, 1 << 20, (1 << 20) + 1] {
            conformance::check_writable(&RawDisk::new(file(len)), round_up(len));
        }
    }

    #[test]
    fn content_is_told_by_its_marks() {
        let with = |marks: &[(usize, &[u8])]| {
            let mut head = vec![0; 64 << 10];
            marks.iter().for_each(|(at, mark)| head[*at..*at + mark.len()].copy_from_slice(mark));
            content(&head)
        };
        let signature = (510, &b"\x55\xaa"[..]);
        let entry = (446 + 16, &b"\x80\0\0\0\x83\0\0\0\0\x08\0\0\0\x08\0\0"[..]);
        let gpt = b"EFI PART";
        for (marks, expected) in [
            (&[signature, entry][..], Some(Content::Mbr)),
            (&[signature, entry, (512, gpt)], Some(Content::Gpt)),
            (&[signature, entry, (4096, gpt)], Some(Content::Gpt)),
            (&[signature, entry, (512, gpt), (0x8001, b"CD001")], Some(Content::Iso9660)),
            (&[signature], None),
            (&[entry], None),
            (&[signature, entry, (446, b"Non-system disk")], None),
        ] {
            assert_eq!(with(marks), expected, "{marks:x?}");
        }
        assert_eq!(content(&[0; 100]), None);
    }

    #[test]
    fn the_last_sector_of_an_odd_file_is_filled_with_zeros() {
        let disk = RawDisk::read_only(vec![7_u8; 513]);
        assert_eq!(disk.virtual_size(), 1024);
        let mut sector = [1; 512];
        disk.read_at(&mut sector, 512).unwrap();
        assert_eq!((sector[0], &sector[1..]), (7, &[0; 511][..]));
        assert!(disk.writer().is_none());
    }
}
