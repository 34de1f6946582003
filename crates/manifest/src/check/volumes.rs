//! Volumes: each has a name of its own and one kind.

use super::domain::amount;
use super::{Check, names};
use crate::types::volume::{CloudInit, HostDiskKind, Volume};

/// Most volumes of a machine.
pub(super) const COUNT_MAX: usize = 256;
/// Most bytes of user-data or network-data that a cluster takes in the manifest itself.
const INLINE_MAX: usize = 2048;

/// All volumes of a machine.
pub(super) fn volumes(volumes: &[Volume], path: &str, check: &mut Check<'_>) {
    if volumes.len() > COUNT_MAX {
        let message = format!("{path} list exceeds the {COUNT_MAX} element limit in length");
        check.error(path, message);
    }
    for (index, volume) in volumes.iter().enumerate() {
        let field = format!("{path}[{index}]");
        names::label(&volume.name, &format!("{field}.name"), check);
        if let Some(other) = volumes[..index].iter().position(|other| other.name == volume.name) {
            let message = format!("{path}[{other}] and {field} must not have the same Name.");
            check.error(&format!("{field}.name"), message);
        }
        kind(volume, &field, check);
        content(volume, &field, check);
    }
}

/// The kinds of volumes that are set.
pub(crate) fn kinds(volume: &Volume) -> Vec<&'static str> {
    let kinds = [
        ("dataVolume", volume.data_volume.is_some()),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("containerDisk", volume.container_disk.is_some()),
        ("emptyDisk", volume.empty_disk.is_some()),
        ("hostDisk", volume.host_disk.is_some()),
        ("cloudInitNoCloud", volume.cloud_init_no_cloud.is_some()),
        ("cloudInitConfigDrive", volume.cloud_init_config_drive.is_some()),
        ("configMap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("sysprep", volume.sysprep.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
        ("serviceAccount", volume.service_account.is_some()),
        ("downwardMetrics", volume.downward_metrics.is_some()),
        ("memoryDump", volume.memory_dump.is_some()),
        ("containerPath", volume.container_path.is_some()),
    ];
    kinds.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
}

fn kind(volume: &Volume, path: &str, check: &mut Check<'_>) {
    let kinds = kinds(volume);
    if kinds.len() == 1 || (kinds.is_empty() && check.knows_of(path)) {
        return;
    }
    let problem = check.error(path, format!("{path} must have exactly one source type set"));
    match kinds.is_empty() {
        true => problem.hint("for example `emptyDisk: {capacity: 1Gi}` or `dataVolume: {name: …}`"),
        false => problem.hint(format!("{} are set", kinds.join(" and "))),
    }
}

fn content(volume: &Volume, path: &str, check: &mut Check<'_>) {
    if let Some(volume) = &volume.data_volume {
        names::subdomain(&volume.name, &format!("{path}.dataVolume.name"), check);
        if let Some(kind) =
            volume.r#type.as_deref().filter(|kind| !matches!(*kind, "" | "dataVolume"))
        {
            check
                .warn(
                    &format!("{path}.dataVolume.type"),
                    format!("the type {kind:?} is none of \"dataVolume\" and \"\": the machine does not start"),
                )
                .hint("remove `type`");
        }
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        names::subdomain(
            &claim.claim_name,
            &format!("{path}.persistentVolumeClaim.claimName"),
            check,
        );
    }
    if let Some(disk) = &volume.empty_disk {
        let field = format!("{path}.emptyDisk.capacity");
        let size = amount(&disk.capacity, &field, check);
        if size.is_some_and(|size| size.empty_disk().is_none()) {
            check
                .error(&field, format!("the size for volume {} is too low", volume.name))
                .hint("at least 1Mi");
        }
    }
    if let Some(disk) = &volume.container_disk
        && disk.image.is_empty()
    {
        check.error(&format!("{path}.containerDisk.image"), "Required value");
    }
    if let Some(disk) = &volume.host_disk {
        let field = format!("{path}.hostDisk");
        if disk.path.is_empty() {
            check.error(
                &format!("{field}.path"),
                format!("{field}.path is required for hostDisk volume"),
            );
        }
        if disk.r#type == HostDiskKind::Disk && disk.capacity.is_some() {
            let message = format!(
                "{field}.capacity is allowed to pass only with {field}.type equal to DiskOrCreate"
            );
            check.error(&format!("{field}.capacity"), message);
        }
        if let Some(capacity) = &disk.capacity {
            amount(capacity, &format!("{field}.capacity"), check);
        }
    }
    for (seed, name) in [
        (&volume.cloud_init_no_cloud, "cloudInitNoCloud"),
        (&volume.cloud_init_config_drive, "cloudInitConfigDrive"),
    ] {
        if let Some(seed) = seed {
            cloud_init(seed, &format!("{path}.{name}"), check);
        }
    }
}

fn cloud_init(seed: &CloudInit, path: &str, check: &mut Check<'_>) {
    let user = [
        ("userData", seed.user_data.is_some()),
        ("userDataBase64", seed.user_data_base64.is_some()),
        ("secretRef", seed.secret_ref.is_some()),
    ];
    let network = [
        ("networkData", seed.network_data.is_some()),
        ("networkDataBase64", seed.network_data_base64.is_some()),
        ("networkDataSecretRef", seed.network_data_secret_ref.is_some()),
    ];
    let set = |fields: &[(&'static str, bool); 3]| -> Vec<&'static str> {
        fields.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name).collect()
    };
    for (fields, what) in [(set(&user), "userdata"), (set(&network), "networkdata")] {
        if let [_, second, ..] = fields.as_slice() {
            let message = format!("{path} must have only one {what} source set.");
            check.error(&format!("{path}.{second}"), message);
        }
    }
    if set(&user).is_empty() && set(&network).is_empty() && !check.knows_of(path) {
        let message =
            format!("{path} must have at least one userdatasource or one networkdatasource set.");
        check.error(path, message);
    }
    for (text, name, what, secret) in [
        (&seed.user_data, "userData", "userdata", "secretRef"),
        (&seed.network_data, "networkData", "networkdata", "networkDataSecretRef"),
    ] {
        if text.as_ref().is_some_and(|text| text.len() > INLINE_MAX) {
            let message = format!(
                "{what} exceeds {INLINE_MAX} byte limit of a cluster. Should use {secret} for larger data."
            );
            check.warn(&format!("{path}.{name}"), message);
        }
    }
    for (text, name) in [
        (&seed.user_data_base64, "userDataBase64"),
        (&seed.network_data_base64, "networkDataBase64"),
    ] {
        if text.as_ref().is_some_and(|text| !names::is_base64(text)) {
            let field = format!("{path}.{name}");
            let message = format!("{field} is not a valid base64 value.");
            check.error(&field, message);
        }
    }
}
