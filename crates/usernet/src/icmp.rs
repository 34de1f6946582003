//! ICMP of both families: the gateway answers echo requests itself, and tells the guest what cannot be
//! reached.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Message,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Repr, Ipv6Repr,
};

use crate::frame::{Addresses, Link, Packet, ip_payload_at};

/// How much of a packet's payload an error about it quotes (RFC 792).
const QUOTED: usize = 8;

/// An echo request or reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) data: &'a [u8],
}

/// Why nothing came of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Host,
    Port,
}

/// The echo request in a packet.
pub(crate) fn request<'a>(packet: &Packet<'a>) -> Option<Echo<'a>> {
    match packet.to {
        IpAddr::V4(_) => {
            let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
            match Icmpv4Repr::parse(&message, &ChecksumCapabilities::default()).ok()? {
                Icmpv4Repr::EchoRequest { ident, seq_no: sequence, data } => {
                    Some(Echo { ident, sequence, data })
                }
                _ => None,
            }
        }
        IpAddr::V6(_) => echo_v6(Icmpv6Message::EchoRequest, packet.payload),
    }
}

fn echo_v6(kind: Icmpv6Message, bytes: &[u8]) -> Option<Echo<'_>> {
    let message = Icmpv6Packet::new_checked(bytes).ok()?;
    if message.msg_type() != kind {
        return None;
    }
    let (ident, sequence) = (message.echo_ident(), message.echo_seq_no());
    Some(Echo { ident, sequence, data: message.payload() })
}

/// A request as the host's socket takes it, which sees to the identifier and the checksum of IPv6.
pub(crate) fn request_bytes(to: IpAddr, echo: &Echo<'_>) -> Vec<u8> {
    let Echo { ident, sequence: seq_no, data } = *echo;
    match to {
        IpAddr::V4(_) => bytes_v4(&Icmpv4Repr::EchoRequest { ident, seq_no, data }),
        IpAddr::V6(_) => {
            let repr = Icmpv6Repr::EchoRequest { ident, seq_no, data };
            bytes_v6((to, to), &repr)
        }
    }
}

/// The reply that the host's socket received for a guest with this address: its sequence number and data.
pub(crate) fn reply(guest: IpAddr, bytes: &[u8]) -> Option<(u16, &[u8])> {
    match guest {
        IpAddr::V4(_) => {
            let message = Icmpv4Packet::new_checked(bytes).ok()?;
            match Icmpv4Repr::parse(&message, &ChecksumCapabilities::ignored()).ok()? {
                Icmpv4Repr::EchoReply { seq_no, data, .. } => Some((seq_no, data)),
                _ => None,
            }
        }
        IpAddr::V6(_) => {
            echo_v6(Icmpv6Message::EchoReply, bytes).map(|echo| (echo.sequence, echo.data))
        }
    }
}

/// The frame of an echo reply to the guest.
pub(crate) fn reply_frame(link: &Link, ends: Addresses, echo: &Echo<'_>) -> Vec<u8> {
    let Echo { ident, sequence: seq_no, data } = *echo;
    match ends.1 {
        IpAddr::V4(_) => {
            let message = bytes_v4(&Icmpv4Repr::EchoReply { ident, seq_no, data });
            frame(link, ends, IpProtocol::Icmp, &message)
        }
        IpAddr::V6(_) => {
            let message = bytes_v6(ends, &Icmpv6Repr::EchoReply { ident, seq_no, data });
            frame(link, ends, IpProtocol::Icmpv6, &message)
        }
    }
}

/// The frame that tells the guest that a packet of its came nowhere, from the gateway.
pub(crate) fn unreachable(
    link: &Link,
    gateway: IpAddr,
    packet: &Packet<'_>,
    reason: Unreachable,
) -> Vec<u8> {
    let ends = (gateway, packet.from);
    let (next_header, payload_len) = (packet.protocol, packet.payload.len());
    let quoted = &packet.payload[..payload_len.min(QUOTED)];
    match (packet.from, packet.to) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let header = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: 64 };
            let reason = match reason {
                Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
            };
            let repr = Icmpv4Repr::DstUnreachable { reason, header, data: quoted };
            frame(link, ends, IpProtocol::Icmp, &bytes_v4(&repr))
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let header = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: 64 };
            let reason = match reason {
                Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
            };
            let repr = Icmpv6Repr::DstUnreachable { reason, header, data: quoted };
            frame(link, ends, IpProtocol::Icmpv6, &bytes_v6(ends, &repr))
        }
        // Addresses of one packet are of one family.
        _ => Vec::new(),
    }
}

fn frame(link: &Link, ends: Addresses, protocol: IpProtocol, message: &[u8]) -> Vec<u8> {
    let payload_at = ip_payload_at(ends.1);
    let mut buf = vec![0; payload_at + message.len()];
    link.ip(&mut buf, ends, protocol, message.len());
    buf[payload_at..].copy_from_slice(message);
    buf
}

fn bytes_v4(repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
    bytes
}

/// A message of ICMPv6, whose checksum is over the addresses too.
pub(crate) fn bytes_v6(ends: Addresses, repr: &Icmpv6Repr<'_>) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    let mut message = Icmpv6Packet::new_unchecked(&mut bytes[..]);
    if let (IpAddr::V6(from), IpAddr::V6(to)) = ends {
        repr.emit(&from, &to, &mut message, &ChecksumCapabilities::default());
    }
    bytes
}
