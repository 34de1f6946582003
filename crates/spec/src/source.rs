//! Where the bytes of a disk come from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{ParseUrlError, SafeUrl};

/// A source of bytes, as the user names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A local file: `file:PATH`, or a plain path.
    File(PathBuf),
    /// `http://…` or `https://…`.
    Http(SafeUrl),
}

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSourceError {
    /// Nothing was given.
    #[error("the source is empty")]
    Empty,
    /// A scheme that this version cannot read from.
    #[error("unsupported source scheme `{0}`; expected http, https or file")]
    Scheme(String),
    /// A broken URL.
    #[error(transparent)]
    Url(#[from] ParseUrlError),
    /// `file://host/path`.
    #[error("`file:` names a path on this machine; `{0}` names another host")]
    FileHost(String),
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        if text.is_empty() {
            return Err(ParseSourceError::Empty);
        }
        let Some(scheme) = scheme_of(text) else {
            return Ok(Self::File(text.into()));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Ok(Self::Http(text.parse()?)),
            "file" => file_path(&text["file:".len()..]),
            _ => Err(ParseSourceError::Scheme(scheme.to_owned())),
        }
    }
}

/// The scheme of a URL or of a `scheme:rest` reference (RFC 3986 §3.1), or `None` for a plain path:
/// what has a slash before its first colon, or no colon.
fn scheme_of(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let mut characters = scheme.chars();
    let first_fits = characters.next().is_some_and(|c| c.is_ascii_alphabetic());
    let fits = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (first_fits && characters.all(fits)).then_some(scheme)
}

fn file_path(rest: &str) -> Result<Source, ParseSourceError> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(authority) => {
            let path = authority.strip_prefix("localhost").unwrap_or(authority);
            if !path.starts_with('/') {
                return Err(ParseSourceError::FileHost(format!("file:{rest}")));
            }
            path
        }
    };
    if path.is_empty() { Err(ParseSourceError::Empty) } else { Ok(Source::File(path.into())) }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Http(url) => write!(f, "{url}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_paths_from_urls() {
        let file = |path: &str| Ok(Source::File(path.into()));
        for (text, expected) in [
            ("disk.qcow2", file("disk.qcow2")),
            ("./a:b", file("./a:b")),
            ("/x/a:b", file("/x/a:b")),
            ("file:a", file("a")),
            ("file:///x", file("/x")),
            ("file://localhost/x", file("/x")),
            ("file://other/x", Err(ParseSourceError::FileHost("file://other/x".into()))),
            ("file:", Err(ParseSourceError::Empty)),
            ("", Err(ParseSourceError::Empty)),
            ("ftp://h/x", Err(ParseSourceError::Scheme("ftp".into()))),
        ] {
            assert_eq!(text.parse::<Source>(), expected, "{text}");
        }
        assert!(matches!("HTTPS://h/x".parse(), Ok(Source::Http(_))));
    }
}
