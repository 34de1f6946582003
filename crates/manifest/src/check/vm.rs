//! VirtualMachine, and the instance that it is a template of.

use super::{Check, data_volume, disks, domain, names, networks, volumes};
use crate::types::data_volume::DataVolumeTemplate;
use crate::types::vm::{
    EvictionStrategy, InstanceSpec, RunStrategyWord, VirtualMachine, VirtualMachineSpec,
};

/// Whether the object itself says how large the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// It does.
    InFull,
    /// An instancetype does.
    ByInstancetype,
}

/// A virtual machine.
pub(super) fn machine(machine: &VirtualMachine, check: &mut Check<'_>) {
    let spec = &machine.spec;
    run_strategy(spec, check);
    let size = instancetype(spec, check);
    templates(spec, check);
    instance(&spec.template.spec, "spec.template.spec", size, check);
}

fn run_strategy(spec: &VirtualMachineSpec, check: &mut Check<'_>) {
    match (spec.running, spec.run_strategy) {
        (Some(_), Some(_)) => {
            let both = "Running and RunStrategy are mutually exclusive. Note that Running is \
                        deprecated, please use RunStrategy instead";
            check.error("spec.running", both).hint("remove `running`");
        }
        (Some(running), None) => {
            let strategy = if running { "Always" } else { "Halted" };
            check
                .warn(
                    "spec.running",
                    "spec.running is deprecated, please use spec.runStrategy instead.",
                )
                .hint(format!("write `runStrategy: {strategy}`"));
        }
        (None, None) if check.knows_of("spec.runStrategy") || check.knows_of("spec.running") => {}
        // What was meant stands there in another spelling, and is an error already.
        (None, None) if check.knows_of("spec.RunStrategy") => {}
        (None, None) => {
            check
                .error("spec.runStrategy", "RunStrategy must be specified")
                .hint("one of Always, RerunOnFailure, Manual, Halted, Once");
        }
        (None, Some(RunStrategyWord::WaitAsReceiver)) => {
            check.error(
                "spec.runStrategy",
                "WaitAsReceiver needs another host that sends the machine",
            );
        }
        (None, Some(_)) => {}
    }
}

/// What an instancetype says, the machine must not say as well.
fn instancetype(spec: &VirtualMachineSpec, check: &mut Check<'_>) -> Size {
    for (matcher, path) in [
        (spec.instancetype.as_ref().map(|m| (&m.name, &m.infer_from_volume)), "spec.instancetype"),
        (spec.preference.as_ref().map(|m| (&m.name, &m.infer_from_volume)), "spec.preference"),
    ] {
        if let Some((None, None)) = matcher
            && !check.knows_of(path)
        {
            check.error(path, "either name or inferFromVolume must be provided");
        }
    }
    if spec.instancetype.is_none() {
        return Size::InFull;
    }
    let domain = &spec.template.spec.domain;
    let cpu = domain.cpu.as_ref();
    let resources = domain.resources.as_ref();
    let asks = |name: &str| {
        resources.is_some_and(|r| r.requests.contains_key(name) || r.limits.contains_key(name))
    };
    for (is_said, field) in [
        (cpu.is_some_and(|cpu| cpu.cores.is_some()), "cpu.cores"),
        (cpu.is_some_and(|cpu| cpu.sockets.is_some()), "cpu.sockets"),
        (cpu.is_some_and(|cpu| cpu.threads.is_some()), "cpu.threads"),
        (domain.memory.as_ref().is_some_and(|memory| memory.guest.is_some()), "memory.guest"),
        (asks("memory"), "resources.requests.memory"),
        (asks("cpu"), "resources.requests.cpu"),
    ] {
        if is_said {
            let path = format!("spec.template.spec.domain.{field}");
            let message = format!("VM field(s) {path} conflicts with selected instance type");
            check.error(&path, message);
        }
    }
    Size::ByInstancetype
}

fn templates(spec: &VirtualMachineSpec, check: &mut Check<'_>) {
    let volumes = &spec.template.spec.volumes;
    for (index, DataVolumeTemplate { metadata, spec: wanted, .. }) in
        spec.data_volume_templates.iter().enumerate()
    {
        let path = format!("spec.dataVolumeTemplates[{index}]");
        let Some(name) = &metadata.name else {
            check.error(&format!("{path}.metadata.name"), "Required value");
            continue;
        };
        names::subdomain(name, &format!("{path}.metadata.name"), check);
        let earlier = &spec.data_volume_templates[..index];
        if earlier.iter().any(|template| template.metadata.name.as_ref() == Some(name)) {
            check.error(&format!("{path}.metadata.name"), format!("Duplicate value: {name:?}"));
        }
        let is_used = volumes.iter().any(|volume| {
            let by_volume = volume.data_volume.as_ref().map(|volume| &volume.name);
            let by_claim = volume.persistent_volume_claim.as_ref().map(|claim| &claim.claim_name);
            by_volume == Some(name) || by_claim == Some(name)
        });
        if !is_used && !check.is_wrong("spec.template.spec.volumes") {
            let message = "DataVolumeTemplate entry must be referenced in the VMI template's \
                           'volumes' list";
            check.error(&path, message).hint(format!("add `- dataVolume: {{name: {name}}}` there"));
        }
        data_volume::spec(wanted, &format!("{path}.spec"), check);
    }
}

/// What a running machine is made of.
pub(super) fn instance(spec: &InstanceSpec, path: &str, size: Size, check: &mut Check<'_>) {
    domain::domain(&spec.domain, &format!("{path}.domain"), size, check);
    volumes::volumes(&spec.volumes, &format!("{path}.volumes"), check);
    disks::disks(spec, path, check);
    networks::networks(spec, path, check);
    if let Some(hostname) = &spec.hostname {
        names::label(hostname, &format!("{path}.hostname"), check);
    }
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let path = format!("{path}.terminationGracePeriodSeconds");
        check.error(&path, "must be greater than or equal to 0");
    }
    if let Some(architecture) = spec.architecture.as_deref().filter(|name| *name != "amd64") {
        let path = format!("{path}.architecture");
        check.error(
            &path,
            format!("Unsupported value: {architecture:?}: supported values: \"amd64\""),
        );
    }
    if let Some(EvictionStrategy::LiveMigrate | EvictionStrategy::LiveMigrateIfPossible) =
        spec.eviction_strategy
    {
        check.warn(
            &format!("{path}.evictionStrategy"),
            "there is no other host to which the machine could move: it is stopped when this one is \
             emptied",
        );
    }
}
