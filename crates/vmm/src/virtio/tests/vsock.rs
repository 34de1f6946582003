//! The socket device between a driver and UNIX sockets of the host.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::QUEUE;
use super::guest::{DEVICE, Driver, GuestQueue, Machine};
use crate::config::Report;
use crate::report::Failures;
use crate::virtio::{Error, Vsock, VsockEnd};

const CID: u32 = 42;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const RECEIVE: u32 = 1;
const SEND: u32 = 2;

/// Where packets of the driver are, and room for those that it gets.
const BUFFER: u64 = 0x10_0000;
const ROOM: u64 = 0x18_0000;
/// What the driver says that its sockets hold.
const GUEST_BUFFER: u32 = 4096;
/// What the device says that its connections hold.
const HOST_BUFFER: usize = 64 << 10;

/// A packet as a driver sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    cids: [u64; 2],
    /// Source and destination.
    ports: [u32; 2],
    kind: u16,
    op: u16,
    flags: u32,
    buffer: u32,
    forwarded: u32,
    payload: Vec<u8>,
}

impl Packet {
    fn new(op: u16, guest: u32, host: u32) -> Self {
        Self {
            cids: [u64::from(CID), 2],
            ports: [guest, host],
            kind: 1,
            op,
            flags: 0,
            buffer: GUEST_BUFFER,
            forwarded: 0,
            payload: Vec::new(),
        }
    }

    fn with(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.cids.iter().for_each(|cid| bytes.extend(cid.to_le_bytes()));
        self.ports.iter().for_each(|port| bytes.extend(port.to_le_bytes()));
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        for word in [self.flags, self.buffer, self.forwarded] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        assert_eq!(word(24) as usize, bytes.len() - 44, "the length is that of the payload");
        Self {
            cids: [long(0), long(8)],
            ports: [word(16), word(20)],
            kind: half(28),
            op: half(30),
            flags: word(32),
            buffer: word(36),
            forwarded: word(40),
            payload: bytes[44..].to_vec(),
        }
    }
}

/// The host's folder with its sockets.
struct Host {
    folder: TempDir,
    path: PathBuf,
    end: VsockEnd,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let end = VsockEnd::new(UnixListener::bind(&path).unwrap(), &path).unwrap();
        Self { folder, path, end }
    }

    fn device(&self) -> Vsock {
        Vsock::new(CID, self.end.clone())
    }

    /// A device whose failures `tell` hears of.
    fn telling(&self, tell: impl Fn(&str) + Send + Sync + 'static) -> Vsock {
        let report: Report = Arc::new(tell);
        self.device().telling(Failures::new(&report, "socket device"))
    }

    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(format!("vm.sock_{port}"))).unwrap()
    }

    fn client(&self, greeting: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(greeting.as_bytes()).unwrap();
        client
    }
}

/// A driver's end of the virtqueues.
struct Guest<'d, 'm> {
    queues: Vec<GuestQueue<'d, 'm>>,
}

impl<'d, 'm> Guest<'d, 'm> {
    fn start(driver: &'d Driver<'m>) -> Self {
        Self { queues: driver.start_queues(0, QUEUE, 3) }
    }

    fn send(&mut self, packet: &Packet) {
        let bytes = packet.bytes();
        let queue = &mut self.queues[1];
        queue.memory().write_slice(&bytes, GuestAddress(BUFFER)).unwrap();
        queue.offer(0, &[(BUFFER, bytes.len() as u32, false)]);
        queue.ring();
        assert_eq!(queue.wait_used(), (0, 0));
    }

    /// Makes room for a packet, header and payload apart as Linux did for long, and waits for it.
    fn receive(&mut self, room: u32) -> Packet {
        let queue = &mut self.queues[0];
        queue.offer(0, &[(ROOM, 44, true), (ROOM + 64, room, true)]);
        queue.ring();
        let (_, len) = queue.wait_used();
        let mut bytes = vec![0; len as usize];
        let (header, payload) = bytes.split_at_mut(44);
        queue.memory().read_slice(header, GuestAddress(ROOM)).unwrap();
        queue.memory().read_slice(payload, GuestAddress(ROOM + 64)).unwrap();
        let packet = Packet::parse(&bytes);
        assert_eq!(packet.cids, [2, u64::from(CID)]);
        packet
    }

    /// Nothing comes: what comes next is the refusal of `probe`.
    fn expect_nothing_before(&mut self, probe: u32) {
        self.send(&Packet::new(RW, probe, probe));
        let packet = self.receive(64);
        assert_eq!((packet.op, packet.ports), (RST, [probe, probe]));
    }

