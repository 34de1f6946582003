//! The header with its extensions: parsed, checked, and refused by name where it asks for more than
//! this crate gives.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::codec::Codec;
use crate::error::{corrupt, too_large};
use crate::sniff::printable;
use crate::{Error, ErrorKind};

/// How much of a file's start [`Header::parse`] wants to see: extensions and names that lie
/// farther back in the first cluster are refused. QEMU's own are a few hundred bytes long.
pub(crate) const HEADER_MAX: usize = 64 << 10;

/// Limits that QEMU sets for the active L1 table, the refcount table and the snapshots.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
pub(super) const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65536;
const BITMAPS_MAX: u32 = 65535;
const BITMAP_DIRECTORY_BYTES_MAX: u64 = BITMAPS_MAX as u64 * 1024;

/// "Extended L2 Entries": a cluster has this many subclusters, each of at least one sector.
pub(super) const SUBCLUSTERS: u64 = 32;
const EXTENDED_L2_CLUSTER_BITS_MIN: u32 = 14;

/// "Snapshots": what one takes in its table at least.
pub(super) const SNAPSHOT_LEN_MIN: u64 = 40;

/// "Header": backing file names have at most this many bytes.
pub(super) const BACKING_NAME_MAX: u32 = 1023;

/// The largest virtual size: what a file offset can hold.
const VIRTUAL_SIZE_MAX: u64 = i64::MAX as u64;

/// "Header", fields of both versions.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Fixed {
    magic: U32,
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
}

/// "Header", fields that version 3 adds. Version 2 reads as if they were [`More::VERSION_2`].
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct More {
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
}

/// Offsets of header fields that errors point at.
pub(super) mod at {
    pub(super) const VERSION: u64 = 4;
    pub(super) const BACKING_FILE_OFFSET: u64 = 8;
    pub(super) const BACKING_FILE_SIZE: u64 = 16;
    pub(super) const CLUSTER_BITS: u64 = 20;
    pub(in crate::qcow2) const SIZE: u64 = 24;
    pub(super) const CRYPT_METHOD: u64 = 32;
    pub(super) const L1_SIZE: u64 = 36;
    pub(super) const L1_TABLE_OFFSET: u64 = 40;
    pub(in crate::qcow2) const REFCOUNT_TABLE_OFFSET: u64 = 48;
    pub(super) const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
    pub(in super::super) const NB_SNAPSHOTS: u64 = 60;
    pub(super) const SNAPSHOTS_OFFSET: u64 = 64;
    pub(in crate::qcow2) const INCOMPATIBLE: u64 = 72;
    pub(in crate::qcow2) const AUTOCLEAR: u64 = 88;
    pub(super) const REFCOUNT_ORDER: u64 = 96;
    pub(super) const HEADER_LENGTH: u64 = 100;
    pub(super) const COMPRESSION: u64 = 104;
}

/// Incompatible feature bits.
pub(super) mod bit {
    pub(in crate::qcow2) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
    /// Compatible feature: refcounts may lag behind.
    pub(super) const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// Autoclear feature: the bitmaps extension is up to date.
const BITMAPS_VALID: u64 = 1 << 0;

/// "Bitmaps extension".
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Bitmaps {
    count: U32,
    _reserved: U32,
    directory_size: U64,
    directory_offset: U64,
}

/// "Header extensions".
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
    pub(super) const DATA_FILE: u32 = 0x4441_5441;
}

/// A header that keeps the format's rules. It may still ask for what this crate does not give:
/// see [`Header::refusal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) virtual_size: u64,
    pub(crate) cluster_bits: u32,
    pub(crate) codec: Codec,
    pub(crate) l1_entries: u32,
    pub(crate) l1_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_len: u64,
    pub(crate) refcount_bits: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) bitmaps: u32,
    /// Where the bitmaps' directory begins and ends; nothing where there is none.
    pub(crate) bitmap_directory: (u64, u64),
    pub(crate) backing_file: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<String>,
    crypt_method: u32,
    pub(super) incompatible: u64,
    compatible: u64,
    pub(super) autoclear: u64,
    unknown_names: Vec<(u32, Option<String>)>,
}

/// A state of the disk that the image holds: the active one, or a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    pub(crate) virtual_size: u64,
}

impl State {
    /// The bytes of the L1 table.
    pub(crate) const fn l1_len(&self) -> u64 {
        self.l1_entries as u64 * 8
    }
}

