//! Random access to a disk.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::descriptor::{Descriptor, Extent as Line, Kind, TEXT_MAX, fits};
use super::header::{GD_ENTRIES_MAX, Header, MARKER_LEN, Marker, Start};
use super::nominal_sectors;
use super::table::{Mapping, Tables, entries};
use crate::codec::{Codec, Fault, Unpacker};
use crate::error::{corrupt, too_large};
use crate::open::read_head;
use crate::raw::{SECTOR, check_range};
use crate::recent::Recent;
use crate::sniff::printable;
use crate::{Directory, Disk, Error, ErrorKind, Extent, OpenOptions, ReadAt};

/// Grain tables are read and kept in slices of the file of this many bytes: writers put those of
/// neighbours side by side, so that eight of them, which map 256 MiB, are one read.
const SLICE: u64 = 16 << 10;
/// How many slices are kept.
const SLICES_MAX: usize = 64;
/// How many bytes of decompressed grains are kept for the next read, but at least one grain,
const UNPACKED_MAX: usize = 1 << 20;
/// and how many grains.
const UNPACKED_GRAINS_MAX: usize = 64;
/// How many decompressors are kept for the next reads.
const IDLE_MAX: usize = 16;
/// An extent is not looked for farther than this many grains, so that asking stays cheap.
const EXTENT_GRAINS_MAX: u64 = 1 << 16;

/// A disk in a VMDK, or in several.
pub struct Image {
    virtual_size: u64,
    /// In the order of their places on the disk, none empty.
    parts: Vec<Part>,
    slices: Mutex<Recent<(usize, u64), Vec<u32>>>,
    /// Decompressed grains.
    unpacked: Mutex<Recent<(usize, u64), Vec<u8>>>,
    /// Decompressors that no thread uses.
    idle: Mutex<Vec<Unpacker>>,
}

/// An extent of the disk.
struct Part {
    /// The name of its file, if that is not the image's own.
    name: Option<String>,
    /// Where on the disk it begins and ends, in bytes.
    begin: u64,
    end: u64,
    body: Body,
}

enum Body {
    Zero,
    /// The bytes of a file from an offset on.
    Flat(Box<dyn ReadAt>, u64),
    Sparse(Box<Sparse>),
}

struct Sparse {
    file: Box<dyn ReadAt>,
    header: Header,
    tables: Tables,
    /// Where the grain tables are, in sectors; 0 if there is none.
    gd: Vec<u32>,
}

/// Opens the disk in `source` for reading, if that is all of it.
pub fn open<R: ReadAt + 'static>(source: R) -> Result<Image, Error> {
    open_with(source, OpenOptions::default())
}

/// Opens the disk in `source` for reading. If that is a description of files, they are opened in
/// [`OpenOptions::extents`].
pub fn open_with<R: ReadAt + 'static>(source: R, options: OpenOptions) -> Result<Image, Error> {
    let OpenOptions { extents, .. } = options;
    let head = read_head(&source)?;
    match Start::parse(&head)? {
        Start::Sparse(header) => {
            let sparse = Sparse::open(Box::new(source), header, &head)?;
            let sectors = nominal_sectors(&sparse.header, &head)?;
            let end = sectors * SECTOR;
            let part = Part { name: None, begin: 0, end, body: Body::Sparse(Box::new(sparse)) };
            Ok(Image::new(vec![part]))
        }
        Start::Text => {
            let descriptor = read_descriptor(&source)?;
            if let Some(refusal) = descriptor.refusal().or_else(|| descriptor.extents_refusal()) {
                return Err(refusal);
            }
            open_parts(&descriptor, extents.as_deref()).map(Image::new)
        }
    }
}

/// Reads a descriptor that is a file of its own.
pub(super) fn read_descriptor(source: &(impl ReadAt + ?Sized)) -> Result<Descriptor, Error> {
    let len = source.len();
    if len > TEXT_MAX {
        let what = format!("expected a descriptor of at most {TEXT_MAX} bytes, got {len}");
        return Err(too_large(what, TEXT_MAX));
    }
    let mut text = vec![0; len as usize];
    source.read_exact_at(&mut text, 0).map_err(|error| Error::read(error, 0))?;
    Descriptor::parse(&text, 0)
}

