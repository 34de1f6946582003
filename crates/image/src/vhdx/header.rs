//! The two headers (§2.2.2): the valid one with the higher sequence number is the current one.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::MIB;
use crate::error::corrupt;
use crate::{Error, ErrorKind, ReadAt};

/// Where the headers are, and how many bytes each has.
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_LEN: usize = 4096;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    signature: [u8; 4],
    checksum: U32,
    sequence: U64,
    file_write_guid: [u8; 16],
    data_write_guid: [u8; 16],
    log_guid: [u8; 16],
    log_version: U16,
    version: U16,
    log_length: U32,
    log_offset: U64,
}

/// Offsets of header fields that errors point at.
mod at {
    pub(super) const LOG_VERSION: u64 = 64;
    pub(super) const VERSION: u64 = 66;
    pub(super) const LOG_LENGTH: u64 = 68;
}

/// What the current header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    sequence: u64,
    pub(super) log_guid: [u8; 16],
    /// From where to where the log is.
    pub(super) log: (u64, u64),
}

impl Header {
    /// Reads both headers and takes the current one.
    pub(super) fn read(source: &(impl ReadAt + ?Sized)) -> Result<Self, Error> {
        let mut current: Option<Self> = None;
        let mut fault = corrupt("neither header has its signature and checksum", HEADERS_AT[0]);
        for at in HEADERS_AT {
            let mut bytes = [0; HEADER_LEN];
            source.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
            if !is_valid(&mut bytes, b"head") {
                continue;
            }
            match Self::parse(&bytes, at) {
                Ok(header) if current.as_ref().is_none_or(|c| c.sequence < header.sequence) => {
                    current = Some(header);
                }
                Ok(_) => {}
                Err(error) => fault = error,
            }
        }
        current.ok_or(fault)
    }

    fn parse(bytes: &[u8], at: u64) -> Result<Self, Error> {
        let (fixed, _) = Fixed::ref_from_prefix(bytes).expect("a header is longer than its fields");
        let unsupported =
            |what: String, field| Err(Error::new(ErrorKind::Unsupported, what).at(at + field));
        let version = fixed.version.get();
        if version != 1 {
            return unsupported(format!("expected VHDX version 1, got {version}"), at::VERSION);
        }
        let log_version = fixed.log_version.get();
        if log_version != 0 {
            return unsupported(
                format!("expected log version 0, got {log_version}"),
                at::LOG_VERSION,
            );
        }
        let (offset, len) = (fixed.log_offset.get(), u64::from(fixed.log_length.get()));
        let whole = offset.is_multiple_of(MIB) && len.is_multiple_of(MIB);
        if !whole || offset > i64::MAX as u64 || (offset < MIB && len > 0) {
            let what =
                format!("expected a log behind the headers, in MiB, got {len} at {offset:#x}");
            return Err(corrupt(what, at + at::LOG_LENGTH));
        }
        Ok(Self {
            sequence: fixed.sequence.get(),
            log_guid: fixed.log_guid,
            log: (offset, offset + len),
        })
    }

    /// True if there is a log to replay.
    pub(super) fn has_log(&self) -> bool {
        self.log_guid != [0; 16]
    }
}

/// True if `bytes` begin with `signature`, followed by the CRC-32C of all of them, computed with
/// zeros in its own place.
pub(super) fn is_valid(bytes: &mut [u8], signature: &[u8; 4]) -> bool {
    let stored = U32::read_from_bytes(&bytes[4..8]).map_or(0, U32::get);
    bytes[4..8].fill(0);
    bytes.starts_with(signature) && crc32c::crc32c(bytes) == stored
}
