//! From member to member through a tar archive: ustar, pax and GNU, with GNU's sparse files in both
//! their forms. Knows headers, and nothing of where the members go.
//!
//! The headers' fields are read by the `tar` crate. Its own walk is not used: it keeps names in memory
//! however long they are.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header, PaxExtensions};

/// Everything stands in blocks of so many bytes (POSIX.1-2017, pax, "ustar Interchange Format").
pub(super) const BLOCK: usize = 512;
/// How long a header of its own (a long name, the records of pax) may be.
const EXTENDED_MAX: u64 = 64 << 10;
/// How many parts a sparse file may have: half a million, which take 8 MiB of memory.
const PARTS_MAX: usize = 1 << 19;
/// Sizes from here on do not fit into a header's 11 octal digits.
const OCTAL_END: u64 = 1 << 33;

/// What is wrong with an archive, for whoever made it; or why it could not be read.
#[derive(Debug)]
pub(super) enum Fault {
    Archive(String),
    Read(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Archive("it is cut off".to_owned()),
            _ => Self::Read(error),
        }
    }
}

fn bad(why: impl Into<String>) -> Fault {
    Fault::Archive(why.into())
}

/// A member, whose data follows.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// The permissions, with set-user-ID and its like.
    pub(super) mode: u32,
    /// The time of the last change: seconds since 1970, and nanoseconds.
    pub(super) mtime: (i64, u32),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// So many bytes; those of them that are stored, in their order: where they begin, how many.
    File {
        len: u64,
        parts: Vec<(u64, u64)>,
    },
    Directory,
    /// To where.
    Symlink(Vec<u8>),
    /// The name of another member.
    HardLink(Vec<u8>),
    /// Something that is no file, by its name.
    Special(&'static str),
}

/// What headers in front of a member say of it.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    len: Option<u64>,
    mtime: Option<(i64, u32)>,
    sparse: Sparse,
}

/// What pax says of a sparse file (GNU tar manual, "Storing Sparse Files", PAX format 1.0).
#[derive(Default)]
struct Sparse {
    version: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    len: Option<u64>,
}

/// Walks through an archive.
pub(super) struct Members<'a> {
    inner: &'a mut dyn Read,
    /// How many stored bytes of the present member are left, and what fills up the last block.
    left: u64,
    padding: u64,
}

impl<'a> Members<'a> {
    pub(super) fn new(inner: &'a mut dyn Read) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// The next member. What is left of the present one is passed. At the end the archive is read to
    /// the end of its file, as far as `rest_max`.
    pub(super) fn next(&mut self, rest_max: u64) -> Result<Option<Member>, Fault> {
        self.skip(self.left + self.padding)?;
        let mut extended = Extended::default();
        loop {
            let mut block = [0; BLOCK];
            self.inner.read_exact(&mut block)?;
            if block == [0; BLOCK] {
                let rest = io::copy(&mut (&mut self.inner).take(rest_max + 1), &mut io::sink())?;
                return if rest > rest_max { Err(bad("it does not end")) } else { Ok(None) };
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let stored = header.entry_size().ok().filter(|len| i64::try_from(*len).is_ok());
            let stored = stored.ok_or_else(|| bad("the size of a member is no number"))?;
            match header.entry_type().as_byte() {
                b'x' => self.take_pax(stored, &mut extended)?,
                b'L' => extended.name = Some(self.take_name(stored)?),
                b'K' => extended.link = Some(self.take_name(stored)?),
                // Global pax records and the label of a tape say nothing of a single member.
                b'g' | b'V' => self.skip(stored.next_multiple_of(BLOCK as u64))?,
                kind => return self.member(header, kind, extended, stored).map(Some),
            }
        }
    }

    /// Reads stored bytes of the present member.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<(), Fault> {
        self.inner.read_exact(buf)?;
        self.left -= buf.len() as u64;
        Ok(())
    }

    fn member(
        &mut self,
        header: &Header,
        kind: u8,
        extended: Extended,
        field: u64,
    ) -> Result<Member, Fault> {
        let stored = extended.len.unwrap_or(field);
        if stored != field && (stored < OCTAL_END && field != 0) {
            return Err(bad(format!("a member has two sizes, {field} and {stored}")));
        }
        let name = extended.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            let link = extended.link.or_else(|| header.link_name_bytes().map(|name| name.to_vec()));
            link.ok_or_else(|| bad("a link leads to nothing"))
        };
        let mode = header.mode().map_err(|_| bad("the mode of a member is no number"))? & 0o7777;
        let mtime = match extended.mtime {
            Some(mtime) => mtime,
            // Before 1970 it is a two's complement.
            None => match header.mtime() {
                Ok(seconds) => (seconds as i64, 0),
                Err(_) => return Err(bad("the time of a member is no number")),
            },
        };
        let mut member = Member { name, kind: Kind::Directory, mode, mtime };
        (self.left, self.padding) = (0, 0);
        member.kind = match kind {
            b'0' | b'\0' | b'7' if member.name.ends_with(b"/") => Kind::Directory,
            b'0' | b'\0' | b'7' | b'S' => {
                self.left = stored;
                self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
                if kind == b'S' {
                    self.gnu_sparse(header)?
                } else if extended.sparse.version.is_some() {
                    self.pax_sparse(extended.sparse, &mut member.name)?
                } else {
                    Kind::File { len: stored, parts: vec![(0, stored)] }
                }
            }
            b'1' => Kind::HardLink(link()?),
            b'2' => Kind::Symlink(link()?),
            b'3' => Kind::Special("a character device"),
            b'4' => Kind::Special("a block device"),
            b'5' => Kind::Directory,
            b'6' => Kind::Special("a FIFO"),
            b'M' => Kind::Special("the rest of a file of another archive"),
            _ => Kind::Special("of an unknown kind"),
        };
        Ok(member)
    }

