//! What stands round the compressed bytes of an .xz file (The .xz File Format 1.2.1): pure functions
//! of a few bytes each.
//!
//! Nothing here decompresses or checks data: liblzma is given each block with its header and does.

use flate2::Crc;
use sha2::{Digest as _, Sha256};

use super::NAME;
use crate::stream::unpack::codec::{damaged, trailing};
use crate::{Error, ErrorKind};

/// A stream's first bytes (§2.1.1.1), and its last ones (§2.1.2.4).
pub(super) const MAGIC: &[u8] = b"\xfd7zXZ\0";
const FOOTER_MAGIC: &[u8] = b"YZ";
/// How long the headers of a stream (§2.1.1) and its footer (§2.1.2) are.
pub(super) const STREAM_LEN: usize = 12;
/// "Stream Padding" (§2.2) comes in so many zeros.
pub(super) const PADDING: [u8; 4] = [0; 4];
/// How long a header of an LZMA2 chunk may be, its control byte included.
pub(super) const CHUNK_HEADER_MAX: usize = 6;
/// How long an encoded number may be (§1.2).
pub(super) const NUMBER_MAX: usize = 9;
/// The filter with which every chain ends (§5.3.1).
const LZMA2: u64 = 0x21;

/// The flags of a stream, in its header and in its footer (§2.1.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags([u8; 2]);

impl Flags {
    /// Reads the header of a stream.
    pub(super) fn parse(header: &[u8; STREAM_LEN]) -> Result<Self, Error> {
        if !header.starts_with(MAGIC) {
            return Err(trailing(NAME));
        }
        let flags = Self([header[6], header[7]]);
        flags.check()?;
        if header[8..] != crc32(&flags.0) || flags.0[0] != 0 {
            return Err(damaged(NAME, "its header is invalid"));
        }
        Ok(flags)
    }

    /// Refuses a kind of check that does not exist.
    fn check(self) -> Result<(), Error> {
        match self {
            Self([0, kind]) if check_len(kind).is_none() => {
                let what = format!("the xz stream has a check of an unknown kind, {kind}");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
            _ => Ok(()),
        }
    }

    /// The header that they come from.
    pub(super) fn header(self) -> [u8; STREAM_LEN] {
        let mut header = [0; STREAM_LEN];
        header[..6].copy_from_slice(MAGIC);
        header[6..8].copy_from_slice(&self.0);
        header[8..].copy_from_slice(&crc32(&self.0));
        header
    }

    /// How long the check of each block is.
    pub(super) fn check_len(self) -> u64 {
        check_len(self.0[1]).unwrap_or_default()
    }

    /// Compares with the footer of the stream, whose index is `index` bytes long (§2.1.2).
    pub(super) fn check_footer(self, footer: &[u8; STREAM_LEN], index: u64) -> Result<(), Error> {
        let backward = u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]]);
        let good = footer[..4] == crc32(&footer[4..10])
            && (u64::from(backward) + 1) * 4 == index
            && footer[8..10] == self.0
            && footer.ends_with(FOOTER_MAGIC);
        if good { Ok(()) } else { Err(damaged(NAME, "its footer does not match")) }
    }
}

/// How long a check is, of the kinds that exist (§2.1.1.2): none, CRC32, CRC64, SHA-256.
const fn check_len(kind: u8) -> Option<u64> {
    match kind {
        0 => Some(0),
        1 => Some(4),
        4 => Some(8),
        10 => Some(32),
        _ => None,
    }
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// The length of a block's header (§3.1.1) by its first byte. `None` for the index.
pub(super) fn header_len(first: u8) -> Option<usize> {
    (first != 0).then(|| (usize::from(first) + 1) * 4)
}

/// What the header of a block tells of the memory that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The size of the dictionary, in bytes.
    pub(super) dictionary: u64,
    /// How long the block is when decompressed, if it says.
    pub(super) plain: Option<u64>,
}

