//! The host's sockets for a guest's network: none of them blocks, and epoll(7) tells by edges what they
//! are ready for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bootyard_usernet::{Close, Host, Ready, SocketId};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto,
    sockopt,
};

/// Datagrams of one peer that wait for the guest; what comes beyond is lost, as on any link.
const WAITING_MAX: usize = 64;
/// Bytes of all peers' datagrams that wait: anybody can send, and under any number of ports.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// What epoll tells of a socket of a flow.
const EDGES: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

#[derive(Debug)]
enum Socket {
    Tcp {
        fd: OwnedFd,
        is_connecting: bool,
    },
    /// UDP or echo requests, connected to the other end.
    Datagrams(OwnedFd),
    /// One of those who send to a forwarded UDP port.
    Peer {
        socket: Arc<OwnedFd>,
        address: SocketAddr,
        waiting: VecDeque<Vec<u8>>,
    },
}

/// All sockets of the flows of one guest.
#[derive(Debug)]
pub(super) struct Sockets {
    epoll: OwnedFd,
    sockets: HashMap<SocketId, Socket>,
    accepted: u64,
    /// Bytes of datagrams that wait for the guest.
    waiting_bytes: usize,
}

impl Sockets {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, sockets: HashMap::new(), accepted: 0, waiting_bytes: 0 })
    }

    /// The epoll instance, which is itself readable while it has something to tell.
    pub(super) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Takes a TCP connection that came in.
    pub(super) fn accept(&mut self, fd: OwnedFd) -> io::Result<SocketId> {
        let id = self.next_id();
        self.insert_tcp(id, fd, false)?;
        Ok(id)
    }

    /// A peer who sends to a forwarded UDP port, with the first datagram.
    pub(super) fn add_peer(
        &mut self,
        socket: &Arc<OwnedFd>,
        address: SocketAddr,
        first: &[u8],
    ) -> SocketId {
        let (id, socket) = (self.next_id(), Arc::clone(socket));
        let waiting = VecDeque::new();
        self.sockets.insert(id, Socket::Peer { socket, address, waiting });
        self.deliver(id, first);
        id
    }

    /// Another datagram of a known peer. False if the flow has ended.
    pub(super) fn deliver(&mut self, id: SocketId, datagram: &[u8]) -> bool {
        let Some(Socket::Peer { waiting, .. }) = self.sockets.get_mut(&id) else { return false };
        if waiting.len() < WAITING_MAX && self.waiting_bytes + datagram.len() <= WAITING_BYTES_MAX {
            self.waiting_bytes += datagram.len();
            waiting.push_back(datagram.to_vec());
        }
        true
    }

    /// Whether a socket with this number is open.
    pub(super) fn is_open(&self, id: SocketId) -> bool {
        self.sockets.contains_key(&id)
    }

    /// What the edges that epoll reported mean. None for a socket that is closed.
    pub(super) fn ready(&mut self, id: SocketId, edges: EventFlags) -> Option<Ready> {
        let has = |flags: EventFlags| edges.intersects(flags);
        let ended = EventFlags::HUP | EventFlags::ERR;
        let ready = Ready {
            readable: has(EventFlags::IN | EventFlags::RDHUP | ended),
            writable: has(EventFlags::OUT | ended),
            failed: false,
        };
        match self.sockets.get_mut(&id)? {
            Socket::Tcp { fd, is_connecting } if *is_connecting => {
                if !ready.writable {
                    return None;
                }
                let is_open = matches!(sockopt::socket_error(&*fd), Ok(Ok(())));
                *is_connecting = !is_open;
                match is_open {
                    true => Some(ready),
                    false => Some(Ready { failed: true, ..Ready::default() }),
                }
            }
            _ => Some(ready),
        }
    }

    /// Even numbers: the stack's own are odd.
    fn next_id(&mut self) -> SocketId {
        self.accepted += 1;
        SocketId(self.accepted * 2)
    }

    fn insert_tcp(&mut self, id: SocketId, fd: OwnedFd, is_connecting: bool) -> io::Result<()> {
        // When to send what is the guest's decision, which has an algorithm of its own for that.
        sockopt::set_tcp_nodelay(&fd, true)?;
        // The guest's own probes end here, so that others find out whether the peer is still there.
        sockopt::set_socket_keepalive(&fd, true)?;
        self.watch(id, &fd)?;
        self.sockets.insert(id, Socket::Tcp { fd, is_connecting });
        Ok(())
    }

    fn insert_datagrams(&mut self, id: SocketId, fd: OwnedFd) -> io::Result<()> {
        self.watch(id, &fd)?;
        self.sockets.insert(id, Socket::Datagrams(fd));
        Ok(())
    }

    fn watch(&self, id: SocketId, fd: &OwnedFd) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(id.0), EDGES)?)
    }
}

