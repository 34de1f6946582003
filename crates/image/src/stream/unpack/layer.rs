//! Which file of a container image's layer is the disk, and what the layer hides in those below it
//! (OCI image specification, "Image Layer Filesystem Changeset").

use std::io;

use super::member::Choice;
use super::refuse;
use crate::ErrorKind;
use crate::sniff::printable;

/// The folder that holds the disk of a containerDisk.
const FOLDER: &str = "disk";
/// What the name of a file begins with that hides another one.
const WHITEOUT: &str = ".wh.";
/// The file that hides everything in its folder.
const OPAQUE: &str = ".wh..wh..opq";
/// How many hidden paths are kept. They all lie on the way to a disk, or beside it.
const HIDDEN_MAX: usize = 4096;
/// How many names of an image without a disk are kept, for the message.
const NAMED_MAX: usize = 24;

/// Which file of an image is its disk: the one in `/disk`, or the one at a path; and which are hidden
/// by the layers above the one that is looked into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerRules {
    path: Option<String>,
    hidden: Vec<Hidden>,
}

/// What a layer without a disk holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerContents {
    hidden: Vec<Hidden>,
    top: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hidden {
    path: String,
    /// Only what is in the folder, not the folder.
    opaque: bool,
}

impl LayerRules {
    /// Rules for the uppermost layer. `path` is the disk's, from the image's root.
    pub fn new(path: Option<&str>) -> Self {
        let path = path.map(|path| components(path.as_bytes()).join("/"));
        Self { path, hidden: Vec::new() }
    }

    /// What a layer hides is hidden in all layers below it.
    pub fn hide(&mut self, contents: &LayerContents) {
        self.hidden.extend_from_slice(&contents.hidden);
    }

    fn hides(&self, path: &str) -> bool {
        self.hidden.iter().any(|hidden| hidden.covers(path))
    }

    /// The file or the folder at which the disk is.
    fn place(&self) -> &str {
        self.path.as_deref().unwrap_or(FOLDER)
    }

    /// Whether a disk may be at this path.
    fn fits(&self, path: &str) -> bool {
        match &self.path {
            Some(wanted) => path == wanted,
            None => below(path, FOLDER),
        }
    }
}

impl LayerContents {
    /// The names at the root of the layer, not all if there are many.
    pub fn top(&self) -> &[String] {
        &self.top
    }
}

impl Hidden {
    fn covers(&self, path: &str) -> bool {
        below(path, &self.path) || (!self.opaque && path == self.path)
    }
}

/// Whether `path` is in the folder, which may be the root.
fn below(path: &str, folder: &str) -> bool {
    match path.strip_prefix(folder) {
        Some(rest) if folder.is_empty() => !rest.is_empty(),
        Some(rest) => rest.starts_with('/'),
        None => false,
    }
}

/// The parts of a path without those that mean nothing.
fn components(path: &[u8]) -> Vec<String> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// What kind a member of a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        len: u64,
    },
    Folder,
    /// A link, or a device.
    Other,
}

/// Looks at the members of a layer as they pass.
#[derive(Debug)]
pub(super) struct Picker {
    rules: LayerRules,
    contents: LayerContents,
    choice: Choice,
}

impl Picker {
    pub(super) fn new(rules: LayerRules) -> Self {
        Self { rules, contents: LayerContents::default(), choice: Choice::default() }
    }

    /// True if the member is the disk. Fails if there was one already.
    pub(super) fn is_disk(&mut self, name: &[u8], kind: Kind) -> io::Result<bool> {
        let parts = components(name);
        let Some(last) = parts.last() else { return Ok(false) };
        if parts.iter().any(|part| part == "..") {
            let what = format!("the member `{}` leads out of its archive", printable(name));
            return Err(refuse(ErrorKind::Corrupt, what));
        }
        let folder = || parts[..parts.len() - 1].join("/");
        if last == OPAQUE {
            self.hide(folder(), true)?;
            return Ok(false);
        }
        if let Some(hidden) = last.strip_prefix(WHITEOUT) {
            let parent = folder();
            let slash = if parent.is_empty() { "" } else { "/" };
            self.hide(format!("{parent}{slash}{hidden}"), false)?;
            return Ok(false);
        }
        self.note_top(&parts[0]);
        let path = parts.join("/");
        if !self.rules.fits(&path) {
            // A file in the place of a folder hides what was in that.
            let place = self.rules.place();
            if kind != Kind::Folder && (path == place || below(place, &path)) {
                self.hide(path, false)?;
            }
            return Ok(false);
        }
        match kind {
            _ if self.rules.hides(&path) => Ok(false),
            Kind::Folder => Ok(false),
            Kind::Other => {
                let what = format!("`{path}` is no file; expected a disk");
                Err(refuse(ErrorKind::Unsupported, what))
            }
            Kind::File { .. } if self.rules.path.is_some() => self.choice.take(path.as_bytes()),
            Kind::File { len } => self.choice.is_disk(path.as_bytes(), Some(len)),
        }
    }

    /// What a layer without a disk holds.
    pub(super) fn into_contents(self) -> LayerContents {
        self.contents
    }

    fn hide(&mut self, path: String, opaque: bool) -> io::Result<()> {
        let place = self.rules.place();
        if path != place && !below(place, &path) && !below(&path, place) {
            return Ok(());
        }
        if self.contents.hidden.len() == HIDDEN_MAX {
            let what = format!("the layer hides more than {HIDDEN_MAX} files");
            return Err(refuse(ErrorKind::TooLarge, what));
        }
        self.contents.hidden.push(Hidden { path, opaque });
        Ok(())
    }

    fn note_top(&mut self, name: &str) {
        let top = &mut self.contents.top;
        if top.len() < NAMED_MAX && !top.iter().any(|known| known == name) {
            top.push(name.to_owned());
        }
    }
}