    /// The further headers of a sparse file in GNU's own format.
    fn gnu_sparse(&mut self, header: &Header) -> Result<Kind, Fault> {
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse member has no GNU header"))?;
        let len = gnu.real_size().map_err(|_| bad("a sparse member has no size"))?;
        let mut parts = Parts::new(len);
        parts.add_all(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            self.inner.read_exact(next.as_mut_bytes())?;
            parts.add_all(next.sparse())?;
            more = next.is_extended();
        }
        parts.end(self.left)
    }

    /// The map in front of a sparse file's data: numbers in lines, in whole blocks.
    fn pax_sparse(&mut self, sparse: Sparse, name: &mut Vec<u8>) -> Result<Kind, Fault> {
        let (Some(real), Some(len)) = (sparse.name, sparse.len) else {
            return Err(bad("a sparse member has no name or size"));
        };
        if sparse.version.as_deref() != Some(b"1.0") {
            return Err(bad("a sparse member is of a version other than 1.0"));
        }
        *name = real;
        let mut parts = Parts::new(len);
        let mut lines = Lines { block: [0; BLOCK], at: BLOCK };
        for _ in 0..lines.number(self)? {
            let offset = lines.number(self)?;
            parts.add(offset, lines.number(self)?)?;
        }
        parts.end(self.left)
    }

