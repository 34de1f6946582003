//! The network device (§5.1): moves packets between the driver's buffers and a [`Backend`]. One pair of
//! virtqueues; the driver needs no control queue, since a guest's network filters nothing.
//!
//! Packets of both directions are handled in batches, with one interrupt for each. Nothing is taken from
//! the backend that the driver has no buffers for, and nothing from the driver that the backend has no
//! room for.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virtio_bindings::virtio_net as bindings;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::{DeviceConfig, Error, Request, Session, VirtioDevice, Virtqueue, Wake};
use crate::net::{
    Backend, Capture, ETHERNET_HEADER_LEN, FRAME_MAX, HEADER_LEN, MacAddress, SharedBackend,
    feature, set_buffers,
};
use crate::statistics::NetworkCounters;

/// Device type (§5).
const KIND: u16 = 1;

/// The virtqueues (§5.1.2), and their size: as many buffers as Linux' driver fills in advance.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 256;

/// Features of the device itself (§5.1.3).
const F_MTU: u64 = 1 << bindings::VIRTIO_NET_F_MTU;
const F_MAC: u64 = 1 << bindings::VIRTIO_NET_F_MAC;
const F_MRG_RXBUF: u64 = 1 << bindings::VIRTIO_NET_F_MRG_RXBUF;
const F_STATUS: u64 = 1 << bindings::VIRTIO_NET_F_STATUS;

/// Places in the configuration structure (§5.1.4).
const CONFIG_STATUS: usize = 6;
const CONFIG_PAIRS: usize = 8;
const CONFIG_MTU: usize = 10;
const CONFIG_LEN: usize = 12;

/// The largest packet with its header.
const PACKET_MAX: usize = HEADER_LEN + FRAME_MAX;

/// The MTU of a backend that knows none: Ethernet's.
const MTU_DEFAULT: u16 = 1500;

/// Packets of one direction that are handled before the other has its turn.
const BATCH: usize = 64;

/// The number under which the backend's descriptor is watched.
const BACKEND: u32 = 0;

/// Is told of failures that the guest does not see.
type OnError = Box<dyn Fn(&dyn StdError) + Send>;

/// A network device.
pub struct Net {
    backend: SharedBackend,
    features: u64,
    mtu: u16,
    config: DeviceConfig,
    capture: Option<Arc<Mutex<Capture>>>,
    counters: Arc<NetworkCounters>,
    on_error: OnError,
}

impl Net {
    /// A network device with this Ethernet address, in front of `backend`.
    pub fn new(mac: MacAddress, backend: SharedBackend) -> Self {
        let (offered, mtu, is_up) = {
            let backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
            (backend.features(), backend.mtu(), backend.is_up())
        };
        let mut bytes = vec![0; CONFIG_LEN];
        bytes[..CONFIG_STATUS].copy_from_slice(&mac);
        bytes[CONFIG_STATUS] = u8::from(is_up);
        bytes[CONFIG_PAIRS] = 1;
        bytes[CONFIG_MTU..].copy_from_slice(&mtu.unwrap_or_default().to_le_bytes());
        let own = F_MAC | F_STATUS | F_MRG_RXBUF | mtu.map_or(0, |_| F_MTU);
        Self {
            backend,
            features: offered | own,
            mtu: mtu.unwrap_or(MTU_DEFAULT),
            config: DeviceConfig::new(bytes),
            capture: None,
            counters: Arc::default(),
            on_error: Box::new(|_| {}),
        }
    }

    /// Also writes what passes to `capture`.
    #[must_use]
    pub fn captured_in(mut self, capture: Option<Arc<Mutex<Capture>>>) -> Self {
        self.capture = capture;
        self
    }

    /// Counts with `counters`, which may have counted before.
    #[must_use]
    pub fn counted_by(mut self, counters: Arc<NetworkCounters>) -> Self {
        self.counters = counters;
        self
    }

