//! What every [`Disk`] must keep, as tests that an implementor runs on itself.

use crate::{Disk, ErrorKind};

/// Checks a disk of `size` bytes that is only read: sizes, ranges, extents against contents, and
/// small reads against large ones.
pub(crate) fn check(disk: &dyn Disk, size: u64) {
    assert_eq!(disk.virtual_size(), size);
    disk.read_at(&mut [], size).unwrap();
    for (len, offset) in [(1, size), (2, size.saturating_sub(1)), (1, u64::MAX), (513, size)] {
        if offset.checked_add(len as u64).is_some_and(|end| end <= size) {
            continue;
        }
        let mut buf = vec![0xa5; len];
        let error = disk.read_at(&mut buf, offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{len} at {offset}");
        assert!(buf.iter().all(|byte| *byte == 0xa5), "a refused read changes nothing");
    }
    assert_eq!(disk.extent_at(size).unwrap_err().kind(), ErrorKind::OutOfRange);
    let whole = read_all(disk);
    let mut at = 0;
    while at < size {
        let extent = disk.extent_at(at).unwrap();
        assert!(extent.len > 0 && at + extent.len <= size, "extent at {at}: {extent:?}");
        let bytes = &whole[at as usize..(at + extent.len) as usize];
        assert!(!extent.zero || bytes.iter().all(|byte| *byte == 0), "extent at {at}: {extent:?}");
        at += extent.len;
    }
    for (len, step) in [(1, 99_991), (511, 65_521), (4097, 131_071), (200_003, 262_147)] {
        let mut buf = vec![0; len];
        for offset in (0..size.saturating_sub(len as u64)).step_by(step).take(200) {
            disk.read_at(&mut buf, offset).unwrap();
            assert_eq!(buf, whole[offset as usize..][..len], "{len} bytes at {offset}");
        }
    }
}

/// Checks a disk of `size` bytes that can be written, and overwrites it.
pub(crate) fn check_writable(disk: &dyn Disk, size: u64) {
    check(disk, size);
    let writer = disk.writer().unwrap();
    writer.write_at(&[], size).unwrap();
    for (len, offset) in [(1, size), (1, u64::MAX)] {
        let error = writer.write_at(&vec![1; len], offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        let error = writer.zero_at(len as u64, offset, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    }
    let mut expected = read_all(disk);
    for (index, offset) in (0..size).step_by(77_777).enumerate() {
        let len = (1 + index * 997).min((size - offset) as usize);
        let data = vec![index as u8 | 1; len];
        writer.write_at(&data, offset).unwrap();
        expected[offset as usize..][..len].copy_from_slice(&data);
        let zeros = len / 3;
        writer.zero_at(zeros as u64, offset, index % 2 == 0).unwrap();
        expected[offset as usize..][..zeros].fill(0);
    }
    writer.flush().unwrap();
    assert!(read_all(disk) == expected, "what was written is what is read");
    check(disk, size);
}

/// The whole disk, for small ones.
pub(crate) fn read_all(disk: &dyn Disk) -> Vec<u8> {
    let mut whole = vec![0xa5; disk.virtual_size() as usize];
    disk.read_at(&mut whole, 0).unwrap();
    whole
}
