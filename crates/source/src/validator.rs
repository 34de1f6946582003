//! What tells one version of an object from another (RFC 9110 §8.8).

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use reqwest::header::{DATE, ETAG, HeaderMap, LAST_MODIFIED};

/// A strong validator: two answers with the same one hold the same bytes. `Display` and `FromStr`
/// are a stable form of one line, for journals.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Validator {
    /// A strong entity tag with its quotes.
    ETag(String),
    /// The time of the last change, as the server wrote it.
    LastModified(String),
    /// What the file system tells of a regular file.
    File {
        /// The length in bytes.
        len: u64,
        /// The time of the last change in nanoseconds since 1970.
        modified: i128,
        /// The file's number within its file system: another file that was renamed to this path
        /// has another one.
        inode: u64,
    },
}

/// The text is not one that [`Validator`] shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an `ETag`, `Last-Modified` or `File`, got `{0}`")]
pub struct ParseValidatorError(String);

impl Validator {
    /// The value for `If-Range`; a file has none.
    pub(crate) fn if_range(&self) -> Option<&str> {
        match self {
            Self::ETag(value) | Self::LastModified(value) => Some(value),
            Self::File { .. } => None,
        }
    }

    /// What tells a regular file's version. A block device has nothing of the kind.
    pub(crate) fn of_file(metadata: &std::fs::Metadata) -> Option<Self> {
        let second = i128::from(metadata.mtime()) * 1_000_000_000;
        let modified = second + i128::from(metadata.mtime_nsec());
        let (len, inode) = (metadata.len(), metadata.ino());
        metadata.is_file().then_some(Self::File { len, modified, inode })
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
            Self::File { len, modified, inode } => {
                write!(f, "File len={len} modified={modified} inode={inode}")
            }
        }
    }
}

impl FromStr for Validator {
    type Err = ParseValidatorError;

    fn from_str(text: &str) -> Result<Self, ParseValidatorError> {
        parse(text).ok_or_else(|| ParseValidatorError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Validator> {
    match text.split_once(' ')? {
        ("ETag", tag) if tag.starts_with('"') => Some(Validator::ETag(tag.to_owned())),
        ("Last-Modified", time) => Some(Validator::LastModified(time.to_owned())),
        ("File", facts) => {
            let (len, rest) = facts.strip_prefix("len=")?.split_once(" modified=")?;
            let (modified, inode) = rest.split_once(" inode=")?;
            let (len, inode) = (len.parse().ok()?, inode.parse().ok()?);
            Some(Validator::File { len, modified: modified.parse().ok()?, inode })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validator_is_read_as_it_is_shown() {
        for text in [
            "ETag \"a b\"",
            "Last-Modified Mon, 02 Jun 2025 10:00:00 GMT",
            "File len=10 modified=1748858400000000001 inode=7",
            "File len=0 modified=-1 inode=18446744073709551615",
        ] {
            assert_eq!(text.parse::<Validator>().unwrap().to_string(), text);
        }
        for text in ["", "ETag", "ETag W/\"a\"", "File len=1", "File len=x modified=1 inode=1"] {
            assert_eq!(text.parse::<Validator>(), Err(ParseValidatorError(text.to_owned())));
        }
    }

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
