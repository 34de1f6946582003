//! The guest's disk: partitions, file systems and boot code in one file, without a loop device.

use std::fmt::Write as _;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use fs_err::OpenOptions;

use super::tree::Tree;
use crate::sh;

/// The root partition's identifier in the GPT.
pub(super) const ROOT_PARTUUID: &str = "b007a12d-0000-4000-8000-000000000003";
/// The EFI system partition's identifier in the GPT.
pub(super) const ESP_PARTUUID: &str = "b007a12d-0000-4000-8000-000000000002";
/// The root file system's identifier.
pub(super) const ROOT_FS_UUID: &str = "b007a12d-0000-4000-8000-0000000000f5";

const DISK_GUID: &str = "b007a12d-0000-4000-8000-000000000000";
const ESP_VOLUME_ID: &str = "B007A12D";

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// As small as lets a guest grow its root and write logs.
const DISK_MIB: u64 = 2048;

/// A partition. The disk's first and last MiB are left to the two partition tables.
struct Partition {
    start_mib: u64,
    size_mib: u64,
    /// The type by which firmware and systemd know it (UEFI 2.10 §5.3.3, GRUB's manual §3.4,
    /// the Discoverable Partitions Specification).
    kind: &'static str,
    uuid: &'static str,
    name: &'static str,
}

const BIOS: Partition = Partition {
    start_mib: 1,
    size_mib: 1,
    kind: "21686148-6449-6E6F-744E-656564454649",
    uuid: "b007a12d-0000-4000-8000-000000000001",
    name: "bios",
};
const ESP: Partition = Partition {
    start_mib: 2,
    size_mib: 32,
    kind: "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    uuid: ESP_PARTUUID,
    name: "esp",
};
const ROOT: Partition = Partition {
    start_mib: 34,
    size_mib: DISK_MIB - 34 - 1,
    kind: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
    uuid: ROOT_PARTUUID,
    name: "root",
};

/// Writes the whole disk into a new raw image.
pub(super) fn assemble(tree: &Tree, work: &Path, log: &Path) -> Result<PathBuf> {
    let raw = work.join("disk.raw");
    fs_err::File::create(&raw)?.set_len(DISK_MIB * MIB)?;
    partition(&raw, work, log)?;
    fill_esp(&raw, tree, work)?;
    fill_root(&raw, tree, work, log)?;
    install_boot_code(&raw, tree)?;
    Ok(raw)
}

fn partition(raw: &Path, work: &Path, log: &Path) -> Result<()> {
    let script = work.join("sfdisk.script");
    fs_err::write(&script, sfdisk_script())?;
    let line = format!(
        "sfdisk --no-reread --no-tell-kernel {} < {}",
        sh::quote(&raw.to_string_lossy()),
        sh::quote(&script.to_string_lossy())
    );
    sh::run_logged(sh::cmd("sh").args(["-c", &line]), log)
}

fn sfdisk_script() -> String {
    let mut script = format!("label: gpt\nlabel-id: {DISK_GUID}\nunit: sectors\n");
    for Partition { start_mib, size_mib, kind, uuid, name } in [BIOS, ESP, ROOT] {
        let (start, size) = (start_mib * MIB / SECTOR, size_mib * MIB / SECTOR);
        writeln!(script, "start={start}, size={size}, type={kind}, uuid={uuid}, name={name}")
            .expect("to a string");
    }
    script
}

