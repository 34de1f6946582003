//! zip with one disk in it, read from its start to its end: PKWARE's APPNOTE 6.3.10, whose sections
//! are named here.
//!
//! Most readers begin with the directory at the end. Here the members come first, and the directory
//! must agree with them in the end: a file that shows different disks to different readers is refused.

mod directory;
mod header;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::member::{Choice, cut_off, fill, skip};
use super::peek::{BUFFER, Peek};
use super::{PASSED_MAX, refuse};
use crate::ErrorKind;

use directory::{Ledger, several_parts};
use header::{Facts, Header};

const NAME: &str = "zip";
/// The methods that are read (§4.4.5).
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// What each record begins with.
mod signature {
    pub(super) const LEN: u64 = 4;
    /// §4.3.7.
    pub(super) const MEMBER: &[u8] = b"PK\x03\x04";
    /// §4.3.9.3; also in front of the first of several parts (§8.5.3).
    pub(super) const DESCRIPTOR: &[u8] = b"PK\x07\x08";
    /// §4.3.11.
    pub(super) const EXTRA_DATA: &[u8] = b"PK\x06\x08";
    /// §4.3.12.
    pub(super) const ENTRY: &[u8] = b"PK\x01\x02";
    /// §4.3.14.
    pub(super) const END_64: &[u8] = b"PK\x06\x06";
    /// §4.3.15.
    pub(super) const LOCATOR_64: &[u8] = b"PK\x06\x07";
    /// §4.3.16.
    pub(super) const END: &[u8] = b"PK\x05\x06";
}

/// Reads the disk.
pub(super) struct Zip {
    source: Source,
    choice: Choice,
    ledger: Ledger,
    member: Member,
    inflate: Decompress,
    /// How many bytes of other members were read.
    passed: u64,
    ended: bool,
}

/// A member that is being read.
#[derive(Default)]
struct Member {
    header: Header,
    /// Where its data begins.
    begin: u64,
    /// What has come out of it.
    len: u64,
    crc: Crc,
    ended: bool,
}

impl Zip {
    /// Finds the disk, and tells how long it is if that stands before it.
    pub(super) fn open(inner: Peek) -> io::Result<(Self, Option<u64>)> {
        let mut zip = Self {
            source: Source { inner, at: 0 },
            choice: Choice::default(),
            ledger: Ledger::default(),
            member: Member::default(),
            inflate: Decompress::new(false),
            passed: 0,
            ended: false,
        };
        if zip.source.next_is(signature::DESCRIPTOR)? {
            return Err(several_parts());
        }
        if !zip.next_disk()? {
            return Err(zip.choice.none());
        }
        let len = zip.member.header.len;
        Ok((zip, len))
    }

    /// Reads all other members up to a disk. False at the archive's end.
    fn next_disk(&mut self) -> io::Result<bool> {
        while self.next_member()? {
            let header = &self.member.header;
            if self.choice.is_disk(&header.name, header.len)? {
                return Ok(true);
            }
            let mut buf = vec![0; BUFFER];
            loop {
                match self.read_member(&mut buf)? {
                    0 => break,
                    len => self.passed += len as u64,
                }
                if self.passed > PASSED_MAX {
                    let what = format!("the members beside the disk have over {PASSED_MAX} bytes");
                    return Err(refuse(ErrorKind::TooLarge, what));
                }
            }
        }
        self.ledger.check(&mut self.source)?;
        Ok(false)
    }

    /// Begins the next member. False if there is none.
    fn next_member(&mut self) -> io::Result<bool> {
        let at = self.source.at;
        if !self.source.next_is(signature::MEMBER)? {
            return match self.source.peek(4)? {
                signature::ENTRY | signature::END | signature::END_64 => Ok(false),
                signature::EXTRA_DATA => {
                    Err(refuse(ErrorKind::Encrypted, "the zip archive's directory is encrypted"))
                }
                _ => Err(bad("a member is followed by something unknown")),
            };
        }
        self.source.skip(signature::LEN)?;
        let header = Header::read(&mut self.source, at)?;
        self.inflate.reset(false);
        self.member = Member { header, begin: self.source.at, ..Member::default() };
        Ok(true)
    }

    /// Reads on in the member. At its end all that is told of it is checked.
    fn read_member(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.member.ended {
            return Ok(0);
        }
        let stored = self.member.header.method == STORED;
        let given = if stored { self.read_stored(buf)? } else { self.inflate(buf)? };
        self.member.crc.update(&buf[..given]);
        self.member.len += given as u64;
        if given == 0 {
            self.end_member()?;
            self.member.ended = true;
        }
        Ok(given)
    }

