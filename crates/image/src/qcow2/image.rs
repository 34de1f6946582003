//! Random access to an image.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::header::{Given, Header, State};
use super::snapshot;
use super::table::{Mapping, Named, Run, Tables, entries};
use crate::disk::{locate_backing, read_backing};
use crate::open::read_head;
use crate::raw::check_range;
use crate::recent::Recent;
use crate::unpacked::Unpacked;
use crate::{Disk, Error, ErrorKind, Extent, Located, Location, OpenOptions, ReadAt};

/// L2 tables are read and kept in slices of this many bytes, so that a single read from a remote
/// image with large clusters stays small.
const SLICE: u64 = 16 << 10;
/// How many slices are kept: each maps 128 MiB of a disk with clusters of 64 KiB.
const SLICES_MAX: usize = 64;
/// An extent is not looked for farther than this many slices, so that asking stays cheap.
const EXTENT_SLICES_MAX: usize = 64;
/// The L1 table is read in pieces of this many bytes.
const L1_PIECE: u64 = 64 << 10;

/// A disk in a qcow2 image.
pub struct Image<R> {
    source: R,
    header: Header,
    tables: Tables,
    l1_offset: u64,
    /// The entries for what the disk has, and no more.
    l1: Vec<u64>,
    virtual_size: u64,
    backing: Option<Box<dyn Disk>>,
    data_file: Option<Box<dyn ReadAt>>,
    slices: Mutex<Slices>,
    unpacked: Unpacked,
}

/// Parts of L2 tables, by the offset where they stand.
type Slices = Recent<u64, Arc<[u8]>>;

/// What the disk's L1 table says of a part of the disk.
enum Part {
    /// It has no L2 table.
    Absent,
    /// It has this part of an L2 table, which stands at `at` and begins with the cluster at `first`.
    Slice { table: Arc<[u8]>, at: u64, first: u64 },
}

/// Opens the image in `source` for reading, which needs nothing besides.
pub fn open<R: ReadAt>(source: R) -> Result<Image<R>, Error> {
    open_with(source, OpenOptions::default())
}

/// Opens the image in `source` for reading, with what it needs besides itself.
pub fn open_with<R: ReadAt>(source: R, options: OpenOptions) -> Result<Image<R>, Error> {
    let OpenOptions { backing, data_file, snapshot, .. } = options;
    let header = Header::parse(&read_head(&source)?)?;
    let given = Given { backing: backing.is_some(), data_file: data_file.is_some() };
    if let Some(refusal) = header.refusal(given) {
        return Err(refusal);
    }
    header.refuse_needless(given)?;
    let state = choose_state(&source, &header, snapshot.as_deref())?;
    let tables = Tables::new(&header, &state);
    let l1 = read_l1(&source, &header, &state)?;
    check_l1(&tables, &l1, state.l1_offset)?;
    let unpacked = Unpacked::new(header.codec, header.cluster_size() as usize);
    Ok(Image {
        source,
        header,
        tables,
        l1_offset: state.l1_offset,
        l1,
        virtual_size: state.virtual_size,
        backing,
        data_file,
        slices: Mutex::new(Recent::new(SLICES_MAX)),
        unpacked,
    })
}

/// Checks what the header names, and chooses the `snapshot` that was asked for.
fn choose_state(
    source: &impl ReadAt,
    header: &Header,
    snapshot: Option<&str>,
) -> Result<State, Error> {
    let snapshots = check_tables(source, header)?;
    let Some(wanted) = snapshot else { return Ok(header.active()) };
    if header.external_data() {
        let what = "an image with a data file cannot have snapshots";
        return Err(Error::new(ErrorKind::Unsupported, what).at(header.snapshots_offset));
    }
    snapshot::find(&snapshots, wanted, header)
}

