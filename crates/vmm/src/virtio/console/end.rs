//! The host's end of a port: a UNIX socket, at which one client at a time is served.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The host's end of a port. It outlives the guest's restarts, together with its client. Clones are the
/// same end.
#[derive(Debug, Clone)]
pub struct HostEnd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    listener: Option<UnixListener>,
    state: Mutex<State>,
    resized: EventFd,
}

#[derive(Debug, Default)]
struct State {
    /// The client while no device has it.
    client: Option<UnixStream>,
    size: Option<Size>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl HostEnd {
    /// An end to which clients connect, one after the other. Others wait.
    pub fn listening(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::new(Some(listener), None)
    }

    /// An end whose one client is at the other end of `stream`.
    pub fn connected(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::new(None, Some(stream))
    }

    fn new(listener: Option<UnixListener>, client: Option<UnixStream>) -> io::Result<Self> {
        let state = Mutex::new(State { client, size: None });
        Ok(Self(Arc::new(Shared { listener, state, resized: EventFd::new(EFD_NONBLOCK)? })))
    }

    /// Tells the guest how large the terminal is. Only a console has a size.
    pub fn resize(&self, size: Size) {
        self.state().size = Some(size);
        // Fails only for a counter at its limit, which wakes the device just as well.
        let _ = self.0.resized.write(1);
    }

    pub(super) fn size(&self) -> Option<Size> {
        self.state().size
    }

    pub(super) fn resized(&self) -> &EventFd {
        &self.0.resized
    }

    pub(super) fn listener(&self) -> Option<&UnixListener> {
        self.0.listener.as_ref()
    }

    /// The client that came last, if nobody has it.
    pub(super) fn take_client(&self) -> Option<UnixStream> {
        self.state().client.take()
    }

    /// Keeps a client for the next device.
    pub(super) fn keep_client(&self, client: UnixStream) {
        self.state().client = Some(client);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of this lock panics")
    }
}
