//! Sources that were imported before, as they were sent, so that the same one need not be fetched
//! again.
//!
//! ```text
//! DIR/blobs/sha256-HEX     the bytes of a source with this digest; its time of change is its last use
//! DIR/names/HEX            by the SHA-256 of a source's name: the version and length that it had, and
//!                          the digest of its blob
//! DIR/blobs/.part-…        a blob that is being written, by whoever has locked it
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

/// What the names of blobs begin with that are being written.
const PART: &str = ".part-";

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
    /// Its bytes must have the digest.
    pub(crate) fn version(&self, object: &Object) -> Option<(PathBuf, Digest)> {
        let note = fs_err::read_to_string(self.note_of(&object.name())).ok()?;
        let (version, digest) = note.trim_end().rsplit_once('\n')?;
        if version != version_of(object)? {
            return None;
        }
        let digest = digest.parse().ok()?;
        Some((self.blob(&digest)?, digest))
    }

    /// Removes the blob that should have this digest. True if there was one.
    pub(crate) fn forget(&self, digest: &Digest) -> bool {
        digest.algorithm() == Algorithm::Sha256 && fs_err::remove_file(self.path_of(digest)).is_ok()
    }

    /// Begins to keep the bytes of `object`.
    pub(crate) fn keep(&self, object: &Object) -> Option<Keeping> {
        if object.len().is_some_and(|len| len > self.limit) {
            return None;
        }
        fs_err::create_dir_all(&self.blobs).ok()?;
        fs_err::create_dir_all(&self.names).ok()?;
        self.sweep().ok()?;
        let part = tempfile::Builder::new().prefix(PART).tempfile_in(&self.blobs).ok()?;
        part.as_file().try_lock().ok()?;
        let note = version_of(object).map(|version| (self.note_of(&object.name()), version));
        Some(Keeping { cache: self.clone(), part, note, len: 0, broken: false })
    }

    /// Removes the blobs that dead processes were writing: those that nobody has locked.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.blobs)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(PART.as_bytes()) {
                continue;
            }
            // Another process may have removed it, or own it.
            let Ok(file) = fs_err::File::open(entry.path()) else { continue };
            if file.file().try_lock().is_ok() {
                let _ = fs_err::remove_file(entry.path());
            }
        }
        Ok(())
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
    len: u64,
    broken: bool,
}

impl Keeping {
    /// Takes the next bytes of the source.
    pub(crate) fn write(&mut self, chunk: &Bytes) {
        if self.broken {
            return;
        }
        self.len += chunk.len() as u64;
        self.broken = self.len > self.cache.limit || self.part.write_all(chunk).is_err();
        if self.broken {
            // The target may need the space.
            let _ = self.part.as_file().set_len(0);
        }
    }

    /// All bytes have come, and have this digest: they are kept from now on.
    pub(crate) fn publish(self, digest: &Digest) {
        let Self { cache, part, note, broken, .. } = self;
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
