//! Random access.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Geometry, Mapping, Named, Part, Run};
use crate::blockmap::check_inside;
use crate::codec::Codec;
use crate::disk::read_backing;
use crate::raw::check_range;
use crate::recent::Recent;
use crate::unpacked::Unpacked;
use crate::{Disk, Error, ErrorKind, Extent, Info, ReadAt};

/// L2 tables are read and kept in slices of this many bytes.
const SLICE: u64 = 16 << 10;
/// How many slices are kept: each maps 8 MiB of a qcow with clusters of 4 KiB.
const SLICES_MAX: usize = 64;
/// An extent is not looked for farther than this many slices, so that asking stays cheap.
const EXTENT_SLICES_MAX: u64 = 64;
/// The L1 table is read in pieces of this many bytes.
const L1_PIECE: u64 = 64 << 10;
/// What is stored is counted if that takes reading no more L2 tables than this, and no more bytes
/// of them.
const COUNT_TABLES_MAX: u64 = 32;
const COUNT_BYTES_MAX: u64 = 2 << 20;

/// A disk in an image with tables of two levels.
pub struct TwoLevelDisk<R> {
    source: R,
    geometry: Geometry,
    /// The entries for what the disk has, and no more.
    l1: Vec<u64>,
    backing: Option<Box<dyn Disk>>,
    slices: Mutex<Recent<u64, Arc<[u64]>>>,
    unpacked: Unpacked,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: ReadAt> TwoLevelDisk<R> {
    /// Reads the L1 table, and checks it against itself.
    pub(crate) fn open(
        source: R,
        geometry: Geometry,
        backing: Option<Box<dyn Disk>>,
    ) -> Result<Self, Error> {
        check_inside("L1 table", geometry.l1_at, geometry.l1_len, source.len())?;
        let (mut l1, mut named, len) = (Vec::new(), Named::default(), geometry.l1_needed());
        let mut piece = vec![0; L1_PIECE.min(len) as usize];
        for begin in (0..len).step_by(L1_PIECE as usize) {
            let (part, at) = (L1_PIECE.min(len - begin) as usize, geometry.l1_at + begin);
            source.read_exact_at(&mut piece[..part], at).map_err(|error| Error::read(error, at))?;
            for (at, entry) in (at..).step_by(8).zip(geometry.entries(&piece[..part])) {
                l1.push(named.add(&geometry, entry, at)?.unwrap_or(0));
            }
        }
        let codec = geometry.codec.unwrap_or(Codec::Deflate);
        let unpacked = Unpacked::new(codec, geometry.cluster as usize);
        let slices = Mutex::new(Recent::new(SLICES_MAX));
        Ok(Self { source, geometry, l1, backing, slices, unpacked })
    }

    /// The bytes of a slice, and those of the disk that it maps.
    fn slice_len(&self) -> (u64, u64) {
        let len = SLICE.min(self.geometry.l2_len);
        (len, len / 8 * self.geometry.cluster)
    }

    /// The `len` bytes at `at` of the L2 table at `l2`.
    fn slice(&self, l2: u64, at: u64, len: u64) -> Result<Arc<[u64]>, Error> {
        if let Some(slice) = lock(&self.slices).get(&at) {
            return Ok(slice.clone());
        }
        check_inside("L2 table", l2, self.geometry.l2_len, self.source.len())?;
        let mut bytes = vec![0; len as usize];
        self.source.read_exact_at(&mut bytes, at).map_err(|error| Error::read(error, at))?;
        let slice: Arc<[u64]> = self.geometry.entries(&bytes).collect();
        lock(&self.slices).put(at, slice.clone());
        Ok(slice)
    }

    /// The run of the disk from `range.start` on.
    fn run(&self, Range { start: guest, end }: Range<u64>) -> Result<Run, Error> {
        let coverage = self.geometry.coverage();
        let skip = guest % coverage;
        let l2 = self.l1[(guest / coverage) as usize];
        if l2 == 0 {
            let len = (coverage - skip).min(end - guest);
            return Ok(Run { guest, len, mapping: Mapping::Absent });
        }
        let (len, mapped) = self.slice_len();
        let at = l2 + skip / mapped * len;
        let first = guest - guest % mapped;
        let entries = self.slice(l2, at, len)?;
        self.geometry.run(Part { entries: &entries, at, first }, guest, end)
    }

    fn read_run(&self, buf: &mut [u8], run: Run) -> Result<(), Error> {
        match run.mapping {
            Mapping::Absent => read_backing(self.backing.as_deref(), buf, run.guest)?,
            Mapping::Zero => buf.fill(0),
            Mapping::Data { host } => {
                check_inside("data cluster", host, buf.len() as u64, self.source.len())?;
                self.source.read_exact_at(buf, host).map_err(|error| Error::read(error, host))?;
            }
            Mapping::Packed { host, len } => {
                let skip = (run.guest % self.geometry.cluster) as usize;
                self.unpacked.read(&self.source, (host, len), skip, buf)?;
            }
        }
        Ok(())
    }

    /// How much of `run` is known to be of one kind, and whether that is zeros.
    fn extent(&self, run: Run) -> Result<Extent, Error> {
        match (run.mapping, &self.backing) {
            (Mapping::Data { .. } | Mapping::Packed { .. }, _) => {
                Ok(Extent { len: run.len, zero: false })
            }
            (Mapping::Absent, Some(disk)) if run.guest < disk.virtual_size() => {
                let extent = disk.extent_at(run.guest)?;
                Ok(Extent { len: extent.len.min(run.len), ..extent })
            }
            _ => Ok(Extent { len: run.len, zero: true }),
        }
    }

    /// How many bytes of the disk the image stores, if that costs little to know.
    fn allocated(&self) -> Result<Option<u64>, Error> {
        let Geometry { virtual_size, cluster, .. } = self.geometry;
        let tables = self.l1.iter().filter(|l2| **l2 != 0).count() as u64;
        let used = self.geometry.coverage().min(virtual_size).div_ceil(cluster) * 8;
        if tables > COUNT_TABLES_MAX || tables * used > COUNT_BYTES_MAX {
            return Ok(None);
        }
        let (mut stored, mut at) = (0, 0);
        while at < virtual_size {
            let run = self.run(at..virtual_size)?;
            if matches!(run.mapping, Mapping::Data { .. } | Mapping::Packed { .. }) {
                stored += run.len;
            }
            at += run.len;
        }
        Ok(Some(stored))
    }
}

impl Info {
    /// Adds what opening the image told.
    pub(crate) fn take_two_level<R: ReadAt>(&mut self, opened: Result<TwoLevelDisk<R>, Error>) {
        let allocated = opened.and_then(|disk| disk.allocated());
        // What could not be read, because only a part of the file is there, says nothing.
        let refusal = allocated.as_ref().err().filter(|error| error.kind() != ErrorKind::Read);
        self.refused = refusal.map(ToString::to_string);
        self.allocated = allocated.ok().flatten();
    }
}

impl<R: ReadAt> Disk for TwoLevelDisk<R> {
    fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size(), buf.len() as u64, offset)?;
        let end = offset + buf.len() as u64;
        let mut rest = buf;
        while !rest.is_empty() {
            let run = self.run(end - rest.len() as u64..end)?;
            let part = rest.split_off_mut(..run.len as usize).expect("a run ends with its range");
            self.read_run(part, run)?;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.virtual_size(), 1, offset)?;
        let reach = EXTENT_SLICES_MAX.saturating_mul(self.slice_len().1);
        let end = offset.saturating_add(reach).min(self.virtual_size());
        let run = self.run(offset..end)?;
        let mut found = self.extent(run)?;
        let mut whole = found.len == run.len;
        while whole && offset + found.len < end {
            let run = self.run(offset + found.len..end)?;
            let next = self.extent(run)?;
            if next.zero != found.zero {
                break;
            }
            whole = next.len == run.len;
            found.len += next.len;
        }
        Ok(found)
    }
}

impl<R> fmt::Debug for TwoLevelDisk<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TwoLevelDisk").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}
