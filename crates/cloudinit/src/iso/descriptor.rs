//! Volume descriptors (ECMA-119 §8.4, §8.5): what tells a reader the label and where the root is.

use jiff::civil::DateTime;

use super::{BLOCK, Naming, both_u16, both_u32};

/// The descriptor that ends the set (ECMA-119 §8.3).
pub(super) const TERMINATOR: [u8; 7] = *b"\xffCD001\x01";

/// UCS-2 level 3 (Joliet specification, "Identifying a Joliet SVD").
const JOLIET_ESCAPE: &[u8] = b"%/E";

const SYSTEM: &str = "LINUX";
const APPLICATION: &str = "BOOTYARD";

/// What a descriptor says about its volume.
pub(super) struct Fields<'a> {
    pub(super) label: &'a str,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// Bytes of one path table.
    pub(super) table: u32,
    /// Blocks of the little-endian and of the big-endian path table.
    pub(super) tables: [usize; 2],
    /// The root's directory record.
    pub(super) root: Vec<u8>,
}

/// A primary volume descriptor, or a supplementary one for Joliet.
pub(super) fn volume(naming: Naming, fields: &Fields<'_>, time: DateTime) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..][..bytes.len()].copy_from_slice(bytes);
    let is_joliet = naming == Naming::Joliet;
    put(0, &[if is_joliet { 2 } else { 1 }]);
    put(1, b"CD001\x01");
    let text = |len: usize, text: &str| padded(naming, len, text);
    put(8, &text(32, SYSTEM));
    put(40, &text(32, fields.label));
    put(80, &both_u32(fields.blocks));
    if is_joliet {
        put(88, JOLIET_ESCAPE);
    }
    put(120, &both_u16(1));
    put(124, &both_u16(1));
    put(128, &both_u16(BLOCK as u16));
    put(132, &both_u32(fields.table));
    put(140, &(fields.tables[0] as u32).to_le_bytes());
    put(148, &(fields.tables[1] as u32).to_be_bytes());
    put(156, &fields.root);
    // Volume set, publisher and data preparer.
    for at in [190, 318, 446] {
        put(at, &text(128, ""));
    }
    put(574, &text(128, APPLICATION));
    // Copyright, abstract and bibliographic file.
    for at in [702, 739, 776] {
        put(at, &text(37, ""));
    }
    // Created and modified; no expiry, effective at once.
    put(813, &long_time(Some(time)));
    put(830, &long_time(Some(time)));
    put(847, &long_time(None));
    put(864, &long_time(None));
    put(881, &[1]);
    block
}

/// Text filled up with spaces, in ASCII or in big-endian UCS-2. What does not fit is cut off; the
/// odd byte at the end of a UCS-2 field is zero.
fn padded(naming: Naming, len: usize, text: &str) -> Vec<u8> {
    let characters = text.bytes().chain(std::iter::repeat(b' '));
    let mut field: Vec<u8> = match naming {
        Naming::Primary => characters.take(len).collect(),
        Naming::Joliet => characters.take(len / 2).flat_map(|c| [0, c]).collect(),
    };
    field.resize(len, 0);
    field
}

/// A descriptor's date and time in UTC, or none (ECMA-119 §8.4.26.1).
fn long_time(time: Option<DateTime>) -> Vec<u8> {
    let digits = time.map_or_else(
        || "0".repeat(16),
        |t| {
            let [month, day, hour] = [t.month(), t.day(), t.hour()];
            let (year, minute, second) = (t.year(), t.minute(), t.second());
            format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}00")
        },
    );
    [digits.as_bytes(), &[0]].concat()
}
