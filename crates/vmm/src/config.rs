//! What a machine is made of, as its user asks for it.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use bootyard_image::{Disk, ReadAt};

use crate::cpu::{CpuModel, CpuTopology};
use crate::disks::{CdromConfig, DiskOptions};
use crate::error::Error;
use crate::identity::Identity;
use crate::memory::HugePages;
use crate::net::{Capture, MacAddress, SharedBackend};
use crate::services::Services;

/// The most processors: what a local APIC identifier of 8 bits and one package allow with room.
pub const CPUS_MAX: u32 = 64;
/// The least memory: below this no distribution's kernel gets to its initrd.
pub const MEMORY_MIN: u64 = 64 << 20;
/// The most memory: 512 GiB, well within the 40 bits of physical address that a server's processor
/// has at least.
pub const MEMORY_MAX: u64 = 1 << 39;
/// Memory comes in multiples of the processor's large pages.
const MEMORY_STEP: u64 = 2 << 20;
/// The most network interfaces.
pub const NETWORKS_MAX: usize = 4;
/// The most disks: slots of the PCI bus that other devices leave.
pub const DISKS_MAX: usize = 24;

/// A machine, as its user asks for it.
pub struct MachineConfig {
    /// What the machine is called: in the names of its threads, without zero bytes.
    pub name: String,
    /// The processors, at most [`CPUS_MAX`].
    pub topology: CpuTopology,
    /// What they can do.
    pub cpu_model: CpuModel,
    /// Bytes of memory, from [`MEMORY_MIN`] to [`MEMORY_MAX`]. Rounded up to whole 2 MiB.
    pub memory: u64,
    /// Takes the memory from the host's pool of huge pages of this size.
    pub huge_pages: Option<HugePages>,
    /// Who the machine says it is.
    pub identity: Identity,
    /// What the machine starts.
    pub boot: Boot,
    /// The disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// The CD-ROM drives.
    pub cdroms: Vec<CdromConfig>,
    /// The network interfaces, in the order in which the guest finds them, at most [`NETWORKS_MAX`].
    pub networks: Vec<NetworkConfig>,
    /// What else there is between guest and host.
    pub services: Services,
    /// Where the guest's serial console writes, byte by byte. While it blocks, the guest waits. It
    /// must hand on [`std::io::ErrorKind::Interrupted`], as files, sockets and pipes do and buffers
    /// such as [`std::io::Stdout`]'s do not: that is how a machine ends whose console is stuck.
    pub serial_output: Box<dyn Write + Send>,
    /// What is typed on the serial console. A thread of its own reads it to the end.
    pub serial_input: Option<Box<dyn Read + Send>>,
    /// What a guest's wish to restart does.
    pub reboot: Reboot,
    /// Is told, in one line for people, that a disk failed or a device stopped, of which the guest
    /// only learns that something did. Called on the devices' and processors' threads, for the
    /// first failure of each device and then for the 2nd, 4th, 8th….
    pub report: Report,
}

/// Takes a line for people.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// What a machine starts.
#[derive(Debug, Clone)]
pub enum Boot {
    /// What the boot loader finds on the first disk. Its limit on memory is set to the machine's.
    FromDisk(bootyard_bootload::Options),
    /// A kernel that is given.
    Kernel {
        /// An ELF file with a PVH entry, or a bzImage.
        kernel: BootFile,
        /// The initial RAM disk.
        initrd: Option<BootFile>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// A file that each start of the machine reads anew, so that nothing of it stays in memory.
#[derive(Clone)]
pub struct BootFile {
    /// What messages call it: its path, for instance.
    pub name: String,
    /// Its bytes, as many as the guest's memory has room for.
    pub bytes: Arc<dyn ReadAt>,
}

/// What a guest's wish to restart does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reboot {
    /// The machine starts again from nothing: memory is empty, devices are as new, and the boot
    /// loader looks at the disk again.
    #[default]
    Restart,
    /// The machine ends with [`crate::Exit::Reset`].
    Terminate,
}

/// A disk of the machine.
#[derive(Clone)]
pub struct DiskConfig {
    /// What messages call it: its path, for instance.
    pub name: String,
    /// Its bytes. A disk without a writer is read-only.
    pub disk: Arc<dyn Disk>,
    /// The guest may not write to it.
    pub read_only: bool,
    /// The serial number under which the guest sees it, at most 20 bytes of ASCII.
    pub serial: String,
    /// How it shows itself.
    pub options: DiskOptions,
}

/// A network interface of the machine.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// What messages and statistics call it.
    pub name: String,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// What is at the other end of its wire.
    pub backend: SharedBackend,
    /// Where what passes is written, too.
    pub capture: Option<Arc<Mutex<Capture>>>,
}

