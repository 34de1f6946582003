//! Reads that have to wait for storage, many at once, by io_uring. What is in the host's memory already
//! is cheaper to take with a plain read and does not come here.
//!
//! A host may refuse io_uring (containers, a policy): [`Reads::new`] fails then, and the device's
//! thread waits for one read after the other.

#![expect(unsafe_code, reason = "the kernel writes to guest memory after the call has returned")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use bootyard_image::Pinned;
use io_uring::{IoUring, Probe, opcode, types};

use super::Segments;

/// Reads under way at once: beyond it the next one waits.
const READS_MAX: u32 = 128;
/// Most pieces of memory of one read (`IOV_MAX`). The rest is read when these are full.
const IOVECS_MAX: usize = 1024;

/// The reads under way of one thread. Those of a disk that lives for `'d` into memory that is mapped
/// for `'m`.
pub(super) struct Reads<'d, 'm> {
    ring: IoUring,
    reads: Vec<Option<FileRead<'d, 'm>>>,
    free: Vec<usize>,
    pinned: usize,
}

/// Memory to be filled from a file.
pub(super) struct FileRead<'d, 'm> {
    /// Tells the caller what it is part of.
    pub(super) tag: usize,
    pub(super) room: Segments<'m>,
    pub(super) file: BorrowedFd<'d>,
    pub(super) offset: u64,
    /// Keeps the data where it is.
    pub(super) pin: Option<Pinned<'d>>,
    /// What the kernel looks at.
    pub(super) iovecs: Vec<libc::iovec>,
}

impl<'d, 'm> Reads<'d, 'm> {
    /// Fails where the host has no io_uring that reads files.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_clamp().build(READS_MAX)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Readv::CODE) || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let entries = ring.params().sq_entries() as usize;
        let reads = (0..entries).map(|_| None).collect();
        Ok(Self { ring, reads, free: (0..entries).collect(), pinned: 0 })
    }

    /// None is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.reads.len()
    }

    /// There is no room for another one before one has ended.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Some of them pin what they read.
    pub(super) fn has_pins(&self) -> bool {
        self.pinned > 0
    }

    /// Starts a read. There must be room for it. The kernel sees it with the next
    /// [`Reads::submit`].
    pub(super) fn start(&mut self, read: FileRead<'d, 'm>) {
        let slot = self.free.pop().expect("the caller has made room");
        self.pinned += usize::from(read.pin.is_some());
        self.reads[slot] = Some(read);
        self.push(slot);
    }

    fn push(&mut self, slot: usize) {
        let read = self.reads[slot].as_mut().expect("the slot is in use");
        let pieces = read.room.iovecs(0..read.room.left());
        read.iovecs.clear();
        read.iovecs.extend(pieces.take(IOVECS_MAX));
        let count = read.iovecs.len() as u32;
        let fd = types::Fd(read.file.as_raw_fd());
        let entry = opcode::Readv::new(fd, read.iovecs.as_ptr(), count).offset(read.offset).build();
        let entry = entry.user_data(slot as u64);
        // SAFETY: the file is open for `'d`, the guest's memory mapped for `'m`, and the list of its
        // pieces stays in its slot, until the read has ended: `Drop` waits for that.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("there are not more slots than entries, and each is in the queue once");
    }

    /// Hands what was started to the kernel, which may take a part at a time.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            retry(|| self.ring.submit())?;
        }
        Ok(())
    }

    /// Tells `done` of each read that has ended its tag, how far it came, and how it ended; waits for at least one, if one is under way, if it
    /// is told to.
    pub(super) fn reap(
        &mut self,
        wait: bool,
        mut done: impl FnMut(usize, u64, io::Result<()>),
    ) -> io::Result<()> {
        if wait && !self.is_idle() {
            retry(|| self.ring.submit_and_wait(1))?;
        }
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            let slot = entry.user_data() as usize;
            let read = self.reads[slot].as_mut().expect("it was under way");
            let result = match entry.result() {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                len @ 1.. => {
                    read.room.advance(len as usize);
                    read.offset += len as u64;
                    Ok(())
                }
                code => Err(io::Error::from_raw_os_error(-code)),
            };
            let again = match &result {
                Ok(()) => read.room.left() > 0,
                Err(error) => {
                    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
                }
            };
            if again {
                self.push(slot);
                continue;
            }
            let (tag, offset) = (read.tag, read.offset);
            self.pinned -= usize::from(read.pin.is_some());
            self.reads[slot] = None;
            self.free.push(slot);
            done(tag, offset, result);
        }
        self.submit()
    }
}

/// Calls again what a signal interrupted, or what the kernel has no memory for just now.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // EAGAIN and EBUSY (io_uring_enter(2)).
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
                ) =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result.map(drop),
        }
    }
}

/// Becomes ready when a read has ended.
impl AsRawFd for Reads<'_, '_> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Waits for all: nothing is written to guest memory behind the device's back.
impl Drop for Reads<'_, '_> {
    fn drop(&mut self) {
        while !self.is_idle() {
            // Fails where the kernel is out of memory just now. The guest's memory must stay until it
            // has worked.
            if self.reap(true, |_, _, _| ()).is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl std::fmt::Debug for Reads<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reads").field("free", &self.free.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_short_of_memory_is_asked_again() {
        let mut answers = [libc::EAGAIN, libc::EINTR, libc::EBUSY].into_iter();
        retry(|| answers.next().map_or(Ok(1), |code| Err(io::Error::from_raw_os_error(code))))
            .unwrap();
        let error = retry(|| Err(io::Error::from_raw_os_error(libc::EBADF))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
