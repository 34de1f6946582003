//! Random access to an image.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::header::Header;
use super::table::{Mapping, Named, Tables, entries};
use crate::codec::{Fault, Unpacker};
use crate::open::read_head;
use crate::raw::check_range;
use crate::recent::Recent;
use crate::{Disk, Error, ErrorKind, Extent, ReadAt};

/// L2 tables are read and kept in slices of this many bytes, so that a single read from a remote
/// image with large clusters stays small.
const SLICE: u64 = 16 << 10;
/// How many slices are kept: each maps 128 MiB of a disk with clusters of 64 KiB.
const SLICES_MAX: usize = 64;
/// How many bytes of decompressed clusters are kept for the next read, but at least one cluster.
const UNPACKED_MAX: usize = 1 << 20;
/// An extent is not looked for farther than this many clusters, so that asking stays cheap.
const EXTENT_CLUSTERS_MAX: u64 = 1 << 16;

/// A disk in a qcow2 image.
pub struct Image<R> {
    source: R,
    header: Header,
    tables: Tables,
    l1: Vec<u64>,
    slices: Mutex<Recent<u64, Vec<u64>>>,
    unpacked: Mutex<Unpacked>,
}

struct Unpacked {
    clusters: Recent<u64, Vec<u8>>,
    unpacker: Unpacker,
}

/// Opens the image in `source` for reading.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    let header = Header::parse(&read_head(&source)?)?;
    if let Some(refusal) = header.refusal() {
        return Err(refusal);
    }
    let len = source.len();
    for (name, offset, table_len) in [
        ("refcount table", header.refcount_table_offset, header.refcount_table_len),
        ("L1 table", header.l1_offset, header.l1_len()),
    ] {
        check_inside(name, offset, table_len, len)?;
    }
    let mut table = vec![0; header.l1_len() as usize];
    source
        .read_exact_at(&mut table, header.l1_offset)
        .map_err(|error| Error::read(error, header.l1_offset))?;
    let l1: Vec<u64> = entries(&table).collect();
    let tables = Tables::new(&header);
    check_l1(&header, &tables, &l1)?;
    let clusters = (UNPACKED_MAX >> header.cluster_bits).max(1);
    Ok(Image {
        source,
        tables,
        header,
        l1,
        slices: Mutex::new(Recent::new(SLICES_MAX)),
        unpacked: Mutex::new(Unpacked {
            clusters: Recent::new(clusters),
            unpacker: Unpacker::new(),
        }),
    })
}

/// Checks the entries for what the disk has; those behind its end are never used.
fn check_l1(header: &Header, tables: &Tables, l1: &[u64]) -> Result<(), Error> {
    let used = header.virtual_size.div_ceil(header.l2_coverage()) as usize;
    let mut named = Named::default();
    for (at, entry) in (header.l1_offset..).step_by(8).zip(l1.iter().take(used)) {
        if let Some(l2) = tables.l2_offset(*entry, at)? {
            named.add(l2, at)?;
        }
    }
    Ok(())
}

fn check_inside(name: &str, offset: u64, len: u64, file_len: u64) -> Result<(), Error> {
    match offset.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => {
            let what = format!("the {name} of {len} bytes ends beyond the file of {file_len}");
            Err(Error::new(ErrorKind::Truncated, what).at(offset))
        }
    }
}

impl<R: ReadAt> Image<R> {
    /// Where the cluster at `guest` is.
    fn mapping(&self, guest: u64) -> Result<Mapping, Error> {
        let index = guest / self.header.l2_coverage();
        let at = self.header.l1_offset + index * 8;
        let Some(l2) = self.tables.l2_offset(self.l1[index as usize], at)? else {
            return Ok(Mapping::Zero);
        };
        let offset = ((guest % self.header.l2_coverage()) >> self.header.cluster_bits) * 8;
        let entry = self.l2_entry(l2, offset)?;
        self.tables.mapping(entry, l2 + offset)
    }

