//! A machine's processors, memory and firmware: the flags that `run` and the `machine` subcommand
//! share, and what they are in the KVM machine's words.

use bootyard_spec::{
    ByteSize, CpuModel, CpuTopology, Firmware, HugePageSize, SmbiosField, SmbiosText, Uuid,
};
use bootyard_vmm::{CpuModel as Model, CpuTopology as Topology, HugePages, Identity};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct HardwareArgs {
    /// Virtual CPUs: a number of cores, or sockets=1,cores=2,threads=2
    #[arg(long, default_value = "1", value_name = "N|TOPOLOGY")]
    pub(crate) cpus: CpuTopology,
    /// What the guest sees of the processor: host, or minimal, the baseline of x86-64 for hosts that
    /// offer more than they can do
    #[arg(long, default_value = "host", value_name = "MODEL")]
    pub(crate) cpu_model: CpuModel,
    /// Guest memory
    #[arg(long, default_value = "1Gi", value_name = "QTY")]
    pub(crate) memory: ByteSize,
    /// Take the memory from the host's pool of huge pages of this size: 2Mi or 1Gi
    #[arg(long, value_name = "SIZE")]
    pub(crate) hugepages: Option<HugePageSize>,
    /// UUID that the machine shows [default: made from its name, as KubeVirt does]
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,
    /// Serial number that the machine shows, such as ds=nocloud
    #[arg(long, value_name = "TEXT")]
    pub(crate) serial_number: Option<String>,
    /// What else it says of itself: manufacturer, product, version, sku, family, chassis-manufacturer,
    /// chassis-version, chassis-serial, chassis-asset or chassis-sku
    #[arg(long, value_name = "FIELD=TEXT")]
    pub(crate) smbios: Vec<SmbiosText>,
    /// Leave the machine's process unconfined, to find out what the sandbox forbids it
    #[arg(long)]
    pub(crate) no_sandbox: bool,
}

impl HardwareArgs {
    /// Who the machine called `name` says it is.
    pub(crate) fn firmware(&self, name: &str) -> Firmware {
        let uuid = self.uuid.unwrap_or_else(|| {
            let id = bootyard_cloudinit::InstanceId::from_machine_name(name);
            id.as_str().parse().expect("it is a UUID")
        });
        let serial = self.serial_number.clone();
        let serial = serial.map(|text| SmbiosText { field: SmbiosField::Serial, text });
        Firmware { uuid, texts: self.smbios.iter().cloned().chain(serial).collect() }
    }
}

pub(crate) const fn topology(cpus: CpuTopology) -> Topology {
    let CpuTopology { sockets, cores, threads } = cpus;
    Topology { sockets, cores, threads }
}

pub(crate) const fn model(model: CpuModel) -> Model {
    match model {
        CpuModel::Host => Model::Host,
        CpuModel::Minimal => Model::Minimal,
    }
}

pub(crate) const fn huge_pages(size: HugePageSize) -> HugePages {
    match size {
        HugePageSize::Size2Mi => HugePages::Size2Mi,
        HugePageSize::Size1Gi => HugePages::Size1Gi,
    }
}

pub(crate) fn identity(firmware: &Firmware) -> Identity {
    let mut identity = Identity::new(firmware.uuid.into_bytes());
    for text in &firmware.texts {
        let chassis = &mut identity.chassis;
        let field = match text.field {
            SmbiosField::Serial => &mut identity.serial,
            SmbiosField::Manufacturer => &mut identity.manufacturer,
            SmbiosField::Product => &mut identity.product,
            SmbiosField::Version => &mut identity.version,
            SmbiosField::Sku => &mut identity.sku,
            SmbiosField::Family => &mut identity.family,
            SmbiosField::ChassisManufacturer => &mut chassis.manufacturer,
            SmbiosField::ChassisVersion => &mut chassis.version,
            SmbiosField::ChassisSerial => &mut chassis.serial,
            SmbiosField::ChassisAsset => &mut chassis.asset,
            SmbiosField::ChassisSku => &mut chassis.sku,
        };
        field.clone_from(&text.text);
    }
    identity
}
