//! meta-data and network configuration.

use std::collections::HashSet;
use std::rc::Rc;

use super::cloud_config::read;
use super::finding::Code;
use super::schema::{self, Schema, What};
use super::text::{Report, Source};
use super::words;
use bootyard_yaml::{Entry, Mark, Node, Value};

/// NoCloud's `meta-data`: YAML with the instance's identity. It has no schema.
pub(super) fn check_meta_data(source: &mut Source<'_>) {
    let Some(document) = mapping(source, "a mapping with `instance-id` and `local-hostname`")
    else {
        return;
    };
    for entry in document.entries() {
        let Some(key) = entry.key.text() else { continue };
        let known = ["instance-id", "local-hostname", "public-keys", "network-interfaces"];
        let meant = known.into_iter().find(|name| {
            *name != key
                && (key.replace('_', "-") == *name || bootyard_spec::word_distance(key, name) == 1)
        });
        if let Some(meant) = meant {
            let what = format!("NoCloud does not look at the key `{key}`");
            let report = Report::warning(Code::UnknownKey, what).at(entry.key.mark).path(key);
            source.push(report.hint(format!("did you mean `{meant}`?")));
        }
    }
    check_text(source, &document, "instance-id");
    check_text(source, &document, "local-hostname");
    let is_there = |key: &str| document.get(key).is_some_and(|value| value.value != Value::Null);
    if !is_there("instance-id") && !is_there("instance_id") {
        let what = "no `instance-id`: cloud-init cannot tell this instance from the one before";
        let report = Report::warning(Code::MissingKey, what).at(Mark::at(1, 1)).path("instance-id");
        source.push(report.hint("give each machine an `instance-id` of its own"));
    }
}

/// A key whose value has to be text, and is not what YAML makes of it.
fn check_text(source: &mut Source<'_>, document: &Node, key: &str) {
    let Some(Entry { value, .. }) = document.entry(key) else { return };
    if !matches!(value.value, Value::Text(_) | Value::Unknown | Value::Null) {
        let what = format!("`{key}`: expected text, got {}", value.kind());
        let report = Report::warning(Code::WrongType, what).at(value.mark).path(key);
        source.push(report.hint("quote it"));
    }
}

/// `network-config`: version 1 or 2, with or without `network:` round it.
pub(super) fn check_network(source: &mut Source<'_>) {
    let Some(document) = mapping(source, "a mapping with `version` and what it names") else {
        return;
    };
    let network = document.get("network");
    let inner = network.unwrap_or(&document);
    if inner.get("config").and_then(Node::text) == Some("disabled") {
        return;
    }
    let prefix = if network.is_some() { "network." } else { "" };
    let Some(schema) = version(source, &document, inner, prefix) else { return };
    if schema == Schema::NetworkV2 {
        check_devices(source, inner, prefix);
        check_routes(source, inner, prefix);
    }
    for problem in schema::check_network(schema, &document) {
        let report = match &problem.what {
            // netplan knows more keys than cloud-init's schema, and gets them all.
            What::UnknownKey { key, known }
                if schema == Schema::NetworkV2
                    && problem.path.starts_with(prefix)
                    && !WHOLE.iter().any(|whole| problem.path.contains(whole))
                    && !words::is_near(key, known) =>
            {
                let what = format!(
                    "cloud-init's schema knows no key `{}`, only netplan may",
                    schema::shortened(key)
                );
                Report::warning(Code::UnknownKey, what).at(problem.mark).path(problem.path.clone())
            }
            _ => words::report(&problem, schema),
        };
        source.push(report);
    }
}

/// Mappings of which netplan knows no more keys than the schema has.
const WHOLE: [&str; 2] = [".match.", ".nameservers."];

