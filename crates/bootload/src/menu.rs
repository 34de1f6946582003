//! What a disk offers to boot, whichever loader's menu it stands in, and which of it boots by itself.
//!
//! The order is that of a machine's firmware and of the loader that it starts:
//!
//! | | method | where |
//! |---|---|---|
//! | 1 | a UKI as the firmware's own path | `/EFI/BOOT/BOOTX64.EFI` |
//! | 2 | systemd-boot, if it is at that path | `/EFI/Linux/*.efi`, `/loader/entries/*.conf` |
//! | 3 | GRUB | `/EFI/*/grub.cfg`, `/boot/grub/grub.cfg`, `/boot/grub2/grub.cfg`, and without `/boot` |
//! | 4 | extlinux, syslinux | `extlinux.conf`, `syslinux.cfg` |
//! | 5 | 2 without the loader | as 2, and `/boot/loader/entries/*.conf` |

use std::collections::HashSet;
use std::fmt;

use crate::error::Error;
use crate::grub::Place;
use crate::grub::eval::{Boot, CONFIG_MAX, Grub, Item};
use crate::scan::{Scan, Volume};
use crate::{ErrorKind, bls, extlinux, uki};

/// Where GRUB's configuration stands, on a root file system or on one that is mounted at `/boot`.
const GRUB_CONFIGS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// What firmware starts on a disk that it does not know.
const FIRMWARE_PATH: &str = "/EFI/BOOT/BOOTX64.EFI";
/// Submenus within submenus.
const DEPTH_MAX: usize = 4;
/// Entries of a disk.
const CHOICES_MAX: usize = 1024;
/// Separates the titles of submenus and entry, as in GRUB's `default`.
const PATH_SEPARATOR: char = '>';

/// By which kind of menu an entry boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// An entry of GRUB's script.
    Grub,
    /// An entry of the Boot Loader Specification, type 1.
    Bls,
    /// A unified kernel image.
    Uki,
    /// An entry of extlinux or syslinux.
    Extlinux,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grub => "grub",
            Self::Bls => "bls",
            Self::Uki => "uki",
            Self::Extlinux => "extlinux",
        })
    }
}

/// One entry: a menu's line, or one of its submenus'.
pub(crate) struct Choice {
    pub(crate) method: Method,
    /// The number of the partition that holds the menu.
    pub(crate) partition: u32,
    /// The path of the file that names the entry.
    pub(crate) config: String,
    /// The lines of the menu that lead to it: its own is the last one.
    pub(crate) steps: Vec<Step>,
    pub(crate) boot: Result<Boot, Error>,
}

/// A line of a menu.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) index: usize,
    pub(crate) title: String,
    pub(crate) id: Option<String>,
}

impl Choice {
    /// The title, after those of its submenus.
    pub(crate) fn title(&self) -> String {
        let titles: Vec<&str> = self.steps.iter().map(|step| step.title.as_str()).collect();
        titles.join(&PATH_SEPARATOR.to_string())
    }

    pub(crate) fn id(&self) -> Option<&str> {
        self.steps.last()?.id.as_deref()
    }
}

impl Step {
    fn is_named(&self, name: &str) -> bool {
        self.id.as_deref() == Some(name) || self.title == name
    }
}

/// A menu with at least one entry.
pub(crate) struct Menu {
    pub(crate) choices: Vec<Choice>,
    /// The index of the entry that boots by itself.
    pub(crate) default: usize,
}

impl Menu {
    /// The entry of a path of titles, ids or indices. A path that ends at a submenu leads on to its
    /// first entry, as GRUB's own time-out does.
    pub(crate) fn walk(choices: &[Choice], path: &str) -> Option<usize> {
        let wanted: Vec<&str> = path.split(PATH_SEPARATOR).collect();
        choices.iter().position(|Choice { steps, .. }| {
            let is_it = |(step, name): (&Step, &&str)| match name.parse::<usize>() {
                Ok(index) => step.index == index,
                Err(_) => step.is_named(name),
            };
            steps.len() >= wanted.len() && steps.iter().zip(&wanted).all(is_it)
        })
    }

    /// The entry that the user asked for: by its path, or by the title or id of an entry in whichever
    /// submenu.
    pub(crate) fn named(&self, wanted: &str) -> Option<&Choice> {
        let is_named = |choice: &Choice| {
            choice.title() == wanted
                || choice.steps.last().is_some_and(|step| step.is_named(wanted))
        };
        let found = Self::walk(&self.choices, wanted);
        self.choices.get(found.or_else(|| self.choices.iter().position(is_named))?)
    }
}

/// A menu, or why it cannot be used, and the number of the partition on which it begins.
pub(crate) type Found = (u32, Result<Menu, Error>);

/// The menus of a disk in the order in which they count. What stands in several of them is in the
/// first one only.
pub(crate) fn all(scan: &Scan) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut add = |volume: &Volume, menu: Result<Option<Menu>, Error>| {
        found.extend(menu.transpose().map(|menu| (volume.partition.number, menu)));
    };
    let mut systemd = None;
    for volume in &scan.volumes {
        match program(volume) {
            Some(uki::Program::Kernel) => add(volume, firmware_path(volume)),
            Some(uki::Program::SystemdBoot) => systemd = systemd.or(Some(volume)),
            _ => {}
        }
    }
    if let Some(volume) = systemd {
        add(volume, specified(scan));
    }
    for volume in &scan.volumes {
        add(volume, Ok(stub(scan, volume)));
    }
    for volume in &scan.volumes {
        let menus = GRUB_CONFIGS.iter().map(|path| grub(scan, volume, path));
        add(volume, menus.map(Result::transpose).find_map(|menu| menu).transpose());
    }
    for volume in &scan.volumes {
        add(volume, extlinux::menu(volume));
    }
    if let (None, Some(volume)) = (systemd, scan.volumes.first()) {
        add(volume, specified(scan));
    }
    without_repetitions(found)
}

