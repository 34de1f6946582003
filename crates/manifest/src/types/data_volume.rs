//! DataVolume, DataSource and DataImportCron (`cdi.kubevirt.io/v1beta1`), and PersistentVolumeClaim.

use std::collections::BTreeMap;

use super::meta::ObjectMeta;
use crate::read::{Accepted, Empty, Quantity, Silent, object, words};

object! {
    /// A volume, and what it is filled with.
    DataVolume {
        /// `cdi.kubevirt.io/v1beta1`.
        "apiVersion" api_version: String,
        /// `DataVolume`.
        "kind" kind: String,
        /// Its name, which is the volume's too.
        "metadata" metadata: ObjectMeta,
        /// What is wanted.
        "spec" spec: DataVolumeSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// A data volume of a machine.
    DataVolumeTemplate {
        /// `cdi.kubevirt.io/v1beta1`.
        "apiVersion" api_version: Option<String>,
        /// `DataVolume`.
        "kind" kind: Option<String>,
        /// Its name, which is the volume's too.
        "metadata" metadata: ObjectMeta,
        /// What is wanted.
        "spec" spec: DataVolumeSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// What a volume is filled with, and how it is stored.
    DataVolumeSpec {
        /// What it is filled with.
        "source" source: Option<DataVolumeSource>,
        /// The same, by the name of a DataSource.
        "sourceRef" source_ref: Option<SourceRef>,
        /// How it is stored, in full.
        "pvc" pvc: Option<ClaimSpec>,
        /// How it is stored, with the defaults of the storage class.
        "storage" storage: Option<ClaimSpec>,
        /// `kubevirt`, a disk; or `archive`, a tar file that becomes a folder.
        "contentType" content_type: Option<ContentType>,
        /// The volume gets all of its space at once.
        "preallocation" preallocation: Option<bool>,
        /// Stages of an import that goes on while the machine runs elsewhere.
        "checkpoints" checkpoints: Option<Accepted>,
        /// The last of those stages.
        "finalCheckpoint" final_checkpoint: Option<Accepted>,
        /// For the scheduler of a cluster.
        "priorityClassName" priority_class_name: Option<Accepted>,
        /// For the accounts of a cluster.
        "serviceAccountName" service_account_name: Option<Accepted>,
    }

    /// What a volume is filled with: exactly one of these.
    DataVolumeSource {
        /// An image from a web server.
        "http" http: Option<HttpSource>,
        /// An image from an S3 bucket.
        "s3" s3: Option<BucketSource>,
        /// An image from a Google bucket.
        "gcs" gcs: Option<BucketSource>,
        /// An image in a container image.
        "registry" registry: Option<RegistrySource>,
        /// A copy of another volume.
        "pvc" pvc: Option<ObjectRef>,
        /// A copy of a snapshot.
        "snapshot" snapshot: Option<ObjectRef>,
        /// What a client uploads.
        "upload" upload: Option<Empty>,
        /// Nothing.
        "blank" blank: Option<Empty>,
        /// An image of oVirt.
        "imageio" imageio: Option<Accepted>,
        /// An image of VMware.
        "vddk" vddk: Option<Accepted>,
    }

    /// An image from a web server.
    HttpSource {
        /// Its address.
        "url" url: String,
        /// The secret with `accessKeyId` and `secretKey`, the user and the password.
        "secretRef" secret_ref: Option<String>,
        /// The ConfigMap with the certificates to trust.
        "certConfigMap" cert_config_map: Option<String>,
        /// Headers to send along, as `Name: value`.
        "extraHeaders" extra_headers: Vec<String>,
        /// Secrets with such headers.
        "secretExtraHeaders" secret_extra_headers: Vec<String>,
        /// The digest of what is sent, as `sha256:…`.
        "checksum" checksum: Option<String>,
        /// Does not look at the server's certificate.
        "insecureSkipVerify" insecure_skip_verify: Option<bool>,
    }

    /// An image from a bucket.
    BucketSource {
        /// Its address.
        "url" url: String,
        /// The secret with the credentials.
        "secretRef" secret_ref: Option<String>,
        /// The ConfigMap with the certificates to trust.
        "certConfigMap" cert_config_map: Option<String>,
    }

    /// An image in a container image.
    RegistrySource {
        /// Its address, as `docker://…` or `oci-archive:…`.
        "url" url: Option<String>,
        /// A stream of images of a cluster.
        "imageStream" image_stream: Option<String>,
        /// `pod` or `node`: who pulls it in a cluster.
        "pullMethod" pull_method: Option<String>,
        /// The secret with the registry's credentials.
        "secretRef" secret_ref: Option<String>,
        /// The ConfigMap with the certificates to trust.
        "certConfigMap" cert_config_map: Option<String>,
        /// For which machines the image is.
        "platform" platform: Option<PlatformSpec>,
    }

    /// For which machines an image is.
    PlatformSpec {
        /// The processor's architecture.
        "architecture" architecture: Option<String>,
    }

    /// Another object by its name.
    ObjectRef {
        /// Where a cluster keeps it. Here everything is in one place.
        "namespace" namespace: Option<String>,
        /// Its name.
        "name" name: String,
    }

    /// A DataSource by its name.
    SourceRef {
        /// `DataSource`.
        "kind" kind: String,
        /// Where a cluster keeps it. Here everything is in one place.
        "namespace" namespace: Option<String>,
        /// Its name.
        "name" name: String,
    }

    /// How a volume is stored.
    ClaimSpec {
        /// Who may use it at the same time.
        "accessModes" access_modes: Vec<AccessModeWord>,
        /// `Filesystem`: an image file; `Block`: a block device.
        "volumeMode" volume_mode: Option<VolumeModeWord>,
        /// Its size, as `requests.storage`.
        "resources" resources: Option<ClaimResources>,
        /// The class of the storage.
        "storageClassName" storage_class_name: Option<String>,
        /// By which labels a cluster finds the storage.
        "selector" selector: Option<Accepted>,
        /// Which storage of a cluster it is.
        "volumeName" volume_name: Option<Accepted>,
        /// What fills it in a cluster.
        "dataSource" data_source: Option<Accepted>,
        /// What fills it in a cluster.
        "dataSourceRef" data_source_ref: Option<Accepted>,
        /// For the storage of a cluster.
        "volumeAttributesClassName" volume_attributes_class_name: Option<Accepted>,
    }

    /// The size of a volume.
    ClaimResources {
        /// `storage`: the size.
        "requests" requests: BTreeMap<String, Quantity>,
        /// `storage`: the most it may grow to.
        "limits" limits: BTreeMap<String, Quantity>,
    }

    /// A volume as a cluster asks for it.
    PersistentVolumeClaim {
        /// `v1`.
        "apiVersion" api_version: String,
        /// `PersistentVolumeClaim`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// What is wanted.
        "spec" spec: ClaimSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// A name for what volumes can be filled with.
    DataSource {
        /// `cdi.kubevirt.io/v1beta1`.
        "apiVersion" api_version: String,
        /// `DataSource`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// What it stands for.
        "spec" spec: DataSourceSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// What a DataSource stands for.
    DataSourceSpec {
        /// A volume, a snapshot or another DataSource.
        "source" source: DataSourceSource,
    }

    /// What a DataSource stands for: exactly one of these.
    DataSourceSource {
        /// A volume.
        "pvc" pvc: Option<ObjectRef>,
        /// A snapshot.
        "snapshot" snapshot: Option<ObjectRef>,
        /// Another DataSource.
        "dataSource" data_source: Option<ObjectRef>,
    }

    /// An import that is done again when the image changes.
    DataImportCron {
        /// `cdi.kubevirt.io/v1beta1`.
        "apiVersion" api_version: String,
        /// `DataImportCron`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// What is wanted.
        "spec" spec: DataImportCronSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// An import that is done again when the image changes.
    DataImportCronSpec {
        /// The volumes that it makes.
        "template" template: DataVolumeTemplate,
        /// When it looks, as cron writes it; empty: when it is told.
        "schedule" schedule: String,
        /// `Outdated` volumes are removed, or `Never`.
        "garbageCollect" garbage_collect: Option<GarbageCollect>,
        /// How many volumes are kept; 3 if absent.
        "importsToKeep" imports_to_keep: Option<u32>,
        /// The DataSource that stands for the newest.
        "managedDataSource" managed_data_source: String,
        /// What stays when the cron is removed.
        "retentionPolicy" retention_policy: Option<RetentionPolicy>,
        /// For the accounts of a cluster.
        "serviceAccountName" service_account_name: Option<Accepted>,
        /// Who made the cron.
        "createdBy" created_by: Option<Accepted>,
    }
}

words! {
    /// What an image is.
    ContentType {
        /// A disk.
        KubeVirt = "kubevirt",
        /// A tar file that becomes a folder.
        Archive = "archive",
    }

    /// Who may use a volume at the same time.
    AccessModeWord {
        /// Many, reading.
        ReadOnlyMany = "ReadOnlyMany",
        /// Many.
        ReadWriteMany = "ReadWriteMany",
        /// One host.
        ReadWriteOnce = "ReadWriteOnce",
        /// One machine.
        ReadWriteOncePod = "ReadWriteOncePod",
    }

    /// How a volume is stored.
    VolumeModeWord {
        /// As an image file.
        Filesystem = "Filesystem",
        /// As a block device.
        Block = "Block",
        /// As the class has it.
        FromStorageProfile = "FromStorageProfile",
    }

    /// Which volumes of a cron are removed.
    GarbageCollect {
        /// Those that are not the newest.
        Outdated = "Outdated",
        /// None.
        Never = "Never",
    }

    /// What stays of a cron that is removed.
    RetentionPolicy {
        /// Its volumes.
        All = "All",
        /// Nothing.
        None = "None",
    }
}
