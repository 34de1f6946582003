//! Storing an image of one layer: in a registry, in a folder, in an archive.
//!
//! Every byte of it follows from what is given: the same image has the same digest on every day.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bootyard_spec::{Digest, ImageLayout, Platform, Source, StoredImage, Verifier};
use bytes::Bytes;
use futures_util::stream;
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{IMAGE_CONFIG_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::manifest::place;
use super::registry::Registry;
use crate::error::ErrorKind;
use crate::file::blocking;
use crate::{Error, Options};

/// How many bytes are sent at once: each is a request of its own.
const CHUNK: usize = 4 << 20;
/// How often a token is renewed at most.
const RENEWED_MIN: Duration = Duration::from_secs(5);
/// The version of the layout (OCI image layout, "oci-layout file").
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image that is to be stored.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Its layer, as it is stored.
    pub layer: Content,
    /// The layer's digest,
    pub digest: Digest,
    /// its media type,
    pub media_type: &'static str,
    /// and the digest of what it unpacks to.
    pub diff_id: Digest,
    /// What it is for.
    pub platform: Platform,
    /// Variables, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made, by RFC 3339.
    pub created: String,
}

/// Bytes that can be read again and again.
#[derive(Clone)]
pub struct Content {
    /// How many.
    pub len: u64,
    /// Reads as many from an offset on.
    pub read: Arc<ReadPart>,
}

/// Reads so many bytes from an offset on.
pub type ReadPart = dyn Fn(u64, usize) -> io::Result<Bytes> + Send + Sync;

impl Content {
    fn of(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        let read = move |at: u64, len: usize| Ok(bytes.slice(at as usize..at as usize + len));
        Self { len, read: Arc::new(read) }
    }

