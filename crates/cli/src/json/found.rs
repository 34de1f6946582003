//! What `seed show --json` prints.

use bootyard_cloudinit::{FoundData, FoundImage, FoundSeed};
use serde::Serialize;

/// What is on a small disk. What it does not have is null.
#[derive(Debug, Serialize)]
pub(crate) struct FoundLine<'a> {
    image: &'a str,
    /// `iso9660` or `vfat`.
    r#type: &'static str,
    /// The same in words, with the names it has.
    file_system: &'static str,
    partition: Option<usize>,
    label: Option<&'a str>,
    /// `nocloud`, `configdrive`, or null if it is no seed.
    datasource: Option<&'static str>,
    instance_id: Option<&'a str>,
    hostname: Option<&'a str>,
    ssh_keys: Vec<KeyLine<'a>>,
    user_data: Option<DataLine<'a>>,
    vendor_data: Option<DataLine<'a>>,
    network_config: Option<NetworkLine>,
    files: Vec<FileLine>,
    loose_links: Vec<LinkLine<'a>>,
    problems: &'a [String],
}

#[derive(Debug, Serialize)]
struct KeyLine<'a> {
    r#type: &'a str,
    fingerprint: String,
    comment: &'a str,
}

/// User-data or vendor-data: its size on the disk, and its parts.
#[derive(Debug, Serialize)]
struct DataLine<'a> {
    size_bytes: usize,
    parts: Vec<PartLine<'a>>,
}

#[derive(Debug, Serialize)]
struct PartLine<'a> {
    /// What cloud-init takes it for; null if it does nothing with it.
    content_type: Option<&'static str>,
    file_name: Option<&'a str>,
    compressed: bool,
    size_bytes: usize,
}

#[derive(Debug, Serialize)]
struct NetworkLine {
    form: &'static str,
    size_bytes: usize,
}

#[derive(Debug, Serialize)]
struct FileLine {
    path: String,
    size_bytes: usize,
}

#[derive(Debug, Serialize)]
struct LinkLine<'a> {
    path: &'a str,
    target: &'a str,
}

impl<'a> FoundLine<'a> {
    pub(crate) fn new(name: &'a str, image: &'a FoundImage, seed: Option<&'a FoundSeed>) -> Self {
        let keys = seed.map_or(&[][..], |seed| &seed.ssh_keys).iter().map(|key| KeyLine {
            r#type: key.key_type(),
            fingerprint: key.fingerprint(),
            comment: key.comment(),
        });
        let file = |(path, content): (String, &[u8])| FileLine { path, size_bytes: content.len() };
        let links = image.loose_links.iter().map(|(path, target)| LinkLine { path, target });
        let network = seed.and_then(|seed| seed.network_config.as_ref());
        Self {
            image: name,
            r#type: image.file_system.type_name(),
            file_system: image.file_system.name(),
            partition: image.partition,
            label: image.label.as_deref(),
            datasource: seed.map(|seed| seed.datasource.name()),
            instance_id: seed.and_then(|seed| seed.instance_id.as_deref()),
            hostname: seed.and_then(|seed| seed.hostname.as_deref()),
            ssh_keys: keys.collect(),
            user_data: seed.and_then(|seed| seed.user_data.as_ref()).map(DataLine::new),
            vendor_data: seed.and_then(|seed| seed.vendor_data.as_ref()).map(DataLine::new),
            network_config: network.map(|network| NetworkLine {
                form: network.form.name(),
                size_bytes: network.content.len(),
            }),
            files: image.files.files().map(file).collect(),
            loose_links: links.collect(),
            problems: seed.map_or(&[], |seed| &seed.problems),
        }
    }
}

impl<'a> DataLine<'a> {
    fn new(data: &'a FoundData) -> Self {
        let parts = data.parts.parts.iter().map(|part| PartLine {
            content_type: part.format.map(|format| format.content_type()),
            file_name: part.file_name.as_deref(),
            compressed: part.was_compressed,
            size_bytes: part.content.len(),
        });
        Self { size_bytes: data.content.len(), parts: parts.collect() }
    }
}
