//! A virtual machine, as the user asks for it, and how its guest ended.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::{
    BootSpec, ByteSize, CpuModel, CpuTopology, DiskAttachment, Firmware, GuestServices,
    HugePageSize, VmNetwork,
};

/// What one run of a virtual machine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// The name in messages and in the process list.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: CpuTopology,
    /// What they can do.
    pub cpu_model: CpuModel,
    /// Guest memory.
    pub memory: ByteSize,
    /// Takes the memory from the host's pool of huge pages of this size.
    pub huge_pages: Option<HugePageSize>,
    /// Who the machine says it is.
    pub firmware: Firmware,
    /// Confines the machine's process, so that a guest that attacks a device gets no further.
    pub sandbox: bool,
    /// The disks in the order in which the guest sees them. The first one is booted.
    pub disks: Vec<VmDisk>,
    /// The network interfaces, in the order in which the guest sees them.
    pub networks: Vec<VmNetwork>,
    /// What else there is between guest and host.
    pub services: GuestServices,
    /// What it starts.
    pub boot: BootSpec,
    /// Which machine runs it.
    pub engine: EngineChoice,
    /// When it is started, and when again.
    pub run_strategy: RunStrategy,
    /// How long one run of the guest may take before it is killed.
    pub time_limit: Option<Duration>,
    /// What a guest's wish to restart does.
    pub reboot_policy: RebootPolicy,
    /// The machine stands still when it is started, until it is resumed.
    pub start_paused: bool,
}

/// One disk of a machine, over a raw file, a qcow2 file or a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDisk {
    /// The file or block device.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub read_only: bool,
    /// What is on it when the machine is started, and what becomes of that.
    pub life: DiskLife,
    /// How the guest sees it.
    pub attachment: DiskAttachment,
}

/// How long what a guest writes to a disk stays. A life of a machine ends when it is stopped or powers
/// itself off; a reboot of the guest is no end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DiskLife {
    /// For good.
    Kept,
    /// For good, on a disk to which other machines write too (access mode ReadWriteMany).
    Shared,
    /// As long as the machine's life, which begins with an empty disk (KubeVirt's `emptyDisk`).
    Empty,
    /// As long as the machine's life, which begins with the content of this file or block device, that
    /// is never changed (KubeVirt's `ephemeral` and `containerDisk`).
    Overlay(PathBuf),
}

/// When a virtual machine runs; the words and their meaning are KubeVirt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunStrategy {
    /// Always running: started again whenever it ends.
    Always,
    /// Never running.
    Halted,
    /// Started and stopped by the user only.
    Manual,
    /// Started once and never again, however it ends.
    Once,
    /// Started again after a failure, not after the guest powered itself off.
    RerunOnFailure,
}

impl RunStrategy {
    /// Every strategy, in the order of their names.
    pub const ALL: [Self; 5] =
        [Self::Always, Self::Halted, Self::Manual, Self::Once, Self::RerunOnFailure];

    /// The name, as manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::Halted => "Halted",
            Self::Manual => "Manual",
            Self::Once => "Once",
            Self::RerunOnFailure => "RerunOnFailure",
        }
    }
}

/// The text names no run strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown run strategy `{0}`; expected Always, Halted, Manual, Once or RerunOnFailure")]
pub struct ParseRunStrategyError(String);

impl FromStr for RunStrategy {
    type Err = ParseRunStrategyError;

    fn from_str(text: &str) -> Result<Self, ParseRunStrategyError> {
        let named = Self::ALL.into_iter().find(|strategy| strategy.name() == text);
        named.ok_or_else(|| ParseRunStrategyError(text.to_owned()))
    }
}

/// What a guest's wish to restart does; the words are KubeVirt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RebootPolicy {
    /// The guest starts again in place.
    #[default]
    Reboot,
    /// The machine ends, and its run strategy says what comes next.
    Terminate,
}

/// The text names no reboot policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reboot policy `{0}`; expected Reboot or Terminate")]
pub struct ParseRebootPolicyError(String);

impl FromStr for RebootPolicy {
    type Err = ParseRebootPolicyError;

    fn from_str(text: &str) -> Result<Self, ParseRebootPolicyError> {
        match text {
            "Reboot" => Ok(Self::Reboot),
            "Terminate" => Ok(Self::Terminate),
            _ => Err(ParseRebootPolicyError(text.to_owned())),
        }
    }
}

/// Which machine runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineChoice {
    /// The best that this host can do, with the reason in the status.
    Auto,
    /// Our own machine on `/dev/kvm`.
    Kvm,
    /// QEMU, with KVM where it works and in software (TCG) elsewhere.
    Qemu,
}

/// The text names no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown engine `{0}`; expected auto, kvm or qemu")]
pub struct ParseEngineError(String);

impl FromStr for EngineChoice {
    type Err = ParseEngineError;

    fn from_str(text: &str) -> Result<Self, ParseEngineError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "qemu" => Ok(Self::Qemu),
            _ => Err(ParseEngineError(text.to_owned())),
        }
    }
}

/// How one run of a guest ended, whoever ran it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestEnd {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset where the machine was told not to restart it in place.
    Reset,
    /// The guest's kernel panicked, or the processor shut down (triple fault).
    Crash,
    /// The machine's own process failed or was killed from outside.
    EngineFailed,
    /// The time limit passed, and the machine was killed for it.
    TimedOut,
    /// The user stopped it.
    Stopped,
}

impl GuestEnd {
    /// True for the ends that KubeVirt's phase `Succeeded` stands for.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::Stopped)
    }
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "the guest powered itself off",
            Self::Reset => "the guest reset itself",
            Self::Crash => "the guest crashed",
            Self::EngineFailed => "the machine failed",
            Self::TimedOut => "the time limit passed",
            Self::Stopped => "stopped by the user",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for strategy in RunStrategy::ALL {
            assert_eq!(strategy.name().parse(), Ok(strategy));
        }
        assert!("always".parse::<RunStrategy>().is_err());
        assert_eq!("kvm".parse(), Ok(EngineChoice::Kvm));
        assert!("xen".parse::<EngineChoice>().is_err());
    }
}
