//! `bootyard run`, as far as it goes without a guest; the `guest` binary boots one.

use bootyard_testkit::{Cli, qemu_img, require_tool};
use expect_test::expect;

use crate::check;

#[test]
fn a_disk_is_a_volume_unless_it_has_a_slash() {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk"), vec![0; 512]).unwrap();
    check(
        &cli,
        &["run", "--disk", "disk"],
        &expect![[r#"
            exit code: 2
            ----- stdout -----

            ----- stderr -----
            error: there is no volume `disk`
            hint: a file is named with a slash: `./disk`"#]],
    );
    check(
        &cli,
        &["run", "--disk", "./missing.raw"],
        &expect![[r#"
            exit code: 2
            ----- stdout -----

            ----- stderr -----
            error: disk `./missing.raw` does not exist"#]],
    );
}

#[test]
fn what_a_machine_is_given_is_looked_at_first() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk"), idle_sector()).expect("a disk");
    let qemu = ["run", "--engine", "qemu", "--timeout", "1s"];
    for (flags, code, expected) in [
        (
            &["--disk", "./disk", "--memory", "128Gi", "--hugepages", "2Mi"][..],
            8,
            "error: cannot take 65536 huge pages of 2097152 bytes for the guest's memory: ",
        ),
        (
            &["--disk", "./disk", "--memory", "128Gi", "--hugepages", "1Gi"],
            8,
            "error: cannot take 128 huge pages of 1073741824 bytes",
        ),
        (
            &["--disk", "./disk", "--memory", "1536Mi", "--hugepages", "1Gi"],
            2,
            "error: expected memory in whole huge pages of 1073741824 bytes, got 1610612736 bytes",
        ),
        (&["--kernel", "none"], 2, "error: kernel `none` does not exist"),
        (
            &["--kernel", "./disk", "--initrd", "none"],
            2,
            "error: initial RAM disk `none` does not exist",
        ),
        (
            &["--disk", "./disk,serial=a", "--cdrom", "./disk,serial=a"],
            2,
            "error: `./disk` and `./disk` have the same serial number `a`",
        ),
    ] {
        let output = cli.run([&qemu[..], flags].concat());
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.starts_with(expected), "{output}");
        assert!(code == 2 || output.stderr.contains("\nhint: "), "{output}");
    }
}

/// A boot sector that does `cli; hlt` for ever.
fn idle_sector() -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn what_is_no_disk_to_boot_is_refused_at_once() {
    if !require_tool("qemu-system-x86_64") || !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    let work = cli.work();
    fs_err::write(work.join("zero.raw"), vec![0; 1 << 20]).expect("a disk");
    fs_err::write(work.join("secret"), "secret").expect("a file");
    let create = |name: &str, options: &[&str]| {
        let path = work.join(name).display().to_string();
        qemu_img([&["create", "-q", "-f", "qcow2"], options, &[&path, "1M"]].concat());
    };
    let secret = work.join("secret").display().to_string();
    // What a hostile guest could make of its own disk.
    create("evil.raw", &["-F", "raw", "-b", &secret]);
    create("overlay.qcow2", &["-F", "raw", "-b", &secret]);
    let mut text = String::new();
    for disk in ["./zero.raw", "./evil.raw", "./overlay.qcow2", "/dev/null"] {
        text += &format!("{}\n\n", cli.run(["run", "--engine", "qemu", "--disk", disk]));
    }
    expect![[r#"
        exit code: 7
        ----- stdout -----

        ----- stderr -----
        error: nothing to boot was found: `./zero.raw` has no boot sector

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `./evil.raw` begins like a qcow2, but is not named so
        hint: if you made it, import it, or give it a name that ends in `.qcow2`; if a guest wrote it, do not

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot use `./overlay.qcow2` as a disk: the image is an overlay over another file, `$TEST_ENV/work/secret` (at offset 0x8)
        hint: a volume has no such dependence: `bootyard import` the image that it is of

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `/dev/null` is neither a file nor a block device

    "#]].assert_eq(&text);
}

#[test]
fn impossible_machines_are_usage_errors_on_every_engine() {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk.raw"), idle_sector()).expect("a disk");
    let run = |option: &'static str, value: &'static str| {
        let output = cli.run(["run", "--disk", "./disk.raw", option, value]);
        format!("{}: {}", output.code.unwrap_or(-1), output.stderr.trim_end())
    };
    let lines = [run("--memory", "1Mi"), run("--memory", "1Ti"), run("--cpus", "65")];
    expect![[r#"
        2: error: expected 64Mi to 512Gi of memory, got 1Mi
        2: error: expected 64Mi to 512Gi of memory, got 1Ti
        2: error: expected 1 to 64 processors, got 65"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_halted_machine_is_not_started() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk.raw"), idle_sector()).unwrap();
    let arguments = ["run", "--disk", "./disk.raw", "--engine", "qemu", "--run-strategy", "Halted"];
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("Halted"), "{output}");
}

#[test]
fn a_guest_that_does_not_end_is_killed_in_time() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk.raw"), idle_sector()).unwrap();
    let arguments = ["run", "--disk", "./disk.raw", "--engine", "qemu", "--timeout", "2s"];
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(10), "{output}");
    assert!(output.stderr.contains("error: disk: the time limit passed"), "{output}");
}
