//! The DHCP server of one client (RFC 2131), with the answers of KubeVirt's.

use std::net::{Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr,
};

use crate::Config;
use crate::frame::{Link, udp_payload_at};

/// How long an address is the guest's, in seconds: 999 days, as KubeVirt has it.
const LEASE: u32 = 999 * 24 * 60 * 60;

/// Options beyond those that the wire library knows (RFC 2132 §3.14, §5.1; RFC 3397).
const OPTION_HOSTNAME: u8 = 12;
const OPTION_MTU: u8 = 26;
const OPTION_SEARCH: u8 = 119;

/// Longest option: its length is one byte.
const OPTION_MAX: usize = 255;

/// The port on which requests come.
pub(crate) const PORT: u16 = DHCP_SERVER_PORT;

/// The frame that answers a request, if one is due.
pub(crate) fn answer(config: &Config, link: &Link, request: &[u8]) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(request).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    // Only the guest itself is a client here.
    if request.client_hardware_address.0 != link.guest {
        return None;
    }
    let network = config.network;
    let is_ours = request.server_identifier.is_none_or(|server| server == network.gateway);
    let asked = request.requested_ip.unwrap_or(request.client_ip);
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if !is_ours => return None,
        DhcpMessageType::Request if asked == network.guest => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    Some(reply(config, link, &request, kind))
}

fn reply(config: &Config, link: &Link, request: &DhcpRepr<'_>, kind: DhcpMessageType) -> Vec<u8> {
    let network = config.network;
    let is_refusal = kind == DhcpMessageType::Nak;
    let is_lease = !is_refusal && request.message_type != DhcpMessageType::Inform;
    let mtu = config.mtu.to_be_bytes();
    let search = search_list(&config.search);
    let mut additional = vec![DhcpOption { kind: OPTION_MTU, data: &mtu }];
    if let Some(name) = config.hostname.as_ref().filter(|name| name.len() <= OPTION_MAX) {
        additional.push(DhcpOption { kind: OPTION_HOSTNAME, data: name.as_bytes() });
    }
    if !search.is_empty() {
        additional.push(DhcpOption { kind: OPTION_SEARCH, data: &search });
    }
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: request.client_ip,
        your_ip: if is_lease { network.guest } else { Ipv4Addr::UNSPECIFIED },
        server_ip: network.gateway,
        router: (!is_refusal).then_some(network.gateway),
        subnet_mask: (!is_refusal).then(|| network.mask()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(network.gateway),
        parameter_request_list: None,
        dns_servers: (!is_refusal && !config.resolvers.is_empty())
            .then(|| [network.gateway].into_iter().collect()),
        max_size: None,
        lease_duration: is_lease.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if is_refusal { &[] } else { &additional },
    };
    let len = reply.buffer_len();
    let payload_at = udp_payload_at(network.gateway.into());
    let mut buf = vec![0; payload_at + len];
    let mut packet = DhcpPacket::new_unchecked(&mut buf[payload_at..]);
    // The buffer has the length that the message says it needs.
    if reply.emit(&mut packet).is_err() {
        return Vec::new();
    }
    // A client that has its address already hears at it; others hear the broadcast (RFC 2131 §4.1).
    let to = match request.client_ip {
        address if !is_refusal && address == network.guest => address,
        _ => Ipv4Addr::BROADCAST,
    };
    let [from, to] = [(network.gateway, DHCP_SERVER_PORT), (to, DHCP_CLIENT_PORT)];
    link.udp(&mut buf, SocketAddr::from(from), SocketAddr::from(to), len, false);
    buf
}

/// Domains as DNS writes names (RFC 3397 §2), as many as one option has room for; no compression.
pub(crate) fn search_list(domains: &[String]) -> Vec<u8> {
    /// Longest part of a name (RFC 1035 §2.3.4).
    const LABEL_MAX: usize = 63;
    let mut list = Vec::new();
    for domain in domains {
        let labels = || domain.trim_end_matches('.').split('.');
        if labels().any(|label| label.is_empty() || label.len() > LABEL_MAX) {
            continue;
        }
        let mut name = Vec::with_capacity(domain.len() + 2);
        for label in labels() {
            name.push(label.len() as u8);
            name.extend(label.as_bytes());
        }
        name.push(0);
        if list.len() + name.len() > OPTION_MAX {
            break;
        }
        list.extend(name);
    }
    list
}
