//! Unified kernel images: EFI programs (PE32+) with kernel, initial RAM disk and command line as
//! sections (<https://uapi-group.org/specifications/specs/unified_kernel_image/>).

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Error;
use crate::bls::Order;
use crate::grub::eval::{Boot, Load};
use crate::grub::{Line, Place};
use crate::menu::{Choice, Method, Step};
use crate::plan::{INITRD_MAX, KERNEL_MAX};
use crate::scan::Volume;

/// Bytes of the file in which the table of sections is, and those of them that are text.
pub(crate) const HEAD_LEN: u64 = 1 << 20;
/// Where images stand.
const FOLDER: &str = "/EFI/Linux";
const SUFFIX: &str = ".efi";
/// Images of one folder.
const IMAGES_MAX: usize = 64;
/// The most sections; stub and all kinds of the specification have 20.
const SECTIONS_MAX: u16 = 64;
/// Bytes of a section that is text.
const TEXT_MAX: usize = 64 << 10;

/// What an EFI program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Kernel,
    SystemdBoot,
    Other,
}

/// What the program is of which this is the beginning.
pub(crate) fn program(head: &[u8]) -> Program {
    let sections = sections(head).unwrap_or_default();
    if sections.contains_key(".linux") {
        Program::Kernel
    } else if sections.contains_key(".sdmagic") {
        Program::SystemdBoot
    } else {
        Program::Other
    }
}

/// Where the sections are: offset and length in the file. Those of further profiles are left out.
fn sections(head: &[u8]) -> Option<BTreeMap<String, (u64, u64)>> {
    const HEADER: usize = 24;
    const SECTION: usize = 40;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = u32_at(0x3c)? as usize;
    if head.get(pe..)?.first_chunk() != Some(b"PE\0\0") {
        return None;
    }
    let table = pe + HEADER + usize::from(u16_at(pe + 20)?);
    let mut found = BTreeMap::new();
    for number in 0..u16_at(pe + 6)?.min(SECTIONS_MAX) {
        let at = table + usize::from(number) * SECTION;
        let name = head.get(at..at + 8)?;
        let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        if name == ".profile" {
            break;
        }
        // What is in memory may be shorter than what is in the file, which is padded.
        let (len, stored) = (u32_at(at + 8)?, u32_at(at + 16)?);
        found.entry(name).or_insert((u32_at(at + 20)?.into(), len.min(stored).into()));
    }
    Some(found)
}

/// The images of a file system, each with what decides its place.
pub(crate) fn entries(volume: &Volume) -> Result<Vec<(Order, Choice)>, Error> {
    let names = volume.fs.names(FOLDER)?.unwrap_or_default();
    let is_image = |name: &&String| name.to_ascii_lowercase().ends_with(SUFFIX);
    let mut found = Vec::new();
    for name in names.iter().filter(is_image).take(IMAGES_MAX) {
        let image = Image::read(volume, &format!("{FOLDER}/{name}"))?;
        let release = |key: &str| image.release(key);
        let version = ["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"];
        let order = Order {
            sort_key: release("IMAGE_ID").or_else(|| release("ID")),
            version: version.into_iter().find_map(release).unwrap_or_default(),
            ..Order::of(name, SUFFIX)
        };
        found.push((order, image.choice(volume, 0)));
    }
    Ok(found)
}

/// The image at `path` as an entry.
pub(crate) fn choice(volume: &Volume, path: &str, index: usize) -> Result<Choice, Error> {
    Ok(Image::read(volume, path)?.choice(volume, index))
}

/// An image of which the texts were read.
struct Image {
    path: String,
    sections: Option<BTreeMap<String, (u64, u64)>>,
    os_release: String,
    cmdline: String,
}

impl Image {
    fn read(volume: &Volume, path: &str) -> Result<Self, Error> {
        let mut head = volume.fs.head(path, HEAD_LEN)?.unwrap_or_default();
        let sections = sections(&head);
        let end = |name: &str| {
            let section = sections.as_ref().and_then(|sections| sections.get(name));
            section.map_or(0, |(at, len)| at + len.min(&(TEXT_MAX as u64)))
        };
        let end = end(".osrel").max(end(".cmdline"));
        if end > HEAD_LEN && end <= KERNEL_MAX + INITRD_MAX {
            head = volume.fs.head(path, end)?.unwrap_or_default();
        }
        let text = |name: &str| {
            let (at, len) = *sections.as_ref()?.get(name)?;
            let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
            let bytes = head.get(at..at.checked_add(len.min(TEXT_MAX))?)?;
            Some(String::from_utf8_lossy(bytes).trim_matches(['\0', ' ', '\n']).to_owned())
        };
        let (os_release, cmdline) =
            (text(".osrel").unwrap_or_default(), text(".cmdline").unwrap_or_default());
        Ok(Self { path: path.to_owned(), os_release, cmdline, sections })
    }

    /// A value of the image's `os-release`.
    fn release(&self, key: &str) -> Option<String> {
        let mut pairs = self.os_release.lines().filter_map(|line| line.split_once('='));
        let (_, value) = pairs.find(|(name, _)| *name == key)?;
        Some(value.trim_matches(['"', '\'']).to_owned())
    }

    fn choice(&self, volume: &Volume, index: usize) -> Choice {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let id = name.strip_suffix(SUFFIX).unwrap_or(name).to_owned();
        let title = self.release("PRETTY_NAME").unwrap_or_else(|| id.clone());
        Choice {
            method: Method::Uki,
            partition: volume.partition.number,
            config: self.path.clone(),
            steps: vec![Step { index, title, id: Some(id) }],
            boot: self.boot(&volume.partition.device()),
        }
    }

    fn boot(&self, device: &str) -> Result<Boot, Error> {
        let at = Line { file: Rc::from(self.path.as_str()), number: 0 };
        let load = |name: &str| {
            let part = *self.sections.as_ref()?.get(name)?;
            let place = Place { device: device.to_owned(), path: self.path.clone() };
            Some(Load { place, at: at.clone(), part: Some(part) })
        };
        let Some(kernel) = load(".linux") else {
            return Err(at.error("no section `.linux` in it: this is no unified kernel image"));
        };
        let cmdline = self.cmdline.split_whitespace().collect::<Vec<_>>().join(" ");
        let initrds = [load(".ucode"), load(".initrd")].into_iter().flatten().collect();
        Ok(Boot { kernel: Some(kernel), cmdline, initrds })
    }
}
