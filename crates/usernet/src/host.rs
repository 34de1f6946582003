//! The host's side of a network, as its driver gives it: sockets that do not block.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// A socket of the host. The stack numbers those that it opens with odd numbers; a driver numbers
/// what comes in by itself ([`crate::Stack::inbound`]) with even ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u64);

/// How a socket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// What was sent still arrives.
    Gently,
    /// The peer is told that the connection broke (RST).
    Reset,
}

/// What became of a socket since it was last told: the edges of epoll(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// Reading may find something: bytes, the end, or an error.
    pub readable: bool,
    /// Writing may go on; a TCP connection that was being opened is open.
    pub writable: bool,
    /// A TCP connection could not be opened.
    pub failed: bool,
}

/// What somebody outside began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound {
    /// A TCP connection that was accepted.
    Tcp,
    /// The first UDP datagram of a peer.
    Udp,
}

/// Sockets that do not block: an operation that cannot be done now fails with
/// [`io::ErrorKind::WouldBlock`], and an edge is reported when it can.
pub trait Host {
    /// Begins to connect. Success or failure is reported as [`Ready::writable`] or [`Ready::failed`].
    fn open_tcp(&mut self, id: SocketId, to: SocketAddr) -> io::Result<()>;

    /// Opens a socket for datagrams to and from `to`.
    fn open_udp(&mut self, id: SocketId, to: SocketAddr) -> io::Result<()>;

    /// Opens a socket for echo requests to `to` and their replies: whole ICMP messages, whose
    /// identifier is the system's.
    fn open_ping(&mut self, id: SocketId, to: IpAddr) -> io::Result<()>;

    /// Sends as much as the socket takes: all or nothing of a datagram.
    fn send(&mut self, id: SocketId, data: &[u8]) -> io::Result<usize>;

    /// Receives into `buf`: of TCP what is there, 0 for the end; else one datagram, whose whole length
    /// is told even if `buf` is shorter and the rest is lost (MSG_TRUNC).
    fn receive(&mut self, id: SocketId, buf: &mut [u8]) -> io::Result<usize>;

    /// Nothing more will be sent on a TCP connection.
    fn shut_down(&mut self, id: SocketId);

    /// Ends a socket. Its number is not used again.
    fn close(&mut self, id: SocketId, how: Close);
}
