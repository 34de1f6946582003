//! `bootyard seed build`.

use std::process::Command;

use bootyard_testkit::{Cli, require_tool, run, sha256_file};
use expect_test::expect;

use crate::check;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me";

fn inputs() -> Cli {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("key.pub"), KEY).expect("a writable folder");
    fs_err::write(cli.work().join("user.yaml"), "#cloud-config\nruncmd: [id]\n")
        .expect("a writable folder");
    cli
}

const BUILD: [&str; 8] =
    ["seed", "build", "--hostname", "web-1", "--ssh-key", "key.pub", "--user-data", "user.yaml"];

#[test]
fn an_iso_is_read_by_others_and_always_the_same() {
    if !require_tool("isoinfo") || !require_tool("blkid") {
        return;
    }
    let cli = inputs();
    let build = |name: &str| cli.run([&BUILD[..], &["-o", name]].concat());
    check(
        &cli,
        &[&BUILD[..], &["-o", "a.iso"]].concat(),
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        a.iso
        ----- stderr -----
    "#]],
    );
    assert_eq!(build("b.iso").code, Some(0));
    let [first, second] = ["a.iso", "b.iso"].map(|name| cli.work().join(name));
    assert_eq!(sha256_file(&first), sha256_file(second));
    let label = run(Command::new("blkid").args(["-p", "-o", "value", "-s", "LABEL"]).arg(&first));
    assert_eq!(label.trim(), "CIDATA");
    let user_data = run(Command::new("isoinfo").args(["-R", "-x", "/user-data", "-i"]).arg(first));
    assert_eq!(user_data, "#cloud-config\nruncmd: [id]\n");
}

#[test]
fn a_fat_config_drive_has_its_label() {
    if !require_tool("blkid") {
        return;
    }
    let cli = inputs();
    let options = ["--format", "fat", "--datasource", "configdrive", "-o", "seed.img"];
    let output = cli.run([&BUILD[..], &options].concat());
    assert_eq!(output.code, Some(0), "{output}");
    let seed = cli.work().join("seed.img");
    let label = run(Command::new("blkid").args(["-p", "-o", "value", "-s", "LABEL"]).arg(seed));
    assert_eq!(label.trim(), "config-2");
}

#[test]
fn mistakes_are_caught_before_the_guest_meets_them() {
    let cli = inputs();
    fs_err::write(cli.work().join("bare.yaml"), "runcmd: [id]\n").unwrap();
    fs_err::write(cli.work().join("id"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    let build = ["seed", "build", "-o", "x.iso", "--hostname"];
    let mut text = String::new();
    for rest in [
        ["web-1", "--user-data", "bare.yaml"],
        ["web-1", "--ssh-key", "id"],
        ["web-1", "--ssh-key", "missing.pub"],
        ["web_1", "--user-data", "user.yaml"],
    ] {
        text += &format!("{}\n\n", cli.run([&build[..], &rest].concat()));
    }
    expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `bare.yaml` line 1: expected a header such as `#cloud-config`, got `runcmd: [id]`
        hint: cloud-init ignores user-data without a header: begin a cloud-config with the line `#cloud-config`, a script with `#!/bin/sh`

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `id`: this is a private key
        hint: give the public half, usually the file of the same name with `.pub`; a private key must not leave your machine

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: failed to open file `missing.pub`: No such file or directory (os error 2)

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: invalid value 'web_1' for '--hostname <NAME>': `web_1` is not a host name: expected letters, digits, `-` and `.` only

        For more information, try '--help'.

    "#]].assert_eq(&text);
    assert!(!cli.work().join("x.iso").exists());
}
