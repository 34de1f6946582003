//! The network device: a TCP/IP implementation that is not ours (smoltcp's) as the guest, on the rings of a
//! driver, and real sockets of the host behind the device.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use vm_memory::{Bytes, GuestAddress};

use super::guest::{
    ACKNOWLEDGE, DEVICE, DRIVER, DRIVER_OK, Driver, EVENT_IDX, FEATURES_OK, GuestQueue, Machine,
    VERSION_1, common,
};
use crate::net::{
    Backend, Capture, Forward, ForwardProtocol, HEADER_LEN, SharedBackend, UserConfig, UserNet,
    feature,
};
use crate::virtio::{Net, VirtioPci};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1);
const MRG_RXBUF: u64 = 1 << 15;
const OFFLOADS: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6;

/// Where the rings and buffers are.
const RECEIVE_RING: u64 = 0x10_000;
const TRANSMIT_RING: u64 = 0x20_000;
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_BUFFERS: u64 = 0x30_0000;
/// Buffers of each ring, and the room between them.
const BUFFERS: u16 = 16;
const STRIDE: u64 = 0x1_1000;
/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn shared(backend: impl Backend + 'static) -> SharedBackend {
    Arc::new(Mutex::new(Box::new(backend)))
}

fn config() -> UserConfig {
    UserConfig::new(MAC)
}

fn user(forwards: &[Forward]) -> (SharedBackend, Vec<SocketAddr>) {
    let net = UserNet::new(config(), forwards).unwrap();
    let addresses = net.forwards().collect::<Result<_, _>>().unwrap();
    (shared(net), addresses)
}

/// A machine with a network device.
fn machine(backend: &SharedBackend) -> (Machine, Arc<VirtioPci>, crate::pci::PciAddress) {
    Machine::with(Net::new(MAC, Arc::clone(backend)))
}

/// The rings of a network driver, as a device of smoltcp's.
struct Rings<'d, 'm> {
    receive: GuestQueue<'d, 'm>,
    transmit: GuestQueue<'d, 'm>,
    /// Room of each receive buffer.
    room: u32,
    merges: bool,
    /// Buffers for transmission that the device has not.
    free: Vec<u16>,
    /// The driver gives the device buffers.
    refills: bool,
    /// Used buffers that were not given back.
    kept: Vec<u16>,
    /// Received packets that were larger than an Ethernet frame.
    large: usize,
    received: u64,
}

impl<'d, 'm> Rings<'d, 'm> {
    fn start(driver: &'d Driver<'m>, features: u64, room: u32) -> Self {
        driver.reset();
        driver.add_status(ACKNOWLEDGE | DRIVER);
        driver.accept(driver.offered() & (features | VERSION_1));
        assert_ne!(driver.add_status(FEATURES_OK) & FEATURES_OK, 0);
        (0..3).for_each(|vector| driver.enable_vector(vector));
        driver.set(common::CONFIG_VECTOR, &[0, 0]);
        let event_idx = features & EVENT_IDX != 0;
        let mut rings = Self {
            receive: GuestQueue::set_up(driver, 0, RECEIVE_RING, event_idx),
            transmit: GuestQueue::set_up(driver, 1, TRANSMIT_RING, event_idx),
            room,
            merges: features & MRG_RXBUF != 0,
            free: (0..BUFFERS).collect(),
            refills: true,
            kept: Vec::new(),
            large: 0,
            received: 0,
        };
        (0..BUFFERS).for_each(|head| rings.refill(head));
        assert_eq!(driver.add_status(DRIVER_OK), 0x0f);
        rings.receive.ring();
        rings
    }

    fn refill(&mut self, head: u16) {
        let at = RECEIVE_BUFFERS + u64::from(head) * STRIDE;
        self.receive.offer(head, &[(at, self.room, true)]);
    }

    fn give_back(&mut self, head: u16) {
        match self.refills {
            true => self.refill(head),
            false => self.kept.push(head),
        }
    }

    fn refill_kept(&mut self) {
        self.refills = true;
        std::mem::take(&mut self.kept).into_iter().for_each(|head| self.refill(head));
        self.receive.ring();
    }

    /// Bytes of a used buffer, which goes back to the device.
    fn take(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.receive.take_used()?;
        let mut bytes = vec![0; len as usize];
        let at = RECEIVE_BUFFERS + u64::from(head) * STRIDE;
        self.receive.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        self.give_back(head as u16);
        Some(bytes)
    }

