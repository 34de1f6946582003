//! What can go wrong with the machine itself. How a guest ends is not an error but an
//! [`crate::Exit`].

use std::fmt;
use std::io;

use crate::arch::x86_64::instruction::CpuMode;
pub use crate::loader::LoadError;

/// The stable kind of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// This host has no KVM that we may use.
    KvmMissing,
    /// KVM is there but failed, or cannot run what a guest needs.
    KvmBroken,
    /// The configuration asks for what this machine cannot be.
    Config,
    /// There is nothing to boot, or it cannot be loaded.
    Boot,
    /// A device of the machine failed on the host's side.
    Device,
}

/// Why a machine cannot be built or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open `/dev/kvm`")]
    KvmMissing(#[source] io::Error),
    /// A call to KVM failed.
    #[error("KVM refused `{call}`")]
    Kvm {
        /// The name of the ioctl.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// KVM stopped in the middle of the guest.
    #[error("{0}")]
    Stuck(Box<Stuck>),
    /// The configuration is not possible.
    #[error("{0}")]
    Config(String),
    /// Guest memory cannot be had from the host.
    #[error("cannot map {bytes} bytes of guest memory")]
    Memory {
        /// How much was asked for.
        bytes: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host's pool of huge pages is too small.
    #[error(
        "cannot take {wanted} huge pages of {page} bytes for the guest's memory: {}",
        free_of(*free)
    )]
    HugePages {
        /// Bytes of a page.
        page: u64,
        /// How many are needed.
        wanted: u64,
        /// How many nobody uses, if the processor has pages of this size.
        free: Option<u64>,
        /// The pool's folder.
        pool: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The sandbox cannot be had, and nobody said that it may be done without.
    #[error("cannot enter the sandbox: {step} failed")]
    Sandbox {
        /// What failed.
        step: &'static str,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel cannot be loaded.
    #[error("cannot load the guest's kernel")]
    Load(#[from] LoadError),
    /// A kernel or initial RAM disk cannot be read.
    #[error("cannot read `{file}`")]
    ReadBoot {
        /// The file's [`crate::BootFile::name`].
        file: String,
        /// The host's answer.
        source: io::Error,
    },
    /// The disk has nothing to boot.
    #[error("cannot boot from disk `{disk}`")]
    FindBoot {
        /// The disk's [`crate::DiskConfig::name`].
        disk: String,
        /// What the boot loader found.
        #[source]
        source: bootyard_bootload::Error,
    },
    /// A host resource of a device cannot be had.
    #[error("cannot set up the {device}")]
    Device {
        /// Which device.
        device: &'static str,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A bug of ours that a guest may have provoked.
    #[error("processor {0} of the machine broke down by an internal error")]
    Panicked(u32),
}

impl Error {
    /// The stable kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::KvmMissing(_) => ErrorKind::KvmMissing,
            Self::Kvm { .. } | Self::Stuck(_) => ErrorKind::KvmBroken,
            Self::Config(_) => ErrorKind::Config,
            Self::Load(_) | Self::ReadBoot { .. } | Self::FindBoot { .. } => ErrorKind::Boot,
            Self::Memory { .. }
            | Self::HugePages { .. }
            | Self::Sandbox { .. }
            | Self::Device { .. }
            | Self::Panicked(_) => ErrorKind::Device,
        }
    }

    /// A sentence on which the user can act.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Sandbox { .. } => "`--no-sandbox` runs the machine without it",
            Self::HugePages { free: None, .. } => {
                "`grep pdpe1gb /proc/cpuinfo` tells whether the processor has pages of 1 GiB"
            }
            Self::HugePages { wanted, pool, .. } => {
                return Some(format!(
                    "make the pool larger: `echo {wanted} | sudo tee {pool}/nr_hugepages` (other \
                     users of it come on top)"
                ));
            }
            Self::KvmMissing(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "join the group that owns `/dev/kvm`, or use `--engine qemu`"
            }
            Self::KvmMissing(_) | Self::Kvm { .. } => {
                "`bootyard doctor` shows what this host can do; `--engine qemu` needs no KVM"
            }
            Self::Stuck(_) => {
                "this host's KVM lacks what the guest needs: `--cpu-model minimal` hides what often is \
                 missing, `bootyard doctor` shows what is, and `--engine qemu` works without KVM"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn free_of(free: Option<u64>) -> String {
    match free {
        Some(free) => format!("{free} are free"),
        None => "this host has none of this size".to_owned(),
    }
}

/// Where KVM gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The processor.
    pub cpu: u32,
    /// What KVM said.
    pub reason: String,
    /// Where the processor stood.
    pub place: Place,
}

/// Where a processor stood, as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The instruction pointer.
    pub rip: Option<u64>,
    /// The privilege level: 0 is the kernel.
    pub privilege: Option<u8>,
    /// How it reads instructions.
    pub mode: Option<CpuMode>,
    /// The bytes at the instruction pointer.
    pub bytes: Vec<u8>,
    /// What kind of instruction they are, if it is one that hosts stumble over.
    pub instruction: Option<&'static str>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, reason, place } = self;
        write!(f, "KVM cannot run processor {cpu} any further: {reason}{place}")
    }
}

/// " at rip 0xffffffff81000000, privilege level 0, 64-bit mode, instruction bytes cc 90 (int3)".
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rip) = self.rip {
            write!(f, " at rip {rip:#x}")?;
        }
        if let Some(privilege) = self.privilege {
            write!(f, ", privilege level {privilege}")?;
        }
        if let Some(mode) = self.mode {
            write!(f, ", {}", mode.name())?;
        }
        if !self.bytes.is_empty() {
            f.write_str(", instruction bytes")?;
            self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        match self.instruction {
            Some(instruction) => write!(f, " ({instruction})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvm_gave_up_at_is_said_as_far_as_it_is_known() {
        let place = Place {
            rip: Some(0xffff_ffff_8100_0000),
            privilege: Some(0),
            mode: Some(CpuMode::Long),
            bytes: vec![0xcc, 0x90],
            instruction: Some("int3"),
        };
        let stuck =
            |place| Stuck { cpu: 1, reason: "it cannot emulate an instruction".into(), place };
        assert_eq!(
            stuck(place).to_string(),
            "KVM cannot run processor 1 any further: it cannot emulate an instruction at rip \
             0xffffffff81000000, privilege level 0, 64-bit mode, instruction bytes cc 90 (int3)"
        );
        assert_eq!(
            stuck(Place::default()).to_string(),
            "KVM cannot run processor 1 any further: it cannot emulate an instruction"
        );
    }
}
