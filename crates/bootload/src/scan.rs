//! The file systems of a disk, and what is to be said of its partitions.

use std::sync::Arc;

use bootyard_image::Disk;

use crate::Error;
use crate::error::chain;
use crate::fs::{self, FileSystem};
use crate::grub::{Files, SearchBy};
use crate::partition::{self, Budget, Partition, Region};

/// The file systems of a disk, and what is to be said of the partitions that have none.
pub(crate) struct Scan {
    pub(crate) volumes: Vec<Volume>,
    /// In whole sentences but for the full stop: `partition 2: swap space`.
    pub(crate) findings: Vec<String>,
}

/// A file system and where it is.
pub(crate) struct Volume {
    pub(crate) partition: Partition,
    pub(crate) fs: Box<dyn FileSystem>,
}

/// Loaders: first those of other systems, then what may be anything.
const LOADERS: [(&str, &str); 3] = [
    ("/EFI/Microsoft/Boot/bootmgfw.efi", "the boot manager of Windows, which is not booted"),
    ("/EFI/freebsd/loader.efi", "the loader of FreeBSD, which is not booted"),
    (
        "/EFI/BOOT/BOOTX64.EFI",
        "an EFI program, `/EFI/BOOT/BOOTX64.EFI`, which only firmware can run",
    ),
];

/// So many of [`LOADERS`] are other systems'.
const OTHER_SYSTEMS: usize = 2;

impl Scan {
    pub(crate) fn of(disk: &Arc<dyn Disk>) -> Result<Self, Error> {
        let mut scan = Self { volumes: Vec::new(), findings: Vec::new() };
        let budget = Budget::new();
        for partition in partition::partitions(disk.as_ref())? {
            let Some(region) = Region::of(disk, &partition, &budget) else {
                scan.findings.push(format!("{partition}: reaches beyond the end of the disk"));
                continue;
            };
            match fs::open(&region) {
                Ok(Some(fs)) => scan.volumes.push(Volume { partition, fs }),
                Ok(None) => {
                    let what = fs::known(&region)?.unwrap_or("no file system that is known");
                    scan.findings.push(format!("{partition}: {what}"));
                }
                Err(error) => scan.findings.push(format!("{partition}: {}", chain(&error))),
            }
        }
        Ok(scan)
    }

    /// Adds what is to be said of file systems: their state, and other systems' loaders. Where nothing
    /// boots, also that they have no menu, but for those whose menu is `broken`.
    pub(crate) fn describe(&mut self, boots: bool, broken: &[u32]) {
        for Volume { partition, fs } in &self.volumes {
            let kind = fs.kind();
            if let Some(note) = fs.note() {
                self.findings.push(format!("{partition}: {kind}; {note}"));
            }
            let is_there = |path: &str| fs.size(path).is_ok_and(|size| size.is_some());
            let loaders = if boots { &LOADERS[..OTHER_SYSTEMS] } else { &LOADERS };
            match loaders.iter().find(|(path, _)| is_there(path)) {
                Some((_, loader)) => {
                    self.findings.push(format!("{partition}: {kind} with {loader}"));
                }
                None if boots || broken.contains(&partition.number) => {}
                None => self.findings.push(format!("{partition}: {kind} without a boot menu")),
            }
        }
        if self.findings.is_empty() && self.volumes.is_empty() {
            self.findings.push("a partition table without partitions".to_owned());
        }
    }

    /// The first `len` bytes of a file of a device.
    pub(crate) fn head(
        &self,
        device: &str,
        path: &str,
        len: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        self.volume(device).map_or(Ok(None), |volume| volume.fs.head(path, len))
    }

    /// The number of the partition that GRUB calls `device`.
    pub(crate) fn number(&self, device: &str) -> u32 {
        self.volume(device).map_or(0, |volume| volume.partition.number)
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

    fn names(&self, device: &str, path: &str) -> Result<Vec<String>, Error> {
        let names = self.volume(device).map_or(Ok(None), |volume| volume.fs.names(path))?;
        Ok(names.unwrap_or_default())
    }
}