    /// Connects to the host's service at `port`.
    fn connect(&mut self, guest: u32, port: u32) {
        self.send(&Packet::new(REQUEST, guest, port));
        let packet = self.receive(64);
        assert_eq!((packet.op, packet.ports), (RESPONSE, [port, guest]));
        assert_eq!((packet.buffer as usize, packet.forwarded), (HOST_BUFFER, 0));
    }
}

#[test]
fn a_client_of_the_host_reaches_a_service_of_the_guest() {
    let host = Host::new();
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    assert_eq!(driver.read::<8>(DEVICE, 0), u64::from(CID).to_le_bytes());
    let mut guest = Guest::start(&driver);

    let mut client = host.client("CONNECT 1234\nhel");
    let request = guest.receive(64);
    let port = request.ports[0];
    assert_eq!((request.op, request.kind, request.ports[1]), (REQUEST, 1, 1234));
    guest.send(&Packet::new(RESPONSE, 1234, port));
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {port}\n"));

    assert_eq!(guest.receive(64).payload, b"hel", "what came behind the greeting");
    client.write_all(b"lo").unwrap();
    let data = guest.receive(64);
    assert_eq!((data.op, data.payload), (RW, b"lo".to_vec()));
    guest.send(&Packet::new(RW, 1234, port).with(b"hello yourself"));
    let mut answer = [0; 14];
    reader.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello yourself");
}

#[test]
fn a_client_that_says_nonsense_or_is_refused_is_let_go() {
    let host = Host::new();
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    let gone = |mut client: UnixStream| {
        // A socket that is closed with something unread is reset.
        match client.read(&mut [0]) {
            Ok(len) => len == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    };
    for nonsense in [
        "\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "connected 1\n",
        "CONNECT 000000000000000000000000000000001\n",
    ] {
        assert!(gone(host.client(nonsense)), "{nonsense:?}");
    }
    let client = host.client("CONNECT 99\n");
    let request = guest.receive(64);
    guest.send(&Packet::new(RST, 99, request.ports[0]));
    assert!(gone(client));
    let ignored = host.client("CONNECT 98\r\n");
    let request = guest.receive(64);
    assert_eq!(request.ports[1], 98);
    assert!(gone(ignored), "the guest has two seconds to answer");
    assert_eq!(guest.receive(64).op, RST);
}

#[test]
fn clients_that_say_nothing_give_way_to_others() {
    let host = Host::new();
    let service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device().with_at_most(4));
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    let mut silent: Vec<UnixStream> = (0..4).map(|_| host.client("C")).collect();
    let mut is_gone = |at: usize| silent[at].read(&mut [0]).unwrap_or(0) == 0;
    let _client = host.client("CONNECT 99\n");
    let request = guest.receive(64);
    assert_eq!((request.op, request.ports[1]), (REQUEST, 99));
    assert!(is_gone(0));
    // One that the guest asks for, too.
    guest.connect(5000, 80);
    service.accept().unwrap();
    assert!(is_gone(1));
    silent[2].set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(silent[2].read(&mut [0]).is_err(), "the others are still there");
}

#[test]
fn a_request_that_the_guest_had_no_room_for_is_not_taken_back() {
    let host = Host::new();
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    let mut client = host.client("CONNECT 99\n");
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the guest has two seconds to answer");
    guest.expect_nothing_before(7);
}

#[test]
fn the_guest_reaches_services_of_the_host_and_only_those() {
    let host = Host::new();
    let service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    guest.send(&Packet::new(REQUEST, 5000, 81));
    let refusal = guest.receive(64);
    assert_eq!((refusal.op, refusal.ports), (RST, [81, 5000]));

    guest.connect(5000, 80);
    let (mut server, _) = service.accept().unwrap();
    guest.send(&Packet::new(RW, 5000, 80).with(b"GET"));
    let mut asked = [0; 3];
    server.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"GET");
    server.write_all(b"200").unwrap();
    assert_eq!(guest.receive(64).payload, b"200");
    drop(server);
    let shutdown = guest.receive(64);
    assert_eq!((shutdown.op, shutdown.flags), (SHUTDOWN, RECEIVE | SEND));
    guest.send(&Packet::new(RST, 5000, 80));
    guest.connect(5000, 80);
}

