//! A seed as a guest's cloud-init would take it off an image, whoever made it: which data source it is
//! for, who the guest is told to be, and what it is told to do.
//!
//! Nothing is judged but what cloud-init would stumble over: an image that no data source looks at, a
//! file that has to be there, data that is passed over. The content of cloud-configs is for the lint.

use serde_json::{Map, Value};

use crate::parts::Parts;
use crate::read::{FileSystem, FoundImage};
use crate::{Datasource, SshPublicKey};

/// The versions of OpenStack's layout that cloud-init knows, the newest first: it takes the first of
/// them that is there, and `latest` only if there is none.
const OPENSTACK_VERSIONS: [&str; 9] = [
    "2018-08-27",
    "2017-02-22",
    "2016-10-06",
    "2016-06-30",
    "2015-10-15",
    "2013-10-17",
    "2013-04-04",
    "2012-08-10",
    "latest",
];

/// A seed that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSeed {
    /// Which of cloud-init's data sources it is for.
    pub datasource: Datasource,
    /// The identity of the instance.
    pub instance_id: Option<String>,
    /// The guest's name.
    pub hostname: Option<String>,
    /// Keys for the image's default user.
    pub ssh_keys: Vec<SshPublicKey>,
    /// What the user wants done.
    pub user_data: Option<FoundData>,
    /// What the provider wants done.
    pub vendor_data: Option<FoundData>,
    /// The network configuration.
    pub network_config: Option<FoundNetwork>,
    /// What cloud-init would pass over, or could not read, in words.
    pub problems: Vec<String>,
}

/// User-data or vendor-data, as it is on the disk and taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundData {
    /// The bytes on the disk; of OpenStack's vendor data, cloud-init's share.
    pub content: Vec<u8>,
    /// What is in them.
    pub parts: Parts,
}

/// A network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNetwork {
    /// In which form it is.
    pub form: NetworkForm,
    /// The bytes on the disk.
    pub content: Vec<u8>,
}

/// The forms of a network configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetworkForm {
    /// cloud-init's own, version 1.
    Version1,
    /// cloud-init's own, version 2, which is netplan's.
    Version2,
    /// OpenStack's `network_data.json`.
    OpenStack,
    /// Debian's `/etc/network/interfaces`.
    Interfaces,
    /// None of these.
    Unknown,
}

impl NetworkForm {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version1 => "version 1",
            Self::Version2 => "version 2",
            Self::OpenStack => "OpenStack's network_data.json",
            Self::Interfaces => "Debian's interfaces",
            Self::Unknown => "unknown form",
        }
    }
}

impl FoundSeed {
    /// The seed on `image`; `None` if neither its label nor its files are those of one.
    pub fn of(image: &FoundImage) -> Option<Self> {
        let by_label = image.label.as_deref().and_then(Datasource::of_label);
        let datasource = by_label.or_else(|| by_files(image))?;
        let mut seed = Self {
            datasource,
            instance_id: None,
            hostname: None,
            ssh_keys: Vec::new(),
            user_data: None,
            vendor_data: None,
            network_config: None,
            problems: Vec::new(),
        };
        if by_label.is_none() {
            let label = datasource.label();
            seed.problems.push(format!(
                "no guest looks at it: expected the label `{label}`, got `{}`",
                image.label.as_deref().unwrap_or_default()
            ));
        }
        match datasource {
            Datasource::NoCloud => seed.read_nocloud(image),
            Datasource::ConfigDrive => seed.read_config_drive(image),
        }
        Some(seed)
    }

