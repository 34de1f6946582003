//! The digest of an image out of the file of checksums that is published beside it.

use bootyard_source::{self as source, checksums, open};
use bootyard_spec::{Digest, Source};

use crate::run::runtime;
use crate::transfer::unless;
use crate::{Cancel, Error};

/// The most bytes of such a file: the largest that distributions publish have a few hundred KiB.
const LIST_MAX: usize = 16 << 20;

/// Reads the digest of `image` in the list of checksums `list`. The options' credentials and headers
/// are for the image: a list of another scheme, host or port is asked for without them.
///
/// # Errors
///
/// If the list cannot be read, is too large, or does not name the image, and where `cancel` stops it.
pub fn published_checksum(
    list: &Source,
    image: &Source,
    options: &source::Options,
    cancel: &Cancel,
) -> Result<Digest, Error> {
    let mut options = options.clone();
    if !is_same_origin(list, image) {
        options.credentials = None;
        options.headers.clear();
    }
    let text = runtime()?.block_on(unless(cancel, read(list, &options)))??;
    checksums::find(&text, file_name(image)).map_err(|error| Error::ChecksumFile {
        list_name: list.to_string(),
        error: Box::new(error),
    })
}

async fn read(list: &Source, options: &source::Options) -> Result<String, Error> {
    let mut object = open(list, options).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = object.next().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LIST_MAX {
            return Err(Error::ChecksumFileTooLarge { list_name: list.to_string() });
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether what is meant for the image's server goes to the same one for the list.
fn is_same_origin(list: &Source, image: &Source) -> bool {
    match (list, image) {
        (Source::Http(list), Source::Http(image)) => {
            list.expose().origin() == image.expose().origin()
        }
        (Source::S3(_), Source::S3(_)) | (Source::Gcs(_), Source::Gcs(_)) => true,
        _ => false,
    }
}

/// What the publisher calls the image; empty if nobody named it.
fn file_name(image: &Source) -> &str {
    match image {
        Source::File(path) => path.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        Source::Http(url) => url.file_name().unwrap_or_default(),
        Source::S3(object) | Source::Gcs(object) => {
            object.key.rsplit('/').next().unwrap_or_default()
        }
        _ => "",
    }
}
