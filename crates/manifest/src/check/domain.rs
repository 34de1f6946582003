//! Processors, memory, firmware.

use bootyard_spec::ByteSize;

use super::Check;
use super::vm::Size;
use crate::read::Quantity;
use crate::types::domain::{Cpu, Domain, FirmwareSpec, KernelBootSpec, Memory};
use crate::types::instancetype::Instancetype;

/// The least memory that KubeVirt takes.
const MEMORY_MIN: u64 = 1_000_000;
/// Most processors of a machine.
const PROCESSORS_MAX: u64 = 64;

/// The machine itself.
pub(super) fn domain(domain: &Domain, path: &str, size: Size, check: &mut Check<'_>) {
    memory(domain, path, size, check);
    if let Some(cpu) = &domain.cpu {
        processors(cpu, &format!("{path}.cpu"), check);
    }
    let has_smm = domain
        .features
        .as_ref()
        .and_then(|features| features.smm.as_ref())
        .is_some_and(|smm| smm.enabled != Some(false));
    if let Some(spec) = &domain.firmware {
        firmware(spec, has_smm, &format!("{path}.firmware"), check);
    }
    let board = domain.machine.as_ref().and_then(|machine| machine.r#type.as_deref());
    if let Some(board) = board.filter(|board| !is_board(board)) {
        let message = format!(
            "{path}.machine.type is not supported: {board} (allowed values: [q35* pc-q35*])"
        );
        check.error(&format!("{path}.machine.type"), message);
    }
}

fn is_board(name: &str) -> bool {
    name.is_empty() || name.starts_with("q35") || name.starts_with("pc-q35")
}

fn memory(domain: &Domain, path: &str, size: Size, check: &mut Check<'_>) {
    let asked = |name: &str| {
        let resources = domain.resources.as_ref()?;
        let values = if name == "requests" { &resources.requests } else { &resources.limits };
        values.get("memory").map(|quantity| (format!("{path}.resources.{name}.memory"), quantity))
    };
    let guest = domain.memory.as_ref().and_then(|memory| memory.guest.as_ref());
    let guest = guest.map(|quantity| (format!("{path}.memory.guest"), quantity));
    let all = [guest, asked("requests"), asked("limits")];
    let mut sizes = [None; 3];
    for (size, entry) in sizes.iter_mut().zip(&all) {
        let Some((field, quantity)) = entry else { continue };
        *size = amount(quantity, field, check);
        if size.is_some_and(|size| size.bytes() < MEMORY_MIN) {
            let message = format!("{field} '{}': must be greater than or equal to 1M.", quantity.0);
            check.error(field, message);
        }
    }
    let [guest, requests, limits] = sizes;
    for (value, field) in [(guest, "memory.guest"), (requests, "resources.requests.memory")] {
        if value.zip(limits).is_some_and(|(value, limit)| value > limit) {
            let message = format!("{path}.{field} must be equal to or less than the memory limit");
            check.error(&format!("{path}.{field}"), message);
        }
    }
    let has_hugepages = domain.memory.as_ref().is_some_and(|memory| memory.hugepages.is_some());
    let nothing = all.iter().all(Option::is_none) && !has_hugepages;
    if nothing && size == Size::InFull && !check.knows_of(path) {
        check
            .error(
                &format!("{path}.memory.guest"),
                "no memory requested, at least one of memory.guest, memory.hugepages.size or \
                 resources.requests.memory must be set",
            )
            .hint("write `memory: {guest: 1Gi}` under `domain`");
    }
    hugepages(domain.memory.as_ref(), path, check);
}

fn hugepages(memory: Option<&Memory>, path: &str, check: &mut Check<'_>) {
    let pages = memory.and_then(|memory| memory.hugepages.as_ref());
    let Some(size) = pages.and_then(|pages| pages.page_size.as_deref()) else { return };
    if !matches!(size, "2Mi" | "1Gi") {
        let path = format!("{path}.memory.hugepages.pageSize");
        let message = format!("Unsupported value: {size:?}: supported values: \"2Mi\", \"1Gi\"");
        check.error(&path, message);
    }
}

/// A quantity of bytes.
pub(super) fn amount(
    Quantity(text): &Quantity,
    path: &str,
    check: &mut Check<'_>,
) -> Option<ByteSize> {
    match text.parse() {
        Ok(size) => Some(size),
        Err(error) => {
            check.error(path, format!("Invalid value: {error}"));
            None
        }
    }
}

fn processors(cpu: &Cpu, path: &str, check: &mut Check<'_>) {
    let parts = [("sockets", cpu.sockets), ("cores", cpu.cores), ("threads", cpu.threads)];
    let mut count = 1;
    for (name, value) in parts {
        if value == Some(0) {
            check.error(&format!("{path}.{name}"), "must be greater than 0");
        }
        count *= u64::from(value.unwrap_or(1).max(1)).min(PROCESSORS_MAX + 1);
    }
    if count > PROCESSORS_MAX {
        let message =
            format!("{count} processors, of which a machine has at most {PROCESSORS_MAX}");
        check.error(path, message);
    }
}

fn firmware(firmware: &FirmwareSpec, has_smm: bool, path: &str, check: &mut Check<'_>) {
    if let Some(uuid) = firmware.uuid.as_deref()
        && uuid.parse::<bootyard_spec::Uuid>().is_err()
    {
        let message = format!("Invalid value: {uuid:?}: expected a UUID");
        check.error(&format!("{path}.uuid"), message);
    }
    if let Some(loader) = &firmware.bootloader {
        let field = format!("{path}.bootloader");
        if loader.bios.is_some() && loader.efi.is_some() {
            let both = format!(
                "{field} has both EFI and BIOS configured, but they are mutually exclusive."
            );
            check.error(&format!("{field}.efi"), both);
        }
        let is_secure = loader.efi.as_ref().is_some_and(|efi| efi.secure_boot != Some(false));
        if is_secure && !has_smm {
            let field = format!("{field}.efi");
            let message = format!(
                "{field} has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently \
                 disabled."
            );
            check.error(&field, message).hint(
                "write `features: {smm: {enabled: true}}` under `domain`, or `secureBoot: false`",
            );
        }
    }
    if let Some(kernel) = &firmware.kernel_boot {
        kernel_boot(kernel, &format!("{path}.kernelBoot"), check);
    }
}

fn kernel_boot(kernel: &KernelBootSpec, path: &str, check: &mut Check<'_>) {
    match &kernel.container {
        None if kernel.kernel_args.as_deref().is_some_and(|args| !args.is_empty()) => {
            let message = "kernel arguments cannot be provided without an external kernel";
            check.error(&format!("{path}.kernelArgs"), message);
        }
        None => {}
        Some(container) => {
            if container.image.is_empty() {
                check.error(
                    &format!("{path}.container.image"),
                    "container image must be specified for kernel boot",
                );
            }
            if container.kernel_path.is_none() && container.initrd_path.is_none() {
                check.error(
                    &format!("{path}.container"),
                    "at least one of kernelPath or initrdPath must be provided for kernel boot",
                );
            }
        }
    }
}

/// A size of machines.
pub(super) fn instancetype(size: &Instancetype, check: &mut Check<'_>) {
    let guest = size.spec.cpu.guest;
    if guest == 0 || u64::from(guest) > PROCESSORS_MAX {
        let message = format!("expected 1 to {PROCESSORS_MAX} processors, got {guest}");
        check.error("spec.cpu.guest", message);
    }
    amount(&size.spec.memory.guest, "spec.memory.guest", check);
}
