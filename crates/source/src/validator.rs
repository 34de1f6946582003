//! What tells one version of an object from another (RFC 9110 §8.8).

use std::fmt;

use reqwest::header::{DATE, ETAG, HeaderMap, LAST_MODIFIED};

/// A strong validator: two answers with the same one hold the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Validator {
    /// A strong entity tag with its quotes.
    ETag(String),
    /// The time of the last change, as the server wrote it.
    LastModified(String),
}

impl Validator {
    /// The value for `If-Range`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ETag(value) | Self::LastModified(value) => value,
        }
    }

    /// The strong entity tag, or else the time of the last change. A weak tag (`W/`) says nothing
    /// about bytes, and a change in the very second of the answer may be followed by another one
    /// in that second (§8.8.2.2): neither counts.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(tag) = text(ETAG).filter(|tag| tag.starts_with('"')) {
            return Some(Self::ETag(tag.to_owned()));
        }
        let modified = text(LAST_MODIFIED).filter(|modified| text(DATE) != Some(modified))?;
        Some(Self::LastModified(modified.to_owned()))
    }
}

impl fmt::Display for Validator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ETag(tag) => write!(f, "ETag {tag}"),
            Self::LastModified(time) => write!(f, "Last-Modified {time}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_strong_validators_count() {
        const MONDAY: &str = "Mon, 02 Jun 2025 10:00:00 GMT";
        const TUESDAY: &str = "Tue, 03 Jun 2025 10:00:00 GMT";
        let tag = |tag: &str| Some(Validator::ETag(tag.to_owned()));
        let modified = |time: &str| Some(Validator::LastModified(time.to_owned()));
        for (pairs, expected) in [
            (&[][..], None),
            (&[("etag", "\"a\"")], tag("\"a\"")),
            (&[("etag", "W/\"a\"")], None),
            (&[("etag", "W/\"a\""), ("last-modified", MONDAY)], modified(MONDAY)),
            (&[("last-modified", MONDAY), ("date", MONDAY)], None),
            (&[("last-modified", MONDAY), ("date", TUESDAY)], modified(MONDAY)),
        ] {
            let headers = pairs.iter().map(|(name, value)| {
                (name.parse::<reqwest::header::HeaderName>().unwrap(), value.parse().unwrap())
            });
            assert_eq!(Validator::from_headers(&headers.collect()), expected, "{pairs:?}");
        }
    }
}
