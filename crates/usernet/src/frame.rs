//! Ethernet frames with IP packets in them: what of a guest's frames is understood, and how ours are made.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    Ipv6Repr, UDP_HEADER_LEN, UdpPacket, checksum,
};

use crate::MacAddress;

/// The hop limit of what we send (RFC 1700), and that of neighbor discovery (RFC 4861 §4).
const HOP_LIMIT: u8 = 64;
pub(crate) const HOP_LIMIT_LINK: u8 = 255;

/// The addresses of a packet: from whom and to whom, both of one family.
pub(crate) type Addresses = (IpAddr, IpAddr);

/// Where the payload of a packet to `to` begins in a frame of ours.
pub(crate) const fn ip_payload_at(to: IpAddr) -> usize {
    ETHERNET_HEADER_LEN
        + match to {
            IpAddr::V4(_) => IPV4_HEADER_LEN,
            IpAddr::V6(_) => IPV6_HEADER_LEN,
        }
}

/// Where the payload of a UDP datagram to `to` begins in a frame of ours.
pub(crate) const fn udp_payload_at(to: IpAddr) -> usize {
    ip_payload_at(to) + UDP_HEADER_LEN
}

/// A frame for the guest, in the buffer that was given for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// How many bytes of the buffer it has.
    pub len: usize,
    /// What its device finishes, or tells the guest that nobody has to.
    pub checksum: Option<PartialChecksum>,
    /// How to cut it, where this frame is several TCP segments in one.
    pub segments: Option<Segments>,
}

/// How a frame is cut into TCP segments (virtio v1.2 §5.1.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// The payload of each but the last, in bytes.
    pub size: u16,
    /// Bytes of the headers before the payload.
    pub headers_len: u16,
    /// Over IPv6.
    pub is_v6: bool,
}

impl Frame {
    pub(crate) const fn whole(len: usize) -> Self {
        Self { len, checksum: None, segments: None }
    }
}

/// A checksum that holds the pseudo header's and nothing else (virtio v1.2 §5.1.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// From where on bytes are summed, counted from the frame's begin.
    pub start: u16,
    /// Where the sum is stored, counted from `start`.
    pub offset: u16,
}

/// What a guest's frame holds.
pub(crate) enum Incoming<'a> {
    Arp(ArpRepr),
    Ip(Packet<'a>),
}

/// An IP packet that is whole.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) payload: &'a [u8],
}

/// Reads a frame; tells its sender too. `None` for what is damaged, in parts, or of another protocol.
pub(crate) fn parse(frame: &[u8]) -> Option<(MacAddress, Incoming<'_>)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let from = frame.src_addr();
    if !from.is_unicast() {
        return None;
    }
    let incoming = match frame.ethertype() {
        EthernetProtocol::Arp => {
            let packet = ArpPacket::new_checked(frame.payload()).ok()?;
            Incoming::Arp(ArpRepr::parse(&packet).ok()?)
        }
        EthernetProtocol::Ipv4 => Incoming::Ip(parse_v4(frame.payload())?),
        EthernetProtocol::Ipv6 => Incoming::Ip(parse_v6(frame.payload())?),
        _ => return None,
    };
    Some((from.0, incoming))
}

fn parse_v4(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let is_part = packet.more_frags() || packet.frag_offset() != 0;
    if packet.version() != 4 || is_part || !packet.verify_checksum() {
        return None;
    }
    Some(Packet {
        from: packet.src_addr().into(),
        to: packet.dst_addr().into(),
        protocol: packet.next_header(),
        payload: packet.payload(),
    })
}

/// Extension headers are not understood: what Linux sends with one is for groups or in parts.
fn parse_v6(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    if packet.version() != 6 {
        return None;
    }
    Some(Packet {
        from: packet.src_addr().into(),
        to: packet.dst_addr().into(),
        protocol: packet.next_header(),
        payload: packet.payload(),
    })
}

/// The two ends of the guest's link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) gateway: MacAddress,
    pub(crate) guest: MacAddress,
}

impl Link {
    /// Writes the Ethernet header of a frame for the guest.
    pub(crate) fn ethernet(&self, buf: &mut [u8], ethertype: EthernetProtocol) {
        let repr = EthernetRepr {
            src_addr: EthernetAddress(self.gateway),
            dst_addr: EthernetAddress(self.guest),
            ethertype,
        };
        repr.emit(&mut EthernetFrame::new_unchecked(buf));
    }

    /// Writes the headers of a packet to the guest, whose payload of `len` bytes begins at
    /// [`ip_payload_at`]. Gives the frame's length.
    pub(crate) fn ip(
        &self,
        buf: &mut [u8],
        ends: Addresses,
        protocol: IpProtocol,
        len: usize,
    ) -> usize {
        self.ip_of(buf, ends, protocol, len, HOP_LIMIT)
    }

    pub(crate) fn ip_of(
        &self,
        buf: &mut [u8],
        ends: Addresses,
        protocol: IpProtocol,
        len: usize,
        hop_limit: u8,
    ) -> usize {
        match ends {
            (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
                self.ethernet(buf, EthernetProtocol::Ipv4);
                let (next_header, payload_len) = (protocol, len);
                let repr = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
                let mut packet = Ipv4Packet::new_unchecked(&mut buf[ETHERNET_HEADER_LEN..]);
                repr.emit(&mut packet, &ChecksumCapabilities::default());
            }
            (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
                self.ethernet(buf, EthernetProtocol::Ipv6);
                let (next_header, payload_len) = (protocol, len);
                let repr = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
                repr.emit(&mut Ipv6Packet::new_unchecked(&mut buf[ETHERNET_HEADER_LEN..]));
            }
            // No flow has ends of two families.
            _ => return 0,
        }
        ip_payload_at(ends.1) + len
    }

    /// Writes the headers of a datagram whose `len` bytes stand at [`udp_payload_at`] already.
    pub(crate) fn udp(
        &self,
        buf: &mut [u8],
        from: SocketAddr,
        to: SocketAddr,
        len: usize,
        partial: bool,
    ) -> Frame {
        /// Where a UDP header has its checksum (RFC 768).
        const CHECKSUM_AT: u16 = 6;
        let ends = (from.ip(), to.ip());
        let payload_at = ip_payload_at(to.ip());
        let whole = self.ip(buf, ends, IpProtocol::Udp, UDP_HEADER_LEN + len);
        let Some(udp) = buf.get_mut(payload_at..whole) else { return Frame::whole(0) };
        let mut packet = UdpPacket::new_unchecked(udp);
        packet.set_src_port(from.port());
        packet.set_dst_port(to.port());
        packet.set_len((UDP_HEADER_LEN + len) as u16);
        let checksum = match partial {
            true => {
                packet.set_checksum(pseudo(ends, IpProtocol::Udp, UDP_HEADER_LEN + len));
                Some(PartialChecksum { start: payload_at as u16, offset: CHECKSUM_AT })
            }
            false => {
                packet.fill_checksum(&ends.0.into(), &ends.1.into());
                None
            }
        };
        Frame { len: whole, checksum, segments: None }
    }
}

/// The sum of the pseudo header, which a checksum that others finish begins with.
pub(crate) fn pseudo(ends: Addresses, protocol: IpProtocol, len: usize) -> u16 {
    checksum::pseudo_header(&ends.0.into(), &ends.1.into(), protocol, len as u32)
}
