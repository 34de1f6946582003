//! What `docker save` writes: `manifest.json` beside configurations and layers.
//!
//! It holds no digest of the layers as they are stored. Of an uncompressed one the configuration has
//! it, and one whose path is a digest is taken at its word; of any other it has only the digest of what
//! is in it.

use bootyard_spec::Digest;
use serde::Deserialize;

use super::config::Config;
use super::manifest::{Layer, strong};
use super::{Blobs, Finder, Image, verify};
use crate::{Error, Start};

/// How many bytes tell a compression.
const MAGIC_LEN: u64 = 6;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) async fn open(
    finder: Finder,
    blobs: Blobs,
    reference: Option<&str>,
) -> Result<Image, Error> {
    let name = finder.name.clone();
    let bytes = blobs.read(&name, "manifest.json").await?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::image(&name, &format!("its manifest is malformed: {error}")))?;
    let entry = choose(&name, entries, reference)?;
    let (bytes, digest) = verify(&name, blobs.read(&name, &entry.config).await?, None)?;
    if path_digest(&entry.config).is_some_and(|expected| expected != digest) {
        return Err(Error::image(&name, "its configuration does not have the digest of its name"));
    }
    let config = Config::parse(&name, &bytes)?;
    if config.diff_ids().len() != entry.layers.len() {
        return Err(Error::image(&name, "its manifest and its configuration differ in layers"));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in entry.layers.iter().zip(config.diff_ids()) {
        let file = blobs.file(&name, path, &Start::default()).await?;
        let magic = file.read_range(0..MAGIC_LEN.min(file.len())).await?;
        let diff_id = strong(diff_id).ok_or_else(|| {
            Error::image(&name, "its configuration has a malformed digest of a layer")
        })?;
        let (digest, diff_id) = match (is_compressed(&magic), path_digest(path)) {
            (false, _) => (Some(diff_id), None),
            (true, Some(digest)) => (Some(digest), None),
            (true, None) => (None, Some(diff_id)),
        };
        layers.push(Layer::stored(path.clone(), file.len(), digest, diff_id));
    }
    finder.image(digest, config, layers, blobs)
}

/// The image with this tag, or the only one. docker leaves out its own registry and `library`.
fn choose(image: &str, entries: Vec<Entry>, reference: Option<&str>) -> Result<Entry, Error> {
    let tags = |entry: &Entry| entry.repo_tags.clone().unwrap_or_default();
    let whole =
        |tag: &str| tag.parse().map_or(tag.to_owned(), |tag: oci_client::Reference| tag.whole());
    let all: Vec<String> = entries.iter().flat_map(tags).collect();
    let mut found = entries.into_iter().filter(|entry| match reference {
        None => true,
        Some(wanted) => tags(entry).iter().any(|tag| whole(tag) == whole(wanted)),
    });
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(Error::which_image(image, &all)),
    }
}

/// The digest that a path holds: `blobs/sha256/HEX`, or `HEX.json`.
fn path_digest(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}

fn is_compressed(magic: &[u8]) -> bool {
    [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0"]
        .iter()
        .any(|known| magic.starts_with(known))
}
