//! The way out: a disk as a file, as a stream or as an object of a store, in a form that others read.
//!
//! ```text
//! disk ─► blocks, read and packed by all processors ─► in their order ─► digest ─► target
//! disk ─► qcow2 in the target, or in a spill file ─► digest ─► (target)
//! ```
//! Packed blocks stand behind each other, each complete in itself, as `pigz -i`, `pzstd` and `xz`'s
//! streams do, so that every tool unpacks the whole. A fingerprint of the disk is taken on the way.
//! Memory does not grow with the disk. Not for container images: that is [`push`](crate::push()).

mod blocks;
#[cfg(feature = "s3")]
mod object;
mod packing;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bootyard_image::fingerprint::Collector;
use bootyard_image::raw::RawDisk;
use bootyard_image::{Body, Disk, Extent, Fingerprint, Piece, ReadAt, Sink, WriteAt, copy, qcow2};
use bootyard_source as source;
use bootyard_spec::{Digest, Source, Verified, Verifier};
use bootyard_volume::{self as volume, Access, AttachedDisk, SpillFile, Staged};

use self::blocks::{Blocks, Part};
use self::packing::Packing;
use crate::transfer::workers;
use crate::{Cancel, Error, Event, Events, Moved, Phase};

/// How many bytes of a finished qcow2 are hashed, and sent, at once.
const PART: usize = 1 << 20;
/// A file has holes of so many bytes and multiples of it.
const PAGE: usize = 4096;
const ZEROS: &[u8; PART] = &[0; PART];

/// A disk that shall be exported.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The disk: qcow2 if the name says so, else raw.
    pub disk: PathBuf,
    /// How it is opened: [`Access::ReadAlone`] where many may write.
    pub access: Access,
    /// In which form it leaves.
    pub format: ExportFormat,
    /// Where a qcow2 is made that is not for a file.
    pub scratch: PathBuf,
}

/// Where a disk goes.
pub enum ExportTarget<'a> {
    /// A new file, or a block device.
    Path(PathBuf),
    /// Whoever takes the bytes in their order; with its name.
    Stream(&'a mut dyn Write, String),
    /// An object of S3, which is replaced if it is there.
    #[cfg(feature = "s3")]
    S3(bootyard_spec::ObjectName),
}

impl fmt::Debug for ExportTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            #[cfg(feature = "s3")]
            Self::S3(object) => f.debug_tuple("S3").field(object).finish(),
            Self::Stream(_, name) => f.debug_tuple("Stream").field(name).finish_non_exhaustive(),
        }
    }
}

/// The forms in which disks are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportFormat {
    /// The guest's bytes; a file has holes where there are zeros.
    Raw,
    /// The same, as gzip.
    RawGzip,
    /// The same, as Zstandard.
    RawZstd,
    /// The same, as xz.
    RawXz,
    /// qcow2 version 3, uncompressed.
    Qcow2,
    /// qcow2 version 3, its clusters compressed with zstd.
    Qcow2Zstd,
}

/// The text names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format `{0}`; expected raw, raw.gz, raw.zst, raw.xz, qcow2 or qcow2-zstd")]
pub struct ParseExportFormatError(String);

impl ExportFormat {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Raw, Self::RawGzip, Self::RawZstd, Self::RawXz, Self::Qcow2, Self::Qcow2Zstd];

    /// The name, as `--format` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawGzip => "raw.gz",
            Self::RawZstd => "raw.zst",
            Self::RawXz => "raw.xz",
            Self::Qcow2 => "qcow2",
            Self::Qcow2Zstd => "qcow2-zstd",
        }
    }

    /// What the ending of a file's or an object's name stands for; raw if for nothing else.
    pub fn of_name(name: &str) -> Self {
        match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
            "gz" => Self::RawGzip,
            "zst" => Self::RawZstd,
            "xz" => Self::RawXz,
            "qcow2" => Self::Qcow2,
            _ => Self::Raw,
        }
    }
}

impl FromStr for ExportFormat {
    type Err = ParseExportFormatError;

