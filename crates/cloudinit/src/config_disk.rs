//! The small disks by which KubeVirt gives a guest what a cluster keeps in objects: ConfigMaps,
//! Secrets, a service account, the downward API, and the answers of a Windows set-up. cloud-init has no
//! part in them; the image is the same as a seed's.

use std::str::FromStr;

use crate::{DiskImage, Error, ErrorKind, Image, ImageFormat, Tree};

/// What a config disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConfigKind {
    /// A file for each key of a ConfigMap.
    ConfigMap,
    /// A file for each key of a Secret.
    Secret,
    /// `token`, `namespace` and `ca.crt`.
    ServiceAccount,
    /// Files with fields of the machine's own object.
    DownwardApi,
    /// Answers for Windows' set-up.
    Sysprep,
}

/// The files in which Windows' set-up looks for answers, in letters of either case.
const ANSWERS: [&str; 2] = ["autounattend.xml", "unattend.xml"];

impl ConfigKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ConfigMap, Self::Secret, Self::ServiceAccount, Self::DownwardApi, Self::Sysprep];

    /// Its name, as [`ConfigKind::from_str`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::ServiceAccount => "service-account",
            Self::DownwardApi => "downward-api",
            Self::Sysprep => "sysprep",
        }
    }

    /// The label that KubeVirt gives the disk if none is asked for.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sysprep => "unattendCD",
            _ => "cfgdata",
        }
    }
}

impl FromStr for ConfigKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let what = format!("unknown type `{text}`; expected one of {names}");
            Error::new(ErrorKind::Value, what)
        })
    }
}

/// A config disk before it is an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDisk {
    kind: ConfigKind,
    files: Tree,
    has_answers: bool,
}

impl ConfigDisk {
    /// A disk without files.
    pub fn new(kind: ConfigKind) -> Self {
        Self { kind, files: Tree::new(), has_answers: false }
    }

    /// What it holds.
    pub const fn kind(&self) -> ConfigKind {
        self.kind
    }

    /// Adds a file; `path` is relative, with `/` between its parts. One that is there already is an
    /// error.
    pub fn insert(&mut self, path: &str, content: Vec<u8>) -> Result<(), Error> {
        self.has_answers |= ANSWERS.iter().any(|name| name.eq_ignore_ascii_case(path));
        self.files.insert(path, content)
    }

    /// The whole image, a multiple of 1 MiB. `label` is [`ConfigKind::label`] if absent; `timestamp`
    /// is the time of all files in seconds since 1970.
    pub fn build(
        &self,
        format: ImageFormat,
        label: Option<&str>,
        timestamp: i64,
    ) -> Result<DiskImage, Error> {
        if self.kind == ConfigKind::Sysprep && !self.has_answers {
            let [first, second] = ANSWERS;
            let what = format!("a sysprep disk needs `{first}` or `{second}`");
            return Err(Error::new(ErrorKind::FileName, what)
                .with_hint(format!("name the file by its key: `--from-file {first}=FILE`")));
        }
        let label = label.unwrap_or(self.kind.label());
        Image { format, label, timestamp }.build(&self.files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_and_kubevirts_labels() {
        for kind in ConfigKind::ALL {
            assert_eq!(kind.name().parse::<ConfigKind>().unwrap(), kind);
        }
        assert_eq!(ConfigKind::Sysprep.label(), "unattendCD");
        assert_eq!(ConfigKind::Secret.label(), "cfgdata");
        let error = "ConfigMap".parse::<ConfigKind>().unwrap_err().to_string();
        assert!(
            error.ends_with("configmap, secret, service-account, downward-api, sysprep"),
            "{error}"
        );
    }

    #[test]
    fn sysprep_needs_answers_in_letters_of_any_case() {
        for (path, is_taken) in [
            ("Autounattend.xml", true),
            ("UNATTEND.XML", true),
            ("unattend.xml.txt", false),
            ("x/unattend.xml", false),
        ] {
            let mut disk = ConfigDisk::new(ConfigKind::Sysprep);
            disk.insert(path, Vec::new()).unwrap();
            assert_eq!(disk.build(ImageFormat::Iso, None, 0).is_ok(), is_taken, "{path}");
        }
        assert!(ConfigDisk::new(ConfigKind::ConfigMap).build(ImageFormat::Fat, None, 0).is_ok());
    }
}
