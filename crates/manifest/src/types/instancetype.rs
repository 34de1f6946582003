//! Sizes and preferences that machines share (`instancetype.kubevirt.io/v1beta1`).

use super::devices::{Bus, DiskTarget};
use super::domain::Hugepages;
use super::meta::ObjectMeta;
use super::network::Model;
use crate::read::{Accepted, Quantity, Silent, object, words};

object! {
    /// A size of machines.
    Instancetype {
        /// `instancetype.kubevirt.io/v1beta1`.
        "apiVersion" api_version: String,
        /// `VirtualMachineInstancetype` or `VirtualMachineClusterInstancetype`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// The size.
        "spec" spec: InstancetypeSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// How many processors and how much memory.
    InstancetypeSpec {
        /// The processors.
        "cpu" cpu: InstancetypeCpu,
        /// The memory.
        "memory" memory: InstancetypeMemory,
        /// Graphics cards of the host.
        "gpus" gpus: Option<Accepted>,
        /// Devices of the host.
        "hostDevices" host_devices: Option<Accepted>,
        /// Threads for the disks' work.
        "ioThreadsPolicy" io_threads_policy: Option<Accepted>,
        /// How many such threads.
        "ioThreads" io_threads: Option<Accepted>,
        /// Memory that is encrypted by the processor.
        "launchSecurity" launch_security: Option<Accepted>,
        /// For the scheduler of a cluster.
        "nodeSelector" node_selector: Option<Accepted>,
        /// For the scheduler of a cluster.
        "schedulerName" scheduler_name: Option<Accepted>,
        /// Notes for the machines' instances.
        "annotations" annotations: Option<Accepted>,
    }

    /// How many processors.
    InstancetypeCpu {
        /// How many the guest sees.
        "guest" guest: u32,
        /// What they can do.
        "model" model: Option<String>,
        /// For the scheduler of a cluster.
        "dedicatedCPUPlacement" dedicated_cpu_placement: Option<Accepted>,
        /// For the scheduler of a cluster.
        "isolateEmulatorThread" isolate_emulator_thread: Option<Accepted>,
        /// For hosts with several memories.
        "numa" numa: Option<Accepted>,
        /// For the scheduler of a cluster.
        "realtime" realtime: Option<Accepted>,
        /// Sockets that can be plugged in later.
        "maxSockets" max_sockets: Option<Accepted>,
    }

    /// How much memory.
    InstancetypeMemory {
        /// How much the guest sees.
        "guest" guest: Quantity,
        /// Takes it from the host's pool of huge pages.
        "hugepages" hugepages: Option<Hugepages>,
        /// How much can be plugged in later.
        "maxGuest" max_guest: Option<Accepted>,
        /// How much less a cluster reserves.
        "overcommitPercent" overcommit_percent: Option<Accepted>,
        /// For the accounts of a cluster.
        "reservedOverhead" reserved_overhead: Option<Accepted>,
    }

    /// What is filled in where a machine says nothing.
    Preference {
        /// `instancetype.kubevirt.io/v1beta1`.
        "apiVersion" api_version: String,
        /// `VirtualMachinePreference` or `VirtualMachineClusterPreference`.
        "kind" kind: String,
        /// Its name.
        "metadata" metadata: ObjectMeta,
        /// What is preferred.
        "spec" spec: PreferenceSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// What is preferred.
    PreferenceSpec {
        /// Of the processors.
        "cpu" cpu: Option<PreferredCpu>,
        /// Of the devices.
        "devices" devices: Option<PreferredDevices>,
        /// Of the firmware.
        "firmware" firmware: Option<PreferredFirmware>,
        /// Of the main board.
        "machine" machine: Option<PreferredMachine>,
        /// Of the clock.
        "clock" clock: Option<Accepted>,
        /// Of the features.
        "features" features: Option<Accepted>,
        /// What a machine must have at least.
        "requirements" requirements: Option<Accepted>,
        /// Of the volumes.
        "volumes" volumes: Option<Accepted>,
        /// Seconds between the power button and the end by force.
        "preferredTerminationGracePeriodSeconds" grace_period: Option<i64>,
        /// For the name service of a cluster.
        "preferredSubdomain" preferred_subdomain: Option<Accepted>,
        /// For the processors of a cluster.
        "preferredArchitecture" preferred_architecture: Option<Accepted>,
        /// The topology may be changed so that it fits.
        "preferSpreadSocketToCoreRatio" prefer_spread_socket_to_core_ratio: Option<u32>,
        /// Notes for the machines' instances.
        "annotations" annotations: Option<Accepted>,
    }

    /// What is preferred of processors.
    PreferredCpu {
        /// How the processors of an instancetype are laid out.
        "preferredCPUTopology" preferred_cpu_topology: Option<PreferredTopology>,
        /// Single features.
        "preferredCPUFeatures" preferred_cpu_features: Option<Accepted>,
        /// How they are spread.
        "spreadOptions" spread_options: Option<Accepted>,
    }

    /// What is preferred of devices.
    PreferredDevices {
        /// The bus of disks.
        "preferredDiskBus" preferred_disk_bus: Option<Bus>,
        /// The bus of CD-ROM drives.
        "preferredCdromBus" preferred_cdrom_bus: Option<Bus>,
        /// The bus of `lun`.
        "preferredLunBus" preferred_lun_bus: Option<Bus>,
        /// The model of interfaces.
        "preferredInterfaceModel" preferred_interface_model: Option<Model>,
        /// A disk by itself.
        "preferredDisk" preferred_disk: Option<DiskTarget>,
        /// A source of random numbers.
        "preferredRng" preferred_rng: Option<Accepted>,
        /// A queue for each processor.
        "preferredBlockMultiQueue" preferred_block_multi_queue: Option<Accepted>,
        /// A queue for each processor.
        "preferredNetworkInterfaceMultiQueue" preferred_network_interface_multi_queue:
            Option<Accepted>,
        /// A screen.
        "preferredAutoattachGraphicsDevice" preferred_autoattach_graphics_device: Option<Accepted>,
        /// A keyboard.
        "preferredAutoattachInputDevice" preferred_autoattach_input_device: Option<Accepted>,
        /// A balloon.
        "preferredAutoattachMemBalloon" preferred_autoattach_mem_balloon: Option<Accepted>,
        /// An interface.
        "preferredAutoattachPodInterface" preferred_autoattach_pod_interface: Option<Accepted>,
        /// A serial console.
        "preferredAutoattachSerialConsole" preferred_autoattach_serial_console: Option<Accepted>,
        /// Programs of the host that plug in USB devices.
        "preferredClientPassthrough" preferred_client_passthrough: Option<Accepted>,
        /// When what a guest writes is durable.
        "preferredDiskCache" preferred_disk_cache: Option<Accepted>,
        /// How the host reads and writes.
        "preferredDiskIO" preferred_disk_io: Option<Accepted>,
        /// The size of blocks.
        "preferredDiskBlockSize" preferred_disk_block_size: Option<Accepted>,
        /// Threads of disks.
        "preferredDiskDedicatedIoThread" preferred_disk_dedicated_io_thread: Option<Accepted>,
        /// Nothing can be plugged in later.
        "preferredDisableHotplug" preferred_disable_hotplug: Option<Accepted>,
        /// A keyboard's bus.
        "preferredInputBus" preferred_input_bus: Option<Accepted>,
        /// A keyboard's type.
        "preferredInputType" preferred_input_type: Option<Accepted>,
        /// The way to the pod network.
        "preferredInterfaceMasquerade" preferred_interface_masquerade: Option<Accepted>,
        /// A sound card.
        "preferredSoundModel" preferred_sound_model: Option<Accepted>,
        /// A key store.
        "preferredTPM" preferred_tpm: Option<Accepted>,
        /// Devices that speak virtio's old dialect, too.
        "preferredUseVirtioTransitional" preferred_use_virtio_transitional: Option<Accepted>,
        /// Graphics cards.
        "preferredVirtualGPUOptions" preferred_virtual_gpu_options: Option<Accepted>,
        /// The kind of screen.
        "preferredVideoType" preferred_video_type: Option<Accepted>,
        /// Where a guest tells that its kernel has panicked.
        "preferredPanicDeviceModel" preferred_panic_device_model: Option<Accepted>,
    }

    /// What is preferred of the firmware.
    PreferredFirmware {
        /// UEFI.
        "preferredEfi" preferred_efi: Option<super::domain::Efi>,
        /// UEFI, as it was called before.
        "preferredUseEfi" preferred_use_efi: Option<bool>,
        /// UEFI that starts only what is signed, as it was called before.
        "preferredUseSecureBoot" preferred_use_secure_boot: Option<bool>,
        /// BIOS.
        "preferredUseBios" preferred_use_bios: Option<bool>,
        /// BIOS that speaks on the serial port.
        "preferredUseBiosSerial" preferred_use_bios_serial: Option<bool>,
    }

    /// What is preferred of the main board.
    PreferredMachine {
        /// Its type.
        "preferredMachineType" preferred_machine_type: Option<String>,
    }
}

words! {
    /// How the processors of an instancetype are laid out.
    PreferredTopology {
        /// As sockets.
        Sockets = "sockets",
        /// As cores of one socket.
        Cores = "cores",
        /// As threads of one core.
        Threads = "threads",
        /// As sockets and cores.
        Spread = "spread",
        /// As the cluster finds best.
        Any = "any",
        /// As sockets, as it was called before.
        PreferSockets = "preferSockets",
        /// As cores, as it was called before.
        PreferCores = "preferCores",
        /// As threads, as it was called before.
        PreferThreads = "preferThreads",
        /// As sockets and cores, as it was called before.
        PreferSpread = "preferSpread",
        /// As the cluster finds best, as it was called before.
        PreferAny = "preferAny",
    }
}
