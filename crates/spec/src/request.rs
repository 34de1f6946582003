//! An import, as the user asks for it.

use std::path::PathBuf;
use std::str::FromStr;

use crate::{ByteSize, Claim, Digest, Source, VolumeName};

/// Everything that decides an import. `import::plan` turns it, with what a probe of the source
/// found, into a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRequest {
    /// Where the bytes come from.
    pub source: Source,
    /// Where the disk goes.
    pub target: Target,
    /// The class and modes of a volume of the store.
    pub claim: Claim,
    /// The size that the volume shall have; the image's virtual size if absent. Never smaller.
    pub size: Option<ByteSize>,
    /// The largest virtual size that is accepted.
    pub max_size: Option<ByteSize>,
    /// The digest of the source's bytes as sent.
    pub checksum: Option<Digest>,
    /// How the disk is stored.
    pub output_format: OutputFormat,
    /// Whether the volume gets all of its space at once, and keeps it (CDI's `preallocation`).
    pub preallocation: bool,
    /// Whether the backup of a GPT goes to the end of a volume that is larger than the image's disk.
    pub relocate_gpt: bool,
    /// Where sources are kept as they were sent, if they are.
    pub cache: Option<CacheSpec>,
}

/// A cache of sources, shared by imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// Its folder, which need not exist.
    pub path: PathBuf,
    /// How much it may hold. What was not used for longest is removed then.
    pub limit: ByteSize,
}

/// Where an imported disk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A named volume of the store.
    Volume(VolumeName),
    /// A file that does not exist yet, or a block device.
    Path(PathBuf),
}

/// How a disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputFormat {
    /// The guest's bytes as they are, with holes where there are zeros.
    Raw,
    /// qcow2 version 3, uncompressed.
    Qcow2,
    /// qcow2 version 3, its clusters compressed with zstd.
    Qcow2Zstd,
}

/// The text names no output format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown output format `{0}`; expected raw, qcow2 or qcow2-zstd")]
pub struct ParseOutputFormatError(String);

impl OutputFormat {
    /// The name, as `--output-format` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow2Zstd => "qcow2-zstd",
        }
    }

    /// What the name of a file in this format ends in, without the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 | Self::Qcow2Zstd => "qcow2",
        }
    }
}

impl FromStr for OutputFormat {
    type Err = ParseOutputFormatError;

    fn from_str(text: &str) -> Result<Self, ParseOutputFormatError> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "qcow2-zstd" => Ok(Self::Qcow2Zstd),
            _ => Err(ParseOutputFormatError(text.to_owned())),
        }
    }
}