    fn read_nocloud(&mut self, image: &FoundImage) {
        for name in ["meta-data", "user-data"] {
            if image.file(name).is_none() {
                let mut what = format!("no guest takes it for a seed: `{name}` is missing");
                if image.file_system == FileSystem::Iso {
                    what += ", for which the image needs Rock Ridge or Joliet";
                }
                self.problems.push(what);
            }
        }
        if let Some(text) = image.file("meta-data").filter(|text| !text.trim_ascii().is_empty()) {
            match mapping(text) {
                Ok(meta) => {
                    self.take_names(&meta, ["instance-id", "local-hostname"]);
                    self.take_keys(meta.get("public-keys"));
                }
                Err(problem) => self.problems.push(format!("meta-data: {problem}")),
            }
        }
        if self.instance_id.is_none() && image.file("meta-data").is_some() {
            let what =
                "meta-data: there is no `instance-id`; every such guest is the instance `nocloud`";
            self.problems.push(what.to_owned());
        }
        self.user_data = image.file("user-data").and_then(|data| self.data("user-data", data));
        self.vendor_data =
            image.file("vendor-data").and_then(|data| self.data("vendor-data", data));
        self.network_config = image.file("network-config").map(|text| {
            let form = match mapping(text) {
                Ok(found) => own_form(&found),
                Err(problem) => {
                    self.problems.push(format!("network-config: {problem}"));
                    NetworkForm::Unknown
                }
            };
            FoundNetwork { form, content: text.to_vec() }
        });
    }

    fn read_config_drive(&mut self, image: &FoundImage) {
        let versions = OPENSTACK_VERSIONS.map(|version| format!("openstack/{version}"));
        let has_any = |folder: &&String| {
            let below = format!("{folder}/");
            image.files.files().any(|(path, _)| path.starts_with(&below))
        };
        let Some(folder) = versions.iter().find(has_any) else {
            let what = "no guest takes it for a seed: there is no `openstack/latest`";
            return self.problems.push(what.to_owned());
        };
        let file = |name: &str| image.file(&format!("{folder}/{name}"));
        match file("meta_data.json").map(serde_json::from_slice::<Map<String, Value>>) {
            None => {
                let what =
                    format!("no guest takes it for a seed: `{folder}/meta_data.json` is missing");
                self.problems.push(what);
            }
            Some(Err(error)) => self.problems.push(format!("{folder}/meta_data.json: {error}")),
            Some(Ok(meta)) => {
                self.take_names(&meta, ["uuid", "hostname"]);
                self.take_keys(meta.get("public_keys"));
                if self.instance_id.is_none() {
                    let what = "no guest takes it for a seed: `uuid` is missing in";
                    self.problems.push(format!("{what} `{folder}/meta_data.json`"));
                }
                self.network_config = interfaces(image, &meta);
            }
        }
        self.user_data = file("user_data").and_then(|data| self.data("user_data", data));
        if let Some(json) = file("vendor_data.json") {
            match serde_json::from_slice(json) {
                Ok(value) => {
                    let share = share_of_cloud_init(&value);
                    self.vendor_data = share.and_then(|text| self.data("vendor_data.json", text));
                }
                Err(error) => self.problems.push(format!("vendor_data.json: {error}")),
            }
        }
        if let Some(json) = file("network_data.json") {
            let is_object = serde_json::from_slice::<Map<String, Value>>(json).is_ok();
            if !is_object {
                let what = "network_data.json: expected OpenStack's JSON, got something else";
                self.problems.push(what.to_owned());
            }
            let form = if is_object { NetworkForm::OpenStack } else { NetworkForm::Unknown };
            self.network_config = Some(FoundNetwork { form, content: json.to_vec() });
        }
    }

    fn take_names(&mut self, meta: &Map<String, Value>, [id, name]: [&str; 2]) {
        self.instance_id = meta.get(id).and_then(scalar);
        self.hostname = meta.get(name).and_then(scalar);
    }

    /// Takes public keys in every form in which cloud-init does: a text of lines, a list, or a mapping
    /// to either.
    fn take_keys(&mut self, keys: Option<&Value>) {
        let mut lines = Vec::new();
        match keys {
            Some(Value::Object(keys)) => {
                for (name, keys) in keys {
                    if !keys.is_string() && !keys.is_array() {
                        let what = format!(
                            "public keys: cloud-init passes over `{name}`, which is no text"
                        );
                        self.problems.push(what);
                    }
                    collect(keys, &mut lines);
                }
            }
            Some(keys) => collect(keys, &mut lines),
            None => {}
        }
        for (line, number) in lines.iter().zip(1..) {
            match SshPublicKey::parse_all(&format!("key {number}"), line.as_bytes()) {
                Ok(keys) => self.ssh_keys.extend(keys),
                Err(error) => self.problems.push(error.to_string()),
            }
        }
    }