/// Makes the EFI system partition: shim where firmware looks, GRUB beside it, and a configuration
/// that leads to the one in the root file system.
fn fill_esp(raw: &Path, tree: &Tree, work: &Path) -> Result<()> {
    let offset = (ESP.start_mib * MIB / SECTOR).to_string();
    let kib = (ESP.size_mib * 1024).to_string();
    let mut mkfs = sh::cmd("mkfs.vfat");
    mkfs.args(["-F", "16", "-n", "ESP", "-i", ESP_VOLUME_ID, "--offset", &offset]);
    sh::output(mkfs.arg(raw).arg(kib))?;
    let config = work.join("esp.cfg");
    fs_err::write(
        &config,
        format!(
            "search.fs_uuid {ROOT_FS_UUID} root\nset prefix=($root)/boot/grub\n\
             configfile $prefix/grub.cfg\n"
        ),
    )?;
    let image = format!("{}@@{}", raw.display(), ESP.start_mib * MIB);
    sh::output(sh::cmd("mmd").args(["-i", &image, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"]))?;
    for (from, to) in [
        (&tree.shim, "::/EFI/BOOT/BOOTX64.EFI"),
        (&tree.grub_efi, "::/EFI/BOOT/grubx64.efi"),
        (&config, "::/EFI/debian/grub.cfg"),
    ] {
        sh::output(sh::cmd("mcopy").args(["-i", &image]).arg(from).arg(to))?;
    }
    Ok(())
}

/// Makes the root file system with the tree's files. Their owners are kept by root's rights, or
/// by fakeroot's memory.
fn fill_root(raw: &Path, tree: &Tree, work: &Path, log: &Path) -> Result<()> {
    let root = work.join("root");
    fs_err::create_dir(&root)?;
    let [root, tar, raw] = [&root, &tree.tar, raw].map(|path| sh::quote(&path.to_string_lossy()));
    let offset = ROOT.start_mib * MIB;
    let kib = ROOT.size_mib * 1024;
    let script = format!(
        "tar --extract --numeric-owner --file {tar} --directory {root} && \
         mke2fs -q -t ext4 -m 1 -L root -U {ROOT_FS_UUID} -d {root} \
         -E offset={offset},hash_seed={ROOT_FS_UUID},lazy_itable_init=0,lazy_journal_init=0 \
         {raw} {kib}k"
    );
    let mut command = if sh::is_root()? { sh::cmd("env") } else { sh::cmd("fakeroot") };
    sh::run_logged(command.args(["sh", "-c", &script]), log)
}

/// Puts GRUB where a BIOS starts it.
fn install_boot_code(raw: &Path, tree: &Tree) -> Result<()> {
    let first = BIOS.start_mib * MIB / SECTOR;
    let boot = master_boot_code(&fs_err::read(&tree.boot_img)?, first)?;
    let core = core_image(&fs_err::read(&tree.core_img)?, first, BIOS.size_mib * MIB)?;
    let mut disk = OpenOptions::new().write(true).open(raw)?;
    disk.write_all(&boot)?;
    disk.seek(SeekFrom::Start(first * SECTOR))?;
    disk.write_all(&core)?;
    Ok(())
}

/// Where the partition table begins in the master boot record; what lies before it is code.
const CODE_LEN: usize = 440;
/// Where boot.img reads the sector number of core.img from (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`).
const KERNEL_SECTOR_AT: usize = 0x5C;
/// Where boot.img jumps over its repair of a wrong drive number (`GRUB_BOOT_MACHINE_DRIVE_CHECK`).
const DRIVE_CHECK_AT: usize = 0x66;
/// Where core.img's first sector names the sector at which its rest begins: its last block list
/// entry (`GRUB_BOOT_MACHINE_LIST_SIZE` is 12).
const REST_SECTOR_AT: usize = SECTOR as usize - 12;

/// GRUB's boot.img as code that loads core.img from sector `first`.
fn master_boot_code(boot: &[u8], first: u64) -> Result<Vec<u8>> {
    let mut code = boot.get(..CODE_LEN).context("GRUB's boot.img is too short")?.to_vec();
    code[KERNEL_SECTOR_AT..KERNEL_SECTOR_AT + 8].copy_from_slice(&first.to_le_bytes());
    // Two `nop`s instead of the jump: some BIOSes hand over a drive number that is not a disk's.
    code[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2].copy_from_slice(&[0x90, 0x90]);
    Ok(code)
}

/// GRUB's core.img, knowing that it lies at sector `first`.
fn core_image(core: &[u8], first: u64, room: u64) -> Result<Vec<u8>> {
    ensure!(core.len() as u64 <= room, "GRUB's core.img of {} bytes has no room", core.len());
    ensure!(core.len() as u64 > SECTOR, "GRUB's core.img is too short");
    let mut core = core.to_vec();
    core[REST_SECTOR_AT..REST_SECTOR_AT + 8].copy_from_slice(&(first + 1).to_le_bytes());
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_and_leave_room_for_both_tables() {
        let mut end = 1;
        for partition in [BIOS, ESP, ROOT] {
            assert_eq!(partition.start_mib, end);
            end += partition.size_mib;
        }
        assert_eq!(end, DISK_MIB - 1);
    }

    #[test]
    fn boot_code_points_to_the_core_image_and_the_core_image_to_its_rest() {
        let boot = master_boot_code(&[0xEE; 512], 2048).unwrap();
        assert_eq!(boot.len(), 440);
        assert_eq!(boot[0x5C..0x64], 2048_u64.to_le_bytes());
        assert_eq!(boot[0x66..0x68], [0x90, 0x90]);
        assert_eq!(boot.iter().filter(|b| **b == 0xEE).count(), 440 - 10);

        let core = core_image(&[0xEE; 1024], 2048, MIB).unwrap();
        assert_eq!(core[0x1F4..0x1FC], 2049_u64.to_le_bytes());
        assert_eq!(core.iter().filter(|b| **b == 0xEE).count(), 1024 - 8);
    }

    #[test]
    fn boot_code_of_another_size_is_refused() {
        assert!(master_boot_code(&[0; 439], 2048).is_err());
        assert!(core_image(&[0; 512], 2048, MIB).is_err());
        assert!(core_image(&[0; 1025], 2048, 1024).is_err());
    }
}
