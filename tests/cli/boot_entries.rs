//! `bootyard boot-entries`, and the flags of `run` that say what is booted.

use std::path::Path;
use std::process::Command;

use bootyard_testkit::{Cli, require_tool, run};
use expect_test::expect;

/// A disk with one menu, of which one entry boots and the other does not.
fn disk(cli: &Cli) -> Option<String> {
    if !require_tool("mke2fs") {
        return None;
    }
    let tree = cli.work().join("tree");
    fs_err::create_dir_all(tree.join("boot/grub")).expect("a folder");
    let menu = "menuentry one --id first { linux /k root=LABEL=a quiet\ninitrd /i }\n\
                menuentry two { chainloader +1 }\n";
    for (name, text) in [("boot/grub/grub.cfg", menu), ("k", "kernel"), ("i", "initrd")] {
        fs_err::write(tree.join(name), text).expect("a file");
    }
    let image = cli.work().join("disk.raw");
    let mut mke2fs = Command::new("/usr/sbin/mke2fs");
    run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).args([&tree, &image]).arg("4M"));
    Some(image.display().to_string())
}

#[test]
fn entries_are_listed_for_people_and_for_programs() {
    let cli = Cli::from_env();
    let Some(disk) = disk(&cli) else { return };
    let output = cli.run(["boot-entries", &disk]);
    expect![[r#"
        exit code: 0
        ----- stdout -----
        * one
            from     grub `/boot/grub/grub.cfg`, the whole disk
            id       first
            kernel   /k
            initrd   /i
            cmdline  root=LABEL=a quiet
          two
            from     grub `/boot/grub/grub.cfg`, the whole disk
            problem  `/boot/grub/grub.cfg` line 3: `chainloader` starts another boot loader, as Windows has one, which is not supported
        ----- stderr -----
        hint: the default entry does not speak on the serial port; `run --append console=ttyS0` shows its kernel's messages"#]].assert_eq(&output.to_string());
    let output = cli.run(["boot-entries", "--json", &disk]);
    expect![[r#"
        {"image":"$TEST_ENV/work/disk.raw","entries":[{"title":"one","id":"first","default":true,"method":"grub","partition":0,"config":"/boot/grub/grub.cfg","kernel":"/k","initrds":["/i"],"cmdline":"root=LABEL=a quiet","console_on_serial":false,"problem":null},{"title":"two","id":null,"default":false,"method":"grub","partition":0,"config":"/boot/grub/grub.cfg","kernel":null,"initrds":[],"cmdline":"","console_on_serial":false,"problem":"`/boot/grub/grub.cfg` line 3: `chainloader` starts another boot loader, as Windows has one, which is not supported"}],"findings":[]}
    "#]].assert_eq(&output.stdout);
}

#[test]
fn a_disk_that_does_not_boot_has_an_exit_code_and_says_what_it_holds() {
    let cli = Cli::from_env();
    let image = cli.work().join("lvm.raw");
    let mut bytes = vec![0; 1 << 20];
    bytes[512..520].copy_from_slice(b"LABELONE");
    fs_err::write(&image, bytes).expect("a file");
    let output = cli.run([Path::new("boot-entries"), &image]);
    expect![[r#"
        exit code: 7
        ----- stdout -----

        ----- stderr -----
        error: nothing to boot was found on `$TEST_ENV/work/lvm.raw` (whole disk: a physical volume of LVM, which is not read)
        hint: `bootyard run --engine qemu` boots through firmware as a PC would; `run --kernel` starts a kernel of yours"#]].assert_eq(&output.to_string());
}

#[test]
fn flags_that_nothing_would_come_of_are_refused() {
    let cli = Cli::from_env();
    let Some(disk) = disk(&cli) else { return };
    let missing = cli.run(["run", "--kernel", "/nowhere/vmlinuz"]);
    expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: kernel `/nowhere/vmlinuz` does not exist"#]]
    .assert_eq(&missing.to_string());
    let both = cli.run(["run", "--kernel", &disk, "--entry", "a", "--disk", &disk]);
    assert_eq!(both.code, Some(2), "{both}");
}
