//! Storage classes and what a volume asks of them, in Kubernetes' and CDI's words.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{ByteSize, ParseNameError, VolumeName};

/// What a volume is to the machine that uses it (Kubernetes' `volumeMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeMode {
    /// A disk in a file of a file system.
    Filesystem,
    /// A block device.
    Block,
}

/// Who may use a volume at a time (Kubernetes' `accessModes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessMode {
    /// One machine, which may write.
    ReadWriteOnce,
    /// Many machines, which may write.
    ReadWriteMany,
    /// Many machines, which may not write.
    ReadOnlyMany,
}

/// The text is none of the words that may stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{text}`; expected {expected}")]
pub struct ParseWordError {
    what: &'static str,
    text: String,
    expected: &'static str,
}

impl VolumeMode {
    /// The name, as manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filesystem => "Filesystem",
            Self::Block => "Block",
        }
    }
}

impl FromStr for VolumeMode {
    type Err = ParseWordError;

    fn from_str(text: &str) -> Result<Self, ParseWordError> {
        match text {
            "Filesystem" => Ok(Self::Filesystem),
            "Block" => Ok(Self::Block),
            _ => Err(ParseWordError {
                what: "volume mode",
                text: text.to_owned(),
                expected: "Filesystem or Block",
            }),
        }
    }
}

impl fmt::Display for VolumeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl AccessMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::ReadWriteOnce, Self::ReadWriteMany, Self::ReadOnlyMany];

    /// The name, as manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteMany => "ReadWriteMany",
            Self::ReadOnlyMany => "ReadOnlyMany",
        }
    }

    /// The short name, as `kubectl get pvc` shows it.
    pub const fn short(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "RWO",
            Self::ReadWriteMany => "RWX",
            Self::ReadOnlyMany => "ROX",
        }
    }
}

impl FromStr for AccessMode {
    type Err = ParseWordError;

    fn from_str(text: &str) -> Result<Self, ParseWordError> {
        // One machine is one pod here, and one node too.
        let text = if matches!(text, "ReadWriteOncePod" | "RWOP") { "RWO" } else { text };
        let named = Self::ALL.into_iter().find(|mode| [mode.name(), mode.short()].contains(&text));
        named.ok_or_else(|| ParseWordError {
            what: "access mode",
            text: text.to_owned(),
            expected: "ReadWriteOnce (RWO), ReadWriteMany (RWX) or ReadOnlyMany (ROX)",
        })
    }
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The access modes of a volume in the order in which they were asked for, each once. Displays as
/// `RWO,ROX`, and parses that back. May be empty where defaults are still to come.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct AccessModes(Vec<AccessMode>);

impl AccessModes {
    /// The modes.
    pub fn as_slice(&self) -> &[AccessMode] {
        &self.0
    }

    /// Whether none was asked for.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of `others` are among them.
    pub fn contain(&self, others: &Self) -> bool {
        others.0.iter().all(|mode| self.0.contains(mode))
    }
}

impl FromIterator<AccessMode> for AccessModes {
    fn from_iter<I: IntoIterator<Item = AccessMode>>(modes: I) -> Self {
        let mut unique = Vec::new();
        for mode in modes {
            if !unique.contains(&mode) {
                unique.push(mode);
            }
        }
        Self(unique)
    }
}

impl FromStr for AccessModes {
    type Err = ParseWordError;

    fn from_str(text: &str) -> Result<Self, ParseWordError> {
        text.split(',').filter(|mode| !mode.is_empty()).map(str::parse).collect()
    }
}

impl fmt::Display for AccessModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|mode| mode.short()).collect();
        f.pad(&names.join(","))
    }
}

/// What a volume is asked to be. What is absent is for the storage class to say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Claim {
    /// Its storage class; the default one if absent.
    pub class: Option<StorageClassName>,
    /// Who may use it at a time.
    pub access_modes: AccessModes,
    /// What it is to the machine.
    pub volume_mode: Option<VolumeMode>,
}

/// One of the sets that a storage class offers (CDI's `claimPropertySets`): access modes that go
/// with a volume mode.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ClaimPropertySet {
    /// Who may use such a volume at a time; any mode if empty.
    pub access_modes: AccessModes,
    /// What such a volume is to the machine; either if absent.
    pub volume_mode: Option<VolumeMode>,
}

