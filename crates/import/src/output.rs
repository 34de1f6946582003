//! Where the decoded disk goes: raw into the staged target, or as qcow2 into it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bootyard_image::fingerprint::Collector;
use bootyard_image::{Body, Piece, ReadAt, Sink, WriteAt, qcow2};
use bootyard_spec::OutputFormat;
use bootyard_volume as volume;
use bootyard_volume::Staged;

use crate::Cancel;

/// The end of a volume is zeroed in steps of this many bytes: between them the import can be stopped.
const TAIL_STEP: u64 = 1 << 30;

/// The first failure of the storage, in its own words. A decoder passes on an [`io::Error`] only,
/// so it is noted where it happens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    error: Mutex<Option<volume::Error>>,
    is_set: AtomicBool,
}

impl Fault {
    /// The failure, if there was one.
    pub(crate) fn take(&self) -> Option<volume::Error> {
        self.0.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether there was one.
    fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed)
    }

    pub(crate) fn note(&self, error: volume::Error) {
        self.0.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.0.is_set.store(true, Ordering::Relaxed);
    }

    /// Passes `result` on. Of an error that carries the storage's own, only the kind goes on.
    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            match error.downcast::<volume::Error>() {
                Ok(own) => {
                    self.note(own);
                    kind.into()
                }
                Err(other) => other,
            }
        })
    }
}

/// Storage whose failures are noted.
pub(crate) struct Watched<T> {
    storage: Arc<T>,
    fault: Fault,
}

impl<T> Watched<T> {
    pub(crate) const fn new(storage: Arc<T>, fault: Fault) -> Self {
        Self { storage, fault }
    }
}

impl<T: ReadAt> ReadAt for Watched<T> {
    fn len(&self) -> u64 {
        self.storage.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.fault.watch(self.storage.read_exact_at(buf, offset))
    }
}

impl<T: WriteAt> WriteAt for Watched<T> {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.fault.watch(self.storage.write_all_at(data, offset))
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.fault.watch(self.storage.zero_at(len, offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.fault.watch(self.storage.sync())
    }
}

impl<T: Sink> Sink for Watched<T> {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        self.fault.watch(self.storage.put(piece))
    }
}

/// Takes the disk's pieces, counts what they hold, and refuses those beyond a limit, and all once
/// the import is stopped.
pub(crate) struct Output {
    form: Form,
    limit: u64,
    beyond: AtomicBool,
    written: AtomicU64,
    cancel: Cancel,
    /// What went wrong with the storage elsewhere.
    fault: Fault,
    /// Takes the fingerprint of the disk; `None` if a part of it was stored by another process.
    collector: Option<Collector>,
}

enum Form {
    Raw(Watched<Staged>),
    Qcow2(Box<qcow2::Writer<Watched<Staged>>>),
}

impl Output {
    /// An output for a disk of at most `limit` bytes, on a volume of `volume_size` bytes.
    pub(crate) fn new(
        format: OutputFormat,
        staged: Watched<Staged>,
        volume_size: u64,
        limit: u64,
        cancel: Cancel,
        collector: Option<Collector>,
    ) -> io::Result<Self> {
        let fault = staged.fault.clone();
        let qcow2 = |staged, compression| {
            let options = qcow2::WriterOptions { compression };
            let writer = qcow2::Writer::with(staged, volume_size, options)?;
            Ok::<_, io::Error>(Form::Qcow2(Box::new(writer)))
        };
        let form = match format {
            OutputFormat::Raw => Form::Raw(staged),
            OutputFormat::Qcow2 => qcow2(staged, qcow2::Compression::None)?,
            OutputFormat::Qcow2Zstd => qcow2(staged, qcow2::Compression::Zstd)?,
        };
        let (beyond, written) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { form, limit, beyond, written, cancel, fault, collector })
    }

    /// How many bytes of data have been written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether the disk was larger than the limit.
    pub(crate) fn is_beyond_limit(&self) -> bool {
        self.beyond.load(Ordering::Relaxed)
    }

    /// Ends the disk, which had `virtual_size` bytes, with zeros up to the volume's end. Gives back
    /// what has taken the fingerprint.
    pub(crate) fn finish(
        self,
        virtual_size: u64,
        volume_size: u64,
    ) -> Result<Option<Collector>, bootyard_image::Error> {
        match &self.form {
            Form::Raw(target) => self
                .zero_tail(target, virtual_size, volume_size)
                .map_err(bootyard_image::Error::write)?,
            // What is not stored in a qcow2 file reads as zeros.
            Form::Qcow2(writer) => writer.finish()?,
        }
        if let Some(collector) = &self.collector {
            let tail = Body::Zero(volume_size.saturating_sub(virtual_size));
            collector.put(&Piece { offset: virtual_size, body: tail });
        }
        Ok(self.collector)
    }

    fn zero_tail(&self, target: &Watched<Staged>, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            self.refuse_stopped()?;
            let len = (end - offset).min(TAIL_STEP);
            target.put(Piece { offset, body: Body::Zero(len) })?;
            offset += len;
        }
        Ok(())
    }

    /// Makes whoever stores end. The error is never shown: the switch, or the fault, says why.
    fn refuse_stopped(&self) -> io::Result<()> {
        let stopped = self.cancel.is_cancelled() || self.fault.is_set();
        if stopped { Err(io::Error::other("stopped")) } else { Ok(()) }
    }
}

impl Sink for Output {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        self.refuse_stopped()?;
        let len = match piece.body {
            Body::Data(data) => data.len() as u64,
            Body::Zero(len) => len,
        };
        if piece.offset.saturating_add(len) > self.limit {
            self.beyond.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Some(collector) = &self.collector {
            collector.put(&piece);
        }
        match &self.form {
            Form::Raw(target) => target.put(piece),
            Form::Qcow2(writer) => writer.put(piece),
        }?;
        if matches!(piece.body, Body::Data(_)) {
            self.written.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (written, limit) = (self.written(), self.limit);
        f.debug_struct("Output")
            .field("limit", &limit)
            .field("written", &written)
            .finish_non_exhaustive()
    }
}
