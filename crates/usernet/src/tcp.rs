//! TCP connections, which end here: the guest's side speaks TCP with this module, and the host's side is
//! a socket of the host. What one side has taken is acknowledged to the other only then.
//!
//! ```text
//!  guest's SYN ─► Opening ──connected──► SynReceived ─┐ guest's ACK
//!                    │ failed                         ├──► Open ──► both ends closed, or RST ─► Over
//!  host accepts ─────┼─────────────────► SynSent ─────┘ guest's SYN and ACK
//!                    └─► RST ─► Over
//! ```
//!
//! The link is a queue in memory: it loses nothing and keeps the order, so that there is no congestion,
//! and what comes out of order is not kept. Loss is handled as rarely as it happens: everything that is
//! not acknowledged is sent again (RFC 9293 §3.8.1), after a third duplicate or after a time.

mod segment;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) use self::segment::{Emitter, Segment, refusal};
use self::segment::{Flags, Outgoing};
use crate::budget::Held;
use crate::frame::Frame;
use crate::ring::Ring;
use crate::{Close, Host, Ready, SocketId};

/// Most bytes that are kept for the guest until it acknowledges them, and that it may send before the
/// host's socket takes them.
const SEND_MAX: usize = 1 << 20;
const RECEIVE_MAX: usize = 512 << 10;

/// How long a connection rests until it gives its memory back.
const REST: Duration = Duration::from_secs(2);

/// Our window is told in units of 128 bytes (RFC 7323 §2).
const WINDOW_SHIFT: u8 = 7;
/// Largest shift that counts (RFC 7323 §2.3).
const WINDOW_SHIFT_MAX: u8 = 14;

/// The segment size of a peer that tells none (RFC 9293 §3.7.1).
const MSS_DEFAULT: u16 = 536;

/// The first time after which something is sent again, and the longest (RFC 6298 §2).
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often, until the guest is held to be gone.
const RETRIES_MAX: u32 = 10;

/// How many acknowledgements of the same byte tell of a loss (RFC 5681 §3.2).
const DUPLICATES: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest wants to connect; the host's socket is being connected.
    Opening,
    /// The host's socket is connected; the guest does not know it for sure.
    SynReceived,
    /// The host's socket is connected; the guest is asked.
    SynSent,
    /// Bytes go both ways, until an end is told for each.
    Open,
    /// Nothing is left.
    Over,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    id: SocketId,
    /// The guest's end, and the other as the guest sees it.
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    state: State,

    /// The guest's next byte.
    next: u32,
    /// What the guest sent and the host's socket has not taken.
    pending: Ring,
    /// The guest sends nothing more, and the host's socket was told so.
    guest_ended: bool,
    host_shut: bool,
    is_writable: bool,

    /// Our first byte that is not acknowledged, and the first that was never sent.
    first: u32,
    latest: u32,
    /// How many bytes from `first` on are sent, counting a SYN or FIN as one.
    sent: usize,
    /// The bytes from `first` on.
    unacknowledged: Ring,
    /// The host's socket gives nothing more, and the guest has acknowledged that.
    host_ended: bool,
    end_acknowledged: bool,
    is_readable: bool,

    /// How much the guest takes from `first` on, the shift of its windows, and its segment size.
    window: usize,
    shift: Option<u8>,
    mss: u16,

    acknowledge: bool,
    reset: bool,
    probe: bool,
    duplicates: u32,
    retry_at: Option<Duration>,
    retries: u32,
    /// When memory that nothing needs is given back.
    shed_at: Option<Duration>,
}

impl Connection {
    /// A connection that the guest asks for, whose socket is being connected.
    pub(crate) fn from_guest(
        id: SocketId,
        ends: (SocketAddr, SocketAddr),
        syn: &Segment<'_>,
        sequence: u32,
    ) -> Self {
        let mut connection = Self::new(id, ends, State::Opening, sequence);
        connection.take_syn(syn);
        connection
    }

    /// A connection to the guest, whose socket is connected.
    pub(crate) fn to_guest(id: SocketId, ends: (SocketAddr, SocketAddr), sequence: u32) -> Self {
        Self { is_writable: true, ..Self::new(id, ends, State::SynSent, sequence) }
    }

