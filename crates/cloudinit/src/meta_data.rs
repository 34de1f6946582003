//! Meta-data of the user's own: what is in it counts, and what is not is made by [`Seed`](crate::Seed).

use serde_json::{Map, Value};

use crate::{Datasource, Error, ErrorKind, Hostname, InstanceId};

/// The keys that a seed has anyway, by NoCloud's names and by those of a config drive. Both are
/// taken for both, so that one file makes either.
const OWN: [(&str, &str); 4] = [
    ("instance-id", "uuid"),
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
        // Words such as `no` and `y` stay what they are written as.
        let options = serde_saphyr::options! { strict_booleans: true };
        let value =
            serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| {
                let said = error.to_string();
                let line = said.lines().map(str::trim).find(|line| !line.is_empty());
                bad(format!("the meta-data is not YAML: {}", line.unwrap_or_default()))
            })?;
        let Value::Object(mut entries) = value else {
            return Err(bad(
                "expected meta-data as a mapping, `KEY: VALUE` on each line".to_owned()
            ));
        };
        for (name, other) in OWN {
            if let Some(value) = entries.remove(other)
                && entries.insert(name.to_owned(), value).is_some()
            {
                return Err(bad(format!("`{name}` and `{other}` are the same: give one of them")));
            }
        }
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
    fn what_is_no_meta_data_is_refused() {
        for (text, message) in [
            (&b"\xff"[..], "`m`: byte 0 of the meta-data is not UTF-8"),
            (b"- a\n", "`m`: expected meta-data as a mapping"),
            (b"", "`m`: expected meta-data as a mapping"),
            (b"a: [\n", "`m`: the meta-data is not YAML: "),
            (b"uuid: a\ninstance-id: b\n", "`m`: `instance-id` and `uuid` are the same"),
            (b"instance-id: 7\n", "`m`: expected text for `instance-id`"),
            (b"instance-id: a/b\n", "`m`: `a/b` is not an instance id"),
            (b"hostname: a_b\n", "`m`: `a_b` is not a host name"),
        ] {
            let error = MetaData::parse("m", text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