    fn read_stored(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.member.header.len.unwrap_or_default() - self.member.len;
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if max == 0 {
            return Ok(0);
        }
        let len = self.source.inner.read(&mut buf[..max])?;
        self.source.at += len as u64;
        if len == 0 { Err(cut_off(NAME)) } else { Ok(len) }
    }

    /// Inflates some bytes: none at the end of the stream.
    fn inflate(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let end =
            self.member.header.packed.map_or(u64::MAX, |len| self.member.begin.saturating_add(len));
        loop {
            let left = end - self.source.at;
            let input = self.source.inner.fill_buf()?;
            let ended = input.is_empty();
            let input = &input[..input.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            let (before, made) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(input, buf, FlushDecompress::None)
                .map_err(|error| bad(error.message().unwrap_or("invalid deflated data")))?;
            let taken = (self.inflate.total_in() - before) as usize;
            let given = (self.inflate.total_out() - made) as usize;
            self.source.consume(taken);
            if given > 0 || status == Status::StreamEnd {
                return Ok(given);
            }
            if taken == 0 && ended && left > 0 {
                return Err(cut_off(NAME));
            }
            if taken == 0 {
                return Err(bad("a member is not as long as its header says"));
            }
        }
    }

    /// Compares what the member was with what is told of it.
    fn end_member(&mut self) -> io::Result<()> {
        let Member { header, begin, len, crc, .. } = &self.member;
        let (method, crc) = (header.method, crc.sum());
        let found = Facts { method, crc, packed: self.source.at - begin, len: *len };
        if header.packed.is_some_and(|packed| packed != found.packed)
            || header.len.is_some_and(|len| len != found.len)
        {
            return Err(bad("a member is not as long as its header says"));
        }
        if header.crc.is_some_and(|crc| crc != found.crc) {
            return Err(bad("the checksum of a member does not match"));
        }
        if header.described {
            let len = descriptor_len(self.source.peek(24 + 4)?, found)?;
            self.source.skip(len as u64)?;
        }
        self.ledger.add(&self.member.header, found);
        Ok(())
    }
}

/// The length of the data descriptor that `head` begins with (§4.3.9): it may have a signature, and
/// sizes of 4 or of 8 bytes. Which, is not told: it is the one behind which a record begins.
fn descriptor_len(head: &[u8], found: Facts) -> io::Result<usize> {
    let crc = found.crc.to_le_bytes();
    let [packed, len] = [found.packed, found.len].map(u64::to_le_bytes);
    for signature in [signature::DESCRIPTOR, b""] {
        for width in [4, 8] {
            let fits = packed[width..].iter().chain(&len[width..]).all(|byte| *byte == 0);
            let descriptor = [signature, &crc, &packed[..width], &len[..width]].concat();
            if fits
                && head.strip_prefix(&descriptor[..]).is_some_and(|rest| rest.starts_with(b"PK"))
            {
                return Ok(descriptor.len());
            }
        }
    }
    // The shortest end of an archive is longer than the longest descriptor.
    if head.len() < 24 + 4 {
        Err(cut_off(NAME))
    } else {
        Err(bad("a member's data descriptor does not match"))
    }
}

impl Read for Zip {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        let len = self.read_member(buf)?;
        if len == 0 {
            self.ended = true;
            // A second disk is refused on the way.
            self.next_disk()?;
        }
        Ok(len)
    }
}

/// The archive, and how much of it was read.
struct Source {
    inner: Peek,
    at: u64,
}

impl Source {
    fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        self.inner.head(len)
    }

    /// True if what follows is such a record. The archive must not end here.
    fn next_is(&mut self, signature: &[u8]) -> io::Result<bool> {
        let head = self.peek(signature.len())?;
        if head.len() < signature.len() { Err(cut_off(NAME)) } else { Ok(head == signature) }
    }

    fn record<T: FromBytes + FromZeros + IntoBytes>(&mut self) -> io::Result<T> {
        let mut record = T::new_zeroed();
        fill(&mut self.inner, record.as_mut_bytes(), NAME)?;
        self.at += size_of::<T>() as u64;
        Ok(record)
    }

    fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        fill(&mut self.inner, &mut bytes, NAME)?;
        self.at += len as u64;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> io::Result<()> {
        skip(&mut self.inner, len, NAME)?;
        self.at += len;
        Ok(())
    }

    fn consume(&mut self, len: usize) {
        self.inner.consume(len);
        self.at += len as u64;
    }
}

fn bad(why: impl fmt::Display) -> io::Error {
    refuse(ErrorKind::Corrupt, format!("the zip archive is damaged: {why}"))
}

impl fmt::Debug for Zip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zip").field("at", &self.source.at).finish_non_exhaustive()
    }
}