    /// The data, unless there is none.
    fn data(&mut self, name: &str, content: &[u8]) -> Option<FoundData> {
        if content.is_empty() {
            return None;
        }
        let parts = Parts::of(content);
        self.problems.extend(parts.problems.iter().map(|what| format!("{name}: {what}")));
        Some(FoundData { content: content.to_vec(), parts })
    }
}

/// The data source whose files are there.
fn by_files(image: &FoundImage) -> Option<Datasource> {
    let is_nocloud = image.file("meta-data").is_some() && image.file("user-data").is_some();
    let has_openstack = || {
        let files = image.files.files();
        files
            .into_iter()
            .any(|(path, _)| path.ends_with("/meta_data.json") && path.starts_with("openstack/"))
    };
    match () {
        () if is_nocloud => Some(Datasource::NoCloud),
        () if has_openstack() => Some(Datasource::ConfigDrive),
        () => None,
    }
}

/// A text in YAML that is a mapping. As with Python's reader, the last of equal keys counts.
fn mapping(text: &[u8]) -> Result<Map<String, Value>, String> {
    let options =
        serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    match serde_saphyr::from_slice_with_options(text, options) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("expected a mapping, got something else".to_owned()),
        Err(error) => {
            let text = error.to_string();
            let line =
                text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            Err(format!("it is not YAML: {}", line.strip_prefix("error: ").unwrap_or(line)))
        }
    }
}

/// The version that a configuration of cloud-init's own says, with or without `network:` around it.
fn own_form(config: &Map<String, Value>) -> NetworkForm {
    let inner = config.get("network").and_then(Value::as_object).unwrap_or(config);
    match inner.get("version").and_then(Value::as_u64) {
        Some(1) => NetworkForm::Version1,
        Some(2) => NetworkForm::Version2,
        _ => NetworkForm::Unknown,
    }
}

/// The file to which `network_config` in OpenStack's meta data points.
fn interfaces(image: &FoundImage, meta: &Map<String, Value>) -> Option<FoundNetwork> {
    let path = meta.get("network_config")?.get("content_path")?.as_str()?;
    let content = image.file(&format!("openstack/{}", path.trim_start_matches('/')))?;
    Some(FoundNetwork { form: NetworkForm::Interfaces, content: content.to_vec() })
}

/// What of OpenStack's vendor data is for cloud-init: a text, or the text under its name.
fn share_of_cloud_init(vendor_data: &Value) -> Option<&[u8]> {
    let text = vendor_data.as_str().or_else(|| vendor_data.get("cloud-init")?.as_str());
    text.map(str::as_bytes)
}

/// A text, or what stands without quotes and counts as one.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn collect(value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            let keys = text.lines().map(str::trim).filter(|line| !line.is_empty());
            lines.extend(keys.map(str::to_owned));
        }
        Value::Array(list) => list.iter().filter_map(Value::as_str).for_each(|text| {
            lines.push(text.to_owned());
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tree;

    #[test]
    fn keys_that_cloud_init_passes_over_are_a_problem() {
        let meta = b"instance-id: i\npublic-keys: {mine: {openssh-key: ssh-ed25519 x}}\n";
        let mut files = Tree::new();
        files.insert("meta-data", &meta[..]).unwrap();
        files.insert("user-data", &b""[..]).unwrap();
        let image = FoundImage {
            file_system: FileSystem::Iso,
            label: Some("CIDATA".to_owned()),
            partition: None,
            files,
            loose_links: Vec::new(),
        };
        let problems = FoundSeed::of(&image).unwrap().problems;
        assert_eq!(problems, ["public keys: cloud-init passes over `mine`, which is no text"]);
    }
}
