//! A folder that is filled by someone whom nobody trusts: nothing outside it is ever touched.
//!
//! Each name is opened part by part, from the folder's own descriptor on, and no part may be a link
//! (`O_NOFOLLOW`): there is no moment in which one could be put in the way. Links are made, and never
//! followed; in the end each is resolved by the kernel beneath the folder (`openat2`).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, fchmod,
    futimens, linkat, mkdirat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// How long a path may be (Linux: `PATH_MAX`), and how deep.
const PATH_MAX: usize = 4096;
const DEPTH_MAX: usize = 512;
/// How often the kernel is asked again to resolve a link (openat2(2), `EAGAIN`).
const AGAIN_MAX: u32 = 100;
/// The permissions of folders that no member names.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// A path beneath the folder: its parts, of which none is `..`. Without parts it is the folder itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside(Vec<Vec<u8>>);

impl Inside {
    /// Checks a member's name. Answers why it is refused.
    pub(super) fn parse(name: &[u8]) -> Result<Self, &'static str> {
        match name {
            [b'/', ..] => return Err("has an absolute path"),
            _ if name.len() >= PATH_MAX => return Err("has too long a path"),
            _ if name.contains(&0) => return Err("has a zero in its path"),
            _ => {}
        }
        let parts =
            name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        let parts: Vec<_> = parts.map(<[u8]>::to_vec).collect();
        if parts.iter().any(|part| part == b"..") {
            return Err("leads out of its folder");
        }
        if parts.len() > DEPTH_MAX {
            return Err("is too deep in folders");
        }
        Ok(Self(parts))
    }

    /// The folder that it is in, and its last part. `None` for the folder itself.
    pub(super) fn split(&self) -> Option<(&[Vec<u8>], &OsStr)> {
        let (last, folder) = self.0.split_last()?;
        Some((folder, OsStr::from_bytes(last)))
    }

    pub(super) fn starts_with(&self, name: &str) -> bool {
        self.0.first().is_some_and(|first| first == name.as_bytes())
    }

    pub(super) const fn depth(&self) -> usize {
        self.0.len()
    }

    /// True if a link from here to `target` would lead out, by the words alone.
    pub(super) fn leads_out(&self, target: &[u8]) -> bool {
        let mut depth = self.0.len().saturating_sub(1);
        for part in target.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => match depth.checked_sub(1) {
                    Some(up) => depth = up,
                    None => return true,
                },
                _ => depth += 1,
            }
        }
        target.starts_with(b"/")
    }

    pub(super) fn join(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }
}

/// The folder.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The folder that was used last.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
}