    fn take_name(&mut self, len: u64) -> Result<Vec<u8>, Fault> {
        let mut name = self.take_blocks(len)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn take_pax(&mut self, len: u64, extended: &mut Extended) -> Result<(), Fault> {
        let records = self.take_blocks(len)?;
        let number = |text: &[u8]| {
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            number.ok_or_else(|| bad("a number in a pax header is none"))
        };
        for record in PaxExtensions::new(&records) {
            let record = record.map_err(|_| bad("a pax header is malformed"))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => extended.name = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => extended.len = Some(number(value)?),
                b"mtime" => extended.mtime = Some(parse_time(value)?),
                b"GNU.sparse.major" => extended.sparse.version = Some([value, b"."].concat()),
                b"GNU.sparse.minor" => {
                    extended.sparse.version.get_or_insert_default().extend_from_slice(value);
                }
                b"GNU.sparse.name" => extended.sparse.name = Some(value.to_vec()),
                b"GNU.sparse.realsize" => extended.sparse.len = Some(number(value)?),
                key if key.starts_with(b"GNU.sparse.") => {
                    extended.sparse.version.get_or_insert_default();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The contents of a header's own member.
    fn take_blocks(&mut self, len: u64) -> Result<Vec<u8>, Fault> {
        if len > EXTENDED_MAX {
            let what = format!("a header has {len} bytes; expected at most {EXTENDED_MAX}");
            return Err(bad(what));
        }
        let mut bytes = vec![0; (len as usize).next_multiple_of(BLOCK)];
        self.inner.read_exact(&mut bytes)?;
        bytes.truncate(len as usize);
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<(), Fault> {
        let skipped = io::copy(&mut (&mut self.inner).take(len), &mut io::sink())?;
        if skipped < len { Err(bad("it is cut off")) } else { Ok(()) }
    }
}

/// The lines of a sparse file's map.
struct Lines {
    block: [u8; BLOCK],
    at: usize,
}

impl Lines {
    fn number(&mut self, members: &mut Members<'_>) -> Result<u64, Fault> {
        let bad = || bad("the map of a sparse member is malformed");
        let mut number = 0_u64;
        for _ in 0..20 {
            if self.at == BLOCK {
                if members.left < BLOCK as u64 {
                    return Err(bad());
                }
                members.read(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return Ok(number),
                b'0'..=b'9' => {
                    let more = number
                        .checked_mul(10)
                        .and_then(|ten| ten.checked_add(u64::from(byte - b'0')));
                    number = more.ok_or_else(bad)?;
                }
                _ => return Err(bad()),
            }
        }
        Err(bad())
    }
}

/// The stored parts of a sparse file.
struct Parts {
    end: u64,
    len: u64,
    stored: u64,
    list: Vec<(u64, u64)>,
}

impl Parts {
    const fn new(len: u64) -> Self {
        Self { end: 0, len, stored: 0, list: Vec::new() }
    }

    fn add_all(&mut self, fields: &[GnuSparseHeader]) -> Result<(), Fault> {
        for field in fields.iter().filter(|field| !field.is_empty()) {
            let number = |value: io::Result<u64>| {
                value.map_err(|_| bad("the place of a part of a sparse member is no number"))
            };
            self.add(number(field.offset())?, number(field.length())?)?;
        }
        Ok(())
    }

    fn add(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        let end = offset.checked_add(len).filter(|end| offset >= self.end && *end <= self.len);
        self.end =
            end.ok_or_else(|| bad("the parts of a sparse member overlap or are too long"))?;
        self.stored += len;
        if self.list.len() == PARTS_MAX {
            return Err(bad(format!("a sparse member has more than {PARTS_MAX} parts")));
        }
        if len > 0 {
            self.list.push((offset, len));
        }
        Ok(())
    }

    /// All parts are known; `left` bytes are stored.
    fn end(self, left: u64) -> Result<Kind, Fault> {
        if self.stored != left || i64::try_from(self.len).is_err() {
            return Err(bad("the parts of a sparse member are not as long as it is"));
        }
        Ok(Kind::File { len: self.len, parts: self.list })
    }
}

/// Seconds with a fraction, perhaps before 1970 (POSIX.1-2017, pax, "mtime").
fn parse_time(text: &[u8]) -> Result<(i64, u32), Fault> {
    let parse = || {
        let text = std::str::from_utf8(text).ok()?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let mut nanos = 0;
        for digit in fraction.chars().chain(std::iter::repeat('0')).take(9) {
            nanos = nanos * 10 + digit.to_digit(10)?;
        }
        let whole: i64 = seconds.parse().ok()?;
        match seconds.starts_with('-') && nanos > 0 {
            true => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
            false => Some((whole, nanos)),
        }
    };
    parse().ok_or_else(|| bad("a time in a pax header is none"))
}

/// The sum of a header's bytes, its own field taken as blanks.
fn check_sum(header: &Header) -> Result<(), Fault> {
    const FIELD: std::ops::Range<usize> = 148..156;
    let bytes = header.as_bytes();
    let all: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let field: u32 = bytes[FIELD].iter().map(|byte| u32::from(*byte)).sum();
    let sum = all - field + FIELD.len() as u32 * u32::from(b' ');
    match header.cksum() {
        Ok(stored) if stored == sum => Ok(()),
        _ => Err(bad("the checksum of a header does not match")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.0000000019", Some((12, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(parse_time(text.as_bytes()).ok(), expected, "{text}");
        }
    }
}
