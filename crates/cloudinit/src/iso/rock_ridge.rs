//! Rock Ridge: POSIX attributes and long names in the system-use fields of directory records
//! (SUSP 1.12 and RRIP 1.12, in the form of RRIP 1.10 that every reader knows).

use jiff::civil::DateTime;

use super::{BLOCK, both_u32, short_time};

/// Every file belongs to root and can be read by all, as on other media.
const MODE_FILE: u32 = 0o100_444;
const MODE_DIRECTORY: u32 = 0o040_555;

/// Most bytes of a name in one entry, whose length is one byte (RRIP §4.1.4).
const NAME_PART: usize = 250;

/// Flag of a name entry: the name goes on in the next one (RRIP §4.1.4).
const NAME_CONTINUES: u8 = 1;

/// Which times follow, in the short form (RRIP §4.1.6): modified, accessed, attributes changed.
const TIMES: u8 = 0b1110;

/// Length of the entry that points to a continuation (SUSP §5.1).
const POINTER_LEN: usize = 28;

/// What the extension's reference entry has to say (RRIP §4.3).
const EXTENSION: [&str; 3] = [
    "RRIP_1991A",
    "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS",
    "PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY \
     VOLUME DESCRIPTOR FOR CONTACT INFORMATION.",
];

/// The entries of one record. `links` is there for a directory; `name` is not for `.` and `..`.
pub(super) fn entries(
    is_root_itself: bool,
    links: Option<usize>,
    time: DateTime,
    name: Option<&str>,
) -> Vec<Vec<u8>> {
    let mut entries = Vec::with_capacity(4);
    if is_root_itself {
        // The protocol is in use, and no bytes are skipped before its entries (SUSP §5.3).
        entries.push(entry(*b"SP", &[0xbe, 0xef, 0]));
    }
    let mode = if links.is_some() { MODE_DIRECTORY } else { MODE_FILE };
    let attributes = [mode, links.unwrap_or(1) as u32, 0, 0].map(both_u32);
    entries.push(entry(*b"PX", attributes.as_flattened()));
    let time = short_time(time);
    entries.push(entry(*b"TF", &[&[TIMES], time.as_slice(), &time, &time].concat()));
    let mut parts = name.unwrap_or_default().as_bytes().chunks(NAME_PART).peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() { NAME_CONTINUES } else { 0 };
        entries.push(entry(*b"NM", &[&[flags], part].concat()));
    }
    if is_root_itself {
        let lens = EXTENSION.map(|text| text.len() as u8);
        let texts = EXTENSION.concat();
        entries.push(entry(*b"ER", &[&lens, [1].as_slice(), texts.as_bytes()].concat()));
    }
    entries
}

/// An entry: signature, length, version 1 and what it says (SUSP §4.1).
fn entry(signature: [u8; 2], data: &[u8]) -> Vec<u8> {
    let head = [signature[0], signature[1], data.len() as u8 + 4, 1];
    [&head, data].concat()
}

/// Entries for which the records have no room, wherever those records are.
pub(super) struct Continuation {
    block: usize,
    bytes: Vec<u8>,
}

impl Continuation {
    /// An empty area that begins at `block`.
    pub(super) const fn at_block(block: usize) -> Self {
        Self { block, bytes: Vec::new() }
    }

    /// What the area holds.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The system-use field for `entries`, at most `room` bytes: all of them, or those that fit
    /// beside a pointer to the others.
    pub(super) fn fit(&mut self, entries: &[Vec<u8>], room: usize) -> Vec<u8> {
        if entries.iter().map(Vec::len).sum::<usize>() <= room {
            return entries.concat();
        }
        let mut used = 0;
        let fits = |entry: &&Vec<u8>| {
            used += entry.len();
            used + POINTER_LEN <= room
        };
        let inline = entries.iter().take_while(fits).count();
        let pointer = self.push(&entries[inline..].concat());
        [entries[..inline].concat(), pointer].concat()
    }

    /// Adds entries within one block, where readers look for them, and points there.
    fn push(&mut self, entries: &[u8]) -> Vec<u8> {
        if self.bytes.len() % BLOCK + entries.len() > BLOCK {
            self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        }
        let block = self.block + self.bytes.len() / BLOCK;
        let place = [block, self.bytes.len() % BLOCK, entries.len()];
        self.bytes.extend(entries);
        entry(*b"CE", place.map(|value| both_u32(value as u32)).as_flattened())
    }
}