    fn from_str(text: &str) -> Result<Self, ParseExportFormatError> {
        let named = Self::ALL.into_iter().find(|format| format.name() == text);
        named.ok_or_else(|| ParseExportFormatError(text.to_owned()))
    }
}

/// A disk that has been exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// How many bytes were written, holes included.
    pub bytes: u64,
    /// The digest of these.
    pub sha256: Digest,
    /// What the disk holds: an import of what was written has the same.
    pub fingerprint: Fingerprint,
    /// How many bytes of the file system the file occupies; `None` for other targets.
    pub allocated_bytes: Option<u64>,
}

/// Exports a disk that no machine is writing to. What fails leaves nothing under the target's name; a
/// stream may have got a part.
///
/// As [`run`](crate::run()) it must not be called from async code.
pub fn export(
    request: &ExportRequest,
    target: ExportTarget<'_>,
    options: &source::Options,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<Exported, Error> {
    let disk = open(&request.disk, request.access)?;
    let job = Job { request, disk: &*disk, collector: Collector::new(), events, cancel };
    events.event(Event::Phase(Phase::Transferring));
    #[cfg(not(feature = "s3"))]
    let _ = options;
    match target {
        #[cfg(feature = "s3")]
        ExportTarget::S3(name) => {
            let verified = object::send(&job, &name, options)?;
            job.exported(&verified, None)
        }
        ExportTarget::Path(path) => job.write_file(&path),
        ExportTarget::Stream(stream, name) => {
            let verified = job.pass(&mut Stream { stream, name })?;
            job.exported(&verified, None)
        }
    }
}

/// What takes the bytes of an export in their order.
trait Receiver {
    fn data(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// Only of a raw disk.
    fn zeros(&mut self, len: u64) -> Result<(), Error>;
}

struct Job<'a> {
    request: &'a ExportRequest,
    disk: &'a dyn Disk,
    collector: Collector,
    events: &'a dyn Events,
    cancel: &'a Cancel,
}

impl Job<'_> {
    fn write_file(self, path: &Path) -> Result<Exported, Error> {
        if volume::is_same(&self.request.disk, path) {
            return Err(Error::SameFile { path: path.to_owned() });
        }
        let staged = Staged::for_path(path)?;
        if staged.capacity().is_some() && self.request.format != ExportFormat::Raw {
            return Err(Error::OnlyRaw { path: path.to_owned() });
        }
        staged.start_over()?;
        let (staged, verified) = match self.qcow2() {
            Some(compression) => {
                let staged = Arc::new(staged);
                self.make_qcow2(&staged, compression, path)?;
                let staged = Arc::into_inner(staged).expect("the writer has been dropped");
                let len = staged.file_len().unwrap_or_default();
                let verified = self.hash(&staged, len, None)?;
                (staged, verified)
            }
            None => {
                let is_raw = self.request.format == ExportFormat::Raw;
                if is_raw {
                    staged.reserve(self.disk.virtual_size())?;
                }
                let verified = self.pass(&mut File { staged: &staged, at: 0, is_raw })?;
                (staged, verified)
            }
        };
        self.events.event(Event::Phase(Phase::Publishing));
        let published = staged.publish(&verified)?;
        self.exported(&verified, published.allocated_bytes)
    }

    /// How a qcow2 is compressed; `None` for other formats.
    const fn qcow2(&self) -> Option<qcow2::Compression> {
        match self.request.format {
            ExportFormat::Qcow2 => Some(qcow2::Compression::None),
            ExportFormat::Qcow2Zstd => Some(qcow2::Compression::Zstd),
            _ => None,
        }
    }

    const fn packing(&self) -> Packing {
        match self.request.format {
            ExportFormat::RawGzip => Packing::Gzip,
            ExportFormat::RawZstd => Packing::Zstd,
            ExportFormat::RawXz => Packing::Xz,
            _ => Packing::None,
        }
    }

    /// Gives all bytes to `receiver`, and hashes them.
    fn pass(&self, receiver: &mut dyn Receiver) -> Result<Verified, Error> {
        if let Some(compression) = self.qcow2() {
            let scratch = &self.request.scratch;
            let file = Arc::new(SpillFile::create_in(scratch)?);
            self.make_qcow2(&file, compression, scratch)?;
            return self.hash(&*file, file.len(), Some(receiver));
        }
        let mut verifier = Verifier::new(Vec::new());
        let mut moved = self.start();
        let blocks = Blocks::new(self.disk, &self.collector, self.packing());
        blocks.each(workers(), |disk_bytes, part| {
            self.refuse_stopped()?;
            match part {
                Part::Data(bytes) => {
                    verifier.update(&bytes);
                    receiver.data(&bytes)?;
                    moved.written += bytes.len() as u64;
                }
                Part::Zero(len) => {
                    each_zeros(len, |zeros| {
                        verifier.update(zeros);
                        Ok(())
                    })?;
                    receiver.zeros(len)?;
                }
                Part::Failed(error) => return Err(self.unreadable(error)),
            }
            moved.fetched += disk_bytes;
            self.events.event(Event::Moved(moved));
            Ok(())
        })?;
        Ok(verifier.finish().expect("nothing was expected"))
    }

    /// Makes the disk a qcow2 in `file`, of which `path` is the name.
    fn make_qcow2<T: WriteAt + ReadAt>(
        &self,
        file: &Arc<T>,
        compression: qcow2::Compression,
        path: &Path,
    ) -> Result<(), Error> {
        let size = self.disk.virtual_size();
        let failed = |error| Error::image(error, &Source::File(path.into()), None);
        let write = |error| failed(bootyard_image::Error::write(error));
        let options = qcow2::WriterOptions { compression };
        let writer = qcow2::Writer::with(Arc::clone(file), size, options).map_err(write)?;
        let watched = Watched { cancel: self.cancel, collector: &self.collector, writer: &writer };
        let copied = copy(self.disk, &watched, workers());
        self.refuse_stopped()?;
        copied.map_err(failed)?;
        writer.finish().map_err(failed)?;
        let all = Moved { fetched: size, total: Some(size), written: 0 };
        self.events.event(Event::Moved(all));
        Ok(())
    }

    /// Hashes the first `len` bytes of `file`, and gives them to a receiver.
    fn hash(
        &self,
        file: &dyn ReadAt,
        len: u64,
        mut receiver: Option<&mut dyn Receiver>,
    ) -> Result<Verified, Error> {
        self.events.event(Event::Phase(Phase::Verifying));
        let mut verifier = Verifier::new(Vec::new());
        let mut buffer = vec![0; PART];
        for at in (0..len).step_by(PART) {
            self.refuse_stopped()?;
            let part = &mut buffer[..(len - at).min(PART as u64) as usize];
            let read = file.read_exact_at(part, at);
            read.map_err(|error| self.unreadable(bootyard_image::Error::write(error)))?;
            verifier.update(part);
            if let Some(receiver) = &mut receiver {
                receiver.data(part)?;
            }
        }
        Ok(verifier.finish().expect("nothing was expected"))
    }

    fn exported(
        self,
        verified: &Verified,
        allocated_bytes: Option<u64>,
    ) -> Result<Exported, Error> {
        let (virtual_size, source) = (self.disk.virtual_size(), self.source());
        let whole = Flat(self.disk);
        let fingerprint = self.collector.finish(virtual_size, Some(&whole));
        Ok(Exported {
            virtual_size,
            bytes: verified.source_len(),
            sha256: verified.sha256().clone(),
            fingerprint: fingerprint.map_err(|error| Error::image(error, &source, None))?,
            allocated_bytes,
        })
    }

    fn start(&self) -> Moved {
        Moved { fetched: 0, total: Some(self.disk.virtual_size()), written: 0 }
    }

    fn source(&self) -> Source {
        Source::File(self.request.disk.clone())
    }

    fn unreadable(&self, error: bootyard_image::Error) -> Error {
        Error::image(error, &self.source(), None)
    }

    fn refuse_stopped(&self) -> Result<(), Error> {
        match self.cancel.is_cancelled() {
            true => Err(Error::Cancelled { device: None, kept: None }),
            false => Ok(()),
        }
    }
}