/// How volumes of a class are cloned (CDI's `cloneStrategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloneStrategy {
    /// Byte by byte.
    Copy,
    /// From a snapshot.
    Snapshot,
    /// By the storage itself.
    CsiClone,
}

impl CloneStrategy {
    /// The name, as manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Snapshot => "snapshot",
            Self::CsiClone => "csi-clone",
        }
    }
}

impl FromStr for CloneStrategy {
    type Err = ParseWordError;

    fn from_str(text: &str) -> Result<Self, ParseWordError> {
        match text {
            "copy" => Ok(Self::Copy),
            "snapshot" => Ok(Self::Snapshot),
            "csi-clone" => Ok(Self::CsiClone),
            _ => Err(ParseWordError {
                what: "clone strategy",
                text: text.to_owned(),
                expected: "copy, snapshot or csi-clone",
            }),
        }
    }
}

/// The name of a storage class: by the rule for volumes' names, which is Kubernetes' for both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageClassName(VolumeName);

impl StorageClassName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for StorageClassName {
    type Err = ParseNameError;

    fn from_str(name: &str) -> Result<Self, ParseNameError> {
        name.parse().map(Self)
    }
}

impl fmt::Display for StorageClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a file system takes for itself, as a part of what it is to hold: three digits behind the
/// point at most, as CDI's pattern `^(0(?:\.\d{1,3})?|1)$` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FilesystemOverhead {
    thousandths: u16,
}

/// The text is no overhead of a file system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 0 to 1 with at most three digits behind the point, such as 0.06, got `{0}`")]
pub struct ParseOverheadError(String);

impl FilesystemOverhead {
    /// CDI's default: 6 %.
    pub const DEFAULT: Self = Self { thousandths: 60 };

    /// A file system that takes nothing.
    pub const NONE: Self = Self { thousandths: 0 };

    /// The part as a number, such as 0.06: the very one that its digits parse to.
    pub fn fraction(self) -> f64 {
        f64::from(self.thousandths) / 1000.0
    }

    /// So many thousandths; at most all.
    pub const fn from_thousandths(thousandths: u16) -> Self {
        Self { thousandths: if thousandths > 1000 { 1000 } else { thousandths } }
    }

    /// The part in thousandths.
    pub const fn thousandths(self) -> u16 {
        self.thousandths
    }
}

impl FromStr for FilesystemOverhead {
    type Err = ParseOverheadError;

    fn from_str(text: &str) -> Result<Self, ParseOverheadError> {
        let parse = || match text {
            "0" => Some(0),
            "1" => Some(1000),
            _ => {
                let digits = text.strip_prefix("0.")?;
                let fit =
                    matches!(digits.len(), 1..=3) && digits.bytes().all(|b| b.is_ascii_digit());
                let scale = 10_u16.pow(3_u32.checked_sub(digits.len() as u32)?);
                fit.then(|| digits.parse::<u16>().ok()).flatten().map(|number| number * scale)
            }
        };
        let thousandths = parse().ok_or_else(|| ParseOverheadError(text.to_owned()))?;
        Ok(Self { thousandths })
    }
}

impl fmt::Display for FilesystemOverhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fraction())
    }
}

/// Where the volumes of a class are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageDriver {
    /// Files in a folder.
    Directory(PathBuf),
    /// Block devices, one for each volume, which may be smaller.
    Devices(Vec<PathBuf>),
    /// Files in a folder, attached to loop devices with sectors of this many bytes.
    Loop {
        /// The folder.
        folder: PathBuf,
        /// 512 or 4096.
        sector_size: u32,
    },
    /// Thin volumes of LVM.
    LvmThin {
        /// The volume group.
        group: String,
        /// The thin pool in it.
        pool: String,
    },
}

impl StorageDriver {
    /// The name, as `storage-class add --driver` takes it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Devices(_) => "devices",
            Self::Loop { .. } => "loop",
            Self::LvmThin { .. } => "lvm-thin",
        }
    }

    /// What its volumes are to a machine.
    pub const fn volume_mode(&self) -> VolumeMode {
        match self {
            Self::Directory(_) => VolumeMode::Filesystem,
            Self::Devices(_) | Self::Loop { .. } | Self::LvmThin { .. } => VolumeMode::Block,
        }
    }
}

