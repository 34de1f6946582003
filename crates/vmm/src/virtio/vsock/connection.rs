//! One connection between a port of the guest and a UNIX socket of the host.
//!
//! ```text
//!   a client connects ─► Greeting ─ CONNECT port ─► Requested ─ RESPONSE ─► Open ─► gone
//!   the guest's REQUEST, and somebody listens ────── RESPONSE ────────────►
//! ```
//!
//! It is gone when either side resets it. The guest closes by a SHUTDOWN of both directions, which is
//! answered by a reset once everything has been written; a client that has hung up becomes such a
//! SHUTDOWN for the guest, which answers by a reset of its own, or is reset after a while.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::packet::{
    HEADER, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// Bytes that the guest may send before the client takes them.
pub(super) const BUFFER: usize = 64 << 10;
/// The longest greeting of a client: `CONNECT 4294967295` with its end of line.
const GREETING_MAX: usize = 32;
/// How long a client has to say what it wants, by hand perhaps: each takes a place of a connection.
const GREETING_PATIENCE: Duration = Duration::from_secs(30);
/// How long the guest has to answer a request, and to reset what is shut down. Linux itself waits for
/// 2 and for 8 seconds.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(8);

/// The ports at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The client has not said yet what it wants.
    Greeting(Vec<u8>),
    /// The guest has not answered yet.
    Requested,
    Open,
}

/// A connection, or a client that wants one.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    ports: Ports,
    stage: Stage,
    /// What the socket was ready for when it was last looked at.
    readable: bool,
    writable: bool,
    /// The client has gone, or at least sends no more.
    hung_up: bool,
    input_ended: bool,
    /// What the client has not taken yet.
    out: VecDeque<u8>,
    /// The client was told that the guest sends no more.
    ended_output: bool,
    /// Bytes that the client has taken, and how many of them the guest knows of (§5.10.6.3).
    forwarded: u32,
    told_forwarded: u32,
    /// Bytes that were sent to the guest, and what the guest says of its buffer.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    asked_for_credit: bool,
    /// Control packets that are to be sent.
    request: bool,
    response: bool,
    credit_update: bool,
    /// It is over.
    reset: bool,
    /// Directions that are shut down, as each side has told the other.
    told_shutdown: u32,
    guest_shutdown: u32,
    deadline: Option<Instant>,
}

/// What a client's greeting comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// Not all of it is there.
    Incomplete,
    /// It wants to be connected to this port of the guest.
    Connect(u32),
    /// It is nobody that we know.
    Nonsense,
}

impl Connection {
    fn new(stream: UnixStream, ports: Ports, stage: Stage) -> Self {
        Self {
            stream,
            ports,
            stage,
            readable: true,
            writable: true,
            hung_up: false,
            input_ended: false,
            out: VecDeque::new(),
            ended_output: false,
            forwarded: 0,
            told_forwarded: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            asked_for_credit: false,
            request: false,
            response: false,
            credit_update: false,
            reset: false,
            told_shutdown: 0,
            guest_shutdown: 0,
            deadline: None,
        }
    }

    /// A client that has connected.
    pub(super) fn of_client(stream: UnixStream, now: Instant) -> Self {
        let mut client =
            Self::new(stream, Ports { host: 0, guest: 0 }, Stage::Greeting(Vec::new()));
        client.deadline = Some(now + GREETING_PATIENCE);
        client
    }

