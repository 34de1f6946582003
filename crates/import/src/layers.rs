//! From a container image to its one disk: which layer holds it.
//!
//! The layers are looked at from the top, since an upper one replaces and hides what is below. Each
//! passes as a stream; the usual image has one, whose first bytes show the disk, and these are kept,
//! so that it is fetched once. A layer without a disk is read to its end and verified like any other,
//! for what it hides. Only a disk far behind the beginning of its layer is fetched twice.
//!
//! Not for what the members of a layer are: that is `image::stream`'s matter.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::mpsc::{Receiver, sync_channel};

use bootyard_image::stream::{Decompressed, Head, LayerRules, Scan, Scanned};
use bootyard_source::oci::{self, Image, Layer};
use bootyard_source::{self as source, Object, Start};
use bootyard_spec::{Digest, Platform, Source, Verifier};
use bytes::Bytes;

use crate::Error;
use crate::archive::Chunks;
use crate::opened::{Lookup, Opened};
use crate::transfer::workers;

/// How much of a layer is kept until the disk begins. Makers of containerDisks put it first.
const KEPT_MAX: usize = 16 << 20;
/// What stands between the two parts of a label's name in the name of an image's variable.
const LABEL_MARK: &str = "_KUBEVIRT_IO_";
/// How many chunks of a layer wait to be decompressed.
const CHUNKS_QUEUED: usize = 4;
/// How many names of files are told.
const NAMED_MAX: usize = 24;

/// The container image that a disk came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReport {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The platform that it says it is for.
    pub platform: Option<Platform>,
    /// The labels that it has for the volume, by its variables `X_KUBEVIRT_IO_Y`.
    pub labels: BTreeMap<String, String>,
}

impl ImageReport {
    fn new(image: &Image) -> Self {
        let labels = image.env().iter().filter_map(|variable| label(variable)).collect();
        Self { digest: image.digest().clone(), platform: image.platform(), labels }
    }
}

/// `X_KUBEVIRT_IO_Y=v` as `x.kubevirt.io/y` and `v`, as CDI has it.
fn label(variable: &str) -> Option<(String, String)> {
    let (name, value) = variable.split_once('=')?;
    let (prefix, name) = name.split_once(LABEL_MARK)?;
    let [prefix, name] = [prefix, name].map(str::to_ascii_lowercase);
    let label = format!("{}.kubevirt.io/{}", prefix.replace('_', "."), name.replace('_', "-"));
    Some((label, value.to_owned()))
}

/// Whether a source is a container image, which [`open`] takes.
pub(crate) const fn is_image(source: &Source) -> bool {
    matches!(source, Source::Registry(_) | Source::Stored(_))
}

/// Finds the disk in a container image, and opens the layer that holds it.
pub(crate) async fn open(
    source: &Source,
    options: &source::Options,
    lookup: &Lookup<'_>,
) -> Result<Opened, Error> {
    let image = oci::resolve(source, options).await?;
    let path = options.image.path.as_deref();
    let search = Search { source, image: &image, options, lookup };
    let blobs: Vec<&Layer> = image.layers().iter().filter(|layer| layer.is_blob()).collect();
    let opened = match &blobs[..] {
        [] => search.in_layers(path).await?,
        blobs => {
            let layer = search.choose_blob(blobs, path)?;
            let (object, cached) = search.open_layer(layer).await?;
            Opened { cached, ..Opened::of(object, source, Head::new()).await? }
        }
    };
    Ok(opened.with_image(ImageReport::new(&image)))
}

struct Search<'a> {
    source: &'a Source,
    image: &'a Image,
    options: &'a source::Options,
    lookup: &'a Lookup<'a>,
}

/// What was found in a layer.
enum Found {
    Disk(Box<Opened>),
    Other(bootyard_image::stream::LayerContents),
}