    /// Tells `on_error` of failures of the backend and of the capture.
    #[must_use]
    pub fn on_error(mut self, on_error: impl Fn(&dyn StdError) + Send + 'static) -> Self {
        self.on_error = Box::new(on_error);
        self
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("config", &self.config).finish_non_exhaustive()
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u16 {
        KIND
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn config(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let shared = Arc::clone(&self.backend);
        // A device that panicked with it left nothing that the next one relies on.
        let mut backend = shared.lock().unwrap_or_else(PoisonError::into_inner);
        backend.begin(session.features())?;
        let memory = session.memory();
        let room = Room::new(session.features(), self.mtu);
        let packet = vec![0; PACKET_MAX].into_boxed_slice();
        let (backend, memory) = (&mut **backend, &memory);
        let was_up = self.config.bytes()[CONFIG_STATUS] != 0;
        Wire { device: self, backend, memory, room, packet, was_up }.run(session)
    }
}

/// One session of the device.
struct Wire<'a> {
    device: &'a Net,
    backend: &'a mut dyn Backend,
    memory: &'a GuestMemoryMmap,
    room: Room<'a>,
    packet: Box<[u8]>,
    was_up: bool,
}

impl Wire<'_> {
    fn run(mut self, session: &mut Session) -> Result<(), Error> {
        let (mut wakes, mut timeout) = (Vec::new(), None);
        let mut watched = None;
        loop {
            self.watch(session, &mut watched)?;
            if !session.wait(timeout, &mut wakes)? {
                return Ok(());
            }
            let is_ready = wakes.iter().any(|wake| matches!(wake, Wake::Ready { .. }));
            if is_ready || wakes.is_empty() {
                let polled = self.backend.poll();
                self.told(polled);
            }
            let sends_more = self.transmit(session)?;
            let receives_more = self.receive(session)?;
            self.tell_link();
            timeout = match sends_more || receives_more {
                true => Some(Duration::ZERO),
                false => {
                    self.captured(|capture, _| capture.flush());
                    self.backend.timeout()
                }
            };
        }
    }

    /// Listens to the backend for what it waits for now.
    fn watch(&self, session: &Session, watched: &mut Option<(EventSet, i32)>) -> Result<(), Error> {
        use std::os::fd::AsRawFd;
        let fd = self.backend.fd();
        let interest = match self.backend.is_up() {
            true => self.backend.interest(!self.room.is_short()),
            false => EventSet::empty(),
        };
        if *watched == Some((interest, fd.as_raw_fd())) {
            return Ok(());
        }
        match (interest.is_empty(), watched.is_some_and(|(events, _)| !events.is_empty())) {
            (false, _) => session.watch(&fd, BACKEND, interest)?,
            (true, true) => session.unwatch(&fd)?,
            (true, false) => {}
        }
        *watched = Some((interest, fd.as_raw_fd()));
        Ok(())
    }

    /// Takes packets of the driver. True if there may be more.
    fn transmit(&mut self, session: &mut Session) -> Result<bool, Error> {
        let memory = self.memory;
        let Some(queue) = session.queue(TRANSMIT) else { return Ok(false) };
        let mut count = 0;
        queue.disable_notification(memory)?;
        // Who waits for the backend is woken up by it, and looks here again.
        while self.backend.can_send() {
            if count == BATCH {
                queue.signal(memory)?;
                return Ok(true);
            }
            let Some(mut request) = queue.next(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let len = request.readable();
            match self.packet.get_mut(..len).filter(|_| len >= HEADER_LEN) {
                Some(packet) => {
                    let whole = request.read_exact(packet);
                    whole.map_err(|_| Error::Malformed("a packet that cannot be read"))?;
                    self.send(len);
                }
                None => self.device.counters.transmitted_dropped.add(1),
            }
            queue.put_used(memory, request.head(), 0)?;
            count += 1;
        }
        if count > 0 {
            queue.signal(memory)?;
        }
        Ok(false)
    }

    /// Gives the driver packets. True if there may be more.
    fn receive(&mut self, session: &mut Session) -> Result<bool, Error> {
        let memory = self.memory;
        let Some(queue) = session.queue(RECEIVE) else { return Ok(false) };
        let mut count = 0;
        queue.disable_notification(memory)?;
        while count < BATCH && self.room.gather(queue, memory)? {
            let room = self.room.len().min(PACKET_MAX);
            let received = match self.backend.receive(&mut self.packet[..room]) {
                Ok(Some(len)) => len,
                Ok(None) => break,
                Err(error) => {
                    self.device.counters.receive_errors.add(1);
                    self.told(Err(error));
                    break;
                }
            };
            self.device.counters.received_packets.add(1);
            self.device.counters.received_bytes.add((received - HEADER_LEN) as u64);
            self.captured(|capture, packet| capture.frame(&packet[HEADER_LEN..received]));
            self.room.fill(queue, memory, &mut self.packet[..received])?;
            count += 1;
        }
        if count > 0 {
            queue.signal(memory)?;
        }
        Ok(count == BATCH)
    }
}

impl Wire<'_> {
    /// Sends the packet at hand, of `len` bytes.
    fn send(&mut self, len: usize) {
        let counters = &self.device.counters;
        self.captured(|capture, packet| capture.frame(&packet[HEADER_LEN..len]));
        let sent = self.backend.send(&self.packet[..len]);
        match sent {
            Ok(()) => {
                counters.transmitted_packets.add(1);
                counters.transmitted_bytes.add((len - HEADER_LEN) as u64);
            }
            Err(_) => counters.transmit_errors.add(1),
        }
        self.told(sent);
    }

