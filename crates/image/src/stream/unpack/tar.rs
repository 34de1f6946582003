//! tar with one disk in it: ustar, pax and GNU, with GNU's sparse files.
//!
//! The headers' fields are read by the `tar` crate. Its walk from member to member is not used: it
//! keeps long names and maps of sparse files in memory, however long they are.

use std::fmt;
use std::io::{self, Read};

use ::tar::{GnuExtSparseHeader, GnuSparseHeader, Header, PaxExtensions};

use super::layer::{Kind, LayerContents, LayerRules, Picker};
use super::member::{Choice, NAME_MAX, cut_off, drain, fill, skip};
use super::ova::Appliance;
use super::peek::Peek;
use super::refuse;
use crate::ErrorKind;
use crate::sniff::printable;

const NAME: &str = "tar";
/// Everything stands in blocks of so many bytes (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK: usize = 512;
/// How many parts a sparse file may have: a terabyte with a hole in every other MiB. They take
/// 8 MiB of memory.
const PARTS_MAX: usize = 1 << 19;
/// How long the pax header of a layer's member may be: all that Linux stores as extended attributes
/// of a file, in base64.
const ATTRIBUTES_MAX: usize = 1 << 20;
/// Sizes from here on do not fit into a header's 11 octal digits.
const OCTAL_END: u64 = 1 << 33;

/// Reads the disk.
pub(super) struct Tar {
    inner: Peek,
    choice: Choice,
    appliance: Appliance,
    /// Chooses instead, if it is a layer of a container image.
    picker: Option<Picker>,
    member: Member,
    /// How much of the disk was read, and in which of its parts that ends.
    at: u64,
    part: usize,
    ended: bool,
}

/// What a layer of a container image holds.
pub(super) enum Layer {
    /// The disk, and how long it is.
    Disk(Box<Tar>, u64),
    Other(LayerContents),
}

/// A disk in the archive.
#[derive(Default)]
struct Member {
    len: u64,
    /// Where the stored parts are, in their order: offsets and lengths. The rest is zeros.
    parts: Vec<(u64, u64)>,
    /// What fills up the last block.
    padding: u64,
}

/// What a header in front of the member says of it.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    len: Option<u64>,
    /// It is a sparse file in a form that is not read.
    sparse: bool,
}

impl Tar {
    /// Finds the disk, and tells how long it is.
    pub(super) fn open(inner: Peek) -> io::Result<(Self, u64)> {
        let mut tar = Self::new(inner, None);
        match tar.begin()? {
            Some(len) => Ok((tar, len)),
            None => Err(tar.choice.none()),
        }
    }

    /// Finds the disk in a layer of a container image, or else what the layer holds.
    pub(super) fn layer(inner: Peek, rules: LayerRules) -> io::Result<Layer> {
        let mut tar = Self::new(inner, Some(Picker::new(rules)));
        Ok(match tar.begin()? {
            Some(len) => Layer::Disk(Box::new(tar), len),
            None => Layer::Other(tar.picker.map(Picker::into_contents).unwrap_or_default()),
        })
    }

    fn new(inner: Peek, picker: Option<Picker>) -> Self {
        let (choice, appliance) = (Choice::default(), Appliance::default());
        let member = Member::default();
        Self { inner, choice, appliance, picker, member, at: 0, part: 0, ended: false }
    }

    /// Goes to the disk. Returns its length.
    fn begin(&mut self) -> io::Result<Option<u64>> {
        let disk = self.next_disk()?;
        Ok(disk.map(|member| {
            self.member = member;
            self.member.len
        }))
    }

