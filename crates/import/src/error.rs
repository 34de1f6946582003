//! Why an import failed: the first cause, with the source and the target that it is about.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;

use bootyard_image::{ErrorKind, Format};
use bootyard_source as source;
use bootyard_source::checksums::ChecksumsError;
use bootyard_spec::{ByteSize, Class, Explain, Source, VerifyError, shell_word};
use bootyard_volume as volume;

use crate::cache::Cache;
use crate::plan::SIZE_MAX;

/// A failed import or inspection. Whatever it is, nothing new stands under the target's
/// name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source cannot be reached or read, or broke off.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The source's bytes are not an image that can be read.
    #[error("cannot read `{source_name}` as a disk image", source_name = .0.source_name)]
    Image(#[source] Box<ImageError>),
    /// The target cannot be claimed, written or published.
    #[error(transparent)]
    Target(#[from] volume::Error),
    /// The source's bytes are not the ones that the digest is of.
    #[error("`{source_name}` is not the file that was asked for")]
    Checksum {
        /// The source, without its secrets.
        source_name: String,
        /// Both digests.
        #[source]
        error: VerifyError,
    },
    /// The copy in the cache was damaged, and has been removed.
    #[error("the copy of `{source_name}` in the cache was damaged, and is removed now")]
    CacheDamaged {
        /// The source, without its secrets.
        source_name: String,
        /// Both digests.
        #[source]
        error: VerifyError,
    },
    /// The published checksums do not tell the image's.
    #[error("`{list_name}` does not tell the image's checksum")]
    ChecksumFile {
        /// The file of checksums, without its secrets.
        list_name: String,
        /// What it holds instead.
        #[source]
        error: Box<ChecksumsError>,
    },
    /// What was named as published checksums is something else.
    #[error("`{list_name}` is too large for a file of checksums: expected at most 16Mi")]
    ChecksumFileTooLarge {
        /// The file, without its secrets.
        list_name: String,
    },
    /// The asked size is smaller than the image's disk.
    #[error("the asked size {size} is too small: the image holds a disk of {virtual_size}")]
    SizeTooSmall {
        /// The size of the image's disk.
        virtual_size: ByteSize,
        /// The asked size.
        size: ByteSize,
    },
    /// The image's disk is larger than what is accepted.
    #[error("the image holds a disk of {virtual_size}; expected at most {max_size}")]
    TooLarge {
        /// The size of the image's disk.
        virtual_size: ByteSize,
        /// The largest that is accepted.
        max_size: ByteSize,
    },
    /// The disk turned out to be larger than what is accepted, while it came.
    #[error("`{source_name}` holds more than the {limit} that are accepted")]
    BeyondLimit {
        /// The source, without its secrets.
        source_name: String,
        /// The largest that is accepted.
        limit: ByteSize,
    },
    /// The size of the disk must be known at the start, and is not.
    #[error("`{source_name}` does not tell its length, which a qcow2 volume needs")]
    UnknownSize {
        /// The source, without its secrets.
        source_name: String,
    },
    /// A raw disk from a server that marks no end, and no digest to compare with.
    #[error("`{source_name}` does not tell where it ends, so that a part of it would look whole")]
    UnsureEnd {
        /// The source, without its secrets.
        source_name: String,
    },
    /// What no format claims is a text by its server's word, and there is no digest to prove it not.
    #[error("`{source_name}` is a `{content_type}` by its server; expected a disk image")]
    Text {
        /// The source, without its secrets.
        source_name: String,
        /// The media type.
        content_type: String,
    },
    /// A container image without a disk, or with several.
    #[error(
        "`{source_name}` holds no disk: expected one file in `/disk`, got {}",
        list(.names)
    )]
    NoDisk {
        /// The image.
        source_name: String,
        /// What is at its root, or the files of an artifact.
        names: Vec<String>,
    },
    /// The volume would be larger than a qcow2 file can be.
    #[error("a qcow2 volume cannot have {size}: expected at most {limit}")]
    TooLargeForQcow2 {
        /// The volume's size.
        size: ByteSize,
        /// The largest that can be stored.
        limit: ByteSize,
    },
    /// A volume of nothing has no size by itself.
    #[error("a blank volume needs a size")]
    BlankSize,
    /// What a qcow2 volume holds is not changed once it is written.
    #[error("the partition table of a qcow2 volume cannot be changed on the way")]
    GptInQcow2,
    /// The user stopped it.
    #[error("the import was stopped")]
    Cancelled {
        /// The block device that lost its old contents by then, if it is the target.
        device: Option<PathBuf>,
        /// What the next attempt need not fetch again.
        kept: Option<Share>,
    },
    /// The source broke off, or the target is full, and the next attempt goes on there.
    #[error(transparent)]
    BrokenOff(Box<BrokenOff>),
    /// The target is the source itself.
    #[error("target `{}` is the source itself", .path.display())]
    SameFile {
        /// The target.
        path: PathBuf,
    },
    /// An image cannot lie over itself.
    #[error("`{}` is named twice: an image is read with other files than itself", .path.display())]
    NamedTwice {
        /// The file.
        path: PathBuf,
    },
    /// Only a file can be read together with others.
    #[error("`{source_name}` is no file of this machine: it can only be read by itself, as it is")]
    NotLocal {
        /// The source, without its secrets.
        source_name: String,
    },
    /// An image that does not need what was given besides.
    #[error("`{}` {what}", .path.display())]
    Unneeded {
        /// The image.
        path: PathBuf,
        /// What it is, and what was given.
        what: &'static str,
    },
    /// The layer of an image cannot be made.
    #[error("cannot make the image's layer")]
    Pack(#[source] io::Error),
    /// Anything but a raw disk has no end on a block device.
    #[error("`{}` is a block device, which holds a raw disk", .path.display())]
    OnlyRaw {
        /// The target.
        path: PathBuf,
    },
    /// What is exported cannot be written.
    #[error("cannot write to {name}")]
    Output {
        /// Where to.
        name: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// This machine gives no more threads or descriptors.
    #[error("cannot start the import")]
    Setup(#[source] io::Error),
}

/// How much of a source is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Bytes from its start.
    pub done: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A failure that may pass, of an import of which a part is done with.
#[derive(Debug)]
pub struct BrokenOff {
    pub(crate) error: Error,
    pub(crate) kept: Share,
}

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for BrokenOff {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

impl BrokenOff {
    fn hint(&self) -> String {
        match &self.error {
            // Room has to be made first.
            Error::Target(error) => match error.hint() {
                Some(hint) => format!("{hint}; {}", self.kept.hint()),
                None => self.kept.hint(),
            },
            _ => self.kept.hint(),
        }
    }
}

impl Share {
    fn hint(self) -> String {
        format!("{self} is done: run the same command again to go on from there")
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.done as f64 / self.len.max(1) as f64 * 100.0;
        write!(f, "{percent:.0} %")
    }
}

/// An image that cannot be read, with what helps to tell the user what to do.
#[derive(Debug)]
pub struct ImageError {
    error: bootyard_image::Error,
    /// What the first bytes look like, if they came.
    format: Option<Format>,
    source_name: String,
    /// The image's own name, for commands that the user can copy.
    file_name: String,
    place: Place,
}

/// Where bytes came from that are no image.
#[derive(Debug, Clone, Copy)]
enum Place {
    File,
    Url,
    Pipe,
    /// In a container image, or nowhere.
    Elsewhere,
}

impl ImageError {
    /// What is wrong with the image.
    pub const fn kind(&self) -> ErrorKind {
        self.error.kind()
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for ImageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

impl Error {
    /// The bytes of `source` are others; so would be those in the cache, which are forgotten.
    pub(crate) fn checksum(source: &Source, error: VerifyError, cache: Option<&Cache>) -> Self {
        let source_name = source.to_string();
        if cache.is_some_and(|cache| cache.forget(&error.expected)) {
            return Self::CacheDamaged { source_name, error };
        }
        Self::Checksum { source_name, error }
    }

    /// The failure to read `source`, whose first bytes look like `format`.
    pub(crate) fn image(
        error: bootyard_image::Error,
        source: &Source,
        format: Option<Format>,
    ) -> Self {
        let (file_name, place) = match source {
            Source::File(path) => (path.display().to_string(), Place::File),
            Source::Http(url) => (url.file_name().unwrap_or("IMAGE").to_owned(), Place::Url),
            Source::S3(name) | Source::Gcs(name) => {
                (name.key.rsplit('/').next().unwrap_or("IMAGE").to_owned(), Place::Url)
            }
            Source::Stdin => ("IMAGE".to_owned(), Place::Pipe),
            _ => ("IMAGE".to_owned(), Place::Elsewhere),
        };
        let source_name = source.to_string();
        Self::Image(Box::new(ImageError { error, format, source_name, file_name, place }))
    }
}

/// The names, each in backticks.
fn list(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

impl Error {
    /// A larger size cannot be asked for.
    fn is_beyond_all(&self) -> bool {
        matches!(self, Self::TooLarge { virtual_size, max_size }
            if (*virtual_size).max(*max_size) >= SIZE_MAX)
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Source(error) => error.class(),
            Self::BrokenOff(broken) => broken.error.class(),
            Self::Image(error) if error.kind() == ErrorKind::Write => Class::Target,
            Self::UnsureEnd { .. } => Class::Source,
            Self::Text { .. } => Class::Image,
            Self::Image(_)
            | Self::NoDisk { .. }
            | Self::TooLarge { .. }
            | Self::BeyondLimit { .. } => Class::Image,
            Self::Target(error) => error.class(),
            Self::Checksum { .. }
            | Self::CacheDamaged { .. }
            | Self::ChecksumFile { .. }
            | Self::ChecksumFileTooLarge { .. } => Class::Checksum,
            Self::SizeTooSmall { .. }
            | Self::UnknownSize { .. }
            | Self::TooLargeForQcow2 { .. }
            | Self::GptInQcow2
            | Self::BlankSize
            | Self::NotLocal { .. }
            | Self::Unneeded { .. }
            | Self::OnlyRaw { .. }
            | Self::SameFile { .. }
            | Self::NamedTwice { .. } => Class::Usage,
            Self::Cancelled { .. } => Class::Interrupted,
            Self::Pack(_) => Class::Target,
            Self::Setup(_) => Class::Other,
            Self::Output { .. } => Class::Target,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Source(error) => return error.hint(),
            Self::Target(error) => return error.hint(),
            Self::Image(error) => return error.hint(),
            Self::Pack(_) | Self::Output { .. } | Self::Setup(_) => return None,
            Self::CacheDamaged { .. } => "run the same command again to fetch it".to_owned(),
            Self::Checksum { .. } => {
                "compare with the digest that the publisher shows for exactly \
                 this file; if it is right, the file was changed or damaged on its way"
                    .to_owned()
            }
            Self::SizeTooSmall { virtual_size, .. } => {
                format!("ask for at least `--size {virtual_size}`, or leave `--size` away")
            }
            Self::TooLarge { .. } if self.is_beyond_all() => return None,
            Self::TooLarge { virtual_size, .. } => {
                format!("if that is what you want, allow it with `--max-size {virtual_size}`")
            }
            Self::BeyondLimit { .. } => "if that is what you want, allow it with larger `--size` \
                 and `--max-size`, or a larger device"
                .to_owned(),
            Self::ChecksumFile { .. } | Self::ChecksumFileTooLarge { .. } => {
                "check that the file is for this image, or give its digest with `--checksum`"
                    .to_owned()
            }
            Self::UnsureEnd { .. } => {
                "give the digest that the publisher shows with `--checksum`".to_owned()
            }
            Self::Text { .. } => "open the URL in a browser: it may lead to a web page instead of \
                 the file; if it is the disk, give its digest with `--checksum`"
                .to_owned(),
            Self::NoDisk { names, .. } if names.is_empty() => return None,
            Self::NoDisk { .. } => {
                "name the disk's file with `--image-path`; an image for containers, or for bootc, \
                 holds a file system and no disk"
                    .to_owned()
            }
            Self::TooLargeForQcow2 { .. } => {
                "name a smaller `--size`, or use `--output-format raw`".to_owned()
            }
            Self::BlankSize => "name it: `--size 10Gi`".to_owned(),
            Self::GptInQcow2 => {
                "leave `--relocate-gpt` away, or use `--output-format raw`".to_owned()
            }
            Self::UnknownSize { .. } => {
                "name the size with `--size`, or use `--output-format raw`".to_owned()
            }
            Self::BrokenOff(broken) => broken.hint(),
            Self::Cancelled { kept: Some(kept), .. } => kept.hint(),
            Self::Cancelled { device: None, .. } => {
                "nothing was left behind; run the same command again".to_owned()
            }
            Self::Cancelled { device: Some(device), .. } => format!(
                "the old contents of `{}` are lost: its first MiB was cleared; run the same \
                 command again",
                device.display()
            ),
            Self::OnlyRaw { .. } => "export it with `--format raw`, or to a file".to_owned(),
            Self::SameFile { .. } => "name another target".to_owned(),
            Self::NotLocal { .. } => "fetch it first, or import it without these flags".to_owned(),
            Self::NamedTwice { path } | Self::Unneeded { path, .. } => {
                format!("see what it needs: `bootyard inspect {}`", shell_word(path))
            }
        })
    }
}

impl ImageError {
    /// Whether what it needs can be given besides: see [`Besides`](crate::Besides).
    const fn takes_files(&self) -> bool {
        let format = matches!(self.format, Some(Format::Qcow2 | Format::Qcow1 | Format::Qed));
        format && matches!(self.place, Place::File)
    }

    fn hint(&self) -> Option<String> {
        let name = shell_word(&self.file_name);
        let container = self.format.and_then(tools);
        Some(match (self.kind(), container) {
            (ErrorKind::NotAnImage, _) => match self.place {
                Place::Url => {
                    "open the URL in a browser: it may lead to a web page instead of the \
                     file; use the direct download link"
                        .to_owned()
                }
                Place::File => format!("see what it is: `file {name}`"),
                Place::Pipe => {
                    "see what comes through the pipe: end it in `| head -c 512` instead; \
                     the program before it may have printed a message"
                        .to_owned()
                }
                Place::Elsewhere => return None,
            },
            (ErrorKind::Unsupported | ErrorKind::NeedsOtherFile, Some((unpack, _))) => {
                format!("unpack it first: `{unpack} {name}`")
            }
            (ErrorKind::Truncated | ErrorKind::Corrupt, Some((_, test))) => {
                format!("get the whole file again; `{test} {name}` tells whether it is one")
            }
            (ErrorKind::Unsupported, _) if self.format.is_some() => {
                format!("convert it first: `qemu-img convert -O qcow2 {name} new.qcow2`")
            }
            (ErrorKind::NeedsOtherFile, _) if self.takes_files() => format!(
                "name what it needs with `--backing FILE` or `--data-file FILE`, or flatten it first: \
                 `qemu-img convert -O qcow2 {name} flat.qcow2`"
            ),
            (ErrorKind::NeedsOtherFile, _) => {
                format!("flatten it first: `qemu-img convert -O qcow2 {name} flat.qcow2`")
            }
            (ErrorKind::Encrypted, _) => {
                "decrypt it first with `qemu-img convert`, which takes the passphrase from an \
                 `--object secret`"
                    .to_owned()
            }
            (ErrorKind::Truncated, _) => {
                format!("get the whole file again; `qemu-img check {name}` tells whether it is one")
            }
            (ErrorKind::Corrupt, _) => {
                format!("get the file again; `qemu-img check {name}` shows the damage")
            }
            _ => return None,
        })
    }
}

/// The commands that unpack and test a format which only wraps a disk.
const fn tools(format: Format) -> Option<(&'static str, &'static str)> {
    Some(match format {
        Format::Gzip => ("gunzip", "gzip -t"),
        Format::Xz => ("unxz", "xz -t"),
        Format::Lzma => ("unlzma", "lzma -t"),
        Format::Zstd => ("unzstd", "zstd -t"),
        Format::Bzip2 => ("bunzip2", "bzip2 -t"),
        Format::Lz4 => ("unlz4", "lz4 -t"),
        Format::Compress => ("uncompress", "gzip -t"),
        Format::Zip => ("unzip", "unzip -t"),
        Format::SevenZip => ("7z x", "7z t"),
        Format::Tar | Format::Ova => ("tar -xf", "tar -tf"),
        _ => return None,
    })
}
