//! Internal snapshots: the table that lists them, and the choice of one.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{
    Header, L1_BYTES_MAX, SNAPSHOT_LEN_MIN, State, at, check_place, whole_sectors,
};
use crate::error::too_large;
use crate::sniff::printable;
use crate::{Error, ErrorKind, ReadAt, Snapshot};

/// "Snapshots": what each entry of the table begins with.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    l1_table_offset: U64,
    l1_size: U32,
    id_len: U16,
    name_len: U16,
    seconds: U32,
    nanoseconds: U32,
    vm_clock: U64,
    vm_state_size: U32,
    extra_len: U32,
}

/// What stands behind it, if the entry has room for it.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Extra {
    vm_state_size: U64,
    virtual_size: U64,
}

/// The limit that QEMU sets for what stands behind [`Fixed`].
const EXTRA_LEN_MAX: u32 = 1024;
/// How long the table may be: some 20,000 snapshots with long names.
const TABLE_LEN_MAX: u64 = 4 << 20;
/// How much of the table is read at once.
const WINDOW: u64 = 64 << 10;
/// So many snapshots are named to a caller who asked for another one.
const LISTED_MAX: usize = 10;

/// One entry of the table.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it stands, and where the next one would.
    at: u64,
    pub(super) end: u64,
    id: Vec<u8>,
    name: Vec<u8>,
    state: State,
    vm_state_size: u64,
    taken: u64,
}

/// The length of the entry that begins with `fixed` and stands at `at`, without its padding.
pub(super) fn entry_len(fixed: &[u8], at: u64) -> Result<u64, Error> {
    let (fixed, _) = Fixed::ref_from_prefix(fixed).map_err(|_| cut_off(at))?;
    let extra = fixed.extra_len.get();
    if extra > EXTRA_LEN_MAX {
        let what = format!(
            "expected at most {EXTRA_LEN_MAX} bytes of extra data in a snapshot, got {extra}"
        );
        return Err(too_large(what, at + 36));
    }
    let names = u64::from(fixed.id_len.get()) + u64::from(fixed.name_len.get());
    Ok(SNAPSHOT_LEN_MIN + u64::from(extra) + names)
}

/// Where the entry behind the one of `len` bytes at `at` begins.
pub(super) fn next_entry(header: &Header, at: u64, len: u64) -> Result<u64, Error> {
    let next = at + len.next_multiple_of(8);
    if next - header.snapshots_offset > TABLE_LEN_MAX {
        let what = format!("expected a snapshot table of at most {TABLE_LEN_MAX} bytes");
        return Err(too_large(what, at));
    }
    Ok(next)
}

fn cut_off(at: u64) -> Error {
    Error::new(ErrorKind::Truncated, "the file ends inside the snapshot table").at(at)
}

impl Entry {
    fn parse(entry: &[u8], at: u64, header: &Header) -> Result<Self, Error> {
        let (fixed, rest) = Fixed::ref_from_prefix(entry).map_err(|_| cut_off(at))?;
        let (extra, names) =
            rest.split_at_checked(fixed.extra_len.get() as usize).ok_or_else(|| cut_off(at))?;
        let (id, name) =
            names.split_at_checked(fixed.id_len.get().into()).ok_or_else(|| cut_off(at))?;
        let extra = Extra::ref_from_prefix(extra).ok().map(|(extra, _)| extra);
        // Version 2 kept neither: the disk was not resized while it had snapshots.
        let virtual_size = match extra {
            Some(extra) => whole_sectors(extra.virtual_size.get(), at + SNAPSHOT_LEN_MIN + 8)?,
            None => header.virtual_size,
        };
        Ok(Self {
            at,
            end: at + (entry.len() as u64).next_multiple_of(8),
            id: id.to_vec(),
            name: name.to_vec(),
            state: State {
                l1_offset: fixed.l1_table_offset.get(),
                l1_entries: fixed.l1_size.get(),
                virtual_size,
            },
            vm_state_size: extra
                .map_or(fixed.vm_state_size.get().into(), |extra| extra.vm_state_size.get()),
            taken: fixed.seconds.get().into(),
        })
    }

    /// The snapshot as people see it.
    pub(super) fn describe(&self) -> Snapshot {
        Snapshot {
            id: printable(&self.id),
            name: printable(&self.name),
            virtual_size: self.state.virtual_size,
            vm_state_size: self.vm_state_size,
            taken: self.taken,
        }
    }

    /// Where its disk is, if its L1 table can be one.
    pub(super) fn state(&self, header: &Header) -> Result<State, Error> {
        let len = self.state.l1_len();
        if len > L1_BYTES_MAX {
            let what = format!("expected an L1 table of at most {L1_BYTES_MAX} bytes, got {len}");
            return Err(too_large(what, self.at + 8));
        }
        check_place("L1 table", self.state.l1_offset, len, header.cluster_size(), self.at)?;
        header.check_l1(&self.state, self.at + 8)?;
        Ok(self.state)
    }
}

/// Reads the table of the image in `source`.
pub(super) fn read_table(
    source: &(impl ReadAt + ?Sized),
    header: &Header,
) -> Result<Vec<Entry>, Error> {
    let mut window = Window { bytes: Vec::new(), begin: 0 };
    let mut entries = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let len = entry_len(window.get(source, at, SNAPSHOT_LEN_MIN)?, at)?;
        entries.push(Entry::parse(window.get(source, at, len)?, at, header)?);
        at = next_entry(header, at, len)?;
    }
    Ok(entries)
}

/// The state of the snapshot whose identifier, or else whose name, is `wanted`.
pub(super) fn find(entries: &[Entry], wanted: &str, header: &Header) -> Result<State, Error> {
    let by_id = entries.iter().find(|entry| entry.id == wanted.as_bytes());
    let by_name = || entries.iter().find(|entry| entry.name == wanted.as_bytes());
    match by_id.or_else(by_name) {
        Some(entry) => entry.state(header),
        None => {
            let what = format!(
                "the image has no snapshot `{}`, {}",
                printable(wanted.as_bytes()),
                list(entries)
            );
            Err(Error::new(ErrorKind::Mismatch, what).at(at::NB_SNAPSHOTS))
        }
    }
}

fn list(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "nor any other".to_owned();
    }
    let show = |entry: &Entry| format!("`{}`", entry.describe().name);
    let shown: Vec<String> = entries.iter().take(LISTED_MAX).map(show).collect();
    let more = match entries.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("only {}{more}", shown.join(", "))
}

/// A part of the file.
struct Window {
    bytes: Vec<u8>,
    begin: u64,
}

impl Window {
    /// The `len` bytes at `at`.
    fn get(&mut self, source: &(impl ReadAt + ?Sized), at: u64, len: u64) -> Result<&[u8], Error> {
        if at < self.begin || at + len > self.begin + self.bytes.len() as u64 {
            let there = source.len().saturating_sub(at);
            if there < len {
                return Err(cut_off(at));
            }
            self.bytes.resize(there.min(WINDOW.max(len)) as usize, 0);
            self.begin = at;
            source.read_exact_at(&mut self.bytes, at).map_err(|error| Error::read(error, at))?;
        }
        let skip = (at - self.begin) as usize;
        Ok(&self.bytes[skip..skip + len as usize])
    }
}
