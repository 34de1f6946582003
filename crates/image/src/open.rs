//! Opens and describes an image of whatever format it has.

use crate::codec::Codec;
use crate::qcow2;
use crate::raw::RawDisk;
use crate::sniff::{HEAD_LEN, refuse_text};
use crate::stream::refuse_polyglot;
use crate::{Disk, Error, ErrorKind, Format, ReadAt, sniff};

/// Opens the image in `source` for reading, whatever its format.
pub fn open<R: ReadAt + 'static>(source: R) -> Result<Box<dyn Disk>, Error> {
    let head = read_head(&source)?;
    match sniff(&head) {
        Format::Qcow2 => {
            refuse_polyglot(&head)?;
            Ok(Box::new(qcow2::open(source)?))
        }
        Format::Raw => {
            refuse_text(head.get(..HEAD_LEN).unwrap_or(&head))?;
            Ok(Box::new(RawDisk::read_only(source)))
        }
        other => Err(other.refusal().unwrap_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("`{other}` images are not supported"))
        })),
    }
}

/// What an image's head says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The format.
    pub format: Format,
    /// The disk's size in bytes, if it is known without decoding.
    pub virtual_size: Option<u64>,
    /// The format's version, where it counts them.
    pub version: Option<u32>,
    /// The bytes of a cluster, where the format has them.
    pub cluster_size: Option<u64>,
    /// How clusters that are compressed are compressed.
    pub compression: Option<&'static str>,
    /// The bits of a refcount, where the format has them.
    pub refcount_bits: Option<u32>,
    /// Features that are in use, by the names that `qemu-img` gives them.
    pub features: Vec<&'static str>,
    /// How many internal snapshots there are. They are not read.
    pub snapshots: u32,
    /// The file that the image is an overlay over, made fit for a terminal.
    pub backing_file: Option<String>,
    /// That file's format.
    pub backing_format: Option<String>,
    /// The file that holds the guest's data, made fit for a terminal.
    pub data_file: Option<String>,
    /// Why [`open`] does not open the image, in one line.
    pub refused: Option<String>,
}

/// Describes the image in `source` from its first bytes, also if [`open`] would refuse it. Fails
/// if the bytes are no image, or break the rules of their format.
pub fn inspect(source: &dyn ReadAt) -> Result<Info, Error> {
    let head = read_head(source)?;
    let format = sniff(&head);
    let mut info = Info {
        format,
        virtual_size: None,
        version: None,
        cluster_size: None,
        compression: None,
        refcount_bits: None,
        features: Vec::new(),
        snapshots: 0,
        backing_file: None,
        backing_format: None,
        data_file: None,
        refused: format.refusal().map(|error| error.to_string()),
    };
    match format {
        Format::Raw => {
            refuse_text(head.get(..HEAD_LEN).unwrap_or(&head))?;
            info.virtual_size = Some(crate::raw::round_up(source.len()));
        }
        Format::Qcow2 => {
            refuse_polyglot(&head)?;
            describe_qcow2(&mut info, qcow2::Header::parse(&head)?);
        }
        _ => {}
    }
    Ok(info)
}

fn describe_qcow2(info: &mut Info, header: qcow2::Header) {
    info.virtual_size = Some(header.virtual_size);
    info.version = Some(header.version);
    info.cluster_size = Some(header.cluster_size());
    info.compression = Some(match header.codec {
        Codec::Deflate => "zlib",
        Codec::Zstd => "zstd",
    });
    info.refcount_bits = Some(header.refcount_bits);
    info.features = header.features();
    info.snapshots = header.snapshots;
    info.refused = header.refusal().map(|error| error.to_string());
    info.backing_file = header.backing_file;
    info.backing_format = header.backing_format;
    info.data_file = header.data_file;
}

/// The first bytes, as many as any header needs.
pub(crate) fn read_head(source: &(impl ReadAt + ?Sized)) -> Result<Vec<u8>, Error> {
    let mut head = vec![0; source.len().min(qcow2::HEADER_MAX as u64) as usize];
    source.read_exact_at(&mut head, 0).map_err(|error| Error::read(error, 0))?;
    Ok(head)
}