    const fn new(
        id: SocketId,
        (guest, remote): (SocketAddr, SocketAddr),
        state: State,
        sequence: u32,
    ) -> Self {
        Self {
            id,
            guest,
            remote,
            state,
            next: 0,
            pending: Ring::new(RECEIVE_MAX),
            guest_ended: false,
            host_shut: false,
            is_writable: false,
            first: sequence,
            latest: sequence,
            sent: 0,
            unacknowledged: Ring::new(SEND_MAX),
            host_ended: false,
            end_acknowledged: false,
            is_readable: true,
            window: 0,
            shift: None,
            mss: MSS_DEFAULT,
            acknowledge: false,
            reset: false,
            probe: false,
            duplicates: 0,
            retry_at: None,
            retries: 0,
            shed_at: None,
        }
    }

    /// How many bytes each of its two directions may hold, within its own limits.
    pub(crate) fn set_limit(&mut self, limit: Held) {
        self.pending.set_limit(limit.from_guest.min(RECEIVE_MAX));
        self.unacknowledged.set_limit(limit.to_guest.min(SEND_MAX));
    }

    /// What it holds.
    pub(crate) const fn held(&self) -> Held {
        Held { to_guest: self.unacknowledged.capacity(), from_guest: self.pending.capacity() }
    }

    /// What a SYN says of the guest.
    fn take_syn(&mut self, syn: &Segment<'_>) {
        self.next = syn.sequence.wrapping_add(1);
        self.mss = syn.mss.filter(|mss| *mss > 0).unwrap_or(MSS_DEFAULT);
        self.shift = syn.window_shift.map(|shift| shift.min(WINDOW_SHIFT_MAX));
        // The window of a SYN is never shifted (RFC 7323 §2.2).
        self.window = usize::from(syn.window);
    }

    /// Whether nothing is left to do but to forget it.
    pub(crate) fn is_over(&self) -> bool {
        let is_done = self.guest_ended && self.end_acknowledged && self.pending.is_empty();
        self.state == State::Over || (is_done && !self.acknowledge && !self.reset)
    }

