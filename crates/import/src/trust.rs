//! Whether bytes that any file could be, a raw disk, may be taken for the one that was asked for.
//!
//! Other formats, and the containers round a disk, tell by themselves what they are and where they end,
//! and a digest proves it of all.
//! Not for what the first bytes show: that is the format's matter.

use bootyard_image::Format;
use bootyard_source::Object;
use bootyard_spec::ImportRequest;

use crate::Error;

/// Refuses a raw disk without a digest whose server calls it a text, or cannot tell its end.
pub(crate) fn refuse_dubious(
    request: &ImportRequest,
    chain: &[Format],
    object: &Object,
) -> Result<(), Error> {
    if chain != [Format::Raw] || request.checksum.is_some() || object.digest().is_some() {
        return Ok(());
    }
    let source_name = request.source.to_string();
    if let Some(content_type) = object.content_type().and_then(text_type) {
        return Err(Error::Text { source_name, content_type });
    }
    if object.ends_surely() { Ok(()) } else { Err(Error::UnsureEnd { source_name }) }
}

/// The media type without its parameters, if it is one of texts (RFC 9110 §8.3.1).
fn text_type(content_type: &str) -> Option<String> {
    let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
    media_type.starts_with("text/").then_some(media_type)
}
