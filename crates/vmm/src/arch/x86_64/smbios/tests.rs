//! The table as `dmidecode` reads it, and its bytes.

#![expect(clippy::disallowed_methods, reason = "the oracle is a program")]

use std::process::Command;

use bootyard_testkit::{require_tool, run};

use super::*;
use crate::config::tests::config;
use crate::cpu::CpuTopology;
use crate::identity::Chassis;

fn sample() -> MachineConfig {
    let mut config = config();
    config.memory = 5 << 30;
    let [sockets, cores, threads] = [2, 3, 2].map(|n| n.try_into().unwrap());
    config.topology = CpuTopology { sockets, cores, threads };
    config.identity = Identity {
        serial: "ds=nocloud;h=vm".to_owned(),
        sku: "sku-1".to_owned(),
        family: "servers".to_owned(),
        chassis: Chassis {
            manufacturer: "Case & Co".to_owned(),
            version: "c1".to_owned(),
            serial: "c-42".to_owned(),
            asset: "rack 7".to_owned(),
            sku: "c-sku".to_owned(),
        },
        ..Identity::new(*b"\x5d\x30\x7c\xa9\xb3\xef\x42\x8c\x88\x61\x06\xe7\x2d\x69\xf2\x23")
    };
    config
}

/// What `dmidecode` makes of a table. It reads a dump: the entry point, and the table at offset 32.
fn decoded(table: &[u8]) -> Option<String> {
    if !require_tool("dmidecode") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    let mut bytes = table.to_vec();
    // In a dump the address is an offset in the file.
    bytes[16..24].copy_from_slice(&(TABLE_AT as u64).to_le_bytes());
    bytes[5] = 0;
    bytes[5] = bytes[..ENTRY_LEN].iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    fs_err::write(&dump, bytes).unwrap();
    Some(run(Command::new("dmidecode").arg("--from-dump").arg(&dump)))
}

#[test]
fn dmidecode_reads_every_structure() {
    let Some(text) = decoded(&table(&sample())) else { return };
    for line in [
        "SMBIOS 3.7.0 present.",
        "\tUUID: 5d307ca9-b3ef-428c-8861-06e72d69f223",
        "\tSerial Number: ds=nocloud;h=vm",
        "\tManufacturer: Bootyard",
        "\tProduct Name: Bootyard machine",
        "\tSKU Number: sku-1",
        "\tFamily: servers",
        "\tManufacturer: Case & Co",
        "\tAsset Tag: rack 7",
        "\tSocket Designation: CPU 1",
        "\tCore Count: 3",
        "\tThread Count: 6",
        "\tMaximum Capacity: 5 GB",
        "\tSize: 5 GB",
        "\tRange Size: 3 GB",
        "\tStarting Address: 0x00100000000",
        "\tRange Size: 2 GB",
        "\tStatus: No errors detected",
        "End Of Table",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    for word in ["BAD", "TRUNCATED", "invalid", "Wrong", "OUT OF SPEC"] {
        assert!(!text.contains(word), "{word} in\n{text}");
    }
}

#[test]
fn the_bytes_are_these() {
    let table = table(&sample());
    let sum = table[..ENTRY_LEN].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!((&table[..5], sum), (&b"_SM3_"[..], 0));
    let address = u64::from_le_bytes(table[16..24].try_into().unwrap());
    assert_eq!(address, layout::SMBIOS.start + TABLE_AT as u64);
    let len = u32::from_le_bytes(table[12..16].try_into().unwrap()) as usize;
    assert_eq!(TABLE_AT + len, table.len());
    let system = table.windows(4).position(|bytes| bytes == [1, 0x1b, 0, 1]).unwrap();
    let expected = [
        &[1, 0x1b, 0, 1, 1, 2, 3, 4][..],
        &[0xa9, 0x7c, 0x30, 0x5d, 0xef, 0xb3, 0x8c, 0x42],
        &[0x88, 0x61, 0x06, 0xe7, 0x2d, 0x69, 0xf2, 0x23],
        &[6, 5, 6],
        b"Bootyard\0Bootyard machine\0",
        env!("CARGO_PKG_VERSION").as_bytes(),
        b"\0ds=nocloud;h=vm\0sku-1\0servers\0\0",
    ]
    .concat();
    assert_eq!(&table[system..system + expected.len()], expected);
    assert!(table.ends_with(&[127, 4, 0x00, 0x7f, 0, 0]));
}

#[test]
fn a_machine_without_words_has_a_table_too() {
    let mut config = config();
    let identity = &mut config.identity;
    for text in [&mut identity.manufacturer, &mut identity.product, &mut identity.version] {
        text.clear();
    }
    identity.chassis = Chassis::default();
    let Some(text) = decoded(&table(&config)) else { return };
    assert!(text.contains("\tSerial Number: Not Specified"), "{text}");
}

#[test]
fn the_longest_words_and_the_most_packages_fit_their_place() {
    let mut config = sample();
    let long = "x".repeat(1024);
    let identity = &mut config.identity;
    for text in [
        &mut identity.serial,
        &mut identity.manufacturer,
        &mut identity.product,
        &mut identity.version,
        &mut identity.sku,
        &mut identity.family,
        &mut identity.chassis.manufacturer,
        &mut identity.chassis.version,
        &mut identity.chassis.serial,
        &mut identity.chassis.asset,
        &mut identity.chassis.sku,
    ] {
        text.clone_from(&long);
    }
    config.topology.sockets = 64.try_into().unwrap();
    config.identity.check().unwrap();
    let room = layout::SMBIOS.end - layout::SMBIOS.start;
    assert!(table(&config).len() as u64 <= room);
    config.identity.sku.push('x');
    assert!(config.identity.check().unwrap_err().to_string().contains("SKU of at most 1024"));
}
