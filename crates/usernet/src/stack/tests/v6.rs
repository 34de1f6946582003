//! IPv6: what a guest finds on its link, what a DHCP server tells it, and bytes both ways.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpAddress, Ipv6Packet, NdiscNeighborFlags, NdiscRepr,
    NdiscRouterFlags, UdpPacket,
};

use super::*;
use crate::config::link_local;
use crate::frame::{HOP_LIMIT_LINK, ip_payload_at, udp_payload_at};

const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1);
/// The guest's address on its link, and the gateway's.
const GUEST_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 9);
const GATEWAY_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_DHCP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A frame of the guest.
fn from_guest(lab: &Lab, ends: (Ipv6Addr, Ipv6Addr), protocol: IpProtocol, body: &[u8]) -> Vec<u8> {
    let link = Link { gateway: lab.stack.link.guest, guest: lab.stack.link.gateway };
    let ends: (IpAddr, IpAddr) = (ends.0.into(), ends.1.into());
    let at = ip_payload_at(ends.1);
    let mut frame = vec![0; at + body.len()];
    link.ip_of(&mut frame, ends, protocol, body.len(), HOP_LIMIT_LINK);
    frame[at..].copy_from_slice(body);
    frame
}

/// The frame that answers one of the guest.
fn answer(lab: &mut Lab, frame: &[u8]) -> Option<Vec<u8>> {
    lab.stack.guest_frame(frame, &mut lab.host, lab.now);
    let mut buf = [0; 1514];
    let frame = lab.stack.frame(&mut buf, &mut lab.host, lab.now)?;
    Some(buf[..frame.len].to_vec())
}

fn icmp(lab: &mut Lab, ends: (Ipv6Addr, Ipv6Addr), repr: &Icmpv6Repr<'_>) -> Option<Vec<u8>> {
    let body = icmp::bytes_v6((ends.0.into(), ends.1.into()), repr);
    let frame = from_guest(lab, ends, IpProtocol::Icmpv6, &body);
    answer(lab, &frame)
}

/// Addresses, hop limit and message of a frame, whose checksum is right.
fn message(frame: &[u8]) -> (Ipv6Addr, Ipv6Addr, u8, Icmpv6Packet<&[u8]>) {
    let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
    let message = Icmpv6Packet::new_checked(&frame[54..]).unwrap();
    assert!(message.verify_checksum(&packet.src_addr(), &packet.dst_addr()));
    (packet.src_addr(), packet.dst_addr(), packet.hop_limit(), message)
}

#[test]
fn the_gateways_address_on_the_link_follows_from_its_ethernet_address() {
    // The example of RFC 4291, appendix A.
    let example = link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
    assert_eq!(example, "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
    assert_eq!(link_local([2, 0, 0, 0, 0, 0]), GATEWAY_LINK);
}

#[test]
fn a_guest_that_asks_is_told_of_its_router_now_and_later() {
    let mut lab = Lab::without_address(Lab::config());
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    let mut frame = icmp(&mut lab, (GUEST_LINK, ALL_ROUTERS), &repr).unwrap();
    for _ in 0..2 {
        let (from, to, hop_limit, message) = message(&frame);
        assert_eq!((from, to, hop_limit), (GATEWAY_LINK, ALL_NODES, 255));
        let NdiscRepr::RouterAdvert { flags, router_lifetime, mtu, prefix_info, .. } =
            NdiscRepr::parse(&message).unwrap()
        else {
            panic!("{message:?}")
        };
        assert_eq!(flags, NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER);
        assert_eq!((router_lifetime.secs(), mtu), (9000, Some(1500)));
        let prefix = prefix_info.unwrap();
        assert_eq!((prefix.prefix, prefix.prefix_len), ("fd10:0:2::".parse().unwrap(), 120));
        assert!(prefix.flags.is_empty());
        let later = lab.stack.deadline().unwrap();
        lab.stack.tick(&mut lab.host, later);
        let mut buf = [0; 1514];
        let next = lab.stack.frame(&mut buf, &mut lab.host, later).unwrap();
        frame = buf[..next.len].to_vec();
    }
}

#[test]
fn neighbors_are_the_gateway_and_nobody_else() {
    let mut lab = Lab::without_address(Lab::config());
    let ask = |lab: &mut Lab, from: Ipv6Addr, target_addr: Ipv6Addr| {
        let repr = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr: None });
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
        icmp(lab, (from, group), &repr)
    };
    for address in [GATEWAY6, GATEWAY_LINK] {
        let frame = ask(&mut lab, GUEST, address).unwrap();
        let (from, to, hop_limit, message) = message(&frame);
        assert_eq!((from, to, hop_limit), (address, GUEST, 255));
        let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } =
            NdiscRepr::parse(&message).unwrap()
        else {
            panic!("{message:?}")
        };
        assert!(flags.contains(NdiscNeighborFlags::SOLICITED) && target_addr == address);
        assert_eq!(lladdr.unwrap().as_bytes(), [2, 0, 0, 0, 0, 0]);
    }
    // The guest makes sure that nobody has the address that it takes.
    assert_eq!(ask(&mut lab, Ipv6Addr::UNSPECIFIED, GUEST), None);
    let frame = ask(&mut lab, Ipv6Addr::UNSPECIFIED, GATEWAY6).unwrap();
    assert_eq!(message(&frame).1, ALL_NODES);
}

