//! ICMP: the gateway answers echo requests itself, and tells the guest what cannot be reached.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Repr};

use crate::frame::{IP_PAYLOAD_AT, Link, Packet};

/// How much of a packet an error about it quotes: its header and eight bytes (RFC 792).
const QUOTED: usize = 20 + 8;

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) data: &'a [u8],
}

/// The echo request in a packet.
pub(crate) fn request<'a>(packet: &Packet<'a>) -> Option<Echo<'a>> {
    let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
    match Icmpv4Repr::parse(&message, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoRequest { ident, seq_no, data } => {
            Some(Echo { ident, sequence: seq_no, data })
        }
        _ => None,
    }
}

/// A request as the host's socket takes it.
pub(crate) fn request_bytes(echo: &Echo<'_>) -> Vec<u8> {
    let Echo { ident, sequence: seq_no, data } = *echo;
    message(&Icmpv4Repr::EchoRequest { ident, seq_no, data })
}

/// The reply that the host's socket received: its sequence number and data.
pub(crate) fn reply(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let message = Icmpv4Packet::new_checked(bytes).ok()?;
    match Icmpv4Repr::parse(&message, &ChecksumCapabilities::ignored()).ok()? {
        Icmpv4Repr::EchoReply { seq_no, data, .. } => Some((seq_no, data)),
        _ => None,
    }
}

/// The frame of an echo reply to the guest.
pub(crate) fn reply_frame(link: &Link, ends: (Ipv4Addr, Ipv4Addr), echo: &Echo<'_>) -> Vec<u8> {
    let Echo { ident, sequence: seq_no, data } = *echo;
    frame(link, ends, &Icmpv4Repr::EchoReply { ident, seq_no, data })
}

/// The frame that tells the guest that a packet of its came nowhere, from the gateway.
pub(crate) fn unreachable(
    link: &Link,
    gateway: Ipv4Addr,
    packet: &Packet<'_>,
    reason: Icmpv4DstUnreachable,
) -> Vec<u8> {
    let header_len = packet.bytes.len() - packet.payload.len();
    let header = Ipv4Repr {
        src_addr: packet.from,
        dst_addr: packet.to,
        next_header: packet.protocol,
        payload_len: packet.payload.len(),
        hop_limit: 64,
    };
    let end = packet.bytes.len().min(QUOTED + header_len - 20);
    let data = &packet.bytes[header_len..end];
    frame(link, (gateway, packet.from), &Icmpv4Repr::DstUnreachable { reason, header, data })
}

fn frame(link: &Link, ends: (Ipv4Addr, Ipv4Addr), repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let mut buf = vec![0; IP_PAYLOAD_AT + repr.buffer_len()];
    link.ip(&mut buf, ends, IpProtocol::Icmp, repr.buffer_len());
    buf[IP_PAYLOAD_AT..].copy_from_slice(&message(repr));
    buf
}

fn message(repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
    bytes
}