/// Checks that the tables which the header names are in the file. Returns the snapshots.
pub(super) fn check_tables(
    source: &(impl ReadAt + ?Sized),
    header: &Header,
) -> Result<Vec<snapshot::Entry>, Error> {
    let (directory, end) = header.bitmap_directory;
    for (name, offset, len) in [
        ("refcount table", header.refcount_table_offset, header.refcount_table_len),
        ("bitmap directory", directory, end - directory),
    ] {
        check_inside(name, offset, len, source.len())?;
    }
    snapshot::read_table(source, header)
}

/// The entries of the L1 table for what the disk has; those behind its end are never used.
pub(super) fn read_l1(
    source: &(impl ReadAt + ?Sized),
    header: &Header,
    state: &State,
) -> Result<Vec<u64>, Error> {
    check_inside("L1 table", state.l1_offset, state.l1_len(), source.len())?;
    let len = state.virtual_size.div_ceil(header.l2_coverage()) * 8;
    let mut l1 = Vec::with_capacity(len as usize / 8);
    let mut piece = vec![0; L1_PIECE.min(len) as usize];
    for begin in (0..len).step_by(L1_PIECE as usize) {
        let (part, at) = (L1_PIECE.min(len - begin) as usize, state.l1_offset + begin);
        source.read_exact_at(&mut piece[..part], at).map_err(|error| Error::read(error, at))?;
        l1.extend(entries(&piece[..part]));
    }
    Ok(l1)
}

/// Checks the entries of the L1 table at `offset`.
fn check_l1(tables: &Tables, l1: &[u64], offset: u64) -> Result<(), Error> {
    let mut named = Named::default();
    for (at, entry) in (offset..).step_by(8).zip(l1) {
        if let Some(l2) = tables.l2_offset(*entry, at)? {
            named.add(l2, at)?;
        }
    }
    Ok(())
}