    /// Passes on what became of something, where it failed.
    fn told(&self, done: io::Result<()>) {
        if let Err(error) = done {
            (self.device.on_error)(&error);
        }
    }

    /// Tells the driver whether anything is at the other end, if that has changed.
    fn tell_link(&mut self) {
        let is_up = self.backend.is_up();
        if std::mem::replace(&mut self.was_up, is_up) != is_up {
            self.device.config.update(|bytes| bytes[CONFIG_STATUS] = is_up.into());
        }
    }

    /// Does something with the capture, if there is one, and the packet at hand.
    fn captured(&self, act: impl FnOnce(&mut Capture, &[u8]) -> io::Result<()>) {
        if let Some(capture) = &self.device.capture {
            let mut capture = capture.lock().unwrap_or_else(PoisonError::into_inner);
            let done = act(&mut capture, &self.packet);
            self.told(done.map_err(|error| {
                io::Error::new(error.kind(), format!("the capture ends: {error}"))
            }));
        }
    }
}

/// Buffers of the driver for what it receives, taken from its ring in advance.
struct Room<'m> {
    buffers: VecDeque<Request<'m>>,
    /// Bytes of one packet that fit into them.
    len: usize,
    /// How many bytes are wanted, and without how many nothing is received.
    wanted: usize,
    least: usize,
    /// A packet may be spread over several buffers.
    merges: bool,
    /// Heads and lengths of the buffers of one packet.
    used: Vec<(u16, u32)>,
}

impl<'m> Room<'m> {
    fn new(features: u64, mtu: u16) -> Self {
        let least = HEADER_LEN + ETHERNET_HEADER_LEN + usize::from(mtu);
        let is_large = features & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0;
        let merges = features & F_MRG_RXBUF != 0;
        let wanted = if is_large || merges { PACKET_MAX } else { least };
        Self { buffers: VecDeque::new(), len: 0, wanted, least, merges, used: Vec::new() }
    }

    const fn len(&self) -> usize {
        self.len
    }

    /// Whether there was no room for a packet.
    const fn is_short(&self) -> bool {
        self.len < self.least
    }

    /// Takes as many buffers as a packet may need. False if even a small one would not fit.
    fn gather(
        &mut self,
        queue: &mut Virtqueue,
        memory: &'m GuestMemoryMmap,
    ) -> Result<bool, Error> {
        while self.len < self.wanted && (self.merges || self.buffers.is_empty()) {
            let Some(mut buffer) = queue.next(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            if buffer.writable() == 0 {
                return Err(Error::Malformed("a buffer without room for a packet"));
            }
            if self.buffers.len() == usize::from(QUEUE_SIZE) {
                return Err(Error::Malformed("more buffers for packets than the virtqueue holds"));
            }
            // Nothing is read of them, and nothing kept of what is not.
            drop(std::mem::take(buffer.sent()));
            self.len += buffer.writable();
            self.buffers.push_back(buffer);
        }
        Ok(!self.is_short())
    }

    /// Puts a packet that fits into the buffers, and gives these to the driver.
    fn fill(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
        packet: &mut [u8],
    ) -> Result<(), Error> {
        let mut room = 0;
        let spread = self.buffers.iter().take_while(|buffer| {
            let is_needed = room < packet.len();
            room += buffer.writable();
            is_needed
        });
        set_buffers(packet, spread.count() as u16);
        self.used.clear();
        let mut rest = &*packet;
        while !rest.is_empty()
            && let Some(mut buffer) = self.buffers.pop_front()
        {
            self.len -= buffer.writable();
            let (part, behind) = rest.split_at(rest.len().min(buffer.writable()));
            buffer.write_all(part)?;
            self.used.push((buffer.head(), part.len() as u32));
            rest = behind;
        }
        queue.put_used_together(memory, &self.used)
    }
}
