//! What has been found on an image so far, within limits.

use crate::{Error, ErrorKind, Tree};

/// Most bytes of all files together: a thousand times what people put on a seed.
pub(super) const CONTENT_MAX: u64 = 64 << 20;

/// Most files, directories and links.
const ENTRIES_MAX: usize = 1 << 16;

/// Most names in a path. ISO 9660 has eight levels, Rock Ridge can move deeper ones elsewhere, and
/// FAT has no limit.
const DEPTH_MAX: usize = 32;

/// How often links that lead to links are followed, as in Linux (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// A symbolic link: where it is, and what it says.
type Link = (Vec<String>, String);

/// Files, directories and links, and how many there are.
#[derive(Default)]
pub(super) struct Finds {
    tree: Tree,
    links: Vec<Link>,
    entries: usize,
    content: u64,
}

impl Finds {
    /// The path of `name` in the directory `parent`; a name that leads elsewhere is an error, and what
    /// acts on terminals or parts paths is replaced.
    pub(super) fn path(parent: &[String], name: &str) -> Result<Vec<String>, Error> {
        if matches!(name, "" | "." | "..") {
            let what =
                format!("damaged image: an entry of `/{}` is named `{name}`", parent.join("/"));
            return Err(Error::new(ErrorKind::Image, what));
        }
        let plain =
            |c: char| if c.is_control() || c == '/' { char::REPLACEMENT_CHARACTER } else { c };
        let name: String = name.chars().map(plain).collect();
        if parent.len() == DEPTH_MAX {
            let what = format!("damaged image: `/{}` nests too deep", parent.join("/"));
            return Err(Error::new(ErrorKind::Image, what));
        }
        Ok([parent, &[name]].concat())
    }

    /// Counts a file of `len` bytes before they are read.
    pub(super) fn reserve(&mut self, path: &[String], len: u64) -> Result<(), Error> {
        self.content = self.content.saturating_add(len);
        if self.content > CONTENT_MAX {
            let what = format!(
                "`{}` has {len} bytes: expected at most {} MiB in all files together",
                path.join("/"),
                CONTENT_MAX >> 20
            );
            return Err(Error::new(ErrorKind::Image, what)
                .with_hint("a seed is small; look at other disks with `bootyard inspect`"));
        }
        Ok(())
    }

    pub(super) fn file(&mut self, path: &[String], content: Vec<u8>) -> Result<(), Error> {
        self.count(path, 1)?;
        self.tree.put_file(path, content)
    }

    pub(super) fn directory(&mut self, path: &[String]) -> Result<(), Error> {
        self.count(path, 1)?;
        self.tree.put_tree(path, Tree::new())
    }

    pub(super) fn link(&mut self, path: Vec<String>, target: String) -> Result<(), Error> {
        self.count(&path, 1)?;
        self.links.push((path, target));
        Ok(())
    }

    fn count(&mut self, path: &[String], more: usize) -> Result<(), Error> {
        self.entries += more;
        if self.entries > ENTRIES_MAX {
            let what =
                format!("`{}`: more than {ENTRIES_MAX} files and directories", path.join("/"));
            return Err(Error::new(ErrorKind::Image, what));
        }
        Ok(())
    }

    /// The tree as a reader of the mounted image meets it: links stand for what they lead to. Those
    /// that lead nowhere are returned besides, as path and target.
    pub(super) fn finish(mut self) -> Result<(Tree, Vec<(String, String)>), Error> {
        let mut links = std::mem::take(&mut self.links);
        for _ in 0..LINKS_MAX {
            let before = links.len();
            let mut left = Vec::new();
            for (path, target) in links {
                if !self.follow(&path, &target)? {
                    left.push((path, target));
                }
            }
            links = left;
            if links.len() == before {
                break;
            }
        }
        Ok((self.tree, links.into_iter().map(|(path, to)| (path.join("/"), to)).collect()))
    }

    /// Puts what the link leads to in its place; false if that is not there (yet).
    fn follow(&mut self, path: &[String], target: &str) -> Result<bool, Error> {
        let Some(found) = leads_to(path, target) else { return Ok(false) };
        if let Some(content) = self.tree.file_at(&found).map(<[u8]>::to_vec) {
            self.reserve(path, content.len() as u64)?;
            self.tree.put_file(path, content)?;
            return Ok(true);
        }
        let Some(below) = self.tree.tree_at(&found).cloned() else { return Ok(false) };
        let (nodes, depth, bytes) = below.extent();
        if path.len() + depth > DEPTH_MAX {
            return Ok(false);
        }
        self.count(path, nodes)?;
        self.reserve(path, bytes)?;
        self.tree.put_tree(path, below)?;
        Ok(true)
    }
}

/// The path in the image to which a link at `path` leads; `None` if that is outside.
fn leads_to(path: &[String], target: &str) -> Option<Vec<String>> {
    let mut found = match target.starts_with('/') {
        true => Vec::new(),
        false => path[..path.len() - 1].to_vec(),
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                found.pop()?;
            }
            _ => found.push(part.to_owned()),
        }
    }
    Some(found)
}