/// What is there besides the image.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Given {
    pub(crate) backing: bool,
    pub(crate) data_file: bool,
}

impl More {
    /// What version 2 implies: no features, 16-bit refcounts, a header of 72 bytes.
    const VERSION_2: Self = Self {
        incompatible_features: U64::ZERO,
        compatible_features: U64::ZERO,
        autoclear_features: U64::ZERO,
        refcount_order: U32::from_bytes([0, 0, 0, 4]),
        header_length: U32::from_bytes([0, 0, 0, 72]),
    };
}

fn cut_off(head: &[u8]) -> Error {
    Error::new(ErrorKind::Truncated, "the file ends inside the qcow2 header").at(head.len() as u64)
}

impl Header {
    /// Parses the header of a file that begins with `head`: the first [`HEADER_MAX`] bytes, or the
    /// whole file if that is shorter.
    pub(crate) fn parse(head: &[u8]) -> Result<Self, Error> {
        let (fixed, rest) = Fixed::ref_from_prefix(head).map_err(|_| cut_off(head))?;
        let version = fixed.version.get();
        let more = match version {
            2 => &More::VERSION_2,
            3 => More::ref_from_prefix(rest).map_err(|_| cut_off(head))?.0,
            _ => {
                let what = format!("expected qcow2 version 2 or 3, got {version}");
                return Err(Error::new(ErrorKind::Unsupported, what).at(at::VERSION));
            }
        };
        let cluster_bits = fixed.cluster_bits.get();
        if !(9..=21).contains(&cluster_bits) {
            let what = format!("expected clusters of 2^9 to 2^21 bytes, got 2^{cluster_bits}");
            return Err(corrupt(what, at::CLUSTER_BITS));
        }
        if more.refcount_order.get() > 6 {
            let what = format!("expected a refcount order up to 6, got {}", more.refcount_order);
            return Err(corrupt(what, at::REFCOUNT_ORDER));
        }
        check_tables(fixed, 1 << cluster_bits)?;
        let mut header = Self {
            version,
            virtual_size: whole_sectors(fixed.size.get(), at::SIZE)?,
            cluster_bits,
            codec: codec(head, more)?,
            l1_entries: fixed.l1_size.get(),
            l1_offset: fixed.l1_table_offset.get(),
            refcount_table_offset: fixed.refcount_table_offset.get(),
            refcount_table_len: u64::from(fixed.refcount_table_clusters.get()) << cluster_bits,
            refcount_bits: 1 << more.refcount_order.get(),
            snapshots: fixed.nb_snapshots.get(),
            snapshots_offset: fixed.snapshots_offset.get(),
            bitmaps: 0,
            bitmap_directory: (0, 0),
            backing_file: backing_file(head, fixed)?,
            backing_format: None,
            data_file: None,
            crypt_method: fixed.crypt_method.get(),
            incompatible: more.incompatible_features.get(),
            compatible: more.compatible_features.get(),
            autoclear: more.autoclear_features.get(),
            unknown_names: Vec::new(),
        };
        let unknown = header.incompatible & !bit::KNOWN;
        header.unknown_names =
            (0..64).filter(|bit| unknown >> bit & 1 == 1).map(|bit| (bit, None)).collect();
        header.parse_extensions(head, more.header_length.get(), fixed)?;
        if header.extended_l2() && cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN {
            let what = format!(
                "expected clusters of 2^{EXTENDED_L2_CLUSTER_BITS_MIN} bytes or more with extended L2 \
                 entries, got 2^{cluster_bits}"
            );
            return Err(corrupt(what, at::CLUSTER_BITS));
        }
        header.check_l1(&header.active(), at::L1_SIZE)?;
        Ok(header)
    }

    /// The state that a guest would see now.
    pub(crate) const fn active(&self) -> State {
        State {
            l1_offset: self.l1_offset,
            l1_entries: self.l1_entries,
            virtual_size: self.virtual_size,
        }
    }

    /// The bytes of a cluster.
    pub(crate) const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The bytes of the guest's disk that one L2 table maps.
    pub(crate) const fn l2_coverage(&self) -> u64 {
        self.cluster_size() / self.l2_entry_len() * self.cluster_size()
    }

