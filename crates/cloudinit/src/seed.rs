//! What a guest is told at its first boot, and the files in which each data source expects it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use uuid::{Uuid, uuid};

use crate::{Error, ErrorKind, Image, ImageFormat, SshPublicKey, Tree, UserData, mime};

/// The namespace from which KubeVirt makes the UUID of a machine out of its name, and with it the
/// default instance id. A guest that moves between KubeVirt and Bootyard stays the same instance.
const INSTANCE_NAMESPACE: Uuid = uuid!("6a1a24a1-4061-4607-8bf4-a3963d0c5895");

/// Longest host name (RFC 1123 §2.1) and longest of its parts (RFC 1034 §3.1).
const HOSTNAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Longest instance id: cloud-init makes it the name of a directory.
const INSTANCE_ID_MAX: usize = 255;

/// Everything that a seed says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The guest's name.
    pub hostname: Hostname,
    /// The identity of the instance; made from the host name if absent. cloud-init runs again in a
    /// guest that has run with another one.
    pub instance_id: Option<InstanceId>,
    /// Keys that may log in as the image's default user.
    pub ssh_keys: Vec<SshPublicKey>,
    /// What the user wants done. One piece is written as it is, several as one MIME document.
    pub user_data: Vec<UserData>,
    /// What the provider wants done, before the user's.
    pub vendor_data: Option<UserData>,
    /// The network configuration: cloud-init's own version 1 or 2 in YAML for NoCloud, OpenStack's
    /// `network_data.json` for ConfigDrive.
    pub network_config: Option<Vec<u8>>,
}

/// How the guest finds its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Datasource {
    /// cloud-init's own: a volume `CIDATA` with files in its root.
    NoCloud,
    /// OpenStack's: a volume `config-2` with files below `openstack/latest`.
    ConfigDrive,
}

impl Datasource {
    /// The volume's label by which the guest finds it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoCloud => "CIDATA",
            Self::ConfigDrive => "config-2",
        }
    }

    /// The data source that looks for volumes with this label: cloud-init wants it all in capitals or
    /// all in small letters.
    pub fn of_label(label: &str) -> Option<Self> {
        match label {
            "CIDATA" | "cidata" => Some(Self::NoCloud),
            "config-2" | "CONFIG-2" => Some(Self::ConfigDrive),
            _ => None,
        }
    }
}

impl FromStr for Datasource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "nocloud" => Ok(Self::NoCloud),
            "configdrive" => Ok(Self::ConfigDrive),
            _ => {
                let what = format!("unknown data source `{text}`; expected nocloud or configdrive");
                Err(Error::new(ErrorKind::Value, what))
            }
        }
    }
}

impl Seed {
    /// A seed that gives a guest its name and nothing else.
    pub const fn new(hostname: Hostname) -> Self {
        Self {
            hostname,
            instance_id: None,
            ssh_keys: Vec::new(),
            user_data: Vec::new(),
            vendor_data: None,
            network_config: None,
        }
    }

    /// The whole disk, a multiple of 1 MiB. `timestamp` is the time of all files in seconds since
    /// 1970; the same seed and time make the same bytes.
    pub fn build(
        &self,
        datasource: Datasource,
        format: ImageFormat,
        timestamp: i64,
    ) -> Result<Vec<u8>, Error> {
        let tree = self.files(datasource)?;
        Image { format, label: datasource.label(), timestamp }.build(&tree)
    }

    /// The files of the disk.
    pub fn files(&self, datasource: Datasource) -> Result<Tree, Error> {
        match datasource {
            Datasource::NoCloud => self.nocloud(),
            Datasource::ConfigDrive => self.config_drive(),
        }
    }

    /// `user-data` has to be there, even empty, for NoCloud to take the volume for a seed.
    fn nocloud(&self) -> Result<Tree, Error> {
        let instance_id = self.instance_id();
        let meta_data = NoCloudMetaData {
            instance_id: instance_id.as_str(),
            local_hostname: self.hostname.as_str(),
            public_keys: self.public_keys(),
        };
        let mut tree = Tree::new();
        tree.insert("meta-data", json(&meta_data))?;
        tree.insert("user-data", self.joined_user_data())?;
        if let Some(vendor_data) = &self.vendor_data {
            tree.insert("vendor-data", vendor_data.content())?;
        }
        if let Some(network_config) = &self.network_config {
            tree.insert("network-config", network_config.as_slice())?;
        }
        Ok(tree)
    }

