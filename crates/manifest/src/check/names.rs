//! Names of objects, and the keys of ConfigMaps and Secrets.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Check;
use crate::object::Object;
use crate::types::meta::ObjectMeta;
use crate::types::storage::{ConfigMap, Secret};

/// Longest label of a domain name (RFC 1123).
const LABEL_MAX: usize = 63;
/// Longest domain name, and so the longest name of an object.
const SUBDOMAIN_MAX: usize = 253;

/// Kubernetes' text for a name that is none.
const NO_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
                            characters, '-' or '.', and must start and end with an alphanumeric \
                            character";

/// The object has a name, and may have it.
pub(super) fn metadata(object: &Object, check: &mut Check<'_>) {
    let metadata: &ObjectMeta = match object {
        Object::VirtualMachine(object) => &object.metadata,
        Object::VirtualMachineInstance(object) => &object.metadata,
        Object::DataVolume(object) => &object.metadata,
        Object::PersistentVolumeClaim(object) => &object.metadata,
        Object::DataSource(object) => &object.metadata,
        Object::DataImportCron(object) => &object.metadata,
        Object::Instancetype(object) => &object.metadata,
        Object::Preference(object) => &object.metadata,
        Object::StorageProfile(object) => &object.metadata,
        Object::ConfigMap(object) => &object.metadata,
        Object::Secret(object) => &object.metadata,
    };
    match (&metadata.name, &metadata.generate_name) {
        (Some(name), _) => subdomain(name, "metadata.name", check),
        (None, Some(_)) => {}
        (None, None) if check.knows_of("metadata.name") => {}
        (None, None) => {
            check.error("metadata.name", "Required value: name or generateName is required");
        }
    }
}

/// `name` is one that an object may have.
pub(super) fn subdomain(name: &str, path: &str, check: &mut Check<'_>) {
    if name.is_empty() {
        check.error(path, "Required value");
    } else if name.len() > SUBDOMAIN_MAX {
        check.error(path, format!("must be no more than {SUBDOMAIN_MAX} characters"));
    } else if !name.split('.').all(is_label) {
        let problem = check.error(path, format!("Invalid value: {name:?}: {NO_SUBDOMAIN}"));
        if let Some(better) = better(name) {
            problem.hint(format!("for example `{better}`"));
        }
    }
}

/// `name` is one that disks, volumes, networks and host names may have.
pub(super) fn label(name: &str, path: &str, check: &mut Check<'_>) {
    if name.len() > LABEL_MAX {
        check.error(path, format!("must be no more than {LABEL_MAX} characters"));
    } else {
        subdomain(name, path, check);
    }
}

fn is_label(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !part.is_empty() && part.bytes().all(allowed) && !part.starts_with('-') && !part.ends_with('-')
}

/// The nearest name that would do.
fn better(name: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let better: String = name.to_lowercase().chars().map(plain).collect();
    let parts: Vec<&str> = better.split('.').map(|part| part.trim_matches('-')).collect();
    let better = parts.join(".");
    better.split('.').all(is_label).then_some(better)
}

/// A ConfigMap's keys, and that no key stands twice.
pub(super) fn config_map(map: &ConfigMap, check: &mut Check<'_>) {
    keys("data", &map.data, check);
    keys("binaryData", &map.binary_data, check);
    encoded("binaryData", &map.binary_data, check);
    for key in map.data.keys().filter(|key| map.binary_data.contains_key(*key)) {
        check.error(&format!("data.{key}"), "stands in `binaryData`, too");
    }
}

/// A Secret's keys, and that its data is base64.
pub(super) fn secret(secret: &Secret, check: &mut Check<'_>) {
    keys("data", &secret.data, check);
    keys("stringData", &secret.string_data, check);
    encoded("data", &secret.data, check);
}

fn keys(field: &str, values: &BTreeMap<String, String>, check: &mut Check<'_>) {
    for key in values.keys() {
        if let Err(error) = crate::data::check_key(key) {
            check.error(field, error.to_string());
        }
    }
}

fn encoded(field: &str, values: &BTreeMap<String, String>, check: &mut Check<'_>) {
    for (key, value) in values {
        if !is_base64(value) {
            let problem = check.error(&format!("{field}.{key}"), "is not a valid base64 value");
            if field == "data" {
                problem.hint("`stringData` takes text as it is");
            }
        }
    }
}

/// Line ends may stand in it.
pub(super) fn is_base64(text: &str) -> bool {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(text).is_ok()
}
