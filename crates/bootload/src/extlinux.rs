//! The menu of extlinux and syslinux (<https://wiki.syslinux.org/wiki/index.php?title=Config>), as
//! Alpine's and U-Boot's images have it.

use std::rc::Rc;

use crate::Error;
use crate::grub::eval::{Boot, CONFIG_MAX, Load};
use crate::grub::{Line, Place};
use crate::menu::{Choice, Menu, Method, Step};
use crate::scan::Volume;

/// Where the configuration stands.
const CONFIGS: [&str; 8] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/EFI/BOOT/syslinux.cfg",
    "/syslinux.cfg",
];
/// Files that one configuration may include, within each other and in all.
const INCLUDES_MAX: usize = 8;
/// Entries of a menu.
const LABELS_MAX: usize = 256;

/// The menu of a file system, if it has one.
pub(crate) fn menu(volume: &Volume) -> Result<Option<Menu>, Error> {
    for path in CONFIGS {
        let Some(text) = volume.fs.read(path, CONFIG_MAX)? else { continue };
        let mut config = Config::new(path);
        config.read(&String::from_utf8_lossy(&text), &Rc::from(path), &|path| {
            volume.fs.read(path, CONFIG_MAX)
        })?;
        if !config.labels.is_empty() {
            return Ok(Some(config.menu(volume)));
        }
    }
    Ok(None)
}

/// What was read so far.
#[derive(Default)]
struct Config {
    path: String,
    /// What `APPEND` says before the first label.
    append: Option<String>,
    default: Option<String>,
    menu_default: Option<usize>,
    labels: Vec<Label>,
    includes: usize,
}

struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<(Line, String)>,
    initrds: Vec<(Line, String)>,
    append: Option<String>,
    at: Line,
}

type Reader<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>, Error> + 'a;

impl Config {
    fn new(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    fn read(&mut self, text: &str, file: &Rc<str>, reader: &Reader<'_>) -> Result<(), Error> {
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let (key, value) = (key.to_ascii_lowercase(), value.trim());
            let at = Line { file: Rc::clone(file), number };
            match key.as_str() {
                "include" => self.include(value, reader)?,
                "menu" => self.menu_line(value, reader)?,
                "default" | "ontimeout" => self.default = Some(value.to_owned()),
                "label" if self.labels.len() < LABELS_MAX => {
                    let name = value.to_owned();
                    let (title, kernel, initrds, append) = (None, None, Vec::new(), None);
                    self.labels.push(Label { name, title, kernel, initrds, append, at });
                }
                _ => self.label_line(&key, value, at),
            }
        }
        Ok(())
    }

    fn include(&mut self, path: &str, reader: &Reader<'_>) -> Result<(), Error> {
        self.includes += 1;
        if self.includes > INCLUDES_MAX {
            return Ok(());
        }
        let path = self.absolute(path);
        match reader(&path)? {
            Some(text) => self.read(&String::from_utf8_lossy(&text), &Rc::from(path), reader),
            None => Ok(()),
        }
    }

    /// `MENU LABEL`, `MENU DEFAULT`, `MENU INCLUDE`; the others are about the screen.
    fn menu_line(&mut self, line: &str, reader: &Reader<'_>) -> Result<(), Error> {
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        match key.to_ascii_lowercase().as_str() {
            "include" => return self.include(value.trim(), reader),
            "default" => self.menu_default = self.labels.len().checked_sub(1),
            "label" => {
                if let Some(label) = self.labels.last_mut() {
                    // A caret marks the key that chooses it.
                    label.title = Some(value.trim().replace('^', ""));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn label_line(&mut self, key: &str, value: &str, at: Line) {
        let value = value.to_owned();
        match (key, self.labels.last_mut()) {
            ("append", None) => self.append = Some(value),
            // `APPEND -` stands for none, not even the one of all.
            ("append", Some(label)) if value == "-" => label.append = Some(String::new()),
            ("append", Some(label)) => label.append = Some(value),
            ("kernel" | "linux" | "com32" | "boot", Some(label)) => {
                label.kernel = Some((at, value));
            }
            ("initrd", Some(label)) => {
                let files = value.split([',', ' ']).filter(|file| !file.is_empty());
                label.initrds = files.map(|file| (at.clone(), file.to_owned())).collect();
            }
            _ => {}
        }
    }

    /// A path as the configuration means it: beside itself, if it does not begin at the top.
    fn absolute(&self, path: &str) -> String {
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") }
    }

    fn menu(self, volume: &Volume) -> Menu {
        let named = |name: &String| self.labels.iter().position(|label| &label.name == name);
        let default = self.default.as_ref().and_then(named).or(self.menu_default).unwrap_or(0);
        let choice = |(index, label): (usize, &Label)| Choice {
            method: Method::Extlinux,
            partition: volume.partition.number,
            config: self.path.clone(),
            steps: vec![Step {
                index,
                title: label.title.clone().unwrap_or_else(|| label.name.clone()),
                id: Some(label.name.clone()),
            }],
            boot: self.boot(label, &volume.partition.device()),
        };
        Menu { choices: self.labels.iter().enumerate().map(choice).collect(), default }
    }

    fn boot(&self, label: &Label, device: &str) -> Result<Boot, Error> {
        let Some((at, kernel)) = &label.kernel else {
            return Err(label.at.error(format_args!("`{}` names no kernel", label.name)));
        };
        if [".c32", ".com", ".bin", ".0"].iter().any(|end| kernel.ends_with(end)) {
            return Err(at.error(format_args!("`{kernel}` is a program of syslinux, no kernel")));
        }
        let load = |(at, path): &(Line, String)| {
            Load::whole(Place { device: device.to_owned(), path: self.absolute(path) }, at.clone())
        };
        let mut initrds: Vec<Load> = label.initrds.iter().map(load).collect();
        let append = label.append.as_ref().or(self.append.as_ref());
        let mut words = Vec::new();
        for word in append.map_or("", String::as_str).split_whitespace() {
            // syslinux takes the initial RAM disk from the command line, too.
            match word.strip_prefix("initrd=").filter(|_| label.initrds.is_empty()) {
                Some(files) => {
                    initrds =
                        files.split(',').map(|file| load(&(at.clone(), file.to_owned()))).collect();
                }
                None => words.push(word),
            }
        }
        let kernel = Some(load(&(at.clone(), kernel.clone())));
        Ok(Boot { kernel, cmdline: words.join(" "), initrds })
    }
}
