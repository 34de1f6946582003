//! Finds what boots: looks at the file systems of a disk in order, runs the first boot menu, loads
//! what its entry names.

use std::collections::HashSet;
use std::sync::Arc;

use bootyard_image::Disk;

use crate::fs::{self, FileSystem};
use crate::grub::eval::{Boot, CONFIG_MAX, Grub, Item, Load};
use crate::grub::{Files, Place, SearchBy};
use crate::partition::{self, Partition, Region};
use crate::{Error, ErrorKind};

/// Where GRUB's configuration stands, on a root file system or on one that is mounted at `/boot`.
const GRUB_CONFIGS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// Bytes of a kernel; distributions' are 10 to 100 MiB.
const KERNEL_MAX: u64 = 256 << 20;
/// Bytes of all parts of the initial RAM disk together.
const INITRD_MAX: u64 = 1 << 30;
/// Submenus within submenus.
const MENU_DEPTH_MAX: usize = 4;
/// Separates the titles of submenus and entry, as in GRUB's `default`.
const PATH_SEPARATOR: char = '>';

/// What the user may say about booting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The entry to boot instead of the menu's default: its title, id or index; those of submenus
    /// before it, joined by `>`.
    pub entry: Option<String>,
    /// Text that is appended to the kernel command line.
    pub append: Option<String>,
    /// Bytes of the machine's memory, which kernel and initial RAM disk must fit together, as they
    /// are on the disk. A file that cannot fit is refused unread. Without it, only this crate's own
    /// limits hold.
    pub memory: Option<u64>,
}

/// All that a machine needs to start a guest's kernel.
#[derive(Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// The number of the partition that holds the boot menu; 0 for a disk without a table.
    pub partition: u32,
    /// The path of the boot menu on that partition.
    pub config: String,
    /// The title of the entry, after those of its submenus: `Advanced options>Linux 6.1`.
    pub entry: String,
    /// The path of the kernel on its file system.
    pub kernel_path: String,
    /// The paths of the parts of the initial RAM disk, in order.
    pub initrd_paths: Vec<String>,
    /// The kernel file as it is.
    pub kernel: Vec<u8>,
    /// The initial RAM disk, its parts one after the other; empty if the entry has none.
    pub initrd: Vec<u8>,
    /// The kernel command line.
    pub cmdline: String,
    /// The command line sends the console to the first serial port.
    pub console_on_serial: bool,
}

/// Without the megabytes of kernel and initial RAM disk.
impl std::fmt::Debug for BootPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootPlan")
            .field("partition", &self.partition)
            .field("config", &self.config)
            .field("entry", &self.entry)
            .field("kernel_path", &self.kernel_path)
            .field("initrd_paths", &self.initrd_paths)
            .field("cmdline", &self.cmdline)
            .finish_non_exhaustive()
    }
}

/// One entry of a disk's boot menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of the partition that holds the menu.
    pub partition: u32,
    /// The title, after those of its submenus.
    pub title: String,
    /// The entry's id, if it has one.
    pub id: Option<String>,
    /// It boots if nothing else is asked for.
    pub default: bool,
}

/// Finds what `disk` boots. Reads only; see [`ErrorKind`] for the ways to fail.
pub fn find(disk: &Arc<dyn Disk>, options: &Options) -> Result<BootPlan, Error> {
    let scan = Scan::of(disk)?;
    scan.first_menu(|menu| menu.plan(options))
}

/// The boot entries of `disk`, in the order of its menu.
pub fn list(disk: &Arc<dyn Disk>) -> Result<Vec<Entry>, Error> {
    let scan = Scan::of(disk)?;
    scan.first_menu(|mut menu| menu.list())
}

/// The file systems of a disk, and what is to be said of the partitions that have none.
struct Scan {
    volumes: Vec<Volume>,
    findings: Vec<String>,
}

struct Volume {
    partition: Partition,
    fs: Box<dyn FileSystem>,
}

impl Scan {
    fn of(disk: &Arc<dyn Disk>) -> Result<Self, Error> {
        let mut scan = Self { volumes: Vec::new(), findings: Vec::new() };
        for partition in partition::partitions(disk.as_ref())? {
            let Some(region) = Region::of(disk, &partition) else {
                scan.findings.push(format!("{partition}: reaches beyond the end of the disk"));
                continue;
            };
            match fs::open(&region) {
                Ok(Some(fs)) => scan.volumes.push(Volume { partition, fs }),
                Ok(None) => scan.findings.push(format!("{partition}: no ext4 file system")),
                Err(error) => scan.findings.push(format!("{partition}: {}", chain(&error))),
            }
        }
        Ok(scan)
    }

