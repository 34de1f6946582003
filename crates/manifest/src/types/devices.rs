//! What is plugged into a machine.

use super::network::Interface;
use crate::read::{Accepted, Empty, Quantity, object, words};

object! {
    /// Disks, interfaces and all else that is plugged into a machine.
    Devices {
        /// The disks, each over a volume of its name.
        "disks" disks: Vec<Disk>,
        /// The network interfaces, each on a network of its name.
        "interfaces" interfaces: Vec<Interface>,
        /// A source of random numbers, which every machine here has.
        "rng" rng: Option<Empty>,
        /// An interface on the pod network where there are no others; true if absent.
        "autoattachPodInterface" autoattach_pod_interface: Option<bool>,
        /// A serial console; true if absent.
        "autoattachSerialConsole" autoattach_serial_console: Option<bool>,
        /// The serial console is written to a log as well.
        "logSerialConsole" log_serial_console: Option<bool>,
        /// A balloon, which gives memory back to the host; true if absent.
        "autoattachMemBalloon" autoattach_mem_balloon: Option<bool>,
        /// Sockets between guest and host.
        "autoattachVSOCK" autoattach_vsock: Option<bool>,
        /// A queue of each disk for each processor.
        "blockMultiQueue" block_multi_queue: Option<bool>,
        /// A queue of each interface for each processor.
        "networkInterfaceMultiqueue" network_interface_multiqueue: Option<bool>,
        /// What resets a guest that hangs.
        "watchdog" watchdog: Option<Accepted>,
        /// Where a guest tells that its kernel has panicked. Every machine here has one.
        "panicDevices" panic_devices: Option<Accepted>,
        /// A key store.
        "tpm" tpm: Option<Accepted>,
        /// A screen, which no machine here has.
        "autoattachGraphicsDevice" autoattach_graphics_device: Option<bool>,
        /// Keyboard and mouse of a screen.
        "autoattachInputDevice" autoattach_input_device: Option<bool>,
        /// Keyboard and mouse of a screen.
        "inputs" inputs: Option<Accepted>,
        /// The kind of screen.
        "video" video: Option<Accepted>,
        /// A sound card.
        "sound" sound: Option<Accepted>,
        /// Programs of the host that plug in USB devices.
        "clientPassthrough" client_passthrough: Option<Accepted>,
        /// Nothing can be plugged in later.
        "disableHotplug" disable_hotplug: Option<bool>,
        /// Figures of the host, as SAP wants them.
        "downwardMetrics" downward_metrics: Option<Accepted>,
        /// Folders of the host.
        "filesystems" filesystems: Option<Accepted>,
        /// Graphics cards of the host.
        "gpus" gpus: Option<Accepted>,
        /// Devices of the host.
        "hostDevices" host_devices: Option<Accepted>,
        /// Devices that speak virtio's old dialect, too.
        "useVirtioTransitional" use_virtio_transitional: Option<bool>,
    }

    /// A disk: how the machine sees a volume.
    Disk {
        /// The volume that it shows.
        "name" name: String,
        /// A hard disk, which it is if nothing is said.
        "disk" disk: Option<DiskTarget>,
        /// A CD-ROM drive.
        "cdrom" cdrom: Option<CdromTarget>,
        /// A SCSI device of the host.
        "lun" lun: Option<LunTarget>,
        /// The place in the order in which the machine tries to boot, from 1.
        "bootOrder" boot_order: Option<u32>,
        /// Under which serial number the guest sees it.
        "serial" serial: Option<String>,
        /// When what the guest writes is durable.
        "cache" cache: Option<CacheWord>,
        /// How the host reads and writes.
        "io" io: Option<IoWord>,
        /// What a failed read or write does.
        "errorPolicy" error_policy: Option<ErrorPolicy>,
        /// The size of its blocks.
        "blockSize" block_size: Option<BlockSize>,
        /// Several machines write to it.
        "shareable" shareable: Option<bool>,
        /// A thread of its own, which every disk has here.
        "dedicatedIOThread" dedicated_io_thread: Option<bool>,
        /// A word that is given to the guest with its address.
        "tag" tag: Option<Accepted>,
        /// Notes which blocks change, for backups.
        "changedBlockTracking" changed_block_tracking: Option<Accepted>,
    }

    /// A hard disk.
    DiskTarget {
        /// What it is plugged into.
        "bus" bus: Option<Bus>,
        /// The guest may not write.
        "readonly" readonly: Option<bool>,
        /// Its PCI address.
        "pciAddress" pci_address: Option<Accepted>,
    }

    /// A CD-ROM drive.
    CdromTarget {
        /// What it is plugged into.
        "bus" bus: Option<Bus>,
        /// The guest may not write; true if absent.
        "readonly" readonly: Option<bool>,
        /// `open` or `closed`.
        "tray" tray: Option<Tray>,
    }

    /// A SCSI device of the host.
    LunTarget {
        /// What it is plugged into.
        "bus" bus: Option<Bus>,
        /// The guest may not write.
        "readonly" readonly: Option<bool>,
        /// The guest may reserve it for itself.
        "reservation" reservation: Option<bool>,
    }

    /// The size of a disk's blocks.
    BlockSize {
        /// In bytes.
        "custom" custom: Option<CustomBlockSize>,
        /// As the volume has them.
        "matchVolume" match_volume: Option<MatchVolume>,
    }

    /// The size of blocks as the volume has them; on if it is named.
    MatchVolume {
        /// On or off.
        "enabled" enabled: Option<bool>,
    }

    /// The size of blocks in bytes: powers of two from 512 to 2 MiB.
    CustomBlockSize {
        /// As the guest addresses them.
        "logical" logical: u32,
        /// As the medium writes them.
        "physical" physical: u32,
        /// In which units blocks are given back.
        "discardGranularity" discard_granularity: Option<Quantity>,
    }
}

words! {
    /// What a disk is plugged into.
    Bus ("{WORD} bus is not supported") {
        /// A disk of its own on PCI, the fastest.
        Virtio = "virtio",
        /// A SATA controller.
        Sata = "sata",
        /// A SCSI controller.
        Scsi = "scsi",
        /// A USB controller.
        Usb = "usb",
    }

    /// The tray of a CD-ROM drive.
    Tray {
        /// Out.
        Open = "open",
        /// In.
        Closed = "closed",
    }

    /// When what the guest writes is durable.
    CacheWord {
        /// When the guest asks for it; past the host's cache.
        None = "none",
        /// At once.
        WriteThrough = "writethrough",
        /// When the guest asks for it.
        WriteBack = "writeback",
    }

    /// How the host reads and writes.
    IoWord {
        /// By the kernel's own queue.
        Native = "native",
        /// By threads.
        Threads = "threads",
        /// As the host finds best.
        Default = "default",
    }

    /// What a failed read or write does.
    ErrorPolicy {
        /// The machine stands still.
        Stop = "stop",
        /// Nothing: the guest is not told.
        Ignore = "ignore",
        /// The guest is told.
        Report = "report",
        /// The machine stands still where the host has no space; other failures are told to the guest.
        Enospace = "enospace",
    }
}