/// Keys of devices that are nearly known. The schema takes any key there, since netplan knows more.
fn check_devices(source: &mut Source<'_>, inner: &Node, prefix: &str) {
    let root = Schema::NetworkV2.root();
    let defined = |name: &str| {
        let properties = root.find(&format!("#/$defs/{name}/properties"));
        properties.map_or(&[][..], |properties| properties.entries()).iter().map(|(key, _)| *key)
    };
    for (section, name) in [
        ("ethernets", "mapping_physical"),
        ("bonds", "mapping_bond"),
        ("bridges", "mapping_bridge"),
        ("vlans", "mapping_vlan"),
    ] {
        let known: Vec<&str> = defined("mapping").chain(defined(name)).collect();
        let devices = inner.get(section).map_or(&[][..], Node::entries);
        let keys = devices.iter().flat_map(|device| {
            device.value.entries().iter().map(move |entry| (&device.key, &entry.key))
        });
        for (device, key) in keys {
            let (Some(device), Some(name)) = (device.text(), key.text()) else { continue };
            if known.contains(&name) {
                continue;
            }
            if let Some(meant) = bootyard_spec::near_word(name, known.iter().copied()) {
                let path = format!("{prefix}{section}.{device}.{name}");
                let what =
                    format!("cloud-init does not look at the key `{}`", schema::shortened(name));
                let report = Report::warning(Code::UnknownKey, what).at(key.mark).path(path);
                source.push(report.hint(format!("did you mean `{meant}`?")));
            }
        }
    }
}

/// netplan's word for the whole address space. cloud-init 22.4, of Debian 12, knows addresses only, and
/// configures nothing at all where it renders the network itself.
fn check_routes(source: &mut Source<'_>, inner: &Node, prefix: &str) {
    // Aliases of one list are looked at once, however many there are.
    let mut seen = HashSet::new();
    for section in ["ethernets", "bonds", "bridges", "vlans"] {
        let devices = inner.get(section).map_or(&[][..], Node::entries);
        for Entry { key, value } in devices {
            let Some(routes) = value.get("routes") else { continue };
            if !seen.insert((routes.mark.line, routes.mark.column)) {
                continue;
            }
            for (number, route) in routes.items().iter().enumerate() {
                let Some(to) = route.get("to").filter(|to| to.text() == Some("default")) else {
                    continue;
                };
                let path = format!(
                    "{prefix}{section}.{}.routes[{number}].to",
                    key.text().map_or_else(String::new, schema::shortened)
                );
                let what = format!("`{path}`: only newer versions of cloud-init know `default`");
                let report = Report::warning(Code::WrongValue, what).at(to.mark).path(path);
                source.push(report.hint("write `0.0.0.0/0` or `::/0`, which all know"));
            }
        }
    }
}

fn version(source: &mut Source<'_>, document: &Node, inner: &Node, prefix: &str) -> Option<Schema> {
    let path = format!("{prefix}version");
    let devices = ["ethernets", "bonds", "bridges", "vlans", "wifis"];
    let has_devices = devices.into_iter().find(|key| inner.get(key).is_some());
    let Some(Entry { value, .. }) = inner.entry("version") else {
        let guess = if has_devices.is_some() { 2 } else { 1 };
        let what = format!("the key `{path}` is missing");
        let report = Report::error(Code::MissingKey, what).at(document.mark).path(path);
        source.push(report.hint(format!("add `version: {guess}`")));
        return None;
    };
    let number = match &value.value {
        Value::Int(Some(number)) => *number,
        _ => 0,
    };
    let schema = match number {
        1 => Schema::NetworkV1,
        2 => Schema::NetworkV2,
        _ => {
            let what = format!(
                "`{path}`: expected 1 or 2, got {}",
                value.text().map_or(value.kind(), |_| "text")
            );
            let report = Report::error(Code::WrongValue, what).at(value.mark).path(path);
            source.push(report.hint_if(value.text().map(|_| "write the number without quotes")));
            return None;
        }
    };
    let other = match (schema, has_devices) {
        (Schema::NetworkV1, Some(key)) => Some((key, 2)),
        (Schema::NetworkV2, None)
            if matches!(inner.get("config").map(|c| &c.value), Some(Value::List(_))) =>
        {
            Some(("config", 1))
        }
        _ => None,
    };
    if let Some((key, version)) = other {
        let what = format!("`{prefix}{key}` belongs to version {version}, and this says {number}");
        let report = Report::error(Code::WrongValue, what).at(value.mark).path(path);
        source.push(report.hint(format!("write `version: {version}`")));
        return None;
    }
    Some(schema)
}

fn mapping(source: &mut Source<'_>, expected: &str) -> Option<Rc<Node>> {
    let document = read(source)?;
    if matches!(document.value, Value::Map(_)) {
        return Some(document);
    }
    let what = format!("expected {expected}, got {}", document.kind());
    source.push(Report::error(Code::NotAMapping, what).at(document.mark));
    None
}
