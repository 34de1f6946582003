//! Names of objects, by Kubernetes' rule for them.

use std::fmt;
use std::str::FromStr;

/// The name of a volume: a DNS subdomain as Kubernetes names objects (RFC 1123): lower-case
/// letters, digits, `-` and `.`, at most 253 characters, a letter or digit at both ends. It is
/// therefore also a safe file name: never empty, hidden, `..` or with a slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    /// Nothing, or too much.
    #[error("expected 1 to 253 characters, got {0}")]
    Length(usize),
    /// A character that may not be there.
    #[error("`{name}` has {found:?} at character {at}; expected a-z, 0-9, `-` or `.`")]
    Character {
        /// The whole text.
        name: String,
        /// The character.
        found: char,
        /// Where it stands, counted from 1.
        at: usize,
    },
    /// It begins or ends with a hyphen or a period.
    #[error("`{0}` does not begin and end with a letter or digit in each part between periods")]
    Edge(String),
}

/// Kubernetes' limit for object names.
const LEN_MAX: usize = 253;

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = ParseNameError;

    fn from_str(name: &str) -> Result<Self, ParseNameError> {
        let len = name.chars().count();
        if len == 0 || len > LEN_MAX {
            return Err(ParseNameError::Length(len));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if let Some((index, found)) = name.chars().enumerate().find(|(_, c)| !allowed(*c)) {
            return Err(ParseNameError::Character { name: name.to_owned(), found, at: index + 1 });
        }
        let edges_fit =
            |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
        if !name.split('.').all(edges_fit) {
            return Err(ParseNameError::Edge(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_kubernetes_names() {
        for name in ["a", "debian-12", "debian-12.5", "0", &"a".repeat(253)] {
            assert!(name.parse::<VolumeName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn refuses_what_could_be_a_path_or_is_no_name() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "/a",
            "A",
            "a_b",
            "-a",
            "a-",
            ".a",
            "a.",
            "a..b",
            "ä",
            "a.-b",
            &"a".repeat(254),
        ] {
            assert!(name.parse::<VolumeName>().is_err(), "{name}");
        }
    }
}