    /// When [`Connection::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        [self.retry_at, self.shed_at].into_iter().flatten().min()
    }

    /// What became of the host's socket.
    pub(crate) fn ready(&mut self, ready: Ready, host: &mut dyn Host) {
        if ready.failed {
            self.break_off(host);
            return;
        }
        self.is_readable |= ready.readable;
        self.is_writable |= ready.writable;
        if self.state == State::Opening && ready.writable {
            self.state = State::SynReceived;
        }
        if self.is_writable {
            self.drain(host);
        }
    }

    /// Takes a segment of the guest.
    pub(crate) fn segment(&mut self, segment: &Segment<'_>, host: &mut dyn Host, now: Duration) {
        self.shed_at = Some(now + REST);
        match self.state {
            State::Over => {}
            State::Opening => {
                if segment.rst {
                    self.give_up(host, Close::Reset);
                }
            }
            State::SynSent => self.answered(segment, host),
            State::SynReceived | State::Open => self.continued(segment, host, now),
        }
    }

    /// The guest's answer to our SYN (RFC 9293 §3.10.7.3).
    fn answered(&mut self, segment: &Segment<'_>, host: &mut dyn Host) {
        let is_ours = segment.ack == Some(self.first.wrapping_add(1));
        if segment.rst {
            if is_ours {
                self.give_up(host, Close::Reset);
            }
        } else if segment.syn && is_ours {
            self.take_syn(segment);
            self.opened();
            self.acknowledge = true;
        }
    }

    fn opened(&mut self) {
        self.state = State::Open;
        self.first = self.first.wrapping_add(1);
        self.latest = self.first;
        self.sent = 0;
        self.settle();
    }

    /// A segment of a connection that the guest knows (RFC 9293 §3.10.7.4).
    fn continued(&mut self, segment: &Segment<'_>, host: &mut dyn Host, now: Duration) {
        let ahead = segment.sequence.wrapping_sub(self.next);
        let is_within = (ahead as usize) < RECEIVE_MAX;
        if segment.rst {
            // What is not exactly next may be somebody's guess (RFC 5961 §3.2).
            match ahead {
                0 => self.give_up(host, Close::Reset),
                _ => self.acknowledge |= is_within,
            }
            return;
        }
        if segment.syn {
            if self.state == State::SynReceived && segment.sequence == self.next.wrapping_sub(1) {
                // It has not seen our answer.
                self.sent = 0;
            } else {
                self.acknowledge = true;
            }
            return;
        }
        let Some(ack) = segment.ack else { return };
        if self.state == State::SynReceived {
            if ack != self.first.wrapping_add(1) {
                self.reset = true;
                return;
            }
            self.opened();
        }
        self.take_ack(ack, segment, now);
        self.take_payload(segment, host);
    }

    fn take_ack(&mut self, ack: u32, segment: &Segment<'_>, now: Duration) {
        let acked = ack.wrapping_sub(self.first) as usize;
        if acked > self.latest.wrapping_sub(self.first) as usize {
            // Old, or of what was never sent.
            self.acknowledge |= (acked as u32) < 1 << 31;
            return;
        }
        // Whoever answers is there, even without room.
        self.retries = 0;
        let window = usize::from(segment.window) << self.shift.unwrap_or(0);
        let is_duplicate = acked == 0
            && segment.payload.is_empty()
            && !segment.fin
            && window == self.window
            && self.sent > 0;
        if self.window == 0 && window > 0 {
            // What asked for room was not kept.
            self.sent = 0;
        }
        self.window = window;
        if is_duplicate {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES {
                self.sent = 0;
            }
            return;
        }
        self.duplicates = 0;
        if acked == 0 {
            return;
        }
        self.end_acknowledged |= self.host_ended && acked > self.unacknowledged.len();
        self.unacknowledged.consume(acked);
        self.first = ack;
        self.sent = self.sent.saturating_sub(acked);
        self.settle();
        if self.sent > 0 {
            self.retry_at = Some(now + RETRY_MIN);
        }
    }

    /// Nothing is waited for.
    fn settle(&mut self) {
        (self.retry_at, self.retries, self.probe) = (None, 0, false);
    }

    fn take_payload(&mut self, segment: &Segment<'_>, host: &mut dyn Host) {
        if segment.payload.is_empty() && !segment.fin {
            // A probe of a guest that has heard nothing for long (RFC 9293 §3.8.4).
            self.acknowledge |= segment.sequence == self.next.wrapping_sub(1);
            return;
        }
        self.acknowledge = true;
        let known = self.next.wrapping_sub(segment.sequence) as usize;
        if self.guest_ended || known > segment.payload.len() {
            return;
        }
        let fresh = &segment.payload[known..];
        let mut taken = 0;
        if self.pending.is_empty() && self.is_writable && !fresh.is_empty() {
            taken = self.send(fresh, host);
        }
        taken += self.pending.push(&fresh[taken..]);
        self.next = self.next.wrapping_add(taken as u32);
        if segment.fin && taken == fresh.len() {
            self.guest_ended = true;
            self.next = self.next.wrapping_add(1);
            self.drain(host);
        }
    }

    /// Gives bytes to the host's socket; tells how many it took.
    fn send(&mut self, mut data: &[u8], host: &mut dyn Host) -> usize {
        let mut taken = 0;
        while !data.is_empty() && self.is_writable {
            match host.send(self.id, data) {
                Ok(len) => {
                    // A part was taken because there is no more room, which an edge tells of (epoll(7)).
                    self.is_writable = len >= data.len();
                    taken += len.min(data.len());
                    data = &data[len.min(data.len())..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Err(_) => {
                    // Whoever would have read it is gone: the bytes are, too.
                    self.break_off(host);
                    return taken + data.len();
                }
            }
        }
        taken
    }

    /// Gives the host's socket what waits for it, and then the guest's end.
    fn drain(&mut self, host: &mut dyn Host) {
        let enough = self.pending.limit() / 2;
        let was_tight = self.pending.room() < enough;
        let mut pending = std::mem::replace(&mut self.pending, Ring::new(0));
        while self.is_writable && !pending.is_empty() {
            let taken = self.send(pending.front(), host);
            pending.consume(taken);
        }
        self.pending = pending;
        // The guest waits for room that it was told there was none of.
        self.acknowledge |= was_tight && self.pending.room() >= enough;
        if self.guest_ended && self.pending.is_empty() && !self.host_shut {
            self.host_shut = true;
            host.shut_down(self.id);
        }
    }

    /// The host's side broke: the guest is told by a reset.
    fn break_off(&mut self, host: &mut dyn Host) {
        if self.state != State::Over && !self.reset {
            host.close(self.id, Close::Reset);
            self.reset = true;
        }
    }

    /// The guest's side is gone.
    fn give_up(&mut self, host: &mut dyn Host, how: Close) {
        if self.state != State::Over && !self.reset {
            host.close(self.id, how);
        }
        self.state = State::Over;
    }

    /// Ends a connection that is over, as far as the host does not know it.
    pub(crate) fn finish(&mut self, host: &mut dyn Host) {
        self.give_up(host, Close::Gently);
    }

    /// Sends again what was not acknowledged in time; gives up a guest that does not answer.
    pub(crate) fn tick(&mut self, host: &mut dyn Host, now: Duration) {
        if self.shed_at.is_some_and(|at| at <= now) {
            self.shed_at = None;
            self.pending.shed();
            self.unacknowledged.shed();
        }
        if self.retry_at.is_none_or(|at| now < at) {
            return;
        }
        self.retry_at = None;
        self.retries += 1;
        if self.retries > RETRIES_MAX {
            self.give_up(host, Close::Reset);
            return;
        }
        self.sent = 0;
        self.probe = self.window == 0;
    }

    /// Writes the next segment for the guest into `buf`, if there is one.
    pub(crate) fn emit(
        &mut self,
        emitter: &Emitter<'_>,
        buf: &mut [u8],
        host: &mut dyn Host,
        now: Duration,
    ) -> Option<Frame> {
        if self.state == State::Open && !self.reset {
            self.fill(host);
        }
        let payload_max = emitter.payload_max(self.guest.ip(), self.mss, buf.len());
        let Some(outgoing) = self.next_segment(payload_max) else {
            if self.state == State::Open && !self.unacknowledged.is_empty() && self.sent == 0 {
                // The guest has no room: it is asked from time to time.
                self.retry_at.get_or_insert(now + RETRY_MIN);
            }
            return None;
        };
        self.acknowledge = false;
        let occupied = outgoing.len + usize::from(outgoing.flags.occupies());
        if occupied > 0 {
            self.sent += occupied;
            let end = self.first.wrapping_add(self.sent as u32);
            if end.wrapping_sub(self.latest) < 1 << 31 {
                self.latest = end;
            }
            let wait = RETRY_MIN.saturating_mul(1 << self.retries.min(6)).min(RETRY_MAX);
            self.retry_at.get_or_insert(now + wait);
        }
        if outgoing.flags == Flags::Reset {
            self.state = State::Over;
        }
        Some(emitter.write(buf, self, &outgoing))
    }

    /// What is to be sent now, with at most `payload_max` bytes.
    fn next_segment(&mut self, payload_max: usize) -> Option<Outgoing> {
        let at = |flags, sent: usize, len| {
            Some(Outgoing { flags, sequence: self.first.wrapping_add(sent as u32), sent, len })
        };
        if self.reset {
            return match self.state {
                State::Over => None,
                _ => at(Flags::Reset, self.sent, 0),
            };
        }
        match self.state {
            State::Opening | State::Over => None,
            State::SynReceived if self.sent == 0 => at(Flags::SynAck, 0, 0),
            State::SynSent if self.sent == 0 => at(Flags::Syn, 0, 0),
            State::SynReceived | State::SynSent => None,
            State::Open => {
                let data = self.unacknowledged.len();
                let waiting = data.saturating_sub(self.sent);
                let window = match std::mem::take(&mut self.probe) {
                    true => 1,
                    false => self.window.saturating_sub(self.sent),
                };
                let len = waiting.min(window).min(payload_max);
                let is_end = self.host_ended && !self.end_acknowledged && self.sent + len == data;
                // Small segments only where nothing larger will come soon (RFC 9293 §3.8.6.2.1).
                let is_silly = len < waiting && len < usize::from(self.mss) && self.sent > 0;
                match () {
                    () if is_end => at(Flags::Fin, self.sent, len),
                    () if len > 0 && !is_silly => at(Flags::Push, self.sent, len),
                    () if self.acknowledge => at(Flags::Ack, self.sent, 0),
                    () => None,
                }
            }
        }
    }

    /// Reads what the host's socket has, as much as the guest would take.
    fn fill(&mut self, host: &mut dyn Host) {
        while self.is_readable && !self.host_ended {
            let wanted = self.window.max(usize::from(self.mss));
            let held = self.unacknowledged.len();
            let room = wanted.saturating_sub(held).min(self.unacknowledged.room());
            if room == 0 {
                return;
            }
            let space = self.unacknowledged.space();
            let len = space.len().min(room);
            if len == 0 {
                return;
            }
            match host.receive(self.id, &mut space[..len]) {
                Ok(0) => self.host_ended = true,
                Ok(read) => self.unacknowledged.commit(read.min(len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
                Err(_) => self.break_off(host),
            }
            if self.reset {
                return;
            }
        }
    }

    /// The window that the guest is told: in units of its own only in a SYN.
    const fn advertised(&self, is_syn: bool) -> u16 {
        let room = self.pending.room();
        let room = match (is_syn, self.shift) {
            (false, Some(_)) => room >> WINDOW_SHIFT,
            _ => room,
        };
        if room > u16::MAX as usize { u16::MAX } else { room as u16 }
    }
}