/// Opens the files of a disk.
fn open_parts(
    descriptor: &Descriptor,
    directory: Option<&dyn Directory>,
) -> Result<Vec<Part>, Error> {
    let (mut parts, mut begin, mut gd_entries) = (Vec::new(), 0, 0);
    for line in descriptor.extents.iter().filter(|line| line.sectors > 0) {
        let body = if line.kind == Kind::Zero {
            Body::Zero
        } else {
            let directory = directory.ok_or_else(|| descriptor.needs_extents())?;
            open_part(line, directory)?
        };
        if let Body::Sparse(sparse) = &body {
            gd_entries += sparse.gd.len() as u64;
        }
        if gd_entries > GD_ENTRIES_MAX {
            let what = "the grain directories of all extents are too large";
            return Err(too_large(what, line.at));
        }
        let end = begin + line.sectors * SECTOR;
        parts.push(Part { name: Some(line.name.clone()), begin, end, body });
        begin = end;
    }
    Ok(parts)
}

/// Opens the file of an extent that has one, and checks that it can hold the extent.
fn open_part(line: &Line, directory: &dyn Directory) -> Result<Body, Error> {
    let named = |error: Error| error.within(&line.name);
    let file = directory.open(&line.name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let what = format!("the extent `{}` is missing", printable(line.name.as_bytes()));
            Error::new(ErrorKind::NeedsOtherFile, what).at(line.at)
        }
        _ => named(Error::read(error, line.at)),
    })?;
    if line.kind == Kind::Flat {
        if !fits(line, file.len()) {
            let what = format!(
                "the file ends before the extent's {} sectors from sector {}",
                line.sectors, line.offset
            );
            return Err(named(Error::new(ErrorKind::Truncated, what).at(file.len())));
        }
        return Ok(Body::Flat(file, line.offset * SECTOR));
    }
    let open = || {
        let head = read_head(&file)?;
        let Start::Sparse(header) = Start::parse(&head)? else {
            return Err(corrupt("expected a sparse extent, got another description", 0));
        };
        // Its size may be rounded up to a whole grain.
        if line.offset != 0 || line.sectors > header.capacity {
            let what = format!(
                "the description wants {} sectors of an extent of {}",
                line.offset.saturating_add(line.sectors),
                header.capacity
            );
            return Err(corrupt(what, 0));
        }
        Ok((header, head))
    };
    let (header, head) = open().map_err(named)?;
    let sparse = Sparse::open(file, header, &head).map_err(named)?;
    Ok(Body::Sparse(Box::new(sparse)))
}

impl Part {
    /// The error with the name of the file where it was found.
    fn named(&self, error: Error) -> Error {
        match &self.name {
            Some(name) => error.within(name),
            None => error,
        }
    }
}

impl Sparse {
    /// Opens the extent in a file that begins with `head`.
    fn open(file: Box<dyn ReadAt>, header: Header, head: &[u8]) -> Result<Self, Error> {
        if let Some(refusal) = header.descriptor(head)?.and_then(|text| text.refusal()) {
            return Err(refusal);
        }
        let header = header.with_footer(&file)?;
        let at = header.gd_offset().expect("the footer has told where the directory is");
        check_inside("grain directory", at, header.gd_len(), file.len())?;
        let mut directory = vec![0; header.gd_len() as usize];
        file.read_exact_at(&mut directory, at).map_err(|error| Error::read(error, at))?;
        let gd: Vec<u32> = entries(&directory).collect();
        let mut tables = Tables::new(&header);
        for (at, entry) in (at..).step_by(4).zip(&gd) {
            if let Some(host) = tables.name_table(*entry, at)? {
                check_inside("grain table", host, Header::gt_len(), file.len())?;
            }
        }
        tables.all_named();
        Ok(Self { file, header, tables, gd })
    }

