//! Interfaces and networks: each leads to the other, by a binding that can.

use super::volumes::COUNT_MAX;
use super::{Check, names};
use crate::types::network::{Interface, Network};
use crate::types::vm::InstanceSpec;

/// Longest name of an interface.
const NAME_MAX: usize = 256;

/// All interfaces and networks of a machine.
pub(super) fn networks(spec: &InstanceSpec, path: &str, check: &mut Check<'_>) {
    let interfaces = &spec.domain.devices.interfaces;
    let (at, networks_at) =
        (format!("{path}.domain.devices.interfaces"), format!("{path}.networks"));
    if interfaces.len() > COUNT_MAX {
        check.error(&at, format!("{at} list exceeds the {COUNT_MAX} element limit in length"));
    }
    for (index, interface) in interfaces.iter().enumerate() {
        let field = format!("{at}[{index}]");
        name(&interface.name, interfaces.iter().map(|i| &i.name).take(index), &at, &field, check);
        let network = spec.networks.iter().find(|network| network.name == interface.name);
        if network.is_none() && !check.is_wrong(&networks_at) {
            let message = format!("{field}.name '{}' not found.", interface.name);
            let problem = check.error(&format!("{field}.name"), message);
            let names = spec.networks.iter().map(|network| network.name.as_str());
            match bootyard_spec::near_word(&interface.name, names) {
                Some(near) => problem.hint(format!("did you mean the network `{near}`?")),
                None => problem.hint(format!(
                    "there must be a network `{}` in `networks`, as `{{name: {}, pod: {{}}}}`",
                    interface.name, interface.name
                )),
            }
        }
        binding(interface, network, &field, check);
        attributes(interface, &field, check);
    }
    let mut pod: Option<usize> = None;
    for (index, network) in spec.networks.iter().enumerate() {
        let field = format!("{networks_at}[{index}]");
        name(
            &network.name,
            spec.networks.iter().map(|n| &n.name).take(index),
            &networks_at,
            &field,
            check,
        );
        kind(network, &field, check);
        if network.pod.is_some() && pod.replace(index).is_some() {
            check.error(
                &field,
                format!("more than one interface is connected to a pod network in {at}"),
            );
        }
        let has_interface = interfaces.iter().any(|interface| interface.name == network.name);
        if !has_interface && !check.is_wrong(&at) {
            let message = format!("{field}.name '{}' not found.", network.name);
            check
                .error(&format!("{field}.name"), message)
                .hint("no interface leads to this network; remove it or add one");
        }
    }
}

fn name<'a>(
    name: &str,
    mut earlier: impl Iterator<Item = &'a String>,
    list: &str,
    path: &str,
    check: &mut Check<'_>,
) {
    let field = format!("{path}.name");
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(allowed) {
        let message = "Network interface name can only contain alphabetical characters, numbers, \
                       dashes (-) or underscores (_)";
        check.error(&field, message);
    }
    if let Some(other) = earlier.position(|other| other == name) {
        check.error(&field, format!("{list}[{other}] and {path} must not have the same Name."));
    }
}

fn kind(network: &Network, path: &str, check: &mut Check<'_>) {
    let set = [network.pod.is_some(), network.multus.is_some(), network.resource_claim.is_some()];
    match set.into_iter().filter(|is_set| *is_set).count() {
        1 => {}
        0 if check.knows_of(path) => {}
        0 => check.error(path, "should have a network type").hint("for example `pod: {}`"),
        _ => {
            check.error(path, "should have only one network type");
        }
    }
}

fn binding(interface: &Interface, network: Option<&Network>, path: &str, check: &mut Check<'_>) {
    let set = [
        ("masquerade", interface.masquerade.is_some()),
        ("bridge", interface.bridge.is_some()),
        ("passtBinding", interface.passt_binding.is_some()),
        ("passt", interface.passt.is_some()),
        ("sriov", interface.sriov.is_some()),
        ("macvtap", interface.macvtap.is_some()),
        ("slirp", interface.slirp.is_some()),
        ("binding", interface.binding.is_some()),
    ];
    let set: Vec<&str> = set.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
    if let [_, second, ..] = set.as_slice() {
        check.error(
            &format!("{path}.{second}"),
            "logical error: only one interface binding can be set",
        );
    }
    let Some(network) = network else { return };
    let is_pod = network.pod.is_some();
    if interface.masquerade.is_some() && !is_pod {
        check
            .error(
                &format!("{path}.masquerade"),
                "Masquerade interface only implemented with pod network",
            )
            .hint("use `bridge: {}`");
    }
    if interface.bridge.is_some() && is_pod {
        check
            .error(&format!("{path}.bridge"), "Bridge on pod network configuration is not enabled")
            .hint(
                "use `masquerade: {}`, or a `multus` network whose name is a bridge of this host",
            );
    }
    for field in ["sriov", "macvtap", "slirp"] {
        if set.contains(&field) {
            check
                .error(&format!("{path}.{field}"), format!("this host has no {field}"))
                .hint("use `masquerade: {}` on the pod network, or `bridge: {}` on another one");
        }
    }
}

fn attributes(interface: &Interface, path: &str, check: &mut Check<'_>) {
    if let Some(mac) = &interface.mac_address
        && mac.parse::<bootyard_spec::MacAddress>().is_err()
    {
        let message = format!("interface {path}.name has malformed MAC address ({mac}).");
        check.error(&format!("{path}.macAddress"), message).hint("as `52:54:00:12:34:56`");
    }
    for (index, port) in interface.ports.iter().enumerate() {
        let field = format!("{path}.ports[{index}]");
        if port.port == 0 {
            check.error(
                &format!("{field}.port"),
                "Port field is mandatory, and must be 0 < x < 65536.",
            );
        }
        let Some(name) = &port.name else { continue };
        names::label(name, &format!("{field}.name"), check);
        if interface.ports[..index].iter().any(|other| other.name.as_ref() == Some(name)) {
            let message = format!("Duplicate name of the port: {name}");
            check.error(&format!("{field}.name"), message);
        }
    }
}
