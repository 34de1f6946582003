//! What a machine's processors, memory and firmware are, beyond their number and size.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

pub use uuid::Uuid;

/// The processors of a machine: `sockets` packages of `cores` cores of `threads` threads.
///
/// Parses a number, which is one of cores, or `sockets=1,cores=2,threads=2` with any of the three
/// left out, and displays the shorter of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuTopology {
    /// Packages.
    pub sockets: NonZeroU32,
    /// Cores in a package.
    pub cores: NonZeroU32,
    /// Threads in a core.
    pub threads: NonZeroU32,
}

impl CpuTopology {
    /// One package of `cores` cores of one thread.
    pub const fn of_cores(cores: NonZeroU32) -> Self {
        Self { sockets: NonZeroU32::MIN, cores, threads: NonZeroU32::MIN }
    }

    /// The number of processors. Saturates where there are too many to be counted.
    pub const fn count(self) -> u32 {
        self.cores.saturating_mul(self.threads).saturating_mul(self.sockets).get()
    }
}

/// The text says nothing of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of processors or `sockets=1,cores=2,threads=2`, got `{0}`")]
pub struct ParseTopologyError(String);

impl FromStr for CpuTopology {
    type Err = ParseTopologyError;

    fn from_str(text: &str) -> Result<Self, ParseTopologyError> {
        let bad = || ParseTopologyError(text.to_owned());
        if let Ok(cores) = text.parse() {
            return Ok(Self::of_cores(cores));
        }
        let mut given: [Option<NonZeroU32>; 3] = [None; 3];
        for part in text.split(',') {
            let (key, number) = part.split_once('=').ok_or_else(bad)?;
            let at = ["sockets", "cores", "threads"].iter().position(|known| *known == key);
            let place = at.map(|at| &mut given[at]).filter(|place| place.is_none());
            *place.ok_or_else(bad)? = Some(number.parse().map_err(|_| bad())?);
        }
        let [sockets, cores, threads] = given.map(|number| number.unwrap_or(NonZeroU32::MIN));
        Ok(Self { sockets, cores, threads })
    }
}

impl fmt::Display for CpuTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sockets, cores, threads } = self;
        if *self == Self::of_cores(*cores) {
            write!(f, "{cores}")
        } else {
            write!(f, "sockets={sockets},cores={cores},threads={threads}")
        }
    }
}

/// Which features of the host's processor a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CpuModel {
    /// All that can be given to a guest (KubeVirt's `host-passthrough`).
    #[default]
    Host,
    /// The baseline of x86-64, for hosts that offer more than they can do.
    Minimal,
}

impl CpuModel {
    /// Every model.
    pub const ALL: [Self; 2] = [Self::Host, Self::Minimal];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Minimal => "minimal",
        }
    }
}

/// Sizes of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HugePageSize {
    /// 2 MiB.
    Size2Mi,
    /// 1 GiB.
    Size1Gi,
}

impl HugePageSize {
    /// Every size.
    pub const ALL: [Self; 2] = [Self::Size2Mi, Self::Size1Gi];

    /// Its name, as KubeVirt's `memory.hugepages.pageSize` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size2Mi => "2Mi",
            Self::Size1Gi => "1Gi",
        }
    }

    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size2Mi => 2 << 20,
            Self::Size1Gi => 1 << 30,
        }
    }
}

/// The text names none of the values that there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got `{text}`")]
pub struct ParseHardwareError {
    expected: &'static str,
    text: String,
}

/// The value of this name.
fn named<T: Copy>(
    all: &[T],
    name: impl Fn(T) -> &'static str,
    expected: &'static str,
    text: &str,
) -> Result<T, ParseHardwareError> {
    let found = all.iter().copied().find(|value| name(*value) == text);
    found.ok_or_else(|| ParseHardwareError { expected, text: text.to_owned() })
}

impl FromStr for CpuModel {
    type Err = ParseHardwareError;

    fn from_str(text: &str) -> Result<Self, ParseHardwareError> {
        named(&Self::ALL, Self::name, "host or minimal", text)
    }
}

impl FromStr for HugePageSize {
    type Err = ParseHardwareError;

    fn from_str(text: &str) -> Result<Self, ParseHardwareError> {
        named(&Self::ALL, Self::name, "2Mi or 1Gi", text)
    }
}