    /// Passes all other members up to a disk. `None` at the archive's end.
    fn next_disk(&mut self) -> io::Result<Option<Member>> {
        let mut extended = Extended::default();
        loop {
            // Some makers of layers leave out the blocks of zeros that end an archive.
            if self.picker.is_some() && self.inner.head(1)?.is_empty() {
                return Ok(None);
            }
            let mut block = [0; BLOCK];
            fill(&mut self.inner, &mut block, NAME)?;
            if block == [0; BLOCK] {
                drain(&mut self.inner)?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let stored =
                header.entry_size().map_err(|_| bad("the size of a member is no number"))?;
            let kind = header.entry_type();
            match kind.as_byte() {
                b'x' => self.take_pax(stored, &mut extended)?,
                b'L' => extended.name = Some(self.take_name(stored)?),
                b'g' | b'K' | b'V' => self.skip_blocks(stored)?,
                b'0' | b'\0' | b'7' | b'S' => {
                    let Extended { name, len, sparse } = std::mem::take(&mut extended);
                    let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let member = self.member(header, len, stored)?;
                    if self.is_disk(&name, &member)? {
                        return if sparse { Err(pax_sparse()) } else { Ok(Some(member)) };
                    }
                    self.pass(&name, &member)?;
                }
                b'5' | b'1'..=b'4' | b'6' if self.picker.is_some() || kind.is_dir() => {
                    let name = std::mem::take(&mut extended).name;
                    let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let kind = if kind.is_dir() { Kind::Folder } else { Kind::Other };
                    if let Some(picker) = &mut self.picker {
                        picker.is_disk(&name, kind)?;
                    }
                }
                _ => {
                    let name = extended.name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let what = format!("the member `{}` is no file", printable(&name));
                    return Err(refuse(ErrorKind::Unsupported, what));
                }
            }
        }
    }

    fn is_disk(&mut self, name: &[u8], member: &Member) -> io::Result<bool> {
        if let Some(picker) = &mut self.picker {
            return picker.is_disk(name, Kind::File { len: member.len });
        }
        let is_disk = self.choice.is_disk(name, Some(member.len))?;
        if is_disk {
            self.appliance.begin_disk(name)?;
        }
        Ok(is_disk)
    }

    /// Passes a member that is no disk.
    fn pass(&mut self, name: &[u8], member: &Member) -> io::Result<()> {
        let stored = member.parts.iter().map(|(_, len)| len).sum();
        let is_text = self.picker.is_none() && stored == member.len;
        if is_text && self.appliance.wants(name, stored)? {
            let mut text = vec![0; stored as usize];
            fill(&mut self.inner, &mut text, NAME)?;
            self.appliance.take(name, text)?;
        } else {
            skip(&mut self.inner, stored, NAME)?;
        }
        self.skip_padding(member.padding)
    }

    /// Passes what fills up the last block of a member. Behind the last member of a layer some makers
    /// leave out that too.
    fn skip_padding(&mut self, len: u64) -> io::Result<()> {
        if self.picker.is_some() && self.inner.head(1)?.is_empty() {
            return Ok(());
        }
        skip(&mut self.inner, len, NAME)
    }

    /// What a header says of a file, and the further headers of a sparse one.
    fn member(&mut self, header: &Header, pax: Option<u64>, field: u64) -> io::Result<Member> {
        if let Some(pax) = pax
            && field != pax
            && (pax < OCTAL_END && field != 0)
        {
            return Err(bad(&format!("a member has two sizes, {field} and {pax}")));
        }
        let stored = pax.unwrap_or(field);
        if i64::try_from(stored).is_err() {
            return Err(bad(&format!("a member has {stored} bytes")));
        }
        let padding = stored.next_multiple_of(BLOCK as u64) - stored;
        if header.entry_type().as_byte() != b'S' {
            return Ok(Member { len: stored, parts: vec![(0, stored)], padding });
        }
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse member has no GNU header"))?;
        let len = gnu.real_size().map_err(|_| bad("a sparse member has no size"))?;
        let mut parts = Parts { end: 0, len, stored: 0, list: Vec::new() };
        parts.add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            fill(&mut self.inner, next.as_mut_bytes(), NAME)?;
            parts.add(next.sparse())?;
            more = next.is_extended();
        }
        if parts.stored != stored || i64::try_from(len).is_err() {
            return Err(bad("the parts of a sparse member are not as long as it is"));
        }
        Ok(Member { len, parts: parts.list, padding })
    }

