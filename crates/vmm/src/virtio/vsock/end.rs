//! The host's end of a socket device: where clients connect, and where services of the host listen.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The host's end of a socket device, which outlives the guest's restarts. Clones are the same end.
#[derive(Debug, Clone)]
pub struct VsockEnd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    listener: UnixListener,
    path: PathBuf,
}

impl VsockEnd {
    /// An end whose clients connect to `listener`, which is bound to `path`. Services that the guest
    /// connects to listen at `path` with `_` and their port's number behind it.
    pub fn new(listener: UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(Arc::new(Shared { listener, path: path.to_owned() })))
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.0.listener
    }

    /// Connects to the service of `port`, without waiting for one that is busy.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.0.path.as_os_str().as_bytes().to_vec();
        path.extend(format!("_{port}").as_bytes());
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path.as_slice())?)?;
        Ok(socket.into())
    }
}
