//! The files of an image before they are in one: names, directories, bytes. No format's limits are
//! known here beyond what every file name obeys.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind};

/// Longest file name in bytes, on Linux and in Rock Ridge alike.
const NAME_MAX: usize = 255;

/// Most directories in a path, the root included (ECMA-119 §6.8.2.1), with the file as the last
/// level. FAT has no such limit, but what fits one format should fit the other.
const DEPTH_MAX: usize = 8;

/// A directory with everything below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Node>,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(Vec<u8>),
    Directory(Tree),
}

impl Tree {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file. `path` is relative with `/` between its parts; directories are made as needed.
    /// A path that is there already, or that has a file for a directory, is an error.
    pub fn insert(&mut self, path: &str, content: impl Into<Vec<u8>>) -> Result<(), Error> {
        let bad = |what: &str| Error::new(ErrorKind::FileName, format!("`{path}` {what}"));
        let parts: Vec<&str> = path.split('/').collect();
        if parts.len() > DEPTH_MAX {
            return Err(bad(&format!("nests deeper than {DEPTH_MAX} levels")));
        }
        for part in &parts {
            check_name(part).map_err(bad)?;
        }
        let (name, directories) = parts.split_last().ok_or_else(|| bad("is empty"))?;
        let mut tree = self;
        for directory in directories {
            let node = tree.entries.entry((*directory).to_owned());
            tree = match node.or_insert_with(|| Node::Directory(Self::new())) {
                Node::Directory(tree) => tree,
                Node::File(_) => return Err(bad("has a file for a directory")),
            };
        }
        if tree.entries.contains_key(*name) {
            return Err(bad("is there twice"));
        }
        tree.entries.insert((*name).to_owned(), Node::File(content.into()));
        Ok(())
    }

    /// The content of the file at `path`, which has `/` between its parts.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.file_at(&path.split('/').collect::<Vec<_>>())
    }

    /// Every file with its path, in the order of the names.
    pub fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        let mut files = Vec::new();
        self.collect_files("", &mut files);
        files.into_iter()
    }

    /// Adds a file that was found, in a directory that is there.
    pub(crate) fn put_file(&mut self, path: &[String], content: Vec<u8>) -> Result<(), Error> {
        self.put(path, Node::File(content))
    }

    /// Adds a directory that was found, in one that is there.
    pub(crate) fn put_tree(&mut self, path: &[String], tree: Self) -> Result<(), Error> {
        self.put(path, Node::Directory(tree))
    }

    fn put(&mut self, path: &[String], node: Node) -> Result<(), Error> {
        let bad = |what: &str| {
            let what = format!("damaged image: `{}` {what}", path.join("/"));
            Error::new(ErrorKind::Image, what)
        };
        let Some((name, parents)) = path.split_last() else { return Err(bad("has no name")) };
        let mut tree = self;
        for parent in parents {
            tree = match tree.entries.get_mut(parent) {
                Some(Node::Directory(tree)) => tree,
                _ => return Err(bad("is in no directory")),
            };
        }
        if tree.entries.contains_key(name) {
            return Err(bad("is there twice"));
        }
        tree.entries.insert(name.clone(), node);
        Ok(())
    }

    pub(crate) fn file_at(&self, path: &[impl AsRef<str>]) -> Option<&[u8]> {
        let (name, parents) = path.split_last()?;
        match self.tree_at(parents)?.entries.get(name.as_ref())? {
            Node::File(content) => Some(content),
            Node::Directory(_) => None,
        }
    }

    pub(crate) fn tree_at(&self, path: &[impl AsRef<str>]) -> Option<&Self> {
        path.iter().try_fold(self, |tree, name| match tree.entries.get(name.as_ref())? {
            Node::Directory(below) => Some(below),
            Node::File(_) => None,
        })
    }

    /// How many files and directories are below this one, how deep they nest, and the bytes of the
    /// files.
    pub(crate) fn extent(&self) -> (usize, usize, u64) {
        self.entries.values().fold((0, 0, 0), |(nodes, depth, bytes), node| match node {
            Node::File(content) => (nodes + 1, depth.max(1), bytes + content.len() as u64),
            Node::Directory(tree) => {
                let (more, below, content) = tree.extent();
                (nodes + 1 + more, depth.max(1 + below), bytes + content)
            }
        })
    }

    fn collect_files<'a>(&'a self, parent: &str, files: &mut Vec<(String, &'a [u8])>) {
        for (name, node) in &self.entries {
            let path = format!("{parent}{name}");
            match node {
                Node::File(content) => files.push((path, content)),
                Node::Directory(below) => below.collect_files(&format!("{path}/"), files),
            }
        }
    }
}

/// A tree with numbers for its directories, the root first and parents before children, and for its
/// files.
#[derive(Debug)]
pub(crate) struct Flat<'a> {
    pub(crate) directories: Vec<FlatDirectory<'a>>,
    pub(crate) files: Vec<&'a [u8]>,
}

/// A directory of a [`Flat`].
#[derive(Debug)]
pub(crate) struct FlatDirectory<'a> {
    /// The number of the parent; the root is its own.
    pub(crate) parent: usize,
    /// Sorted by name.
    pub(crate) listing: Vec<(&'a str, Target)>,
}

/// What a name stands for: the number of a file or of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    File(usize),
    Directory(usize),
}

impl<'a> Flat<'a> {
    /// Numbers everything below `tree`.
    pub(crate) fn new(tree: &'a Tree) -> Self {
        let mut flat = Self { directories: Vec::new(), files: Vec::new() };
        let mut trees = vec![(0, tree)];
        while let Some(&(parent, tree)) = trees.get(flat.directories.len()) {
            let mut listing = Vec::with_capacity(tree.entries.len());
            for (name, node) in &tree.entries {
                let target = match node {
                    Node::File(content) => {
                        flat.files.push(content);
                        Target::File(flat.files.len() - 1)
                    }
                    Node::Directory(below) => {
                        trees.push((flat.directories.len(), below));
                        Target::Directory(trees.len() - 1)
                    }
                };
                listing.push((name.as_str(), target));
            }
            flat.directories.push(FlatDirectory { parent, listing });
        }
        flat
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("has an empty part"),
        "." | ".." => Err("has `.` or `..` for a part"),
        _ if name.len() > NAME_MAX => Err("has a part longer than 255 bytes"),
        _ if name.chars().any(char::is_control) => Err("has a control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_paths_that_no_image_holds() {
        let mut tree = Tree::new();
        tree.insert("a/b", "").unwrap();
        for (path, message) in [
            ("", "`` has an empty part"),
            ("/x", "`/x` has an empty part"),
            ("x//y", "`x//y` has an empty part"),
            ("../x", "`../x` has `.` or `..` for a part"),
            ("a/b/c", "`a/b/c` has a file for a directory"),
            ("a/b", "`a/b` is there twice"),
            ("a", "`a` is there twice"),
            ("1/2/3/4/5/6/7/8/9", "`1/2/3/4/5/6/7/8/9` nests deeper than 8 levels"),
            ("x\0", "`x\0` has a control character"),
        ] {
            assert_eq!(tree.insert(path, "").map_err(|e| e.to_string()), Err(message.into()));
        }
        assert!(tree.insert(&"n".repeat(256), "").is_err());
        assert!(tree.insert(&"n".repeat(255), "").is_ok());
        assert!(tree.insert("1/2/3/4/5/6/7/8", "").is_ok());
    }
}
