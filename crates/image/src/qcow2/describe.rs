//! What an image says of itself.

use super::header::Header;
use crate::codec::Codec;
use crate::open::read_head;
use crate::{Error, Info, ReadAt};

/// Describes the image in `source`, also one that [`super::open`] would refuse.
pub(crate) fn describe(source: &dyn ReadAt, info: &mut Info) -> Result<(), Error> {
    let header = Header::parse(&read_head(source)?)?;
    info.virtual_size = Some(header.virtual_size);
    info.version = Some(header.version);
    info.cluster_size = Some(header.cluster_size());
    info.compression = Some(match header.codec {
        Codec::Deflate => "zlib",
        Codec::Zstd => "zstd",
    });
    info.refcount_bits = Some(header.refcount_bits);
    info.features = header.features();
    info.refused = header.refusal().map(|error| error.to_string());
    info.backing_file = header.backing_file;
    info.backing_format = header.backing_format;
    info.data_file = header.data_file;
    Ok(())
}
