//! The disk of a container image as a file of this host, fetched once: what machines lie overlays over.

use std::fs::{Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
/// it is not there, or is not as it was stored. Of several processes that want the same one, one fetches
/// it.
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
    let mut options = options.clone();
    // An archive or a folder may have another one under the same name by then.
    options.image.digest = Some(digest.clone());
    while !is_as_stored(&path).map_err(Error::Setup)? {
        match run(&request, &store, &options, events, cancel) {
            Ok(_) => {
                note(&path).map_err(Error::Setup)?;
                return Ok(ContainerDisk { digest, path, cached: false });
            }
            Err(Error::Target(error))
                if error.kind() == ErrorKind::InUse && !cancel.is_cancelled() =>
            {
                thread::sleep(PAUSE);
            }
            // Another process was faster.
            Err(Error::Target(error))
                if error.kind() == ErrorKind::Exists && path.is_file() && !path.is_symlink() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ContainerDisk { digest, path, cached: true })
}

/// Whether the disk is there. One that is not as it was noted is removed: machines would lie over
/// something else than the image's disk.
fn is_as_stored(path: &Path) -> io::Result<bool> {
    let Some(found) = there(fs_err::symlink_metadata(path))?.filter(Metadata::is_file) else {
        return Ok(false);
    };
    match there(fs_err::read_to_string(note_path(path)))? {
        Some(noted) if noted != facts(&found) => {
            there(fs_err::remove_file(path))?;
            there(fs_err::remove_file(note_path(path)))?;
            Ok(false)
        }
        Some(_) => Ok(true),
        // Who has stored it is about to note it, or ended before that.
        None => note(path).map(|()| true),
    }
}

/// `None` if it is not there.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Lets nobody write to the disk, and notes what it is like.
fn note(path: &Path) -> io::Result<()> {
    fs_err::set_permissions(path, Permissions::from_mode(0o444))?;
    let (note, mut part) = (note_path(path), note_path(path).into_os_string());
    part.push(format!(".{}", std::process::id()));
    fs_err::write(&part, facts(&fs_err::metadata(path)?))?;
    fs_err::rename(part, note)
}

fn note_path(path: &Path) -> PathBuf {
    path.with_extension("stored")
}

/// Size and time of the last change of the contents: neither stays as it is when somebody writes.
fn facts(metadata: &Metadata) -> String {
    let (size, seconds, nanos) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    format!("size {size}\nmtime {seconds}.{nanos:09}\n")
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
    fn a_disk_that_was_changed_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sha256-0.raw");
        assert!(!is_as_stored(&path).unwrap());
        fs_err::write(&path, "disk").unwrap();
        // Nothing is noted yet.
        assert!(is_as_stored(&path).unwrap() && is_as_stored(&path).unwrap());
        assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        fs_err::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs_err::OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
        assert!(!is_as_stored(&path).unwrap());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }

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
