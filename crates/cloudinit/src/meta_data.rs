//! Meta-data of the user's own: what is in it counts, and what is not is made by [`Seed`](crate::Seed).

use serde_json::{Map, Value};

use crate::lint::json;
use crate::{Datasource, Error, ErrorKind, Hostname, InstanceId};

/// The keys that a seed has anyway, by NoCloud's names and by those of a config drive. Both are
/// taken for both, so that one file makes either. A config drive's first name counts; KubeVirt writes
/// `instance_id` besides.
const OWN: [(&str, &str); 5] = [
    ("instance-id", "uuid"),
    ("instance-id", "instance_id"),
    ("local-hostname", "hostname"),
    ("public-keys", "public_keys"),
    ("instance-type", "instance_type"),
];

/// A mapping of the user's that goes into the seed's meta-data.
#[derive(Debug, Clone, PartialEq)]
pub struct MetaData {
    entries: Map<String, Value>,
    instance_id: Option<InstanceId>,
    hostname: Option<Hostname>,
}

impl MetaData {
    /// Reads YAML or JSON. `input` is how errors name it, usually its path.
    pub fn parse(input: &str, content: &[u8]) -> Result<Self, Error> {
        let bad = |what: String| Error::new(ErrorKind::MetaData, what).in_input(input);
        let text = std::str::from_utf8(content)
            .map_err(|e| bad(format!("byte {} of the meta-data is not UTF-8", e.valid_up_to())))?;
        let value = json::read(text).map_err(|error| {
            let failed = bad(format!("the meta-data cannot be read: {}", error.what));
            let failed = failed.at_line(error.line);
            match error.hint {
                Some(hint) => failed.with_hint(hint),
                None => failed,
            }
        })?;
        let Value::Object(mut entries) = value else {
            return Err(bad(
                "expected meta-data as a mapping, `KEY: VALUE` on each line".to_owned()
            ));
        };
        for (name, other) in OWN {
            if let Some(value) = entries.remove(other)
                && let Some(own) = entries.insert(name.to_owned(), value)
                && entries.get(name) != Some(&own)
            {
                return Err(bad(format!("`{name}` and `{other}` are the same: give one of them")));
            }
        }
        // cloud-init makes a text of it, too.
        if let Some(Value::Number(number)) = entries.get("instance-id").filter(|id| !id.is_f64()) {
            let text = number.to_string();
            entries.insert("instance-id".to_owned(), text.into());
        }
        check_keys(&entries).map_err(bad)?;
        let mut meta_data = Self { entries, instance_id: None, hostname: None };
        let instance_id = meta_data.word("instance-id").map_err(bad)?;
        let hostname = meta_data.word("local-hostname").map_err(bad)?;
        let in_input = |error: Error| error.in_input(input);
        meta_data.instance_id = instance_id.map(|id| id.parse()).transpose().map_err(in_input)?;
        meta_data.hostname = hostname.map(|name| name.parse()).transpose().map_err(in_input)?;
        Ok(meta_data)
    }

    /// The text under `key`, if it is there.
    fn word(&self, key: &str) -> Result<Option<String>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::String(word)) => Ok(Some(word.clone())),
            Some(_) => Err(format!("expected text for `{key}`; put it in double quotes")),
        }
    }

    /// The instance's identity, if it is given.
    pub const fn instance_id(&self) -> Option<&InstanceId> {
        self.instance_id.as_ref()
    }

    /// The guest's name, if it is given.
    pub const fn hostname(&self) -> Option<&Hostname> {
        self.hostname.as_ref()
    }

    /// Whether it has this key, by NoCloud's name.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Puts everything over `ours`, under the names of the data source.
    pub(crate) fn merge_over(&self, ours: &mut Map<String, Value>, datasource: Datasource) {
        for (key, value) in &self.entries {
            let own = OWN.into_iter().find(|(name, _)| name == key);
            let key = match (own, datasource) {
                (Some((_, other)), Datasource::ConfigDrive) => other,
                _ => key,
            };
            ours.insert(key.to_owned(), value.clone());
        }
    }
}

/// EC2's `public-keys: {name: {openssh-key: …}}` is passed over by these data sources.
fn check_keys(entries: &Map<String, Value>) -> Result<(), String> {
    let keys = entries.get("public-keys").and_then(Value::as_object);
    match keys.into_iter().flatten().find(|(_, key)| key.is_object()) {
        Some((name, _)) => Err(format!(
            "`public-keys` has a mapping under `{name}`, which cloud-init passes over: expected the \
             key's text"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_data_sources_names_are_taken() {
        for text in
            ["{\"uuid\": \"i-1\", \"hostname\": \"n\"}", "instance-id: i-1\nlocal-hostname: n\n"]
        {
            let found = MetaData::parse("m", text.as_bytes()).unwrap();
            assert_eq!(found.instance_id().map(InstanceId::as_str), Some("i-1"));
            assert_eq!(found.hostname().map(Hostname::as_str), Some("n"));
        }
    }

    #[test]
    fn what_stands_under_both_names_may_be_the_same() {
        let text = b"hostname: n\nlocal-hostname: n\ninstance_id: 42\nuuid: 42\nmode: 0755\n";
        let found = MetaData::parse("m", text).unwrap();
        assert_eq!(found.instance_id().map(InstanceId::as_str), Some("42"));
        for (datasource, expected) in [
            (Datasource::NoCloud, r#"{"instance-id":"42","local-hostname":"n","mode":493}"#),
            (Datasource::ConfigDrive, r#"{"hostname":"n","mode":493,"uuid":"42"}"#),
        ] {
            let mut ours = Map::new();
            found.merge_over(&mut ours, datasource);
            assert_eq!(Value::Object(ours), serde_json::from_str::<Value>(expected).unwrap());
        }
    }

    #[test]
    fn public_keys_may_be_numbered() {
        let found = MetaData::parse("m", b"public-keys: {0: a, 1: [b]}\n").unwrap();
        assert_eq!(found.entries["public-keys"], serde_json::json!({"0": "a", "1": ["b"]}));
    }

    #[test]
    fn what_is_no_meta_data_is_refused() {
        for (text, message) in [
            (&b"\xff"[..], "`m`: byte 0 of the meta-data is not UTF-8"),
            (b"- a\n", "`m`: expected meta-data as a mapping"),
            (b"", "`m`: expected meta-data as a mapping"),
            (b"a: [\n", "`m` line 1: the meta-data cannot be read: "),
            (b"a: 1\nb: 2026-01-02\n", "`m` line 2: the meta-data cannot be read: a date"),
            (b"uuid: a\ninstance_id: b\n", "`m`: `instance-id` and `instance_id` are the same"),
            (b"public-keys: {k: {openssh-key: x}}\n", "`m`: `public-keys` has a mapping under `k`"),
            (b"hostname: no\n", "`m`: expected text for `local-hostname`"),
            (b"uuid: a\ninstance-id: b\n", "`m`: `instance-id` and `uuid` are the same"),
            (b"instance-id: 7.5\n", "`m`: expected text for `instance-id`"),
            (b"instance-id: a/b\n", "`m`: `a/b` is not an instance id"),
            (b"hostname: a_b\n", "`m`: `a_b` is not a host name"),
        ] {
            let error = MetaData::parse("m", text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
