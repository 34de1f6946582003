//! The few file operations that `std` does not have.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::Error;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, RenameFlags, SeekFrom, fallocate, fstatvfs, linkat,
    renameat_with, seek,
};

/// Block devices zero out, and files punch holes, in units of their sectors or pages; whatever the
/// sector size is, 4096 bytes are a multiple of it.
const ZERO_ALIGN: u64 = 4096;

const ZEROS: &[u8; 1 << 20] = &[0; 1 << 20];

/// Makes `len` bytes at `offset` read as zeros: without storing them where the file system or the
/// device can, else by writing them. The file does not grow.
pub(crate) fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let end = offset + len;
    let (first, last) = (offset.next_multiple_of(ZERO_ALIGN), end / ZERO_ALIGN * ZERO_ALIGN);
    if first >= last {
        return write_zeros(file, offset, end);
    }
    write_zeros(file, offset, first)?;
    write_zeros(file, last, end)?;
    let unstored = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let stored = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    if fallocate(file, unstored, first, last - first).is_ok()
        || fallocate(file, stored, first, last - first).is_ok()
    {
        return Ok(());
    }
    write_zeros(file, first, last)
}

/// How many bytes from `offset` on, before `end`, are alike: in a hole, which reads as zeros, or not.
/// Moves the file's own offset.
pub(crate) fn hole_at(file: &File, offset: u64, end: u64) -> io::Result<(u64, bool)> {
    let data = match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data,
        // No data follows.
        Err(rustix::io::Errno::NXIO) => end,
        Err(error) => return Err(error.into()),
    };
    if data > offset {
        return Ok((data.min(end) - offset, true));
    }
    let hole = seek(file, SeekFrom::Hole(offset))?;
    Ok((hole.min(end) - offset, false))
}

/// Makes `len` bytes at `offset` read as zeros, and leaves them their place.
pub(crate) fn zero_in_place(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, len) {
        Ok(()) => Ok(()),
        Err(_) => write_zeros(file, offset, offset + len),
    }
}

/// Gives the first `size` bytes of a file, or of a block device, a place for good; they read as
/// zeros where they were none before.
pub(crate) fn preallocate(file: &File, size: u64) -> io::Result<()> {
    let flags = match file.metadata()?.file_type().is_block_device() {
        // A device would give the place back if its zeros were punched.
        true => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        false => FallocateFlags::empty(),
    };
    match fallocate(file, flags, 0, size) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
            write_zeros(file, 0, size)
        }
        result => Ok(result?),
    }
}

/// Makes `to` share all blocks of `from`, and have its length; true if the file system did. It does
/// not for files of two file systems, nor where it cannot (ioctl_ficlonerange(2)); what else may be
/// wrong shows when the bytes are copied instead.
pub(crate) fn reflink(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

fn write_zeros(file: &File, mut offset: u64, end: u64) -> io::Result<()> {
    while offset < end {
        let len = (end - offset).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], offset)?;
        offset += len;
    }
    Ok(())
}

/// Gives the open `file`, whatever its names are now, the name `to` as well; fails with
/// [`io::ErrorKind::AlreadyExists`] where `to` exists, and with [`io::ErrorKind::NotFound`] where
/// the file has lost its last name (open(2), of `/proc/self/fd`).
pub(crate) fn link_new(file: &File, to: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
}

/// Gives `from` the name `to` in one step that fails with [`io::ErrorKind::AlreadyExists`] where
/// `to` exists, whatever it is.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS and some FUSE file systems cannot; a second name is as atomic there.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs_err::hard_link(from, to)?;
            fs_err::remove_file(from)
        }
        result => Ok(result?),
    }
}

/// How many bytes an unprivileged user can still store on the file system of `file`.
pub(crate) fn free_bytes(file: impl AsFd) -> io::Result<u64> {
    let stat = fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// How often, and how long, one waits for a lock that somebody holds who only looks whether it is
/// free: that takes microseconds, and so does the start of a program, which has all files open.
const LOOKS_MAX: u32 = 4;
const LOOK: Duration = Duration::from_millis(5);
/// The same for a block device, which udev locks while it looks what is on it (systemd's
/// BLOCK_DEVICE_LOCKING).
const DEVICE_LOOKS_MAX: u32 = 40;

/// Opens a block device for this process alone. Without O_CREAT, O_EXCL makes the kernel refuse a
/// device that is mounted, is part of another device, or was opened so by another process, with
/// [`io::ErrorKind::ResourceBusy`] (open(2)). A file is opened as ever.
pub(crate) fn open_alone(path: &Path, write: bool) -> io::Result<File> {
    let mut options = fs_err::OpenOptions::new();
    let flags = OFlags::EXCL | OFlags::NONBLOCK;
    options.read(true).write(write).custom_flags(flags.bits() as i32);
    for _ in 0..LOOKS_MAX {
        match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(LOOK),
            result => return result.map(fs_err::File::into_file),
        }
    }
    options.open(path).map(fs_err::File::into_file)
}

/// Locks a file for one holder, or for many that share it, as soon as nobody else works with it.
pub(crate) fn try_lock(file: &File, shared: bool) -> Result<(), TryLockError> {
    let attempt = || if shared { file.try_lock_shared() } else { file.try_lock() };
    let is_device = file.metadata().is_ok_and(|found| found.file_type().is_block_device());
    for _ in 0..if is_device { DEVICE_LOOKS_MAX } else { LOOKS_MAX } {
        match attempt() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            result => return result,
        }
    }
    attempt()
}

/// Gives the file at `path` its new length, which is a hole, for good.
pub(crate) fn grow_file(path: &Path, len: u64) -> Result<(), Error> {
    let grow = || {
        let file = fs_err::OpenOptions::new().write(true).open(path)?;
        if file.metadata()?.len() < len {
            file.set_len(len)?;
        }
        file.sync_all()
    };
    grow().map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => Error::file_too_large(path, len),
        _ => Error::io(error, path, format!("cannot resize `{}`", path.display())),
    })
}

/// True if `path`, through whatever links, still leads to the open file or block device.
pub(crate) fn leads_to(path: &Path, file: &File) -> bool {
    let (Ok(named), Ok(open)) = (fs_err::metadata(path), file.metadata()) else { return false };
    is_one(&named, &open)
}

/// True if both paths lead to one file, or to one block device, which may have many files.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (fs_err::metadata(one), fs_err::metadata(other)) else {
        return false;
    };
    is_one(&one, &other)
}

fn is_one(one: &Metadata, other: &Metadata) -> bool {
    let devices = one.file_type().is_block_device() && other.file_type().is_block_device();
    (devices && one.rdev() == other.rdev()) || (one.dev(), one.ino()) == (other.dev(), other.ino())
}