    /// The bytes of an L2 entry.
    pub(crate) const fn l2_entry_len(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// The L2 entries have a bitmap of subclusters.
    pub(crate) const fn extended_l2(&self) -> bool {
        self.incompatible & bit::EXTENDED_L2 != 0
    }

    /// The guest's data is in another file.
    pub(crate) const fn external_data(&self) -> bool {
        self.incompatible & bit::DATA_FILE != 0
    }

    /// The bitmaps are those of the disk as it is.
    const fn bitmaps_valid(&self) -> bool {
        self.autoclear & BITMAPS_VALID != 0
    }

    /// The bytes of the L1 table.
    pub(crate) const fn l1_len(&self) -> u64 {
        self.l1_entries as u64 * 8
    }

    /// Why this crate does not read the image with what is `given`, if it does not.
    pub(crate) fn refusal(&self, given: Given) -> Option<Error> {
        let refuse = |kind, what: String, at| Some(Error::new(kind, what).at(at));
        if !self.unknown_names.is_empty() {
            let list: Vec<String> = self.unknown_names.iter().map(show_feature).collect();
            let what = format!("unknown incompatible feature {}", list.join(", "));
            return refuse(ErrorKind::Unsupported, what, at::INCOMPATIBLE);
        }
        match self.crypt_method {
            0 => {}
            1 => {
                let what = "the disk is encrypted with AES".to_owned();
                return refuse(ErrorKind::Encrypted, what, at::CRYPT_METHOD);
            }
            2 => {
                let what = "the disk is encrypted with LUKS".to_owned();
                return refuse(ErrorKind::Encrypted, what, at::CRYPT_METHOD);
            }
            other => {
                let what = format!("unknown encryption method {other}");
                return refuse(ErrorKind::Unsupported, what, at::CRYPT_METHOD);
            }
        }
        if self.external_data() && !given.data_file {
            let what = match &self.data_file {
                Some(name) => format!("the guest's data is in another file, `{name}`"),
                None => "the guest's data is in another file, whose name is missing".to_owned(),
            };
            return refuse(ErrorKind::NeedsOtherFile, what, at::INCOMPATIBLE);
        }
        if let Some(name) = &self.backing_file
            && !given.backing
        {
            let what = format!("the image is an overlay over another file, `{name}`");
            return refuse(ErrorKind::NeedsOtherFile, what, at::BACKING_FILE_OFFSET);
        }
        if self.incompatible & bit::CORRUPT != 0 {
            let what = "the image is marked as corrupt".to_owned();
            return refuse(ErrorKind::Corrupt, what, at::INCOMPATIBLE);
        }
        None
    }

    /// Refuses what is `given` and not wanted: the caller took the image for another.
    pub(crate) fn refuse_needless(&self, given: Given) -> Result<(), Error> {
        let refuse = |what, at| Err(Error::new(ErrorKind::Mismatch, what).at(at));
        if given.backing && self.backing_file.is_none() {
            return refuse(
                "the image is no overlay, but a backing disk was given",
                at::BACKING_FILE_OFFSET,
            );
        }
        if given.data_file && !self.external_data() {
            return refuse(
                "the image holds its data itself, but a data file was given",
                at::INCOMPATIBLE,
            );
        }
        Ok(())
    }

    /// The names of the features that the image uses, as `qemu-img` writes them.
    pub(crate) fn features(&self) -> Vec<&'static str> {
        [
            (self.incompatible & bit::DIRTY != 0, "dirty"),
            (self.incompatible & bit::CORRUPT != 0, "corrupt"),
            (self.incompatible & bit::DATA_FILE != 0, "data-file"),
            (self.incompatible & bit::EXTENDED_L2 != 0, "extended-l2"),
            (self.compatible & bit::LAZY_REFCOUNTS != 0, "lazy-refcounts"),
            (self.bitmaps != 0, "bitmaps"),
            (self.crypt_method != 0, "encrypted"),
        ]
        .into_iter()
        .filter_map(|(used, name)| used.then_some(name))
        .collect()
    }

    /// Checks that the L1 table of `state` maps all of its disk. `at` is where its length stands.
    pub(super) fn check_l1(&self, state: &State, at: u64) -> Result<(), Error> {
        let covered = u128::from(state.l1_entries) * u128::from(self.l2_coverage());
        if covered < u128::from(state.virtual_size) {
            let size = state.virtual_size;
            let what = format!("the L1 table maps {covered} bytes of a disk of {size}");
            return Err(corrupt(what, at));
        }
        Ok(())
    }