    /// The next frame, from as many buffers as its header says.
    fn frame(&mut self) -> Option<Vec<u8>> {
        let mut packet = self.take()?;
        let buffers = u16::from_le_bytes([packet[10], packet[11]]);
        assert!(buffers == 1 || self.merges, "{buffers} buffers");
        for _ in 1..buffers {
            let part = self.take().expect("all buffers of a packet are used together");
            packet.extend(part);
        }
        self.receive.ring();
        self.large += usize::from(packet.len() > HEADER_LEN + 1514);
        self.received += packet.len() as u64;
        Some(packet.split_off(HEADER_LEN))
    }

    fn send(&mut self, frame: &[u8]) {
        let head = self.free.pop().expect("a free buffer");
        let at = TRANSMIT_BUFFERS + u64::from(head) * 0x1000;
        let mut packet = vec![0; HEADER_LEN];
        packet.extend(frame);
        self.transmit.memory().write_slice(&packet, GuestAddress(at)).unwrap();
        self.transmit.offer(head, &[(at, packet.len() as u32, false)]);
        self.transmit.ring();
    }

    fn reap(&mut self) {
        while let Some((head, _)) = self.transmit.take_used() {
            self.free.push(head as u16);
        }
    }
}

struct Rx(Vec<u8>);
struct Tx<'a, 'd, 'm>(&'a mut Rings<'d, 'm>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_, '_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl<'d, 'm> Device for Rings<'d, 'm> {
    type RxToken<'a>
        = Rx
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a, 'd, 'm>
    where
        Self: 'a;

    fn receive(&mut self, _: time::Instant) -> Option<(Rx, Tx<'_, 'd, 'm>)> {
        self.reap();
        if self.free.is_empty() {
            return None;
        }
        Some((Rx(self.frame()?), Tx(self)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Tx<'_, 'd, 'm>> {
        self.reap();
        (!self.free.is_empty()).then_some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // As with VIRTIO_NET_F_CSUM and VIRTIO_NET_F_GUEST_CSUM.
        capabilities.checksum.tcp = Checksum::None;
        capabilities.checksum.udp = Checksum::None;
        capabilities
    }
}

/// A guest's network.
struct Guest<'d, 'm> {
    rings: Rings<'d, 'm>,
    interface: Interface,
    sockets: SocketSet<'static>,
    began: Instant,
}

impl<'d, 'm> Guest<'d, 'm> {
    #[expect(clippy::disallowed_methods, reason = "a guest has a clock")]
    fn new(mut rings: Rings<'d, 'm>) -> Self {
        let hardware = HardwareAddress::Ethernet(EthernetAddress(MAC));
        let config = InterfaceConfig::new(hardware);
        let mut interface = Interface::new(config, &mut rings, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpAddress::Ipv4(Ipv4Addr::new(10, 0, 2, 2));
            addresses.push(IpCidr::new(address, 24)).unwrap();
            addresses.push(IpCidr::new(IpAddress::Ipv6(GUEST6), 120)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self { rings, interface, sockets: SocketSet::new(Vec::new()), began: Instant::now() }
    }

    fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 512 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.tcp();
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let gateway = match to {
            SocketAddr::V4(_) => IpAddress::Ipv4(GATEWAY),
            SocketAddr::V6(_) => IpAddress::Ipv6(GATEWAY6),
        };
        socket.connect(context, (gateway, to.port()), 40_000).unwrap();
        handle
    }

    fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp();
        self.socket(handle).listen(port).unwrap();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle)
    }

    /// Goes on until `done`.
    fn run(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) {
            let passed = self.began.elapsed();
            assert!(passed < PATIENCE, "not done");
            let instant = time::Instant::from_micros(passed.as_micros() as i64);
            let before = self.rings.received;
            self.interface.poll(instant, &mut self.rings, &mut self.sockets);
            if self.rings.received == before {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

/// Bytes that are not alike anywhere near.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 7 ^ i >> 13) as u8).collect()
}

/// A server on the host that sends back what it gets, until the end.
fn echo_server(at: &str) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                if std::io::copy(&mut reader, &mut stream).is_ok() {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            });
        }
    });
    address
}

/// Sends `data` to a server that echoes, and gives what came back.
fn echoed(guest: &mut Guest<'_, '_>, data: &[u8]) -> Vec<u8> {
    echoed_at(guest, echo_server("127.0.0.1:0"), data)
}

