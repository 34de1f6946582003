//! Layouts of distributions other than Debian's: which of what a disk offers boots, in which order.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the disks are made by other programs; a helper that cannot make one ends its test"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bootyard_bootload::{Entry, ErrorKind, Listing, Method, Options, find, list};
use bootyard_image::Disk;
use bootyard_image::raw::RawDisk;
use bootyard_testkit::{require_tool, run};
use expect_test::{Expect, expect};
use fs_err::File;

const ROOT: &str = "25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f";
const BOOT: &str = "c2b6d4de-8b4e-4f4f-9d2a-0ad64bb1a5a0";
const MIB: u64 = 1 << 20;

type Files<'a> = &'a [(&'a str, &'a [u8])];

/// Disks of one file system, or of several in an MBR, need no tool to be put together.
fn disk(parts: &[Vec<u8>]) -> Arc<dyn Disk> {
    let [whole] = parts else {
        let mut bytes = vec![0; MIB as usize];
        for (number, part) in parts.iter().enumerate() {
            let entry = 446 + number * 16;
            bytes[entry + 4] = 0x83;
            let (start, len) = (bytes.len() as u32 / 512, part.len() as u32 / 512);
            bytes[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
            bytes[entry + 12..entry + 16].copy_from_slice(&len.to_le_bytes());
            bytes.extend(part);
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        return Arc::new(RawDisk::read_only(bytes));
    };
    Arc::new(RawDisk::read_only(whole.clone()))
}

fn ext4(uuid: &str, files: Files<'_>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("tree"), dir.path().join("fs"));
    fs_err::create_dir(&root).unwrap();
    for (path, bytes) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }
    File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    let mut mke2fs = Command::new("/usr/sbin/mke2fs");
    run(mke2fs.args(["-q", "-F", "-t", "ext4", "-U", uuid, "-d"]).arg(&root).arg(&image));
    fs_err::read(image).unwrap()
}

fn fat(files: Files<'_>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (image, file) = (dir.path().join("fat"), dir.path().join("file"));
    run(Command::new("mkfs.vfat").args(["-i", "1234abcd", "-C"]).arg(&image).arg("2048"));
    for (path, bytes) in files {
        fs_err::write(&file, bytes).unwrap();
        let parents: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        for parent in parents.iter().rev().skip(1) {
            let _ =
                Command::new("mmd").arg("-D").arg("s").arg("-i").arg(&image).arg(parent).output();
        }
        run(Command::new("mcopy").arg("-i").args([&image, &file]).arg(format!("::{path}")));
    }
    fs_err::read(image).unwrap()
}

/// A program for EFI with these sections: headers, and the sections one after the other.
fn efi(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x80;
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x86] = sections.len() as u8;
    for (number, (name, content)) in sections.iter().enumerate() {
        let (at, start) = (0x98 + number * 40, bytes.len() as u32);
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        let stored = content.len().next_multiple_of(512);
        bytes[at + 8..at + 12].copy_from_slice(&(content.len() as u32).to_le_bytes());
        bytes[at + 16..at + 20].copy_from_slice(&(stored as u32).to_le_bytes());
        bytes[at + 20..at + 24].copy_from_slice(&start.to_le_bytes());
        bytes.extend(*content);
        bytes.resize(start as usize + stored, 0);
    }
    bytes
}

fn tools() -> bool {
    ["mke2fs", "mkfs.vfat", "mcopy", "mmd"].into_iter().all(require_tool)
}

/// Entries in lines: `*` for the default, method, partition, title, and what is loaded or wrong.
fn shown(listing: &Listing) -> String {
    let line = |entry: &Entry| {
        let mark = if entry.default { '*' } else { ' ' };
        let what = match (&entry.problem, &entry.kernel) {
            (Some(problem), _) => format!("! {problem}"),
            (None, kernel) => {
                let files = kernel.iter().chain(&entry.initrds).cloned().collect::<Vec<_>>();
                format!("{} [{}]", files.join(" + "), entry.cmdline)
            }
        };
        format!("{mark}{} {} {}: {what}\n", entry.method, entry.partition, entry.title)
    };
    let findings = listing.findings.iter().map(|finding| format!("({finding})\n"));
    listing.entries.iter().map(line).chain(findings).collect()
}

#[track_caller]
fn check(parts: &[Vec<u8>], expected: &Expect) {
    expected.assert_eq(&shown(&list(&disk(parts)).unwrap()));
}

