//! `bootyard run`, as far as it goes without a guest; the `guest` binary boots one.

use bootyard_testkit::{Cli, require_tool};
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
            hint: a file is named with a slash: `--disk ./disk`"#]],
    );
    check(
        &cli,
        &["run", "--disk", "./missing.raw"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: failed to open file `./missing.raw`: No such file or directory (os error 2)"#]],
    );
}

#[test]
fn a_halted_machine_is_not_started() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk.raw"), vec![0; 512]).unwrap();
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
    // `cli; hlt` for ever, with the signature of a boot sector.
    let mut sector = vec![0; 512];
    sector[..4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    fs_err::write(cli.work().join("disk.raw"), sector).unwrap();
    let arguments = ["run", "--disk", "./disk.raw", "--engine", "qemu", "--timeout", "2s"];
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(10), "{output}");
    assert!(output.stderr.contains("error: disk: the time limit passed"), "{output}");
}
