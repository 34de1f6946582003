//! What an image says of itself.

use super::header::{Header, Start};
use super::image::read_descriptor;
use super::nominal_sectors;
use super::table::{Mapping, Tables, entries};
use crate::open::read_head;
use crate::raw::SECTOR;
use crate::{Error, ErrorKind, Info, ReadAt};

/// Grains are counted if there are no more grain tables than that: 2 MiB, which map 32 GiB,
const TABLES_MAX: u64 = 1024;
/// in no more runs than that, each of which is a read,
const RUNS_MAX: usize = 16;
/// with gaps up to this: in a stream, a marker stands before each.
const GAP_MAX: u64 = 4 << 10;

/// Describes the image in `source`, also one that [`super::open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let head = read_head(source)?;
    let header = match Start::parse(&head) {
        Ok(Start::Sparse(header)) => header,
        Ok(Start::Text) => return describe_text(source, info),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            info.refused = Some(error.to_string());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    info.version = Some(header.version);
    info.cluster_size = Some(header.grain_size());
    info.compression = header.compressed.then_some("zlib");
    if header.unclean {
        info.notes.push("the disk was not closed properly".to_owned());
    }
    let descriptor = header.descriptor(&head)?;
    let refusal = descriptor.as_ref().and_then(|descriptor| descriptor.refusal());
    if let Some(descriptor) = descriptor {
        info.variant = Some(descriptor.create_type);
        info.backing_file = descriptor.parent;
    }
    match nominal_sectors(&header, &head) {
        Ok(sectors) => info.virtual_size = Some(sectors * SECTOR),
        Err(error) => info.refused = Some(error.to_string()),
    }
    if let Some(refusal) = refusal {
        info.refused = Some(refusal.to_string());
    }
    // Damage to the tables is for those who read them.
    info.allocated = allocated(source, header).unwrap_or_default();
    Ok(())
}

fn describe_text(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let descriptor = read_descriptor(source)?;
    info.virtual_size = Some(descriptor.sectors() * SECTOR);
    info.extents = descriptor.names();
    let refusal = descriptor
        .refusal()
        .or_else(|| descriptor.extents_refusal())
        .or_else(|| (!info.extents.is_empty()).then(|| descriptor.needs_extents()));
    info.refused = refusal.map(|error| error.to_string());
    info.variant = Some(descriptor.create_type);
    info.backing_file = descriptor.parent;
    Ok(())
}

/// How many bytes of the disk have grains; `None` if it would take many reads to know.
fn allocated(source: &dyn ReadAt, header: Header) -> Result<Option<u64>, Error> {
    let header = header.with_footer(source)?;
    let (Some(at), tables) = (header.gd_offset(), Tables::new(&header)) else { return Ok(None) };
    if header.gd_len() / 4 > TABLES_MAX {
        return Ok(None);
    }
    let read = |at, len: u64| {
        let mut bytes = vec![0; len as usize];
        source.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
        Ok(bytes)
    };
    let mut named: Vec<u64> =
        entries(&read(at, header.gd_len())?).map(|entry| u64::from(entry) * SECTOR).collect();
    named.sort_unstable();
    named.retain(|at| *at != 0);
    let runs: Vec<&[u64]> = named.chunk_by(|a, b| a + Header::gt_len() + GAP_MAX >= *b).collect();
    if runs.len() > RUNS_MAX {
        return Ok(None);
    }
    let mut grains = 0;
    for run in runs {
        let bytes = read(run[0], run[run.len() - 1] + Header::gt_len() - run[0])?;
        for at in run {
            let table = &bytes[(at - run[0]) as usize..][..Header::gt_len() as usize];
            for (at, entry) in (*at..).step_by(4).zip(entries(table)) {
                grains += u64::from(tables.mapping(entry, at)? != Mapping::Zero);
            }
        }
    }
    Ok(Some((grains * header.grain_size()).min(header.len())))
}
