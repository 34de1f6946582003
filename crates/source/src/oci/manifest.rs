//! Manifests and indexes (OCI image specification 1.1; docker's schema 2 is the same in what counts
//! here): which manifest a platform means, and what a manifest says of its layers.

use std::collections::BTreeMap;

use bootyard_spec::{Algorithm, Digest, Platform};
use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, ImageIndexEntry, OciDescriptor,
    OciImageIndex, OciImageManifest,
};
use serde_json::Value;

use crate::Error;

/// How many layers an image may have: docker's own limit is 127.
const LAYERS_MAX: usize = 128;
/// How many manifests an index may name.
const MANIFESTS_MAX: usize = 1024;
/// The annotation with the name of an artifact's file.
const TITLE: &str = "org.opencontainers.image.title";
/// The annotation by which buildkit marks what is no image: attestations.
const ABOUT: &str = "vnd.docker.reference.type";

/// A manifest or an index, checked.
#[derive(Debug)]
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// The manifests that an index names.
#[derive(Debug)]
pub(super) struct Index(pub(super) Vec<ImageIndexEntry>);

/// What a manifest names.
#[derive(Debug)]
pub(super) struct Manifest {
    /// `None` for an artifact, whose configuration is whatever its maker likes.
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Vec<Layer>,
}

/// A blob by its digest.
#[derive(Debug, Clone)]
pub(super) struct Descriptor {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// A layer of an image, or a file of an artifact.
#[derive(Debug, Clone)]
pub struct Layer {
    digest: Option<Digest>,
    diff_id: Option<Digest>,
    media_type: String,
    size: u64,
    title: Option<String>,
    is_blob: bool,
    place: String,
}

impl Layer {
    /// The digest of its bytes as they are stored. `None` for a compressed layer of a docker
    /// archive, which only tells the digest of what is in it.
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The digest of what it is when it is decompressed, where [`Layer::digest`] is not known.
    pub const fn diff_id(&self) -> Option<&Digest> {
        self.diff_id.as_ref()
    }

    /// The media type, as the manifest says it.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The length in bytes, as it is stored.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The name of an artifact's file (`org.opencontainers.image.title`).
    pub fn title(&self) -> Option<&str> {
        self.title.as_deref()
    }

    /// Whether it is a file by itself, as in an ORAS artifact, and not a tar archive of files.
    pub const fn is_blob(&self) -> bool {
        self.is_blob
    }

    /// The path in a layout.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A tar archive at `place` of an archive.
    pub(super) fn stored(
        place: String,
        size: u64,
        digest: Option<Digest>,
        diff_id: Option<Digest>,
    ) -> Self {
        let media_type = "application/vnd.docker.image.rootfs.diff.tar".to_owned();
        Self { digest, diff_id, media_type, size, title: None, is_blob: false, place }
    }

    fn new(image: &str, layer: &OciDescriptor, is_artifact: bool) -> Result<Self, Error> {
        let media_type = layer.media_type.clone();
        if media_type.ends_with("+encrypted") {
            return Err(Error::image(image, "a layer is encrypted"));
        }
        let Descriptor { digest, size } = descriptor(image, &layer.digest, layer.size)?;
        let title = layer.annotations.as_ref().and_then(|all| all.get(TITLE)).cloned();
        let is_blob = is_artifact || !is_tar(&media_type);
        let place = place(&digest);
        Ok(Self { digest: Some(digest), diff_id: None, media_type, size, title, is_blob, place })
    }
}

/// Whether the media type is one of a layer: `…​.tar`, `….tar+gzip`, `….tar.gzip`.
fn is_tar(media_type: &str) -> bool {
    let name = media_type.split(';').next().unwrap_or_default().trim();
    name.split(['.', '+', '/', '-']).any(|word| word == "tar")
}

/// Where a layout has a blob (OCI image layout, "Blobs").
pub(super) fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

pub(super) fn descriptor(image: &str, digest: &str, size: i64) -> Result<Descriptor, Error> {
    let bad = |why: &str| Error::image(image, &format!("its manifest is malformed: {why}"));
    let digest = strong(digest).ok_or_else(|| bad("a digest of an unknown kind"))?;
    let size = u64::try_from(size).map_err(|_| bad("a negative size"))?;
    Ok(Descriptor { digest, size })
}

/// A digest of the kinds that images have (OCI image specification, "Registered Algorithms"): none
/// that two different contents could be made to share.
pub(super) fn strong(text: &str) -> Option<Digest> {
    let is_strong =
        |digest: &Digest| matches!(digest.algorithm(), Algorithm::Sha256 | Algorithm::Sha512);
    text.parse().ok().filter(is_strong)
}

impl Document {
    pub(super) fn parse(image: &str, bytes: &[u8]) -> Result<Self, Error> {
        let bad = |why: &str| Error::image(image, &format!("its manifest is malformed: {why}"));
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| bad(&error.to_string()))?;
        if value.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
            return Err(bad("expected `schemaVersion` 2"));
        }
        let (index, image_like) = (
            value.get("manifests").is_some(),
            value.get("layers").is_some() || value.get("config").is_some(),
        );
        match (index, image_like) {
            // One that reads differently to different readers (CVE-2021-41190).
            (true, true) => Err(bad("it is both an index and an image")),
            (false, false) => Err(bad("it names neither manifests nor layers")),
            (true, false) => {
                let index: OciImageIndex =
                    serde_json::from_value(value).map_err(|error| bad(&error.to_string()))?;
                if index.manifests.len() > MANIFESTS_MAX {
                    return Err(bad(&format!("more than {MANIFESTS_MAX} manifests")));
                }
                Ok(Self::Index(Index(index.manifests)))
            }
            (false, true) => {
                let manifest =
                    serde_json::from_value(value).map_err(|error| bad(&error.to_string()))?;
                Manifest::new(image, &manifest).map(Self::Manifest)
            }
        }
    }
}

