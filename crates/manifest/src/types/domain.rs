//! The machine itself: processors, memory, firmware and features.

use std::collections::BTreeMap;

use super::devices::Devices;
use crate::read::{Accepted, Quantity, object, words};

object! {
    /// Processors, memory, firmware and devices of a machine.
    Domain {
        /// How much memory and how many processors are asked for.
        "resources" resources: Option<Resources>,
        /// The processors.
        "cpu" cpu: Option<Cpu>,
        /// The memory.
        "memory" memory: Option<Memory>,
        /// The kind of main board.
        "machine" machine: Option<MachineType>,
        /// What runs before the guest's kernel.
        "firmware" firmware: Option<FirmwareSpec>,
        /// The clock that the guest sees.
        "clock" clock: Option<Clock>,
        /// What the machine can do.
        "features" features: Option<Features>,
        /// Disks, interfaces and all else that is plugged in.
        "devices" devices: Devices,
        /// Threads for the disks' work. Every disk has its own here.
        "ioThreadsPolicy" io_threads_policy: Option<Accepted>,
        /// How many such threads.
        "ioThreads" io_threads: Option<Accepted>,
        /// What SMBIOS says of the case.
        "chassis" chassis: Option<Chassis>,
        /// Memory that is encrypted by the processor.
        "launchSecurity" launch_security: Option<Accepted>,
    }

    /// What is asked of the host.
    Resources {
        /// What the machine gets: `memory`, and `cpu` as a number of processors.
        "requests" requests: BTreeMap<String, Quantity>,
        /// What it may not exceed, and gets where `requests` says nothing.
        "limits" limits: BTreeMap<String, Quantity>,
        /// For the scheduler of a cluster.
        "overcommitGuestOverhead" overcommit_guest_overhead: Option<Accepted>,
    }

    /// The processors that the guest sees.
    Cpu {
        /// Cores of a socket; 1 if absent.
        "cores" cores: Option<u32>,
        /// Sockets; 1 if absent.
        "sockets" sockets: Option<u32>,
        /// Sockets that can be plugged in later.
        "maxSockets" max_sockets: Option<Accepted>,
        /// Threads of a core; 1 if absent.
        "threads" threads: Option<u32>,
        /// What the processors can do: `host-passthrough`, `host-model` or a model of QEMU's.
        "model" model: Option<String>,
        /// Single features of the processors.
        "features" features: Vec<CpuFeature>,
        /// For the scheduler of a cluster.
        "dedicatedCpuPlacement" dedicated_cpu_placement: Option<Accepted>,
        /// For hosts with several memories.
        "numa" numa: Option<Accepted>,
        /// For the scheduler of a cluster.
        "isolateEmulatorThread" isolate_emulator_thread: Option<Accepted>,
        /// For the scheduler of a cluster.
        "realtime" realtime: Option<Accepted>,
    }

    /// A feature of the processors.
    CpuFeature {
        /// As QEMU calls it.
        "name" name: String,
        /// Whether it must be there: force, require, optional, disable or forbid; require if absent.
        "policy" policy: Option<CpuFeaturePolicy>,
    }

    /// The memory that the guest sees.
    Memory {
        /// How much.
        "guest" guest: Option<Quantity>,
        /// How much can be plugged in later.
        "maxGuest" max_guest: Option<Accepted>,
        /// Takes it from the host's pool of huge pages.
        "hugepages" hugepages: Option<Hugepages>,
        /// For the accounts of a cluster.
        "reservedOverhead" reserved_overhead: Option<Accepted>,
    }

    /// Huge pages.
    Hugepages {
        /// Their size: 2Mi or 1Gi.
        "pageSize" page_size: Option<String>,
    }

    /// The kind of main board.
    MachineType {
        /// `q35`, or one of its versions.
        "type" r#type: Option<String>,
    }

