//! The tables as the guest follows them, and as `iasl` reads them.

#![expect(clippy::disallowed_methods, reason = "the oracle is a program")]

use std::process::Command;

use bootyard_testkit::require_tool;

use super::*;

fn at(tables: &[u8], address: u64) -> &[u8] {
    &tables[(address - layout::ACPI_TABLES.start) as usize..]
}

fn qword(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// The table at an address, cut to its length, with a sum that was checked.
fn table(tables: &[u8], address: u64) -> &[u8] {
    let table = at(tables, address);
    let len = u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize;
    let sum = table[..len].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0, "{:?}", str::from_utf8(&table[..4]));
    &table[..len]
}

/// Every table but the RSDP, by its signature.
fn all(tables: &[u8]) -> Vec<(&str, &[u8])> {
    let xsdt = table(tables, qword(tables, 24));
    let mut found = vec![xsdt];
    found.extend(xsdt[HEADER_LEN as usize..].chunks(8).map(|at| table(tables, qword(at, 0))));
    found.push(table(tables, qword(found[1], 140)));
    found.into_iter().map(|table| (str::from_utf8(&table[..4]).unwrap(), table)).collect()
}

#[test]
fn every_table_is_reached_and_sums_to_zero() {
    let ids: Vec<u8> = (0..64).collect();
    let tables = tables(&ids);
    assert!(tables.len() as u64 <= layout::ACPI_TABLES.end - layout::ACPI_TABLES.start);
    assert_eq!(&tables[..8], b"RSD PTR ");
    assert_eq!(tables[..20].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let found: Vec<&str> = all(&tables).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, ["XSDT", "FACP", "APIC", "MCFG", "DSDT"]);
}

#[test]
fn the_madt_lists_every_processor() {
    for ids in [&[0][..], &[0, 1], &[0, 1, 2, 4, 5, 6]] {
        let madt = madt(ids);
        let entries: Vec<&[u8]> = madt[44..44 + 8 * ids.len()].chunks(8).collect();
        for (number, (entry, id)) in (0..).zip(entries.into_iter().zip(ids)) {
            assert_eq!(entry, [0, 8, number, *id, 1, 0, 0, 0]);
        }
        assert_eq!(madt.len(), 44 + 8 * ids.len() + 12);
    }
}

/// What `iasl` makes of a table: its source, without words of warning on the way.
fn decompiled(name: &str, table: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(format!("{name}.aml"));
    fs_err::write(&file, table).unwrap();
    let iasl = |flag: &str, file: &std::path::Path| {
        let output = Command::new("iasl").arg(flag).arg(file).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (ok, said) = iasl("-d", &file);
    let bad = ["Error", "Warning", "Invalid", "Incorrect"];
    assert!(ok && !bad.iter().any(|word| said.contains(word)), "{said}");
    let source = file.with_extension("dsl");
    let text = fs_err::read_to_string(&source).unwrap();
    assert!(!text.contains("Unknown") && !text.contains("Invalid"), "{text}");
    let (ok, said) = iasl("-f", &source);
    assert!(ok && said.contains("0 Errors, 0 Warnings"), "{said}\n{text}");
    text
}

#[test]
fn iasl_takes_every_table_apart_and_puts_it_together_again() {
    if !require_tool("iasl") {
        return;
    }
    let tables = tables(&[0, 1, 2, 4, 5, 6]);
    let text: String = all(&tables).iter().map(|(name, table)| decompiled(name, table)).collect();
    for part in [
        "Hardware Reduced (V5) : 1",
        "Reset Register Supported (V2) : 1",
        "Value to cause reset : 01",
        "Name (_S5, Package",
        "PNP0C0C",
        "ACPI0013",
        "PWRB, 0x80)",
        "PNP0A08",
        "QEMU0001",
        "Local Apic ID : 06",
        "Base Address : 00000000E0000000",
    ] {
        let is_there = text.lines().any(|line| {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            line.contains(part)
        });
        assert!(is_there, "{part:?} is not in\n{text}");
    }
}
