//! Disks: each shows a volume, on a bus that can.

use std::collections::BTreeMap;

use super::domain::amount;
use super::volumes::{COUNT_MAX, kinds};
use super::{Check, names};
use crate::types::devices::{Bus, CustomBlockSize, Disk};
use crate::types::vm::InstanceSpec;

/// Longest serial number.
const SERIAL_MAX: usize = 256;
/// The sizes of blocks that QEMU takes.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=2 << 20;

/// All disks of a machine.
pub(super) fn disks(spec: &InstanceSpec, path: &str, check: &mut Check<'_>) {
    let disks = &spec.domain.devices.disks;
    let at = format!("{path}.domain.devices.disks");
    if disks.len() > COUNT_MAX {
        check.error(&at, format!("{at} list exceeds the {COUNT_MAX} element limit in length"));
    }
    for (index, disk) in disks.iter().enumerate() {
        let field = format!("{at}[{index}]");
        names::label(&disk.name, &format!("{field}.name"), check);
        if let Some(other) = disks[..index].iter().position(|other| other.name == disk.name) {
            let message = format!("{at}[{other}] and {field} must not have the same Name.");
            check.error(&format!("{field}.name"), message);
        }
        let has_volume = spec.volumes.iter().any(|volume| volume.name == disk.name);
        if !has_volume && !check.is_wrong(&format!("{path}.volumes")) {
            let message = format!("{field}.Name '{}' not found.", disk.name);
            let problem = check.error(&format!("{field}.name"), message);
            let names = spec.volumes.iter().map(|volume| volume.name.as_str());
            match bootyard_spec::near_word(&disk.name, names) {
                Some(near) => problem.hint(format!("did you mean the volume `{near}`?")),
                None => {
                    problem.hint(format!("there must be a volume `{}` in `volumes`", disk.name));
                }
            }
        }
        device(disk, &field, check);
        attributes(disk, &field, check);
    }
    without_disk(spec, path, check);
    boot_order(spec, path, check);
}

/// A cluster gives volumes without a disk one.
fn without_disk(spec: &InstanceSpec, path: &str, check: &mut Check<'_>) {
    if check.is_wrong(&format!("{path}.domain.devices.disks")) {
        return;
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        let has_disk = spec.domain.devices.disks.iter().any(|disk| disk.name == volume.name);
        let needs_none = matches!(
            kinds(volume).as_slice(),
            [] | ["downwardMetrics" | "memoryDump" | "containerPath"]
        );
        if !has_disk && !needs_none {
            check
                .warn(
                    &format!("{path}.volumes[{index}].name"),
                    format!(
                        "no disk shows the volume `{}`: one is added, as in a cluster",
                        volume.name
                    ),
                )
                .hint(format!(
                    "add `- {{name: {}, disk: {{bus: virtio}}}}` to `domain.devices.disks`",
                    volume.name
                ));
        }
    }
}

fn device(disk: &Disk, path: &str, check: &mut Check<'_>) {
    let set = [disk.disk.is_some(), disk.cdrom.is_some(), disk.lun.is_some()];
    if set.into_iter().filter(|is_set| *is_set).count() > 1 {
        check.error(path, format!("{path} must have only a single device type defined"));
    }
    let hard_disk = disk.disk.as_ref();
    for (bus, field) in [
        (hard_disk.and_then(|disk| disk.bus), "disk.bus"),
        (disk.cdrom.as_ref().and_then(|cdrom| cdrom.bus), "cdrom.bus"),
        (disk.lun.as_ref().and_then(|lun| lun.bus), "lun.bus"),
    ] {
        let field = format!("{path}.{field}");
        match bus {
            Some(Bus::Virtio) if field.ends_with("cdrom.bus") => {
                let message = "Bus type virtio is invalid for CD-ROM device";
                check.error(&field, message).hint("use `scsi` or `sata`");
            }
            Some(Bus::Virtio | Bus::Usb) if field.ends_with("lun.bus") => {
                let message = "Bus type is invalid for LUN device";
                check.error(&field, message).hint("use `scsi`");
            }
            _ => {}
        }
    }
    if let Some(disk) = hard_disk {
        if disk.bus == Some(Bus::Sata) && disk.readonly == Some(true) {
            let message = "sata hard-disks do not support read-only.";
            check.error(&format!("{path}.disk.readonly"), message).hint("use `scsi` or `virtio`");
        }
        if disk.pci_address.is_some() && !matches!(disk.bus, None | Some(Bus::Virtio)) {
            let message = "setting a PCI address is only possible with bus type virtio.";
            check.error(&format!("{path}.disk.pciAddress"), message);
        }
    }
}

