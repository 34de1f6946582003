//! Neighbor discovery (RFC 4861): the guest finds the gateway on its link, and is told that a DHCP server
//! has its address. The prefix is said to be neither on the link nor one to make addresses of, because
//! nobody else has one there.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use crate::Config;
use crate::config::link_local;
use crate::frame::{HOP_LIMIT_LINK, Link, Packet, ip_payload_at};
use crate::icmp;

/// All nodes of the link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// How long the gateway is one without saying so again (RFC 4861 §6.2.1 has no longer time), in seconds,
/// and how long the prefix is worth something, which is for ever.
const ROUTER_LIFETIME: u64 = 9000;
const PREFIX_LIFETIME: u64 = u32::MAX as u64;

/// How often a guest that asked once is told again.
pub(crate) const ADVERTISE: std::time::Duration = std::time::Duration::from_secs(600);

/// What a guest asks the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Who routes here?
    Router,
    /// Which Ethernet address has this one?
    Neighbor(Ipv6Addr),
}

/// The question in a packet, if it is one.
pub(crate) fn question(packet: &Packet<'_>) -> Option<Question> {
    /// Where a solicitation has its target (RFC 4861 §4.3).
    const TARGET: std::ops::Range<usize> = 8..24;
    let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
    match message.msg_type() {
        Icmpv6Message::RouterSolicit => Some(Question::Router),
        Icmpv6Message::NeighborSolicit => {
            let target: [u8; 16] = packet.payload.get(TARGET)?.try_into().ok()?;
            Some(Question::Neighbor(target.into()))
        }
        _ => None,
    }
}

/// The frame that tells the guest of its gateway and its network.
pub(crate) fn router(config: &Config, link: &Link) -> Option<Vec<u8>> {
    let network = config.network6?;
    let prefix_info = NdiscPrefixInformation {
        prefix_len: network.prefix_len,
        flags: NdiscPrefixInfoFlags::empty(),
        valid_lifetime: Duration::from_secs(PREFIX_LIFETIME),
        preferred_lifetime: Duration::from_secs(PREFIX_LIFETIME),
        prefix: prefix(network.gateway, network.prefix_len),
    };
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
        router_lifetime: Duration::from_secs(ROUTER_LIFETIME),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(link.gateway).into()),
        mtu: Some(u32::from(config.mtu)),
        prefix_info: Some(prefix_info),
    };
    Some(frame(link, (link_local(link.gateway), ALL_NODES), repr))
}

/// The frame that tells that the gateway has `address`, for whoever asked.
pub(crate) fn neighbor(link: &Link, address: Ipv6Addr, asked_by: Ipv6Addr) -> Vec<u8> {
    // Who has no address yet wants this one for itself, and all are told that it is taken (§7.2.4).
    let (to, solicited) = match asked_by.is_unspecified() {
        true => (ALL_NODES, NdiscNeighborFlags::empty()),
        false => (asked_by, NdiscNeighborFlags::SOLICITED),
    };
    let repr = NdiscRepr::NeighborAdvert {
        flags: solicited | NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE,
        target_addr: address,
        lladdr: Some(EthernetAddress(link.gateway).into()),
    };
    frame(link, (address, to), repr)
}

fn frame(link: &Link, (from, to): (Ipv6Addr, Ipv6Addr), repr: NdiscRepr<'_>) -> Vec<u8> {
    let ends = (IpAddr::V6(from), IpAddr::V6(to));
    let message = icmp::bytes_v6(ends, &Icmpv6Repr::Ndisc(repr));
    let payload_at = ip_payload_at(ends.1);
    let mut buf = vec![0; payload_at + message.len()];
    link.ip_of(&mut buf, ends, IpProtocol::Icmpv6, message.len(), HOP_LIMIT_LINK);
    buf[payload_at..].copy_from_slice(&message);
    buf
}

/// The address with nothing behind its prefix.
fn prefix(address: Ipv6Addr, len: u8) -> Ipv6Addr {
    let bits = 128 - u32::from(len.min(128));
    let mask = u128::MAX.checked_shl(bits).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}
