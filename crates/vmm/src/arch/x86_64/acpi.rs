//! The ACPI tables: what tells the guest about processors, interrupts, PCI and how to power off.
//!
//! A hardware-reduced platform (ACPI 6.5 §4.1) needs neither FACS nor power-management timer: sleep
//! and reset are two I/O ports, and events come through a generic event device.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, BufferData, Device, EISAName, Equal, IO, If,
    Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Return, Scope,
    Uuid, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::layout;
use crate::pci;

const OEM: [u8; 6] = *b"BOOTYD";
const OEM_TABLE: [u8; 8] = *b"BOOTYARD";
const OEM_REVISION: u32 = 1;
/// Size of the header that every table begins with (ACPI 6.5 §5.2.6).
const HEADER_LEN: u32 = 36;
/// Tables begin at multiples of this: what the RSDP needs (ACPI 6.5 §5.2.5.1), and tidy for others.
const ALIGN: u64 = 16;

/// The value that asks for state S5 in the sleep control register, and is in `_S5`.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;
/// The reset register.
pub(crate) const RESET_PORT: u16 = layout::POWER_PORTS.start as u16 + 2;
/// The value that the guest writes to it.
pub(crate) const RESET_VALUE: u8 = 1;

/// FADT boot architecture flags (ACPI 6.5 table 5.11): there is no VGA to probe for.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// Notification that a button was pressed (ACPI 6.5 table 5.186).
const BUTTON_PRESSED: u8 = 0x80;
/// The functions of a PCI host bridge's `_DSM` (PCI Firmware 3.3 §4.6).
const PCI_DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// `_DSM` function 5: whether the guest must keep the resources that firmware assigned.
const DSM_KEEP_RESOURCES: u8 = 5;

/// The tables for a machine whose processors have these APIC identifiers, as they lie from the start of
/// [`layout::ACPI_TABLES`]: the RSDP first.
pub(crate) fn tables(apic_ids: &[u8]) -> Vec<u8> {
    let mut placed = Placed { bytes: vec![0; Rsdp::len().next_multiple_of(ALIGN as usize)] };
    let dsdt = placed.add(&dsdt());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt(dsdt), madt(apic_ids), mcfg()] {
        xsdt.add_entry(placed.add(&table));
    }
    let xsdt = placed.add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    placed.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    placed.bytes
}

/// The tables so far, each at a known address.
struct Placed {
    bytes: Vec<u8>,
}

impl Placed {
    /// Appends a table and tells its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let address = layout::ACPI_TABLES.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN as usize), 0);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A one-byte register at an I/O port.
fn power_register(port: u64) -> GAS {
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // No fixed-hardware buttons: the power button is a device of its own.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    fadt.sleep_control_reg = power_register(layout::POWER_PORTS.start);
    fadt.sleep_status_reg = power_register(layout::POWER_PORTS.start + 1);
    fadt.reset_reg = power_register(RESET_PORT.into());
    fadt.reset_value = RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(apic_ids: &[u8]) -> Vec<u8> {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for (number, id) in (0..).zip(apic_ids) {
        madt.add_structure(ProcessorLocalApic::new(number, *id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC as u32, 0));
    bytes(&madt)
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    bytes(&mcfg)
}

/// The namespace: every device that is not found by probing.
fn dsdt() -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, 2, OEM, OEM_TABLE, OEM_REVISION);
    let system_bus =
        [serial(), clock(), panic_device(), power_button(), event_device(), pci_root()].concat();
    dsdt.append_slice(&Scope::raw("_SB_".into(), system_bus));
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &s5)));
    dsdt.as_slice().to_vec()
}

fn serial() -> Vec<u8> {
    let ports = io(layout::SERIAL_PORTS);
    let irq = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ);
    bytes(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq])),
        ],
    ))
}

/// The battery-backed clock, without its interrupt: nothing here has an alarm.
fn clock() -> Vec<u8> {
    let ports = io(layout::CMOS_PORTS);
    bytes(&Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    ))
}

fn panic_device() -> Vec<u8> {
    let port = io(layout::PANIC_PORT);
    bytes(&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    ))
}

fn power_button() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    bytes(&Device::new("PWRB".into(), vec![&hid]))
}

/// Carries events that have no fixed hardware: one interrupt line, whose method names the device.
fn event_device() -> Vec<u8> {
    let irq = Interrupt::new(true, true, false, false, layout::EVENT_IRQ);
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    bytes(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&irq])),
            &Method::new("_EVT".into(), 1, true, vec![&notify]),
        ],
    ))
}

/// The PCI Express root, and the claim on its configuration space without which Linux ignores it.
fn pci_root() -> Vec<u8> {
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let config = io(pci::CONFIG_PORTS);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_WINDOW.start as u32,
        (layout::PCI_WINDOW.end - 1) as u32,
        None,
    );
    let root = bytes(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &config, &window])),
            &PciDsm,
        ],
    ));
    let ecam_len = (layout::ECAM.end - layout::ECAM.start) as u32;
    let ecam = Memory32Fixed::new(true, layout::ECAM.start as u32, ecam_len);
    let board = bytes(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    ));
    [root, board].concat()
}

/// `_DSM(UUID, revision, function, arguments)`: answers that BARs stay where they are.
struct PciDsm;

impl Aml for PciDsm {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let uuid = Uuid::new(PCI_DSM);
        let supported = BufferData::new(vec![1 | 1 << DSM_KEEP_RESOURCES]);
        let none = BufferData::new(vec![0]);
        let (which, function) = (Arg(0), Arg(2));
        let is_query = Equal::new(&function, &ZERO);
        let is_keep = Equal::new(&function, &DSM_KEEP_RESOURCES);
        let is_pci = Equal::new(&which, &uuid);
        let answer_query = Return::new(&supported);
        let answer_keep = Return::new(&ZERO);
        let query = If::new(&is_query, vec![&answer_query]);
        let keep = If::new(&is_keep, vec![&answer_keep]);
        let pci = If::new(&is_pci, vec![&query, &keep]);
        let nothing = Return::new(&none);
        Method::new("_DSM".into(), 4, false, vec![&pci, &nothing]).to_aml_bytes(sink);
    }
}

fn io(ports: std::ops::Range<u64>) -> IO {
    IO::new(ports.start as u16, ports.start as u16, 1, (ports.end - ports.start) as u8)
}

#[cfg(test)]
mod tests;
