//! The cloud-configs in some user-data, by the linter's own reader, for those who have to know what
//! cloud-init will find in them.

use serde_json::{Map, Value};

use super::parts::{Remains, without_expressions};
use crate::{Format, Parts};
use bootyard_yaml::{self as yaml, Node};

/// A cloud-config.
#[derive(Debug)]
pub(crate) enum Config {
    /// What cloud-init reads. What JSON does not know, and what a template engine puts there, is an
    /// empty text.
    Read(Map<String, Value>),
    /// A template of which only the engine can tell what it becomes, with all that may be keys in it.
    Template(Vec<String>),
}

impl Config {
    /// True if it says something under this key, or may do so.
    pub(crate) fn has(&self, key: &str) -> bool {
        match self {
            Self::Read(map) => map.contains_key(key),
            Self::Template(keys) => keys.iter().any(|found| found == key),
        }
    }

    /// The value under a key, if that is known.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Read(map) => map.get(key),
            Self::Template(_) => None,
        }
    }
}

/// The cloud-configs in `data`, in their order. What cloud-init could not read is none.
pub(crate) fn configs(data: &[u8]) -> Vec<Config> {
    let mut all = Vec::new();
    for part in Parts::of(data).parts {
        let text = String::from_utf8_lossy(&part.content);
        match part.format {
            Some(Format::CloudConfig | Format::Jinja) => all.extend(config(&text)),
            Some(Format::CloudConfigArchive) => archive(&text, &mut all),
            _ => {}
        }
    }
    all
}

/// What has no header in an archive is a cloud-config, too; and so is what has an unknown type here,
/// because a header counts more than some types.
fn archive(text: &str, all: &mut Vec<Config>) {
    let Some(root) = yaml::document(text).ok().and_then(|document| document.root) else { return };
    for item in root.items() {
        if let Some(content) = item.get("content").unwrap_or(item).text() {
            all.extend(config(content));
        }
    }
}

/// A cloud-config or a template of one.
fn config(text: &str) -> Option<Config> {
    if Format::of_beginning(text.as_bytes()) != Some(Format::Jinja) {
        return read(text).map(Config::Read);
    }
    let body = text.trim_start().split_once('\n').map_or("", |(_, body)| body);
    let Remains { text: body, has_statements, .. } = without_expressions(body);
    if Format::of_beginning(body.as_bytes()) != Some(Format::CloudConfig) {
        return None;
    }
    let known = read(&body).filter(|_| !has_statements).map(Config::Read);
    Some(known.unwrap_or_else(|| {
        let keys = body.lines().filter_map(|line| line.split_once(':'));
        let keys = keys.map(|(key, _)| key.trim_matches([' ', '"', '\'']).to_owned());
        Config::Template(keys.collect())
    }))
}

fn read(text: &str) -> Option<Map<String, Value>> {
    match json(yaml::document(text).ok()?.root.as_deref()?) {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

fn json(node: &Node) -> Value {
    match &node.value {
        yaml::Value::Null => Value::Null,
        yaml::Value::Bool(value) => Value::Bool(*value),
        yaml::Value::Text(text) => text.text.clone().into(),
        yaml::Value::List(items) => items.iter().map(|item| json(item)).collect(),
        yaml::Value::Map(entries) => {
            // Of a key that stands twice, the last counts.
            let pairs = entries.iter().filter_map(|entry| {
                entry.key.text().map(|key| (key.to_owned(), json(&entry.value)))
            });
            Value::Object(pairs.collect())
        }
        _ => String::new().into(),
    }
}