    /// What runs before the guest's kernel, and who the machine says it is.
    FirmwareSpec {
        /// The UUID in SMBIOS; one is made from the machine's name if absent.
        "uuid" uuid: Option<String>,
        /// The serial number in SMBIOS.
        "serial" serial: Option<String>,
        /// BIOS or UEFI.
        "bootloader" bootloader: Option<Bootloader>,
        /// A kernel that is started without a boot loader.
        "kernelBoot" kernel_boot: Option<KernelBootSpec>,
        /// Tables for Windows' licence.
        "acpi" acpi: Option<Accepted>,
    }

    /// BIOS or UEFI; BIOS if absent.
    Bootloader {
        /// A PC's BIOS.
        "bios" bios: Option<Bios>,
        /// UEFI.
        "efi" efi: Option<Efi>,
    }

    /// A PC's BIOS.
    Bios {
        /// It speaks on the serial port.
        "useSerial" use_serial: Option<bool>,
    }

    /// UEFI.
    Efi {
        /// Starts only what is signed; true if absent. It needs `features.smm`.
        "secureBoot" secure_boot: Option<bool>,
        /// Its variables outlive the machine's run.
        "persistent" persistent: Option<bool>,
    }

    /// A kernel that is started without a boot loader.
    KernelBootSpec {
        /// Its command line.
        "kernelArgs" kernel_args: Option<String>,
        /// Where kernel and initial RAM disk are.
        "container" container: Option<KernelContainer>,
    }

    /// A container image with a kernel in it.
    KernelContainer {
        /// The image.
        "image" image: String,
        /// The secret with the registry's credentials.
        "imagePullSecret" image_pull_secret: Option<String>,
        /// Always, IfNotPresent or Never.
        "imagePullPolicy" image_pull_policy: Option<PullPolicy>,
        /// The kernel in it.
        "kernelPath" kernel_path: Option<String>,
        /// The initial RAM disk in it.
        "initrdPath" initrd_path: Option<String>,
    }

    /// The clock that the guest sees.
    Clock {
        /// Universal time, which it is if absent.
        "utc" utc: Option<Accepted>,
        /// The time of a zone.
        "timezone" timezone: Option<String>,
        /// Single timers.
        "timer" timer: Option<Accepted>,
    }

    /// What the machine can do.
    Features {
        /// ACPI, which every machine here has.
        "acpi" acpi: Option<Feature>,
        /// The interrupt controller, which every machine here has.
        "apic" apic: Option<Accepted>,
        /// What Windows likes to find.
        "hyperv" hyperv: Option<Accepted>,
        /// The same, as the host has it.
        "hypervPassthrough" hyperv_passthrough: Option<Accepted>,
        /// Whether KVM tells who it is.
        "kvm" kvm: Option<Accepted>,
        /// Spin locks that know the hypervisor.
        "pvspinlock" pvspinlock: Option<Accepted>,
        /// System management mode, in which UEFI guards its variables.
        "smm" smm: Option<Feature>,
    }

    /// A feature that is on or off; on if it is named.
    Feature {
        /// On or off.
        "enabled" enabled: Option<bool>,
    }

    /// What SMBIOS says of the case.
    Chassis {
        /// Its maker.
        "manufacturer" manufacturer: Option<String>,
        /// Its version.
        "version" version: Option<String>,
        /// Its serial number.
        "serial" serial: Option<String>,
        /// Its asset tag.
        "asset" asset: Option<String>,
        /// Its SKU number.
        "sku" sku: Option<String>,
    }
}

words! {
    /// When an image is pulled from its registry.
    PullPolicy {
        /// At every start.
        Always = "Always",
        /// Where it is not there.
        IfNotPresent = "IfNotPresent",
        /// Never: it must be there.
        Never = "Never",
    }

    /// Whether a feature of a processor must be there.
    CpuFeaturePolicy {
        /// The guest sees it, whatever the host has.
        Force = "force",
        /// Without it the machine does not start.
        Require = "require",
        /// The guest sees it if the host has it.
        Optional = "optional",
        /// The guest does not see it.
        Disable = "disable",
        /// With it the machine does not start.
        Forbid = "forbid",
    }
}
