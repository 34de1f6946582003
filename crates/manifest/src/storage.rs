//! CDI's StorageProfile and the ConfigMap `kubevirt-storage-class-defaults`.
//!
//! ```text
//! kind: StorageProfile                      kind: ConfigMap
//! metadata: {name: CLASS}                   metadata: {name: kubevirt-storage-class-defaults}
//! spec:                                     data:
//!   claimPropertySets:                        accessMode: ReadWriteOnce
//!   - accessModes: [ReadWriteMany]            volumeMode: Filesystem
//!     volumeMode: Block                       CLASS.accessMode: ReadWriteMany
//!   cloneStrategy: snapshot                   CLASS.volumeMode: Block
//! ```
//! Only what was set counts: a profile's `status` is what CDI has made of it for its own provisioners.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bootyard_spec::{
    AccessMode, ByteSize, ClaimDefaults, ClaimPropertySet, CloneStrategy, StorageClassName,
    StorageProfile, VolumeMode,
};
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

/// The ConfigMap's name, made by the hyperconverged cluster operator.
const DEFAULTS: &str = "kubevirt-storage-class-defaults";
/// The annotation of a profile whose class has no smaller volumes.
const MINIMUM: &str = "cdi.kubevirt.io/minimumSupportedPvcSize";
/// "at most 8 claimPropertySets" in CDI's definition of the profile.
const SETS_MAX: usize = 8;

/// One object of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageDocument {
    /// A StorageProfile.
    Profile(StorageProfile),
    /// The ConfigMap of defaults.
    Defaults(ClaimDefaults),
}

/// Why a manifest cannot be taken. It names the field, and the line where the text tells one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub(crate) String);

/// Reads the StorageProfiles and ConfigMaps of a YAML text: documents, or a List of them.
pub fn storage(text: &[u8]) -> Result<Vec<StorageDocument>, Error> {
    let text = std::str::from_utf8(text)
        .map_err(|error| Error(format!("byte {} is not UTF-8", error.valid_up_to())))?;
    let objects: Vec<Object> =
        serde_saphyr::from_multiple(text).map_err(|error| Error(one_line(&error.to_string())))?;
    let mut documents = Vec::new();
    for object in objects {
        let items = match object.kind.as_str() {
            "List" | "StorageProfileList" | "ConfigMapList" => object.items,
            _ => vec![object],
        };
        for item in items {
            documents.push(item.document()?);
        }
    }
    match documents.is_empty() {
        true => Err(Error("there is no object in it".to_owned())),
        false => Ok(documents),
    }
}

