//! Descriptors that a machine's process was started with, by their numbers.

#![expect(unsafe_code, reason = "a descriptor is asked for by its number")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A copy of the inherited descriptor `number`, which no program that is started later inherits, and
/// `number` itself no longer either.
///
/// # Errors
///
/// There is no such descriptor, or there are too many.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only, and makes a new descriptor without changing what is open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; whoever may own `number` still does.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the kernel has just made it for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_taken_by_its_number() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut copy = UnixStream::from(inherited(ours.as_raw_fd()).unwrap());
        drop(ours);
        theirs.write_all(b"x").unwrap();
        let mut byte = [0];
        copy.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        for missing in [99_999, -1] {
            assert_eq!(inherited(missing).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
