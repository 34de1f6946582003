//! Why a disk could not be stored or found.

use std::io;
use std::path::{Path, PathBuf};

use bootyard_spec::{ByteSize, Class, Explain, VolumeName, shell_word};

/// A failure to store or to find a disk, with the path that it is about.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    path: PathBuf,
    what: String,
    hint: Option<String>,
    source: Option<io::Error>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The target exists.
    Exists,
    /// Another process works on the target, or the block device is in use.
    InUse,
    /// The file system has no space left.
    NoSpace,
    /// The block device, or the file system's largest file, is smaller than the disk.
    TooSmall,
    /// There is no such volume, or no folder for the file.
    NotFound,
    /// The user may not write there.
    Permission,
    /// The user wanted to stop.
    Stopped,
    /// A disk is not what it was although nobody is known to have written to it.
    Damaged,
    /// An archive is damaged, too large, or has members that may not be unpacked.
    Archive,
    /// The store's database is damaged, or of a later version.
    Database,
    /// There is no such storage class, or it cannot do what was asked for.
    Unsupported,
    /// The volume's access modes do not allow it.
    AccessMode,
    /// Anything else that the operating system reports.
    Io,
}

impl Error {
    /// The kind of failure.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file, folder or device that the failure is about.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn new(kind: ErrorKind, path: &Path, what: impl Into<String>) -> Self {
        Self { kind, path: path.to_owned(), what: what.into(), hint: None, source: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure of an operation on `path`; `what` says in lower case what could not be done.
    pub(crate) fn io(source: io::Error, path: &Path, what: impl Into<String>) -> Self {
        let (kind, hint) = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::NoSpace, Some(no_space_hint(path)))
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let (folder, file) = (folder_of(path), shell_word(path));
                let hint = format!("see who may write there: `ls -ld {folder} {file}`");
                (ErrorKind::Permission, Some(hint))
            }
            _ => (ErrorKind::Io, None),
        };
        Self { kind, path: path.to_owned(), what: what.into(), hint, source: Some(source) }
    }

    /// The store in `home` is on a file system that nobody may write to.
    pub(crate) fn read_only(home: &Path) -> Self {
        let what = format!("the store `{}` is read-only", home.display());
        let hint = format!(
            "see how it is mounted with `findmnt -T {}`, or name another store with BOOTYARD_HOME",
            shell_word(home)
        );
        Self::new(ErrorKind::Permission, home, what).with_hint(hint)
    }

    /// What SQLite says about the database `path`.
    pub(crate) fn database(source: io::Error, path: &Path, what: String) -> Self {
        Self { source: Some(source), ..Self::new(ErrorKind::Database, path, what) }
    }

    /// An archive for `path` that is not unpacked.
    pub(crate) fn archive(path: &Path, what: String) -> Self {
        Self::new(ErrorKind::Archive, path, what)
    }

    /// The failure to read an archive for `path`.
    pub(crate) fn unreadable(source: io::Error, path: &Path) -> Self {
        let source = Some(source);
        Self { source, ..Self::archive(path, "cannot read the archive".to_owned()) }
    }

    pub(crate) fn exists(path: &Path) -> Self {
        let what = format!("target `{}` exists", path.display());
        let hint = match fs_err::symlink_metadata(path) {
            Ok(found) if found.is_file() => {
                format!("name another target, or remove it first: `rm {}`", shell_word(path))
            }
            _ => "name another target".to_owned(),
        };
        Self::new(ErrorKind::Exists, path, what).with_hint(hint)
    }

    /// A folder stands where a disk is to be.
    pub(crate) fn is_folder(path: &Path) -> Self {
        let what = format!("target `{}` is a folder", path.display());
        let hint = format!("name a file in it, such as `{}`", path.join("disk.raw").display());
        Self::new(ErrorKind::Exists, path, what).with_hint(hint)
    }

    /// There is a volume of this name, with its disk at `path`.
    pub(crate) fn volume_exists(name: &VolumeName, path: &Path) -> Self {
        let hint = format!("choose another name, or remove it first: `bootyard volume rm {name}`");
        Self::new(ErrorKind::Exists, path, format!("volume `{name}` exists")).with_hint(hint)
    }

    /// Something that no import left stands where the part file `path` is to be.
    pub(crate) fn in_the_way(path: &Path) -> Self {
        let what =
            format!("`{}` is in the way: expected nothing, or a file of its own", path.display());
        let file = shell_word(path);
        let hint = format!("see what it is: `ls -ld {file}`; move it away, or name another target");
        Self::new(ErrorKind::Exists, path, what).with_hint(hint)
    }

    /// The file system has no files of `len` bytes, which `path` is to have.
    pub(crate) fn file_too_large(path: &Path, len: u64) -> Self {
        let (path_name, len) = (path.display(), ByteSize::from_bytes(len));
        let what =
            format!("`{path_name}` cannot have {len}: the file system has no files of that size");
        Self::new(ErrorKind::TooSmall, path, what)
            .with_hint("name a smaller `--size`, or store the disk on another file system")
    }

    /// `free` bytes are there where `needed` are wanted for the disk at `path`.
    pub(crate) fn no_space(path: &Path, needed: u64, free: u64) -> Self {
        let what = format!(
            "no space for `{}`: expected at least {} free, got {}",
            path.display(),
            ByteSize::from_bytes(needed),
            ByteSize::from_bytes(free)
        );
        Self::new(ErrorKind::NoSpace, path, what).with_hint(no_space_hint(path))
    }
}

/// The folder of `path`, for a command.
fn folder_of(path: &Path) -> String {
    let folder = path.parent().unwrap_or(path);
    shell_word(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

fn no_space_hint(path: &Path) -> String {
    let folder = folder_of(path);
    format!(
        "see what is free with `df -h {folder}`; make room there, or store the disk on another \
         file system with `--to FILE` or BOOTYARD_HOME"
    )
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self.kind {
            ErrorKind::Archive => Class::Image,
            ErrorKind::Stopped => Class::Interrupted,
            ErrorKind::Unsupported => Class::Usage,
            _ => Class::Target,
        }
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}
