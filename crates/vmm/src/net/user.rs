//! The guest's network by ordinary sockets of this process, without privileges: `usernet`'s state machine
//! with epoll(7) and a clock.

mod peers;
mod sockets;

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootyard_usernet::{Close, Config, Host, Inbound, Ready, SocketId, Stack, Statistics};
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::net::{RecvFlags, SocketFlags, SocketType, sockopt};
use vmm_sys_util::epoll::EventSet;

use self::peers::Peers;
use self::sockets::Sockets;
use super::{Backend, HEADER_LEN, Header, feature};

/// What this network does for a driver: checksums and segments are never looked at between it and the
/// host's sockets, so that both are left away in both directions.
const FEATURES: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6;

/// Tokens of forwards; those of flows are their sockets' numbers, which never get that far.
const FORWARD_TOKEN: u64 = 1 << 63;

/// How many connections or datagrams of a forward are taken before others have their turn.
const TURN: u32 = 64;

/// How many events are taken from the kernel at once.
const EVENTS: usize = 64;

/// How long forwards rest after the host had no descriptor left for a connection.
const REST: Duration = Duration::from_millis(200);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A port of the host behind which a port of the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Which protocol's port.
    pub protocol: ForwardProtocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// Of which protocol a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardProtocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            ForwardProtocol::Tcp => "tcp",
            ForwardProtocol::Udp => "udp",
        };
        write!(f, "{} to port {} of the guest ({protocol})", self.host, self.guest_port)
    }
}

/// A guest's network by sockets.
#[derive(Debug)]
pub struct UserNet {
    config: Config,
    forwards: Vec<Listener>,
    stack: Stack,
    sockets: Sockets,
    began: Instant,
    /// Until when nothing new is accepted.
    resting_until: Option<Duration>,
}

#[derive(Debug)]
struct Listener {
    forward: Forward,
    socket: Arc<OwnedFd>,
    peers: Peers,
}

impl UserNet {
    /// A network as `config` describes it, with ports of the host that lead into the guest. What the
    /// driver accepts is added to the configuration later, and the seed is made here. The error names the forward that the host
    /// refuses.
    pub fn new(mut config: Config, forwards: &[Forward]) -> io::Result<Self> {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        config.seed = u64::from_ne_bytes(seed);
        let listen = |forward: &Forward| {
            Listener::new(*forward)
                .map_err(|error| io::Error::new(error.kind(), format!("{forward}: {error}")))
        };
        let forwards = forwards.iter().map(listen).collect::<io::Result<_>>()?;
        let (stack, sockets) = (Stack::new(config.clone()), Sockets::new()?);
        #[expect(clippy::disallowed_methods, reason = "this drives the stack, which has no clock")]
        let began = Instant::now();
        let net = Self { config, forwards, stack, sockets, began, resting_until: None };
        net.watch_forwards()?;
        Ok(net)
    }

    /// Where the forwards listen, in the order in which they were given.
    pub fn forwards(&self) -> impl Iterator<Item = io::Result<SocketAddr>> {
        self.forwards.iter().map(|listener| local_address(&listener.socket))
    }

    /// What has passed since the driver came.
    pub fn statistics(&self) -> Statistics {
        self.stack.statistics()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn watch_forwards(&self) -> io::Result<()> {
        for (index, listener) in (0..).zip(&self.forwards) {
            let token = EventData::new_u64(FORWARD_TOKEN | index);
            epoll::add(self.sockets.epoll(), &listener.socket, token, EventFlags::IN)?;
        }
        Ok(())
    }

    fn rest(&mut self, now: Duration) -> io::Result<()> {
        for listener in &self.forwards {
            epoll::delete(self.sockets.epoll(), &listener.socket)?;
        }
        self.resting_until = Some(now + REST);
        Ok(())
    }

    fn event(&mut self, event: Event, now: Duration) -> io::Result<()> {
        let (token, edges) = (event.data.u64(), event.flags);
        if token & FORWARD_TOKEN == 0 {
            let id = SocketId(token);
            if let Some(ready) = self.sockets.ready(id, edges) {
                self.stack.socket_event(id, ready, &mut self.sockets);
            }
            return Ok(());
        }
        // It rests since an event before this one.
        if self.resting_until.is_some() {
            return Ok(());
        }
        let index = (token & !FORWARD_TOKEN) as usize;
        match self.forwards[index].forward.protocol {
            ForwardProtocol::Tcp => self.accept(index, now),
            ForwardProtocol::Udp => {
                self.receive_forwarded(index, now);
                Ok(())
            }
        }
    }

    /// Takes connections that came in at a forward.
    fn accept(&mut self, index: usize, now: Duration) -> io::Result<()> {
        use rustix::io::Errno;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..TURN {
            let listener = &self.forwards[index];
            let port = listener.forward.guest_port;
            let accepted = rustix::net::acceptfrom_with(&listener.socket, flags);
            let (socket, peer) = match accepted {
                Ok((socket, peer)) => (socket, peer.and_then(|peer| peer.try_into().ok())),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    return self.rest(now);
                }
                // Nobody is left, or somebody who is gone already.
                Err(_) => return Ok(()),
            };
            // Without an address nobody can be told from another, and without room it is refused.
            let Some(peer) = peer else { continue };
            let Ok(id) = self.sockets.accept(socket) else { continue };
            if !self.stack.inbound(Inbound::Tcp, id, peer, port, now) {
                self.sockets.close(id, Close::Reset);
            }
        }
        Ok(())
    }

