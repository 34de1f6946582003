//! The socket device (§5.10): programs in the guest and on the host talk over stream sockets without a
//! network. The host's side is UNIX sockets in the form that Firecracker and Cloud Hypervisor have made
//! common: a client connects to the machine's socket, writes `CONNECT <port>` and a line end, and reads
//! `OK <its own port>` once the guest has accepted; a service of the host listens at the socket's path
//! with `_<port>` behind it.
//!
//! ```text
//!   rx ◄── packets ◄── Connection ◄── client or service
//!   tx ──►          ──► (at most 64 KiB that the client has not taken)
//! ```
//!
//! The guest's packets are taken as long as there is a place for what they lead to: a connection holds
//! what the guest was told that there is room for, and of refusals for which the guest has no room yet
//! a few are kept. Then its packets wait. Events (§5.10.6.7) tell of migration, which there is none of.

mod connection;
mod end;
mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EventSet;

use super::{DeviceConfig, Error, Session, VirtioDevice, Wake};
use crate::report::Failures;
use connection::{BUFFER, Connection, Greeting, Ports, packet_len};
use packet::{HEADER, HOST_CID, Header, TYPE_STREAM, op};

pub use end::VsockEnd;

const RX: u16 = 0;
const TX: u16 = 1;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// The context identifiers that a guest can have: those below are reserved, and so is the number behind
/// them (§5.10.4).
pub const CIDS: std::ops::RangeInclusive<u32> = 3..=0xffff_fffe;

/// The most connections, with clients that have not said what they want: these give way to others. All of
/// them together hold 32 MiB of what the guest sends and nobody takes.
const CONNECTIONS_MAX: usize = 512;
/// Refusals that wait for room in the guest, before its packets wait. Each connection may add one.
const REFUSALS_MAX: usize = 64;
/// Packets that are taken or given in one turn, so that neither direction waits for long.
const TURN: usize = 128;
/// The first port of the host for its own connections: services have lower ones.
const FIRST_PORT: u32 = 1 << 30;
/// The longest payload of a packet of the guest. Linux sends 64 KiB at most.
const PAYLOAD_MAX: usize = BUFFER;

/// Session tokens: the listener's, and those of connections behind it.
const LISTENER: u32 = 0;
const FIRST_TOKEN: u32 = 1;

/// How long a host without descriptors is left alone before the next client is tried.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    cid: u32,
    end: VsockEnd,
    failures: Option<Failures>,
    connections_max: usize,
}

impl Vsock {
    /// A device in whose guest programs are reached under `cid`, one of [`CIDS`].
    pub fn new(cid: u32, end: VsockEnd) -> Self {
        Self { cid, end, failures: None, connections_max: CONNECTIONS_MAX }
    }

    /// Tells of services of the host that are there, and cannot be connected to.
    pub(crate) fn telling(self, failures: Failures) -> Self {
        Self { failures: Some(failures), ..self }
    }

    /// With room for fewer connections.
    #[cfg(test)]
    pub(crate) fn with_at_most(self, connections_max: usize) -> Self {
        Self { connections_max, ..self }
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u16 {
        VIRTIO_ID_VSOCK as u16
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig::new(u64::from(self.cid).to_le_bytes().to_vec())
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let mut switch = Switch::new(self);
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        session.watch(self.end.listener(), LISTENER, edges)?;
        let mut wakes = Vec::new();
        let mut timeout = None;
        while session.wait(timeout, &mut wakes)? {
            #[expect(clippy::disallowed_methods, reason = "guests have a time to answer in")]
            let now = Instant::now();
            for wake in &wakes {
                switch.wake(*wake);
            }
            timeout = switch.turn(session, now)?;
        }
        Ok(())
    }
}

/// All connections between DRIVER_OK and reset.
struct Switch {
    cid: u64,
    end: VsockEnd,
    failures: Option<Failures>,
    connections_max: usize,
    connections: BTreeMap<u32, Connection>,
    tokens: BTreeMap<Ports, u32>,
    next_token: u32,
    next_port: u32,
    /// Clients may be waiting to be accepted.
    knocking: bool,
    /// Connections that may have a packet for the guest.
    active: VecDeque<u32>,
    /// Resets of connections that are no more, or never were.
    refusals: VecDeque<Header>,
    /// What is read of a client, or of the guest.
    payload: Vec<u8>,
}

impl Switch {
    fn new(device: &Vsock) -> Self {
        Self {
            cid: device.cid.into(),
            end: device.end.clone(),
            failures: device.failures.clone(),
            connections_max: device.connections_max,
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_PORT,
            knocking: true,
            active: VecDeque::new(),
            refusals: VecDeque::new(),
            payload: vec![0; PAYLOAD_MAX],
        }
    }