    /// Uses the first boot menu that can be used. If none can, the first one's error stands, or
    /// else the list of what was looked at.
    fn first_menu<T>(
        mut self,
        use_menu: impl Fn(Menu<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut first = None;
        for volume in &self.volumes {
            let used = Menu::of(&self, volume).and_then(|menu| menu.map(&use_menu).transpose());
            match used {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        if let Some(error) = first {
            return Err(error);
        }
        for Volume { partition, fs } in &self.volumes {
            self.findings.push(format!("{partition}: {} without grub.cfg", fs.kind()));
        }
        if self.findings.is_empty() {
            self.findings.push("a partition table without partitions".to_owned());
        }
        let what = format!("nothing to boot was found ({})", self.findings.join("; "));
        Err(Error::new(ErrorKind::NotBootable, what))
    }

    fn volume(&self, device: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.partition.device() == device)
    }
}

impl Files for Scan {
    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, Error> {
        for volume in &self.volumes {
            let matches = match by {
                SearchBy::Uuid => volume.fs.uuid().eq_ignore_ascii_case(value),
                SearchBy::Label => volume.fs.label() == value,
                SearchBy::File => volume.fs.size(value)?.is_some(),
            };
            if matches {
                return Ok(Some(volume.partition.device()));
            }
        }
        Ok(None)
    }

    fn size(&self, device: &str, path: &str) -> Result<Option<u64>, Error> {
        self.volume(device).map_or(Ok(None), |volume| volume.fs.size(path))
    }

    fn read(&self, device: &str, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        self.volume(device).map_or(Ok(None), |volume| volume.fs.read(path, limit))
    }
}

/// A boot menu, and the GRUB that made it.
struct Menu<'a> {
    scan: &'a Scan,
    grub: Grub<'a>,
    partition: u32,
    config: &'static str,
    items: Vec<Item>,
}

impl<'a> Menu<'a> {
    /// The menu of a file system, if it has one.
    fn of(scan: &'a Scan, volume: &Volume) -> Result<Option<Self>, Error> {
        for config in GRUB_CONFIGS {
            let Some(text) = volume.fs.read(config, CONFIG_MAX)? else { continue };
            let place = Place { device: volume.partition.device(), path: config.to_owned() };
            let mut grub = Grub::new(scan, &place);
            let items = grub.menu(&String::from_utf8_lossy(&text))?;
            if items.is_empty() {
                let what = format!("`{config}` on {} has no menu entries", volume.partition);
                return Err(Error::new(ErrorKind::Config, what));
            }
            let partition = volume.partition.number;
            return Ok(Some(Self { scan, grub, partition, config, items }));
        }
        Ok(None)
    }

    fn plan(mut self, options: &Options) -> Result<BootPlan, Error> {
        let (entry, item) = match &options.entry {
            Some(wanted) => self.named(wanted)?,
            None => self.default()?,
        };
        let Boot { kernel, mut cmdline, initrds } = self.grub.boot(&item)?;
        let Some(kernel) = kernel else {
            return Err(item.at.error(format_args!("the entry `{entry}` loads no Linux kernel")));
        };
        if let Some(append) = &options.append {
            cmdline = format!("{cmdline} {append}").trim().to_owned();
        }
        let mut room = options.memory.unwrap_or(u64::MAX);
        let kernel_bytes = self.load(&kernel, KERNEL_MAX, &mut room)?;
        let (mut initrd, mut initrd_paths) = (Vec::new(), Vec::new());
        for part in initrds {
            let bytes = self.load(&part, INITRD_MAX - initrd.len() as u64, &mut room)?;
            if initrd.is_empty() {
                // Most have one part, which is then held once.
                initrd = bytes;
            } else {
                initrd.extend(bytes);
            }
            initrd_paths.push(part.place.path);
        }
        Ok(BootPlan {
            partition: self.partition,
            config: self.config.to_owned(),
            entry,
            kernel: kernel_bytes,
            kernel_path: kernel.place.path,
            initrd,
            initrd_paths,
            console_on_serial: cmdline.split_whitespace().any(is_serial_console),
            cmdline,
        })
    }

