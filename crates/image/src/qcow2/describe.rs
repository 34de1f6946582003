//! What an image says of itself.

use super::header::{Given, Header};
use super::image::{check_inside, check_tables, read_l1};
use super::snapshot::Entry;
use super::table::{Mapping, Tables};
use crate::codec::Codec;
use crate::open::read_head;
use crate::{Error, ErrorKind, Info, ReadAt};

/// What is stored is counted if that takes reading no more than this: an L1 table of so many
/// bytes, so many L2 tables, so many bytes of them.
const L1_LEN_MAX: u64 = 64 << 10;
const L2_TABLES_MAX: usize = 32;
const L2_BYTES_MAX: u64 = 2 << 20;

/// Describes the image in `source`, also one that [`super::open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let header = Header::parse(&read_head(source)?)?;
    info.virtual_size = Some(header.virtual_size);
    info.version = Some(header.version);
    info.cluster_size = Some(header.cluster_size());
    info.compression = Some(match header.codec {
        Codec::Deflate | Codec::Zlib => "zlib",
        Codec::Zstd => "zstd",
    });
    info.refcount_bits = Some(header.refcount_bits);
    info.features = header.features();
    info.notes = notes(&header);
    info.refused = header.refusal(Given::default()).map(|error| error.to_string());
    let tables = check_tables(source, &header);
    let allocated = allocated(source, &header);
    let external = header.external_data();
    info.backing_file = header.backing_file;
    info.backing_format = header.backing_format;
    info.data_file = header.data_file.filter(|_| external);
    // An image that is refused in any case need not be whole to be described.
    match tables.and_then(|snapshots| Ok((snapshots, allocated?))) {
        Ok((snapshots, allocated)) => {
            info.snapshots = snapshots.iter().map(Entry::describe).collect();
            info.allocated = allocated;
            Ok(())
        }
        Err(_) if info.refused.is_some() => Ok(()),
        // What could not be read, because only a part of the file is there, says nothing.
        Err(error) if error.kind() == ErrorKind::Read => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is ignored, and why.
fn notes(header: &Header) -> Vec<String> {
    let mut notes = Vec::new();
    match header.bitmaps {
        0 => {}
        1 => notes.push("1 dirty bitmap is ignored".to_owned()),
        count => notes.push(format!("{count} dirty bitmaps are ignored")),
    }
    if let Some(name) = header.data_file.as_ref().filter(|_| !header.external_data()) {
        notes.push(format!("the data file `{name}` is ignored: the image holds its data itself"));
    }
    notes
}

/// How many bytes of the disk the image or its data file stores, if that costs little to know.
fn allocated(source: &dyn ReadAt, header: &Header) -> Result<Option<u64>, Error> {
    let state = header.active();
    if state.l1_len() > L1_LEN_MAX {
        return Ok(None);
    }
    let tables = Tables::new(header, &state);
    let mut l2_tables = Vec::new();
    for (index, entry) in (0..).zip(read_l1(source, header, &state)?) {
        if let Some(l2) = tables.l2_offset(entry, state.l1_offset + index * 8)? {
            l2_tables.push((l2, index * header.l2_coverage()));
        }
        let bytes = l2_tables.len() as u64 * header.cluster_size();
        if l2_tables.len() > L2_TABLES_MAX || bytes > L2_BYTES_MAX {
            return Ok(None);
        }
    }
    let mut table = vec![0; header.cluster_size() as usize];
    let mut stored = 0;
    for (l2, first) in l2_tables {
        check_inside("L2 table", l2, table.len() as u64, source.len())?;
        source.read_exact_at(&mut table, l2).map_err(|error| Error::read(error, l2))?;
        for run in tables.runs(&table, l2, first, first..u64::MAX) {
            let run = run?;
            if matches!(run.mapping, Mapping::Data { .. } | Mapping::Packed { .. }) {
                stored += run.len;
            }
        }
    }
    Ok(Some(stored))
}