/// A storage class: where volumes are made, and how, where nobody asks for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageClass {
    /// Its name.
    pub name: StorageClassName,
    /// Where its volumes are.
    pub driver: StorageDriver,
    /// What its volumes can be, the best first. None means what the driver can.
    pub claim_property_sets: Vec<ClaimPropertySet>,
    /// What a file system takes for itself.
    pub filesystem_overhead: FilesystemOverhead,
    /// Whether volumes get all of their space at once.
    pub preallocation: bool,
    /// Volumes that name no class are of this one.
    pub is_default: bool,
    /// How volumes are cloned; the best way there is if absent.
    pub clone_strategy: Option<CloneStrategy>,
    /// No volume is smaller (CDI's annotation `cdi.kubevirt.io/minimumSupportedPvcSize`).
    pub minimum_size: Option<ByteSize>,
}

impl StorageClass {
    /// A class with nothing said but where its volumes are.
    pub const fn new(name: StorageClassName, driver: StorageDriver) -> Self {
        Self {
            name,
            driver,
            claim_property_sets: Vec::new(),
            filesystem_overhead: FilesystemOverhead::DEFAULT,
            preallocation: false,
            is_default: false,
            clone_strategy: None,
            minimum_size: None,
        }
    }
}

/// What a cluster's StorageProfile (CDI) says of a storage class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageProfile {
    /// The class, which has the profile's name.
    pub class: StorageClassName,
    /// What its volumes can be, the best first.
    pub claim_property_sets: Vec<ClaimPropertySet>,
    /// How its volumes are cloned.
    pub clone_strategy: Option<CloneStrategy>,
    /// None of its volumes is smaller.
    pub minimum_size: Option<ByteSize>,
}

/// What a cluster's ConfigMap `kubevirt-storage-class-defaults` says of its storage classes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClaimDefaults {
    /// What holds for every class.
    pub all: ClaimPropertySet,
    /// What holds for one class, and comes first.
    pub classes: BTreeMap<StorageClassName, ClaimPropertySet>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for mode in AccessMode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
            assert_eq!(mode.short().parse(), Ok(mode));
        }
        for mode in [VolumeMode::Filesystem, VolumeMode::Block] {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        for strategy in [CloneStrategy::Copy, CloneStrategy::Snapshot, CloneStrategy::CsiClone] {
            assert_eq!(strategy.name().parse(), Ok(strategy));
        }
        assert_eq!("ReadWriteOncePod".parse(), Ok(AccessMode::ReadWriteOnce));
        for word in ["rwo", "", "ReadWrite", "Filesystem"] {
            let error = word.parse::<AccessMode>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("unknown access mode `{word}`; expected")),
                "{error}"
            );
        }
        assert!("block".parse::<VolumeMode>().is_err());
    }

    #[test]
    fn access_modes_are_a_set_in_order() {
        let modes: AccessModes = "ROX,RWO,ReadOnlyMany".parse().unwrap();
        assert_eq!(modes.to_string(), "ROX,RWO");
        assert!(modes.contain(&"RWO".parse().unwrap()) && modes.contain(&AccessModes::default()));
        assert!(!modes.contain(&"RWX".parse().unwrap()));
        assert!("RWO,x".parse::<AccessModes>().is_err());
    }

    #[test]
    fn an_overhead_has_three_digits_at_most() {
        for (text, fraction) in [
            ("0", 0.0),
            ("1", 1.0),
            ("0.0", 0.0),
            ("0.5", 0.5),
            ("0.06", 0.06),
            ("0.055", 0.055),
            ("0.999", 0.999),
        ] {
            let overhead: FilesystemOverhead = text.parse().unwrap();
            assert!(overhead.fraction().to_bits() == f64::to_bits(fraction), "{text}");
        }
        assert_eq!(FilesystemOverhead::DEFAULT.to_string(), "0.06");
        for text in ["", "0.", "0.0000", "1.0", "2", "-0", "0,1", ".5", "00.1", "0.1x", "0.+1"] {
            assert!(text.parse::<FilesystemOverhead>().is_err(), "{text}");
        }
    }
}
