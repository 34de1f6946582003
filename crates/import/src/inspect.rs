//! Telling what an image is without importing it.

use std::io;

use bootyard_image::{Format, Info, ReadAt, sniff};
use bootyard_source as source;
use bootyard_spec::Source;

use crate::Error;
use crate::run::runtime;

/// More than the header of any format has.
const HEAD_MAX: usize = 1 << 20;

/// The head of a source: all that a description needs, whether or not the source serves ranges.
struct Head {
    bytes: Vec<u8>,
    /// The length of the whole source; of the head alone, if the source does not tell.
    len: u64,
}

impl ReadAt for Head {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.read_exact_at(buf, offset)
    }
}

/// Describes the image that `source` holds, also one that an import would refuse. Reads its first
/// bytes only.
///
/// Needs [`source::install_crypto_provider`] to have been called, and must not be called from
/// async code.
pub fn inspect(source: &Source, options: &source::Options) -> Result<Info, Error> {
    let (head, len) = runtime()?.block_on(read_head(source, options))?;
    let looks_like = (!head.is_empty()).then(|| sniff(&head));
    let head = Head { len: len.unwrap_or(head.len() as u64), bytes: head };
    let mut info =
        bootyard_image::inspect(&head).map_err(|error| Error::image(error, source, looks_like))?;
    if len.is_none() && info.format == Format::Raw {
        info.virtual_size = None;
    }
    Ok(info)
}

/// The first bytes of the source, as many as any format's header has, and its length.
async fn read_head(
    source: &Source,
    options: &source::Options,
) -> Result<(Vec<u8>, Option<u64>), Error> {
    let mut object = source::open(source, options).await?;
    let mut head = Vec::new();
    while head.len() < HEAD_MAX
        && let Some(chunk) = object.next().await?
    {
        let missing = HEAD_MAX - head.len();
        head.extend_from_slice(&chunk[..chunk.len().min(missing)]);
    }
    Ok((head, object.len()))
}
