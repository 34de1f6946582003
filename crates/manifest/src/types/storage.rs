//! StorageProfile (`cdi.kubevirt.io/v1beta1`), ConfigMap and Secret (`v1`).

use std::collections::BTreeMap;

use super::data_volume::{AccessModeWord, VolumeModeWord};
use super::meta::ObjectMeta;
use crate::read::{Accepted, Silent, object, words};

object! {
    /// Defaults of a storage class.
    StorageProfile {
        /// `cdi.kubevirt.io/v1beta1`.
        "apiVersion" api_version: String,
        /// `StorageProfile`.
        "kind" kind: String,
        /// Its name, which is the storage class's too.
        "metadata" metadata: ObjectMeta,
        /// The defaults.
        "spec" spec: StorageProfileSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// Defaults of a storage class.
    StorageProfileSpec {
        /// Modes of its volumes, the best first.
        "claimPropertySets" claim_property_sets: Vec<ClaimProperties>,
        /// How its volumes are cloned.
        "cloneStrategy" clone_strategy: Option<CloneStrategyWord>,
        /// How a cron keeps what it imports.
        "dataImportCronSourceFormat" data_import_cron_source_format: Option<Accepted>,
        /// For the snapshots of a cluster.
        "snapshotClass" snapshot_class: Option<Accepted>,
    }

    /// Modes of a volume.
    ClaimProperties {
        /// Who may use it at the same time.
        "accessModes" access_modes: Vec<AccessModeWord>,
        /// How it is stored.
        "volumeMode" volume_mode: Option<VolumeModeWord>,
    }

    /// Named texts.
    ConfigMap {
        /// `v1`.
        "apiVersion" api_version: String,
        /// `ConfigMap`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// The texts.
        "data" data: BTreeMap<String, String>,
        /// Bytes in base64.
        "binaryData" binary_data: BTreeMap<String, String>,
        /// It is not to change.
        "immutable" immutable: Option<bool>,
    }

    /// Named texts that nobody should see.
    Secret {
        /// `v1`.
        "apiVersion" api_version: String,
        /// `Secret`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// Bytes in base64.
        "data" data: BTreeMap<String, String>,
        /// Texts as they are.
        "stringData" string_data: BTreeMap<String, String>,
        /// What the texts are for.
        "type" r#type: Option<String>,
        /// It is not to change.
        "immutable" immutable: Option<bool>,
    }
}

words! {
    /// How volumes are cloned.
    CloneStrategyWord {
        /// By copying.
        Copy = "copy",
        /// By a snapshot.
        Snapshot = "snapshot",
        /// By the storage itself.
        CsiClone = "csi-clone",
    }
}