fn without_repetitions(found: Vec<Found>) -> Vec<Found> {
    let mut seen: HashSet<(u32, String)> = HashSet::new();
    let mut kept = Vec::new();
    for (partition, menu) in found {
        let Ok(Menu { choices, default }) = menu else {
            kept.push((partition, menu));
            continue;
        };
        let place = |choice: &Choice| (choice.partition, choice.config.clone());
        let is_new: Vec<bool> =
            choices.iter().map(|choice| !seen.contains(&place(choice))).collect();
        seen.extend(choices.iter().map(place));
        let default = is_new[..default].iter().filter(|is_new| **is_new).count();
        let new = choices.into_iter().zip(is_new).filter(|(_, is_new)| *is_new);
        let choices: Vec<Choice> = new.map(|(choice, _)| choice).collect();
        if !choices.is_empty() {
            let default = default.min(choices.len() - 1);
            kept.push((partition, Ok(Menu { choices, default })));
        }
    }
    kept
}

fn program(volume: &Volume) -> Option<uki::Program> {
    let head = volume.fs.head(FIRMWARE_PATH, uki::HEAD_LEN).ok()??;
    Some(uki::program(&head))
}

/// The kernel that firmware would start.
fn firmware_path(volume: &Volume) -> Result<Option<Menu>, Error> {
    let choice = uki::choice(volume, FIRMWARE_PATH, 0)?;
    Ok(Some(Menu { choices: vec![choice], default: 0 }))
}

/// The entries of the Boot Loader Specification, of both types, as systemd-boot sorts them.
fn specified(scan: &Scan) -> Result<Option<Menu>, Error> {
    let mut found = Vec::new();
    let mut patterns = Vec::new();
    for volume in &scan.volumes {
        found.extend(uki::entries(volume)?);
        found.extend(bls::entries(volume)?);
        patterns.extend(bls::default_pattern(volume)?);
    }
    found.truncate(CHOICES_MAX);
    found.sort_by(|(a, _), (b, _)| a.compare(b));
    let default = patterns
        .iter()
        .find_map(|pattern| found.iter().position(|(order, _)| bls::matches(pattern, &order.file)));
    let numbered = found.into_iter().enumerate().map(|(index, (_, mut choice))| {
        choice.steps.iter_mut().for_each(|step| step.index = index);
        choice
    });
    let choices: Vec<Choice> = numbered.collect();
    Ok((!choices.is_empty()).then_some(Menu { choices, default: default.unwrap_or(0) }))
}

/// The menu to which a configuration in an EFI system partition leads. It is made for one machine's
/// disk, so that one that leads nowhere is no error.
fn stub(scan: &Scan, volume: &Volume) -> Option<Menu> {
    let folders = volume.fs.names("/EFI").ok()??;
    let (first, rest): (Vec<_>, Vec<_>) =
        folders.into_iter().partition(|name| name.eq_ignore_ascii_case("BOOT"));
    first.into_iter().chain(rest).find_map(|folder| {
        let path = format!("/EFI/{folder}/grub.cfg");
        grub(scan, volume, &path).ok().flatten()
    })
}

/// The menu of a GRUB configuration, if there is that file.
fn grub(scan: &Scan, volume: &Volume, config: &str) -> Result<Option<Menu>, Error> {
    let Some(text) = volume.fs.read(config, CONFIG_MAX)? else { return Ok(None) };
    let place = Place { device: volume.partition.device(), path: config.to_owned() };
    let mut grub = Grub::new(scan, &place);
    let items = grub.menu(&String::from_utf8_lossy(&text))?;
    let mut choices = Vec::new();
    collect(scan, &grub, items, &[], &mut choices)?;
    if choices.is_empty() {
        let what = format!("`{config}` on {} has no menu entries", volume.partition);
        return Err(Error::new(ErrorKind::Config, what));
    }
    let default = Menu::walk(&choices, grub.variable("default")).unwrap_or(0);
    Ok(Some(Menu { choices, default }))
}

/// Collects the entries of a menu and its submenus.
fn collect(
    scan: &Scan,
    grub: &Grub<'_>,
    items: Vec<Item>,
    above: &[Step],
    choices: &mut Vec<Choice>,
) -> Result<(), Error> {
    for (index, item) in items.into_iter().enumerate() {
        let step = Step { index, title: item.title.clone(), id: item.id.clone() };
        let steps: Vec<Step> = above.iter().cloned().chain([step]).collect();
        // Each entry begins where the script ended, whatever the ones before it set.
        let mut grub = grub.clone();
        if !item.submenu {
            if choices.len() == CHOICES_MAX {
                let what = format!("expected at most {CHOICES_MAX} boot entries");
                return Err(item.at.error_of(ErrorKind::TooLarge, what));
            }
            choices.push(Choice {
                method: item.method,
                partition: scan.number(&item.device),
                config: item.at.file.to_string(),
                boot: grub.boot(&item),
                steps,
            });
        } else if steps.len() < DEPTH_MAX {
            let inner = grub.open(&item)?;
            collect(scan, &grub, inner, &steps, choices)?;
        }
    }
    Ok(())
}
