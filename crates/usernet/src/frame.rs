//! Ethernet frames with IPv4 in them: what of a guest's frames is understood, and how ours are made.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IPV4_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket,
    checksum,
};

use crate::MacAddress;

/// The hop limit of what we send (RFC 1700).
const HOP_LIMIT: u8 = 64;

/// Where the payload of an IPv4 packet begins in a frame of ours.
pub(crate) const IP_PAYLOAD_AT: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN;

/// Where the payload of a UDP datagram begins in a frame of ours.
pub(crate) const UDP_PAYLOAD_AT: usize = IP_PAYLOAD_AT + UDP_HEADER_LEN;

/// A frame for the guest, in the buffer that was given for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// How many bytes of the buffer it has.
    pub len: usize,
    /// What its device finishes, or tells the guest that nobody has to.
    pub checksum: Option<PartialChecksum>,
    /// The payload of each TCP segment, where this frame is several in one.
    pub segment_size: Option<u16>,
}

impl Frame {
    pub(crate) const fn whole(len: usize) -> Self {
        Self { len, checksum: None, segment_size: None }
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

/// An IPv4 packet that is whole.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: IpProtocol,
    pub(crate) payload: &'a [u8],
    /// The packet from its header on.
    pub(crate) bytes: &'a [u8],
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
        EthernetProtocol::Ipv4 => Incoming::Ip(parse_ip(frame.payload())?),
        _ => return None,
    };
    Some((from.0, incoming))
}

fn parse_ip(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let is_part = packet.more_frags() || packet.frag_offset() != 0;
    if packet.version() != 4 || is_part || !packet.verify_checksum() {
        return None;
    }
    Some(Packet {
        from: packet.src_addr(),
        to: packet.dst_addr(),
        protocol: packet.next_header(),
        payload: packet.payload(),
        bytes: &bytes[..usize::from(packet.total_len())],
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
    /// [`IP_PAYLOAD_AT`]. Gives the frame's length.
    pub(crate) fn ip(
        &self,
        buf: &mut [u8],
        ends: (Ipv4Addr, Ipv4Addr),
        protocol: IpProtocol,
        len: usize,
    ) -> usize {
        self.ethernet(buf, EthernetProtocol::Ipv4);
        let repr = Ipv4Repr {
            src_addr: ends.0,
            dst_addr: ends.1,
            next_header: protocol,
            payload_len: len,
            hop_limit: HOP_LIMIT,
        };
        let mut packet = Ipv4Packet::new_unchecked(&mut buf[ETHERNET_HEADER_LEN..]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        IP_PAYLOAD_AT + len
    }

    /// Writes the headers of a datagram whose `len` bytes stand at [`UDP_PAYLOAD_AT`] already.
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
        let ends = v4(from.ip(), to.ip());
        let whole = self.ip(buf, ends, IpProtocol::Udp, UDP_HEADER_LEN + len);
        let mut packet = UdpPacket::new_unchecked(&mut buf[IP_PAYLOAD_AT..whole]);
        packet.set_src_port(from.port());
        packet.set_dst_port(to.port());
        packet.set_len((UDP_HEADER_LEN + len) as u16);
        let checksum = match partial {
            true => {
                packet.set_checksum(pseudo(ends, IpProtocol::Udp, UDP_HEADER_LEN + len));
                Some(PartialChecksum { start: IP_PAYLOAD_AT as u16, offset: CHECKSUM_AT })
            }
            false => {
                packet.fill_checksum(&ends.0.into(), &ends.1.into());
                None
            }
        };
        Frame { len: whole, checksum, segment_size: None }
    }
}

/// The sum of the pseudo header, which a checksum that others finish begins with.
pub(crate) fn pseudo(ends: (Ipv4Addr, Ipv4Addr), protocol: IpProtocol, len: usize) -> u16 {
    checksum::pseudo_header_v4(&ends.0, &ends.1, protocol, len as u32)
}

/// Both addresses as IPv4's. Flows of other addresses are not begun.
pub(crate) fn v4(from: IpAddr, to: IpAddr) -> (Ipv4Addr, Ipv4Addr) {
    let v4 = |address| match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    (v4(from), v4(to))
}