    fn parse_extensions(
        &mut self,
        head: &[u8],
        header_length: u32,
        fixed: &Fixed,
    ) -> Result<(), Error> {
        let cluster = self.cluster_size();
        if u64::from(header_length) > cluster || (self.version == 3 && header_length < 104) {
            let what = format!("expected a header of 104 to {cluster} bytes, got {header_length}");
            return Err(corrupt(what, at::HEADER_LENGTH));
        }
        let end = match fixed.backing_file_offset.get() {
            0 => cluster,
            offset => offset.min(cluster),
        };
        // A file that ends within its first cluster has no extensions behind its end.
        let area = head.get(..end as usize).unwrap_or(head);
        let mut offset = header_length as usize;
        while let Some((kind, len)) = extension_header(area, offset) {
            if kind == extension::END {
                break;
            }
            let begin = offset + 8;
            let Some(data) = area.get(begin..).and_then(|rest| rest.get(..len)) else {
                let what = format!("header extension {kind:#010x} of {len} bytes does not fit");
                return Err(corrupt(what, offset as u64));
            };
            self.take_extension(kind, data, begin as u64)?;
            offset = begin + len.next_multiple_of(8);
        }
        Ok(())
    }

    fn take_extension(&mut self, kind: u32, data: &[u8], at: u64) -> Result<(), Error> {
        match kind {
            extension::BACKING_FORMAT => self.backing_format = Some(printable(data)),
            extension::DATA_FILE => self.data_file = Some(printable(data)),
            extension::FEATURE_NAMES => self.take_feature_names(data),
            extension::BITMAPS => self.take_bitmaps(data, at)?,
            _ => {}
        }
        Ok(())
    }

    /// The bitmaps themselves are of no use here; their directory must be where it should be.
    fn take_bitmaps(&mut self, data: &[u8], at: u64) -> Result<(), Error> {
        if !self.bitmaps_valid() {
            // Whoever wrote last knew nothing of them, and may have used their place.
            self.bitmaps = U32::ref_from_prefix(data).map_or(0, |(count, _)| count.get());
            return Ok(());
        }
        let Ok((bitmaps, _)) = Bitmaps::ref_from_prefix(data) else {
            return Err(corrupt("the bitmaps extension is cut off", at));
        };
        let count = bitmaps.count.get();
        if count > BITMAPS_MAX {
            let what = format!("expected at most {BITMAPS_MAX} bitmaps, got {count}");
            return Err(too_large(what, at));
        }
        let (begin, len) = (bitmaps.directory_offset.get(), bitmaps.directory_size.get());
        if len > BITMAP_DIRECTORY_BYTES_MAX {
            let most = BITMAP_DIRECTORY_BYTES_MAX;
            let what = format!("expected a bitmap directory of at most {most} bytes, got {len}");
            return Err(too_large(what, at));
        }
        let end = check_place("bitmap directory", begin, len, self.cluster_size(), at)?;
        self.bitmaps = count;
        self.bitmap_directory = (begin, end);
        Ok(())
    }

    /// "Feature name table": 48 bytes each, of which the first is the type (0 is incompatible),
    /// the second the bit, the others the name.
    fn take_feature_names(&mut self, data: &[u8]) {
        for entry in data.chunks_exact(48).filter(|entry| entry[0] == 0) {
            let name = entry[2..].split(|b| *b == 0).next().unwrap_or_default();
            let unknown = self.unknown_names.iter_mut();
            for (_, shown) in unknown.filter(|(bit, _)| *bit == u32::from(entry[1])) {
                *shown = Some(printable(name));
            }
        }
    }
}

fn show_feature((bit, name): &(u32, Option<String>)) -> String {
    match name {
        Some(name) => format!("`{name}` (bit {bit})"),
        None => format!("bit {bit}"),
    }
}

fn extension_header(area: &[u8], offset: usize) -> Option<(u32, usize)> {
    let (kind, rest) = U32::ref_from_prefix(area.get(offset..)?).ok()?;
    let (len, _) = U32::ref_from_prefix(rest).ok()?;
    Some((kind.get(), len.get() as usize))
}