    /// The bytes in parts, in their order.
    fn parts(&self) -> impl Iterator<Item = io::Result<Bytes>> + Send + use<> {
        let content = self.clone();
        (0..self.len)
            .step_by(CHUNK)
            .map(move |at| (content.read)(at, (content.len - at).min(CHUNK as u64) as usize))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The parts of an image, ready to be stored.
struct Parts {
    blobs: Vec<(Digest, Content)>,
    manifest: Bytes,
    digest: Digest,
}

impl Parts {
    fn new(image: &NewImage) -> Self {
        let history = json!([{ "created": image.created, "created_by": "bootyard push" }]);
        let mut config = json!({
            "architecture": image.platform.architecture,
            "os": image.platform.os,
            "created": image.created,
            "config": { "Env": image.env, "Labels": image.labels },
            "rootfs": { "type": "layers", "diff_ids": [image.diff_id.to_string()] },
            "history": history,
        });
        if let Some(variant) = &image.platform.variant {
            config["variant"] = json!(variant);
        }
        let config = Bytes::from(config.to_string());
        let config_digest = sha256(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": descriptor(IMAGE_CONFIG_MEDIA_TYPE, &config_digest, config.len() as u64),
            "layers": [descriptor(image.media_type, &image.digest, image.layer.len)],
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest = sha256(&manifest);
        let layer = (image.digest.clone(), image.layer.clone());
        Self { blobs: vec![layer, (config_digest, Content::of(config))], manifest, digest }
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut verifier = Verifier::new(Vec::new());
    verifier.update(bytes);
    let verified = verifier.finish().expect("nothing is expected of it");
    verified.sha256().clone()
}

/// Stores an image under the name that `target` is, and returns the digest of its manifest. In a
/// registry nothing is sent that is there already; a layout's other images stay.
///
/// # Errors
///
/// If the registry refuses it, or the files cannot be written.
pub async fn push(target: &Source, image: &NewImage, options: &Options) -> Result<Digest, Error> {
    let parts = Parts::new(image);
    match target {
        Source::Registry(name) => {
            let (registry, lifetime) = Registry::for_push(name, options).await?;
            tokio::select! {
                uploaded = upload(&registry, &parts, options) => uploaded?,
                () = stay_authorized(&registry, lifetime) => {}
            }
        }
        Source::Stored(StoredImage { layout: ImageLayout::Oci, path, reference }) => {
            let (path, reference) = (path.clone(), reference.clone());
            let (blobs, manifest) = (parts.blobs.clone(), parts.manifest.clone());
            let digest = parts.digest.clone();
            blocking(move || {
                let stored = into_folder(&path, &blobs, &manifest, &digest, reference.as_deref());
                stored.map_err(|error| Error::file(&path, error))
            })
            .await?;
        }
        Source::Stored(StoredImage { layout: ImageLayout::OciArchive, path, reference }) => {
            let (path, reference) = (path.clone(), reference.clone());
            let (blobs, manifest) = (parts.blobs.clone(), parts.manifest.clone());
            let digest = parts.digest.clone();
            blocking(move || {
                let stored = into_archive(&path, &blobs, &manifest, &digest, reference.as_deref());
                stored.map_err(|error| Error::file(&path, error))
            })
            .await?;
        }
        other => {
            let what = format!("an image cannot be pushed to `{other}`");
            let hint = "expected docker://HOST/NAME:TAG, oci:FOLDER:TAG or oci-archive:FILE:TAG";
            return Err(Error::new(ErrorKind::Setup, what).with_hint(hint.to_owned()));
        }
    }
    Ok(parts.digest)
}

/// Has the token renewed again and again, at half its time. Never ends.
async fn stay_authorized(registry: &Registry, mut lifetime: Option<Duration>) {
    while let Some(good) = lifetime {
        sleep((good / 2).max(RENEWED_MIN)).await;
        // One that is not renewed fails the request that is sent with it, which says why.
        if let Ok(Some(renewed)) = registry.authorize_push().await {
            lifetime = Some(renewed);
        }
    }
    std::future::pending::<()>().await;
}

async fn upload(registry: &Registry, parts: &Parts, options: &Options) -> Result<(), Error> {
    let (client, reference) = (registry.client(), registry.reference());
    for (digest, content) in &parts.blobs {
        let digest = digest.to_string();
        patiently(registry, options, async || {
            if client.blob_exists(reference, &digest).await? {
                return Ok(());
            }
            let parts = content.parts().map(|part| part.map_err(OciDistributionError::from));
            let body = stream::iter(parts);
            client.push_blob_stream(reference, body, &digest, Some(content.len)).await.map(drop)
        })
        .await?;
    }
    let media_type = HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
    patiently(registry, options, async || {
        let manifest = parts.manifest.clone();
        client.push_manifest_raw(reference, manifest, media_type.clone()).await.map(drop)
    })
    .await
}

/// Does it again as often as the options allow, unless the registry's answer is final.
async fn patiently(
    registry: &Registry,
    options: &Options,
    mut work: impl AsyncFnMut() -> Result<(), OciDistributionError>,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let error = match work().await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let transient = match &error {
            OciDistributionError::RequestError(_) => true,
            OciDistributionError::ServerError { code, .. } => *code == 429 || *code >= 500,
            _ => false,
        };
        if !transient || attempt >= options.attempts {
            return Err(registry.not_pushed(&error));
        }
        sleep(options.retry_delay.saturating_mul(1 << (attempt - 1).min(5))).await;
        attempt += 1;
    }
}

/// The index of a layout with one more image; one of the same name is replaced.
fn index_with(index: Option<Value>, manifest: &[u8], digest: &Digest, name: Option<&str>) -> Value {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let mut index =
        index.unwrap_or_else(|| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
    let mut entry = descriptor(OCI_IMAGE_MEDIA_TYPE, digest, manifest.len() as u64);
    if let Some(name) = name {
        entry["annotations"] = json!({ NAME: name });
    }
    let same = |other: &Value| other["annotations"][NAME].as_str() == name;
    if let Some(manifests) = index["manifests"].as_array_mut() {
        manifests.retain(|other| !same(other));
        manifests.push(entry);
    }
    index
}

fn into_folder(
    folder: &Path,
    blobs: &[(Digest, Content)],
    manifest: &Bytes,
    digest: &Digest,
    name: Option<&str>,
) -> io::Result<()> {
    let path = folder.join("index.json");
    let index = match fs_err::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if index.as_ref().is_some_and(|index: &Value| !index["manifests"].is_array()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its `index.json` is no index"));
    }
    fs_err::create_dir_all(folder.join("blobs/sha256"))?;
    let manifest_blob = (digest.clone(), Content::of(manifest.clone()));
    for (digest, content) in blobs.iter().chain([&manifest_blob]) {
        replace(&folder.join(place(digest)), content.parts())?;
    }
    replace(&folder.join("oci-layout"), [Ok(Bytes::from_static(LAYOUT.as_bytes()))])?;
    let index = index_with(index, manifest, digest, name).to_string();
    replace(&path, [Ok(Bytes::from(index))])
}

/// Writes a file beside its name, and gives it its name once it is whole.
fn replace(path: &Path, parts: impl IntoIterator<Item = io::Result<Bytes>>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bootyard-part");
    let beside = path.with_file_name(name);
    let written = fs_err::File::create(&beside).and_then(|mut file| {
        parts.into_iter().try_for_each(|part| file.write_all(&part?))?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs_err::rename(&beside, path));
    if done.is_err() {
        // The first failure is the one that counts.
        let _ = fs_err::remove_file(&beside);
    }
    done
}

fn into_archive(
    path: &Path,
    blobs: &[(Digest, Content)],
    manifest: &Bytes,
    digest: &Digest,
    name: Option<&str>,
) -> io::Result<()> {
    let index = index_with(None, manifest, digest, name).to_string();
    let manifest_blob = (digest.clone(), Content::of(manifest.clone()));
    let files = [
        ("oci-layout".to_owned(), Content::of(Bytes::from_static(LAYOUT.as_bytes()))),
        ("index.json".to_owned(), Content::of(index.into())),
    ];
    let blobs = blobs.iter().chain([&manifest_blob]);
    let blobs = blobs.map(|(digest, content)| (place(digest), content.clone()));
    let mut files: Vec<(String, Content)> = files.into_iter().chain(blobs).collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let parts = files.iter().flat_map(|(name, content)| {
        let header = tar_header(name, content.len);
        let padding = (content.len.next_multiple_of(512) - content.len) as usize;
        let padding = Bytes::from_static(&[0; 512][..padding]);
        [header].into_iter().chain(content.parts()).chain([Ok(padding)])
    });
    replace(path, parts.chain([Ok(Bytes::from_static(&[0; 1024]))]))
}

fn tar_header(name: &str, len: u64) -> io::Result<Bytes> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}