    /// Reads a file of at most `limit` bytes into a machine that has `room` for so many, which it
    /// takes off.
    fn load(
        &self,
        Load { place, at }: &Load,
        limit: u64,
        room: &mut u64,
    ) -> Result<Vec<u8>, Error> {
        let Place { device, path } = place;
        let missing =
            || at.error_of(ErrorKind::Missing, format_args!("`{path}` is not on `{device}`"));
        let size = self.scan.size(device, path)?.ok_or_else(missing)?;
        if size > *room {
            let what = format_args!("`{path}` has {size} bytes, the memory has room for {room}");
            return Err(at.error_of(ErrorKind::TooLarge, what));
        }
        let bytes = self.scan.read(device, path, limit.min(*room))?.ok_or_else(missing)?;
        *room -= bytes.len() as u64;
        Ok(bytes)
    }

    fn list(&mut self) -> Result<Vec<Entry>, Error> {
        let default = self.default()?.0;
        let mut entries = Vec::new();
        for (title, item) in self.all()? {
            let default = title == default;
            entries.push(Entry { partition: self.partition, title, id: item.id, default });
        }
        Ok(entries)
    }

    /// Every entry with its path, in order; submenus are opened.
    fn all(&mut self) -> Result<Vec<(String, Item)>, Error> {
        let mut found = Vec::new();
        let mut waiting: Vec<(String, usize, Item)> =
            self.items.iter().rev().map(|item| (item.title.clone(), 1, item.clone())).collect();
        while let Some((path, depth, item)) = waiting.pop() {
            if !item.submenu {
                found.push((path, item));
            } else if depth < MENU_DEPTH_MAX {
                for inner in self.grub.open(&item)?.into_iter().rev() {
                    let path = format!("{path}{PATH_SEPARATOR}{}", inner.title);
                    waiting.push((path, depth + 1, inner));
                }
            }
        }
        Ok(found)
    }

    /// The entry that the user asked for: by its path of titles, ids or indices, or by the title
    /// or id of an entry in whichever submenu.
    fn named(&mut self, wanted: &str) -> Result<(String, Item), Error> {
        if let Some(found) = self.walk(wanted)? {
            return Ok(found);
        }
        let all = self.all()?;
        let named = |(_, item): &&(String, Item)| is_named(item, wanted);
        all.iter().find(named).cloned().ok_or_else(|| {
            let titles: HashSet<&str> = all.iter().map(|(path, _)| path.as_str()).collect();
            let mut titles: Vec<String> = titles.iter().map(|path| format!("`{path}`")).collect();
            titles.sort_unstable();
            let what = format!("no boot entry `{wanted}`; expected {}", titles.join(", "));
            Error::new(ErrorKind::NoSuchEntry, what)
        })
    }

    /// The entry that the menu itself boots: what `default` names, else the first one.
    fn default(&mut self) -> Result<(String, Item), Error> {
        let default = self.grub.variable("default").to_owned();
        let found = match self.walk(&default)? {
            Some(found) => Some(found),
            None => self.walk("0")?,
        };
        found.ok_or_else(|| {
            let what = format!("`{}` has submenus without entries only", self.config);
            Error::new(ErrorKind::Config, what)
        })
    }

    /// Follows a path of titles, ids or indices. A path that ends at a submenu leads on to its
    /// first entry, as GRUB's own time-out does.
    fn walk(&mut self, path: &str) -> Result<Option<(String, Item)>, Error> {
        let mut steps = path.split(PATH_SEPARATOR);
        let (mut items, mut titles) = (self.items.clone(), Vec::new());
        for _ in 0..MENU_DEPTH_MAX {
            let step = steps.next().unwrap_or("0");
            let Some(item) = pick(&items, step).cloned() else { return Ok(None) };
            titles.push(item.title.clone());
            if !item.submenu {
                let whole = steps.next().is_none();
                let path = titles.join(&PATH_SEPARATOR.to_string());
                return Ok(whole.then_some((path, item)));
            }
            items = self.grub.open(&item)?;
        }
        Ok(None)
    }
}

fn pick<'a>(items: &'a [Item], step: &str) -> Option<&'a Item> {
    match step.parse::<usize>() {
        Ok(index) => items.get(index),
        Err(_) => items.iter().find(|item| is_named(item, step)),
    }
}

fn is_named(item: &Item, name: &str) -> bool {
    item.id.as_deref() == Some(name) || item.title == name
}

/// `console=ttyS0`, with or without a speed.
fn is_serial_console(word: &str) -> bool {
    let port = word.strip_prefix("console=");
    port.is_some_and(|port| port == "ttyS0" || port.starts_with("ttyS0,"))
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
