//! Real sockets on the loopback device. Nothing is known of edges: after each pause every socket may
//! be ready for everything, which costs a call and is always true enough.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};

use super::*;

pub(super) enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

#[derive(Default)]
pub(super) struct Sockets {
    pub(super) sockets: BTreeMap<SocketId, Socket>,
    /// Connections that could not be opened.
    pub(super) failed: Vec<SocketId>,
    /// Opens nothing, and says that it did.
    pub(super) refuses: bool,
    accepted: u64,
}

impl Sockets {
    pub(super) fn accept(&mut self, stream: TcpStream) -> SocketId {
        self.accepted += 1;
        let id = SocketId(self.accepted * 2);
        stream.set_nonblocking(true).unwrap();
        self.sockets.insert(id, Socket::Tcp(stream));
        id
    }
}

impl Host for Sockets {
    fn open_tcp(&mut self, id: SocketId, to: SocketAddr) -> io::Result<()> {
        if self.refuses {
            return Ok(());
        }
        match TcpStream::connect(to) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                self.sockets.insert(id, Socket::Tcp(stream));
            }
            Err(_) => self.failed.push(id),
        }
        Ok(())
    }

    fn open_udp(&mut self, id: SocketId, to: SocketAddr) -> io::Result<()> {
        if self.refuses {
            return Ok(());
        }
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        self.sockets.insert(id, Socket::Udp(socket));
        Ok(())
    }

    fn open_ping(&mut self, _: SocketId, _: IpAddr) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn send(&mut self, id: SocketId, data: &[u8]) -> io::Result<usize> {
        match self.sockets.get_mut(&id) {
            Some(Socket::Tcp(stream)) => stream.write(data),
            Some(Socket::Udp(socket)) => socket.send(data),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn receive(&mut self, id: SocketId, buf: &mut [u8]) -> io::Result<usize> {
        match self.sockets.get_mut(&id) {
            Some(Socket::Tcp(stream)) => stream.read(buf),
            Some(Socket::Udp(socket)) => socket.recv(buf),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn shut_down(&mut self, id: SocketId) {
        if let Some(Socket::Tcp(stream)) = self.sockets.get(&id) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn close(&mut self, id: SocketId, how: Close) {
        if let Some(Socket::Tcp(stream)) = self.sockets.remove(&id)
            && how == Close::Reset
        {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
    }
}
