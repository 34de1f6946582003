//! The DHCP server of IPv6 (RFC 8415), with one address for one client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::link_local;
use crate::dhcp::search_list;
use crate::frame::{Link, udp_payload_at};
use crate::{Config, Network6};

/// The port on which requests come, and the one on which answers are heard (§7.2).
pub(crate) const PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;

/// Bytes of a message before its options: type and transaction (§8).
const HEADER_LEN: usize = 4;
/// Bytes of an association of addresses before its options: identifier and two times (§21.4).
const ASSOCIATION_LEN: usize = 12;

/// Longest name of a client, and longest list of options for it: what a request may ask of us.
const DUID_MAX: usize = 130;
/// Most associations of one request that are answered.
const ASSOCIATIONS_MAX: usize = 4;

/// The address never ends (§7.7).
const INFINITE: u32 = u32::MAX;

/// Types of messages (§7.3).
mod kind {
    pub(super) const SOLICIT: u8 = 1;
    pub(super) const ADVERTISE: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const CONFIRM: u8 = 4;
    pub(super) const RENEW: u8 = 5;
    pub(super) const REBIND: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const DECLINE: u8 = 9;
    pub(super) const INFORMATION_REQUEST: u8 = 11;
}

/// Options (§21; RFC 3646).
mod option {
    pub(super) const CLIENT: u16 = 1;
    pub(super) const SERVER: u16 = 2;
    pub(super) const ASSOCIATION: u16 = 3;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID_COMMIT: u16 = 14;
    pub(super) const DNS: u16 = 23;
    pub(super) const SEARCH: u16 = 24;
}

/// Statuses (§21.13).
const SUCCESS: u16 = 0;
const NOT_ON_LINK: u16 = 4;

/// The options of a request that matter.
#[derive(Default)]
struct Request<'a> {
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    /// Identifiers of the associations.
    associations: Vec<[u8; 4]>,
    /// An address is claimed that is not the guest's.
    claims_other: bool,
    rapid: bool,
}

/// The frame that answers a request from `from`, if one is due.
pub(crate) fn answer(
    config: &Config,
    link: &Link,
    from: Ipv6Addr,
    message: &[u8],
) -> Option<Vec<u8>> {
    let network = config.network6?;
    let (header, options) = message.split_at_checked(HEADER_LEN)?;
    let request = Request::parse(options, network)?;
    let ours = server(link);
    // A message for another server is not ours, and those that go on with one must name it (§16).
    let names_us = request.server.is_some_and(|server| server == ours);
    let is_for_us = match header[0] {
        kind::SOLICIT | kind::CONFIRM | kind::REBIND => request.server.is_none(),
        kind::REQUEST | kind::RENEW | kind::RELEASE | kind::DECLINE => names_us,
        kind::INFORMATION_REQUEST => request.server.is_none() || names_us,
        _ => false,
    };
    let is_named = request.client.is_some() || header[0] == kind::INFORMATION_REQUEST;
    if !is_for_us || !is_named {
        return None;
    }
    let mut reply = match header[0] {
        kind::SOLICIT if !request.rapid => vec![kind::ADVERTISE],
        _ => vec![kind::REPLY],
    };
    reply.extend(&header[1..]);
    if let Some(client) = request.client {
        put(&mut reply, option::CLIENT, client);
    }
    put(&mut reply, option::SERVER, &ours);
    match header[0] {
        kind::RELEASE | kind::DECLINE => status(&mut reply, SUCCESS),
        kind::CONFIRM if request.claims_other => status(&mut reply, NOT_ON_LINK),
        kind::CONFIRM => status(&mut reply, SUCCESS),
        kind::INFORMATION_REQUEST => {}
        other => {
            if other == kind::SOLICIT && request.rapid {
                put(&mut reply, option::RAPID_COMMIT, &[]);
            }
            for association in &request.associations {
                put(&mut reply, option::ASSOCIATION, &association_body(*association, network));
            }
        }
    }
    if !config.resolvers.is_empty() {
        put(&mut reply, option::DNS, &network.gateway.octets());
    }
    let search = search_list(&config.search);
    if !search.is_empty() {
        put(&mut reply, option::SEARCH, &search);
    }
    Some(frame(link, from, &reply))
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8], network: Network6) -> Option<Self> {
        let mut request = Self::default();
        for option in Options(bytes) {
            let (kind, body) = option?;
            match kind {
                option::CLIENT if body.len() <= DUID_MAX => request.client = Some(body),
                option::SERVER => request.server = Some(body),
                option::RAPID_COMMIT => request.rapid = true,
                option::ASSOCIATION => {
                    let (head, inner) = body.split_at_checked(ASSOCIATION_LEN)?;
                    if request.associations.len() < ASSOCIATIONS_MAX {
                        request.associations.push(head[..4].try_into().ok()?);
                    }
                    for option in Options(inner) {
                        let (kind, body) = option?;
                        let is_ours = body.starts_with(&network.guest.octets());
                        request.claims_other |= kind == option::ADDRESS && !is_ours;
                    }
                }
                _ => {}
            }
        }
        Some(request)
    }
}

/// Options one after the other; `None` once for what is cut off.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let Some(([k0, k1, l0, l1], rest)) = bytes.split_first_chunk() else { return Some(None) };
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let Some((body, rest)) = rest.split_at_checked(len) else { return Some(None) };
        self.0 = rest;
        Some(Some((u16::from_be_bytes([*k0, *k1]), body)))
    }
}

/// The server's name: by its Ethernet address (§11.4).
fn server(link: &Link) -> [u8; 10] {
    let mut name = [0; 10];
    name[..4].copy_from_slice(&[0, 3, 0, 1]);
    name[4..].copy_from_slice(&link.gateway);
    name
}

fn association_body(identifier: [u8; 4], network: Network6) -> Vec<u8> {
    let mut body = identifier.to_vec();
    // When to renew what never ends: never (§14.2).
    body.extend([0xff; 8]);
    let mut address = network.guest.octets().to_vec();
    address.extend(INFINITE.to_be_bytes());
    address.extend(INFINITE.to_be_bytes());
    put(&mut body, option::ADDRESS, &address);
    body
}

fn status(message: &mut Vec<u8>, status: u16) {
    put(message, option::STATUS, &status.to_be_bytes());
}

fn put(message: &mut Vec<u8>, kind: u16, body: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
}

fn frame(link: &Link, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let [from, to] = [(link_local(link.gateway), PORT), (to, CLIENT_PORT)].map(SocketAddr::from);
    let payload_at = udp_payload_at(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let mut buf = vec![0; payload_at + message.len()];
    buf[payload_at..].copy_from_slice(message);
    link.udp(&mut buf, from, to, message.len(), false);
    buf
}
