//! An archive that becomes a folder (CDI's `contentType: archive`): unpacked out of sight, and moved to
//! its place when all of it is there and verified.
//!
//! What is not there yet is unpacked in a hidden sibling and gets its name in one step. A folder that
//! is there must be empty, as a file system made for the purpose is; the archive is unpacked in a
//! hidden folder in it, and its entries are moved up one by one.
//!
//! Files and folders belong to the user who runs this. Permissions and times are the archive's; the
//! bits for set-user-ID, set-group-ID and sticky only on request, since they meant another owner. No
//! member gets out of the folder ([`tree`]), and no device, FIFO or link to elsewhere gets in.

mod members;
#[cfg(test)]
mod tests;
mod tree;

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bootyard_spec::{Verified, shell_word};
use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, Stat, fchmod, flock, fstat, fsync, lstat, mkdirat, open,
    syncfs,
};
use rustix::io::Errno;

use crate::{Error, ErrorKind, fsops};
use members::{Fault, Kind, Member, Members};
use tree::{Inside, Tree, set};

/// The hidden folder in a folder that is there, and the ending of the hidden sibling's name.
const HIDDEN: &str = ".bootyard-unpack";
/// What `mkfs` makes in an empty file system.
const LOST_AND_FOUND: &str = "lost+found";
/// The permissions that mean the same whoever the owner is.
const PERMISSIONS: u32 = 0o777;
/// The permissions of the folder itself, if no member tells them.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// How often the hidden folder may vanish between being made and being locked.
const ATTEMPTS_MAX: u32 = 16;
/// How much memory the names of folders and links may take, which are looked at again in the end:
/// 16 MiB.
const NOTED_MAX: usize = 16 << 20;
/// What a noted name takes besides its bytes.
const NOTED_OVERHEAD: usize = 64;
/// How many bytes are copied at a time.
const COPY: usize = 256 << 10;

/// How much an archive may hold, and what is taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackOptions {
    /// How many members.
    pub members_max: u64,
    /// How many bytes all files may have, holes included.
    pub bytes_max: u64,
    /// Keep set-user-ID, set-group-ID and sticky, as `tar --preserve-permissions` does.
    pub special_modes: bool,
}

impl Default for UnpackOptions {
    /// A million members and 16 TiB, without special modes.
    fn default() -> Self {
        Self { members_max: 1 << 20, bytes_max: 16 << 40, special_modes: false }
    }
}

/// What an archive held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unpacked {
    /// How many members, folders and links included.
    pub members: u64,
    /// How many bytes the files have, holes included.
    pub bytes: u64,
}

/// An archive that is being unpacked. What is dropped before [`Self::publish`] leaves nothing behind.
#[derive(Debug)]
pub struct Unpack {
    path: PathBuf,
    staging: PathBuf,
    tree: Tree,
    options: UnpackOptions,
    /// The folder was there before.
    into_existing: bool,
    notes: Notes,
    published: bool,
}

/// What is done in the end.
#[derive(Debug, Default)]
struct Notes {
    folders: Vec<Folder>,
    links: Vec<Vec<u8>>,
    memory: usize,
}

/// Permissions and time of a folder, which can be set when it is filled.
#[derive(Debug)]
struct Folder {
    path: Inside,
    mode: u32,
    mtime: (i64, u32),
}