fn echoed_at(guest: &mut Guest<'_, '_>, server: SocketAddr, data: &[u8]) -> Vec<u8> {
    let handle = guest.connect(server);
    let (mut sent, mut back) = (0, Vec::with_capacity(data.len()));
    guest.run(|guest| {
        let socket = guest.socket(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        sent == data.len() && !socket.may_recv()
    });
    back
}

#[test]
fn bytes_go_both_ways_with_all_offloads_and_with_none() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let data = pattern(3 << 20);
    for (features, room, has_large) in [
        (OFFLOADS | MRG_RXBUF | EVENT_IDX, 5000, true),
        (OFFLOADS | MRG_RXBUF, 4096, true),
        (OFFLOADS | EVENT_IDX, 65_562, true),
        (MRG_RXBUF, 600, false),
        (0, 1526, false),
    ] {
        let mut guest = Guest::new(Rings::start(&driver, features, room));
        assert!(echoed(&mut guest, &data) == data, "features {features:#x}");
        assert_eq!(guest.rings.large > 0, has_large, "features {features:#x}");
        // The next driver comes while there are buffers with the device.
    }
    assert!(machine.take_fault().is_none());
}

#[test]
fn bytes_go_both_ways_over_ipv6_in_large_segments() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let data = pattern(1 << 20);
    for (features, has_large) in [(OFFLOADS, true), (OFFLOADS & !feature::GUEST_TSO6, false)] {
        let mut guest = Guest::new(Rings::start(&driver, features | MRG_RXBUF, 4096));
        assert!(echoed_at(&mut guest, echo_server("[::1]:0"), &data) == data);
        assert_eq!(guest.rings.large > 0, has_large, "features {features:#x}");
    }
}

#[test]
fn a_hundred_mebibytes_come_as_they_were_sent() {
    const LEN: usize = 100 << 20;
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let features = OFFLOADS | MRG_RXBUF | EVENT_IDX;
    let mut guest = Guest::new(Rings::start(&driver, features, 5000));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connect(listener.local_addr().unwrap());
    let data = Arc::new(pattern(1 << 20));
    let source = Arc::clone(&data);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        (0..LEN >> 20).for_each(|_| stream.write_all(&source).unwrap());
    });
    let mut got = 0;
    guest.run(|guest| {
        let socket = guest.socket(handle);
        while socket.can_recv() {
            let read = |bytes: &mut [u8]| {
                let at = got % data.len();
                let len = bytes.len().min(data.len() - at);
                assert!(bytes[..len] == data[at..at + len], "at {got}");
                (len, len)
            };
            got += socket.recv(read).unwrap();
        }
        got == LEN
    });
    server.join().unwrap();
}

#[test]
fn forwarded_connections_and_datagrams_reach_the_guest() {
    let forward = |protocol, guest_port| Forward {
        protocol,
        host: "127.0.0.1:0".parse().unwrap(),
        guest_port,
    };
    let (backend, addresses) =
        user(&[forward(ForwardProtocol::Tcp, 22), forward(ForwardProtocol::Udp, 53)]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::new(Rings::start(&driver, OFFLOADS | MRG_RXBUF, 2000));
    let handle = guest.listen(22);
    // Whoever connects before the guest listens is heard when it does.
    let mut client = TcpStream::connect(addresses[0]).unwrap();
    client.write_all(b"hello").unwrap();
    let mut got = Vec::new();
    guest.run(|guest| {
        let socket = guest.socket(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            socket.send_slice(b"world").unwrap();
            socket.close();
        }
        got == b"hello" && !socket.may_send()
    });
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        client.read_to_string(&mut text).map(|_| text)
    });
    guest.run(|_| reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap(), "world");

    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8 << 10]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).bind(53).unwrap();
    let clients = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    for client in &clients {
        client.send_to(b"question", addresses[1]).unwrap();
        client.send_to(b"another", addresses[1]).unwrap();
    }
    let mut answered = 0;
    guest.run(|guest| {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        if let Ok((bytes, meta)) = socket.recv() {
            let answer = [bytes, b"!"].concat();
            socket.send_slice(&answer, meta).unwrap();
            answered += 1;
        }
        answered == 6
    });
    for client in &clients {
        client.set_nonblocking(true).unwrap();
        for expected in [&b"question!"[..], b"another!"] {
            let mut buf = [0; 100];
            guest.run(|_| client.recv(&mut buf).is_ok_and(|len| &buf[..len] == expected));
        }
    }
}