#[test]
fn a_service_that_cannot_be_connected_to_is_told_of() {
    let host = Host::new();
    let (told, heard) = mpsc::channel();
    let device = host.telling(move |line| told.send(line.to_owned()).unwrap());
    let (machine, _function, address) = Machine::with(device);
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    // Nobody at all, a service that has ended, and one of another kind.
    drop(host.service(82));
    let _other = UnixDatagram::bind(host.folder.path().join("vm.sock_83")).unwrap();
    for port in [81, 82, 83] {
        guest.send(&Packet::new(REQUEST, 5000, port));
        assert_eq!(guest.receive(64).op, RST);
    }
    let line = heard.try_recv().unwrap();
    assert!(line.starts_with("socket device: the host's service at port 83: "), "{line}");
    assert!(heard.try_recv().is_err());
}

#[test]
fn each_direction_can_end_before_the_other() {
    let host = Host::new();
    let service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    guest.connect(1, 80);
    let (mut server, _) = service.accept().unwrap();
    guest.send(&Packet::new(RW, 1, 80).with(b"all"));
    guest.send(&Packet { flags: SEND, ..Packet::new(SHUTDOWN, 1, 80) });
    let mut asked = Vec::new();
    server.read_to_end(&mut asked).unwrap();
    assert_eq!(asked, b"all");
    server.write_all(b"answer").unwrap();
    assert_eq!(guest.receive(64).payload, b"answer");
    guest.send(&Packet { flags: RECEIVE, ..Packet::new(SHUTDOWN, 1, 80) });
    assert_eq!(guest.receive(64).op, RST, "a clean end is confirmed");

    guest.connect(2, 80);
    let (mut server, _) = service.accept().unwrap();
    server.write_all(b"bye").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive(64).payload, b"bye");
    let shutdown = guest.receive(64);
    assert_eq!((shutdown.op, shutdown.flags), (SHUTDOWN, SEND));
    guest.send(&Packet::new(RW, 2, 80).with(b"still here"));
    let mut said = [0; 10];
    server.read_exact(&mut said).unwrap();
    // It must not send any more once it said so.
    guest.send(&Packet { flags: SEND, ..Packet::new(SHUTDOWN, 2, 80) });
    let shutdown = guest.receive(64);
    assert_eq!((shutdown.op, shutdown.flags), (SHUTDOWN, RECEIVE | SEND));
    guest.send(&Packet::new(RW, 2, 80).with(b"x"));
    assert_eq!(guest.receive(64).op, RST);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let host = Host::new();
    let service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    guest.connect(1, 80);
    let (mut server, _) = service.accept().unwrap();
    let sent: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
    server.write_all(&sent).unwrap();
    let mut got = Vec::new();
    while got.len() < GUEST_BUFFER as usize {
        let packet = guest.receive(1500);
        assert_eq!(packet.op, RW);
        got.extend(packet.payload);
    }
    assert_eq!(got.len(), GUEST_BUFFER as usize);
    assert_eq!(guest.receive(64).op, CREDIT_REQUEST);
    guest.send(&Packet::new(CREDIT_UPDATE, 1, 80));
    guest.expect_nothing_before(777);
    while got.len() < sent.len() {
        let forwarded = got.len() as u32;
        guest.send(&Packet { forwarded, ..Packet::new(CREDIT_UPDATE, 1, 80) });
        let packet = guest.receive(4096);
        if packet.op == RW {
            got.extend(packet.payload);
        }
    }
    assert!(got == sent);
    // A guest that has got more than there was is given nothing.
    guest.send(&Packet { forwarded: u32::MAX, buffer: 1, ..Packet::new(CREDIT_UPDATE, 1, 80) });
    server.write_all(b"x").unwrap();
    loop {
        match guest.receive(64).op {
            CREDIT_REQUEST => break,
            op => assert_ne!(op, RW),
        }
    }
}

