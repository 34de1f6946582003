//! The stack: gives each frame of the guest to whom it is for, and the guest its frames in turn.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, ETHERNET_HEADER_LEN, EthernetAddress, EthernetProtocol,
    Icmpv4DstUnreachable, IpProtocol, UdpPacket,
};

use crate::config::{MTU_MAX, MTU_MIN};
use crate::flow::{Flow, IDLE_MAX, IDLE_MAX_SHORT, Kind};
use crate::frame::{self, Frame, Incoming, Link, Packet};
use crate::icmp::{self, Echo};
use crate::tcp::{self, Connection, Emitter, Segment};
use crate::{Close, Config, Host, Inbound, Ready, SocketId, dhcp};

/// Most connections, and most flows of datagrams, at a time. A connection beyond is refused; of flows
/// the one that was used least lately makes room.
const CONNECTIONS_MAX: usize = 4096;
const FLOWS_MAX: usize = 1024;

/// Most frames of our own that wait for the guest; it asks again for what is dropped.
const QUEUE_MAX: usize = 256;

/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// What has passed, since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames and bytes of the guest.
    pub sent_frames: u64,
    /// See [`Statistics::sent_frames`].
    pub sent_bytes: u64,
    /// Frames and bytes to the guest.
    pub received_frames: u64,
    /// See [`Statistics::received_frames`].
    pub received_bytes: u64,
    /// Frames of the guest that were not understood, or for nobody.
    pub dropped: u64,
    /// Connections and flows that were begun.
    pub opened: u64,
}

/// Which of several flows: guest's end, other end as the guest sees it.
type Ends = (SocketAddr, SocketAddr);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Protocol {
    Tcp,
    Udp,
    Ping,
}

impl From<Kind> for Protocol {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Udp => Self::Udp,
            Kind::Ping => Self::Ping,
        }
    }
}

#[derive(Debug)]
enum Entry {
    Connection(Box<Connection>),
    Flow(Flow),
}

/// A guest's network.
#[derive(Debug)]
pub struct Stack {
    config: Config,
    link: Link,
    entries: BTreeMap<SocketId, Entry>,
    by_ends: HashMap<(Protocol, Ends), SocketId>,
    connections: usize,
    /// Frames of our own.
    queue: VecDeque<Vec<u8>>,
    /// Who may have a frame for the guest. Each is there once.
    turns: VecDeque<SocketId>,
    has_turn: HashSet<SocketId>,
    opened: u64,
    resolver_failures: usize,
    sweep_at: Duration,
    statistics: Statistics,
}

impl Stack {
    /// A network on which nothing has happened.
    pub fn new(mut config: Config) -> Self {
        config.mtu = config.mtu.clamp(MTU_MIN, MTU_MAX);
        let link = Link { gateway: config.gateway_mac, guest: config.guest_mac };
        Self {
            config,
            link,
            entries: BTreeMap::new(),
            by_ends: HashMap::new(),
            connections: 0,
            queue: VecDeque::new(),
            turns: VecDeque::new(),
            has_turn: HashSet::new(),
            opened: 0,
            resolver_failures: 0,
            sweep_at: SWEEP,
            statistics: Statistics::default(),
        }
    }

    /// What has passed.
    pub const fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Takes a frame that the guest sent. `now` is the time since any moment in the past, as in all
    /// other calls.
    pub fn guest_frame(&mut self, frame: &[u8], host: &mut dyn Host, now: Duration) {
        self.statistics.sent_frames += 1;
        self.statistics.sent_bytes += frame.len() as u64;
        let taken = frame::parse(frame).and_then(|(from, incoming)| {
            self.link.guest = from;
            match incoming {
                Incoming::Arp(arp) => self.arp(&arp),
                Incoming::Ip(packet) => match packet.protocol {
                    IpProtocol::Tcp => self.tcp(&packet, host, now),
                    IpProtocol::Udp => self.udp(&packet, host, now),
                    IpProtocol::Icmp => self.ping(&packet, host, now),
                    _ => None,
                },
            }
        });
        if taken.is_none() {
            self.statistics.dropped += 1;
        }
    }

