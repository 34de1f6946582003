//! Asking a running supervisor to stop, from a signal handler's thread or anywhere else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

/// A switch that is turned once. Clones are the same switch.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<(OwnedFd, OwnedFd)>);

impl Cancel {
    /// A switch that is off.
    pub fn new() -> io::Result<Self> {
        let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self(Arc::new(pipe)))
    }

    /// Turns it on; every wait ends.
    pub fn cancel(&self) {
        // The pipe is full only if it was turned on often enough already.
        let _ = rustix::io::write(&self.0.1, &[0]);
    }

    /// Waits until it is on, until `other` is readable, or until `timeout` has passed. Returns
    /// whether it is on, and whether `other` is readable.
    pub(crate) fn wait(
        &self,
        other: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> io::Result<(bool, bool)> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.0.0.as_fd(), PollFlags::IN)];
        fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            // A signal: the caller looks at the clock and waits again.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok((is_ready(&fds[0]), fds.get(1).is_some_and(is_ready)))
    }
}
