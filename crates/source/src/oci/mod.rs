//! Container images that hold disks: in a registry, in a folder, in an archive.
//!
//! [`resolve`] finds the one image that a name and a platform mean, and verifies every step on the
//! way: the digest in the name, an index's digest of the manifest, the manifest's digest of the
//! configuration. The blobs of its layers are then opened one by one as [`Object`]s that know their
//! digest and have exactly the length that the manifest says. `urls` of a manifest are never followed.
//!
//! Not for what is in a layer.

mod archive;
mod auth;
mod config;
mod docker;
mod layout;
mod manifest;
mod push;
mod registry;
mod token;

use std::path::PathBuf;

use bootyard_spec::{Digest, ImageLayout, Platform, Source, Verifier};
use bytes::Bytes;

use crate::error::ErrorKind;
use crate::file::File;
use crate::{Error, Object, Start};

use archive::Archive;
use config::Config;
pub use manifest::Layer;
use manifest::{Descriptor, Document};
pub use push::{Content, NewImage, ReadPart, push};
use registry::Registry;

/// The most bytes of a manifest, an index or a configuration: what registries accept (distribution
/// specification, "Pushing Manifests").
const DOCUMENT_MAX: u64 = 4 << 20;
/// How many indexes may lead to a manifest: a layout's own, one of platforms, and one more.
const INDEXES_MAX: usize = 3;

/// Which image is meant, and how its registry is spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// The platform; by default [`Platform::host`].
    pub platform: Option<Platform>,
    /// The disk's path in the image, or an artifact's file, for who looks into the layers. By default
    /// the only file in `/disk`.
    pub path: Option<String>,
    /// The digest that the image must have, as [`Image::digest`] tells it: it was found by its name
    /// before, which may name another one since.
    pub digest: Option<Digest>,
    /// Takes any certificate of the registry, and plain HTTP if it speaks no TLS.
    pub insecure: bool,
    /// A file with credentials, as `docker login` writes it. It must be there.
    pub auth_file: Option<PathBuf>,
    /// The files that are looked into if there is no `auth_file`, in this order. They need not be
    /// there.
    pub default_auth_files: Vec<PathBuf>,
}

/// A container image whose manifest and configuration have been read and verified.
#[derive(Debug)]
pub struct Image {
    name: String,
    digest: Digest,
    config: Config,
    layers: Vec<Layer>,
    blobs: Blobs,
}

/// Where an image's parts are.
#[derive(Debug)]
enum Blobs {
    Registry(Registry),
    /// A folder in the OCI image layout.
    Folder(PathBuf),
    Archive(Archive),
}

/// Finds the image that `source` names. Needs what [`open`](crate::open) needs.
///
/// # Errors
///
/// If there is no such image or none for the platform, and if what is there does not have the
/// digests that it should have.
///
/// # Panics
///
/// If `source` is no container image.
pub async fn resolve(source: &Source, options: &crate::Options) -> Result<Image, Error> {
    let image = find(source, options).await?;
    match &options.image.digest {
        Some(wanted) if *wanted != image.digest => {
            let name = &image.name;
            let what =
                format!("`{name}` is another image meanwhile: was {wanted}, is {}", image.digest);
            Err(Error::new(ErrorKind::Changed, what))
        }
        _ => Ok(image),
    }
}

async fn find(source: &Source, options: &crate::Options) -> Result<Image, Error> {
    let finder = Finder { name: source.to_string(), platform: options.image.platform.clone() };
    match source {
        Source::Registry(reference) => {
            let (registry, document) = Registry::resolve(reference, options).await?;
            finder.find(Blobs::Registry(registry), document).await
        }
        Source::Stored(image) => {
            let reference = image.reference.as_deref();
            let blobs = match image.layout {
                ImageLayout::Oci => Blobs::Folder(image.path.clone()),
                _ => Blobs::Archive(Archive::open(&image.path).await?),
            };
            if image.layout == ImageLayout::DockerArchive {
                return docker::open(finder, blobs, reference).await;
            }
            let descriptor = layout::choose(&finder.name, &blobs, reference).await?;
            let document = blobs.document(&finder.name, &descriptor).await?;
            finder.find(blobs, document).await
        }
        other => unreachable!("`{other}` is no container image"),
    }
}

/// What is looked for.
struct Finder {
    /// The image's name, for messages.
    name: String,
    platform: Option<Platform>,
}

impl Finder {
    /// Goes from an index, if there is one, to the manifest, and reads its configuration.
    async fn find(self, blobs: Blobs, mut document: (Bytes, Digest)) -> Result<Image, Error> {
        for _ in 0..=INDEXES_MAX {
            let (bytes, digest) = document;
            match Document::parse(&self.name, &bytes)? {
                Document::Index(index) => {
                    let chosen = index.choose(&self.name, self.platform.as_ref())?;
                    document = blobs.document(&self.name, &chosen).await?;
                }
                Document::Manifest(manifest) => {
                    let config = match &manifest.config {
                        Some(config) => {
                            let (bytes, _) = blobs.blob(&self.name, config).await?;
                            Config::parse(&self.name, &bytes)?
                        }
                        None => Config::default(),
                    };
                    return self.image(digest, config, manifest.layers, blobs);
                }
            }
        }
        Err(Error::image(&self.name, "an index leads to another one, again and again"))
    }

