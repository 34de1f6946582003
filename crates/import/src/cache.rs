//! Sources that were imported before, as they were sent, so that the same one need not be fetched
//! again.
//!
//! ```text
//! DIR/blobs/sha256-HEX     the bytes of a source with this digest; its time of change is its last use
//! DIR/names/HEX            by the SHA-256 of a source's name: the version and length that it had, and
//!                          the digest of its blob
//! DIR/blobs/.part-…        a blob that is being written
//! ```
//! What is read from here passes the verifier like all else. Nothing that goes wrong here makes an
//! import fail: then it is as if there were no cache.

use std::fs::{File, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bootyard_source::Object;
use bootyard_spec::{Algorithm, CacheSpec, Digest, Verifier};
use bytes::Bytes;

/// The cache that a request names.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    blobs: PathBuf,
    names: PathBuf,
    limit: u64,
}

impl Cache {
    pub(crate) fn new(spec: &CacheSpec) -> Self {
        let [blobs, names] = ["blobs", "names"].map(|name| spec.path.join(name));
        Self { blobs, names, limit: spec.limit.bytes() }
    }

    /// The file with the bytes that have this digest, if they are here. Notes that it is used.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<PathBuf> {
        if digest.algorithm() != Algorithm::Sha256 {
            return None;
        }
        let path = self.path_of(digest);
        let file = fs_err::OpenOptions::new().write(true).open(&path).ok()?;
        let now = FileTimes::new().set_modified(now());
        file.file().set_times(now).ok()?;
        Some(path)
    }

    /// The file with the bytes of `object`, if this version of it was imported before.
    pub(crate) fn version(&self, object: &Object) -> Option<PathBuf> {
        let note = fs_err::read_to_string(self.note_of(&object.name())).ok()?;
        let (version, digest) = note.trim_end().rsplit_once('\n')?;
        if version != version_of(object)? {
            return None;
        }
        self.blob(&digest.parse().ok()?)
    }

    /// Begins to keep the bytes of `object`.
    pub(crate) fn keep(&self, object: &Object) -> Option<Keeping> {
        if object.len().is_some_and(|len| len > self.limit) {
            return None;
        }
        fs_err::create_dir_all(&self.blobs).ok()?;
        fs_err::create_dir_all(&self.names).ok()?;
        let part = tempfile::Builder::new().prefix(".part-").tempfile_in(&self.blobs).ok()?;
        let note = version_of(object).map(|version| (self.note_of(&object.name()), version));
        Some(Keeping { cache: self.clone(), part, note, broken: false })
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(format!("sha256-{}", digest.hex()))
    }

    fn note_of(&self, name: &str) -> PathBuf {
        let mut hasher = Verifier::new(Vec::new());
        hasher.update(name.as_bytes());
        let verified = hasher.finish().expect("nothing was expected");
        self.names.join(verified.sha256().hex())
    }

    /// Removes the blobs that were not used for longest until the others fit the limit.
    fn shrink(&self) -> io::Result<()> {
        let mut blobs = Vec::new();
        for entry in fs_err::read_dir(&self.blobs)? {
            let entry = entry?;
            let found = entry.metadata()?;
            if entry.file_name().as_encoded_bytes().starts_with(b"sha256-") {
                blobs.push((found.modified()?, found.len(), entry.path()));
            }
        }
        blobs.sort_unstable();
        let mut total: u64 = blobs.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in blobs {
            if total <= self.limit {
                break;
            }
            fs_err::remove_file(path)?;
            total -= len;
        }
        Ok(())
    }
}

/// Tells this version of an object from others; `None` if nothing does.
fn version_of(object: &Object) -> Option<String> {
    Some(format!("{}\n{}", object.validator()?, object.len()?))
}

#[expect(clippy::disallowed_methods, reason = "the time of a blob's last use")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// A blob that is being written. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Keeping {
    cache: Cache,
    part: tempfile::NamedTempFile,
    /// Where to note which version of what it is, and that.
    note: Option<(PathBuf, String)>,
    broken: bool,
}

impl Keeping {
    /// Takes the next bytes of the source.
    pub(crate) fn write(&mut self, chunk: &Bytes) {
        self.broken = self.broken || self.part.write_all(chunk).is_err();
    }

    /// All bytes have come, and have this digest: they are kept from now on.
    pub(crate) fn publish(self, digest: &Digest) {
        let Self { cache, part, note, broken } = self;
        if broken {
            return;
        }
        let publish = || {
            part.as_file().sync_data()?;
            part.persist(cache.path_of(digest)).map_err(|error| error.error)?;
            if let Some((path, version)) = note {
                replace(&path, &format!("{version}\n{digest}\n"))?;
            }
            cache.shrink()
        };
        // Without it, the next import fetches again.
        let _: io::Result<()> = publish();
    }
}

/// Writes a small file in one step.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    let _: File = file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