    /// Takes datagrams that came in at a forward.
    fn receive_forwarded(&mut self, index: usize, now: Duration) {
        let mut buf = [0; DATAGRAM_MAX];
        let Listener { forward, socket, peers } = &mut self.forwards[index];
        for _ in 0..TURN {
            // An error is of a datagram that was sent before; there may be others behind it.
            let (len, from) = match rustix::net::recvfrom(&**socket, &mut buf, RecvFlags::empty()) {
                Ok((len, _, Some(from))) => (len, from),
                Err(rustix::io::Errno::AGAIN) => return,
                Ok(_) | Err(_) => continue,
            };
            let Ok(peer) = SocketAddr::try_from(from) else { continue };
            let datagram = &buf[..len];
            if let Some(id) = peers.get(peer)
                && self.sockets.deliver(id, datagram)
            {
                let ready = Ready { readable: true, ..Ready::default() };
                self.stack.socket_event(id, ready, &mut self.sockets);
                continue;
            }
            let id = self.sockets.add_peer(socket, peer, datagram);
            if self.stack.inbound(Inbound::Udp, id, peer, forward.guest_port, now) {
                peers.insert(peer, id, |id| self.sockets.is_open(id));
            } else {
                self.sockets.close(id, Close::Reset);
            }
        }
    }
}

/// Largest datagram (RFC 768).
const DATAGRAM_MAX: usize = 65_535;

impl Listener {
    fn new(forward: Forward) -> io::Result<Self> {
        let kind = match forward.protocol {
            ForwardProtocol::Tcp => SocketType::STREAM,
            ForwardProtocol::Udp => SocketType::DGRAM,
        };
        let socket = sockets::socket(forward.host.ip(), kind, None)?;
        if forward.protocol == ForwardProtocol::Tcp {
            // Connections of an earlier machine that linger are no reason to refuse the port.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        if forward.host.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        rustix::net::bind(&socket, &forward.host)?;
        if forward.protocol == ForwardProtocol::Tcp {
            rustix::net::listen(&socket, BACKLOG)?;
        }
        Ok(Self { forward, socket: Arc::new(socket), peers: Peers::default() })
    }
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?)
}

impl Backend for UserNet {
    fn features(&self) -> u64 {
        FEATURES
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.config.mtu)
    }

    fn begin(&mut self, features: u64) -> io::Result<()> {
        let has = |bits: u64| features & bits == bits;
        let mut config = self.config.clone();
        config.partial_checksums = has(feature::GUEST_CSUM);
        config.large_segments = has(feature::GUEST_CSUM | feature::GUEST_TSO4);
        config.large_segments6 = has(feature::GUEST_CSUM | feature::GUEST_TSO6);
        self.stack = Stack::new(config);
        // Closes all sockets of before.
        self.sockets = Sockets::new()?;
        self.forwards.iter_mut().for_each(|listener| listener.peers = Peers::default());
        self.resting_until = None;
        self.watch_forwards()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.sockets.epoll()
    }

    fn interest(&self, _has_room: bool) -> EventSet {
        // What comes from the host's sockets is taken out of them only where there is room.
        EventSet::IN
    }

    fn timeout(&self) -> Option<Duration> {
        let at = [self.stack.deadline(), self.resting_until].into_iter().flatten().min()?;
        Some(at.saturating_sub(self.now()))
    }

    fn poll(&mut self) -> io::Result<()> {
        let now = self.now();
        // What does not fit is told the next time, after others had their turn.
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (told, _) = epoll::wait(self.sockets.epoll(), &mut events, Some(&nothing))?;
        for event in told {
            self.event(*event, now)?;
        }
        if self.resting_until.is_some_and(|at| at <= now) {
            self.resting_until = None;
            self.watch_forwards()?;
        }
        if self.stack.deadline().is_some_and(|at| at <= now) {
            self.stack.tick(&mut self.sockets, now);
        }
        Ok(())
    }

    fn can_send(&self) -> bool {
        true
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let now = self.now();
        if let Some(frame) = packet.get(HEADER_LEN..) {
            self.stack.guest_frame(frame, &mut self.sockets, now);
        }
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        let now = self.now();
        let Some((header, buf)) = packet.split_at_mut_checked(HEADER_LEN) else { return Ok(None) };
        let Some(frame) = self.stack.frame(buf, &mut self.sockets, now) else { return Ok(None) };
        header.copy_from_slice(&Header::of(&frame).to_bytes());
        Ok(Some(HEADER_LEN + frame.len))
    }
}