    fn take_name(&mut self, len: u64) -> io::Result<Vec<u8>> {
        let mut name = self.take_blocks(len)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn take_pax(&mut self, len: u64, extended: &mut Extended) -> io::Result<()> {
        let records = self.take_blocks(len)?;
        for record in PaxExtensions::new(&records) {
            let record = record.map_err(|_| bad("a pax header is malformed"))?;
            match record.key_bytes() {
                b"path" => extended.name = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let len = record.value().ok().and_then(|value| value.parse().ok());
                    extended.len =
                        Some(len.ok_or_else(|| bad("the size in a pax header is no number"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => extended.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// The contents of a header's own member.
    fn take_blocks(&mut self, len: u64) -> io::Result<Vec<u8>> {
        // Files of a layer may have extended attributes.
        let limit = if self.picker.is_some() { ATTRIBUTES_MAX } else { NAME_MAX };
        if len > limit as u64 {
            let what = format!("expected a header of at most {limit} bytes, got one of {len}");
            return Err(refuse(ErrorKind::TooLarge, what));
        }
        let mut bytes = vec![0; (len as usize).next_multiple_of(BLOCK)];
        fill(&mut self.inner, &mut bytes, NAME)?;
        bytes.truncate(len as usize);
        Ok(bytes)
    }

    fn skip_blocks(&mut self, len: u64) -> io::Result<()> {
        let len = len.checked_next_multiple_of(BLOCK as u64);
        skip(&mut self.inner, len.ok_or_else(|| bad("a header is too long"))?, NAME)
    }

    /// The disk has been read: what follows must be no other.
    fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        self.skip_padding(self.member.padding)?;
        // A second one has been refused by now.
        self.next_disk()?;
        let disk = self.choice.disk().unwrap_or_default();
        std::mem::take(&mut self.appliance).end(disk)
    }
}

impl Read for Tar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        if self.at == self.member.len {
            self.end()?;
            return Ok(0);
        }
        // Up to the next part all is zero; in it all is stored.
        let next = loop {
            match self.member.parts.get(self.part) {
                Some((offset, len)) if offset + len <= self.at => self.part += 1,
                next => break next.copied(),
            }
        };
        let max = |len: u64| usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
        let len = match next {
            Some((offset, len)) if offset <= self.at => {
                let max = max(offset + len - self.at);
                match self.inner.read(&mut buf[..max])? {
                    0 => return Err(cut_off(NAME)),
                    len => len,
                }
            }
            next => {
                let len = max(next.map_or(self.member.len, |(offset, _)| offset) - self.at);
                buf[..len].fill(0);
                len
            }
        };
        self.at += len as u64;
        self.appliance.update(&buf[..len]);
        Ok(len)
    }
}

fn pax_sparse() -> io::Error {
    let what = "sparse files in pax headers are not supported; `tar --format=gnu` makes others";
    refuse(ErrorKind::Unsupported, what)
}

/// The stored parts of a sparse file.
struct Parts {
    end: u64,
    len: u64,
    stored: u64,
    list: Vec<(u64, u64)>,
}

impl Parts {
    fn add(&mut self, fields: &[GnuSparseHeader]) -> io::Result<()> {
        for field in fields.iter().filter(|field| !field.is_empty()) {
            let number = |value: io::Result<u64>| {
                value.map_err(|_| bad("a part of a sparse member has no number for its place"))
            };
            let (offset, len) = (number(field.offset())?, number(field.length())?);
            let end = offset.checked_add(len).filter(|end| offset >= self.end && *end <= self.len);
            self.end =
                end.ok_or_else(|| bad("the parts of a sparse member overlap or are too long"))?;
            self.stored += len;
            if self.list.len() == PARTS_MAX {
                let what = format!("a sparse member has more than {PARTS_MAX} parts");
                return Err(refuse(ErrorKind::TooLarge, what));
            }
            if len > 0 {
                self.list.push((offset, len));
            }
        }
        Ok(())
    }
}

/// The sum of a header's bytes, its own field taken as blanks.
fn check_sum(header: &Header) -> io::Result<()> {
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

fn bad(why: &str) -> io::Error {
    refuse(ErrorKind::Corrupt, format!("the tar archive is damaged: {why}"))
}

impl fmt::Debug for Tar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tar").field("at", &self.at).finish_non_exhaustive()
    }
}