    fn read_data(&self, buf: &mut [u8], host: u64) -> Result<(), Error> {
        check_inside("grain", host, buf.len() as u64, self.file.len())?;
        self.file.read_exact_at(buf, host).map_err(|error| Error::read(error, host))
    }

    /// Decompresses into `out` the grain at `begin` of the extent, whose marker stands at `host`.
    fn unpack(
        &self,
        unpacker: &mut Unpacker,
        begin: u64,
        host: u64,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let mut marker = [0; MARKER_LEN as usize + 4];
        check_inside("grain marker", host, marker.len() as u64, self.file.len())?;
        self.file.read_exact_at(&mut marker, host).map_err(|error| Error::read(error, host))?;
        let len = match Marker::parse(&marker) {
            Some(Marker::Grain { sector, len }) if sector.checked_mul(SECTOR) == Some(begin) => {
                self.header.check_packed_len(len, host)?
            }
            marker => {
                let sector = begin / SECTOR;
                let what = format!("expected the grain of sector {sector}, got {marker:?}");
                return Err(corrupt(what, host));
            }
        };
        let mut packed = vec![0; len as usize];
        let at = host + MARKER_LEN;
        check_inside("compressed grain", at, len, self.file.len())?;
        self.file.read_exact_at(&mut packed, at).map_err(|error| Error::read(error, at))?;
        // The last grain may end with the disk.
        let needed = (self.header.len() - begin).min(self.header.grain_size()) as usize;
        match unpacker.unpack(Codec::Zlib, &packed, out) {
            Ok(()) => Ok(()),
            Err(Fault::Short { got }) if got >= needed => {
                out[got..].fill(0);
                Ok(())
            }
            Err(fault) => Err(corrupt(format!("the compressed grain {fault}"), at)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps `value`, unless another thread was faster.
fn put<T>(recent: &Mutex<Recent<(usize, u64), T>>, key: (usize, u64), value: T) {
    let mut recent = lock(recent);
    if recent.get(&key).is_none() {
        recent.put(key, value);
    }
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

impl Image {
    fn new(parts: Vec<Part>) -> Self {
        let grain = |part: &Part| match &part.body {
            Body::Sparse(sparse) => sparse.header.grain_size() as usize,
            _ => 1,
        };
        let grain = parts.iter().map(grain).max().unwrap_or(1);
        Self {
            virtual_size: parts.last().map_or(0, |part| part.end),
            parts,
            slices: Mutex::new(Recent::new(SLICES_MAX)),
            unpacked: Mutex::new(Recent::new((UNPACKED_MAX / grain).clamp(1, UNPACKED_GRAINS_MAX))),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// The part that has the byte at `offset` of the disk, and its number.
    fn part_at(&self, offset: u64) -> (usize, &Part) {
        let index = self.parts.partition_point(|part| part.end <= offset);
        (index, &self.parts[index])
    }

    /// Where the grain at `begin` of the extent `index` is.
    fn mapping(&self, index: usize, sparse: &Sparse, begin: u64) -> Result<Mapping, Error> {
        let coverage = sparse.header.gt_coverage();
        let table = match sparse.gd[(begin / coverage) as usize] {
            0 => return Ok(Mapping::Zero),
            sector => u64::from(sector) * SECTOR,
        };
        let at = table + begin % coverage / sparse.header.grain_size() * 4;
        let (slice_at, entry) = (at / SLICE * SLICE, (at % SLICE / 4) as usize);
        let key = (index, slice_at);
        if let Some(slice) = lock(&self.slices).get(&key) {
            return sparse.tables.mapping(slice[entry], at);
        }
        let mut bytes = vec![0; SLICE.min(sparse.file.len() - slice_at) as usize];
        sparse.read_data(&mut bytes, slice_at)?;
        let slice: Vec<u32> = entries(&bytes).collect();
        let mapping = sparse.tables.mapping(slice[entry], at);
        put(&self.slices, key, slice);
        mapping
    }

    fn read_sparse(
        &self,
        index: usize,
        sparse: &Sparse,
        mut buf: &mut [u8],
        offset: u64,
    ) -> Result<(), Error> {
        let grain = sparse.header.grain_size();
        let (mut at, end) = (offset, offset + buf.len() as u64);
        while at < end {
            let skip = at % grain;
            let first = self.mapping(index, sparse, at - skip)?;
            let mut run = grain - skip;
            while at + run < end
                && first.continues(run + skip, self.mapping(index, sparse, at + run)?)
            {
                run += grain;
            }
            let run = run.min(end - at);
            let part = buf.split_off_mut(..run as usize).expect("runs add up to the buffer");
            match first {
                Mapping::Zero => part.fill(0),
                Mapping::Data { host } => sparse.read_data(part, host + skip)?,
                Mapping::Packed { host } => {
                    self.read_packed((index, at - skip), sparse, host, part, skip as usize)?;
                }
            }
            at += run;
        }
        Ok(())
    }

    fn read_packed(
        &self,
        key: (usize, u64),
        sparse: &Sparse,
        host: u64,
        buf: &mut [u8],
        skip: usize,
    ) -> Result<(), Error> {
        if let Some(grain) = lock(&self.unpacked).get(&key) {
            buf.copy_from_slice(&grain[skip..skip + buf.len()]);
            return Ok(());
        }
        // Several threads decompress at once.
        let idle = lock(&self.idle).pop();
        let mut unpacker = idle.unwrap_or_else(Unpacker::new);
        let size = sparse.header.grain_size() as usize;
        if buf.len() == size {
            // Who reads a whole grain has no use for it again.
            sparse.unpack(&mut unpacker, key.1, host, buf)?;
        } else {
            let mut grain = vec![0; size];
            sparse.unpack(&mut unpacker, key.1, host, &mut grain)?;
            buf.copy_from_slice(&grain[skip..skip + buf.len()]);
            put(&self.unpacked, key, grain);
        }
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(unpacker);
        }
        Ok(())
    }

    /// The run at `offset` of the sparse extent `index`, of whose first `end` bytes the disk is.
    fn sparse_extent(
        &self,
        index: usize,
        sparse: &Sparse,
        offset: u64,
        end: u64,
    ) -> Result<Extent, Error> {
        let (grain, coverage) = (sparse.header.grain_size(), sparse.header.gt_coverage());
        let mut at = offset - offset % grain;
        let zero = self.mapping(index, sparse, at)? == Mapping::Zero;
        for _ in 0..EXTENT_GRAINS_MAX {
            // A table that is not there is a run of zeros as long as what it would map.
            at += match sparse.gd[(at / coverage) as usize] {
                0 => coverage - at % coverage,
                _ => grain,
            };
            if at >= end || (self.mapping(index, sparse, at)? == Mapping::Zero) != zero {
                break;
            }
        }
        Ok(Extent { len: at.min(end) - offset, zero })
    }
}

impl Disk for Image {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<(), Error> {
        check_range(self.virtual_size, buf.len() as u64, offset)?;
        while !buf.is_empty() {
            let (index, part) = self.part_at(offset);
            let len = (part.end - offset).min(buf.len() as u64);
            let piece = buf.split_off_mut(..len as usize).expect("not longer than the buffer");
            let inside = offset - part.begin;
            let read = match &part.body {
                Body::Zero => {
                    piece.fill(0);
                    Ok(())
                }
                Body::Flat(file, begin) => file
                    .read_exact_at(piece, begin + inside)
                    .map_err(|error| Error::read(error, begin + inside)),
                Body::Sparse(sparse) => self.read_sparse(index, sparse, piece, inside),
            };
            read.map_err(|error| part.named(error))?;
            offset += len;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, Error> {
        check_range(self.virtual_size, 1, offset)?;
        let (index, part) = self.part_at(offset);
        match &part.body {
            Body::Zero => Ok(Extent { len: part.end - offset, zero: true }),
            Body::Flat(..) => Ok(Extent { len: part.end - offset, zero: false }),
            Body::Sparse(sparse) => {
                let (inside, end) = (offset - part.begin, part.end - part.begin);
                self.sparse_extent(index, sparse, inside, end).map_err(|error| part.named(error))
            }
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("virtual_size", &self.virtual_size)
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}