    /// Takes note of what there is to do.
    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Ready { token: LISTENER, .. } => self.knocking = true,
            Wake::Ready { token, events } => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.ready(events);
                    connection.flush();
                    self.settle(token);
                }
            }
            // Both directions are looked at in each turn.
            Wake::Queue(_) => {}
        }
    }

    fn activate(&mut self, token: u32) {
        if !self.active.contains(&token) {
            self.active.push_back(token);
        }
    }

    /// Does what there is to do, and says how long there will be nothing more.
    fn turn(&mut self, session: &mut Session, now: Instant) -> Result<Option<Duration>, Error> {
        let mut retry = None;
        if self.knocking && !self.accept(session, now)? {
            retry = Some(ACCEPT_RETRY);
        }
        self.greet(now);
        let expired = |connection: &Connection| connection.deadline().is_some_and(|at| at <= now);
        let expired = self.connections.iter().filter(|(_, connection)| expired(connection));
        let expired: Vec<u32> = expired.map(|(token, _)| *token).collect();
        expired.into_iter().for_each(|token| self.end_connection(token));
        let more = self.take_packets(session)? | self.give_packets(session, now)?;
        let room = self.knocking && self.has_room();
        if more || (room && retry.is_none()) {
            return Ok(Some(Duration::ZERO));
        }
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        let wait = deadlines.min().map(|deadline| deadline.saturating_duration_since(now));
        Ok([retry, wait].into_iter().flatten().min())
    }

    /// Whether there is room for one more connection, or somebody to give way to it.
    fn has_room(&self) -> bool {
        self.connections.len() < self.connections_max || self.most_silent().is_some()
    }

    fn make_room(&mut self) {
        if self.connections.len() >= self.connections_max
            && let Some(token) = self.most_silent()
        {
            self.remove(token);
        }
    }

    /// The client that has been there for longest without saying what it wants.
    fn most_silent(&self) -> Option<u32> {
        let silent = self.connections.iter().filter(|(_, client)| client.ports().is_none());
        silent.min_by_key(|(_, client)| client.deadline()).map(|(token, _)| *token)
    }

    /// Lets clients in, as many as there is room for: one that is silent gives way. False where the host
    /// has no descriptor for one.
    fn accept(&mut self, session: &Session, now: Instant) -> io::Result<bool> {
        for _ in 0..TURN {
            if !self.has_room() {
                break;
            }
            match self.end.listener().accept() {
                Ok((stream, _)) => {
                    self.make_room();
                    stream.set_nonblocking(true)?;
                    self.add(Connection::of_client(stream, now), session)?;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.knocking = false;
                        return Ok(true);
                    }
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Ok(false),
                },
            }
        }
        Ok(true)
    }

    fn add(&mut self, connection: Connection, session: &Session) -> io::Result<()> {
        while self.connections.contains_key(&self.next_token) || self.next_token < FIRST_TOKEN {
            self.next_token = self.next_token.wrapping_add(1);
        }
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        session.watch(connection.stream(), token, edges)?;
        if let Some(ports) = connection.ports() {
            self.tokens.insert(ports, token);
        }
        self.connections.insert(token, connection);
        self.activate(token);
        Ok(())
    }

    /// Something has happened to a connection: it has come to its end, or may have a packet.
    fn settle(&mut self, token: u32) {
        match self.connections.get(&token) {
            Some(connection) if connection.is_over() => self.end_connection(token),
            Some(_) => self.activate(token),
            None => {}
        }
    }

    /// Ends a connection for both sides. The guest is told when it has room.
    fn end_connection(&mut self, token: u32) {
        let connection = self.connections.get(&token);
        self.refusals.extend(connection.and_then(|connection| connection.farewell(self.cid)));
        self.remove(token);
    }

    fn remove(&mut self, token: u32) {
        if let Some(ports) = self.connections.remove(&token).and_then(|old| old.ports()) {
            self.tokens.remove(&ports);
        }
        self.active.retain(|other| *other != token);
    }

    /// Hears what clients want who have not said it yet.
    fn greet(&mut self, now: Instant) {
        for token in self.active.clone() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if connection.ports().is_some() {
                continue;
            }
            match connection.greet() {
                Greeting::Incomplete => {}
                Greeting::Nonsense => self.remove(token),
                Greeting::Connect(guest) => {
                    let ports =
                        Ports { host: free_port(&mut self.next_port, &self.tokens, guest), guest };
                    connection.request(ports, now);
                    self.tokens.insert(ports, token);
                }
            }
        }
    }

    /// Takes the guest's packets. True if more are waiting that could be taken.
    fn take_packets(&mut self, session: &mut Session) -> Result<bool, Error> {
        let memory = session.memory();
        for _ in 0..TURN {
            if self.refusals.len() >= REFUSALS_MAX || session.is_stopped() {
                return Ok(false);
            }
            let Some(queue) = session.queue(TX) else { return Ok(false) };
            let Some(mut request) = queue.next(&memory)? else {
                if queue.enable_notification(&memory)? {
                    continue;
                }
                return Ok(false);
            };
            let mut header = [0; HEADER];
            if request.read_exact(&mut header).is_err() {
                return Err(Error::Malformed("a socket packet is shorter than its header"));
            }
            let header = Header::parse(&header);
            let len = header.len as usize;
            if len > PAYLOAD_MAX || len > request.readable() {
                return Err(Error::Malformed(
                    "a socket packet is shorter or longer than it can be",
                ));
            }
            request.read_exact(&mut self.payload[..len])?;
            let head = request.head();
            queue.complete(&memory, head, 0)?;
            self.take(&header, session)?;
        }
        Ok(true)
    }

    /// Takes a packet whose payload is in the buffer.
    fn take(&mut self, header: &Header, session: &Session) -> io::Result<()> {
        // What claims to come from somebody else is dropped: there is nobody to answer.
        if header.src_cid != self.cid {
            return Ok(());
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let ours = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        let token = self.tokens.get(&ports).copied().filter(|_| ours);
        match token {
            Some(token) => {
                let payload = &self.payload[..header.len as usize];
                let connection = self.connections.get_mut(&token);
                if connection.is_some_and(|connection| connection.take(header, payload)) {
                    self.settle(token);
                } else {
                    self.remove(token);
                }
            }
            None if ours && header.op == op::REQUEST => self.connect(header, ports, session)?,
            None if header.op == op::RST => {}
            None => self.refusals.push_back(header.refusal()),
        }
        Ok(())
    }

    /// Connects the guest to a service of the host.
    fn connect(&mut self, header: &Header, ports: Ports, session: &Session) -> io::Result<()> {
        match self.end.connect(ports.host) {
            Ok(stream) if self.has_room() => {
                self.make_room();
                self.add(Connection::of_guest(stream, ports, header), session)?;
            }
            result => {
                if let Err(error) = result
                    && !is_nobody(&error)
                    && let Some(failures) = &self.failures
                {
                    let what = format!("the host's service at port {}: {error}", ports.host);
                    failures.add(&io::Error::new(error.kind(), what));
                }
                self.refusals.push_back(header.refusal());
            }
        }
        Ok(())
    }

    /// Gives the guest its packets, as far as it has room. True if there may be more that it has room
    /// for.
    fn give_packets(&mut self, session: &mut Session, now: Instant) -> Result<bool, Error> {
        let memory = session.memory();
        let Some(queue) = session.queue(RX) else { return Ok(false) };
        for _ in 0..TURN {
            if self.active.is_empty() && self.refusals.is_empty() {
                return Ok(false);
            }
            let Some(mut request) = queue.next(&memory)? else {
                if queue.enable_notification(&memory)? {
                    continue;
                }
                return Ok(false);
            };
            let Some(room) = request.writable().checked_sub(HEADER).filter(|room| *room > 0) else {
                return Err(Error::Malformed("no room for a socket packet"));
            };
            let Some(header) = self.next_packet(room, now) else {
                queue.undo_next();
                return Ok(false);
            };
            request.write_all(&header.to_bytes())?;
            request.write_all(&self.payload[..header.len as usize])?;
            queue.complete(&memory, request.head(), packet_len(&header) as u32)?;
        }
        Ok(true)
    }

    /// The next packet for the guest, whose payload is in the buffer then. Connections take turns.
    fn next_packet(&mut self, room: usize, now: Instant) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        while let Some(token) = self.active.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if let Some(header) = connection.next_packet(self.cid, room, &mut self.payload, now) {
                self.active.push_back(token);
                return Some(header);
            }
        }
        None
    }
}

/// Nobody listens, or he is busy: what the guest is told by the refusal.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    matches!(error.kind(), NotFound | ConnectionRefused | WouldBlock)
}

/// A port of the host that has no connection to `guest` yet.
fn free_port(next: &mut u32, taken: &BTreeMap<Ports, u32>, guest: u32) -> u32 {
    loop {
        let host = *next;
        // The last number means any port.
        *next = if host < u32::MAX - 1 { host + 1 } else { FIRST_PORT };
        if !taken.contains_key(&Ports { host, guest }) {
            return host;
        }
    }
}