/// The first line of a message: what follows shows the text again.
pub(crate) fn one_line(message: &str) -> String {
    message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Whatever object it is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object {
    #[serde(default)]
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: ProfileSpec,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    items: Vec<Self>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
    #[serde(rename = "immutable")]
    _immutable: Option<IgnoredAny>,
}

/// Servers add much to it that is not for us.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileSpec {
    #[serde(default)]
    claim_property_sets: Vec<PropertySet>,
    clone_strategy: Option<Word<CloneStrategy>>,
    #[serde(rename = "dataImportCronSourceFormat")]
    _data_import_cron_source_format: Option<IgnoredAny>,
    #[serde(rename = "snapshotClass")]
    _snapshot_class: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PropertySet {
    #[serde(default)]
    access_modes: Vec<Word<AccessMode>>,
    volume_mode: Option<Word<VolumeMode>>,
}

/// A text that is one of our words.
#[derive(Debug, Clone, Copy)]
struct Word<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

impl Object {
    fn document(self) -> Result<StorageDocument, Error> {
        match (self.api_version.split('/').next(), self.kind.as_str()) {
            (Some("cdi.kubevirt.io"), "StorageProfile") => {
                self.profile().map(StorageDocument::Profile)
            }
            (Some("v1"), "ConfigMap") => self.defaults().map(StorageDocument::Defaults),
            _ => {
                let what = format!(
                    "kind: expected StorageProfile of cdi.kubevirt.io/v1beta1 or ConfigMap of v1, got \
                     `{}` of `{}`",
                    self.kind, self.api_version
                );
                Err(Error(what))
            }
        }
    }

    fn profile(self) -> Result<StorageProfile, Error> {
        let sets = self.spec.claim_property_sets;
        if sets.len() > SETS_MAX {
            let count = sets.len();
            let what = format!("spec.claimPropertySets: expected at most {SETS_MAX}, got {count}");
            return Err(Error(what));
        }
        let set = |set: PropertySet| ClaimPropertySet {
            access_modes: set.access_modes.into_iter().map(|Word(mode)| mode).collect(),
            volume_mode: set.volume_mode.map(|Word(mode)| mode),
        };
        let minimum: Option<&String> = self.metadata.annotations.get(MINIMUM);
        let minimum_size = minimum.map(|text| {
            let field = format!("metadata.annotations.{MINIMUM}");
            parse::<ByteSize>(&field, text)
        });
        Ok(StorageProfile {
            class: parse("metadata.name", &self.metadata.name)?,
            claim_property_sets: sets.into_iter().map(set).collect(),
            clone_strategy: self.spec.clone_strategy.map(|Word(strategy)| strategy),
            minimum_size: minimum_size.transpose()?,
        })
    }

    fn defaults(self) -> Result<ClaimDefaults, Error> {
        if self.metadata.name != DEFAULTS {
            let name = self.metadata.name;
            return Err(Error(format!("metadata.name: expected {DEFAULTS}, got `{name}`")));
        }
        let mut defaults = ClaimDefaults::default();
        for (key, value) in self.data {
            let field = format!("data.{key}");
            let (class, word) = match key.rsplit_once('.') {
                Some((class, word)) => (Some(parse::<StorageClassName>(&field, class)?), word),
                None => (None, key.as_str()),
            };
            let set = match class {
                Some(class) => defaults.classes.entry(class).or_default(),
                None => &mut defaults.all,
            };
            match word {
                "accessMode" => {
                    set.access_modes = [parse::<AccessMode>(&field, &value)?].into_iter().collect();
                }
                "volumeMode" => set.volume_mode = Some(parse(&field, &value)?),
                _ => {
                    let what = format!(
                        "{field}: unknown; expected accessMode, volumeMode, CLASS.accessMode or \
                         CLASS.volumeMode"
                    );
                    return Err(Error(what));
                }
            }
        }
        Ok(defaults)
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(field: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error| Error(format!("{field}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "\
apiVersion: cdi.kubevirt.io/v1beta1
kind: StorageProfile
metadata:
  annotations:
    cdi.kubevirt.io/minimumSupportedPvcSize: 4Gi
  creationTimestamp: \"2026-05-11T07:19:21Z\"
  generation: 3
  labels:
    app: containerized-data-importer
  name: fast
  ownerReferences:
  - apiVersion: cdi.kubevirt.io/v1beta1
    blockOwnerDeletion: true
    controller: true
    kind: CDI
    name: cdi
    uid: 4e8a63bc
  resourceVersion: \"5128\"
  uid: 0a34c1f5
spec:
  claimPropertySets:
  - accessModes:
    - ReadWriteMany
    volumeMode: Block
  - accessModes:
    - ReadWriteOnce
    - ReadOnlyMany
    volumeMode: Filesystem
  cloneStrategy: csi-clone
status:
  claimPropertySets:
  - accessModes:
    - ReadWriteMany
    volumeMode: Block
  dataImportCronSourceFormat: snapshot
  provisioner: csi.example.com
  storageClass: fast
";

    const DEFAULTS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: kubevirt-storage-class-defaults
  namespace: openshift-cnv
data:
  accessMode: ReadWriteOnce
  volumeMode: Filesystem
  fast.accessMode: ReadWriteMany
  fast.volumeMode: Block
  ssd.local.accessMode: ReadOnlyMany
";

    fn set(modes: &str, mode: Option<VolumeMode>) -> ClaimPropertySet {
        ClaimPropertySet { access_modes: modes.parse().unwrap(), volume_mode: mode }
    }

    #[test]
    fn a_profile_is_read_as_a_cluster_prints_it() {
        let profile = StorageProfile {
            class: "fast".parse().unwrap(),
            claim_property_sets: vec![
                set("RWX", Some(VolumeMode::Block)),
                set("RWO,ROX", Some(VolumeMode::Filesystem)),
            ],
            clone_strategy: Some(CloneStrategy::CsiClone),
            minimum_size: Some("4Gi".parse().unwrap()),
        };
        let profile = StorageDocument::Profile(profile);
        assert_eq!(storage(PROFILE.as_bytes()), Ok(vec![profile.clone()]));
        let item = PROFILE.replace('\n', "\n  ");
        let list = format!("apiVersion: v1\nitems:\n- {item}\nkind: List\nmetadata: {{}}\n");
        assert_eq!(storage(list.as_bytes()), Ok(vec![profile.clone()]));
        let both = format!("{PROFILE}---\n{DEFAULTS}");
        assert_eq!(storage(both.as_bytes()).unwrap().len(), 2);
        let empty = "apiVersion: cdi.kubevirt.io/v1beta1\nkind: StorageProfile\nmetadata: {name: a}\nspec: {}\n";
        assert!(storage(empty.as_bytes()).is_ok());
    }

    #[test]
    fn defaults_are_of_all_classes_and_of_some() {
        let defaults = ClaimDefaults {
            all: set("RWO", Some(VolumeMode::Filesystem)),
            classes: BTreeMap::from([
                ("fast".parse().unwrap(), set("RWX", Some(VolumeMode::Block))),
                ("ssd.local".parse().unwrap(), set("ROX", None)),
            ]),
        };
        assert_eq!(storage(DEFAULTS.as_bytes()), Ok(vec![StorageDocument::Defaults(defaults)]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field_and_line() {
        for (text, from, to, parts) in [
            (
                PROFILE,
                "    volumeMode: Filesystem",
                "    volumeMod: Block",
                &["volumeMod", "28"][..],
            ),
            (
                PROFILE,
                "    - ReadOnlyMany",
                "    - ReadOnly",
                &["unknown access mode `ReadOnly`", "27"],
            ),
            (PROFILE, "csi-clone", "csi", &["unknown clone strategy `csi`; expected copy", "29"]),
            (PROFILE, "name: fast", "name: Fast", &["metadata.name: ", "'F' at character 1"]),
            (PROFILE, ": 4Gi", ": 4GB", &["minimumSupportedPvcSize: unknown suffix"]),
            (PROFILE, "StorageProfile", "Pod", &["kind: expected", "`Pod`"]),
            (PROFILE, "kind: StorageProfile\n", "", &["kind"]),
            (PROFILE, "spec:", "spec: [", &["line"]),
            (
                DEFAULTS,
                "fast.volumeMode: Block",
                "fast.volumeMode: raw",
                &["data.fast.volumeMode: "],
            ),
            (DEFAULTS, "fast.volumeMode", "fast.volume", &["data.fast.volume: unknown; expected"]),
            (DEFAULTS, "fast.volumeMode", "FAST.volumeMode", &["data.FAST.volumeMode: "]),
            (DEFAULTS, "-class-defaults", "", &["metadata.name: expected kubevirt-storage-class"]),
        ] {
            let text = text.replace(from, to);
            let error = storage(text.as_bytes()).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{to}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert_eq!(storage(b"\xff").unwrap_err().to_string(), "byte 0 is not UTF-8");
        assert!(storage(b"").is_err());
    }
}
