//! Disks that are laid out as distributions lay out theirs: what the boot loader says of them, and
//! that they boot. Which kernel it takes from each is tested in `bootload`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bootyard_testkit::{Cli, skip};
use expect_test::expect;

use crate::{need, xtask};

/// The folder of the disks.
fn fixtures() -> Option<PathBuf> {
    Some(xtask(&["fixtures"])?.trim().into())
}

/// What the guest says of itself.
fn said(serial: &str) -> String {
    let lines = serial.lines().filter_map(|line| line.trim_end().split_once("FIXTURE "));
    lines.map(|(_, cmdline)| format!("{cmdline}\n")).collect()
}

/// Boots a disk on the KVM engine. QEMU's emulation of nested virtualisation stands still when several
/// machines start in one lab, so that each has its own.
fn boot(disk: &Path, flags: &str) -> Option<String> {
    let script = format!(
        "export BOOTYARD_HOME=/tmp/home\n\
         bootyard run --engine kvm --memory 192Mi --disk /dev/vda {flags} </dev/null 2>&1"
    );
    let disk = disk.display().to_string();
    let lab = ["lab", "--memory", "768", "--cpus", "1", "--disk", &disk, "--", "sh", "-c", &script];
    xtask(&lab).map(|printed| said(&printed))
}

#[test]
fn xfs_btrfs_and_unified_images_boot_on_the_kvm_engine() {
    let folder = need!(fixtures());
    let disk = |name: &str| folder.join(name).with_extension("raw");
    for (name, flags, expected) in [
        (
            "rhel",
            "--append chosen --entry 0a-6.10.3-200.x86_64",
            "root=UUID=0f6f4a5a-5b1f-4f41-8a39-7a4c5a9f0d02 ro fixture=rhel console=ttyS0 chosen\n",
        ),
        (
            "opensuse",
            "",
            "root=UUID=0f6f4a5a-5b1f-4f41-8a39-7a4c5a9f0d01 console=ttyS0 fixture=opensuse\n",
        ),
        ("uki", "", "root=/dev/vda2 console=ttyS0 fixture=uki\n"),
    ] {
        assert_eq!(need!(boot(&disk(name), flags)), expected, "{name}");
    }
}

#[test]
fn a_kernel_that_is_given_boots_on_the_qemu_engine() {
    let folder = need!(fixtures());
    let file = |name: &str| folder.join(name).display().to_string();
    let output = Cli::from_env().run([
        "run",
        "--engine=qemu",
        "--memory=256Mi",
        "--timeout=120s",
        "--kernel",
        &file("kernel"),
        "--initrd",
        &file("initrd"),
        "--cmdline=console=ttyS0 fixture=given",
        "--append=appended",
    ]);
    assert_eq!(said(&output.stdout), "console=ttyS0 fixture=given appended\n", "{output}");
    assert_eq!(output.code, Some(0), "{output}");
}

