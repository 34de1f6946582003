//! What disks show. Of a volume's kinds exactly one is set.

use super::domain::PullPolicy;
use super::meta::LocalReference;
use crate::read::{Accepted, Quantity, object, words};

object! {
    /// What a disk shows.
    Volume {
        /// The disk that shows it.
        "name" name: String,
        /// A volume that is imported before the machine starts.
        "dataVolume" data_volume: Option<DataVolumeRef>,
        /// A volume that is there.
        "persistentVolumeClaim" persistent_volume_claim: Option<ClaimRef>,
        /// The content of a volume, which is not changed: what the guest writes goes away when it stops.
        "ephemeral" ephemeral: Option<Ephemeral>,
        /// An image in a container image: what the guest writes goes away when it stops.
        "containerDisk" container_disk: Option<ContainerDisk>,
        /// An empty disk, which goes away when the machine stops and stays when the guest restarts.
        "emptyDisk" empty_disk: Option<EmptyDisk>,
        /// An image file of the host.
        "hostDisk" host_disk: Option<HostDisk>,
        /// A seed for cloud-init, as NoCloud.
        "cloudInitNoCloud" cloud_init_no_cloud: Option<CloudInit>,
        /// A seed for cloud-init, as ConfigDrive.
        "cloudInitConfigDrive" cloud_init_config_drive: Option<CloudInit>,
        /// A small disk with the values of a ConfigMap.
        "configMap" config_map: Option<DataRef>,
        /// A small disk with the values of a Secret.
        "secret" secret: Option<SecretRef>,
        /// A small CD with the answers for Windows' set-up.
        "sysprep" sysprep: Option<Sysprep>,
        /// A small disk with facts of the machine's own object.
        "downwardAPI" downward_api: Option<Accepted>,
        /// A small disk with a token of a cluster.
        "serviceAccount" service_account: Option<Accepted>,
        /// Figures of the host, as SAP wants them.
        "downwardMetrics" downward_metrics: Option<Accepted>,
        /// Where the guest's memory is written to.
        "memoryDump" memory_dump: Option<Accepted>,
        /// A folder of the machine's container.
        "containerPath" container_path: Option<Accepted>,
    }

    /// A data volume by its name.
    DataVolumeRef {
        /// The data volume, and the volume that it makes.
        "name" name: String,
        /// It can be plugged in and out.
        "hotpluggable" hotpluggable: Option<bool>,
        /// `dataVolume`, or empty.
        "type" r#type: Option<String>,
    }

    /// A volume by its name.
    ClaimRef {
        /// The volume.
        "claimName" claim_name: String,
        /// The guest may not write.
        "readOnly" read_only: Option<bool>,
        /// It can be plugged in and out.
        "hotpluggable" hotpluggable: Option<bool>,
    }

    /// The content of a volume.
    Ephemeral {
        /// The volume.
        "persistentVolumeClaim" persistent_volume_claim: ClaimRef,
    }

    /// An image in a container image: one file, raw or qcow2.
    ContainerDisk {
        /// The container image.
        "image" image: String,
        /// The file in it, where it is not the only one in `/disk`.
        "path" path: Option<String>,
        /// The secret with the registry's credentials.
        "imagePullSecret" image_pull_secret: Option<String>,
        /// Always, IfNotPresent or Never.
        "imagePullPolicy" image_pull_policy: Option<PullPolicy>,
        /// It can be plugged in and out.
        "hotpluggable" hotpluggable: Option<bool>,
    }

    /// An empty disk.
    EmptyDisk {
        /// Its size, of which whole MiB are used.
        "capacity" capacity: Quantity,
    }

    /// An image file of the host.
    HostDisk {
        /// The file.
        "path" path: String,
        /// `Disk`: it is there; `DiskOrCreate`: it is made if it is not.
        "type" r#type: HostDiskKind,
        /// Its size where it is made.
        "capacity" capacity: Option<Quantity>,
        /// Several machines write to it.
        "shared" shared: Option<bool>,
    }

    /// A seed for cloud-init.
    CloudInit {
        /// The user-data.
        "userData" user_data: Option<String>,
        /// The user-data in base64.
        "userDataBase64" user_data_base64: Option<String>,
        /// The secret whose key `userdata` or `userData` has the user-data.
        "secretRef" secret_ref: Option<LocalReference>,
        /// The configuration of the network.
        "networkData" network_data: Option<String>,
        /// The same in base64.
        "networkDataBase64" network_data_base64: Option<String>,
        /// The secret whose key `networkdata` or `networkData` has it.
        "networkDataSecretRef" network_data_secret_ref: Option<LocalReference>,
    }

    /// A ConfigMap by its name.
    DataRef {
        /// Its name.
        "name" name: String,
        /// The machine starts without it, too.
        "optional" optional: Option<bool>,
        /// The label of the disk.
        "volumeLabel" volume_label: Option<String>,
    }

    /// A Secret by its name.
    SecretRef {
        /// Its name.
        "secretName" secret_name: String,
        /// The machine starts without it, too.
        "optional" optional: Option<bool>,
        /// The label of the disk.
        "volumeLabel" volume_label: Option<String>,
    }

    /// Answers for Windows' set-up.
    Sysprep {
        /// The ConfigMap that has them.
        "configMap" config_map: Option<LocalReference>,
        /// The Secret that has them.
        "secret" secret: Option<LocalReference>,
    }
}

words! {
    /// Whether a file of the host is made.
    HostDiskKind {
        /// It is there.
        Disk = "Disk",
        /// It is made if it is not there.
        DiskOrCreate = "DiskOrCreate",
    }
}
