//! The socket itself: making it, taking clients, and taking it away.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::connection;
use super::station::Station;
use crate::{Cancel, Error};

/// Clients at once. Each costs two threads.
const CLIENTS_MAX: usize = 16;
/// Clients that wait to be taken.
const QUEUE_MAX: i32 = 16;
/// How long to wait when no client can be taken.
const RETRY: Duration = Duration::from_millis(100);
/// How long the last words may take to reach clients.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A control socket. Dropping it takes it away.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of the socket, which somebody may have replaced.
    identity: Option<(u64, u64)>,
    station: Station,
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `station` at `path`, for this user alone. A socket that a killed server has left there is
    /// replaced; anything else there is an error.
    pub fn listen(path: &Path, station: Station) -> Result<Self, Error> {
        let failed = |source| Error::ControlSocket { path: path.to_owned(), source };
        let listener = listen_at(path).map_err(failed)?;
        let identity = identity(path);
        let stop = Cancel::new().map_err(failed)?;
        let (ours, switch) = (station.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &ours, &switch))
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), identity, station, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.thread.take().map(JoinHandle::join);
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs_err::remove_file(&self.path);
        }
        self.station.close(LAST_WORDS);
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs_err::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A socket at `path`, for this user alone, that takes who connects without waiting. One that a killed
/// process has left there is replaced; anything else there is an error.
pub fn listen_at(path: &Path) -> io::Result<UnixListener> {
    match bound(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            clear(path)?;
            bound(path)
        }
        result => result,
    }
}

fn bound(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)
        .map_err(|_| io::Error::other("a socket's path has at most 107 bytes"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the mode that the socket has now: there is no moment in which others
    // could connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, QUEUE_MAX)?;
    Ok(socket.into())
}

/// Removes a socket that nobody listens to.
pub(crate) fn clear(path: &Path) -> io::Result<()> {
    if !fs_err::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::other("there is something else at this path"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::other("another machine serves it")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs_err::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Takes clients until it is told to stop.
fn accept(listener: &UnixListener, station: &Station, stop: &Cancel) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        match stop.wait(Some(rustix::fd::AsFd::as_fd(listener)), None) {
            Ok((false, true)) => {}
            Ok((false, false)) => continue,
            _ => return,
        }
        match listener.accept() {
            Ok((stream, _)) => take(stream, station, &clients),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Without descriptors, for instance: the client waits, and we do not spin.
            Err(_) => thread::sleep(RETRY),
        }
    }
}

fn take(stream: UnixStream, station: &Station, clients: &Arc<AtomicUsize>) {
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    if clients.load(Ordering::SeqCst) >= CLIENTS_MAX {
        connection::turn_away(stream, CLIENTS_MAX);
        return;
    }
    clients.fetch_add(1, Ordering::SeqCst);
    let place = Place(Arc::clone(clients));
    let station = station.clone();
    let serve = move || {
        let _place = place;
        // A client that breaks off is gone, and that is all.
        let _ = connection::serve(stream, &station);
    };
    // Without threads the client sees its connection closed.
    let _ = thread::Builder::new().name("control-client".to_owned()).spawn(serve);
}

/// A client's place, which is free again when this is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