    /// The entry at `offset` of the L2 table at `l2`.
    fn l2_entry(&self, l2: u64, offset: u64) -> Result<u64, Error> {
        let len = SLICE.min(self.header.cluster_size());
        let (at, index) = (l2 + offset / len * len, (offset % len / 8) as usize);
        let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = slices.get(&at) {
            return Ok(slice[index]);
        }
        check_inside("L2 table", l2, self.header.cluster_size(), self.source.len())?;
        let mut table = vec![0; len as usize];
        self.source.read_exact_at(&mut table, at).map_err(|error| Error::read(error, at))?;
        let slice: Vec<u64> = entries(&table).collect();
        let entry = slice[index];
        slices.put(at, slice);
        Ok(entry)
    }

    /// Calls `each` for the runs of the disk from `offset` on, `len` bytes altogether, with a run's
    /// length and the place of its first byte; clusters that follow each other in the file are one
    /// run.
    fn for_runs(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(u64, Mapping, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let cluster = self.header.cluster_size();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let skip = at % cluster;
            let first = self.mapping(at)?;
            let mut run = cluster - skip;
            while at + run < end && first.continues(run + skip, self.mapping(at + run)?) {
                run += cluster;
            }
            let run = run.min(end - at);
            each(run, first, skip)?;
            at += run;
        }
        Ok(())
    }

    fn read_data(&self, buf: &mut [u8], host: u64) -> Result<(), Error> {
        check_inside("data cluster", host, buf.len() as u64, self.source.len())?;
        self.source.read_exact_at(buf, host).map_err(|error| Error::read(error, host))
    }

    fn read_packed(&self, buf: &mut [u8], host: u64, len: u64, skip: u64) -> Result<(), Error> {
        let skip = skip as usize;
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = unpacked.clusters.get(&host) {
            buf.copy_from_slice(&cluster[skip..skip + buf.len()]);
            return Ok(());
        }
        // The last sector may reach beyond the file: writers round up.
        let there = self.source.len().saturating_sub(host).min(len);
        let mut packed = vec![0; there as usize];
        self.source.read_exact_at(&mut packed, host).map_err(|error| Error::read(error, host))?;
        let mut cluster = vec![0; self.header.cluster_size() as usize];
        unpacked
            .unpacker
            .unpack(self.header.codec, &packed, &mut cluster)
            .map_err(|fault| packed_error(fault, host, there < len))?;
        buf.copy_from_slice(&cluster[skip..skip + buf.len()]);
        unpacked.clusters.put(host, cluster);
        Ok(())
    }
}

/// The failure to decompress the cluster at `host`, whose bytes the file's end `cut` off.
fn packed_error(fault: Fault, host: u64, cut: bool) -> Error {
    let kind = if cut { ErrorKind::Truncated } else { ErrorKind::Corrupt };
    Error::new(kind, format!("the compressed cluster {fault}")).at(host)
}

impl<R: ReadAt> Disk for Image<R> {
    fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size(), buf.len() as u64, offset)?;
        let mut rest = &mut *buf;
        let len = rest.len() as u64;
        self.for_runs(offset, len, |run, place, skip| {
            let part = rest.split_off_mut(..run as usize).expect("runs add up to the buffer");
            match place {
                Mapping::Zero => part.fill(0),
                Mapping::Data { host, .. } => self.read_data(part, host + skip)?,
                Mapping::Packed { host, len } => self.read_packed(part, host, len, skip)?,
            }
            Ok(())
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.virtual_size(), 1, offset)?;
        let cluster = self.header.cluster_size();
        let zero = self.mapping(offset)? == Mapping::Zero;
        let mut end = offset - offset % cluster;
        for _ in 0..EXTENT_CLUSTERS_MAX {
            // A table that is not there is a run of zeros as long as what it would map.
            let step = match self.l1[(end / self.header.l2_coverage()) as usize] {
                0 => self.header.l2_coverage() - end % self.header.l2_coverage(),
                _ => cluster,
            };
            end += step;
            if end >= self.virtual_size() || (self.mapping(end)? == Mapping::Zero) != zero {
                break;
            }
        }
        Ok(Extent { len: end.min(self.virtual_size()) - offset, zero })
    }
}

impl<R> fmt::Debug for Image<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("header", &self.header).finish_non_exhaustive()
    }
}
