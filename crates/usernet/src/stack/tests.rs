//! The stack between a real TCP/IP implementation as the guest (smoltcp's) and real sockets.

mod guest;
mod sockets;
mod v6;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::IpAddress;

use self::guest::{GATEWAY, Lab, Wire};
use super::*;
use crate::budget::{BUFFER_MIN, BUFFERS_MAX};

/// Where the payload of an IPv4 packet begins in a frame.
const IP_PAYLOAD_AT: usize = 34;

/// Bytes that are not alike anywhere near.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 7 ^ i >> 13) as u8).collect()
}

/// A server on the host that sends back what it gets, until the end.
fn echo_server() -> SocketAddr {
    echo_server_at("127.0.0.1:0")
}

fn echo_server_at(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                std::io::copy(&mut reader, &mut stream).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            });
        }
    });
    address
}

/// Sends `data` from the guest to a server that echoes, and gives what came back.
fn echoed(lab: &mut Lab, data: &[u8]) -> Vec<u8> {
    let handle = lab.connect(echo_server().port());
    echoed_by(lab, handle, data)
}

fn echoed_by(lab: &mut Lab, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut back) = (0, Vec::new());
    lab.run(Duration::from_secs(60), |lab| {
        let socket = lab.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        sent == data.len() && !socket.is_active()
    });
    back
}

#[test]
fn a_guest_is_told_its_network_by_dhcp() {
    let mut config = Lab::config();
    config.hostname = Some("web-1".into());
    config.search = vec!["example.org".into(), "corp.example".into()];
    config.resolvers = vec!["127.0.0.1:53".parse().unwrap()];
    let mut lab = Lab::without_address(config);
    let handle = lab.sockets.add(dhcpv4::Socket::new());
    let mut found = None;
    lab.run(Duration::from_secs(20), |lab| {
        let socket = lab.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
        if let Some(dhcpv4::Event::Configured(config)) = socket.poll() {
            found = Some((config.address, config.router, config.dns_servers.to_vec()));
        }
        found.is_some()
    });
    let address = smoltcp::wire::Ipv4Cidr::new(Ipv4Addr::new(10, 0, 2, 2), 24);
    assert_eq!(found, Some((address, Some(GATEWAY), vec![GATEWAY])));
    let offer = lab.wire.seen.iter().find(|frame| contains(frame, b"web-1")).unwrap();
    assert!(contains(offer, b"\x77\x1b\x07example\x03org\x00\x04corp\x07example\x00"));
    assert!(contains(offer, &[26, 2, 0x05, 0xdc]), "no MTU");
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn bytes_go_both_ways_and_both_ends_are_told() {
    for config in [
        Lab::config(),
        Config { mtu: 65520, ..Lab::config() },
        Config { mtu: 576, ..Lab::config() },
    ] {
        let mut lab = Lab::new(config);
        let data = pattern(3 << 20);
        assert!(echoed(&mut lab, &data) == data, "MTU {}", lab.stack.config.mtu);
        lab.run(Duration::from_secs(10), |lab| lab.stack.entries.is_empty());
        assert!(lab.host.sockets.is_empty());
        assert_eq!(lab.stack.connections, 0);
    }
}

#[test]
fn what_a_link_loses_is_sent_again() {
    let mut lab = Lab::new(Lab::config());
    lab.wire = Wire::losing(23);
    let data = pattern(200_000);
    assert!(echoed(&mut lab, &data) == data);
    assert_eq!(lab.wire.lost, 6);
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let mut lab = Lab::new(Lab::config());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let handle = lab.connect(port);
    lab.run(Duration::from_secs(5), |lab| {
        lab.sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed
    });
    assert!(lab.stack.entries.is_empty());
}

#[test]
fn the_host_is_reached_only_if_that_is_wanted() {
    let config = Config { reach_host: false, ..Lab::config() };
    let port = echo_server().port();
    let gateway = SocketAddr::from((GATEWAY, port));
    assert_eq!(config.destination(gateway, 0), None);
    for address in [
        "127.0.0.1",
        "10.0.2.7",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
    ] {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        assert_eq!(Lab::config().destination(to, 0), None, "{address}");
    }
    let mut lab = Lab::new(config);
    let handle = lab.connect(port);
    lab.run(Duration::from_secs(5), |lab| {
        lab.sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed
    });
}

#[test]
fn a_forwarded_connection_reaches_the_guest() {
    let mut lab = Lab::new(Lab::config());
    let handle = lab.listen(22);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let id = lab.host.accept(accepted);
    assert!(lab.stack.inbound(Inbound::Tcp, id, peer, 22, lab.now));
    client.write_all(b"hello").unwrap();
    let mut got = Vec::new();
    lab.run(Duration::from_secs(5), |lab| {
        let socket = lab.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            socket.send_slice(b"world").unwrap();
            socket.close();
        }
        got == b"hello" && !socket.may_send()
    });
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    });
    lab.run(Duration::from_secs(5), |lab| lab.stack.entries.is_empty() && reader.is_finished());
    assert_eq!(reader.join().unwrap(), "world");
}