#[test]
fn a_driver_without_buffers_holds_back_the_sender() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::new(Rings::start(&driver, OFFLOADS | MRG_RXBUF | EVENT_IDX, 4096));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connect(listener.local_addr().unwrap());
    guest.run(|guest| guest.socket(handle).may_send());
    let (mut server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    guest.rings.refills = false;
    let data = pattern(16 << 20);
    let (mut sent, mut idle) = (0, 0);
    guest.run(|_| {
        match server.write(&data[sent..]) {
            Ok(len) => (sent, idle) = (sent + len, 0),
            Err(_) => idle += 1,
        }
        idle > 300
    });
    assert!(sent < data.len(), "everything was taken");
    assert!(guest.rings.kept.len() == usize::from(BUFFERS), "some buffers were not used");
    guest.rings.refill_kept();
    let mut got = Vec::new();
    guest.run(|guest| {
        if sent < data.len() {
            sent += server.write(&data[sent..]).unwrap_or(0);
        }
        let socket = guest.socket(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        got.len() == data.len()
    });
    assert!(got == data);
}

#[test]
fn a_reset_in_the_middle_ends_the_connections_of_before() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new(Rings::start(&driver, OFFLOADS | MRG_RXBUF, 4096));
    let handle = guest.connect(listener.local_addr().unwrap());
    guest.run(|guest| guest.socket(handle).may_send());
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(&pattern(1 << 20)).unwrap();
    let mut guest = Guest::new(Rings::start(&driver, OFFLOADS | MRG_RXBUF, 4096));
    let mut rest = Vec::new();
    let ended = server.read_to_end(&mut rest);
    assert!(ended.is_err() || rest.is_empty());
    let data = pattern(100_000);
    assert!(echoed(&mut guest, &data) == data);
}

#[test]
fn the_configuration_tells_address_link_and_mtu() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let expected = [&MAC[..], &[1, 0, 1, 0], &1500_u16.to_le_bytes()].concat();
    assert_eq!(driver.read::<12>(DEVICE, 0).as_slice(), expected);
    let own = 1 << 3 | 1 << 5 | 1 << 16 | MRG_RXBUF;
    let rings = VERSION_1 | EVENT_IDX | 1 << 28;
    assert_eq!(driver.offered(), OFFLOADS | own | rings);
}

#[test]
fn packets_that_are_none_are_dropped_and_the_next_one_is_not() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let mut rings = Rings::start(&driver, OFFLOADS | MRG_RXBUF, 4096);
    for len in [0_u32, 1, 11, 12, 13, 25, 26, 40, 0x2_0000] {
        let head = rings.free.pop().unwrap();
        let at = if len == 0 { 0 } else { TRANSMIT_BUFFERS };
        match len {
            // An empty packet is one of a buffer that the device would write.
            0 => rings.transmit.offer(head, &[(at, 16, true)]),
            _ => rings.transmit.offer(head, &[(at, len, false)]),
        }
        rings.transmit.ring();
    }
    while rings.free.len() < usize::from(BUFFERS) {
        rings.reap();
        std::thread::yield_now();
    }
    let data = pattern(10_000);
    assert!(echoed(&mut Guest::new(rings), &data) == data);
}

#[test]
fn what_passes_is_captured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pcap");
    let file = fs_err::File::create_new(&path).unwrap();
    let capture = Arc::new(Mutex::new(Capture::new(Box::new(file)).unwrap()));
    let (backend, _) = user(&[]);
    let (machine, _function, address) =
        Machine::with(Net::new(MAC, backend).captured_in(Some(capture)));
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::new(Rings::start(&driver, OFFLOADS | MRG_RXBUF, 4096));
    let data = pattern(1000);
    assert!(echoed(&mut guest, &data) == data);
    driver.reset();
    let bytes = fs_err::read(&path).unwrap();
    let found = bytes.windows(data.len()).filter(|window| *window == data).count();
    assert_eq!(found, 2, "once in each direction");
}

#[test]
fn a_driver_cannot_make_the_device_hold_more_buffers_than_its_ring_has() {
    let (backend, _) = user(&[]);
    let (machine, _function, address) = machine(&backend);
    let driver = Driver::bind(&machine, address);
    let mut rings = Rings::start(&driver, MRG_RXBUF | EVENT_IDX, 1);
    let queue = &mut rings.receive;
    // Where the device says how far it has looked.
    let looked = GuestAddress(queue.used + 4 + 8 * u64::from(queue.size));
    for next in BUFFERS..400 {
        while driver.status() & 0x40 == 0 && queue.memory().read_obj::<u16>(looked).unwrap() != next
        {
            std::thread::yield_now();
        }
        queue.make_available(0);
        queue.ring();
    }
    driver.wait_needs_reset();
    let fault = machine.take_fault().unwrap().to_string();
    assert!(fault.contains("more buffers for packets"), "{fault}");
}
