//! The stack: gives each frame of the guest to whom it is for, and the guest its frames in turn.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, ETHERNET_HEADER_LEN, EthernetAddress, EthernetProtocol,
    IpProtocol, UdpPacket,
};

use crate::budget::{Budget, CONNECTIONS_MAX, Held};
use crate::config::{MTU_MAX, MTU_MIN, MTU_MIN6};
use crate::flow::{Flow, IDLE_MAX, IDLE_MAX_SHORT, Kind};
use crate::frame::{self, Frame, Incoming, Link, Packet};
use crate::icmp::{self, Echo, Unreachable};
use crate::neighbors::{self, Question};
use crate::tcp::{self, Connection, Emitter, Segment};
use crate::{Close, Config, Host, Inbound, Ready, SocketId, dhcp, dhcp6};

/// Most flows of datagrams at a time. The one that was used least lately makes room.
const FLOWS_MAX: usize = 1024;

/// Most frames of our own that wait for the guest; it asks again for what is dropped.
const QUEUE_MAX: usize = 256;

/// The first of the ports of the gateway from which those speak whose own port is taken (RFC 6335 §6).
const PORT_DYNAMIC: u16 = 49152;

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

impl Entry {
    /// When time brings something to do.
    fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Connection(connection) => connection.deadline(),
            Self::Flow(flow) => Some(flow.used_at + flow.idle_max),
        }
    }
}

/// A guest's network.
#[derive(Debug)]
pub struct Stack {
    config: Config,
    link: Link,
    entries: HashMap<SocketId, Entry>,
    by_ends: HashMap<(Protocol, Ends), SocketId>,
    connections: usize,
    connections_max: usize,
    flows_max: usize,
    budget: Budget,
    /// Frames of our own.
    queue: VecDeque<Vec<u8>>,
    /// Who may have a frame for the guest. Each is there once.
    turns: VecDeque<SocketId>,
    has_turn: HashSet<SocketId>,
    opened: u64,
    resolver_failures: usize,
    /// When entries are looked at, each once at most, and no later than its deadline. A deadline that
    /// moves away is met where it was, and looked up again.
    alarms: BTreeSet<(Duration, SocketId)>,
    alarm_of: HashMap<SocketId, Duration>,
    /// All flows by `sorted_at`. One that was used since is sorted in again when it seems to be the oldest.
    flows: BTreeSet<(Duration, SocketId)>,
    /// When the guest is told of its gateway again.
    advertise_at: Option<Duration>,
    statistics: Statistics,
}