impl Unpack {
    /// Claims the folder `path`: a name that is free, or an empty folder.
    pub fn claim(path: &Path, options: UnpackOptions) -> Result<Self, Error> {
        let into_existing = match fs_err::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Ok(_) if path.is_dir() => true,
            Ok(_) => return Err(Error::exists(path)),
            Err(error) => return Err(Error::io(error, path, "cannot look at the target")),
        };
        let staging = if into_existing { path.join(HIDDEN) } else { sibling(path)? };
        let root = make(&staging)?;
        let unpack = Self {
            path: path.to_owned(),
            staging,
            tree: Tree::new(root),
            options,
            into_existing,
            notes: Notes::default(),
            published: false,
        };
        unpack.refuse_taken()?;
        Ok(unpack)
    }

    fn refuse_taken(&self) -> Result<(), Error> {
        if !self.into_existing {
            return Ok(());
        }
        let cannot = |error| Error::io(error, &self.path, "cannot list the target");
        for entry in fs_err::read_dir(&self.path).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name();
            if name != HIDDEN && name != LOST_AND_FOUND {
                let what = format!(
                    "target `{}` is not empty: `{}` is in it",
                    self.path.display(),
                    name.display()
                );
                let hint = "name an empty folder, or one that does not exist";
                return Err(Error::new(ErrorKind::Exists, &self.path, what).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Unpacks a tar archive, which is read to the end of its file.
    ///
    /// Fails with [`ErrorKind::Archive`] if it is damaged, too large, or has a member that has no place
    /// in a folder of someone else; an error of `tar` is the source of such an error.
    pub fn unpack(&mut self, tar: &mut dyn Read) -> Result<Unpacked, Error> {
        let mut members = Members::new(tar);
        let mut unpacked = Unpacked::default();
        let mut buffer = vec![0; COPY];
        loop {
            let next = members.next(self.options.bytes_max);
            let Some(member) = next.map_err(|fault| self.fault(fault))? else { break };
            unpacked.members += 1;
            if unpacked.members > self.options.members_max {
                let what = format!("it has more than {} members", self.options.members_max);
                return Err(self.fault(Fault::Archive(what)));
            }
            if let Kind::File { len, .. } = &member.kind {
                unpacked.bytes = unpacked.bytes.saturating_add(*len);
            }
            if unpacked.bytes > self.options.bytes_max {
                let what = format!("its files have more than {} bytes", self.options.bytes_max);
                return Err(self.fault(Fault::Archive(what)));
            }
            self.member(&member, &mut members, &mut buffer)?;
        }
        self.finish()?;
        Ok(unpacked)
    }

    fn member(
        &mut self,
        member: &Member,
        members: &mut Members<'_>,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        match self.make(member, members, buffer) {
            Ok(()) => Ok(()),
            Err(Failed::Refused(why)) => {
                let what = format!("the member `{}` {why}", shown(&member.name));
                Err(self.fault(Fault::Archive(what)))
            }
            Err(Failed::Io(error)) => Err(self.cannot(error, &member.name)),
            Err(Failed::Fault(fault)) => Err(self.fault(fault)),
        }
    }

    fn make(
        &mut self,
        member: &Member,
        members: &mut Members<'_>,
        buffer: &mut [u8],
    ) -> Result<(), Failed> {
        let path = Inside::parse(&member.name).map_err(|why| Failed::Refused(why.to_owned()))?;
        if self.into_existing && path.starts_with(HIDDEN) {
            let why = "has the name of the folder that it is unpacked in";
            return Err(Failed::Refused(why.to_owned()));
        }
        let (mode, mtime) = (self.mode(member.mode), member.mtime);
        match &member.kind {
            Kind::Special(what) => return Err(Failed::Refused(format!("is {what}"))),
            Kind::Directory => {
                self.tree.make_folder(&path)?;
                self.notes.memory += member.name.len() + NOTED_OVERHEAD;
                self.notes.folders.push(Folder { path, mode, mtime });
            }
            Kind::Symlink(target) => {
                if target.is_empty() || path.leads_out(target) {
                    return Err(leads_out(target));
                }
                self.tree.make_symlink(&path, target)?;
                self.tree.touch_link(&path, mtime)?;
                self.notes.memory += member.name.len() + NOTED_OVERHEAD;
                self.notes.links.push(path.join());
            }
            Kind::HardLink(target) => {
                let inside = Inside::parse(target).map_err(|_| leads_out(target))?;
                self.tree.make_hard_link(&path, &inside).map_err(|error| {
                    if !is_of_link(&error) {
                        return Failed::Io(error);
                    }
                    let target = shown(target);
                    Failed::Refused(format!("is a link to `{target}`, no file of the archive"))
                })?;
            }
            Kind::File { len, parts } => {
                let file = self.tree.make_file(&path)?;
                fill(&file, *len, parts, members, buffer)?;
                set(&file, mode, mtime)?;
            }
        }
        if self.notes.memory > NOTED_MAX {
            let what = "it has too many folders and links";
            return Err(Failed::Fault(Fault::Archive(what.to_owned())));
        }
        Ok(())
    }

    /// Looks at what can only be seen in the end, and makes everything durable.
    fn finish(&mut self) -> Result<(), Error> {
        for link in &self.notes.links {
            match self.tree.link_is_bad(link) {
                Ok(false) => {}
                Ok(true) => {
                    let what = format!("the link `{}` leads out of its folder", shown(link));
                    return Err(self.fault(Fault::Archive(what)));
                }
                Err(error) => return Err(self.cannot(error, link)),
            }
        }
        // The innermost first: one without permissions hides those in it.
        let mut folders = std::mem::take(&mut self.notes.folders);
        folders.sort_by_key(|folder| Reverse(folder.path.depth()));
        for folder in folders {
            // What nobody may write to could not be moved.
            if folder.path.depth() <= usize::from(self.into_existing) {
                self.notes.folders.push(folder);
                continue;
            }
            self.tree
                .set_folder(&folder.path, folder.mode, folder.mtime)
                .map_err(|error| self.cannot(error, &folder.path.join()))?;
        }
        syncfs(self.tree.root())
            .map_err(|error| Error::io(error.into(), &self.path, "cannot make it durable"))
    }

    /// Gives the folder its name, or its entries theirs. Answers where it is.
    ///
    /// Where the folder was there before, this is one step for each entry. If it does not come to its
    /// end, the rest stays in the hidden folder.
    pub fn publish(mut self, _verified: &Verified) -> Result<PathBuf, Error> {
        let published = if self.into_existing { self.move_up() } else { self.name() };
        published
            .map_err(|error| Error::io(error, &self.path, "cannot publish what was unpacked"))?;
        Ok(std::mem::take(&mut self.path))
    }

    fn name(&mut self) -> io::Result<()> {
        match self.notes.folders.pop() {
            Some(root) => set(self.tree.root(), root.mode, root.mtime)?,
            None => fchmod(self.tree.root(), FOLDER_MODE)?,
        }
        // Over an empty folder at most.
        fs_err::rename(&self.staging, &self.path)?;
        self.published = true;
        Ok(fsync(open_folder(folder_of(&self.path))?)?)
    }

    fn move_up(&mut self) -> io::Result<()> {
        // From here on nothing is removed that may be the only copy.
        self.published = true;
        for entry in fs_err::read_dir(&self.staging)? {
            let name = entry?.file_name();
            let (from, to) = (self.staging.join(&name), self.path.join(&name));
            match name == LOST_AND_FOUND {
                true => fs_err::rename(from, to)?,
                false => fsops::rename_new(&from, &to)?,
            }
        }
        fs_err::remove_dir(&self.staging)?;
        let folder = open_folder(&self.path)?;
        let mut tree = Tree::new(folder.try_clone()?);
        for Folder { path, mode, mtime } in &self.notes.folders {
            if path.depth() > 0 {
                tree.set_folder(path, *mode, *mtime)?;
            }
        }
        Ok(syncfs(folder)?)
    }

    fn mode(&self, mode: u32) -> u32 {
        if self.options.special_modes { mode } else { mode & PERMISSIONS }
    }

    fn fault(&self, fault: Fault) -> Error {
        match fault {
            Fault::Archive(what) => {
                Error::archive(&self.path, format!("cannot unpack the archive: {what}"))
            }
            Fault::Read(error) => Error::unreadable(error, &self.path),
        }
    }

    /// The failure to make a member: the archive's own if something else of it is in the way.
    fn cannot(&self, error: io::Error, name: &[u8]) -> Error {
        let of_the_archive = [
            Errno::NOTDIR,
            Errno::LOOP,
            Errno::ISDIR,
            Errno::NOTEMPTY,
            Errno::EXIST,
            Errno::NAMETOOLONG,
        ];
        let errno = Errno::from_io_error(&error);
        if errno.is_some_and(|errno| of_the_archive.contains(&errno)) {
            let what =
                format!("the member `{}` has another in its way, or too long a name", shown(name));
            return self.fault(Fault::Archive(what));
        }
        Error::io(error, &self.path, format!("cannot unpack `{}`", shown(name)))
    }
}

impl Drop for Unpack {
    fn drop(&mut self) {
        if !self.published {
            // Nobody can be told, and the next one removes it first.
            let _ = fs_err::remove_dir_all(&self.staging);
        }
    }
}

/// Why a member was not made.
enum Failed {
    Refused(String),
    Io(io::Error),
    Fault(Fault),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn leads_out(target: &[u8]) -> Failed {
    Failed::Refused(format!("is a link out of its folder, to `{}`", shown(target)))
}

/// Fills a file of `len` bytes with its stored parts.
fn fill(
    file: &File,
    len: u64,
    parts: &[(u64, u64)],
    members: &mut Members<'_>,
    buffer: &mut [u8],
) -> Result<(), Failed> {
    for (offset, len) in parts {
        let (mut offset, end) = (*offset, offset + len);
        while offset < end {
            let part = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            members.read(&mut buffer[..part]).map_err(Failed::Fault)?;
            file.write_all_at(&buffer[..part], offset)?;
            offset += part as u64;
        }
    }
    if parts.last().is_none_or(|(offset, stored)| offset + stored < len) {
        file.set_len(len)?;
    }
    Ok(())
}

/// The hidden name beside `path`.
fn sibling(path: &Path) -> Result<PathBuf, Error> {
    let Some(name) = path.file_name() else {
        let what = format!("`{}` is no name for a folder", path.display());
        return Err(Error::new(ErrorKind::NotFound, path, what));
    };
    let folder = folder_of(path);
    if !folder.is_dir() {
        let what = format!("there is no folder `{}`", folder.display());
        let hint = format!("make it first: `mkdir -p {}`", shell_word(folder));
        return Err(Error::new(ErrorKind::NotFound, folder, what).with_hint(hint));
    }
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(HIDDEN);
    Ok(folder.join(hidden))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the hidden folder, which is locked as long as this process works in it. One that a dead
/// process left is removed first.
fn make(staging: &Path) -> Result<OwnedFd, Error> {
    let cannot = |error: io::Error| Error::io(error, staging, "cannot make a folder to unpack in");
    for _ in 0..ATTEMPTS_MAX {
        let made = match mkdirat(CWD, staging, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(cannot(error.into())),
        };
        let folder = match open_folder(staging) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return Err(Error::in_the_way(staging)),
        };
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let what = format!("another process unpacks into `{}`", staging.display());
                return Err(Error::new(ErrorKind::InUse, staging, what));
            }
            locked => locked.map_err(|error| cannot(error.into()))?,
        }
        let same = |a: Stat, b: Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        match (fstat(&folder), lstat(staging)) {
            (Ok(open), Ok(named)) if same(open, named) && made => return Ok(folder),
            (Ok(open), Ok(named)) if same(open, named) => {
                fs_err::remove_dir_all(staging).map_err(cannot)?;
            }
            _ => {}
        }
    }
    Err(cannot(io::ErrorKind::ResourceBusy.into()))
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// True if there is no such file to be linked to.
fn is_of_link(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    error.kind() == io::ErrorKind::InvalidInput
        || matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// A name from an archive, for a message.
fn shown(name: &[u8]) -> String {
    /// Names are cut off behind so many characters.
    const SHOWN_MAX: usize = 200;
    String::from_utf8_lossy(name).chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}