#[test]
fn the_gateway_answers_echo_requests_of_both_its_addresses() {
    let mut lab = Lab::without_address(Lab::config());
    for (from, to) in [(GUEST, GATEWAY6), (GUEST_LINK, GATEWAY_LINK)] {
        let repr = Icmpv6Repr::EchoRequest { ident: 7, seq_no: 3, data: b"0123456789" };
        let frame = icmp(&mut lab, (from, to), &repr).unwrap();
        let (source, target, _, message) = message(&frame);
        assert_eq!((source, target), (to, from));
        assert_eq!(message.msg_type(), Icmpv6Message::EchoReply);
        assert_eq!((message.echo_ident(), message.echo_seq_no()), (7, 3));
        assert_eq!(message.payload(), b"0123456789");
    }
}

/// Options of DHCP: codes and bodies.
type Options = Vec<(u16, Vec<u8>)>;

/// Sends a DHCP message, and gives the answer's type and options by their codes.
fn dhcp(lab: &mut Lab, message: &[u8]) -> Option<(u8, Options)> {
    let mut body = vec![0; 8];
    body[..2].copy_from_slice(&546_u16.to_be_bytes());
    body[2..4].copy_from_slice(&547_u16.to_be_bytes());
    body[4..6].copy_from_slice(&(8 + message.len() as u16).to_be_bytes());
    body.extend(message);
    let frame = from_guest(lab, (GUEST_LINK, ALL_DHCP), IpProtocol::Udp, &body);
    let frame = answer(lab, &frame)?;
    let udp = UdpPacket::new_checked(&frame[54..]).unwrap();
    let ends = (IpAddress::Ipv6(GATEWAY_LINK), IpAddress::Ipv6(GUEST_LINK));
    assert!(udp.verify_checksum(&ends.0, &ends.1));
    assert_eq!((udp.src_port(), udp.dst_port()), (547, 546));
    assert_eq!(udp_payload_at(GUEST.into()), 62);
    let payload = &frame[62..];
    assert_eq!(payload[1..4], message[1..4], "the transaction");
    let (mut options, mut rest) = (Vec::new(), &payload[4..]);
    while let [k0, k1, l0, l1, behind @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        options.push((u16::from_be_bytes([*k0, *k1]), behind[..len].to_vec()));
        rest = &behind[len..];
    }
    Some((payload[0], options))
}

#[test]
fn the_dhcp_server_has_one_address_for_the_guest() {
    let mut config = Lab::config();
    config.resolvers = vec!["127.0.0.1:53".parse().unwrap()];
    config.search = vec!["example.org".into()];
    let mut lab = Lab::without_address(config);
    let client = [0, 1, 0, 4, 1, 2, 3, 4];
    let server = [0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 0];
    let other = [0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1];
    let association = [&[0, 3, 0, 12, 0xaa, 0xbb, 0xcc, 0xdd][..], &[0; 8]].concat();
    let rapid = [0, 14, 0, 0];
    let wrong = [&[0, 3, 0, 40, 0, 0, 0, 1][..], &[0; 8], &[0, 5, 0, 24], &[9; 24]].concat();
    let message = |kind: u8, options: &[&[u8]]| [&[kind, 7, 8, 9][..], &options.concat()].concat();
    let (solicit, advertise, request, reply) = (1, 2, 3, 7);
    for (kind, options, expected) in [
        (solicit, &[&client[..], &association][..], Some((advertise, true))),
        (solicit, &[&client, &association, &rapid], Some((reply, true))),
        (request, &[&client, &server, &association], Some((reply, true))),
        (5, &[&client, &server, &association], Some((reply, true))),
        (6, &[&client, &association], Some((reply, true))),
        (11, &[], Some((reply, false))),
        (8, &[&client, &server, &association], Some((reply, false))),
        (4, &[&client, &wrong], Some((reply, false))),
        // Of another server, without a name, unknown, or cut off.
        (request, &[&client, &other, &association], None),
        (request, &[&client, &association], None),
        (solicit, &[&association], None),
        (99, &[&client], None),
        (solicit, &[&client, &association[..10]], None),
    ] {
        let answered = dhcp(&mut lab, &message(kind, options));
        let Some((kind, has_address)) = expected else {
            assert_eq!(answered, None);
            continue;
        };
        let (found, options) = answered.unwrap();
        let option = |kind| options.iter().find(|(k, _)| *k == kind).map(|(_, body)| &body[..]);
        assert_eq!(found, kind);
        assert_eq!(option(2), Some(&server[4..]));
        assert_eq!(option(23), Some(&GATEWAY6.octets()[..]));
        assert_eq!(option(24), Some(&b"\x07example\x03org\0"[..]));
        let address = option(3).map(|body| (body[..4].to_vec(), body[16..32].to_vec()));
        let expected = (vec![0xaa, 0xbb, 0xcc, 0xdd], GUEST.octets().to_vec());
        assert_eq!(address, has_address.then_some(expected));
    }
}

#[test]
fn bytes_go_both_ways_over_ipv6() {
    let mut lab = Lab::new(Lab::config());
    lab.add_v6(GUEST, GATEWAY_LINK);
    let data = pattern(1 << 20);
    let server = echo_server_at("[::1]:0");
    let handle = lab.connect_to(IpAddress::Ipv6(GATEWAY6), server.port());
    assert!(echoed_by(&mut lab, handle, &data) == data);
}

#[test]
fn addresses_that_are_not_beyond_the_link_are_nobodys() {
    let config = Lab::config();
    for address in ["::1", "::", "fe80::1", "ff02::fb", "fd10:0:2::7", "::ffff:127.0.0.1"] {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        assert_eq!(config.destination(to, 0), None, "{address}");
    }
    let to = |address: &str| SocketAddr::new(address.parse().unwrap(), 80);
    assert_eq!(config.destination(to("2001:db8::1"), 0), Some(to("2001:db8::1")));
    assert_eq!(config.destination(to("fd10:0:2::1"), 0), Some(to("::1")));
    let without = Config { network6: None, ..config };
    assert_eq!(without.destination(to("2001:db8::1"), 0), None);
}