fn attributes(disk: &Disk, path: &str, check: &mut Check<'_>) {
    if let Some(serial) = &disk.serial {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        let field = format!("{path}.serial");
        if serial.len() > SERIAL_MAX {
            let message = format!(
                "{field} must be less than or equal to {SERIAL_MAX} in length, if specified"
            );
            check.error(&field, message);
        } else if !serial.bytes().all(allowed) {
            let message = format!(
                "{field} must be made up of the following characters [A-Za-z0-9_.+-], if specified"
            );
            check.error(&field, message);
        }
    }
    let is_virtio = disk.disk.as_ref().is_none_or(|d| matches!(d.bus, None | Some(Bus::Virtio)));
    if disk.dedicated_io_thread == Some(true) && (!is_virtio || disk.cdrom.is_some()) {
        let message = "IOThreads are only supported for disks on a virtio bus";
        check.error(&format!("{path}.dedicatedIOThread"), message);
    }
    let Some(size) = &disk.block_size else { return };
    let field = format!("{path}.blockSize");
    let matches_volume = size.match_volume.as_ref().is_some_and(|m| m.enabled != Some(false));
    match &size.custom {
        Some(_) if matches_volume => {
            check
                .error(&field, "Block size matching can't be enabled together with a custom value");
        }
        Some(custom) => block_size(custom, disk, &format!("{field}.custom"), check),
        None => {}
    }
}

fn block_size(custom: &CustomBlockSize, disk: &Disk, path: &str, check: &mut Check<'_>) {
    let CustomBlockSize { logical, physical, discard_granularity } = custom;
    for (value, name) in [(*logical, "logical"), (*physical, "physical")] {
        let field = format!("{path}.{name}");
        if !BLOCK_SIZES.contains(&value) {
            let message =
                format!("Provided size of {value} is not within the range of 512 and 2097152");
            check.error(&field, message);
        } else if !value.is_power_of_two() {
            check.error(&field, format!("Provided size of {value} is not a power of 2"));
        }
    }
    if logical > physical {
        let message = format!(
            "Logical size {logical} must be the same or less than the physical size of {physical}"
        );
        check.error(&format!("{path}.logical"), message);
    }
    let is_sata = disk.disk.as_ref().is_some_and(|disk| disk.bus == Some(Bus::Sata));
    if is_sata && *logical != 512 {
        check.error(&format!("{path}.logical"), "Logical size must be 512 with bus type sata");
    }
    if let Some(granularity) = discard_granularity {
        amount(granularity, &format!("{path}.discardGranularity"), check);
    }
}

/// Of disks and interfaces together.
fn boot_order(spec: &InstanceSpec, path: &str, check: &mut Check<'_>) {
    let devices = &spec.domain.devices;
    let disks =
        devices.disks.iter().enumerate().map(|(index, disk)| ("disks", index, disk.boot_order));
    let interfaces = devices.interfaces.iter().enumerate();
    let interfaces =
        interfaces.map(|(index, interface)| ("interfaces", index, interface.boot_order));
    let mut seen = BTreeMap::new();
    for (list, index, order) in disks.chain(interfaces) {
        let Some(order) = order else { continue };
        let device = format!("{path}.domain.devices.{list}[{index}]");
        let field = format!("{device}.bootOrder");
        if order == 0 {
            check.error(&field, format!("{field} must have a boot order > 0, if supplied"));
        } else if let Some(other) = seen.insert(order, device) {
            let message = format!("Boot order for {field} already set for a different device.");
            check.error(&field, message).hint(format!("`{other}` has it"));
        }
    }
}
