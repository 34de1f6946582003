//! The other way: a disk as a container image of one layer, which KubeVirt calls a containerDisk.
//!
//! ```text
//! disk ─► qcow2 in a spill file ─┐
//! raw disk ──────────────────────┴─► tar ─► digest ─► compression ─► digest ─► spill file ─► push
//! ```
//! A tar archive tells a file's length before its bytes, and a registry is asked for a blob by its
//! digest before any is sent: so both are made whole first, in nameless files. Memory does not grow
//! with the disk. The same disk and options give the same image.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use bootyard_image::{Disk, ReadAt, WriteAt, qcow2};
use bootyard_source::oci::{self, Content, NewImage};
use bootyard_source::{self as source};
use bootyard_spec::{Digest, OutputFormat, Platform, Source, Verifier};
use bootyard_volume::{Access, SpillFile};
use bytes::Bytes;
use jiff::Timestamp;

use crate::Error;
use crate::export::open;
use crate::run::runtime;

/// The user and the group that QEMU runs as in KubeVirt's pods.
const QEMU: u64 = 107;
/// Everything in a tar archive stands in blocks of so many bytes.
const BLOCK: u64 = 512;
/// How many bytes of the disk are read at once.
const PART: usize = 1 << 20;

/// A disk that shall become an image.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// The disk: qcow2 if the name says so, else raw.
    pub disk: PathBuf,
    /// How it is opened: [`Access::ReadAlone`] where many may write.
    pub access: Access,
    /// A registry, or a layout, with the image's name.
    pub target: Source,
    /// How the disk is stored in the layer.
    pub format: OutputFormat,
    /// How the layer is.
    pub compression: LayerCompression,
    /// What the disk is for.
    pub platform: Platform,
    /// Variables, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The time that is in the image, in seconds since 1970.
    pub created: i64,
    /// Where the layer is made.
    pub scratch: PathBuf,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// Not at all: what a compressed qcow2 needs.
    None,
    /// gzip, which every registry and runtime knows.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// The text names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression `{0}`; expected none, gzip or zstd")]
pub struct ParseLayerCompressionError(String);

impl LayerCompression {
    const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl FromStr for LayerCompression {
    type Err = ParseLayerCompressionError;

    fn from_str(text: &str) -> Result<Self, ParseLayerCompressionError> {
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(ParseLayerCompressionError(text.to_owned())),
        }
    }
}

/// An image that has been pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The digest of its layer.
    pub layer: Digest,
    /// The layer's length in bytes.
    pub layer_bytes: u64,
    /// The size of the disk in bytes.
    pub virtual_size: u64,
}

/// Makes the image and stores it. As [`run`](crate::run()) it must not be called from async code.
pub fn push(request: &PushRequest, options: &source::Options) -> Result<Pushed, Error> {
    let disk = open(&request.disk, request.access)?;
    let (name, stored): (&str, Box<dyn ReadAt>) = match request.format {
        OutputFormat::Raw => ("disk/disk.img", Box::new(Flat(disk.as_ref()))),
        format => ("disk/disk.qcow2", Box::new(convert(&*disk, format, &request.scratch)?)),
    };
    let layer = Layer::make(name, &*stored, request)?;
    let created = Timestamp::from_second(request.created).unwrap_or_default();
    let (digest, diff_id) = (layer.digest, layer.diff_id);
    let file = Arc::new(layer.file);
    let read = move |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).map(|()| bytes.into())
    };
    let image = NewImage {
        layer: Content { len: layer.len, read: Arc::new(read) },
        digest: digest.clone(),
        media_type: request.compression.media_type(),
        diff_id,
        platform: request.platform.clone(),
        env: request.env.clone(),
        labels: request.labels.clone(),
        created: created.to_string(),
    };
    let manifest = runtime()?.block_on(oci::push(&request.target, &image, options))?;
    let (layer_bytes, virtual_size) = (layer.len, disk.virtual_size());
    Ok(Pushed { digest: manifest, layer: digest, layer_bytes, virtual_size })
}

