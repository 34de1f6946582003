//! The guest memory of a request: what a descriptor chain names, in its order, as the kernel takes it
//! to move data between it and a file without a copy on the way.
//!
//! The guest reads and writes this memory whenever it likes. Nothing here makes a slice of it: bytes
//! are copied out and in, or the kernel is given addresses.

#![expect(unsafe_code, reason = "the kernel reads and writes guest memory by its addresses")]

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use bootyard_image::Payload;
use vm_memory::VolatileSlice;

/// Most pieces of memory of one system call (`IOV_MAX`).
const IOVECS_MAX: usize = 1024;

/// Pieces of guest memory, read or written from the front on.
#[derive(Clone, Default)]
pub struct Segments<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    /// The first piece that is not done.
    first: usize,
    left: usize,
    done: usize,
}

/// Whether a read may wait for storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It waits.
    Waits,
    /// It takes what is in memory, or fails with [`io::ErrorKind::WouldBlock`].
    Hurries,
}

impl<'m> Segments<'m> {
    /// Adds memory behind the rest.
    pub(super) fn push(&mut self, piece: VolatileSlice<'m>) {
        if !piece.is_empty() {
            self.left += piece.len();
            self.pieces.push(piece);
        }
    }

    /// The memory that is left.
    pub(super) fn pieces(&self) -> &[VolatileSlice<'m>] {
        &self.pieces[self.first..]
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Bytes that are done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Cuts off what is behind the first `len` bytes of those that are left. None if there are not
    /// so many.
    pub fn split_off(&mut self, len: usize) -> Option<Self> {
        let behind = self.left.checked_sub(len)?;
        let (mut keep, mut at) = (len, self.first);
        while at < self.pieces.len() && self.pieces[at].len() <= keep {
            keep -= self.pieces[at].len();
            at += 1;
        }
        let mut pieces = self.pieces.split_off(at);
        if keep > 0 {
            let (before, after) = pieces[0].split_at(keep).expect("the cut is within the piece");
            self.pieces.push(before);
            pieces[0] = after;
        }
        self.left = len;
        Some(Self { pieces, first: 0, left: behind, done: 0 })
    }

    /// Cuts off the first `len` bytes of those that are left, or all there are, for use elsewhere.
    /// They count as done here.
    pub(crate) fn take_front(&mut self, len: usize) -> Self {
        let len = len.min(self.left);
        let done = self.done + len;
        let rest = self.split_off(len).expect("there are so many");
        let front = std::mem::replace(self, Self { done, ..rest });
        Self { done: 0, ..front }
    }

    /// Makes the first `len` bytes zeros, which then are done.
    pub(super) fn zero(&mut self, len: usize) {
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut left = len.min(self.left);
        while left > 0 {
            let part = left.min(ZEROS.len());
            left -= self.copy_from(&ZEROS[..part]);
        }
    }

    /// Fills the first `len` bytes from `file` at `offset`. Gives how many it filled, which are done
    /// then: fewer where the file ends, or, for who [`Patience::Hurries`], where it would have to
    /// wait.
    pub(super) fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        patience: Patience,
    ) -> io::Result<usize> {
        let flags = if patience == Patience::Hurries { libc::RWF_NOWAIT } else { 0 };
        let wanted = len.min(self.left);
        let mut filled = 0;
        while filled < wanted {
            let at = place(offset, filled)?;
            let read = self.with_iovecs(0..wanted - filled, |iovecs| {
                // SAFETY: the addresses are of guest memory, which stays mapped as long as it is
                // borrowed, and of which Rust code has no references.
                unsafe {
                    libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), count(iovecs), at, flags)
                }
            });
            match read {
                Ok(0) => break,
                Ok(read) => {
                    self.advance(read);
                    filled += read;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if filled > 0 && patience == Patience::Hurries => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// The addresses of `range` of what is left, as the kernel takes them.
    pub(super) fn iovecs(&self, range: Range<usize>) -> impl Iterator<Item = libc::iovec> {
        let (mut skip, mut left) = (range.start, range.len());
        self.pieces[self.first..].iter().map_while(move |piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let len = (piece.len() - skipped).min(left);
            left -= len;
            let guard = piece.ptr_guard_mut();
            // Within the piece, or at its end where nothing of it is meant.
            let iov_base = guard.as_ptr().wrapping_add(skipped).cast();
            (len > 0 || skip > 0 || left > 0).then_some(libc::iovec { iov_base, iov_len: len })
        })
    }

    /// Hands the addresses of `range` to a system call, as many as it takes.
    fn with_iovecs(
        &self,
        range: Range<usize>,
        call: impl FnOnce(&[libc::iovec]) -> isize,
    ) -> io::Result<usize> {
        let mut iovecs = self.iovecs(range).filter(|iovec| iovec.iov_len > 0);
        let first = iovecs.next();
        let result = match (first, iovecs.next()) {
            (Some(first), None) => call(&[first]),
            (first, second) => {
                let some = first.into_iter().chain(second).chain(iovecs);
                call(&some.take(IOVECS_MAX).collect::<Vec<_>>())
            }
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Copies bytes of `buf` to the front, as many as there is room for. Gives how many.
    fn copy_from(&mut self, buf: &[u8]) -> usize {
        let mut rest = buf;
        while let Some(piece) = self.pieces.get(self.first).filter(|_| !rest.is_empty()) {
            let len = piece.len().min(rest.len());
            piece.copy_from(&rest[..len]);
            rest = &rest[len..];
            self.advance(len);
        }
        buf.len() - rest.len()
    }

    /// The first `len` bytes are done.
    pub(super) fn advance(&mut self, len: usize) {
        let mut rest = len.min(self.left);
        self.left -= rest;
        self.done += rest;
        while rest > 0 {
            let piece = &mut self.pieces[self.first];
            if rest < piece.len() {
                *piece = piece.offset(rest).expect("the offset is within the piece");
                return;
            }
            rest -= piece.len();
            self.first += 1;
        }
    }
}

fn count(iovecs: &[libc::iovec]) -> libc::c_int {
    // At most `IOVECS_MAX`.
    iovecs.len() as libc::c_int
}

/// The place in a file that is `distance` behind `offset`.
fn place(offset: u64, distance: usize) -> io::Result<libc::off_t> {
    let at = offset.checked_add(distance as u64).and_then(|at| at.try_into().ok());
    at.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Payload for Segments<'_> {
    fn size(&self) -> usize {
        self.left
    }

    fn copy_to(&self, at: usize, buf: &mut [u8]) {
        let mut skip = at;
        let mut rest = buf;
        for piece in &self.pieces[self.first..] {
            if rest.is_empty() {
                return;
            }
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let piece = piece.offset(skipped).expect("the offset is within the piece");
            let copied = piece.copy_to(rest);
            rest = &mut rest[copied..];
        }
    }

    fn write_to(&self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let mut written = 0;
        while written < range.len() {
            let at = place(offset, written)?;
            let result = self.with_iovecs(range.start + written..range.end, |iovecs| {
                // SAFETY: as in `read_from`; the kernel only reads this memory.
                unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count(iovecs), at) }
            });
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for Segments<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.left);
        self.copy_to(0, &mut buf[..len]);
        self.advance(len);
        Ok(len)
    }
}

impl Write for Segments<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(self.copy_from(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Segments<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments")
            .field("left", &self.left)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

    use super::*;

    /// Three pieces of 5, 7 and 4 bytes that count up from 0, with gaps between.
    fn segments(memory: &GuestMemoryMmap) -> Segments<'_> {
        let mut segments = Segments::default();
        let mut next = 0;
        for (address, len) in [(10, 5), (100, 7), (50, 4)] {
            let bytes: Vec<u8> = (next..next + len).collect();
            next += len;
            memory.write_slice(&bytes, GuestAddress(address)).unwrap();
            let at = GuestAddress(address);
            for slice in memory.get_slices(at, usize::from(len), Permissions::Write).unwrap() {
                segments.push(slice.unwrap());
            }
        }
        segments
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap()
    }

    fn file(bytes: &[u8]) -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        file
    }