#[test]
fn ubuntu_boots_by_the_stub_in_its_esp_from_a_boot_partition() {
    if !tools() {
        return;
    }
    let stub = format!(
        "search.fs_uuid {BOOT} root hd0,gpt16\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    let config = format!(
        "menuentry 'Ubuntu' --class ubuntu $menuentry_id_option 'gnulinux-simple' {{
         search --no-floppy --fs-uuid --set=root {BOOT}
         linux /vmlinuz-6.8 root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0
         initrd /initrd.img-6.8\n}}
         submenu 'Advanced' {{ menuentry 'old' {{ linux /vmlinuz-6.5 }} }}
         menuentry 'UEFI Firmware Settings' {{ fwsetup }}\n"
    );
    let boot = ext4(
        BOOT,
        &[
            ("/grub/grub.cfg", config.as_bytes()),
            ("/vmlinuz-6.8", b"kernel"),
            ("/initrd.img-6.8", b"initrd"),
        ],
    );
    let esp = fat(&[("/EFI/ubuntu/grub.cfg", stub.as_bytes()), ("/EFI/BOOT/BOOTX64.EFI", b"shim")]);
    let root = ext4(ROOT, &[("/etc/hostname", b"ubuntu")]);
    check(
        &[root, esp, boot],
        &expect![[r#"
            *grub 3 Ubuntu: /vmlinuz-6.8 + /initrd.img-6.8 [root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0]
             grub 3 Advanced>old: ! `/grub/grub.cfg` line 6: `/vmlinuz-6.5` is not on `hd0,msdos3`
             grub 3 UEFI Firmware Settings: ! `/grub/grub.cfg` line 7: `fwsetup` enters the firmware's settings, which is not supported
        "#]],
    );
}

#[test]
fn fedora_boots_the_entry_that_grubenv_names() {
    if !tools() {
        return;
    }
    let entry = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img\noptions root=UUID={ROOT} rootflags=subvol=root $kernelopts\n"
        )
    };
    let env = "# GRUB Environment Block\nsaved_entry=id-6.9.1\nkernelopts=no_timer_check\n###";
    let script = format!(
        "if [ -f ${{config_directory}}/grubenv ]; then\n load_env -f ${{config_directory}}/grubenv\nfi\n\
         set default=\"${{saved_entry}}\"\nsearch --no-floppy --fs-uuid --set=root {BOOT}\ninsmod blscfg\nblscfg\n"
    );
    let boot = ext4(
        BOOT,
        &[
            ("/grub2/grub.cfg", script.as_bytes()),
            ("/grub2/grubenv", env.as_bytes()),
            ("/loader/entries/id-6.9.1.conf", entry("6.9.1").as_bytes()),
            ("/loader/entries/id-6.10.2.conf", entry("6.10.2").as_bytes()),
            ("/vmlinuz-6.9.1", b"old"),
            ("/initramfs-6.9.1.img", b"initrd"),
        ],
    );
    check(
        &[boot],
        &expect![[r#"
             bls 0 Fedora (6.10.2): ! `/loader/entries/id-6.10.2.conf` line 3: `/vmlinuz-6.10.2` is not on `hd0`
            *bls 0 Fedora (6.9.1): /vmlinuz-6.9.1 + /initramfs-6.9.1.img [root=UUID=25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f rootflags=subvol=root no_timer_check]
        "#]],
    );
}

#[test]
fn alpine_boots_by_extlinux() {
    if !tools() {
        return;
    }
    let config = "# Generated by update-extlinux 6.04\nDEFAULT menu.c32\nPROMPT 0\n\
                  MENU TITLE Alpine/Linux Boot Menu\nMENU AUTOBOOT Alpine will be booted automatically in # seconds.\n\
                  TIMEOUT 10\nLABEL virt\n  MENU LABEL Linux ^virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n\
                  \x20 APPEND root=UUID=1 modules=ext4 quiet console=ttyS0,115200n8\n\
                  LABEL lts\n  MENU DEFAULT\n  KERNEL /boot/vmlinuz-lts\n  APPEND initrd=/boot/a,initramfs-virt quiet\n\
                  LABEL memtest\n KERNEL memtest.c32\nMENU SEPARATOR\n";
    let root = ext4(
        ROOT,
        &[
            ("/boot/extlinux.conf", config.as_bytes()),
            ("/boot/vmlinuz-virt", b"kernel"),
            ("/boot/initramfs-virt", b"initrd"),
            ("/boot/vmlinuz-lts", b"kernel"),
            ("/boot/a", b"first"),
        ],
    );
    check(
        std::slice::from_ref(&root),
        &expect![[r#"
         extlinux 0 Linux virt: /boot/vmlinuz-virt + /boot/initramfs-virt [root=UUID=1 modules=ext4 quiet console=ttyS0,115200n8]
        *extlinux 0 lts: /boot/vmlinuz-lts + /boot/a + /boot/initramfs-virt [quiet]
         extlinux 0 memtest: ! `/boot/extlinux.conf` line 17: `memtest.c32` is a program of syslinux, no kernel
    "#]],
    );
    let options = Options { entry: Some("lts".to_owned()), ..Options::default() };
    let plan = find(&disk(&[root]), &options).unwrap();
    assert_eq!((plan.method, plan.initrd.as_slice()), (Method::Extlinux, &b"firstinitrd"[..]));
}

#[test]
fn systemd_boot_takes_images_and_entries_in_the_order_of_the_specification() {
    if !tools() {
        return;
    }
    let uki = |version: &str| {
        let release = format!("ID=arch\nVERSION_ID={version}\nPRETTY_NAME=\"Arch Linux\"\n");
        efi(&[
            (".osrel", release.as_bytes()),
            (".cmdline", b"root=/dev/vda2 rw\n console=ttyS0\0\0"),
            (".linux", b"kernel in an image"),
            (".initrd", b"initrd in an image"),
        ])
    };
    let entry = b"title Debian\nsort-key debian\nversion 6.1\nlinux /debian/linux\n\
                  initrd /debian/initrd\ninitrd /debian/more\noptions root=/dev/vda3\noptions quiet\n";
    let (new, old) = (uki("2"), uki("1"));
    let loader = efi(&[(".sdmagic", b"#### LoaderInfo: systemd-boot 257 ####")]);
    let mut files: Vec<(&str, &[u8])> = vec![
        ("/EFI/BOOT/BOOTX64.EFI", &loader),
        ("/EFI/Linux/new+2-1.efi", &new),
        ("/EFI/Linux/old.efi", &old),
        ("/EFI/Linux/damaged.efi", b"MZ and no more"),
        ("/loader/entries/debian.conf", entry),
        ("/debian/linux", b"kernel"),
        ("/debian/initrd", b"initrd"),
        ("/debian/more", b"more"),
    ];
    check(
        &[fat(&files)],
        &expect![[r#"
        *uki 0 Arch Linux: /EFI/Linux/new+2-1.efi + /EFI/Linux/new+2-1.efi [root=/dev/vda2 rw console=ttyS0]
         uki 0 Arch Linux: /EFI/Linux/old.efi + /EFI/Linux/old.efi [root=/dev/vda2 rw console=ttyS0]
         bls 0 Debian: /debian/linux + /debian/initrd + /debian/more [root=/dev/vda3 quiet]
         uki 0 damaged: ! `/EFI/Linux/damaged.efi`: no section `.linux` in it: this is no unified kernel image
    "#]],
    );
    let plan = find(&disk(&[fat(&files)]), &Options::default()).unwrap();
    assert_eq!(
        (plan.kernel.as_slice(), plan.initrd.as_slice(), plan.console_on_serial),
        (&b"kernel in an image"[..], &b"initrd in an image"[..], true)
    );
    files.push(("/loader/loader.conf", b"timeout 3\ndefault  debian*\n"));
    let plan = find(&disk(&[fat(&files)]), &Options::default()).unwrap();
    assert_eq!((plan.entry.as_str(), plan.initrd.as_slice()), ("Debian", &b"initrdmore"[..]));
    assert_eq!(plan.cmdline, "root=/dev/vda3 quiet");
    let options = Options { entry: Some("old".to_owned()), ..Options::default() };
    assert_eq!(find(&disk(&[fat(&files)]), &options).unwrap().config, "/EFI/Linux/old.efi");
}

#[test]
fn an_image_at_the_firmwares_path_boots_before_all_others() {
    if !tools() {
        return;
    }
    let uki = efi(&[(".linux", b"kernel"), (".profile", b"x"), (".cmdline", b"of a profile")]);
    let root = ext4(ROOT, &[("/boot/grub/grub.cfg", b"menuentry a { linux /k }"), ("/k", b"k")]);
    check(
        &[root, fat(&[("/EFI/BOOT/BOOTX64.EFI", &uki)])],
        &expect![[r#"
        *uki 2 BOOTX64.EFI: /EFI/BOOT/BOOTX64.EFI []
         grub 1 a: /k []
    "#]],
    );
}

#[test]
fn what_does_not_boot_is_named() {
    if !tools() {
        return;
    }
    let mut luks = vec![0; 1 << 20];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    let mut lvm = vec![0; 1 << 20];
    lvm[512..520].copy_from_slice(b"LABELONE");
    let windows =
        fat(&[("/EFI/Microsoft/Boot/bootmgfw.efi", b"MZ"), ("/EFI/BOOT/BOOTX64.EFI", b"MZ")]);
    let broken = ext4(ROOT, &[("/boot/grub/grub.cfg", b"menuentry a {\n linux /k\n")]);
    let parts = [luks, lvm, windows, broken];
    check(
        &parts,
        &expect![[r#"
            (`/boot/grub/grub.cfg` line 1: the block has no `}`)
            (partition 1: an encrypted volume (LUKS), which is not unlocked)
            (partition 2: a physical volume of LVM, which is not read)
            (partition 3: FAT with the boot manager of Windows, which is not booted)
        "#]],
    );
    let error = find(&disk(&parts), &Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}