impl Manifest {
    fn new(image: &str, manifest: &OciImageManifest) -> Result<Self, Error> {
        if manifest.layers.len() > LAYERS_MAX {
            let what =
                format!("it has {} layers; expected at most {LAYERS_MAX}", manifest.layers.len());
            return Err(Error::image(image, &what));
        }
        let config = &manifest.config;
        let is_artifact = ![IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE]
            .contains(&config.media_type.as_str());
        let layers = manifest.layers.iter().map(|layer| Layer::new(image, layer, is_artifact));
        let layers = layers.collect::<Result<_, _>>()?;
        let config = match is_artifact {
            true => None,
            false => Some(descriptor(image, &config.digest, config.size)?),
        };
        Ok(Self { config, layers })
    }
}

impl Index {
    /// The manifest for the platform; for this machine's, if none was asked for.
    pub(super) fn choose(
        &self,
        image: &str,
        platform: Option<&Platform>,
    ) -> Result<Descriptor, Error> {
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let entries: Vec<(&ImageIndexEntry, Option<Platform>)> = self
            .0
            .iter()
            .filter(|entry| !is_about(entry))
            .map(|entry| (entry, offered(entry)))
            .collect();
        let exact = entries.iter().find(|(_, offered)| offered.as_ref() == Some(&wanted));
        let fitting = || {
            entries.iter().find(|(_, offered)| offered.as_ref().is_some_and(|o| wanted.takes(o)))
        };
        // One that does not say is looked into.
        let silent = || match &entries[..] {
            [only @ (_, None)] => Some(only),
            _ => None,
        };
        match exact.or_else(fitting).or_else(silent) {
            Some((entry, _)) => descriptor(image, &entry.digest, entry.size),
            None => {
                let offered: Vec<Platform> =
                    entries.into_iter().filter_map(|(_, offered)| offered).collect();
                Err(Error::no_platform(image, &wanted, &offered))
            }
        }
    }
}

/// Whether it is something about an image, such as an attestation, and no image.
fn is_about(entry: &ImageIndexEntry) -> bool {
    let unknown =
        |platform: Platform| platform.os == "unknown" || platform.architecture == "unknown";
    offered(entry).is_some_and(unknown) || annotation(entry.annotations.as_ref(), ABOUT).is_some()
}

fn offered(entry: &ImageIndexEntry) -> Option<Platform> {
    entry.platform.as_ref().map(|platform| Platform {
        os: platform.os.to_string(),
        architecture: platform.architecture.to_string(),
        variant: platform.variant.clone().filter(|variant| !variant.is_empty()),
    })
}

pub(super) fn annotation<'a>(
    annotations: Option<&'a BTreeMap<String, String>>,
    name: &str,
) -> Option<&'a str> {
    annotations?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_that_can_be_forged_is_none() {
        for (algorithm, len, expected) in
            [("sha256", 64, true), ("sha512", 128, true), ("sha1", 40, false), ("md5", 32, false)]
        {
            let text = format!("{algorithm}:{}", "0".repeat(len));
            assert!(text.parse::<Digest>().is_ok());
            assert_eq!(strong(&text).is_some(), expected, "{text}");
            assert_eq!(descriptor("x", &text, 1).is_ok(), expected, "{text}");
        }
    }
}