/// Checks place and size of the tables that the header names, as far as the header alone tells.
fn check_tables(fixed: &Fixed, cluster: u64) -> Result<(), Error> {
    let l1_len = u64::from(fixed.l1_size.get()) * 8;
    let refcount_len = u64::from(fixed.refcount_table_clusters.get()) * cluster;
    if l1_len > L1_BYTES_MAX {
        let what = format!("expected an L1 table of at most {L1_BYTES_MAX} bytes, got {l1_len}");
        return Err(too_large(what, at::L1_SIZE));
    }
    if refcount_len > REFCOUNT_TABLE_BYTES_MAX {
        let most = REFCOUNT_TABLE_BYTES_MAX;
        let what = format!("expected a refcount table of at most {most} bytes, got {refcount_len}");
        return Err(too_large(what, at::REFCOUNT_TABLE_CLUSTERS));
    }
    if refcount_len == 0 {
        return Err(corrupt("the image has no refcount table", at::REFCOUNT_TABLE_CLUSTERS));
    }
    for (name, offset, len, at) in [
        ("L1 table", fixed.l1_table_offset.get(), l1_len, at::L1_TABLE_OFFSET),
        (
            "refcount table",
            fixed.refcount_table_offset.get(),
            refcount_len,
            at::REFCOUNT_TABLE_OFFSET,
        ),
    ] {
        check_place(name, offset, len, cluster, at)?;
    }
    let snapshots = fixed.nb_snapshots.get();
    if snapshots > SNAPSHOTS_MAX {
        let what = format!("expected at most {SNAPSHOTS_MAX} snapshots, got {snapshots}");
        return Err(too_large(what, at::NB_SNAPSHOTS));
    }
    let (offset, least) = (fixed.snapshots_offset.get(), u64::from(snapshots) * SNAPSHOT_LEN_MIN);
    if snapshots != 0 {
        check_place("snapshot table", offset, least, cluster, at::SNAPSHOTS_OFFSET)?;
    }
    Ok(())
}

/// Checks the place of a table that a field at `at` names, and returns its end.
pub(super) fn check_place(
    name: &str,
    offset: u64,
    len: u64,
    cluster: u64,
    at: u64,
) -> Result<u64, Error> {
    if !offset.is_multiple_of(cluster) {
        return Err(corrupt(format!("the {name} at {offset:#x} is not on a cluster"), at));
    }
    if len != 0 && offset < cluster {
        return Err(corrupt(format!("the {name} overlaps the header"), at));
    }
    match offset.checked_add(len) {
        Some(end) if end <= VIRTUAL_SIZE_MAX => Ok(end),
        _ => Err(corrupt(format!("the {name} at {offset:#x} ends beyond 2^63 - 1"), at)),
    }
}

/// A disk has whole sectors: what is left over of its last one is not seen, as QEMU has it.
pub(super) fn whole_sectors(size: u64, at: u64) -> Result<u64, Error> {
    if size > VIRTUAL_SIZE_MAX {
        return Err(too_large(format!("a disk of {size} bytes is beyond 2^63 - 1"), at));
    }
    Ok(size - size % crate::raw::SECTOR)
}

/// The compression type, which is zlib unless an incompatible feature bit says that it is not.
fn codec(head: &[u8], more: &More) -> Result<Codec, Error> {
    let flagged = more.incompatible_features.get() & bit::COMPRESSION != 0;
    let field = more.header_length.get() as u64 > at::COMPRESSION;
    let value = if field { head.get(at::COMPRESSION as usize).copied() } else { Some(0) };
    match (value.ok_or_else(|| cut_off(head))?, flagged) {
        (0, false) => Ok(Codec::Deflate),
        (1, true) => Ok(Codec::Zstd),
        (0 | 1, _) => {
            Err(corrupt("the compression type contradicts the feature bits", at::COMPRESSION))
        }
        (other, _) => {
            let what = format!("expected compression type 0 (zlib) or 1 (zstd), got {other}");
            Err(Error::new(ErrorKind::Unsupported, what).at(at::COMPRESSION))
        }
    }
}

/// The backing file's name, if there is one. It lies in the first cluster.
fn backing_file(head: &[u8], fixed: &Fixed) -> Result<Option<String>, Error> {
    let (offset, len) = (fixed.backing_file_offset.get(), fixed.backing_file_size.get());
    if offset == 0 {
        return Ok(None);
    }
    if len > BACKING_NAME_MAX {
        let what =
            format!("expected a backing file name of at most {BACKING_NAME_MAX} bytes, got {len}");
        return Err(corrupt(what, at::BACKING_FILE_SIZE));
    }
    let name = usize::try_from(offset)
        .ok()
        .and_then(|offset| head.get(offset..)?.get(..len as usize))
        .ok_or_else(|| {
            let what = format!("the backing file name at {offset:#x} is not in the header");
            corrupt(what, at::BACKING_FILE_OFFSET)
        })?;
    Ok(Some(printable(name)))
}
