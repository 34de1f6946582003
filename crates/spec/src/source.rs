//! Where the bytes of a disk come from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{ParseNameError, ParseUrlError, SafeUrl, VolumeName};

/// A source of bytes, as the user names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A local file or block device: `file:PATH`, or a plain path.
    File(PathBuf),
    /// `http://…` or `https://…`.
    Http(SafeUrl),
    /// `s3://BUCKET/KEY`.
    S3(ObjectName),
    /// `gs://BUCKET/OBJECT`.
    Gcs(ObjectName),
    /// An image of a registry, without the `docker://` before it: `[HOST/]NAME[:TAG][@DIGEST]`.
    Registry(String),
    /// An image in a local folder or archive.
    Stored(StoredImage),
    /// Standard input: `-`.
    Stdin,
    /// A volume of the store: `volume:NAME`.
    Volume(VolumeName),
    /// Nothing but zeros: `blank`.
    Blank,
    /// What a client sends, in the words for messages: `upload from 10.0.0.7`. No text is parsed to it.
    Upload(String),
}

/// An object in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key, without a slash before it.
    pub key: String,
}

/// A container image at rest, named as containers-transports(5) does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredImage {
    /// How it is stored.
    pub layout: ImageLayout,
    /// The folder or the archive.
    pub path: PathBuf,
    /// Which of its images; needed only if there are more than one.
    pub reference: Option<String>,
}

/// How a container image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageLayout {
    /// `oci:PATH[:REFERENCE]`: a folder in the OCI image layout.
    Oci,
    /// `oci-archive:PATH[:REFERENCE]`: the same as a tar archive.
    OciArchive,
    /// `docker-archive:PATH[:REFERENCE]`: what `docker save` writes.
    DockerArchive,
}

impl ImageLayout {
    const ALL: [Self; 3] = [Self::Oci, Self::OciArchive, Self::DockerArchive];

    /// The scheme before the path, without its colon.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSourceError {
    /// Nothing was given.
    #[error("the source is empty")]
    Empty,
    /// A scheme that this version cannot read from.
    #[error(
        "unsupported source scheme `{0}`; expected http, https, s3, gs, docker, oci, oci-archive, \
         docker-archive, volume or file"
    )]
    Scheme(String),
    /// A broken URL.
    #[error(transparent)]
    Url(#[from] ParseUrlError),
    /// `file://host/path`.
    #[error("`file:` names a path on this machine; `{0}` names another host")]
    FileHost(String),
    /// An object without its bucket or key.
    #[error("expected {scheme}://BUCKET/KEY, got `{text}`")]
    Object {
        /// The scheme.
        scheme: &'static str,
        /// What was given.
        text: String,
    },
    /// `docker:` without the slashes, or without an image behind them.
    #[error("expected docker://[HOST/]NAME[:TAG][@DIGEST], got `{0}`")]
    Image(String),
    /// `volume:` without the name of a volume behind it.
    #[error(transparent)]
    Volume(#[from] ParseNameError),
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        match text {
            "" => return Err(ParseSourceError::Empty),
            "-" => return Ok(Self::Stdin),
            "blank" | "blank:" => return Ok(Self::Blank),
            _ => {}
        }
        let Some(scheme) = scheme_of(text) else {
            return Ok(Self::File(text.into()));
        };
        let rest = &text[scheme.len() + 1..];
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Ok(Self::Http(text.parse()?)),
            "file" => file_path(rest),
            "s3" => object("s3", rest).map(Self::S3),
            "gs" => object("gs", rest).map(Self::Gcs),
            "docker" => match rest.strip_prefix("//") {
                Some(image) if !image.is_empty() => Ok(Self::Registry(image.to_owned())),
                _ => Err(ParseSourceError::Image(text.to_owned())),
            },
            "volume" => Ok(Self::Volume(rest.parse()?)),
            scheme => match ImageLayout::ALL.into_iter().find(|kind| kind.scheme() == scheme) {
                Some(layout) => stored(layout, rest).map(Self::Stored),
                None => Err(ParseSourceError::Scheme(scheme.to_owned())),
            },
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

/// The bucket is all before the first slash; everything behind it, further slashes too, is the key.
fn object(scheme: &'static str, rest: &str) -> Result<ObjectName, ParseSourceError> {
    let parts = rest.strip_prefix("//").and_then(|rest| rest.split_once('/'));
    match parts.filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty()) {
        Some((bucket, key)) => Ok(ObjectName { bucket: bucket.to_owned(), key: key.to_owned() }),
        None => Err(ParseSourceError::Object { scheme, text: format!("{scheme}:{rest}") }),
    }
}

/// The path ends at the first colon, as containers-transports(5) has it.
fn stored(layout: ImageLayout, rest: &str) -> Result<StoredImage, ParseSourceError> {
    let (path, reference) = match rest.split_once(':') {
        Some((path, reference)) => (path, Some(reference).filter(|text| !text.is_empty())),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ParseSourceError::Empty);
    }
    Ok(StoredImage { layout, path: path.into(), reference: reference.map(str::to_owned) })
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Http(url) => write!(f, "{url}"),
            Self::S3(name) => write!(f, "s3://{name}"),
            Self::Gcs(name) => write!(f, "gs://{name}"),
            Self::Registry(image) => write!(f, "docker://{image}"),
            Self::Stored(image) => write!(f, "{image}"),
            Self::Stdin => f.write_str("standard input"),
            Self::Volume(name) => write!(f, "volume:{name}"),
            Self::Blank => f.write_str("blank"),
            Self::Upload(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

impl fmt::Display for StoredImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.layout.scheme(), self.path.display())?;
        self.reference.as_ref().map_or(Ok(()), |reference| write!(f, ":{reference}"))
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
            ("./blank", file("./blank")),
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

    #[test]
    fn every_kind_of_source_is_shown_as_it_was_named() {
        for text in [
            "s3://bucket/folder/key.qcow2",
            "gs://bucket/key",
            "docker://quay.io/containerdisks/fedora:41",
            "docker://h:5000/x@sha256:00",
            "oci:/images/layout",
            "oci-archive:disk.tar:v1",
            "docker-archive:disk.tar:x/y:v1",
            "volume:debian",
            "blank",
        ] {
            let source: Source = text.parse().unwrap();
            assert!(!matches!(source, Source::File(_)), "{text}");
            assert_eq!(source.to_string(), text);
        }
        assert_eq!("-".parse(), Ok(Source::Stdin));
        for text in
            ["s3://bucket", "s3:///key", "s3:x/y", "gs://b/", "docker:x", "docker://", "oci:"]
        {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
        assert!("volume:Not_a_name".parse::<Source>().is_err());
    }
}
