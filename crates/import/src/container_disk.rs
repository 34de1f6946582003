//! The disk of a container image as a file of this host, fetched once: what machines lie overlays over.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bootyard_source::{self as source, oci};
use bootyard_spec::{Digest, ImportRequest, OutputFormat, Source, Target, Verifier};
use bootyard_volume::{ErrorKind, Store};

use crate::run::{run, runtime};
use crate::transfer::unless;
use crate::{Cancel, Error, Events};

/// How often it is looked whether another process has fetched the same image by now.
const PAUSE: Duration = Duration::from_millis(200);

/// A disk that was in a container image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDisk {
    /// The digest of the image's manifest.
    pub digest: Digest,
    /// The disk, stored raw. It must not be changed.
    pub path: PathBuf,
    /// Whether it was there already.
    pub cached: bool,
}

/// Finds the disk of the container image `source` in `folder` by the image's digest, and imports it if
/// it is not there. Of several processes that want the same one, one fetches it.
///
/// # Panics
///
/// If `source` is no container image.
pub fn container_disk(
    source: &Source,
    folder: &Path,
    options: &source::Options,
    events: &dyn Events,
    cancel: &Cancel,
) -> Result<ContainerDisk, Error> {
    let image = runtime()?.block_on(unless(cancel, oci::resolve(source, options)))??;
    let digest = image.digest().clone();
    let path = folder.join(file_name(&digest, options.image.path.as_deref()));
    fs_err::create_dir_all(folder).map_err(Error::Setup)?;
    let request = ImportRequest {
        source: pinned(source, &digest),
        target: Target::Path(path.clone()),
        claim: bootyard_spec::Claim::default(),
        size: None,
        max_size: None,
        checksum: None,
        output_format: OutputFormat::Raw,
        preallocation: false,
        relocate_gpt: false,
        cache: None,
    };
    // No volume is named: the store is not asked.
    let store = Store::open(folder);
    while !path.is_file() {
        match run(&request, &store, options, events, cancel) {
            Ok(_) => return Ok(ContainerDisk { digest, path, cached: false }),
            Err(Error::Target(error))
                if error.kind() == ErrorKind::InUse && !cancel.is_cancelled() =>
            {
                thread::sleep(PAUSE);
            }
            // Another process was faster.
            Err(Error::Target(error)) if error.kind() == ErrorKind::Exists && path.is_file() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ContainerDisk { digest, path, cached: true })
}

/// The same image, whatever its tag names meanwhile.
fn pinned(source: &Source, digest: &Digest) -> Source {
    match source {
        Source::Registry(image) => {
            let name = image.split_once('@').map_or(image.as_str(), |(name, _)| name);
            Source::Registry(format!("{name}@{digest}"))
        }
        other => other.clone(),
    }
}

/// Names the disk at `path` in the image of this digest.
fn file_name(digest: &Digest, path: Option<&str>) -> String {
    let image = digest.to_string().replace(':', "-");
    let Some(path) = path else { return format!("{image}.raw") };
    let mut verifier = Verifier::new(Vec::new());
    verifier.update(path.as_bytes());
    let path = verifier.finish().expect("nothing was expected").sha256().hex();
    format!("{image}-{}.raw", &path[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pinned_by_its_digest() {
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        for (image, expected) in
            [("host/name:tag", "host/name:tag"), ("name@sha256:12", "name"), ("h:5/n", "h:5/n")]
        {
            let expected = Source::Registry(format!("{expected}@{digest}"));
            assert_eq!(pinned(&Source::Registry(image.to_owned()), &digest), expected);
        }
        let names = [None, Some("/disk/a"), Some("/disk/b")].map(|path| file_name(&digest, path));
        assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
    }
}