    fn config_drive(&self) -> Result<Tree, Error> {
        let instance_id = self.instance_id();
        let meta_data = ConfigDriveMetaData {
            uuid: instance_id.as_str(),
            hostname: self.hostname.as_str(),
            public_keys: self.public_keys(),
        };
        let mut tree = Tree::new();
        tree.insert("openstack/latest/meta_data.json", json(&meta_data))?;
        if !self.user_data.is_empty() {
            tree.insert("openstack/latest/user_data", self.joined_user_data())?;
        }
        if let Some(vendor_data) = &self.vendor_data {
            // OpenStack's vendor data is JSON, with cloud-init's share under its name.
            let text = std::str::from_utf8(vendor_data.content()).map_err(|_| {
                let what = "vendor-data of a config drive has to be UTF-8 text";
                Error::new(ErrorKind::UserData, what)
                    .with_hint("give it uncompressed, or use nocloud")
            })?;
            let wrapped = json(&BTreeMap::from([("cloud-init", text)]));
            tree.insert("openstack/latest/vendor_data.json", wrapped)?;
        }
        if let Some(network) = &self.network_config {
            serde_json::from_slice::<BTreeMap<String, serde::de::IgnoredAny>>(network).map_err(
                |_| {
                    let what = "network configuration of a config drive has to be a JSON object";
                    Error::new(ErrorKind::NetworkConfig, what).with_hint(
                        "a config drive takes OpenStack's `network_data.json`; cloud-init's own \
                         network-config goes with `--datasource nocloud`",
                    )
                },
            )?;
            tree.insert("openstack/latest/network_data.json", network.as_slice())?;
        }
        Ok(tree)
    }

    fn instance_id(&self) -> InstanceId {
        self.instance_id
            .clone()
            .unwrap_or_else(|| InstanceId::from_machine_name(self.hostname.as_str()))
    }

    fn joined_user_data(&self) -> Vec<u8> {
        match self.user_data.as_slice() {
            [] => Vec::new(),
            [part] => part.content().to_vec(),
            parts => mime::join(parts),
        }
    }

    /// The keys by number, in their order, as KubeVirt and OpenStack name them.
    fn public_keys(&self) -> serde_json::Map<String, serde_json::Value> {
        let keys = self.ssh_keys.iter().map(|key| key.to_string().into());
        keys.enumerate().map(|(number, key)| (number.to_string(), key)).collect()
    }
}

/// NoCloud's `meta-data`, with KubeVirt's names. cloud-init reads it as YAML, of which JSON is a part.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct NoCloudMetaData<'a> {
    instance_id: &'a str,
    local_hostname: &'a str,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    public_keys: serde_json::Map<String, serde_json::Value>,
}

/// OpenStack's `meta_data.json`. cloud-init takes `uuid` for the instance id.
#[derive(Serialize)]
struct ConfigDriveMetaData<'a> {
    uuid: &'a str,
    hostname: &'a str,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    public_keys: serde_json::Map<String, serde_json::Value>,
}

/// Indented, because people mount seeds to see what is in them.
fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("text keys and values are always JSON");
    text.push(b'\n');
    text
}

/// A host name, with or without a domain (RFC 1123 §2.1): parts of letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hostname(String);

impl Hostname {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let bad = |what: &str| {
            let what = format!("`{name}` is not a host name: {what}");
            Err(Error::new(ErrorKind::Value, what))
        };
        if name.is_empty() || name.len() > HOSTNAME_MAX {
            return bad("expected 1 to 253 characters");
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if !name.chars().all(allowed) {
            return bad("expected letters, digits, `-` and `.` only");
        }
        let fits = |label: &str| (1..=LABEL_MAX).contains(&label.len());
        if !name.split('.').all(fits) {
            return bad("expected 1 to 63 characters between periods");
        }
        if name.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
            return bad("expected a letter or digit at both ends of each part");
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of an instance: a file name of letters, digits, `-`, `_`, `.` and `:`, since
/// cloud-init keeps what it did under it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// The id that KubeVirt gives a machine of this name: a UUID of version 5.
    pub fn from_machine_name(name: &str) -> Self {
        Self(Uuid::new_v5(&INSTANCE_NAMESPACE, name.as_bytes()).to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if id.is_empty()
            || id.len() > INSTANCE_ID_MAX
            || id.starts_with('.')
            || !id.chars().all(allowed)
        {
            let what = format!(
                "`{id}` is not an instance id: expected up to {INSTANCE_ID_MAX} letters, digits, \
                 `-`, `_`, `.` and `:`, not a `.` first"
            );
            return Err(Error::new(ErrorKind::Value, what));
        }
        Ok(Self(id.to_owned()))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