#[test]
fn the_host_keeps_what_it_promised_to_keep_and_no_more() {
    let host = Host::new();
    let service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    guest.connect(1, 80);
    let (mut server, _) = service.accept().unwrap();
    guest.send(&Packet::new(CREDIT_REQUEST, 1, 80));
    assert_eq!(guest.receive(64).op, CREDIT_UPDATE);

    // A driver that heeds its credit: all arrives, however slow the service is.
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 7) as u8).collect();
    let expected = sent.clone();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        server.read_exact(&mut got).unwrap();
        assert!(got == expected);
        server
    });
    let (mut written, mut forwarded) = (0, 0);
    while written < sent.len() {
        let room = HOST_BUFFER - (written - forwarded);
        let len = room.min(16_000).min(sent.len() - written);
        if len == 0 {
            let update = guest.receive(64);
            assert_eq!(update.op, CREDIT_UPDATE);
            forwarded = update.forwarded as usize;
            continue;
        }
        guest.send(&Packet::new(RW, 1, 80).with(&sent[written..written + len]));
        written += len;
    }
    let server = reader.join().unwrap();

    // One that does not is reset.
    for _ in 0..20 {
        guest.send(&Packet::new(RW, 1, 80).with(&[0; 60_000]));
    }
    while guest.receive(64).op != RST {}
    drop(server);
}

#[test]
fn what_belongs_to_nothing_is_refused_and_what_is_no_packet_needs_a_reset() {
    let host = Host::new();
    let _service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    for stray in [
        Packet::new(RW, 7, 80).with(b"x"),
        Packet::new(RESPONSE, 7, 80),
        Packet::new(SHUTDOWN, 7, 80),
        Packet::new(CREDIT_REQUEST, 7, 80),
        Packet::new(99, 7, 80),
        Packet { kind: 2, ..Packet::new(REQUEST, 7, 80) },
    ] {
        guest.send(&stray);
        let refusal = guest.receive(64);
        assert_eq!((refusal.op, refusal.ports), (RST, [80, 7]), "{stray:?}");
        assert_eq!(refusal.kind, stray.kind);
    }
    // Whom should it answer?
    guest.send(&Packet::new(RST, 7, 80));
    guest.send(&Packet { cids: [9, 2], ..Packet::new(REQUEST, 7, 80) });
    guest.expect_nothing_before(777);
    // A second request for a connection that there is ends it.
    guest.connect(7, 80);
    guest.send(&Packet::new(REQUEST, 7, 80));
    assert_eq!(guest.receive(64).op, RST);

    type Breakage = fn(&mut Guest<'_, '_>);
    let short: Breakage = |guest| guest.queues[1].offer(0, &[(BUFFER, 43, false)]);
    let cut_off: Breakage = |guest| {
        let mut packet = Packet::new(RW, 1, 1).with(b"four").bytes();
        packet.pop();
        guest.queues[1].memory().write_slice(&packet, GuestAddress(BUFFER)).unwrap();
        guest.queues[1].offer(0, &[(BUFFER, packet.len() as u32, false)]);
    };
    let no_room: Breakage = |guest| {
        guest.queues[0].offer(0, &[(ROOM, 44, true)]);
        guest.send(&Packet::new(RW, 1, 1));
    };
    for break_it in [short, cut_off, no_room] {
        let mut guest = Guest::start(&driver);
        break_it(&mut guest);
        guest.queues[1].ring();
        driver.wait_needs_reset();
        assert!(matches!(machine.take_fault(), Some(Error::Malformed(_))));
        driver.reset();
    }
}

#[test]
fn refusals_without_room_hold_the_guest_back_and_none_is_lost() {
    let host = Host::new();
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    let mut guest = Guest::start(&driver);
    let packet = |port| Packet::new(REQUEST, port, 1).bytes();
    let mut sent = 0;
    // More than are kept, eight at a time.
    let mut taken = 0;
    while sent < 200 {
        let queue = &mut guest.queues[1];
        for head in 0..8 {
            let at = BUFFER + 64 * u64::from(head);
            queue.memory().write_slice(&packet(sent), GuestAddress(at)).unwrap();
            queue.offer(head, &[(at, 44, false)]);
            sent += 1;
        }
        queue.ring();
        for _ in 0..8 {
            // Where the device takes no more, room makes it go on.
            while guest.queues[1].take_used().is_none() {
                let refusal = guest.receive(64);
                assert_eq!((refusal.op, refusal.ports), (RST, [1, taken]));
                taken += 1;
            }
        }
    }
    while taken < sent {
        assert_eq!(guest.receive(64).ports, [1, taken]);
        taken += 1;
    }
}

#[test]
fn a_reset_ends_connections_and_new_ones_come() {
    let host = Host::new();
    let service = host.service(80);
    let (machine, _function, address) = Machine::with(host.device());
    let driver = Driver::bind(&machine, address);
    for _life in 0..2 {
        let mut guest = Guest::start(&driver);
        guest.connect(1, 80);
        let (mut server, _) = service.accept().unwrap();
        driver.reset();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }
}
