//! What a machine's disks and CD-ROM drives are like, as its user asks for them, and the drives of its
//! SCSI bus made of that.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bootyard_image::Disk;

use crate::config::{DiskConfig, MachineConfig};
use crate::control::Control;
use crate::error::Error;
use crate::report::Failures;
use crate::scsi::Drive;

/// What a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskBus {
    /// Its own virtio block device.
    #[default]
    Virtio,
    /// The machine's virtio SCSI host device.
    Scsi,
}

/// When what a guest writes is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// When the guest has flushed the disk's cache.
    #[default]
    WriteBack,
    /// When it is written.
    WriteThrough,
}

/// How a disk shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskOptions {
    /// What it is attached to.
    pub bus: DiskBus,
    /// When what is written is durable.
    pub cache: CacheMode,
    /// The sizes of its sectors.
    pub block_size: BlockSize,
}

/// A CD-ROM drive of the machine, on its SCSI bus behind the disks there.
#[derive(Clone)]
pub struct CdromConfig {
    /// What messages call it, and by which [`Control::drives`] has it.
    pub name: String,
    /// What lies in it when the machine is switched on.
    pub medium: Option<Arc<dyn Disk>>,
    /// The serial number under which the guest sees it, printable ASCII.
    pub serial: String,
}

impl fmt::Debug for CdromConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CdromConfig")
            .field("name", &self.name)
            .field("loaded", &self.medium.is_some())
            .field("serial", &self.serial)
            .finish()
    }
}

/// The drives of a machine's SCSI bus by their names, which outlive a guest's restart as an open tray
/// does.
#[derive(Debug, Default)]
pub(crate) struct Drives(Mutex<Vec<(String, Arc<Drive>)>>);

impl Drives {
    /// All of them in the order of their targets.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Drive>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what `config` has on its SCSI bus, unless an earlier life of the guest had it.
    pub(crate) fn make(
        &self,
        config: &MachineConfig,
        control: &Control,
    ) -> Result<Vec<Arc<Drive>>, Error> {
        let mut drives = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if drives.is_empty() {
            let on_bus = |disk: &&DiskConfig| disk.options.bus == DiskBus::Scsi;
            for disk in config.disks.iter().filter(on_bus) {
                let drive = Drive::disk(Arc::clone(&disk.disk), disk.read_only, &disk.serial);
                let drive = drive.map_err(failed)?;
                let drive = drive
                    .write_through(disk.options.cache == CacheMode::WriteThrough)
                    .block_size(disk.options.block_size);
                drives
                    .push((disk.name.clone(), finish(drive, "disk", &disk.name, config, control)));
            }
            for cdrom in &config.cdroms {
                let drive = Drive::cdrom(cdrom.medium.clone(), &cdrom.serial).map_err(failed)?;
                let drive = finish(drive, "CD-ROM drive", &cdrom.name, config, control);
                drives.push((cdrom.name.clone(), drive));
            }
        }
        Ok(drives.iter().map(|(_, drive)| Arc::clone(drive)).collect())
    }
}

fn finish(
    drive: Drive,
    kind: &str,
    name: &str,
    config: &MachineConfig,
    control: &Control,
) -> Arc<Drive> {
    let failures = Failures::new(&config.report, &format!("{kind} `{name}`"));
    let drive = drive.counters(control.counters().disk(name));
    Arc::new(drive.on_error(move |error| failures.add(error)))
}

fn failed(error: std::io::Error) -> Error {
    Error::Device { device: "SCSI bus", source: error.into() }
}

/// The sizes of a disk's sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize {
    /// The least that is read or written: 512 or 4096 bytes.
    pub logical: u32,
    /// What the storage likes to be written at once: a power of two, not less.
    pub physical: u32,
}

impl Default for BlockSize {
    /// 512 bytes, for which images are partitioned.
    fn default() -> Self {
        Self { logical: 512, physical: 512 }
    }
}
