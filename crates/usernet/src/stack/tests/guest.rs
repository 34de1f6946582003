//! The guest: smoltcp's interface and sockets on a wire that may lose frames.

use std::collections::VecDeque;
use std::net::Ipv6Addr;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Packet};

use super::sockets::Sockets;
use super::*;
use crate::PartialChecksum;

pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// The time of a step.
const STEP: Duration = Duration::from_millis(1);
/// How many frames are lost: each may cost the guest a second.
const LOST_MAX: u32 = 6;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What is between the guest and the stack.
#[derive(Default)]
pub(super) struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
    mtu: usize,
    /// Every so many frames one is lost.
    loses: Option<u32>,
    count: u32,
    pub(super) lost: u32,
    /// Frames with several segments.
    pub(super) large: u32,
    /// The first frames for the guest.
    pub(super) seen: Vec<Vec<u8>>,
}

impl Wire {
    pub(super) fn losing(every: u32) -> Self {
        Self { loses: Some(every), mtu: 1500, ..Self::default() }
    }

    fn loses(&mut self) -> bool {
        self.count += 1;
        let lost = self.lost < LOST_MAX
            && self.loses.is_some_and(|every| self.count.is_multiple_of(every));
        self.lost += u32::from(lost);
        lost
    }
}

pub(super) struct Rx(Vec<u8>);
pub(super) struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.to_guest.pop_front()?), Tx(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Tx<'_>> {
        (self.from_guest.len() < 64).then_some(Tx(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// A guest, its network and the host's sockets.
pub(super) struct Lab {
    pub(super) stack: Stack,
    pub(super) host: Sockets,
    pub(super) wire: Wire,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    /// The lab's own time, which passes with each step.
    pub(super) now: Duration,
    port: u16,
}

impl Lab {
    pub(super) fn config() -> Config {
        Config { seed: 1, ..Config::new(MAC) }
    }

    pub(super) fn without_address(config: Config) -> Self {
        let mut wire = Wire { mtu: usize::from(config.mtu), ..Wire::default() };
        let hardware = HardwareAddress::Ethernet(EthernetAddress(MAC));
        let interface =
            Interface::new(InterfaceConfig::new(hardware), &mut wire, time::Instant::ZERO);
        Self {
            stack: Stack::new(config),
            host: Sockets::default(),
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            now: Duration::ZERO,
            port: 40_000,
        }
    }

    pub(super) fn new(config: Config) -> Self {
        let mut lab = Self::without_address(config);
        let address = IpCidr::new(IpAddress::Ipv4(Ipv4Addr::new(10, 0, 2, 2)), 24);
        lab.interface.update_ip_addrs(|addresses| addresses.push(address).unwrap());
        lab.interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        lab
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle)
    }

    fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp();
        self.socket(handle).listen(port).unwrap();
        handle
    }

    pub(super) fn add_v6(&mut self, address: Ipv6Addr, gateway: Ipv6Addr) {
        let address = IpCidr::new(IpAddress::Ipv6(address), 120);
        self.interface.update_ip_addrs(|addresses| addresses.push(address).unwrap());
        self.interface.routes_mut().add_default_ipv6_route(gateway).unwrap();
    }

    pub(super) fn connect(&mut self, port: u16) -> SocketHandle {
        self.connect_to(IpAddress::Ipv4(GATEWAY), port)
    }

    pub(super) fn connect_to(&mut self, address: IpAddress, port: u16) -> SocketHandle {
        let handle = self.tcp();
        self.port += 1;
        let (local, to) = (self.port, (address, port));
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(context, to, local).unwrap();
        self.settle();
        handle
    }

    pub(super) fn udp(&mut self) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8 << 10]);
        let handle = self.sockets.add(udp::Socket::new(buffer(), buffer()));
        self.port += 1;
        self.sockets.get_mut::<udp::Socket<'_>>(handle).bind(self.port).unwrap();
        handle
    }

    /// Lets everything happen that happens by itself.
    pub(super) fn settle(&mut self) {
        for _ in 0..20 {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let instant = time::Instant::from_micros(self.now.as_micros() as i64);
        self.interface.poll(instant, &mut self.wire, &mut self.sockets);
        while let Some(frame) = self.wire.from_guest.pop_front() {
            if !self.wire.loses() {
                self.stack.guest_frame(&frame, &mut self.host, self.now);
            }
        }
        for id in std::mem::take(&mut self.host.failed) {
            let ready = Ready { failed: true, ..Ready::default() };
            self.stack.socket_event(id, ready, &mut self.host);
        }
        let ready = Ready { readable: true, writable: true, failed: false };
        let ids: Vec<_> = self.host.sockets.keys().copied().collect();
        for id in ids {
            self.stack.socket_event(id, ready, &mut self.host);
        }
        if self.stack.deadline().is_some_and(|at| at <= self.now) {
            self.stack.tick(&mut self.host, self.now);
        }
        let mut buf = vec![0; 65_550];
        while self.wire.to_guest.len() < 64 {
            let Some(frame) = self.stack.frame(&mut buf, &mut self.host, self.now) else { break };
            self.arrive(&buf[..frame.len], frame);
        }
    }

    /// Does what the guest's device would do with a frame.
    fn arrive(&mut self, bytes: &[u8], frame: Frame) {
        if self.wire.seen.len() < 16 {
            self.wire.seen.push(bytes.to_vec());
        }
        if self.wire.loses() {
            return;
        }
        let segments = match frame.segments {
            Some(segments) => {
                self.wire.large += 1;
                split(bytes, usize::from(segments.size))
            }
            None => vec![bytes.to_vec()],
        };
        for mut segment in segments {
            if let Some(PartialChecksum { start, offset }) = frame.checksum {
                finish(&mut segment, usize::from(start), usize::from(offset));
            }
            self.wire.to_guest.push_back(segment);
        }
    }

    /// Goes on until `done`; fails if that takes longer than `limit`.
    pub(super) fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "not done in {limit:?}: {:?}", self.stack.statistics);
            let before = self.stack.statistics;
            self.step();
            if self.stack.statistics == before {
                // Others may have something to do.
                std::thread::sleep(STEP / 10);
            }
        }
    }
}

