//! Finds what boots: takes the first menu of a disk that can be used, loads what its entry names.

use std::sync::Arc;

use bootyard_image::Disk;

use crate::error::chain;
use crate::grub::eval::{Boot, Load};
use crate::grub::{Files as _, Place};
use crate::menu::{self, Choice, Menu, Method};
use crate::scan::Scan;
use crate::{Error, ErrorKind};

/// Bytes of a kernel; distributions' are 10 to 100 MiB.
pub(crate) const KERNEL_MAX: u64 = 256 << 20;
/// Bytes of all parts of the initial RAM disk together.
pub(crate) const INITRD_MAX: u64 = 1 << 30;
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
    /// By which kind of menu it boots.
    pub method: Method,
    /// The number of the partition that holds the boot menu; 0 for a disk without a table.
    pub partition: u32,
    /// The path of the boot menu, entry or image on that partition.
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
            .field("method", &self.method)
            .field("partition", &self.partition)
            .field("config", &self.config)
            .field("entry", &self.entry)
            .field("kernel_path", &self.kernel_path)
            .field("initrd_paths", &self.initrd_paths)
            .field("cmdline", &self.cmdline)
            .finish_non_exhaustive()
    }
}

/// What a disk offers to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries of all menus, those of the menu that boots first. At most one is the default.
    pub entries: Vec<Entry>,
    /// What was found besides, and why it does not boot: `partition 2: swap space`.
    pub findings: Vec<String>,
}

/// One entry of a disk's boot menus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// By which kind of menu it boots.
    pub method: Method,
    /// The number of the partition that holds the menu; 0 for a disk without a table.
    pub partition: u32,
    /// The path of the boot menu, entry or image on that partition.
    pub config: String,
    /// The title, after those of its submenus.
    pub title: String,
    /// The entry's id, if it has one.
    pub id: Option<String>,
    /// It boots if nothing else is asked for.
    pub default: bool,
    /// The path of the kernel on its file system.
    pub kernel: Option<String>,
    /// The paths of the parts of the initial RAM disk, in order.
    pub initrds: Vec<String>,
    /// The kernel command line.
    pub cmdline: String,
    /// The command line sends the console to the first serial port.
    pub console_on_serial: bool,
    /// Why it does not boot, with file and line.
    pub problem: Option<String>,
}

/// Finds what `disk` boots. Reads only; see [`ErrorKind`] for the ways to fail.
pub fn find(disk: &Arc<dyn Disk>, options: &Options) -> Result<BootPlan, Error> {
    let mut scan = Scan::of(disk)?;
    let (menus, errors) = menus(&scan);
    let Some(first) = menus.first() else {
        let mut errors = errors.into_iter().map(|(_, error)| error);
        return Err(errors.next().unwrap_or_else(|| nothing(&mut scan)));
    };
    let choice = match &options.entry {
        None => &first.choices[first.default],
        Some(wanted) => menus
            .iter()
            .find_map(|menu| menu.named(wanted))
            .ok_or_else(|| no_such_entry(&menus, wanted))?,
    };
    plan(&scan, choice, options)
}

/// What `disk` offers to boot. Only a disk that cannot be read at all is an error.
pub fn list(disk: &Arc<dyn Disk>) -> Result<Listing, Error> {
    let mut scan = Scan::of(disk)?;
    let (menus, errors) = menus(&scan);
    let mut entries = Vec::new();
    for (number, menu) in menus.iter().enumerate() {
        for (index, choice) in menu.choices.iter().enumerate() {
            entries.push(entry(&scan, choice, number == 0 && index == menu.default));
        }
    }
    let broken: Vec<u32> = errors.iter().map(|(partition, _)| *partition).collect();
    scan.describe(!entries.is_empty(), &broken);
    let findings = errors.iter().map(|(_, error)| chain(error)).chain(scan.findings).collect();
    Ok(Listing { entries, findings })
}

/// The menus that can be used, and the other ones' partitions and errors.
fn menus(scan: &Scan) -> (Vec<Menu>, Vec<(u32, Error)>) {
    let (mut menus, mut errors) = (Vec::new(), Vec::new());
    for (partition, menu) in menu::all(scan) {
        match menu {
            Ok(menu) => menus.push(menu),
            Err(error) => errors.push((partition, error)),
        }
    }
    (menus, errors)
}

fn nothing(scan: &mut Scan) -> Error {
    scan.describe(false, &[]);
    let what = format!("nothing to boot was found ({})", scan.findings.join("; "));
    Error::new(ErrorKind::NotBootable, what)
}