impl Stack {
    /// A network on which nothing has happened.
    pub fn new(mut config: Config) -> Self {
        config.mtu = config.mtu.clamp(MTU_MIN, MTU_MAX);
        config.network6 = config.network6.filter(|_| config.mtu >= MTU_MIN6);
        let link = Link { gateway: config.gateway_mac, guest: config.guest_mac };
        Self {
            link,
            entries: HashMap::new(),
            by_ends: HashMap::new(),
            connections: 0,
            connections_max: CONNECTIONS_MAX.min(config.sockets_max - config.sockets_max / 4),
            flows_max: FLOWS_MAX.min(config.sockets_max / 4),
            budget: Budget::default(),
            queue: VecDeque::new(),
            turns: VecDeque::new(),
            has_turn: HashSet::new(),
            opened: 0,
            resolver_failures: 0,
            alarms: BTreeSet::new(),
            alarm_of: HashMap::new(),
            flows: BTreeSet::new(),
            advertise_at: None,
            statistics: Statistics::default(),
            config,
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
                Incoming::Ip(packet) if packet.to.is_ipv6() && self.config.network6.is_none() => {
                    None
                }
                Incoming::Ip(packet) => match packet.protocol {
                    IpProtocol::Tcp => self.tcp(&packet, host, now),
                    IpProtocol::Udp => self.udp(&packet, host, now),
                    IpProtocol::Icmp if packet.to.is_ipv4() => self.ping(&packet, host, now),
                    IpProtocol::Icmpv6 if packet.to.is_ipv6() => self.icmp6(&packet, host, now),
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
        let Some(ends) = self.free_ends(protocol, guest, peer.port()) else { return false };
        let remote = ends.1;
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
                sorted_at: now,
                idle_max: IDLE_MAX,
            }),
        };
        self.insert(id, protocol, ends, entry);
        true
    }

    /// Ends of which no flow has both yet, if there is room for one: the gateway's port is the peer's, or
    /// another one where two peers have the same.
    fn free_ends(&self, protocol: Protocol, guest: SocketAddr, port: u16) -> Option<Ends> {
        let is_full = match protocol {
            Protocol::Tcp => self.connections >= self.connections_max,
            // Of peers nobody makes room: anybody can be as many as he likes.
            Protocol::Udp | Protocol::Ping => self.flows.len() >= self.flows_max,
        };
        if is_full {
            return None;
        }
        let ends = |port| (guest, SocketAddr::from((self.config.network.gateway, port)));
        std::iter::once(port)
            .chain(PORT_DYNAMIC..=u16::MAX)
            .map(ends)
            .find(|ends| !self.by_ends.contains_key(&(protocol, *ends)))
    }

    /// Writes the next frame for the guest into `buf`, which has room for the MTU and the Ethernet
    /// header at least, and for 64 KiB if the guest takes large segments. None if there is none now.
    pub fn frame(&mut self, buf: &mut [u8], host: &mut dyn Host, now: Duration) -> Option<Frame> {
        if buf.len() < usize::from(self.config.mtu) + ETHERNET_HEADER_LEN {
            return None;
        }
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
                        large_segments6: self.config.large_segments6,
                    };
                    let held = connection.held();
                    connection.set_limit(self.budget.limit(held, self.connections));
                    let frame = connection.emit(&emitter, buf, host, now);
                    self.budget.count(held, connection.held());
                    if connection.is_over() {
                        self.remove(id, host);
                    }
                    frame
                }
                Some(Entry::Flow(flow)) => flow.emit(&self.config, &self.link, buf, host, now),
                None => None,
            };
            self.set_alarm(id);
            if frame.is_some() {
                self.give_turn(id);
                return frame;
            }
        }
        None
    }

    /// When [`Stack::tick`] is to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Duration> {
        let alarm = self.alarms.first().map(|(at, _)| *at);
        [alarm, self.advertise_at].into_iter().flatten().min()
    }

    /// Does what time brings: sends again, and forgets flows in which nothing happens.
    pub fn tick(&mut self, host: &mut dyn Host, now: Duration) {
        while let Some(&(at, id)) = self.alarms.first()
            && at <= now
        {
            self.clear_alarm(id);
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.deadline().is_some_and(|at| at <= now) {
                let is_over = match entry {
                    Entry::Connection(connection) => {
                        let held = connection.held();
                        connection.tick(host, now);
                        self.budget.count(held, connection.held());
                        connection.is_over()
                    }
                    Entry::Flow(_) => true,
                };
                if is_over {
                    self.remove(id, host);
                } else {
                    self.give_turn(id);
                }
            }
            self.set_alarm(id);
        }
        if self.advertise_at.is_some_and(|at| at <= now) {
            self.advertise(now);
        }
    }

    /// Sees to it that an entry is looked at when its deadline comes.
    fn set_alarm(&mut self, id: SocketId) {
        let Some(at) = self.entries.get(&id).and_then(Entry::deadline) else { return };
        let set = self.alarm_of.get(&id).copied();
        if set.is_none_or(|set| at < set) {
            self.clear_alarm(id);
            self.alarms.insert((at, id));
            self.alarm_of.insert(id, at);
        }
    }

    fn clear_alarm(&mut self, id: SocketId) {
        if let Some(at) = self.alarm_of.remove(&id) {
            self.alarms.remove(&(at, id));
        }
    }

    /// Tells the guest of its gateway, and when to do it again.
    fn advertise(&mut self, now: Duration) {
        self.advertise_at = Some(now + neighbors::ADVERTISE);
        if let Some(frame) = neighbors::router(&self.config, &self.link) {
            self.enqueue(frame);
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
            let held = connection.held();
            connection.set_limit(self.budget.limit(held, self.connections));
            connection.segment(&segment, host, now);
            self.budget.count(held, connection.held());
            if connection.is_over() {
                self.remove(id, host);
            } else {
                self.set_alarm(id);
                self.give_turn(id);
            }
            return Some(());
        }
        let is_new = segment.syn && segment.ack.is_none();
        let to = self.config.destination(remote, self.resolver_failures);
        if let Some(to) = to.filter(|_| is_new && self.connections < self.connections_max) {
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
        let reply = match (packet.from, datagram.dst_port()) {
            (IpAddr::V4(_), dhcp::PORT) => {
                Some(dhcp::answer(&self.config, &self.link, datagram.payload())?)
            }
            (IpAddr::V6(from), dhcp6::PORT) => {
                Some(dhcp6::answer(&self.config, &self.link, from, datagram.payload())?)
            }
            _ => None,
        };
        if let Some(reply) = reply {
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
                    return self.refuse(packet, Unreachable::Port);
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
            return self.refuse(packet, Unreachable::Port);
        }
        Some(())
    }

    fn icmp6(&mut self, packet: &Packet<'_>, host: &mut dyn Host, now: Duration) -> Option<()> {
        match (neighbors::question(packet), packet.from) {
            (None, _) => return self.ping(packet, host, now),
            (Some(Question::Router), _) => self.advertise(now),
            (Some(Question::Neighbor(target)), IpAddr::V6(asked_by)) => {
                // Others than the gateway are not there.
                self.config.is_gateway(target.into()).then_some(())?;
                let frame = neighbors::neighbor(&self.link, target, asked_by);
                self.enqueue(frame);
            }
            (Some(Question::Neighbor(_)), IpAddr::V4(_)) => return None,
        }
        Some(())
    }

    fn ping(&mut self, packet: &Packet<'_>, host: &mut dyn Host, now: Duration) -> Option<()> {
        let echo = icmp::request(packet)?;
        if self.config.is_gateway(packet.to) {
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
                    return self.refuse(packet, Unreachable::Host);
                };
                self.begin(Kind::Ping, id, ends, IDLE_MAX_SHORT, host, now);
                id
            }
        };
        let request = icmp::request_bytes(packet.to, &Echo { ident: 0, ..echo });
        if self.send(id, &request, host, now).is_err() {
            self.remove(id, host);
            return self.refuse(packet, Unreachable::Host);
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
    fn refuse(&mut self, packet: &Packet<'_>, reason: Unreachable) -> Option<()> {
        let is_for_all = match packet.to {
            IpAddr::V4(to) => to.is_broadcast() || to.is_multicast(),
            IpAddr::V6(to) => to.is_multicast(),
        };
        if is_for_all || packet.from.is_unspecified() {
            return None;
        }
        let gateway = self.config.gateway_for(packet.from);
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
        if self.flows.len() >= self.flows_max
            && let Some(oldest) = self.oldest_flow()
        {
            self.remove(oldest, host);
        }
        let (is_readable, used_at, sorted_at) = (false, now, now);
        let flow = Flow { id, kind, guest, remote, is_readable, used_at, sorted_at, idle_max };
        self.insert(id, kind.into(), (guest, remote), Entry::Flow(flow));
    }

    /// The flow that was not used for longest.
    fn oldest_flow(&mut self) -> Option<SocketId> {
        loop {
            let (sorted_at, id) = self.flows.pop_first()?;
            let Some(Entry::Flow(flow)) = self.entries.get_mut(&id) else { continue };
            flow.sorted_at = flow.used_at;
            self.flows.insert((flow.used_at, id));
            if flow.used_at == sorted_at {
                return Some(id);
            }
        }
    }

    fn insert(&mut self, id: SocketId, protocol: Protocol, ends: Ends, entry: Entry) {
        match &entry {
            Entry::Connection(_) => self.connections += 1,
            Entry::Flow(flow) => drop(self.flows.insert((flow.sorted_at, id))),
        }
        self.statistics.opened += 1;
        self.by_ends.insert((protocol, ends), id);
        self.entries.insert(id, entry);
        self.set_alarm(id);
        self.give_turn(id);
    }

    fn remove(&mut self, id: SocketId, host: &mut dyn Host) {
        let (protocol, ends) = match self.entries.remove(&id) {
            Some(Entry::Connection(mut connection)) => {
                connection.finish(host);
                self.connections -= 1;
                self.budget.count(connection.held(), Held::default());
                (Protocol::Tcp, (connection.guest, connection.remote))
            }
            Some(Entry::Flow(flow)) => {
                self.flows.remove(&(flow.sorted_at, id));
                host.close(id, Close::Gently);
                (flow.kind.into(), (flow.guest, flow.remote))
            }
            None => return,
        };
        self.by_ends.remove(&(protocol, ends));
        self.clear_alarm(id);
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