/// Calls `each` with as many zeros as there are, in parts.
fn each_zeros(mut len: u64, mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    while len > 0 {
        let part = len.min(PART as u64);
        each(&ZEROS[..part as usize])?;
        len -= part;
    }
    Ok(())
}

/// A writer that can be stopped, beside which the fingerprint is taken.
struct Watched<'a, T> {
    cancel: &'a Cancel,
    collector: &'a Collector,
    writer: &'a qcow2::Writer<T>,
}

impl<T: WriteAt + ReadAt> Sink for Watched<'_, T> {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("stopped"));
        }
        self.collector.put(&piece);
        self.writer.put(piece)
    }
}

/// A file or a block device, from its beginning on.
struct File<'a> {
    staged: &'a Staged,
    at: u64,
    is_raw: bool,
}

impl File<'_> {
    fn put(&mut self, body: Body<'_>, len: u64) -> Result<(), Error> {
        let written = self.staged.put(Piece { offset: self.at, body });
        self.at += len;
        written.map_err(|error| {
            let name = self.staged.path().display().to_string();
            error
                .downcast::<volume::Error>()
                .map_or_else(|error| Error::Output { name, error }, Error::Target)
        })
    }
}

impl Receiver for File<'_> {
    /// Pages of zeros become holes of a raw disk, whose length the file has already.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if !self.is_raw {
            return self.put(Body::Data(bytes), bytes.len() as u64);
        }
        let is_zero = |page: &&[u8]| page.iter().all(|byte| *byte == 0);
        let mut rest = bytes;
        while let Some(first) = rest.chunks(PAGE).next() {
            let zero = is_zero(&first);
            let pages = rest.chunks(PAGE).take_while(|page| is_zero(page) == zero);
            let (run, behind) = rest.split_at(pages.map(<[u8]>::len).sum());
            rest = behind;
            match zero {
                true => self.put(Body::Zero(run.len() as u64), run.len() as u64)?,
                false => self.put(Body::Data(run), run.len() as u64)?,
            }
        }
        Ok(())
    }

    fn zeros(&mut self, len: u64) -> Result<(), Error> {
        self.put(Body::Zero(len), len)
    }
}