impl MachineConfig {
    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |message: String| Err(Error::Config(message));
        if self.topology.count().is_none() {
            let CpuTopology { sockets, cores, threads } = self.topology;
            return refuse(format!(
                "expected 1 to {CPUS_MAX} processors, got {sockets} sockets of {cores} cores of \
                 {threads} threads"
            ));
        }
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&self.memory) {
            return refuse(format!(
                "expected {MEMORY_MIN} to {MEMORY_MAX} bytes of memory, got {}",
                self.memory
            ));
        }
        self.huge_pages.map(|pages| pages.divide(self.memory)).transpose()?;
        self.identity.check()?;
        if self.name.contains('\0') {
            return refuse(format!("the name {:?} has a zero byte", self.name));
        }
        let count = self.disks.len() + self.cdroms.len();
        if count > DISKS_MAX {
            return refuse(format!("expected at most {DISKS_MAX} disks, got {count}"));
        }
        if self.networks.len() > NETWORKS_MAX {
            let count = self.networks.len();
            return refuse(format!(
                "expected at most {NETWORKS_MAX} network interfaces, got {count}"
            ));
        }
        self.services.check()?;
        if matches!(self.boot, Boot::FromDisk(_)) && self.disks.is_empty() {
            return refuse("expected a disk to boot from, got none".to_owned());
        }
        Ok(())
    }

    /// The memory that the machine really has.
    pub(crate) fn memory_size(&self) -> u64 {
        self.memory.next_multiple_of(MEMORY_STEP)
    }
}

impl fmt::Debug for MachineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineConfig")
            .field("name", &self.name)
            .field("topology", &self.topology)
            .field("memory", &self.memory)
            .field("disks", &self.disks)
            .field("networks", &self.networks)
            .field("reboot", &self.reboot)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootFile")
            .field("name", &self.name)
            .field("size", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskConfig")
            .field("name", &self.name)
            .field("serial", &self.serial)
            .field("read_only", &self.read_only)
            .field("size", &self.disk.virtual_size())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::num::NonZeroU32;

    use super::*;

    /// A small machine without disks.
    pub(crate) fn config() -> MachineConfig {
        MachineConfig {
            name: "vm".to_owned(),
            topology: CpuTopology::of_cores(NonZeroU32::MIN),
            cpu_model: CpuModel::Host,
            memory: 64 << 20,
            huge_pages: None,
            identity: Identity::new([7; 16]),
            boot: Boot::Kernel {
                kernel: BootFile { name: "kernel".to_owned(), bytes: Arc::new(Vec::<u8>::new()) },
                initrd: None,
                cmdline: String::new(),
            },
            disks: Vec::new(),
            cdroms: Vec::new(),
            networks: Vec::new(),
            services: Services::default(),
            serial_output: Box::new(std::io::sink()),
            serial_input: None,
            reboot: Reboot::Restart,
            report: Arc::new(|_| {}),
        }
    }

    #[test]
    fn what_a_machine_cannot_be_is_refused() {
        type Change = fn(&mut MachineConfig);
        let cases: [(Change, &str); 5] = [
            (|c| c.topology.sockets = 65.try_into().unwrap(), "got 65 sockets of 1 cores"),
            (|c| c.memory = MEMORY_MIN - 1, "bytes of memory"),
            (|c| c.huge_pages = Some(HugePages::Size1Gi), "whole huge pages of 1073741824 bytes"),
            (|c| c.identity.serial.push('\n'), "serial number"),
            (|c| c.boot = Boot::FromDisk(Default::default()), "a disk to boot from"),
        ];
        config().check().unwrap();
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
