//! The parts of a MIME document, with the line of each whose content stands there as it is.

use crate::parts::{Header, split};

/// A MIME document.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) is_multipart: bool,
    /// Its parts; what is not multipart is its own only part.
    pub(super) parts: Vec<Entity>,
}

/// One part.
#[derive(Debug)]
pub(super) struct Entity {
    /// The media type in lower case, without parameters.
    pub(super) content_type: String,
    /// The bytes; or why there are none.
    pub(super) content: Result<Vec<u8>, String>,
    /// How many lines of the document come before the content, if it stands there as it is.
    pub(super) lines: Option<usize>,
}

/// Takes a document apart. What is a part and has parts again keeps them in its content.
pub(super) fn parse(document: &[u8]) -> Document {
    let (header, body) = Header::read(document);
    let is_multipart = header.content_type().starts_with("multipart/");
    if !is_multipart {
        return Document { is_multipart, parts: vec![entity(document, 0)] };
    }
    let boundary = header.parameter("content-type", "boundary").unwrap_or_default();
    let bodies = if boundary.is_empty() { Vec::new() } else { split(body, boundary.as_bytes()) };
    // They follow each other in the document, with a boundary's line between them.
    let (mut at, mut lines) = (0, 0);
    let mut parts = Vec::with_capacity(bodies.len());
    for part in bodies {
        let begin = part.as_ptr().addr() - document.as_ptr().addr();
        lines += line_ends(&document[at..begin]);
        at = begin;
        parts.push(entity(part, lines));
    }
    Document { is_multipart, parts }
}

/// `before` is how many lines of the document come before it.
fn entity(document: &[u8], before: usize) -> Entity {
    let (header, body) = Header::read(document);
    let content_type = header.content_type();
    if content_type.starts_with("multipart/") {
        // It needs its header to be taken apart in turn.
        return Entity { content_type, content: Ok(document.to_vec()), lines: Some(before) };
    }
    let encoding = header.field("content-transfer-encoding").unwrap_or_default();
    let is_plain = !["base64", "quoted-printable"].iter().any(|n| encoding.eq_ignore_ascii_case(n));
    let lines = before + line_ends(&document[..document.len() - body.len()]);
    Entity { content_type, content: header.decode(body), lines: is_plain.then_some(lines) }
}

fn line_ends(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}
