//! Paths on a file system that knows single inodes: directories, `..` and symbolic links, the same
//! for every kind.

use super::FileSystem;
use crate::{Error, ErrorKind};

/// Symbolic links on the way to one file, as Linux has it.
const LINKS_MAX: u32 = 40;
/// Bytes of a path, those of its links included.
const PATH_MAX: usize = 4096;
/// Directories within each other.
const DEPTH_MAX: usize = 64;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link,
    Other,
}

impl Kind {
    /// The kind that a Unix mode stands for.
    pub(super) const fn of_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o040_000 => Self::Directory,
            0o100_000 => Self::File,
            0o120_000 => Self::Link,
            _ => Self::Other,
        }
    }
}

/// A file system that answers for one inode at a time.
pub(super) trait Inodes {
    /// Names an inode.
    type Id: Copy;

    /// The kind and size of an inode.
    fn stat(&self, id: Self::Id) -> Result<(Kind, u64), Error>;

    /// The inode of a name in a directory.
    fn lookup(&self, directory: Self::Id, name: &str) -> Result<Option<Self::Id>, Error>;

    /// The names in a directory.
    fn list(&self, directory: Self::Id) -> Result<Vec<String>, Error>;

    /// Where a symbolic link leads.
    fn target(&self, link: Self::Id) -> Result<String, Error>;

    /// The first `size` bytes of a file, which has at least as many.
    fn content(&self, file: Self::Id, size: u64) -> Result<Vec<u8>, Error>;

    /// The inode at `path` under `root`, which is also where absolute links lead.
    fn find(&self, root: Self::Id, path: &str) -> Result<Option<Self::Id>, Error> {
        let mut here = vec![root];
        let mut rest: Vec<String> = parts(path);
        let (mut links, mut len) = (0, path.len());
        while let Some(part) = rest.pop() {
            let directory = *here.last().unwrap_or(&root);
            if part == ".." {
                here.truncate(here.len().saturating_sub(1).max(1));
                continue;
            }
            if self.stat(directory)?.0 != Kind::Directory {
                return Ok(None);
            }
            let Some(found) = self.lookup(directory, &part)? else { return Ok(None) };
            if self.stat(found)?.0 != Kind::Link {
                here.push(found);
                if here.len() > DEPTH_MAX {
                    return Err(too_long(path));
                }
                continue;
            }
            let target = self.target(found)?;
            (links, len) = (links + 1, len + target.len());
            if links > LINKS_MAX || len > PATH_MAX {
                return Err(too_long(path));
            }
            if target.starts_with('/') {
                here.truncate(1);
            }
            rest.extend(parts(&target));
        }
        Ok(here.last().copied())
    }

    /// The size of what is at `path`.
    fn size_at(&self, root: Self::Id, path: &str) -> Result<Option<u64>, Error> {
        self.find(root, path)?.map(|id| Ok(self.stat(id)?.1)).transpose()
    }

    /// The bytes of the file at `path`, of which there are at most `limit`.
    fn read_at(&self, root: Self::Id, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(id) = self.find(root, path)? else { return Ok(None) };
        match self.stat(id)? {
            (Kind::File, size) if size <= limit => self.content(id, size).map(Some),
            (Kind::File, size) => {
                let what = format!("expected at most {limit} bytes in `{path}`, got {size}");
                Err(Error::new(ErrorKind::TooLarge, what))
            }
            _ => Err(Error::new(ErrorKind::Read, format!("`{path}` is not a file"))),
        }
    }

    /// The first bytes of the file at `path`, at most `len`.
    fn head_at(&self, root: Self::Id, path: &str, len: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(id) = self.find(root, path)? else { return Ok(None) };
        match self.stat(id)? {
            (Kind::File, size) => self.content(id, size.min(len)).map(Some),
            _ => Ok(None),
        }
    }

    /// The names in the directory at `path`, in the order of their bytes.
    fn names_at(&self, root: Self::Id, path: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(id) = self.find(root, path)? else { return Ok(None) };
        if self.stat(id)?.0 != Kind::Directory {
            return Ok(None);
        }
        let mut names = self.list(id)?;
        names.retain(|name| name != "." && name != "..");
        names.sort_unstable();
        Ok(Some(names))
    }
}

/// A file system of inodes that knows where its paths begin, which makes it a [`FileSystem`].
pub(super) trait Rooted: Inodes {
    /// As [`FileSystem::kind`].
    const KIND: &'static str;

    /// Where paths begin: what is not found under one is looked for under the next.
    fn roots(&self) -> &[Self::Id];

    /// As [`FileSystem::uuid`].
    fn uuid(&self) -> String;

    /// As [`FileSystem::label`].
    fn label(&self) -> &str;

    /// As [`FileSystem::note`].
    fn note(&self) -> Option<&'static str> {
        None
    }

    /// What `look` finds under the first root under which it finds anything.
    fn under_roots<T>(
        &self,
        look: impl Fn(Self::Id) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        for root in self.roots() {
            if let Some(found) = look(*root)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl<R: Rooted> FileSystem for R {
    fn kind(&self) -> &'static str {
        R::KIND
    }

    fn uuid(&self) -> String {
        Rooted::uuid(self)
    }

    fn label(&self) -> String {
        Rooted::label(self).to_owned()
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        self.under_roots(|root| self.size_at(root, path))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        self.under_roots(|root| self.read_at(root, path, limit))
    }

    fn head(&self, path: &str, len: u64) -> Result<Option<Vec<u8>>, Error> {
        self.under_roots(|root| self.head_at(root, path, len))
    }

    fn names(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        self.under_roots(|root| self.names_at(root, path))
    }

    fn note(&self) -> Option<&'static str> {
        Rooted::note(self)
    }
}

/// The parts of a path, the last one first.
fn parts(path: &str) -> Vec<String> {
    let named = path.split('/').rev().filter(|part| !matches!(*part, "" | "."));
    named.map(str::to_owned).collect()
}

fn too_long(path: &str) -> Error {
    let what = format!("`{path}` leads through too many links or directories");
    Error::new(ErrorKind::TooLarge, what)
}