/// Anything that takes bytes.
struct Stream<'a> {
    stream: &'a mut dyn Write,
    name: String,
}

impl Receiver for Stream<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.stream.write_all(bytes);
        written.map_err(|error| Error::Output { name: self.name.clone(), error })
    }

    fn zeros(&mut self, len: u64) -> Result<(), Error> {
        each_zeros(len, |zeros| self.data(zeros))
    }
}

/// Opens the disk, which no machine may be writing to.
pub(crate) fn open(path: &Path, access: Access) -> Result<Box<dyn Disk>, Error> {
    let file = AttachedDisk::open_for(path, access)?;
    // A guest writes its own first sector: a raw disk is never asked what it is.
    if path.extension().is_none_or(|extension| extension != "qcow2") {
        return Ok(Box::new(Sparse(RawDisk::read_only(file))));
    }
    bootyard_image::open(file)
        .map_err(|error| Error::image(error, &Source::File(path.into()), None))
}

/// A raw disk that knows the holes of its file.
struct Sparse(RawDisk<AttachedDisk>);

impl Disk for Sparse {
    fn virtual_size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), bootyard_image::Error> {
        self.0.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, bootyard_image::Error> {
        let file = self.0.storage();
        if offset >= file.len() {
            return Ok(Extent { len: self.virtual_size() - offset, zero: true });
        }
        let found = file.hole_at(offset);
        let (len, zero) = found.map_err(|error| bootyard_image::Error::read(error, offset))?;
        Ok(Extent { len, zero })
    }
}

/// A disk as the guest sees it.
struct Flat<'a>(&'a dyn Disk);

impl ReadAt for Flat<'_> {
    fn len(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset).map_err(io::Error::other)
    }
}