impl Tree {
    pub(super) const fn new(root: OwnedFd) -> Self {
        Self { root, last: None }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The descriptor of a folder, which is made if it is missing.
    fn folder(&mut self, parts: &[Vec<u8>]) -> io::Result<BorrowedFd<'_>> {
        if parts.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != parts) {
            let mut folder = self.root.try_clone()?;
            for part in parts {
                folder = open_folder(folder.as_fd(), OsStr::from_bytes(part))?;
            }
            self.last = Some((parts.to_vec(), folder));
        }
        let (_, folder) = self.last.as_ref().expect("it was just set");
        Ok(folder.as_fd())
    }

    /// Makes a folder, unless it is there.
    pub(super) fn make_folder(&mut self, path: &Inside) -> io::Result<()> {
        self.folder(&path.0).map(drop)
    }

    /// Makes a file in the place of whatever was there, a folder excepted.
    pub(super) fn make_file(&mut self, path: &Inside) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.replace(path, |folder, name| openat(folder, name, flags, Mode::RUSR | Mode::WUSR))
            .map(File::from)
    }

    pub(super) fn make_symlink(&mut self, path: &Inside, target: &[u8]) -> io::Result<()> {
        self.replace(path, |folder, name| symlinkat(OsStr::from_bytes(target), folder, name))
    }

    /// Gives the file `target` another name. Fails with [`io::ErrorKind::InvalidInput`] if it is no
    /// regular file.
    pub(super) fn make_hard_link(&mut self, path: &Inside, target: &Inside) -> io::Result<()> {
        let (from, target_name) = target.split().ok_or(io::ErrorKind::InvalidInput)?;
        let from = self.folder(from)?.try_clone_to_owned()?;
        let found = statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if path == target {
            return Ok(());
        }
        self.replace(path, |folder, name| {
            linkat(&from, target_name, folder, name, AtFlags::empty())
        })
    }

    fn replace<T>(
        &mut self,
        path: &Inside,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let (folder, name) = path.split().ok_or(io::ErrorKind::IsADirectory)?;
        let folder = self.folder(folder)?;
        match make(folder, name) {
            Err(Errno::EXIST) => {
                unlinkat(folder, name, AtFlags::empty())?;
                Ok(make(folder, name)?)
            }
            made => Ok(made?),
        }
    }

    /// Sets the time of a link itself.
    pub(super) fn touch_link(&mut self, path: &Inside, mtime: (i64, u32)) -> io::Result<()> {
        let Some((folder, name)) = path.split() else { return Ok(()) };
        let folder = self.folder(folder)?;
        Ok(utimensat(folder, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets what a folder's member says of it.
    pub(super) fn set_folder(
        &mut self,
        path: &Inside,
        mode: u32,
        mtime: (i64, u32),
    ) -> io::Result<()> {
        let folder = self.folder(&path.0)?;
        set(folder, mode, mtime)
    }

    /// True if a link leads out of the folder, or round in a circle. One that leads to nothing does
    /// not.
    pub(super) fn link_is_bad(&self, path: &[u8]) -> io::Result<bool> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let open = || openat2(&self.root, path, flags, Mode::empty(), resolve);
        let mut opened = open();
        // Something was renamed meanwhile, anywhere.
        for _ in 0..AGAIN_MAX {
            match opened {
                Err(Errno::AGAIN) => opened = open(),
                _ => break,
            }
        }
        match opened {
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(Errno::XDEV | Errno::LOOP) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sets the permissions and the time of what is open.
pub(super) fn set(open: impl AsFd, mode: u32, mtime: (i64, u32)) -> io::Result<()> {
    fchmod(&open, Mode::from_raw_mode(mode))?;
    Ok(futimens(open, &times(mtime))?)
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) },
    }
}

/// Opens a folder, or makes it.
fn open_folder(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            mkdirat(folder, name, FOLDER_MODE)?;
            Ok(openat(folder, name, flags, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (name, expected) in [
            (&b"a/b"[..], Ok("a/b")),
            (b"./a//b/./", Ok("a/b")),
            (b"./", Ok("")),
            (b"a..b/...", Ok("a..b/...")),
            (b"/etc", Err("has an absolute path")),
            (b"a/../b", Err("leads out of its folder")),
            (b"..", Err("leads out of its folder")),
            (b"a\0b", Err("has a zero in its path")),
            (&b"a/".repeat(513), Err("is too deep in folders")),
            (&[b'a'; 4096], Err("has too long a path")),
        ] {
            let inside = Inside::parse(name).map(|inside| inside.join());
            assert_eq!(inside, expected.map(|path| path.as_bytes().to_vec()));
        }
    }

    #[test]
    fn links_lead_out_by_their_words() {
        for (at, target, out) in [
            ("a", "b", false),
            ("a", "..", true),
            ("a", "b/../..", true),
            ("a/b", "..", false),
            ("a/b", "../c/../d", false),
            ("a/b", "../../c", true),
            ("a", "/etc", true),
        ] {
            let path = Inside::parse(at.as_bytes()).unwrap();
            assert_eq!(path.leads_out(target.as_bytes()), out, "{at} to {target}");
        }
    }
}