    #[test]
    fn any_range_is_copied_and_written_to_a_file() {
        use std::os::fd::AsFd;
        let memory = memory();
        for skipped in 0..=16 {
            let mut segments = segments(&memory);
            segments.read_exact(&mut vec![0; skipped]).unwrap();
            let left = 16 - skipped;
            assert_eq!((segments.left(), segments.done()), (left, skipped));
            for start in 0..=left {
                for end in start..=left {
                    let expected: Vec<u8> =
                        (skipped + start..skipped + end).map(|at| at as u8).collect();
                    let mut copied = vec![0xee; end - start];
                    segments.copy_to(start, &mut copied);
                    assert_eq!(copied, expected);
                    let file = file(&[]);
                    segments.write_to(start..end, file.as_fd(), 3).unwrap();
                    let mut stored = vec![0; end - start];
                    std::os::unix::fs::FileExt::read_exact_at(&file, &mut stored, 3).unwrap();
                    assert_eq!(stored, expected, "{skipped} {start}..{end}");
                }
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_gone_here_and_whole_there() {
        let memory = memory();
        for first in 0..=16 {
            for second in 0..=16 - first {
                let mut front = segments(&memory);
                let mut middle = front.split_off(first).unwrap();
                let mut found = [front.left(), 0, 0];
                let mut cut = middle.take_front(second);
                (found[1], found[2]) = (cut.left(), middle.left());
                assert_eq!(found, [first, second, 16 - first - second]);
                assert_eq!((middle.done(), cut.done()), (second, 0));
                let mut bytes = Vec::new();
                for part in [&mut front, &mut cut, &mut middle] {
                    part.read_to_end(&mut bytes).unwrap();
                }
                assert_eq!(bytes, (0..16).collect::<Vec<u8>>());
            }
        }
        assert!(segments(&memory).split_off(17).is_none());
    }

    #[test]
    fn a_file_fills_memory_up_to_its_end() {
        use std::os::fd::AsFd;
        let memory = memory();
        let file = file(&(100..110).collect::<Vec<u8>>());
        for patience in [Patience::Waits, Patience::Hurries] {
            let mut segments = segments(&memory);
            segments.write_all(&[1, 2]).unwrap();
            let read = segments.read_from(file.as_fd(), 1, 14, patience);
            // Not every file system can hurry.
            let Ok(read) = read else {
                assert_eq!(patience, Patience::Hurries);
                continue;
            };
            assert_eq!((read, segments.left(), segments.done()), (9, 5, 11));
            segments.zero(2);
            let mut bytes = [0; 7];
            memory.read_slice(&mut bytes, GuestAddress(100)).unwrap();
            assert_eq!(bytes, [104, 105, 106, 107, 108, 109, 0]);
            memory.read_slice(&mut bytes[..4], GuestAddress(50)).unwrap();
            assert_eq!(bytes[..4], [0, 13, 14, 15]);
            memory.read_slice(&mut bytes[..5], GuestAddress(10)).unwrap();
            assert_eq!(bytes[..5], [1, 2, 101, 102, 103]);
        }
        let error = segments(&memory).read_from(file.as_fd(), u64::MAX - 3, 9, Patience::Waits);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