    fn image(
        self,
        digest: Digest,
        config: Config,
        layers: Vec<Layer>,
        blobs: Blobs,
    ) -> Result<Image, Error> {
        let wanted = self.platform.clone().unwrap_or_else(Platform::host);
        match config.platform() {
            Some(platform) if !wanted.takes(&platform) => {
                Err(Error::no_platform(&self.name, &wanted, &[platform]))
            }
            _ => Ok(Image { name: self.name, digest, config, layers, blobs }),
        }
    }
}

impl Image {
    /// The name that it was asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The digest of its manifest. A docker archive has none: there it is the one of the
    /// configuration, which docker calls the image's id.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The platform that it says it is for. An artifact is for none.
    pub fn platform(&self) -> Option<Platform> {
        self.config.platform()
    }

    /// The variables that a container of it would have, as `NAME=VALUE`.
    pub fn env(&self) -> &[String] {
        self.config.env()
    }

    /// The labels that it was built with.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.config.labels()
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Opens the blob of a layer from `start` on. [`Object::digest`] is the one that its bytes must
    /// have; who reads them verifies it.
    ///
    /// # Errors
    ///
    /// If the blob is not there, or has another length than the manifest says.
    pub async fn open_layer(&self, layer: &Layer, start: &Start) -> Result<Object, Error> {
        let object = match &self.blobs {
            Blobs::Registry(registry) => {
                let digest = layer.digest().ok_or_else(|| Error::image(&self.name, NO_DIGEST))?;
                Object::from(registry.blob(digest, layer.size(), start).await?)
            }
            blobs => Object::from(blobs.file(&self.name, layer.place(), start).await?),
        };
        match object.len() {
            Some(len) if len != layer.size() => {
                Err(Error::wrong_size(&object.name(), layer.size(), len))
            }
            _ => Ok(object.with_digest(layer.digest().cloned())),
        }
    }
}

const NO_DIGEST: &str = "a layer has no digest";

impl Blobs {
    /// Reads a manifest or an index, and verifies it.
    async fn document(
        &self,
        image: &str,
        descriptor: &Descriptor,
    ) -> Result<(Bytes, Digest), Error> {
        match self {
            Self::Registry(registry) => {
                let name = descriptor.digest.to_string();
                let bytes = registry.manifest(&name, Some(descriptor.size)).await?;
                verify(image, bytes, Some(&descriptor.digest))
            }
            _ => self.blob(image, descriptor).await,
        }
    }

    /// Reads a small blob, and verifies it.
    async fn blob(&self, image: &str, descriptor: &Descriptor) -> Result<(Bytes, Digest), Error> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > DOCUMENT_MAX {
            return Err(Error::too_large(&digest.to_string(), DOCUMENT_MAX));
        }
        let mut object = match self {
            Self::Registry(registry) => {
                Object::from(registry.blob(digest, *size, &Start::default()).await?)
            }
            blobs => {
                Object::from(blobs.file(image, &manifest::place(digest), &Start::default()).await?)
            }
        };
        if let Some(len) = object.len().filter(|len| len != size) {
            return Err(Error::wrong_size(&object.name(), *size, len));
        }
        let bytes = read_all(&mut object, *size).await?;
        verify(image, bytes, Some(digest))
    }

    /// A file of a layout, by its path within.
    async fn file(&self, image: &str, path: &str, start: &Start) -> Result<File, Error> {
        match self {
            Self::Folder(folder) => File::open_at(&folder.join(path), start).await,
            Self::Archive(archive) => archive.file(path, start).await,
            Self::Registry(_) => Err(Error::image(image, "a registry has no files")),
        }
    }

    /// A small file of a layout, whole.
    async fn read(&self, image: &str, path: &str) -> Result<Bytes, Error> {
        let mut object = Object::from(self.file(image, path, &Start::default()).await?);
        read_all(&mut object, DOCUMENT_MAX).await
    }
}

/// Reads an object of at most `limit` bytes to its end.
async fn read_all(object: &mut Object, limit: u64) -> Result<Bytes, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = object.next().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(Error::too_large(&object.name(), limit));
        }
    }
    Ok(bytes.into())
}

/// The bytes with their digest, in the algorithm of the expected one.
fn verify(image: &str, bytes: Bytes, expected: Option<&Digest>) -> Result<(Bytes, Digest), Error> {
    let mut verifier = Verifier::new(expected.into_iter().cloned().collect());
    verifier.update(&bytes);
    match verifier.finish() {
        Ok(verified) => Ok((bytes, expected.unwrap_or_else(|| verified.sha256()).clone())),
        Err(error) => Err(Error::new(
            ErrorKind::Digest,
            format!("a part of `{image}` is not the one that its digest is of"),
        )
        .because(error)),
    }
}