/// A socket for `to` that does not block.
pub(super) fn socket(
    to: IpAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> io::Result<OwnedFd> {
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, kind, flags, protocol)?)
}

impl Host for Sockets {
    fn open_tcp(&mut self, id: SocketId, to: SocketAddr) -> io::Result<()> {
        let fd = socket(to.ip(), SocketType::STREAM, None)?;
        let is_connecting = match rustix::net::connect(&fd, &to) {
            Ok(()) => false,
            Err(rustix::io::Errno::INPROGRESS) => true,
            Err(error) => return Err(error.into()),
        };
        self.insert_tcp(id, fd, is_connecting)
    }

    fn open_udp(&mut self, id: SocketId, to: SocketAddr) -> io::Result<()> {
        let fd = socket(to.ip(), SocketType::DGRAM, None)?;
        rustix::net::connect(&fd, &to)?;
        self.insert_datagrams(id, fd)
    }

    fn open_ping(&mut self, id: SocketId, to: IpAddr) -> io::Result<()> {
        let protocol = match to {
            IpAddr::V4(_) => ipproto::ICMP,
            IpAddr::V6(_) => ipproto::ICMPV6,
        };
        let fd = socket(to, SocketType::DGRAM, Some(protocol))?;
        rustix::net::connect(&fd, &SocketAddr::new(to, 0))?;
        self.insert_datagrams(id, fd)
    }

    fn send(&mut self, id: SocketId, data: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL;
        Ok(match self.sockets.get(&id) {
            Some(Socket::Tcp { fd, .. } | Socket::Datagrams(fd)) => {
                rustix::net::send(fd, data, flags)?
            }
            Some(Socket::Peer { socket, address, .. }) => {
                rustix::net::sendto(&**socket, data, flags, address)?
            }
            None => return Err(io::ErrorKind::NotConnected.into()),
        })
    }

    fn receive(&mut self, id: SocketId, buf: &mut [u8]) -> io::Result<usize> {
        match self.sockets.get_mut(&id) {
            Some(Socket::Tcp { fd, .. }) => Ok(rustix::net::recv(fd, buf, RecvFlags::empty())?.0),
            Some(Socket::Datagrams(fd)) => Ok(rustix::net::recv(fd, buf, RecvFlags::TRUNC)?.1),
            Some(Socket::Peer { waiting, .. }) => {
                let datagram = waiting.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
                self.waiting_bytes -= datagram.len();
                let len = datagram.len().min(buf.len());
                buf[..len].copy_from_slice(&datagram[..len]);
                Ok(datagram.len())
            }
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn shut_down(&mut self, id: SocketId) {
        if let Some(Socket::Tcp { fd, .. }) = self.sockets.get(&id) {
            // Fails only where the other end is gone, which reading tells too.
            let _ = rustix::net::shutdown(fd, Shutdown::Write);
        }
    }

    fn close(&mut self, id: SocketId, how: Close) {
        match self.sockets.remove(&id) {
            Some(Socket::Tcp { fd, .. }) if how == Close::Reset => {
                // If it fails, the other end is told of an end instead of a reset.
                let _ = sockopt::set_socket_linger(&fd, Some(Duration::ZERO));
            }
            Some(Socket::Peer { waiting, .. }) => {
                self.waiting_bytes -= waiting.iter().map(Vec::len).sum::<usize>();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_of_all_peers_has_a_limit() {
        let mut sockets = Sockets::new().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let udp = Arc::new(socket(any.ip(), SocketType::DGRAM, None).unwrap());
        let datagram = vec![0; 60_000];
        let peers: Vec<SocketId> =
            (0..200).map(|_| sockets.add_peer(&udp, any, &datagram)).collect();
        assert!(sockets.waiting_bytes <= WAITING_BYTES_MAX);
        let mut buf = vec![0; 65_535];
        assert_eq!(sockets.receive(peers[0], &mut buf).unwrap(), 60_000);
        assert!(sockets.receive(peers[199], &mut buf).is_err(), "it was lost");
        assert!(sockets.deliver(peers[199], &datagram));
        assert_eq!(sockets.receive(peers[199], &mut buf).unwrap(), 60_000);
        peers.into_iter().for_each(|id| sockets.close(id, Close::Gently));
        assert_eq!(sockets.waiting_bytes, 0);
    }
}