    /// What epoll told of a socket.
    pub fn socket_event(&mut self, id: SocketId, ready: Ready, host: &mut dyn Host) {
        match self.entries.get_mut(&id) {
            Some(Entry::Connection(connection)) => connection.ready(ready, host),
            Some(Entry::Flow(flow)) => flow.is_readable |= ready.readable || ready.failed,
            // It has ended meanwhile.
            None => return,
        }
        self.give_turn(id);
    }

    /// Somebody outside, `peer`, wants to speak with a port of the guest: an accepted connection, or a
    /// datagram that can be received. The socket is the host's own. False if there is no room.
    pub fn inbound(
        &mut self,
        kind: Inbound,
        id: SocketId,
        peer: SocketAddr,
        port: u16,
        now: Duration,
    ) -> bool {
        let protocol = match kind {
            Inbound::Tcp => Protocol::Tcp,
            Inbound::Udp => Protocol::Udp,
        };
        // Whoever it is, the guest answers to the gateway; its own network has nobody else.
        let guest = SocketAddr::from((self.config.network.guest, port));
        let remote = SocketAddr::from((self.config.network.gateway, peer.port()));
        let ends = (guest, remote);
        if self.by_ends.contains_key(&(protocol, ends)) || self.connections >= CONNECTIONS_MAX {
            return false;
        }
        let entry = match kind {
            Inbound::Tcp => {
                let sequence = self.sequence(id);
                Entry::Connection(Box::new(Connection::to_guest(id, ends, sequence)))
            }
            Inbound::Udp => Entry::Flow(Flow {
                id,
                kind: Kind::Udp,
                guest,
                remote,
                is_readable: true,
                used_at: now,
                idle_max: IDLE_MAX,
            }),
        };
        self.insert(id, protocol, ends, entry);
        true
    }

    /// Writes the next frame for the guest into `buf`, which has room for the MTU and the Ethernet
    /// header at least, and for 64 KiB if the guest takes large segments. None if there is none now.
    pub fn frame(&mut self, buf: &mut [u8], host: &mut dyn Host, now: Duration) -> Option<Frame> {
        let frame = self.queued(buf).or_else(|| self.in_turn(buf, host, now))?;
        self.statistics.received_frames += 1;
        self.statistics.received_bytes += frame.len as u64;
        Some(frame)
    }

    fn queued(&mut self, buf: &mut [u8]) -> Option<Frame> {
        let frame = self.queue.pop_front()?;
        buf.get_mut(..frame.len())?.copy_from_slice(&frame);
        Some(Frame::whole(frame.len()))
    }

    fn in_turn(&mut self, buf: &mut [u8], host: &mut dyn Host, now: Duration) -> Option<Frame> {
        while let Some(id) = self.turns.pop_front() {
            self.has_turn.remove(&id);
            let frame = match self.entries.get_mut(&id) {
                Some(Entry::Connection(connection)) => {
                    let emitter = Emitter {
                        link: &self.link,
                        mtu: self.config.mtu,
                        partial_checksums: self.config.partial_checksums,
                        large_segments: self.config.large_segments,
                    };
                    let frame = connection.emit(&emitter, buf, host, now);
                    if connection.is_over() {
                        self.remove(id, host);
                    }
                    frame
                }
                Some(Entry::Flow(flow)) => flow.emit(&self.config, &self.link, buf, host, now),
                None => None,
            };
            if frame.is_some() {
                self.give_turn(id);
                return frame;
            }
        }
        None
    }

