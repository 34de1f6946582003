//! What is wrong with user-data, vendor-data, meta-data and network configuration, told before a
//! guest meets it.
//!
//! cloud-init's own reader and schemas are the measure: what PyYAML's `SafeLoader` makes of a file
//! (`yaml`), what the published schemas have against that (`schema`), and what neither of them sees
//! and costs people an afternoon (headers, line ends, passwords, interpreters). MIME documents,
//! archives, gzip and templates are looked into. No file is opened and nothing is fetched: what an
//! `#include` leads to is not judged.

mod cloud_config;
mod configs;
mod finding;
mod instance;
pub(crate) mod json;
mod mime;
mod parts;
mod schema;
mod script;
mod text;
mod together;
mod words;

pub use finding::{Code, Finding, Severity};
pub use text::is_utf16;
pub use together::check_together;

pub(crate) use configs::{Config, configs};
use text::Source;
pub(crate) use text::{guarded, is_bare};

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What the user wants done, in any format that cloud-init takes.
    UserData,
    /// What the provider wants done, in the same formats.
    VendorData,
    /// The instance's identity and names, in YAML.
    MetaData,
    /// The network configuration, version 1 or 2.
    NetworkConfig,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::UserData, Self::VendorData, Self::MetaData, Self::NetworkConfig];

    /// The name of its file in a NoCloud seed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UserData => "user-data",
            Self::VendorData => "vendor-data",
            Self::MetaData => "meta-data",
            Self::NetworkConfig => "network-config",
        }
    }

    /// What a file most likely is: by its name, and if that says nothing by its content. User-data
    /// has a header; network configuration has `version` or `network`, meta-data has `instance-id`.
    pub fn guess(file_name: &str, content: &[u8]) -> Self {
        let name = file_name.to_ascii_lowercase().replace('_', "-");
        let by_name = |kind: &&Self| name.contains(kind.name());
        if let Some(kind) = Self::ALL.iter().find(by_name) {
            return *kind;
        }
        if content.trim_ascii_start().starts_with(b"#") && crate::user_data::is_known(content) {
            return Self::UserData;
        }
        let has = |keys: &[&str]| {
            let text = String::from_utf8_lossy(content);
            text.lines().any(|line| {
                line.split_once(':').is_some_and(|(key, _)| keys.contains(&key.trim_matches('"')))
            })
        };
        if has(&["network", "ethernets", "bonds", "bridges", "vlans"])
            || (has(&["version"]) && has(&["config"]))
        {
            Self::NetworkConfig
        } else if has(&["instance-id", "local-hostname"]) {
            Self::MetaData
        } else {
            Self::UserData
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = crate::Error;

    /// By the name of its file, or as cloud-init's `--schema-type` calls it.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "cloud-config" {
            return Ok(Self::UserData);
        }
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let what = format!(
                "unknown kind `{name}`; expected user-data, vendor-data, meta-data or network-config"
            );
            crate::Error::new(crate::ErrorKind::Value, what)
        })
    }
}

/// Everything that is wrong with one file, in the order of its lines. Nothing means that cloud-init
/// reads it as it is meant, as far as that can be told without a guest.
pub fn check(kind: Kind, content: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    match kind {
        Kind::UserData | Kind::VendorData => parts::check(content, &mut findings),
        Kind::MetaData => Source::whole(content, &mut findings, instance::check_meta_data),
        Kind::NetworkConfig => Source::whole(content, &mut findings, instance::check_network),
    }
    findings.sort_by_key(|finding| finding.place());
    findings.truncate(FINDINGS_MAX);
    findings
}

/// Most findings of one file. More are of no use to anyone, and cost what a hostile file likes.
const FINDINGS_MAX: usize = 1000;

#[cfg(test)]
mod tests;
