//! Who the machine says it is: what the guest finds in its SMBIOS table.

use crate::error::Error;

/// What the guest reads under `/sys/class/dmi/id`. Empty strings stand for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The machine's UUID, in the order in which it is written.
    pub uuid: [u8; 16],
    /// The serial number. `ds=nocloud` and what may follow it tells cloud-init where its data is.
    pub serial: String,
    /// Who made the machine.
    pub manufacturer: String,
    /// What it is called.
    pub product: String,
    /// Its version.
    pub version: String,
    /// Its stock keeping unit.
    pub sku: String,
    /// Its family.
    pub family: String,
    /// What it is in.
    pub chassis: Chassis,
}

/// KubeVirt's `chassis`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chassis {
    /// Who made it.
    pub manufacturer: String,
    /// Its version.
    pub version: String,
    /// Its serial number.
    pub serial: String,
    /// Its owner's name for it.
    pub asset: String,
    /// Its stock keeping unit.
    pub sku: String,
}

/// The most bytes of one string. The specification sets no limit; all of them must fit the table's
/// place.
const TEXT_MAX: usize = 1024;

impl Identity {
    /// A machine of ours with this UUID.
    pub fn new(uuid: [u8; 16]) -> Self {
        let maker = "Bootyard".to_owned();
        Self {
            uuid,
            serial: String::new(),
            manufacturer: maker.clone(),
            product: "Bootyard machine".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sku: String::new(),
            family: String::new(),
            chassis: Chassis { manufacturer: maker, ..Chassis::default() },
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let chassis = &self.chassis;
        for (field, text) in [
            ("serial number", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("product", &self.product),
            ("version", &self.version),
            ("SKU", &self.sku),
            ("family", &self.family),
            ("chassis manufacturer", &chassis.manufacturer),
            ("chassis version", &chassis.version),
            ("chassis serial number", &chassis.serial),
            ("chassis asset tag", &chassis.asset),
            ("chassis SKU", &chassis.sku),
        ] {
            if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
                let what = format!(
                    "expected a {field} of at most {TEXT_MAX} bytes without control characters, \
                     got {text:?}"
                );
                return Err(Error::Config(what));
            }
        }
        Ok(())
    }
}