/// Finishes a checksum that holds the pseudo header's sum, after making sure that it does.
fn finish(frame: &mut [u8], start: usize, offset: usize) {
    let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let expected =
        frame::pseudo((from.into(), to.into()), packet.next_header(), frame.len() - start);
    let at = start + offset;
    assert_eq!(u16::from_be_bytes([frame[at], frame[at + 1]]), expected);
    let sum = !smoltcp::wire::checksum::data(&frame[start..]);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Cuts a large segment as a device does: the headers of each are the first's, with the sequence number
/// and lengths of its own.
fn split(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let header = IP_PAYLOAD_AT + usize::from(frame[IP_PAYLOAD_AT + 12] >> 4) * 4;
    let payload = &frame[header..];
    let last = payload.len().div_ceil(size) - 1;
    let sequence = u32::from_be_bytes(frame[38..42].try_into().unwrap());
    let cut = |(index, part): (usize, &[u8])| {
        let mut segment = [&frame[..header], part].concat();
        let number = sequence.wrapping_add((index * size) as u32);
        segment[38..42].copy_from_slice(&number.to_be_bytes());
        if index < last {
            // FIN and PSH are the last one's.
            segment[47] &= !0x09;
        }
        let len = (segment.len() - 14) as u16;
        segment[16..18].copy_from_slice(&len.to_be_bytes());
        let mut packet = Ipv4Packet::new_unchecked(&mut segment[14..]);
        packet.fill_checksum();
        let ends = (packet.src_addr().into(), packet.dst_addr().into());
        let sum = frame::pseudo(ends, IpProtocol::Tcp, segment.len() - IP_PAYLOAD_AT);
        segment[50..52].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// The guest's frames for floods: a SYN and a datagram to the gateway.
pub(super) fn syn(link: &Link, source: u16, port: u16) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&source.to_be_bytes());
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, 2);
    packet(link, IpProtocol::Tcp, &tcp)
}

/// A segment of a connection that the guest has opened with [`syn`].
pub(super) fn segment(link: &Link, ends: (u16, u16), ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..2].copy_from_slice(&ends.0.to_be_bytes());
    tcp[2..4].copy_from_slice(&ends.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&1_u32.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, 0x10);
    tcp[14..16].fill(0xff);
    tcp.extend(payload);
    packet(link, IpProtocol::Tcp, &tcp)
}

pub(super) fn datagram(link: &Link, source: u16, port: u16) -> Vec<u8> {
    let mut udp = vec![0; 300];
    udp[..2].copy_from_slice(&source.to_be_bytes());
    udp[2..4].copy_from_slice(&port.to_be_bytes());
    udp[4..6].copy_from_slice(&300_u16.to_be_bytes());
    packet(link, IpProtocol::Udp, &udp)
}

fn packet(link: &Link, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let link = Link { gateway: link.guest, guest: link.gateway };
    let mut frame = vec![0; IP_PAYLOAD_AT + payload.len()];
    link.ip(
        &mut frame,
        (Ipv4Addr::new(10, 0, 2, 2).into(), GATEWAY.into()),
        protocol,
        payload.len(),
    );
    frame[IP_PAYLOAD_AT..].copy_from_slice(payload);
    frame
}

/// Makes the header's checksum right, so that damage behind it is met.
pub(super) fn mend(frame: &mut [u8]) {
    let len = frame.get(14).map_or(0, |first| usize::from(first & 15) * 4);
    if let Some(header) = frame.get_mut(14..14 + len).filter(|header| header.len() >= 20) {
        Ipv4Packet::new_unchecked(header).fill_checksum();
    }
}
