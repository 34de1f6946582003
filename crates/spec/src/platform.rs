//! Which machine a container image is for.

use std::fmt;
use std::str::FromStr;

/// A platform as registries name it: `linux/amd64`, `linux/arm/v7`, in Go's words for systems and
/// architectures (OCI image index, "platform").
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The architecture, such as `amd64`.
    pub architecture: String,
    /// The architecture's variant, such as `v7`.
    pub variant: Option<String>,
}

/// The text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected OS/ARCH[/VARIANT] such as `linux/arm64`, got `{0}`")]
pub struct ParsePlatformError(String);

impl Platform {
    /// Linux on the architecture that this program was built for: what a disk image that runs here
    /// is for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for `offered` is one for this platform. Without a variant any will do.
    pub fn takes(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.variant() == offered.variant())
    }

    /// The variant, if it says more than the architecture: every arm64 is a `v8`.
    fn variant(&self) -> Option<&str> {
        let variant = self.variant.as_deref();
        variant.filter(|variant| !(self.architecture == "arm64" && *variant == "v8"))
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    /// An architecture alone is one of Linux, as CDI's `platform.architecture` is.
    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let mut parts = text.split('/').map(str::to_ascii_lowercase);
        let (os, architecture, variant) = match (parts.next(), parts.next(), parts.next()) {
            (Some(architecture), None, None) => ("linux".to_owned(), architecture, None),
            (Some(os), Some(architecture), variant) => (os, architecture, variant),
            _ => return Err(ParsePlatformError(text.to_owned())),
        };
        let words = [Some(&os), Some(&architecture), variant.as_ref()];
        let is_word = |word: &String| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if parts.next().is_some() || !words.into_iter().flatten().all(is_word) {
            return Err(ParsePlatformError(text.to_owned()));
        }
        Ok(Self { os, architecture, variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_shown_as_it_is_named() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("Linux/ARM/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
        }
        for text in ["", "/", "linux/", "linux//v7", "a/b/c/d", "linux/am d64"] {
            assert_eq!(text.parse::<Platform>(), Err(ParsePlatformError(text.to_owned())));
        }
    }

    #[test]
    fn a_variant_matters_where_it_is_asked_for() {
        for (wanted, offered, takes) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/amd64", "windows/amd64", false),
            ("linux/arm/v7", "linux/arm/v7", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm/v7", "linux/arm", false),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/amd64", false),
        ] {
            let [wanted, offered]: [Platform; 2] = [wanted, offered].map(|p| p.parse().unwrap());
            assert_eq!(wanted.takes(&offered), takes, "{wanted} {offered}");
        }
    }
}
