//! ConfigMaps and Secrets: named pieces of data, as a cluster keeps them for its machines.
//!
//! ```text
//! kind: ConfigMap               kind: Secret
//! data: {KEY: text}             data: {KEY: base64}
//! binaryData: {KEY: base64}     stringData: {KEY: text}       (counts before `data`)
//! ```
//! The rules are the API server's. No message shows a value, and of a Secret nothing but keys.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::storage::{Error, one_line};

/// Most bytes of all values of an object (`MaxSecretSize` of Kubernetes' API).
const SIZE_MAX: usize = 1 << 20;

/// Longest key (`DNS1123SubdomainMaxLength`).
const KEY_MAX: usize = 253;

/// Which object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// The data of a ConfigMap or a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct DataObject {
    /// Which of both it is.
    pub kind: DataKind,
    /// Its name; empty if the manifest has none.
    pub name: String,
    /// The decoded values by their keys, which are file names.
    pub entries: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for DataObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, entries } = self;
        write!(f, "{kind:?} {name}: {:?}", entries.keys())
    }
}

/// Checks a key as a cluster does: letters, digits, `-`, `_` and `.`, and no `.` or `..`.
pub fn check_key(key: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=KEY_MAX).contains(&key.len())
        && key.chars().all(allowed)
        && key != "."
        && !key.starts_with("..")
    {
        return Ok(());
    }
    let what = format!(
        "`{key}` is not a key: expected 1 to {KEY_MAX} letters, digits, `-`, `_` and `.`, and not \
         `..` first"
    );
    Err(Error(what))
}

/// Reads the one ConfigMap or Secret of a YAML or JSON text.
pub fn data_object(text: &[u8]) -> Result<DataObject, Error> {
    let text = std::str::from_utf8(text)
        .map_err(|error| Error(format!("byte {} is not UTF-8", error.valid_up_to())))?;
    // In YAML nothing but a new document begins so at the start of a line.
    let is_end = |line: &str| line == "---" || line.starts_with("--- ");
    let mut lines = text.lines().zip(1..).skip_while(|(line, _)| {
        line.trim().is_empty() || line.starts_with(['#', '%']) || is_end(line)
    });
    if let Some((_, number)) = lines.find(|(line, _)| is_end(line)) {
        let what = "a second document begins, where one object is expected";
        return Err(Error(format!("line {number}: {what}")));
    }
    let head: Head = serde_saphyr::from_str(text).map_err(|error| of_yaml(&error, true))?;
    let kind = match (head.api_version.as_str(), head.kind.as_str()) {
        ("v1", "ConfigMap") => DataKind::ConfigMap,
        ("v1", "Secret") => DataKind::Secret,
        (version, kind) => {
            let what =
                format!("kind: expected ConfigMap or Secret of v1, got `{kind}` of `{version}`");
            return Err(Error(what));
        }
    };
    let name = head.metadata.name;
    let object: Object =
        serde_saphyr::from_str(text).map_err(|error| of_yaml(&error, kind == DataKind::Secret))?;
    let entries = match kind {
        DataKind::ConfigMap => object.config_map()?,
        DataKind::Secret => object.secret()?,
    };
    for key in entries.keys() {
        check_key(key)?;
    }
    let size: usize = entries.values().map(Vec::len).sum();
    if size > SIZE_MAX {
        let what = format!("the values have {size} bytes; a cluster takes at most {SIZE_MAX}");
        return Err(Error(what));
    }
    Ok(DataObject { kind, name, entries })
}

/// The message of the reader may show a value, and is told only where there is no secret.
fn of_yaml(error: &serde_saphyr::Error, is_secret: bool) -> Error {
    match (is_secret, error.location()) {
        (false, _) => {
            let said = one_line(&error.to_string());
            // What follows is for those who call the reader.
            let said = said.split("; use ").next().unwrap_or_default();
            Error(said.strip_prefix("error: ").unwrap_or(said).to_owned())
        }
        (true, Some(at)) => {
            let what =
                "expected `data` and `stringData` with text, as `kubectl get -o yaml` prints them";
            Error(format!("line {} column {}: {what}", at.line(), at.column()))
        }
        (true, None) => Error("expected the YAML of one object".to_owned()),
    }
}

/// What tells which object it is, before anything of it is shown.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
}

/// Servers add much to it that is not for us.
#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "immutable")]
    _immutable: Option<IgnoredAny>,
    #[serde(rename = "type")]
    secret_type: Option<String>,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    string_data: Option<BTreeMap<String, String>>,
}

