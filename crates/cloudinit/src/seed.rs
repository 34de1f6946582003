//! What a guest is told at its first boot, and the files in which each data source expects it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::{Uuid, uuid};

use crate::{
    DiskImage, Error, ErrorKind, Image, ImageFormat, MetaData, Network, SshPublicKey, Tree,
    UserData, Users, conflict, mime, network,
};

/// The namespace from which KubeVirt makes the UUID of a machine out of its name, and with it the
/// default instance id. A guest that moves between KubeVirt and Bootyard stays the same instance.
const INSTANCE_NAMESPACE: Uuid = uuid!("6a1a24a1-4061-4607-8bf4-a3963d0c5895");

/// Longest host name (RFC 1123 §2.1) and longest of its parts (RFC 1034 §3.1).
const HOSTNAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Longest instance id: cloud-init makes it the name of a directory.
const INSTANCE_ID_MAX: usize = 255;

/// Everything that a seed says.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// The guest's name.
    pub hostname: Hostname,
    /// The identity of the instance; made from the host name if absent. cloud-init runs again in a
    /// guest that has run with another one.
    pub instance_id: Option<InstanceId>,
    /// The kind of machine, as KubeVirt names it by its instancetype.
    pub instance_type: Option<String>,
    /// Keys that may log in as the image's default user.
    pub ssh_keys: Vec<SshPublicKey>,
    /// The default user's name and password, and other users.
    pub users: Users,
    /// What the user wants done. One piece is written as it is, several as one MIME document.
    pub user_data: Vec<UserData>,
    /// What the provider wants done, before the user's; joined likewise.
    pub vendor_data: Vec<UserData>,
    /// Meta-data that counts before what is made of the above.
    pub meta_data: Option<MetaData>,
    /// The network configuration; the image's own, usually DHCP on each card, if absent.
    pub network: Option<Network>,
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

    /// Its name, as [`Datasource::from_str`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoCloud => "nocloud",
            Self::ConfigDrive => "configdrive",
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
    pub fn new(hostname: Hostname) -> Self {
        Self {
            hostname,
            instance_id: None,
            instance_type: None,
            ssh_keys: Vec::new(),
            users: Users::default(),
            user_data: Vec::new(),
            vendor_data: Vec::new(),
            meta_data: None,
            network: None,
        }
    }

    /// The whole disk, a multiple of 1 MiB. `timestamp` is the time of all files in seconds since
    /// 1970; the same seed and time make the same bytes.
    pub fn build(
        &self,
        datasource: Datasource,
        format: ImageFormat,
        timestamp: i64,
    ) -> Result<DiskImage, Error> {
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

    /// `user-data` has to be there, even empty, for NoCloud to take the volume for a seed. The
    /// meta-data has KubeVirt's names; cloud-init reads it as YAML, of which JSON is a part.
    fn nocloud(&self) -> Result<Tree, Error> {
        let mut ours = Map::new();
        ours.insert("instance-id".to_owned(), self.instance_id().as_str().into());
        ours.insert("local-hostname".to_owned(), self.hostname.as_str().into());
        self.add_common(&mut ours, ["instance-type", "public-keys"]);
        self.merge_meta_data(&mut ours, Datasource::NoCloud);
        let mut tree = Tree::new();
        tree.insert("meta-data", indented(&ours))?;
        tree.insert("user-data", joined(&self.all_user_data()?)?)?;
        if !self.vendor_data.is_empty() {
            tree.insert("vendor-data", joined(&self.vendor_data)?)?;
        }
        match &self.network {
            Some(Network::Text(text)) => tree.insert("network-config", text.as_slice())?,
            Some(Network::Interfaces(all)) => {
                tree.insert("network-config", network::version_2(all)?)?;
            }
            None => {}
        }
        Ok(tree)
    }

    /// OpenStack's files. cloud-init takes `uuid` for the instance id; KubeVirt has `instance_id`
    /// besides, which here is the same.
    fn config_drive(&self) -> Result<Tree, Error> {
        let mut ours = Map::new();
        ours.insert("uuid".to_owned(), self.instance_id().as_str().into());
        ours.insert("instance_id".to_owned(), self.instance_id().as_str().into());
        ours.insert("hostname".to_owned(), self.hostname.as_str().into());
        self.add_common(&mut ours, ["instance_type", "public_keys"]);
        self.merge_meta_data(&mut ours, Datasource::ConfigDrive);
        let mut tree = Tree::new();
        tree.insert("openstack/latest/meta_data.json", indented(&ours))?;
        let user_data = self.all_user_data()?;
        if !user_data.is_empty() {
            tree.insert("openstack/latest/user_data", joined(&user_data)?)?;
        }
        if !self.vendor_data.is_empty() {
            tree.insert("openstack/latest/vendor_data.json", vendor_json(&self.vendor_data)?)?;
        }
        match &self.network {
            Some(Network::Text(text)) => {
                check_network_data(text)?;
                tree.insert("openstack/latest/network_data.json", text.as_slice())?;
            }
            Some(Network::Interfaces(all)) => {
                let data = indented(&network::network_data(all)?);
                tree.insert("openstack/latest/network_data.json", data)?;
            }
            None => {}
        }
        Ok(tree)
    }

    /// The identity that the guest will see: the meta-data's, the one that was given, or one made
    /// from the host name.
    pub fn instance_id(&self) -> InstanceId {
        let given = self.meta_data.as_ref().and_then(MetaData::instance_id);
        given
            .or(self.instance_id.as_ref())
            .cloned()
            .unwrap_or_else(|| InstanceId::from_machine_name(self.hostname.as_str()))
    }

    /// The user's pieces, and ours behind them.
    fn all_user_data(&self) -> Result<Vec<UserData>, Error> {
        self.users.check()?;
        conflict::check(self)?;
        let ours = match self.user_data.as_slice() {
            [] => self.users.part(),
            data => self.users.part_behind(data),
        };
        Ok(self.user_data.iter().cloned().chain(ours).collect())
    }

    /// The kind of machine and the keys, under these names.
    fn add_common(&self, ours: &mut Map<String, Value>, [kind, keys]: [&str; 2]) {
        if let Some(instance_type) = &self.instance_type {
            ours.insert(kind.to_owned(), instance_type.as_str().into());
        }
        if !self.ssh_keys.is_empty() {
            ours.insert(keys.to_owned(), self.public_keys().into());
        }
    }

    fn merge_meta_data(&self, ours: &mut Map<String, Value>, datasource: Datasource) {
        if let Some(meta_data) = &self.meta_data {
            meta_data.merge_over(ours, datasource);
        }
    }

    /// The keys by number, in their order, as KubeVirt and OpenStack name them.
    fn public_keys(&self) -> Map<String, Value> {
        let keys = self.ssh_keys.iter().map(|key| key.to_string().into());
        keys.enumerate().map(|(number, key)| (number.to_string(), key)).collect()
    }
}