pub(super) fn check_inside(name: &str, offset: u64, len: u64, file_len: u64) -> Result<(), Error> {
    match offset.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => {
            let what = format!("the {name} of {len} bytes ends beyond the file of {file_len}");
            Err(Error::new(ErrorKind::Truncated, what).at(offset))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: ReadAt> Image<R> {
    /// What maps the disk at `guest`, and as much behind it as is mapped by the same, up to `end`.
    fn part(&self, guest: u64, end: u64) -> Result<(Part, Range<u64>), Error> {
        let coverage = self.header.l2_coverage();
        let index = (guest / coverage) as usize;
        let Some(l2) = self.tables.l2_offset(self.l1[index], self.l1_offset + index as u64 * 8)?
        else {
            let until = guest.saturating_add(coverage - guest % coverage);
            return Ok((Part::Absent, guest..until.min(end)));
        };
        let len = SLICE.min(self.header.cluster_size());
        let mapped = len / self.header.l2_entry_len() * self.header.cluster_size();
        let first = guest - guest % mapped;
        let at = l2 + first % coverage / mapped * len;
        let table = self.slice(l2, at, len)?;
        Ok((Part::Slice { table, at, first }, guest..(first + mapped).min(end)))
    }

    /// The `len` bytes at `at` of the L2 table at `l2`.
    fn slice(&self, l2: u64, at: u64, len: u64) -> Result<Arc<[u8]>, Error> {
        if let Some(slice) = lock(&self.slices).get(&at) {
            return Ok(slice.clone());
        }
        check_inside("L2 table", l2, self.header.cluster_size(), self.source.len())?;
        let mut slice = vec![0; len as usize];
        self.source.read_exact_at(&mut slice, at).map_err(|error| Error::read(error, at))?;
        let slice: Arc<[u8]> = slice.into();
        lock(&self.slices).put(at, slice.clone());
        Ok(slice)
    }

    /// Calls `each` for the runs of the disk from `range.start` on. It says whether to go on.
    fn for_runs(
        &self,
        mut range: Range<u64>,
        mut each: impl FnMut(Run) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        while range.start < range.end {
            let (part, within) = self.part(range.start, range.end)?;
            range.start = within.end;
            match part {
                Part::Absent => {
                    let (guest, len) = (within.start, within.end - within.start);
                    if !each(Run { guest, len, mapping: Mapping::Absent })? {
                        return Ok(());
                    }
                }
                Part::Slice { table, at, first } => {
                    for run in self.tables.runs(&table, at, first, within) {
                        if !each(run?)? {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn read_run(&self, buf: &mut [u8], run: Run) -> Result<(), Error> {
        match run.mapping {
            Mapping::Absent => read_backing(self.backing.as_deref(), buf, run.guest),
            Mapping::Zero => {
                buf.fill(0);
                Ok(())
            }
            Mapping::Data { host, .. } => match &self.data_file {
                Some(file) => read_data(file, buf, host),
                None => read_data(&self.source, buf, host),
            },
            Mapping::Packed { host, len } => {
                let skip = run.guest % self.header.cluster_size();
                self.unpacked.read(&self.source, (host, len), skip as usize, buf)
            }
        }
    }

    /// Where `run` is, if it is in a file as it is.
    fn locate_run(&self, run: Run) -> Option<Located<'_>> {
        let file: &dyn ReadAt = match &self.data_file {
            Some(file) => file,
            None => &self.source,
        };
        let at = match run.mapping {
            Mapping::Absent => return locate_backing(self.backing.as_deref(), run.guest, run.len),
            Mapping::Zero => Location::Zeros,
            Mapping::Data { host, .. } if host.checked_add(run.len)? <= file.len() => {
                Location::File { file: file.file()?, offset: host, pin: None }
            }
            Mapping::Data { .. } | Mapping::Packed { .. } => return None,
        };
        Some(Located { len: run.len, at })
    }

    /// How much of `run` is known to be of one kind, and whether that is zeros.
    fn extent(&self, run: Run) -> Result<Extent, Error> {
        let zero = match (run.mapping, &self.backing) {
            (Mapping::Data { .. } | Mapping::Packed { .. }, _) => false,
            (Mapping::Absent, Some(disk)) if run.guest < disk.virtual_size() => {
                let extent = disk.extent_at(run.guest)?;
                return Ok(Extent { len: extent.len.min(run.len), ..extent });
            }
            _ => true,
        };
        Ok(Extent { len: run.len, zero })
    }
}

fn read_data(file: &impl ReadAt, buf: &mut [u8], host: u64) -> Result<(), Error> {
    check_inside("data cluster", host, buf.len() as u64, file.len())?;
    file.read_exact_at(buf, host).map_err(|error| Error::read(error, host))
}

impl<R: ReadAt> Disk for Image<R> {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size, buf.len() as u64, offset)?;
        let end = offset + buf.len() as u64;
        let mut rest = buf;
        self.for_runs(offset..end, |run| {
            let part = rest.split_off_mut(..run.len as usize).expect("runs add up to the buffer");
            self.read_run(part, run).map(|()| true)
        })
    }

    fn locate(&self, offset: u64, len: u64) -> Option<Located<'_>> {
        let end = offset.saturating_add(len).min(self.virtual_size);
        let mut first = None;
        let each = |run| {
            first = Some(run);
            Ok(false)
        };
        self.for_runs(offset..end, each).ok()?;
        self.locate_run(first?)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.virtual_size, 1, offset)?;
        let mut found: Option<Extent> = None;
        let mapped = SLICE / self.header.l2_entry_len() * self.header.cluster_size();
        let end = offset.saturating_add(EXTENT_SLICES_MAX as u64 * mapped).min(self.virtual_size);
        self.for_runs(offset..end, |run| {
            let next = self.extent(run)?;
            match &mut found {
                Some(extent) if extent.zero != next.zero => return Ok(false),
                Some(extent) => extent.len += next.len,
                None => found = Some(next),
            }
            Ok(next.len == run.len)
        })?;
        Ok(found.expect("a range that is not empty has runs"))
    }
}

impl<R> fmt::Debug for Image<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("header", &self.header).finish_non_exhaustive()
    }
}