#[test]
fn peers_with_the_same_port_are_told_apart() {
    let mut lab = Lab::new(Lab::config());
    lab.host.refuses = true;
    let peers = ["192.0.2.1:5000", "192.0.2.2:5000", "192.0.2.3:5000"];
    for (id, peer) in (1..).zip(peers) {
        let id = SocketId(id * 2);
        assert!(lab.stack.inbound(Inbound::Tcp, id, peer.parse().unwrap(), 22, lab.now));
    }
    let mut ports: Vec<u16> = lab.stack.by_ends.keys().map(|(_, ends)| ends.1.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [5000, 49152, 49153]);
}

#[test]
fn peers_of_forwarded_datagrams_are_no_more_than_other_flows() {
    let mut lab = Lab::new(Lab::config());
    let from = |port| SocketAddr::from(([192, 0, 2, 1], port));
    let taken = (1..=2000_u16).filter(|port| {
        let id = SocketId(u64::from(*port) * 2);
        lab.stack.inbound(Inbound::Udp, id, from(*port), 53, lab.now)
    });
    assert_eq!(taken.count(), FLOWS_MAX);
}

#[test]
fn a_guest_that_does_not_listen_refuses_a_forwarded_connection() {
    let mut lab = Lab::new(Lab::config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let id = lab.host.accept(accepted);
    assert!(lab.stack.inbound(Inbound::Tcp, id, peer, 22, lab.now));
    lab.run(Duration::from_secs(5), |lab| lab.stack.entries.is_empty());
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_host_that_breaks_off_is_a_reset_for_the_guest() {
    let mut lab = Lab::new(Lab::config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = lab.connect(listener.local_addr().unwrap().port());
    let (server, _) = listener.accept().unwrap();
    lab.run(Duration::from_secs(5), |lab| lab.socket(handle).may_send());
    // What was not read makes the close a reset.
    lab.socket(handle).send_slice(b"x").unwrap();
    lab.run(Duration::from_secs(5), |lab| lab.socket(handle).send_queue() == 0);
    drop(server);
    lab.run(Duration::from_secs(5), |lab| lab.socket(handle).state() == tcp::State::Closed);
    lab.run(Duration::from_secs(5), |lab| lab.stack.entries.is_empty());
}

#[test]
fn a_guest_that_does_not_read_holds_back_its_sender() {
    let mut lab = Lab::new(Lab::config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = lab.connect(listener.local_addr().unwrap().port());
    let (mut server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let data = pattern(16 << 20);
    let (mut sent, mut idle) = (0, 0);
    lab.run(Duration::from_secs(30), |_| {
        match server.write(&data[sent..]) {
            Ok(len) => (sent, idle) = (sent + len, 0),
            Err(_) => idle += 1,
        }
        idle > 200
    });
    assert!(sent < data.len(), "everything was taken");
    let mut got = Vec::new();
    lab.run(Duration::from_secs(60), |lab| {
        if sent < data.len() {
            sent += server.write(&data[sent..]).unwrap_or(0);
        }
        let socket = lab.socket(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        got.len() == data.len()
    });
    assert!(got == data);
}

#[test]
fn datagrams_go_out_and_answers_come_back() {
    let mut config = Lab::config();
    let [server, resolver] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    config.resolvers = vec![resolver.local_addr().unwrap()];
    let mut lab = Lab::new(config);
    for (socket, port) in [(&server, server.local_addr().unwrap().port()), (&resolver, 53)] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let handle = lab.udp();
        let to = (IpAddress::Ipv4(GATEWAY), port);
        lab.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"question", to).unwrap();
        lab.run(Duration::from_secs(5), |lab| lab.stack.statistics.opened > 0);
        let mut buf = [0; 100];
        lab.settle();
        let (len, from) = socket.recv_from(&mut buf).unwrap();
        assert_eq!(&buf[..len], b"question");
        socket.send_to(b"answer", from).unwrap();
        let mut answer = Vec::new();
        lab.run(Duration::from_secs(5), |lab| {
            let socket = lab.sockets.get_mut::<udp::Socket<'_>>(handle);
            if let Ok((bytes, meta)) = socket.recv() {
                assert_eq!((meta.endpoint.addr, meta.endpoint.port), to);
                answer = bytes.to_vec();
            }
            !answer.is_empty()
        });
        assert_eq!(answer, b"answer");
    }
    // Nothing happens in them: they are forgotten.
    assert_eq!(lab.stack.entries.len(), 2);
    lab.stack.tick(&mut lab.host, lab.now + IDLE_MAX);
    assert!(lab.stack.entries.is_empty() && lab.host.sockets.is_empty());
}

#[test]
fn the_gateway_answers_echo_requests() {
    let mut lab = Lab::new(Lab::config());
    let echo = Echo { ident: 7, sequence: 3, data: b"0123456789" };
    let guest_link = Link { gateway: lab.stack.link.guest, guest: lab.stack.link.gateway };
    let message = icmp::request_bytes(GATEWAY.into(), &echo);
    let mut frame = vec![0; IP_PAYLOAD_AT + message.len()];
    let ends: (IpAddr, IpAddr) = (Ipv4Addr::new(10, 0, 2, 2).into(), GATEWAY.into());
    guest_link.ip(&mut frame, ends, IpProtocol::Icmp, message.len());
    frame[IP_PAYLOAD_AT..].copy_from_slice(&message);
    lab.stack.guest_frame(&frame, &mut lab.host, lab.now);
    let mut buf = [0; 1514];
    let reply = lab.stack.frame(&mut buf, &mut lab.host, lab.now).unwrap();
    let (_, Incoming::Ip(packet)) = frame::parse(&buf[..reply.len]).unwrap() else { panic!() };
    assert_eq!((packet.from, packet.to), (ends.1, ends.0));
    assert_eq!(icmp::reply(packet.to, packet.payload), Some((3, &b"0123456789"[..])));
}

#[test]
fn large_segments_are_marked_for_the_guests_device() {
    let config =
        Config { large_segments: true, partial_checksums: true, mtu: 1500, ..Lab::config() };
    let mut lab = Lab::new(config);
    let data = pattern(1 << 20);
    assert!(echoed(&mut lab, &data) == data);
    assert!(lab.wire.large > 3, "{} large segments", lab.wire.large);
}

#[test]
fn a_flood_stays_within_the_limits() {
    flood(Lab::config(), CONNECTIONS_MAX, FLOWS_MAX);
    flood(Config { sockets_max: 400, ..Lab::config() }, 300, 100);
}

fn flood(config: Config, connections_max: usize, flows_max: usize) {
    let mut lab = Lab::new(config);
    let port = echo_server().port();
    lab.host.refuses = true;
    for number in 0..20_000_u32 {
        let (source, protocol) = (1024 + (number % 60_000) as u16, number % 2);
        let frame = match protocol {
            0 => guest::syn(&lab.stack.link, source, port),
            _ => guest::datagram(&lab.stack.link, source, port),
        };
        lab.stack.guest_frame(&frame, &mut lab.host, lab.now);
    }
    assert_eq!(lab.stack.connections, connections_max);
    assert_eq!(lab.stack.entries.len(), connections_max + flows_max);
    assert!(lab.stack.queue.len() <= QUEUE_MAX);
    let mut buf = [0; 1514];
    while lab.stack.frame(&mut buf, &mut lab.host, lab.now).is_some() {}
    assert_eq!(lab.stack.turns.len(), lab.stack.has_turn.len());
}

#[test]
fn the_flow_that_was_not_used_for_longest_gives_way() {
    let mut lab = Lab::new(Config { sockets_max: 400, ..Lab::config() });
    lab.host.refuses = true;
    let mut send = |source: u16, seconds| {
        let frame = guest::datagram(&lab.stack.link, source, 4000);
        lab.stack.guest_frame(&frame, &mut lab.host, Duration::from_secs(seconds));
        let guests = lab.stack.entries.values().map(|entry| match entry {
            Entry::Flow(flow) => flow.guest.port(),
            Entry::Connection(_) => unreachable!(),
        });
        let guests: HashSet<u16> = guests.collect();
        assert_eq!((guests.len(), lab.stack.flows.len()), (lab.stack.entries.len(), guests.len()));
        guests
    };
    for source in 1001..=1100 {
        send(source, 1);
    }
    for source in [1001, 1003] {
        send(source, 2);
    }
    for (new, gone) in [(2001, 1002), (2002, 1004)] {
        let there = send(new, 3);
        assert!(there.len() == 100 && !there.contains(&gone) && there.contains(&new), "{new}");
        assert!(there.contains(&1001) && there.contains(&1003));
    }
}

/// A host that has bytes for ever, and takes none.
struct Plenty;

impl Host for Plenty {
    fn open_tcp(&mut self, _: SocketId, _: SocketAddr) -> std::io::Result<()> {
        Ok(())
    }

    fn open_udp(&mut self, _: SocketId, _: SocketAddr) -> std::io::Result<()> {
        Ok(())
    }

    fn open_ping(&mut self, _: SocketId, _: IpAddr) -> std::io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: SocketId, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }

    fn receive(&mut self, _: SocketId, buf: &mut [u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }

    fn shut_down(&mut self, _: SocketId) {}

    fn close(&mut self, _: SocketId, _: Close) {}
}

#[test]
fn connections_that_come_one_by_one_stay_within_the_memory_of_all() {
    let config = Config { large_segments: true, partial_checksums: true, ..Lab::config() };
    let (mut stack, mut host, now) = (Stack::new(config), Plenty, Duration::ZERO);
    let mut buf = vec![0; 65_550];
    let payload = [7; 60_000];
    for source in 1..=CONNECTIONS_MAX as u16 {
        stack.guest_frame(&guest::syn(&stack.link, source, 80), &mut host, now);
        let id = SocketId(stack.opened * 2 - 1);
        let ready = Ready { readable: true, writable: true, failed: false };
        stack.socket_event(id, ready, &mut host);
        stack.frame(&mut buf, &mut host, now).unwrap();
        let sequence = u32::from_be_bytes(buf[38..42].try_into().unwrap());
        let ends = (source, 80);
        let ack = sequence.wrapping_add(1);
        let segment = guest::segment(&stack.link, ends, ack, &payload);
        stack.guest_frame(&segment, &mut host, now);
        let mut received = 0;
        while let Some(frame) = stack.frame(&mut buf, &mut host, now) {
            received += frame.len - IP_PAYLOAD_AT - 20;
        }
        assert!(received >= BUFFER_MIN, "connection {source} got {received} bytes");
    }
    let mut held = Held::default();
    for entry in stack.entries.values() {
        let Entry::Connection(connection) = entry else { unreachable!() };
        held.to_guest += connection.held().to_guest;
        held.from_guest += connection.held().from_guest;
    }
    assert_eq!(stack.connections, CONNECTIONS_MAX);
    assert_eq!(stack.budget.total(), held);
    assert!(held.to_guest.max(held.from_guest) <= BUFFERS_MAX, "{held:?}");
    let ids: Vec<_> = stack.entries.keys().copied().collect();
    ids.into_iter().for_each(|id| stack.remove(id, &mut host));
    assert_eq!(stack.budget.total(), Held::default());
}

#[test]
fn no_frame_brings_the_stack_down() {
    let mut lab =
        Lab::new(Config { resolvers: vec!["127.0.0.1:9".parse().unwrap()], ..Lab::config() });
    lab.host.refuses = true;
    let samples: Vec<Vec<u8>> = vec![
        guest::syn(&lab.stack.link, 4000, 80),
        guest::datagram(&lab.stack.link, 4001, 53),
        guest::datagram(&lab.stack.link, 68, 67),
    ];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let mut buf = [0; 2000];
    for round in 0..60_000 {
        let mut frame = samples[round % samples.len()].clone();
        for _ in 0..next() % 4 {
            let at = next() % frame.len();
            frame[at] = next() as u8;
        }
        frame.truncate(frame.len() - next() % 3 * (next() % frame.len()) / 3);
        guest::mend(&mut frame);
        let now = lab.now + Duration::from_millis(round as u64);
        lab.stack.guest_frame(&frame, &mut lab.host, now);
        let len = [0, 13, 40, 60, 2000][next() % 5];
        let _ = lab.stack.frame(&mut buf[..len], &mut lab.host, now);
        lab.stack.tick(&mut lab.host, now);
    }
}