/// The disk as qcow2. One thread writes it, so that its clusters stand in the order of the disk.
fn convert(disk: &dyn Disk, format: OutputFormat, scratch: &Path) -> Result<SpillFile, Error> {
    let file = Arc::new(SpillFile::create_in(scratch)?);
    let compression = match format {
        OutputFormat::Qcow2Zstd => qcow2::Compression::Zstd,
        _ => qcow2::Compression::None,
    };
    let failed = |error| Error::image(error, &Source::File(scratch.into()), None);
    let options = qcow2::WriterOptions { compression };
    let writer = qcow2::Writer::with(Arc::clone(&file), disk.virtual_size(), options);
    let writer = writer.map_err(|error| failed(bootyard_image::Error::write(error)))?;
    bootyard_image::copy(disk, &writer, NonZeroUsize::MIN).map_err(failed)?;
    writer.finish().map_err(failed)?;
    drop(writer);
    Ok(Arc::into_inner(file).expect("the writer has been dropped"))
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

/// A layer that is whole.
struct Layer {
    file: SpillFile,
    len: u64,
    digest: Digest,
    diff_id: Digest,
}

impl Layer {
    fn make(name: &str, disk: &dyn ReadAt, request: &PushRequest) -> Result<Self, Error> {
        let file = SpillFile::create_in(&request.scratch)?;
        let sums = Sums::default();
        let stored = Counted { file: &file, at: 0, sum: &sums.stored };
        let written = match request.compression {
            LayerCompression::None => write_tar(stored, name, disk, request.created, &sums.plain),
            LayerCompression::Gzip => {
                let level = flate2::Compression::default();
                let packed = flate2::write::GzEncoder::new(stored, level);
                write_tar(packed, name, disk, request.created, &sums.plain)
                    .and_then(flate2::write::GzEncoder::finish)
            }
            LayerCompression::Zstd => zstd::Encoder::new(stored, zstd::DEFAULT_COMPRESSION_LEVEL)
                .and_then(|packed| write_tar(packed, name, disk, request.created, &sums.plain))
                .and_then(zstd::Encoder::finish),
        };
        let len = written.map_err(Error::Pack)?.at;
        let (digest, diff_id) = (finish(sums.stored), finish(sums.plain));
        Ok(Self { file, len, digest, diff_id })
    }
}

/// The digests of the layer as it is stored, and before it is compressed.
struct Sums {
    stored: Mutex<Verifier>,
    plain: Mutex<Verifier>,
}

impl Default for Sums {
    fn default() -> Self {
        let new = || Mutex::new(Verifier::new(Vec::new()));
        Self { stored: new(), plain: new() }
    }
}

fn update(sum: &Mutex<Verifier>, bytes: &[u8]) {
    sum.lock().unwrap_or_else(PoisonError::into_inner).update(bytes);
}

fn finish(sum: Mutex<Verifier>) -> Digest {
    let verifier = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    verifier.finish().expect("nothing is expected of it").sha256().clone()
}

/// Writes to a file from its beginning, and hashes what it writes.
struct Counted<'a> {
    file: &'a SpillFile,
    at: u64,
    sum: &'a Mutex<Verifier>,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        update(self.sum, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the folder and the disk in it, and gives `out` back.
fn write_tar<W: Write>(
    mut out: W,
    name: &str,
    disk: &dyn ReadAt,
    created: i64,
    sum: &Mutex<Verifier>,
) -> io::Result<W> {
    let mut write = |bytes: &[u8]| {
        update(sum, bytes);
        out.write_all(bytes)
    };
    let time = u64::try_from(created).unwrap_or_default();
    write(header("disk/", tar::EntryType::Directory, 0o555, 0, time)?.as_bytes())?;
    let len = disk.len();
    write(header(name, tar::EntryType::Regular, 0o440, len, time)?.as_bytes())?;
    let mut buffer = vec![0; PART];
    for at in (0..len).step_by(PART) {
        let part = &mut buffer[..(len - at).min(PART as u64) as usize];
        disk.read_exact_at(part, at)?;
        write(part)?;
    }
    let padding = len.next_multiple_of(BLOCK) - len;
    write(&Bytes::from_static(&[0; 3 * BLOCK as usize])[..(padding + 2 * BLOCK) as usize])?;
    Ok(out)
}

fn header(
    name: &str,
    kind: tar::EntryType,
    mode: u32,
    len: u64,
    time: u64,
) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(QEMU);
    header.set_gid(QEMU);
    header.set_mtime(time);
    header.set_size(len);
    header.set_cksum();
    Ok(header)
}