impl Object {
    fn config_map(self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        for (field, is_there) in
            [("type", self.secret_type.is_some()), ("stringData", self.string_data.is_some())]
        {
            if is_there {
                return Err(Error(format!("{field}: a ConfigMap has none; a Secret does")));
            }
        }
        let mut entries = decoded("binaryData", self.binary_data)?;
        for (key, text) in self.data.unwrap_or_default() {
            if entries.contains_key(&key) {
                return Err(Error(format!("data.{key}: stands in `binaryData`, too")));
            }
            entries.insert(key, text.into_bytes());
        }
        Ok(entries)
    }

    fn secret(self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        if self.binary_data.is_some() {
            return Err(Error("binaryData: a Secret has none; its `data` is base64".to_owned()));
        }
        let mut entries = decoded("data", self.data)?;
        let texts = self.string_data.unwrap_or_default();
        entries.extend(texts.into_iter().map(|(key, text)| (key, text.into_bytes())));
        Ok(entries)
    }
}

/// The values of a field in base64, in which line ends are allowed.
fn decoded(
    field: &str,
    values: Option<BTreeMap<String, String>>,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let decode = |(key, text): (String, String)| {
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        match STANDARD.decode(text) {
            Ok(bytes) => Ok((key, bytes)),
            Err(_) => Err(Error(format!("{field}.{key}: not base64"))),
        }
    };
    values.unwrap_or_default().into_iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, String)> {
        let object = data_object(text.as_bytes()).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        object.entries.into_iter().map(|(key, value)| (key, text(value))).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_second_document_and_a_value_of_nothing_are_refused() {
        let head = "apiVersion: v1\nkind: ConfigMap\n";
        for (text, message) in [
            (format!("---\n{head}data: {{a: x}}\n---\n{head}"), "line 5: a second document begins"),
            (
                format!("{head}data: {{k: ~}}\n"),
                "line 3 column 11: cannot deserialize null into string",
            ),
        ] {
            let error = data_object(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(message) && !error.contains("Option"), "{error}");
        }
        let text = format!("# a\n---\n{head}data:\n  a: |\n    ---\n    x\n");
        assert_eq!(entries(&text), pairs(&[("a", "---\nx\n")]));
    }

    #[test]
    fn objects_are_read_as_a_cluster_prints_them() {
        let secret = "\
apiVersion: v1
data:
  userdata: I2Nsb3VkLWNvbmZpZwo=
  a: eA==
kind: Secret
metadata:
  creationTimestamp: \"2026-05-11T07:19:21Z\"
  name: s
  uid: 0a34
stringData: {a: text}
type: Opaque
";
        assert_eq!(entries(secret), pairs(&[("a", "text"), ("userdata", "#cloud-config\n")]));
        let json = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
            "immutable": true, "data": {"a.txt": "1\n", "n": "0644"}, "binaryData": {"b": "eQ=="}}"#;
        assert_eq!(entries(json), pairs(&[("a.txt", "1\n"), ("b", "y"), ("n", "0644")]));
        let object = data_object(json.as_bytes()).unwrap();
        assert_eq!(format!("{object:?}"), "ConfigMap c: [\"a.txt\", \"b\", \"n\"]");
        assert_eq!(entries("apiVersion: v1\nkind: Secret\n"), []);
    }

    #[test]
    fn what_a_cluster_would_refuse_is_refused_and_no_value_is_shown() {
        let big = format!("kind: Secret\nstringData: {{a: \"{}\"}}", "x".repeat(SIZE_MAX + 1));
        for (rest, message) in [
            ("kind: Pod\n", "kind: expected ConfigMap or Secret of v1, got `Pod` of `v1`"),
            ("kind: ConfigMap\ndat: {a: hunter2}", "dat"),
            ("kind: ConfigMap\nstringData: {a: hunter2}", "stringData: a ConfigMap has none"),
            (
                "kind: ConfigMap\ndata: {a: x}\nbinaryData: {a: eA==}",
                "data.a: stands in `binaryData`",
            ),
            ("kind: Secret\nbinaryData: {a: eA==}", "binaryData: a Secret has none"),
            ("kind: Secret\ndata: {a: hunter2}", "data.a: not base64"),
            ("kind: Secret\nstringData: {a: [hunter2]}", "line 3 column"),
            ("kind: Secret\nstringData: hunter2", "line 3 column"),
            ("kind: Secret\nstringData: {a/b: hunter2}", "`a/b` is not a key"),
            ("kind: Secret\nstringData: {..: hunter2}", "`..` is not a key"),
            (&big, "the values have 1048577 bytes"),
        ] {
            let text = format!("apiVersion: v1\n{rest}");
            let error = data_object(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{rest}: {error}");
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
        assert!(data_object(b"\xff").is_err());
        assert!(data_object(b"a: [").is_err());
    }
}