fn joined(parts: &[UserData]) -> Result<Vec<u8>, Error> {
    match parts {
        [] => Ok(Vec::new()),
        [part] => Ok(part.content().to_vec()),
        parts => {
            mime::check_joined(parts)?;
            Ok(mime::join(parts))
        }
    }
}

/// OpenStack's vendor data is JSON, with cloud-init's share under its name.
fn vendor_json(parts: &[UserData]) -> Result<Vec<u8>, Error> {
    let text = String::from_utf8(joined(parts)?).map_err(|_| {
        let what = "vendor-data of a config drive has to be UTF-8 text";
        Error::new(ErrorKind::UserData, what).with_hint("give it uncompressed, or use nocloud")
    })?;
    Ok(indented(&json!({ "cloud-init": text })))
}

fn check_network_data(text: &[u8]) -> Result<(), Error> {
    let data = serde_json::from_slice::<BTreeMap<String, serde::de::IgnoredAny>>(text);
    // The keys of cloud-init's own versions, in JSON: a config drive with them is given up whole.
    match data {
        Ok(data) if !data.contains_key("version") && !data.contains_key("network") => Ok(()),
        _ => {
            let what = "network configuration of a config drive has to be OpenStack's JSON object";
            Err(Error::new(ErrorKind::NetworkConfig, what).with_hint(
                "a config drive takes OpenStack's `network_data.json`, which `--interface` makes; \
                 cloud-init's own network-config goes with `--datasource nocloud`",
            ))
        }
    }
}

/// Indented, because people mount seeds to see what is in them.
fn indented(value: &impl Serialize) -> Vec<u8> {
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

    /// An id that no other instance has, from 16 random bytes: a UUID of version 4.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
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