fn no_such_entry(menus: &[Menu], wanted: &str) -> Error {
    let choices = menus.iter().flat_map(|menu| &menu.choices);
    let mut titles: Vec<String> = choices.map(|choice| format!("`{}`", choice.title())).collect();
    titles.sort_unstable();
    titles.dedup();
    let what = format!("no boot entry `{wanted}`; expected {}", titles.join(", "));
    Error::new(ErrorKind::NoSuchEntry, what)
}

fn entry(scan: &Scan, choice: &Choice, default: bool) -> Entry {
    let path = |load: &Load| load.place.path.clone();
    let (boot, problem) = match &choice.boot {
        Ok(boot) => (boot.clone(), missing(scan, boot)),
        Err(error) => (Boot::default(), Some(chain(error))),
    };
    Entry {
        method: choice.method,
        partition: choice.partition,
        config: choice.config.clone(),
        title: choice.title(),
        id: choice.id().map(str::to_owned),
        default,
        kernel: boot.kernel.as_ref().map(path),
        initrds: boot.initrds.iter().map(path).collect(),
        console_on_serial: is_on_serial(&boot.cmdline),
        cmdline: boot.cmdline,
        problem,
    }
}

/// The first of the files that is not there.
fn missing(scan: &Scan, boot: &Boot) -> Option<String> {
    let loads = boot.kernel.iter().chain(&boot.initrds);
    loads.into_iter().find_map(|load| size(scan, load).err().map(|error| chain(&error)))
}

fn plan(scan: &Scan, choice: &Choice, options: &Options) -> Result<BootPlan, Error> {
    let Boot { kernel, cmdline, initrds } = match &choice.boot {
        Ok(boot) => boot.clone(),
        Err(error) => return Err(error.again()),
    };
    let Some(kernel) = kernel else {
        let what = format!("the entry `{}` loads no Linux kernel", choice.title());
        return Err(Error::new(ErrorKind::Config, what));
    };
    let append = options.append.as_deref().unwrap_or_default();
    let cmdline = format!("{cmdline} {append}").trim().to_owned();
    let mut room = options.memory.unwrap_or(u64::MAX);
    let kernel_bytes = load(scan, &kernel, KERNEL_MAX, &mut room)?;
    let (mut initrd, mut initrd_paths) = (Vec::new(), Vec::new());
    for part in initrds {
        let bytes = load(scan, &part, INITRD_MAX - initrd.len() as u64, &mut room)?;
        if initrd.is_empty() {
            // Most have one part, which is then held once.
            initrd = bytes;
        } else {
            initrd.extend(bytes);
        }
        initrd_paths.push(part.place.path);
    }
    Ok(BootPlan {
        method: choice.method,
        partition: choice.partition,
        config: choice.config.clone(),
        entry: choice.title(),
        kernel: kernel_bytes,
        kernel_path: kernel.place.path,
        initrd,
        initrd_paths,
        console_on_serial: is_on_serial(&cmdline),
        cmdline,
    })
}

/// The size of what is loaded.
fn size(scan: &Scan, Load { place, at, part }: &Load) -> Result<u64, Error> {
    let Place { device, path } = place;
    let size = scan.size(device, path)?;
    let size = size.ok_or_else(|| {
        at.error_of(ErrorKind::Missing, format_args!("`{path}` is not on `{device}`"))
    })?;
    match part {
        None => Ok(size),
        Some((begin, len)) if begin.checked_add(*len).is_some_and(|end| end <= size) => Ok(*len),
        Some(_) => Err(at.error("a section reaches beyond the end of the file")),
    }
}

/// Reads a file, or a part of one, of at most `limit` bytes into a machine that has `room` for so
/// many, which it takes off.
fn load(scan: &Scan, load: &Load, limit: u64, room: &mut u64) -> Result<Vec<u8>, Error> {
    let Load { place: Place { device, path }, at, part } = load;
    let size = size(scan, load)?;
    if size > *room {
        let what = format_args!("`{path}` has {size} bytes, the memory has room for {room}");
        return Err(at.error_of(ErrorKind::TooLarge, what));
    }
    if size > limit {
        let what = format!("expected at most {limit} bytes in `{path}`, got {size}");
        return Err(Error::new(ErrorKind::TooLarge, what));
    }
    let end = part.map_or(limit.min(*room), |(begin, len)| begin + len);
    let bytes = match part {
        None => scan.read(device, path, end)?,
        Some(_) => scan.head(device, path, end)?,
    };
    let mut bytes = bytes.unwrap_or_default();
    if let Some((begin, _)) = part {
        bytes.drain(..usize::try_from(*begin).unwrap_or(usize::MAX).min(bytes.len()));
    }
    *room -= bytes.len() as u64;
    Ok(bytes)
}

/// Whether a command line has `console=ttyS0`, with or without a speed.
fn is_on_serial(cmdline: &str) -> bool {
    let mut ports = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("console="));
    ports.any(|port| port == "ttyS0" || port.starts_with("ttyS0,"))
}
