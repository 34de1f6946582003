//! Flags that are for some sources only: given with another one, they would have no effect, and are
//! refused.

use bootyard_spec::{Class, Source};

use crate::error::Failure;

/// The sources that a flag is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Whatever comes over a network.
    Network,
    Http,
    /// Servers that take a user and a password.
    Users,
    S3,
    Gcs,
    Registry,
    /// Container images, wherever they are.
    Image,
    /// A file, which can be read from anywhere.
    File,
    /// What has bytes.
    Bytes,
}

impl For {
    const fn takes(self, source: &Source) -> bool {
        match self {
            Self::Network => matches!(
                source,
                Source::Http(_) | Source::S3(_) | Source::Gcs(_) | Source::Registry(_)
            ),
            Self::Http => matches!(source, Source::Http(_)),
            Self::Users => matches!(source, Source::Http(_) | Source::S3(_) | Source::Registry(_)),
            Self::S3 => matches!(source, Source::S3(_)),
            Self::Gcs => matches!(source, Source::Gcs(_)),
            Self::Registry => matches!(source, Source::Registry(_)),
            Self::Image => matches!(source, Source::Registry(_) | Source::Stored(_)),
            Self::File => matches!(source, Source::File(_)),
            Self::Bytes => !matches!(source, Source::Blank),
        }
    }

    const fn names(self) -> &'static str {
        match self {
            Self::Network => "http://, https://, s3://, gs:// and docker://",
            Self::Http => "http:// and https://",
            Self::Users => "http://, https://, s3:// and docker://",
            Self::S3 => "s3://",
            Self::Gcs => "gs://",
            Self::Registry => "docker://",
            Self::Image => "docker://, oci:, oci-archive: and docker-archive:",
            Self::File => "files of this machine",
            Self::Bytes => "sources that have bytes",
        }
    }
}

/// A flag, whether it was given, and what it is for.
pub(crate) type Flag = (&'static str, bool, For);

/// Refuses the first flag that was given and is for none of these sources, of which the first is the
/// one that the user thinks of.
pub(crate) fn refuse_others(flags: &[Flag], sources: &[&Source]) -> Result<(), Failure> {
    let idle =
        |(_, is_given, used): &&Flag| *is_given && !sources.iter().any(|source| used.takes(source));
    let (Some((flag, _, used)), Some(source)) = (flags.iter().find(idle), sources.first()) else {
        return Ok(());
    };
    let what = format!("`{flag}` is for {}, and has no effect on `{source}`", used.names());
    Err(Failure::new(Class::Usage, what).with_hint(format!("leave out `{flag}`")))
}