    /// A connection that the guest asked for with `header`, and for which somebody listens.
    pub(super) fn of_guest(stream: UnixStream, ports: Ports, header: &Header) -> Self {
        let mut connection = Self::new(stream, ports, Stage::Open);
        connection.response = true;
        connection.take_credit(header);
        connection
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Its ports; none while the client has not said which it wants.
    pub(super) fn ports(&self) -> Option<Ports> {
        (!matches!(self.stage, Stage::Greeting(_))).then_some(self.ports)
    }

    /// Takes what the socket is ready for.
    pub(super) fn ready(&mut self, events: EventSet) {
        self.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= self.hung_up || events.contains(EventSet::IN);
        self.writable |= self.hung_up || events.contains(EventSet::OUT);
    }

    /// Reads the client's greeting, byte by byte: what comes behind it is the guest's.
    pub(super) fn greet(&mut self) -> Greeting {
        let Stage::Greeting(line) = &mut self.stage else { return Greeting::Incomplete };
        let mut byte = [0];
        while line.len() < GREETING_MAX {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    let port = std::str::from_utf8(line).ok().and_then(|line| {
                        line.strip_prefix("CONNECT ")?.trim_end_matches('\r').parse().ok()
                    });
                    return port.map_or(Greeting::Nonsense, Greeting::Connect);
                }
                Ok(1) => line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Greeting::Incomplete;
                }
                _ => return Greeting::Nonsense,
            }
        }
        Greeting::Nonsense
    }

    /// Asks the guest for the connection that the client wants.
    pub(super) fn request(&mut self, ports: Ports, now: Instant) {
        (self.ports, self.stage) = (ports, Stage::Requested);
        self.request = true;
        self.deadline = Some(now + REQUEST_PATIENCE);
    }

    /// When it has waited for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// It has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.reset
    }

    /// What tells the guest that it has, if the guest has heard of it.
    pub(super) fn farewell(&self, guest_cid: u64) -> Option<Header> {
        let is_known = self.ports().is_some() && !self.request;
        is_known.then(|| self.header(guest_cid, (op::RST, 0, 0)))
    }

    /// Takes a packet of the guest with `payload` behind its header. False if the guest has reset the
    /// connection.
    pub(super) fn take(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.take_credit(header);
        match (header.op, &self.stage) {
            (op::RST, _) => return false,
            (op::RESPONSE, Stage::Requested) => self.confirm(),
            (op::RW, Stage::Open) if self.guest_shutdown & SHUTDOWN_SEND == 0 => {
                self.take_payload(payload);
            }
            (op::SHUTDOWN, Stage::Open) => {
                self.guest_shutdown |= header.flags & SHUTDOWN_BOTH;
                self.flush();
            }
            (op::CREDIT_UPDATE, Stage::Open) => {}
            (op::CREDIT_REQUEST, Stage::Open) => self.credit_update = true,
            _ => self.reset = true,
        }
        true
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        // A guest that still has no room tells of it by itself when it has.
        self.asked_for_credit &= self.credit() == 0;
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> usize {
        // A guest that has got more than was sent has no credit.
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way) as usize
    }

    /// The guest has said yes: tells the client.
    fn confirm(&mut self) {
        let line = format!("OK {}\n", self.ports.host);
        // The first bytes that go to a client find room, or the client has gone.
        match self.stream.write(line.as_bytes()) {
            Ok(len) if len == line.len() => {
                self.stage = Stage::Open;
                self.deadline = None;
            }
            _ => self.reset = true,
        }
    }

    fn take_payload(&mut self, payload: &[u8]) {
        // The guest was told how much there is room for.
        if self.out.len() + payload.len() > BUFFER {
            self.reset = true;
            return;
        }
        self.out.extend(payload);
        self.flush();
    }

    /// Writes what the client takes.
    pub(super) fn flush(&mut self) {
        while self.writable && !self.out.is_empty() {
            match self.stream.write(self.out.as_slices().0) {
                Ok(len) if len > 0 => {
                    self.out.drain(..len);
                    self.forwarded = self.forwarded.wrapping_add(len as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                _ => {
                    self.out.clear();
                    self.reset = true;
                }
            }
        }
        if self.forwarded.wrapping_sub(self.told_forwarded) as usize >= BUFFER / 2 {
            self.credit_update = true;
        }
        if self.out.is_empty() && self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.ended_output {
            self.ended_output = true;
            // Fails only for a client that has gone, of which its next read tells.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.out.is_empty() && self.guest_shutdown == SHUTDOWN_BOTH {
            self.reset = true;
        }
    }

    /// The next packet for the guest, if there is any; its payload, of at most `room` bytes, goes to
    /// `payload`.
    pub(super) fn next_packet(
        &mut self,
        guest_cid: u64,
        room: usize,
        payload: &mut [u8],
        now: Instant,
    ) -> Option<Header> {
        let packet = self.next_op(room, payload, now)?;
        self.told_forwarded = self.forwarded;
        self.credit_update = false;
        self.sent = self.sent.wrapping_add(packet.2);
        Some(self.header(guest_cid, packet))
    }

    fn header(&self, guest_cid: u64, (op, flags, len): (u16, u32, u32)) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUFFER as u32,
            fwd_cnt: self.forwarded,
        }
    }

    /// Operation, flags, and length of the payload.
    fn next_op(
        &mut self,
        room: usize,
        payload: &mut [u8],
        now: Instant,
    ) -> Option<(u16, u32, u32)> {
        if std::mem::take(&mut self.request) {
            return Some((op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut self.response) {
            return Some((op::RESPONSE, 0, 0));
        }
        if self.stage != Stage::Open {
            return None;
        }
        if let Some(packet) = self.next_data(room, payload) {
            return Some(packet);
        }
        if std::mem::take(&mut self.credit_update) {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        let gone = if self.hung_up { SHUTDOWN_RECEIVE } else { 0 };
        let shutdown = if self.input_ended { SHUTDOWN_SEND | gone } else { 0 };
        if shutdown & !self.told_shutdown != 0 {
            self.told_shutdown |= shutdown;
            if self.told_shutdown == SHUTDOWN_BOTH {
                self.deadline = Some(now + SHUTDOWN_PATIENCE);
            }
            return Some((op::SHUTDOWN, self.told_shutdown, 0));
        }
        None
    }

    /// What the client has sent, as far as the guest has room for it.
    fn next_data(&mut self, room: usize, payload: &mut [u8]) -> Option<(u16, u32, u32)> {
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // What the client still sends is for nobody.
            self.input_ended |= self.hung_up;
            return None;
        }
        while self.readable && !self.input_ended {
            let len = self.credit().min(room).min(payload.len());
            if len == 0 {
                let ask = !std::mem::replace(&mut self.asked_for_credit, true);
                return ask.then_some((op::CREDIT_REQUEST, 0, 0));
            }
            match self.stream.read(&mut payload[..len]) {
                Ok(0) => self.input_ended = true,
                Ok(len) => return Some((op::RW, 0, len as u32)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(_) => (self.input_ended, self.hung_up) = (true, true),
            }
        }
        None
    }
}

/// Bytes that a packet takes.
pub(super) const fn packet_len(header: &Header) -> usize {
    HEADER + header.len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a client has a time to speak in")]
    fn a_client_that_says_nothing_has_a_deadline_and_the_guest_never_hears_of_it() {
        let now = Instant::now();
        let (client, _end) = UnixStream::pair().unwrap();
        let mut client = Connection::of_client(client, now);
        assert_eq!(client.deadline(), Some(now + GREETING_PATIENCE));
        assert!(client.farewell(3).is_none());
        client.request(Ports { host: 1, guest: 2 }, now);
        assert_eq!(client.deadline(), Some(now + REQUEST_PATIENCE));
        assert!(client.farewell(3).is_none(), "its request was not sent");
        assert_eq!(client.next_packet(3, 64, &mut [0; 64], now).unwrap().op, op::REQUEST);
        assert_eq!(client.farewell(3).unwrap().op, op::RST);
    }
}