    /// When [`Stack::tick`] is to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Duration> {
        let retry = self.entries.values().filter_map(|entry| match entry {
            Entry::Connection(connection) => connection.deadline(),
            Entry::Flow(_) => Some(self.sweep_at),
        });
        retry.min()
    }

    /// Does what time brings: sends again, and forgets flows in which nothing happens.
    pub fn tick(&mut self, host: &mut dyn Host, now: Duration) {
        let mut over = Vec::new();
        let mut due = Vec::new();
        for (id, entry) in &mut self.entries {
            match entry {
                Entry::Connection(connection) => {
                    if connection.deadline().is_some_and(|at| at <= now) {
                        connection.tick(host, now);
                        due.push(*id);
                    }
                    if connection.is_over() {
                        over.push(*id);
                    }
                }
                Entry::Flow(flow) if now.saturating_sub(flow.used_at) >= flow.idle_max => {
                    over.push(*id);
                }
                Entry::Flow(_) => {}
            }
        }
        for id in over {
            self.remove(id, host);
        }
        for id in due {
            self.give_turn(id);
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
        }
    }

    fn arp(&mut self, request: &ArpRepr) -> Option<()> {
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = *request
        else {
            return None;
        };
        if target_protocol_addr != self.config.network.gateway {
            return None;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(self.link.gateway),
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut buf = vec![0; ETHERNET_HEADER_LEN + reply.buffer_len()];
        self.link.ethernet(&mut buf, EthernetProtocol::Arp);
        reply.emit(&mut ArpPacket::new_unchecked(&mut buf[ETHERNET_HEADER_LEN..]));
        self.enqueue(buf);
        Some(())
    }

    fn tcp(&mut self, packet: &Packet<'_>, host: &mut dyn Host, now: Duration) -> Option<()> {
        let segment = Segment::parse(packet)?;
        let guest = SocketAddr::from((packet.from, segment.source));
        let remote = SocketAddr::from((packet.to, segment.destination));
        let ends = (guest, remote);
        if let Some(&id) = self.by_ends.get(&(Protocol::Tcp, ends)) {
            let Some(Entry::Connection(connection)) = self.entries.get_mut(&id) else {
                return None;
            };
            connection.segment(&segment, host, now);
            if connection.is_over() {
                self.remove(id, host);
            } else {
                self.give_turn(id);
            }
            return Some(());
        }
        let is_new = segment.syn && segment.ack.is_none();
        let to = self.config.destination(remote, self.resolver_failures);
        if let Some(to) = to.filter(|_| is_new && self.connections < CONNECTIONS_MAX) {
            let id = self.next_id();
            if host.open_tcp(id, to).is_ok() {
                let sequence = self.sequence(id);
                let connection = Connection::from_guest(id, ends, &segment, sequence);
                self.insert(id, Protocol::Tcp, ends, Entry::Connection(Box::new(connection)));
                return Some(());
            }
        }
        let refusal = tcp::refusal(&self.link, packet, &segment)?;
        self.enqueue(refusal);
        Some(())
    }

    fn udp(&mut self, packet: &Packet<'_>, host: &mut dyn Host, now: Duration) -> Option<()> {
        /// The port of name servers, whose answers come soon or not at all.
        const DNS: u16 = 53;
        let datagram = UdpPacket::new_checked(packet.payload).ok()?;
        if datagram.dst_port() == dhcp::PORT {
            let reply = dhcp::answer(&self.config, &self.link, datagram.payload())?;
            self.enqueue(reply);
            return Some(());
        }
        let guest = SocketAddr::from((packet.from, datagram.src_port()));
        let remote = SocketAddr::from((packet.to, datagram.dst_port()));
        let ends = (guest, remote);
        let id = match self.by_ends.get(&(Protocol::Udp, ends)) {
            Some(&id) => id,
            None => {
                let to = self.config.destination(remote, self.resolver_failures);
                let id = self.next_id();
                let Some(()) = to.and_then(|to| host.open_udp(id, to).ok()) else {
                    return self.refuse(packet, Icmpv4DstUnreachable::PortUnreachable);
                };
                let idle_max = if remote.port() == DNS { IDLE_MAX_SHORT } else { IDLE_MAX };
                self.begin(Kind::Udp, id, ends, idle_max, host, now);
                id
            }
        };
        if self.send(id, datagram.payload(), host, now).is_err() {
            // Nobody listens there, or cannot be reached: another name server may.
            self.resolver_failures += usize::from(remote.port() == DNS);
            self.remove(id, host);
            return self.refuse(packet, Icmpv4DstUnreachable::PortUnreachable);
        }
        Some(())
    }

    fn ping(&mut self, packet: &Packet<'_>, host: &mut dyn Host, now: Duration) -> Option<()> {
        let echo = icmp::request(packet)?;
        if packet.to == self.config.network.gateway {
            let frame = icmp::reply_frame(&self.link, (packet.to, packet.from), &echo);
            self.enqueue(frame);
            return Some(());
        }
        let guest = SocketAddr::from((packet.from, echo.ident));
        let remote = SocketAddr::from((packet.to, 0));
        let ends = (guest, remote);
        let id = match self.by_ends.get(&(Protocol::Ping, ends)) {
            Some(&id) => id,
            None => {
                let to = self.config.destination(remote, 0);
                let id = self.next_id();
                let Some(()) = to.and_then(|to| host.open_ping(id, to.ip()).ok()) else {
                    return self.refuse(packet, Icmpv4DstUnreachable::HostUnreachable);
                };
                self.begin(Kind::Ping, id, ends, IDLE_MAX_SHORT, host, now);
                id
            }
        };
        let request = icmp::request_bytes(&Echo { ident: 0, ..echo });
        if self.send(id, &request, host, now).is_err() {
            self.remove(id, host);
            return self.refuse(packet, Icmpv4DstUnreachable::HostUnreachable);
        }
        Some(())
    }

    /// Sends a datagram. One that does not fit into the socket's buffer is lost, as on any link.
    fn send(
        &mut self,
        id: SocketId,
        data: &[u8],
        host: &mut dyn Host,
        now: Duration,
    ) -> std::io::Result<()> {
        let Some(Entry::Flow(flow)) = self.entries.get_mut(&id) else { return Ok(()) };
        flow.used_at = now;
        match host.send(id, data) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Tells the guest that nothing came of its packet. Broadcasts are not answered (RFC 1122 §3.2.2).
    fn refuse(&mut self, packet: &Packet<'_>, reason: Icmpv4DstUnreachable) -> Option<()> {
        let is_for_one = !packet.to.is_broadcast() && !packet.to.is_multicast();
        if !is_for_one || packet.from.is_unspecified() {
            return None;
        }
        let gateway = self.config.network.gateway;
        let frame = icmp::unreachable(&self.link, gateway, packet, reason);
        self.enqueue(frame);
        Some(())
    }

    fn begin(
        &mut self,
        kind: Kind,
        id: SocketId,
        (guest, remote): Ends,
        idle_max: Duration,
        host: &mut dyn Host,
        now: Duration,
    ) {
        if self.entries.len() - self.connections >= FLOWS_MAX {
            let flows = self.entries.values().filter_map(|entry| match entry {
                Entry::Flow(flow) => Some((flow.used_at, flow.id)),
                Entry::Connection(_) => None,
            });
            if let Some((_, oldest)) = flows.min() {
                self.remove(oldest, host);
            }
        }
        let is_readable = false;
        let flow = Flow { id, kind, guest, remote, is_readable, used_at: now, idle_max };
        self.insert(id, kind.into(), (guest, remote), Entry::Flow(flow));
    }

    fn insert(&mut self, id: SocketId, protocol: Protocol, ends: Ends, entry: Entry) {
        self.connections += usize::from(protocol == Protocol::Tcp);
        self.statistics.opened += 1;
        self.by_ends.insert((protocol, ends), id);
        self.entries.insert(id, entry);
        self.give_turn(id);
    }

    fn remove(&mut self, id: SocketId, host: &mut dyn Host) {
        let (protocol, ends) = match self.entries.remove(&id) {
            Some(Entry::Connection(mut connection)) => {
                connection.finish(host);
                self.connections -= 1;
                (Protocol::Tcp, (connection.guest, connection.remote))
            }
            Some(Entry::Flow(flow)) => {
                host.close(id, Close::Gently);
                (flow.kind.into(), (flow.guest, flow.remote))
            }
            None => return,
        };
        self.by_ends.remove(&(protocol, ends));
    }

    fn give_turn(&mut self, id: SocketId) {
        if self.has_turn.insert(id) {
            self.turns.push_back(id);
        }
    }

    fn enqueue(&mut self, frame: Vec<u8>) {
        if self.queue.len() < QUEUE_MAX && !frame.is_empty() {
            self.queue.push_back(frame);
        }
    }

    fn next_id(&mut self) -> SocketId {
        self.opened += 1;
        SocketId(self.opened * 2 - 1)
    }

    /// An initial sequence number: not guessed by who does not see the guest's frames.
    fn sequence(&self, id: SocketId) -> u32 {
        // The finalizer of MurmurHash3: every bit of both numbers reaches every bit of the result.
        let mut mixed = self.config.seed ^ id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..2 {
            mixed ^= mixed >> 33;
            mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
        }
        (mixed >> 32) as u32
    }
}

#[cfg(test)]
mod tests;
