//! A pipe that ties a machine to its supervisor: nobody ever writes to it, and when the supervisor
//! ends, however it ends, the machine reads end of file and ends too.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use fs_err::File;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};

/// The supervisor's half. Dropping it ends the machine.
#[derive(Debug)]
pub(crate) struct Lifeline {
    /// Never written.
    _held: OwnedFd,
    child: Option<OwnedFd>,
}

impl Lifeline {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Another child that is started at this moment inherits the reading end too, which keeps
        // nothing alive: only the writing end does.
        fcntl_setfd(&read, FdFlags::empty())?;
        Ok(Self { _held: write, child: Some(read) })
    }

    /// The number of the descriptor that the child inherits.
    pub(crate) fn number(&self) -> i32 {
        self.child.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Closes this process's copy of the child's end, once the child has its own.
    pub(crate) fn handed_over(&mut self) {
        self.child = None;
    }
}

/// The machine's half, by the number of the descriptor that the command line names.
pub fn take(number: i32) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{number}"))
}

/// Calls `then` on a thread of its own when the supervisor is gone, at the other end of `pipe`.
pub fn watch(mut pipe: File, then: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("lifeline".to_owned()).spawn(move || {
        // Both end of file and an error mean that nobody holds the other end any more.
        while pipe.read(&mut [0]).is_ok_and(|len| len > 0) {}
        then();
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn closing_the_supervisors_end_wakes_the_machine() {
        let lifeline = Lifeline::new().unwrap();
        let (sent, received) = mpsc::channel();
        watch(take(lifeline.number()).unwrap(), move || sent.send(()).unwrap()).unwrap();
        assert!(received.recv_timeout(Duration::from_millis(50)).is_err());
        drop(lifeline);
        received.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_descriptor_that_is_not_there_is_an_error() {
        assert!(take(99_999).is_err());
    }
}
