//! TCP segments as bytes.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, IpProtocol, TCP_HEADER_LEN, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::{Connection, WINDOW_SHIFT};
use crate::frame::{Frame, Link, Packet, PartialChecksum, Segments, ip_payload_at, pseudo};

/// Where a TCP header has its checksum (RFC 9293 §3.1).
const CHECKSUM_AT: u16 = 16;

/// Most bytes of one segment with its headers: an IP packet tells its length in 16 bits.
const PACKET_MAX: usize = u16::MAX as usize;

/// A segment of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) mss: Option<u16>,
    pub(crate) window_shift: Option<u8>,
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a segment. Checksums are not looked at: between the guest and here is nothing but memory.
    pub(crate) fn parse(packet: &Packet<'a>) -> Option<Self> {
        let tcp = TcpPacket::new_checked(packet.payload).ok()?;
        let ends = (packet.from.into(), packet.to.into());
        let ignored = ChecksumCapabilities::ignored();
        let repr = TcpRepr::parse(&tcp, &ends.0, &ends.1, &ignored).ok()?;
        Some(Self {
            source: repr.src_port,
            destination: repr.dst_port,
            sequence: repr.seq_number.0 as u32,
            ack: repr.ack_number.map(|number| number.0 as u32),
            window: repr.window_len,
            syn: repr.control == TcpControl::Syn,
            fin: repr.control == TcpControl::Fin,
            rst: repr.control == TcpControl::Rst,
            mss: repr.max_seg_size,
            window_shift: repr.window_scale,
            payload: repr.payload,
        })
    }

    /// How many sequence numbers it takes.
    const fn len(&self) -> u32 {
        self.payload.len() as u32 + self.syn as u32 + self.fin as u32
    }
}

/// What a segment of ours says besides its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flags {
    Ack,
    Push,
    Fin,
    Syn,
    SynAck,
    Reset,
}

impl Flags {
    /// Whether it takes a sequence number.
    pub(super) const fn occupies(self) -> bool {
        matches!(self, Self::Fin | Self::Syn | Self::SynAck)
    }
}

/// A segment of ours.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) flags: Flags,
    pub(super) sequence: u32,
    /// Its bytes are so many behind the first that are not acknowledged, and so many.
    pub(super) sent: usize,
    pub(super) len: usize,
}

/// How segments become frames of a guest.
#[derive(Debug)]
pub(crate) struct Emitter<'a> {
    pub(crate) link: &'a Link,
    pub(crate) mtu: u16,
    pub(crate) partial_checksums: bool,
    pub(crate) large_segments: bool,
    pub(crate) large_segments6: bool,
}

impl Emitter<'_> {
    /// The largest payload of a segment to `guest`.
    const fn mss(&self, guest: IpAddr) -> u16 {
        self.mtu - (ip_payload_at(guest) - ETHERNET_HEADER_LEN + TCP_HEADER_LEN) as u16
    }

    /// The most bytes that a frame of `buf_len` takes for a guest with this address and segment size.
    pub(super) fn payload_max(&self, guest: IpAddr, mss: u16, buf_len: usize) -> usize {
        let headers = ip_payload_at(guest) + TCP_HEADER_LEN;
        let is_large = match guest {
            IpAddr::V4(_) => self.large_segments,
            IpAddr::V6(_) => self.large_segments6,
        };
        let most = match is_large {
            true => PACKET_MAX + ETHERNET_HEADER_LEN - headers,
            false => usize::from(mss.min(self.mss(guest))),
        };
        buf_len.saturating_sub(headers).min(most)
    }

    pub(super) fn write(
        &self,
        buf: &mut [u8],
        connection: &Connection,
        outgoing: &Outgoing,
    ) -> Frame {
        let is_syn = matches!(outgoing.flags, Flags::Syn | Flags::SynAck);
        let control = match outgoing.flags {
            Flags::Ack => TcpControl::None,
            Flags::Push => TcpControl::Psh,
            Flags::Fin => TcpControl::Fin,
            Flags::Syn | Flags::SynAck => TcpControl::Syn,
            Flags::Reset => TcpControl::Rst,
        };
        // A guest that did not offer the shift is not offered it either (RFC 7323 §2.2).
        let shifts = outgoing.flags == Flags::Syn || connection.shift.is_some();
        let repr = TcpRepr {
            control,
            seq_number: TcpSeqNumber(outgoing.sequence as i32),
            ack_number: (outgoing.flags != Flags::Syn)
                .then_some(TcpSeqNumber(connection.next as i32)),
            window_len: connection.advertised(is_syn),
            window_scale: (is_syn && shifts).then_some(WINDOW_SHIFT),
            max_seg_size: is_syn.then(|| self.mss(connection.guest.ip())),
            ..header(connection.remote, connection.guest)
        };
        let guest = connection.guest.ip();
        let at = ip_payload_at(guest) + repr.header_len();
        connection.unacknowledged.copy(outgoing.sent, &mut buf[at..at + outgoing.len]);
        let mut frame = self.finish(buf, connection.remote, connection.guest, &repr, outgoing.len);
        let size = connection.mss.min(self.mss(guest));
        if outgoing.len > usize::from(size) {
            frame.segments =
                Some(Segments { size, headers_len: at as u16, is_v6: guest.is_ipv6() });
        }
        frame
    }

    /// Writes the headers of a segment whose `len` bytes stand behind them already.
    fn finish(
        &self,
        buf: &mut [u8],
        from: SocketAddr,
        to: SocketAddr,
        repr: &TcpRepr<'_>,
        len: usize,
    ) -> Frame {
        let ends = (from.ip(), to.ip());
        let payload_at = ip_payload_at(to.ip());
        let tcp_len = repr.header_len() + len;
        let whole = self.link.ip(buf, ends, IpProtocol::Tcp, tcp_len);
        let Some(tcp) = buf.get_mut(payload_at..whole) else { return Frame::whole(0) };
        let mut head = TcpPacket::new_unchecked(&mut tcp[..repr.header_len()]);
        repr.emit(&mut head, &ends.0.into(), &ends.1.into(), &ChecksumCapabilities::ignored());
        let mut packet = TcpPacket::new_unchecked(tcp);
        let checksum = match self.partial_checksums {
            true => {
                packet.set_checksum(pseudo(ends, IpProtocol::Tcp, tcp_len));
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

const fn header(from: SocketAddr, to: SocketAddr) -> TcpRepr<'static> {
    TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control: TcpControl::None,
        seq_number: TcpSeqNumber(0),
        ack_number: None,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

/// The frame that refuses a segment of no connection (RFC 9293 §3.10.7.1). None for what refuses
/// something itself.
pub(crate) fn refusal(link: &Link, packet: &Packet<'_>, segment: &Segment<'_>) -> Option<Vec<u8>> {
    if segment.rst {
        return None;
    }
    let [remote, guest] =
        [(packet.to, segment.destination), (packet.from, segment.source)].map(SocketAddr::from);
    let known = segment.sequence.wrapping_add(segment.len());
    let repr = TcpRepr {
        control: TcpControl::Rst,
        seq_number: TcpSeqNumber(segment.ack.unwrap_or(0) as i32),
        ack_number: segment.ack.is_none().then_some(TcpSeqNumber(known as i32)),
        ..header(remote, guest)
    };
    let mut buf = vec![0; ip_payload_at(packet.from) + TCP_HEADER_LEN];
    let emitter = Emitter {
        link,
        mtu: u16::MAX,
        partial_checksums: false,
        large_segments: false,
        large_segments6: false,
    };
    emitter.finish(&mut buf, remote, guest, &repr, 0);
    Some(buf)
}
