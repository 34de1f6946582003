//! The header of a packet (§5.10.6), and what the numbers in it mean.

/// The host's context identifier (§5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// Packets of stream sockets, the only ones here (§5.10.6.2).
pub(super) const TYPE_STREAM: u16 = 1;

/// What a packet is for (§5.10.6).
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: who sends it receives, or sends, no more (§5.10.6.5).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Bytes of the header.
pub(super) const HEADER: usize = 44;

/// A packet's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes behind the header.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let long = |at: usize| {
            let bytes = bytes[at..].first_chunk().copied();
            u64::from_le_bytes(bytes.expect("within the header"))
        };
        let word = |at: usize| {
            let bytes = bytes[at..].first_chunk().copied();
            u32::from_le_bytes(bytes.expect("within the header"))
        };
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(0, &self.src_cid.to_le_bytes());
        set(8, &self.dst_cid.to_le_bytes());
        set(16, &self.src_port.to_le_bytes());
        set(20, &self.dst_port.to_le_bytes());
        set(24, &self.len.to_le_bytes());
        set(28, &self.kind.to_le_bytes());
        set(30, &self.op.to_le_bytes());
        set(32, &self.flags.to_le_bytes());
        set(36, &self.buf_alloc.to_le_bytes());
        set(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The refusal that goes back to where this came from.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}