impl Header {
    /// Reads the header of a block (§3.1).
    pub(super) fn parse(header: &[u8]) -> Result<Self, Error> {
        let bad = || damaged(NAME, "the header of a block is invalid");
        let (fields, crc) = header.split_last_chunk::<4>().ok_or_else(bad)?;
        if *crc != crc32(fields) {
            return Err(bad());
        }
        let [_, flags, rest @ ..] = fields else { return Err(bad()) };
        let mut rest = rest;
        let mut number = || {
            let (number, len) = parse_number(rest)?;
            rest = &rest[len..];
            Some(number)
        };
        if flags & 0x40 != 0 {
            number().ok_or_else(bad)?;
        }
        let plain = if flags & 0x80 != 0 { Some(number().ok_or_else(bad)?) } else { None };
        let mut last = None;
        for _ in 0..=flags & 3 {
            let (filter, len) = parse_number(rest).ok_or_else(bad)?;
            rest = &rest[len..];
            let (size, len) = parse_number(rest).ok_or_else(bad)?;
            let size = usize::try_from(size).map_err(|_| bad())?;
            let properties = rest[len..].get(..size).ok_or_else(bad)?;
            rest = &rest[len + size..];
            last = Some((filter, properties));
        }
        match last {
            Some((LZMA2, &[bits @ 0..=40])) => {
                let bits = u32::from(bits);
                Ok(Self { dictionary: u64::from(2 | bits & 1) << (bits / 2 + 11), plain })
            }
            _ => Err(super::refusal(NAME, &liblzma::stream::Error::Options)),
        }
    }
}

/// A number of up to 63 bits (§1.2), and how many bytes it takes. `None` if it is cut off or not in
/// its shortest form.
pub(super) fn parse_number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(NUMBER_MAX).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let shortest = *byte != 0 || index == 0;
            return shortest.then_some((number, index + 1));
        }
    }
    None
}

/// The header of an LZMA2 chunk (§5.3.1): where it ends can be told without decompressing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// So many bytes make the chunk, its header included, and so many come out of it.
    Of { packed: u64, plain: u64 },
    /// No more follow. This is one byte.
    End,
}

impl Chunk {
    /// How long the header is that begins with `control`. `None` if there is no such chunk.
    pub(super) const fn header_len(control: u8) -> Option<usize> {
        match control {
            0 => Some(1),
            1 | 2 => Some(3),
            0x80..0xc0 => Some(5),
            0xc0.. => Some(6),
            _ => None,
        }
    }

    /// Reads a header that has its length.
    pub(super) fn parse(header: &[u8]) -> Self {
        let field = |at: usize| match header.get(at..at + 2) {
            Some(&[high, low]) => u64::from(u16::from_be_bytes([high, low])) + 1,
            _ => 0,
        };
        let len = header.len() as u64;
        match header {
            [1 | 2, ..] => Self::Of { packed: len + field(1), plain: field(1) },
            [control, ..] if *control >= 0x80 => {
                let high = u64::from(control & 0x1f) << 16;
                Self::Of { packed: len + field(3), plain: high + field(1) }
            }
            _ => Self::End,
        }
    }
}

/// The blocks that a stream has, or that its index lists (§4.3), in memory that does not grow.
#[derive(Debug, Default)]
pub(super) struct Records {
    count: u64,
    digest: Sha256,
}

impl Records {
    /// A block of `unpadded` bytes with its header and its check, and of `plain` decompressed.
    pub(super) fn add(&mut self, unpadded: u64, plain: u64) {
        self.count += 1;
        self.digest.update(unpadded.to_le_bytes());
        self.digest.update(plain.to_le_bytes());
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// True if both list the same.
    pub(super) fn agree(self, other: Self) -> bool {
        self.count == other.count && self.digest.finalize() == other.digest.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for (bytes, expected) in [
            (&[0][..], Some((0, 1))),
            (&[0x7f, 9], Some((0x7f, 1))),
            (&[0x80, 1], Some((0x80, 2))),
            (&[0x80, 0], None),
            (&[0x80], None),
            (&[], None),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], Some((u64::MAX >> 1, 9))),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], None),
        ] {
            assert_eq!(parse_number(bytes), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn chunks_tell_where_they_end() {
        for (header, expected) in [
            (&[0][..], Chunk::End),
            (&[1, 0xff, 0xff], Chunk::Of { packed: 3 + 65_536, plain: 65_536 }),
            (&[2, 0, 0], Chunk::Of { packed: 4, plain: 1 }),
            (&[0x80, 0, 9, 0, 4], Chunk::Of { packed: 10, plain: 10 }),
            (&[0xff, 0xff, 0xff, 1, 0, 0x5d], Chunk::Of { packed: 6 + 257, plain: 2 << 20 }),
        ] {
            assert_eq!(Chunk::header_len(header[0]), Some(header.len()));
            assert_eq!(Chunk::parse(header), expected, "{header:x?}");
        }
        assert_eq!((Chunk::header_len(3), Chunk::header_len(0x7f)), (None, None));
    }
}
