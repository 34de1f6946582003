//! The header before each frame (§5.1.6), as virtio 1 has it and Linux' tap devices with it.

use bootyard_usernet::{Frame, PartialChecksum, Segments};
use virtio_bindings::virtio_net as net;

/// Bytes of the header.
pub const HEADER_LEN: usize = 12;

/// The header before a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Bits of VIRTIO_NET_HDR_F.
    pub flags: u8,
    /// One of VIRTIO_NET_HDR_GSO.
    pub segmentation: u8,
    /// How long the headers are of a packet that is to be cut into segments.
    pub headers_len: u16,
    /// How much payload each segment has then.
    pub segment_size: u16,
    /// From where on the checksum is taken, and where it goes to from there.
    pub checksum: (u16, u16),
}

impl Header {
    /// The header of a frame of the user network.
    pub(super) fn of(frame: &Frame) -> Self {
        let checksum = frame.checksum.map(|PartialChecksum { start, offset }| (start, offset));
        let mut header = Self {
            flags: checksum.map_or(0, |_| net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8),
            checksum: checksum.unwrap_or_default(),
            ..Self::default()
        };
        if let Some(Segments { size, headers_len, is_v6 }) = frame.segments {
            let kind = match is_v6 {
                true => net::VIRTIO_NET_HDR_GSO_TCPV6,
                false => net::VIRTIO_NET_HDR_GSO_TCPV4,
            };
            (header.segmentation, header.headers_len) = (kind as u8, headers_len);
            header.segment_size = size;
        }
        header
    }

    /// The header's bytes, for one buffer.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.segmentation);
        let words =
            [self.headers_len, self.segment_size, self.checksum.0, self.checksum.1, BUFFERS];
        for (slot, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// One buffer, which is what a packet takes unless they are merged.
const BUFFERS: u16 = 1;

/// Says in the header of `packet` over how many buffers it is spread.
pub(crate) fn set_buffers(packet: &mut [u8], count: u16) {
    packet[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&count.to_le_bytes());
}
