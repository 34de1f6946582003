//! Snappy's framing format (google/snappy, `framing_format.txt` and `format_description.txt`): what CDI's
//! cloner sends.

use std::fmt;
use std::io::{self, Read};

use super::codec::damaged;
use super::peek::Peek;
use super::refuse;
use crate::ErrorKind;

const NAME: &str = "snappy";
/// The most bytes that a chunk holds (framing format §4.2),
const CHUNK_MAX: usize = 65_536;
/// and the most that it takes: its checksum, and what compression makes of bytes that it cannot
/// compress (`MaxCompressedLength`).
const PACKED_MAX: usize = 4 + 32 + CHUNK_MAX + CHUNK_MAX / 6;
/// The first chunk of a stream (§4.1), without type and length.
const IDENTIFIER: &[u8] = b"sNaPpY";

pub(super) struct Snappy {
    inner: Peek,
    /// What a chunk held, and how much of it has been given.
    chunk: Vec<u8>,
    given: usize,
}

impl Snappy {
    pub(super) const fn new(inner: Peek) -> Self {
        Self { inner, chunk: Vec::new(), given: 0 }
    }

    /// Reads the next chunk; `false` at the end.
    fn next(&mut self) -> io::Result<bool> {
        let mut head = [0; 4];
        if self.inner.head(1)?.is_empty() {
            return Ok(false);
        }
        self.fill(&mut head)?;
        let [kind, len @ ..] = head;
        let len = len.iter().rev().fold(0, |len, byte| len << 8 | usize::from(*byte));
        (self.given, self.chunk) = (0, Vec::new());
        match kind {
            0xff if len == IDENTIFIER.len() => {
                let mut identifier = [0; IDENTIFIER.len()];
                self.fill(&mut identifier)?;
                if identifier != IDENTIFIER {
                    return Err(bad("another format's stream begins"));
                }
            }
            0x00 | 0x01 if (4..=PACKED_MAX).contains(&len) => {
                let mut data = vec![0; len];
                self.fill(&mut data)?;
                let (sum, data) = data.split_at(4);
                self.chunk = if kind == 0 { unpack(data)? } else { data.to_vec() };
                // §3: the checksum is masked, since a CRC of what holds CRCs says little.
                let own = crc32c::crc32c(&self.chunk).rotate_right(15).wrapping_add(0xa282_ead8);
                if own.to_le_bytes() != *sum || self.chunk.len() > CHUNK_MAX {
                    return Err(bad("a chunk's checksum is wrong"));
                }
            }
            // §4.6: of no meaning to this version; padding among them.
            0x80..=0xfe => {
                let skipped = io::copy(&mut (&mut self.inner).take(len as u64), &mut io::sink())?;
                if skipped < len as u64 {
                    return Err(cut_off());
                }
            }
            _ => return Err(bad("a chunk is of an unknown kind or length")),
        }
        Ok(true)
    }

    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(buf).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(),
            _ => error,
        })
    }
}

impl Read for Snappy {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.given == self.chunk.len() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let len = buf.len().min(self.chunk.len() - self.given);
        buf[..len].copy_from_slice(&self.chunk[self.given..][..len]);
        self.given += len;
        Ok(len)
    }
}

/// Decompresses a block (format description): its length, then literals and copies.
fn unpack(block: &[u8]) -> io::Result<Vec<u8>> {
    let (len, mut rest) = varint(block).ok_or_else(|| bad("a block has no length"))?;
    let mut out = Vec::with_capacity(len);
    while let Some((tag, after)) = rest.split_first() {
        rest = after;
        let size = usize::from(tag >> 2);
        let (count, offset) = match tag & 3 {
            0 if size < 60 => (size + 1, 0),
            0 => (little(&mut rest, size - 59)?.saturating_add(1), 0),
            1 => ((size & 7) + 4, usize::from(tag >> 5) << 8 | little(&mut rest, 1)?),
            2 => (size + 1, little(&mut rest, 2)?),
            _ => (size + 1, little(&mut rest, 4)?),
        };
        if count > len - out.len() {
            return Err(bad("a block holds more than its length"));
        }
        if tag & 3 == 0 {
            let literal = rest.split_at_checked(count).ok_or_else(cut_off)?;
            out.extend_from_slice(literal.0);
            rest = literal.1;
        } else {
            let from = out.len().checked_sub(offset).filter(|_| offset > 0);
            let from = from.ok_or_else(|| bad("a copy is of bytes before the block"))?;
            // A copy may run into what it makes.
            for index in from..from + count {
                out.push(out[index]);
            }
        }
    }
    if out.len() == len { Ok(out) } else { Err(bad("a block holds less than its length")) }
}