/// Who a machine says it is, in its SMBIOS table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The machine's UUID.
    pub uuid: Uuid,
    /// What else it says; of two texts for one field the later counts.
    pub texts: Vec<SmbiosText>,
}

/// One text of the SMBIOS table. Parses `FIELD=TEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmbiosText {
    /// Where it stands.
    pub field: SmbiosField,
    /// What stands there.
    pub text: String,
}

/// Fields of the SMBIOS table: of the system (KubeVirt's `firmware.serial`, and what a cluster sets
/// for all machines), and of the chassis (KubeVirt's `chassis`).
#[expect(missing_docs, reason = "their names say it all")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SmbiosField {
    Serial,
    Manufacturer,
    Product,
    Version,
    Sku,
    Family,
    ChassisManufacturer,
    ChassisVersion,
    ChassisSerial,
    ChassisAsset,
    ChassisSku,
}

impl SmbiosField {
    /// Every field.
    pub const ALL: [Self; 11] = [
        Self::Serial,
        Self::Manufacturer,
        Self::Product,
        Self::Version,
        Self::Sku,
        Self::Family,
        Self::ChassisManufacturer,
        Self::ChassisVersion,
        Self::ChassisSerial,
        Self::ChassisAsset,
        Self::ChassisSku,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Manufacturer => "manufacturer",
            Self::Product => "product",
            Self::Version => "version",
            Self::Sku => "sku",
            Self::Family => "family",
            Self::ChassisManufacturer => "chassis-manufacturer",
            Self::ChassisVersion => "chassis-version",
            Self::ChassisSerial => "chassis-serial",
            Self::ChassisAsset => "chassis-asset",
            Self::ChassisSku => "chassis-sku",
        }
    }
}

impl FromStr for SmbiosText {
    type Err = ParseHardwareError;

    fn from_str(text: &str) -> Result<Self, ParseHardwareError> {
        const EXPECTED: &str = "FIELD=TEXT, FIELD being serial, manufacturer, product, version, \
                                sku, family, or one of chassis-manufacturer, chassis-version, \
                                chassis-serial, chassis-asset, chassis-sku";
        let (field, value) = text.split_once('=').unwrap_or((text, ""));
        let field = named(&SmbiosField::ALL, SmbiosField::name, EXPECTED, field);
        match field {
            Ok(field) if text.contains('=') => Ok(Self { field, text: value.to_owned() }),
            _ => Err(ParseHardwareError { expected: EXPECTED, text: text.to_owned() }),
        }
    }
}

impl fmt::Display for SmbiosText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.field.name(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topologies_parse_and_display() {
        for (text, shape, shown) in [
            ("4", (1, 4, 1), "4"),
            ("cores=4", (1, 4, 1), "4"),
            ("sockets=2", (2, 1, 1), "sockets=2,cores=1,threads=1"),
            ("threads=2,cores=3", (1, 3, 2), "sockets=1,cores=3,threads=2"),
        ] {
            let topology: CpuTopology = text.parse().unwrap();
            let CpuTopology { sockets, cores, threads } = topology;
            assert_eq!((sockets.get(), cores.get(), threads.get()), shape);
            assert_eq!(topology.to_string(), shown);
            assert_eq!(shown.parse(), Ok(topology));
        }
        for text in ["", "0", "-1", "cores=0", "cores", "cores=1,cores=2", "dies=2", "1,2"] {
            let error = text.parse::<CpuTopology>().unwrap_err();
            assert!(error.to_string().ends_with(&format!("got `{text}`")), "{error}");
        }
        let many: CpuTopology = "sockets=4000000000,cores=4000000000".parse().unwrap();
        assert_eq!(many.count(), u32::MAX);
    }

    #[test]
    fn names_parse_back() {
        for model in CpuModel::ALL {
            assert_eq!(model.name().parse(), Ok(model));
        }
        for size in HugePageSize::ALL {
            assert_eq!(size.name().parse(), Ok(size));
        }
        for field in SmbiosField::ALL {
            let text = SmbiosText { field, text: "a=b,c".to_owned() };
            assert_eq!(text.to_string().parse(), Ok(text));
        }
        for text in ["serial", "uuid=1", "=x"] {
            let error = text.parse::<SmbiosText>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("got `{text}`")), "{error}");
        }
    }
}