impl Search<'_> {
    /// Opens a layer, and tells whether it was in the cache.
    async fn open_layer(&self, layer: &Layer) -> Result<(Object, bool), Error> {
        match self.lookup.blob(layer.digest(), self.options).await? {
            Some(object) => Ok((object.with_digest(layer.digest().cloned()), true)),
            None => {
                let object = self.image.open_layer(layer, &Start::default()).await?;
                let Some(diff_id) = layer.diff_id() else { return Ok((object, false)) };
                let digest = self.verify_packed(object, diff_id).await?;
                let object = self.image.open_layer(layer, &Start::default()).await?;
                Ok((object.with_digest(Some(digest)), false))
            }
        }
    }

    /// Reads a layer of which only the digest of its contents is known, and verifies these. Returns the
    /// digest of the layer itself, by which whoever reads it again knows that it is the same.
    async fn verify_packed(&self, mut object: Object, diff_id: &Digest) -> Result<Digest, Error> {
        let (sender, receiver) = sync_channel(CHUNKS_QUEUED);
        let contents = Verifier::new(vec![diff_id.clone()]);
        let worker = tokio::task::spawn_blocking(|| hash_contents(receiver, contents));
        let mut verifier = Verifier::new(Vec::new());
        loop {
            let chunk = object.next().await?;
            chunk.iter().for_each(|chunk| verifier.update(chunk));
            let is_last = chunk.is_none();
            // A worker that has failed says why below.
            let _ = sender.send(chunk);
            if is_last {
                break;
            }
        }
        let hashed = worker.await.map_err(|error| Error::Setup(error.into()))?;
        let contents = hashed.map_err(|error| Error::image(error, self.source, None))?;
        contents.finish().map_err(|error| self.mismatch(error))?;
        let verified = verifier.finish().expect("nothing is expected of it");
        Ok(verified.sha256().clone())
    }

    /// The file of an artifact that is the disk: the only one, or the one with the title.
    fn choose_blob<'l>(&self, blobs: &[&'l Layer], path: Option<&str>) -> Result<&'l Layer, Error> {
        let title = path.map(|path| path.trim_start_matches('/'));
        let mut fitting = blobs.iter().filter(|layer| title.is_none() || layer.title() == title);
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(self.no_disk(
                blobs.iter().map(|layer| layer.title().unwrap_or(layer.media_type()).to_owned()),
            )),
        }
    }

    async fn in_layers(&self, path: Option<&str>) -> Result<Opened, Error> {
        let mut rules = LayerRules::new(path);
        let mut names: Vec<String> = Vec::new();
        for layer in self.image.layers().iter().rev() {
            match self.in_layer(layer, &rules).await? {
                Found::Disk(opened) => return Ok(*opened),
                Found::Other(contents) => {
                    rules.hide(&contents);
                    for name in contents.top() {
                        if !names.contains(name) {
                            names.push(name.clone());
                        }
                    }
                }
            }
        }
        names.sort();
        Err(self.no_disk(names.into_iter()))
    }

    async fn in_layer(&self, layer: &Layer, rules: &LayerRules) -> Result<Found, Error> {
        let bad = |error| Error::image(error, self.source, None);
        let (mut object, cached) = self.open_layer(layer).await?;
        let mut verifier = Verifier::new(object.digest().into_iter().cloned().collect());
        let mut scan = Scan::new(rules.clone()).map_err(bad)?;
        let (mut kept, mut len) = (Vec::new(), 0);
        let probe = loop {
            let Some(chunk) = object.next().await? else {
                // Bytes that are not the layer's prove nothing, not even that they are damaged.
                let verdict = verifier.finish();
                let scanned = match (verdict, scan.finish()) {
                    (Err(error), _) => return Err(self.mismatch(error)),
                    (Ok(_), scanned) => scanned.map_err(bad)?,
                };
                match scanned {
                    Scanned::Disk(probe) => break probe,
                    Scanned::Other(contents) => return Ok(Found::Other(contents)),
                }
            };
            verifier.update(&chunk);
            len += chunk.len();
            if len <= KEPT_MAX {
                kept.push(chunk.clone());
            } else {
                kept = Vec::new();
            }
            if let Some(probe) = scan.push(chunk).map_err(bad)? {
                break probe;
            }
        };
        if len > KEPT_MAX {
            (object, _) = self.open_layer(layer).await?;
        }
        let head = Head::of_layer(probe.clone(), rules.clone(), kept.clone());
        let opened = Opened { cached, ..Opened::begin(object, head, kept, probe) };
        Ok(Found::Disk(Box::new(opened)))
    }

    fn mismatch(&self, error: bootyard_spec::VerifyError) -> Error {
        Error::checksum(self.source, error, self.lookup.cache)
    }

    fn no_disk(&self, names: impl Iterator<Item = String>) -> Error {
        let names = names.take(NAMED_MAX).collect();
        Error::NoDisk { source_name: self.source.to_string(), names }
    }
}

/// Hashes what is in a compressed layer.
fn hash_contents(
    receiver: Receiver<Option<Bytes>>,
    mut verifier: Verifier,
) -> Result<Verifier, bootyard_image::Error> {
    let mut contents = Decompressed::new(Chunks::new(receiver), workers())?;
    let mut part = vec![0; 1 << 20];
    loop {
        match contents.read(&mut part) {
            Ok(0) => return Ok(verifier),
            Ok(len) => verifier.update(&part[..len]),
            Err(error) => {
                let own = error.downcast().unwrap_or_else(bootyard_image::Error::write);
                return Err(own);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_an_image_become_labels() {
        for (variable, expected) in [
            (
                "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small",
                Some(("instancetype.kubevirt.io/default-instancetype", "u1.small")),
            ),
            ("X_KUBEVIRT_IO_Y=a=b", Some(("x.kubevirt.io/y", "a=b"))),
            ("PATH=/bin:_KUBEVIRT_IO_", None),
            ("X_KUBEVIRT_IO_Y", None),
        ] {
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(label(variable), expected, "{variable}");
        }
    }
}