#[test]
fn every_layout_is_listed_as_its_loader_would_show_it() {
    let folder = need!(fixtures());
    let files = fs_err::read_dir(&folder).expect("a folder");
    let mut disks: Vec<PathBuf> = files.map(|entry| entry.expect("a file").path()).collect();
    disks.retain(|path| path.extension().is_some());
    disks.sort();
    let mut text = String::new();
    for disk in disks {
        let output = Cli::from_env().run(["boot-entries", &disk.display().to_string()]);
        let name = disk.file_stem().expect("a name").to_string_lossy();
        let _ = writeln!(text, "{name}:\n{}", output.stdout);
    }
    expect![[r#"
        alpine:
        * Linux virt
            from     extlinux `/boot/extlinux.conf`, partition 1
            id       virt
            kernel   /boot/vmlinuz-virt
            initrd   /boot/initramfs-virt
            cmdline  root=UUID=1 modules=sd-mod,usb-storage,ext4 quiet console=ttyS0,115200n8 fixture=alpine

        amazon:
        * Amazon Linux (6.1.94) 2023
            from     bls `/boot/loader/entries/ec2-6.1.conf`, partition 1
            id       ec2-6.1
            kernel   /boot/vmlinuz-6.1.94
            initrd   /boot/initramfs-6.1.94.img
            cmdline  root=UUID=0f6f4a5a-5b1f-4f41-8a39-7a4c5a9f0d01 ro console=tty0 console=ttyS0,115200n8 fixture=amazon

        debian:
        * Debian GNU/Linux
            from     grub `/boot/grub/grub.cfg`, partition 1
            kernel   /boot/vmlinuz-6.1
            initrd   /boot/initrd.img-6.1
            cmdline  root=PARTUUID=1 ro console=tty0 console=ttyS0,115200 fixture=debian
        besides:
            partition 14: no file system that is known

        fedora:
        * Linux (6.10.3-200.x86_64) 40
            from     bls `/loader/entries/0a-6.10.3-200.x86_64.conf`, partition 3
            id       0a-6.10.3-200.x86_64
            kernel   /vmlinuz-6.10.3-200.x86_64
            initrd   /initramfs-6.10.3-200.x86_64.img
            cmdline  root=UUID=0f6f4a5a-5b1f-4f41-8a39-7a4c5a9f0d02 ro fixture=fedora console=ttyS0
          Linux (6.9.12-200.x86_64) 40
            from     bls `/loader/entries/0a-6.9.12-200.x86_64.conf`, partition 3
            id       0a-6.9.12-200.x86_64
            kernel   /vmlinuz-6.9.12-200.x86_64
            initrd   /initramfs-6.9.12-200.x86_64.img
            cmdline  fixture=old
            problem  `/loader/entries/0a-6.9.12-200.x86_64.conf` line 3: `/vmlinuz-6.9.12-200.x86_64` is not on `hd0,gpt3`

        opensuse:
        * openSUSE Leap
            from     grub `/boot/grub2/grub.cfg`, partition 3
            kernel   /boot/vmlinuz
            initrd   /boot/initrd
            cmdline  root=UUID=0f6f4a5a-5b1f-4f41-8a39-7a4c5a9f0d01 console=ttyS0 fixture=opensuse

        rhel:
        * Linux (6.10.3-200.x86_64) 40
            from     bls `/loader/entries/0a-6.10.3-200.x86_64.conf`, partition 3
            id       0a-6.10.3-200.x86_64
            kernel   /vmlinuz-6.10.3-200.x86_64
            initrd   /initramfs-6.10.3-200.x86_64.img
            cmdline  root=UUID=0f6f4a5a-5b1f-4f41-8a39-7a4c5a9f0d02 ro fixture=rhel console=ttyS0
          Linux (6.9.12-200.x86_64) 40
            from     bls `/loader/entries/0a-6.9.12-200.x86_64.conf`, partition 3
            id       0a-6.9.12-200.x86_64
            kernel   /vmlinuz-6.9.12-200.x86_64
            initrd   /initramfs-6.9.12-200.x86_64.img
            cmdline  fixture=old
            problem  `/loader/entries/0a-6.9.12-200.x86_64.conf` line 3: `/vmlinuz-6.9.12-200.x86_64` is not on `hd0,gpt3`

        systemd-boot:
          Memtest
            from     bls `/loader/entries/zz-memtest.conf`, partition 1
            id       zz-memtest
            problem  `/loader/entries/zz-memtest.conf` line 2: `/memtest.efi` is an EFI program, which only firmware can run
        * Arch Linux
            from     bls `/loader/entries/arch.conf`, partition 1
            id       arch
            kernel   /vmlinuz-linux
            initrd   /initramfs-linux.img
            cmdline  root=/dev/vda2 rw console=ttyS0 fixture=systemd-boot

        ubuntu:
        * Ubuntu
            from     grub `/grub/grub.cfg`, partition 16
            kernel   /vmlinuz
            initrd   /initrd.img
            cmdline  root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0 fixture=ubuntu

        uki:
        * Debian GNU/Linux 12
            from     uki `/EFI/Linux/linux-6.1.efi`, partition 1
            id       linux-6.1
            kernel   /EFI/Linux/linux-6.1.efi
            initrd   /EFI/Linux/linux-6.1.efi
            cmdline  root=/dev/vda2 console=ttyS0 fixture=uki

        whole-disk:
        * Debian GNU/Linux
            from     grub `/boot/grub/grub.cfg`, the whole disk
            kernel   /@/boot/vmlinuz
            initrd   /@/boot/initrd
            cmdline  root=UUID=1 rootflags=subvol=@ console=ttyS0 fixture=whole-disk

    "#]].assert_eq(&text);
}