/// A block's length: seven bits a byte, the lowest first.
fn varint(block: &[u8]) -> Option<(usize, &[u8])> {
    let end = block.iter().take(3).position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = block.split_at(end);
    let len = number.iter().rev().fold(0, |len, byte| len << 7 | usize::from(byte & 0x7f));
    (len <= CHUNK_MAX).then_some((len, rest))
}

fn little(rest: &mut &[u8], len: usize) -> io::Result<usize> {
    let (number, after) = rest.split_at_checked(len).ok_or_else(cut_off)?;
    *rest = after;
    Ok(number.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

fn cut_off() -> io::Error {
    refuse(ErrorKind::Truncated, "the snappy stream is cut off")
}

fn bad(why: &str) -> io::Error {
    io::Error::other(damaged(NAME, why))
}

impl fmt::Debug for Snappy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snappy").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use bootyard_testkit::{pseudo_random, workspace_root};

    use super::*;
    use crate::Format;
    use crate::stream::Decompressed;
    use crate::stream::unpack::tests::{check, disk};
    use crate::support::decode;

    const CHAIN: [Format; 2] = [Format::Snappy, Format::Raw];

    /// What `testdata/snappy/text.sz` holds.
    fn text() -> Vec<u8> {
        let lines = (0..400_u32).map(|i| format!("line {} of a disk; ", i % 37));
        let mut text = lines.collect::<String>().into_bytes();
        text.extend([b'z'; 70_000]);
        text.extend((0..300_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()));
        text
    }

    fn read(file: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        let opened = Decompressed::new(io::Cursor::new(file), NonZeroUsize::MIN);
        opened.map_err(io::Error::other)?.read_to_end(&mut data)?;
        Ok(data)
    }

    fn packed() -> Vec<u8> {
        fs_err::read(workspace_root().join("testdata/snappy/text.sz")).unwrap()
    }

    /// Chunks of bytes as they are, and one to be skipped behind each.
    fn stored(data: &[u8]) -> Vec<u8> {
        let mut file = b"\xff\x06\0\0sNaPpY".to_vec();
        for part in data.chunks(CHUNK_MAX) {
            let len = u32::try_from(part.len() + 4).unwrap().to_le_bytes();
            let sum = crc32c::crc32c(part).rotate_right(15).wrapping_add(0xa282_ead8);
            file.extend([&[1], &len[..3], &sum.to_le_bytes(), part].concat());
            file.extend(b"\xfe\x03\0\0pad");
        }
        file
    }

    #[test]
    fn a_disk_comes_out_as_it_was() {
        assert_eq!(read(packed()).unwrap(), text());
        assert_eq!(read(packed().repeat(2)).unwrap(), text().repeat(2));
        check(&stored(&disk()), &disk(), &CHAIN, "stored");
    }

    #[test]
    fn damage_and_a_cut_are_told() {
        let mut file = stored(&pseudo_random(200_000, 1));
        let error = decode(&file[..file.len() - 10], &[65_536]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
        file[70_000] ^= 1;
        let error = decode(&file, &[65_536]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let file = packed();
        for at in 10..file.len() {
            let mut file = file.clone();
            file[at] ^= 0x55;
            // In a run of one byte a copy may be of another place without a difference.
            assert!(read(file).map_or(true, |data| data == text()), "byte {at}");
        }
    }

    #[test]
    fn blocks_say_nothing_beyond_themselves() {
        for block in [
            &b""[..],
            b"\xff\xff\xff\xff\x0f",
            b"\x04\x0cab",
            b"\x04\x0cabcdef",
            b"\x08\x00a\x11\x05",
            b"\x08\x00a\x11\x00",
            b"\x05\x00a",
            b"\x04\xf0",
        ] {
            assert!(unpack(block).is_err(), "{block:?}");
        }
        // A copy that runs into itself, of a byte that is there once.
        assert_eq!(unpack(b"\x09\x00a\x11\x01").unwrap(), *b"aaaaaaaaa");
    }
}
