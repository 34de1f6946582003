//! The central directory behind the members, and the records that end the archive.

use std::hash::{BuildHasher, RandomState};
use std::io;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::{Facts, Header, Wide, take_name};
use super::{Source, bad, signature};
use crate::ErrorKind;
use crate::sniff::printable;
use crate::stream::unpack::refuse;

/// The members that have passed, in little memory: how many, and a sum of their hashes, which the
/// directory's entries must add up to. The hashes have a key that nobody knows.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    key: RandomState,
    members: u64,
    sum: u64,
}

impl Ledger {
    /// Notes a member that was read, and what it was found to be.
    pub(super) fn add(&mut self, header: &Header, found: Facts) {
        self.members += 1;
        self.sum = self.sum.wrapping_add(self.hash(header.at, &header.raw_name, found));
    }

    fn hash(&self, at: u64, name: &[u8], facts: Facts) -> u64 {
        self.key.hash_one((at, name, facts))
    }

    /// Reads all that stands behind the members, up to the end.
    pub(super) fn check(&self, source: &mut Source) -> io::Result<()> {
        let begin = source.at;
        let (mut entries, mut sum) = (0, 0_u64);
        while source.next_is(signature::ENTRY)? {
            sum = sum.wrapping_add(self.entry(source)?);
            entries += 1;
        }
        if (entries, sum) != (self.members, self.sum) {
            return Err(bad("its directory does not agree with the members that have passed"));
        }
        let directory = Directory { entries, begin, len: source.at - begin };
        let wide = source.next_is(signature::END_64)?;
        if wide {
            directory.check_wide_end(source)?;
        }
        if !source.next_is(signature::END)? {
            return Err(bad("its directory is not followed by an end record"));
        }
        directory.check_end(source, wide)
    }

    /// The hash of the next entry.
    fn entry(&self, source: &mut Source) -> io::Result<u64> {
        source.skip(signature::LEN)?;
        let entry: Entry = source.record()?;
        let name = take_name(source, entry.name_len.get())?;
        let extra = source.take(entry.extra_len.get().into())?;
        let mut wide = Wide::find(&extra)?;
        let len = wide.value(entry.len.get())?;
        let packed = wide.value(entry.packed.get())?;
        let at = wide.value(entry.at.get())?;
        if wide.disk(entry.disk.get())? != 0 {
            return Err(several_parts());
        }
        if entry.is_link() {
            let what = format!("the member `{}` is a link", printable(&name));
            return Err(refuse(ErrorKind::Unsupported, what));
        }
        source.skip(entry.comment_len.get().into())?;
        let facts = Facts { method: entry.method.get(), crc: entry.crc.get(), packed, len };
        Ok(self.hash(at, &name, facts))
    }
}

/// What passed of the directory.
struct Directory {
    entries: u64,
    begin: u64,
    len: u64,
}

impl Directory {
    fn check_wide_end(&self, source: &mut Source) -> io::Result<()> {
        let at = source.at;
        source.skip(signature::LEN)?;
        let end: WideEnd = source.record()?;
        if end.len.get() != size_of::<WideEnd>() as u64 - 8 {
            return Err(bad("its zip64 end record has an unknown length"));
        }
        if (end.disk.get(), end.directory_disk.get()) != (0, 0) {
            return Err(several_parts());
        }
        if [end.entries_here, end.entries, end.directory_len, end.directory_at].map(U64::get)
            != [self.entries, self.entries, self.len, self.begin]
        {
            return Err(bad("its zip64 end record does not agree with its directory"));
        }
        if !source.next_is(signature::LOCATOR_64)? {
            return Err(bad("its zip64 end record is not followed by its locator"));
        }
        source.skip(signature::LEN)?;
        let locator: Locator = source.record()?;
        if locator.disk.get() != 0 || locator.disks.get() > 1 {
            return Err(several_parts());
        }
        if locator.at.get() != at {
            return Err(bad("its zip64 end record is not where the locator says"));
        }
        Ok(())
    }

    fn check_end(&self, source: &mut Source, wide: bool) -> io::Result<()> {
        source.skip(signature::LEN)?;
        let end: End = source.record()?;
        let agrees_16 = |field: U16, value: u64| {
            u64::from(field.get()) == value || (wide && field.get() == u16::MAX)
        };
        let agrees_32 = |field: U32, value: u64| {
            u64::from(field.get()) == value || (wide && field.get() == u32::MAX)
        };
        if !agrees_16(end.disk, 0) || !agrees_16(end.directory_disk, 0) {
            return Err(several_parts());
        }
        if !agrees_16(end.entries_here, self.entries)
            || !agrees_16(end.entries, self.entries)
            || !agrees_32(end.directory_len, self.len)
            || !agrees_32(end.directory_at, self.begin)
        {
            return Err(bad("its end record does not agree with its directory"));
        }
        source.skip(end.comment_len.get().into())?;
        if source.peek(1)?.is_empty() {
            Ok(())
        } else {
            Err(bad("its end record is followed by other bytes"))
        }
    }
}

pub(super) fn several_parts() -> io::Error {
    refuse(ErrorKind::Unsupported, "the zip archive is one of several parts")
}

/// A directory entry behind its signature (§4.3.12).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    version: u8,
    system: u8,
    needed: U16,
    flags: U16,
    method: U16,
    time: U32,
    crc: U32,
    packed: U32,
    len: U32,
    name_len: U16,
    extra_len: U16,
    comment_len: U16,
    disk: U16,
    internal: U16,
    external: U32,
    at: U32,
}

impl Entry {
    /// True if its data is a path. The mode is Unix's if that has made the archive (§4.4.2).
    fn is_link(&self) -> bool {
        const UNIX: u8 = 3;
        self.system == UNIX && self.external.get() >> 28 == 0o12
    }
}

/// A zip64 end of central directory record behind its signature (§4.3.14).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WideEnd {
    len: U64,
    version: U16,
    needed: U16,
    disk: U32,
    directory_disk: U32,
    entries_here: U64,
    entries: U64,
    directory_len: U64,
    directory_at: U64,
}

/// A zip64 end of central directory locator behind its signature (§4.3.15).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Locator {
    disk: U32,
    at: U64,
    disks: U32,
}

/// An end of central directory record behind its signature (§4.3.16).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct End {
    disk: U16,
    directory_disk: U16,
    entries_here: U16,
    entries: U16,
    directory_len: U32,
    directory_at: U32,
    comment_len: U16,
}
