//! Numbers at offsets of structures that may be cut short.

use crate::{Error, ErrorKind};

pub(super) fn bytes<const N: usize>(from: &[u8], at: usize) -> Result<[u8; N], Error> {
    from.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| cut_short(at))
}

/// `len` bytes at `at`.
pub(super) fn slice(from: &[u8], at: usize, len: usize) -> Result<&[u8], Error> {
    let end = at.checked_add(len);
    end.and_then(|end| from.get(at..end)).ok_or_else(|| cut_short(at))
}

fn cut_short(at: usize) -> Error {
    damaged(format!("a structure ends before its byte {at}"))
}

/// A structure that contradicts itself.
pub(super) fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Read, format!("the file system is damaged: {what}"))
}

/// A structure of a kind that the reader does not know.
pub(super) fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Read, format!("{what} is not supported"))
}

pub(super) fn be16(from: &[u8], at: usize) -> Result<u16, Error> {
    bytes(from, at).map(u16::from_be_bytes)
}

pub(super) fn be32(from: &[u8], at: usize) -> Result<u32, Error> {
    bytes(from, at).map(u32::from_be_bytes)
}

pub(super) fn be64(from: &[u8], at: usize) -> Result<u64, Error> {
    bytes(from, at).map(u64::from_be_bytes)
}

pub(super) fn le16(from: &[u8], at: usize) -> Result<u16, Error> {
    bytes(from, at).map(u16::from_le_bytes)
}

pub(super) fn le32(from: &[u8], at: usize) -> Result<u32, Error> {
    bytes(from, at).map(u32::from_le_bytes)
}

pub(super) fn le64(from: &[u8], at: usize) -> Result<u64, Error> {
    bytes(from, at).map(u64::from_le_bytes)
}

/// 16 bytes as tools print a UUID.
pub(super) fn uuid(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
    parts.join("-")
}

/// Text up to the first zero byte.
pub(super) fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
