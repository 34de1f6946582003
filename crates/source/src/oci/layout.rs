//! The index of an OCI image layout: which of its images is meant.

use oci_client::manifest::ImageIndexEntry;

use super::manifest::{Document, annotation, descriptor};
use super::{Blobs, Descriptor};
use crate::Error;

/// The annotation with an image's name in a layout (OCI image specification, "Pre-Defined
/// Annotation Keys"),
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// and the one with its whole name, as docker and containerd write it.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// How many images are named in a message.
const NAMED_MAX: usize = 8;

/// The image with this name, or the only one.
pub(super) async fn choose(
    image: &str,
    blobs: &Blobs,
    reference: Option<&str>,
) -> Result<Descriptor, Error> {
    let bytes = blobs.read(image, "index.json").await?;
    let Document::Index(index) = Document::parse(image, &bytes)? else {
        return Err(Error::image(image, "its `index.json` is no index"));
    };
    let matches = |entry: &&ImageIndexEntry| match reference {
        None => true,
        Some(wanted) => entry.digest == wanted || names(entry).any(|name| name == wanted),
    };
    let found: Vec<&ImageIndexEntry> = index.0.iter().filter(matches).collect();
    match found[..] {
        [only] => descriptor(image, &only.digest, only.size),
        _ => {
            let all: Vec<String> = index
                .0
                .iter()
                .map(|entry| names(entry).next().unwrap_or(&entry.digest).to_owned())
                .take(NAMED_MAX)
                .collect();
            Err(Error::which_image(image, &all))
        }
    }
}

fn names(entry: &ImageIndexEntry) -> impl Iterator<Item = &str> {
    let names = [REF_NAME, IMAGE_NAME];
    names.into_iter().filter_map(|name| annotation(entry.annotations.as_ref(), name))
}
