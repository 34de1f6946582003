//! `bootyard seed show` and `bootyard seed diff`.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use bootyard_testkit::{Cli, qemu_img, require_tool, run};
use expect_test::expect;

use crate::check;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me";

/// Two seeds for the same machine, `a.iso` and `b.img`.
fn seeds() -> Cli {
    let cli = Cli::from_env();
    let write = |name: &str, text: &str| {
        fs_err::write(cli.work().join(name), text).expect("a writable folder");
    };
    write("key.pub", KEY);
    write("user.yaml", "#cloud-config\npassword: secret\nruncmd: [sync]\n");
    write("other.yaml", "#cloud-config\npassword: secret\nruncmd: [false]\n");
    write("script", "#!/bin/sh\ntrue\n");
    write("net.yaml", "version: 2\n");
    let build = ["seed", "build", "--hostname", "web-1", "--ssh-key", "key.pub"];
    for rest in [
        &["-o", "a.iso", "--user-data", "user.yaml", "--network-config", "net.yaml"][..],
        &[
            "-o",
            "same.img",
            "--user-data",
            "user.yaml",
            "--network-config",
            "net.yaml",
            "--format",
            "fat",
        ],
        &["-o", "b.img", "--user-data", "other.yaml", "--format", "fat"],
        &[
            "-o",
            "two.iso",
            "--user-data",
            "user.yaml",
            "--user-data",
            "script",
            "--datasource",
            "configdrive",
        ],
    ] {
        let output = cli.run([&build[..], rest].concat());
        assert_eq!(output.code, Some(0), "{output}");
    }
    cli
}

#[test]
fn what_an_image_says_does_not_act_on_the_terminal() {
    let cli = Cli::from_env();
    let build = |image: &str, id: &str| {
        let write = |name: &str, text: &str| {
            fs_err::write(cli.work().join(name), text).expect("a writable folder");
        };
        write("meta-data", &format!("instance-id: \"{id}\"\n"));
        write("user-data", &format!("#cloud-config\n# \u{1b}[31m{id}\r\n\tx\n"));
        let files = ["--from-file", "meta-data", "--from-file", "user-data", "--label", "CIDATA"];
        let create = ["create", "config-disk", image, "--type", "configmap"];
        let output = cli.run([&create[..], &files].concat());
        assert_eq!(output.code, Some(0), "{output}");
    };
    build("a.iso", "a\\u001b[31mRED\\nlabel   X");
    build("b.iso", "b\\u001b[31mRED\\nlabel   X");
    let shown = cli.run(["seed", "show", "a.iso"]).stdout;
    let compared = cli.run(["seed", "diff", "a.iso", "b.iso"]).stdout;
    assert!(shown.contains("instance-id   a\\u{1b}[31mRED\\nlabel   X\n"), "{shown}");
    assert!(compared.contains("instance-id: a\\u{1b}[31mRED\\nlabel   X \u{2192} b"), "{compared}");
    assert!(compared.contains("\n-# \\u{1b}[31ma"), "{compared}");
    assert!(compared.contains("\n \tx\n"), "{compared}");
    for text in [shown, compared] {
        assert!(!text.contains(['\u{1b}', '\r']) && !text.contains("\nlabel   X"), "{text}");
    }
}

#[test]
fn a_seed_is_shown_without_its_secrets() {
    let cli = seeds();
    check(
        &cli,
        &["seed", "show", "a.iso"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        image         a.iso
        file system   ISO 9660 with Rock Ridge
        label         CIDATA
        data source   nocloud
        instance-id   c6d9770f-afd4-5f89-9d1a-28d1dc62c4b9
        host name     web-1
        ssh key       ssh-ed25519 SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA me
        user-data     text/cloud-config, 46 bytes
        network       version 2, 11 bytes
        file          meta-data, 208 bytes
        file          network-config, 11 bytes
        file          user-data, 46 bytes
        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["seed", "show", "two.iso"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        image         two.iso
        file system   ISO 9660 with Rock Ridge
        label         config-2
        data source   configdrive
        instance-id   c6d9770f-afd4-5f89-9d1a-28d1dc62c4b9
        host name     web-1
        ssh key       ssh-ed25519 SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA me
        user-data     text/cloud-config, 46 bytes
                      text/x-shellscript, 15 bytes
        file          openstack/latest/meta_data.json, 252 bytes
        file          openstack/latest/user_data, 507 bytes
        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["seed", "show", "b.img", "--json"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        {"image":"b.img","type":"vfat","file_system":"FAT12","partition":null,"label":"CIDATA","datasource":"nocloud","instance_id":"c6d9770f-afd4-5f89-9d1a-28d1dc62c4b9","hostname":"web-1","ssh_keys":[{"type":"ssh-ed25519","fingerprint":"SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA","comment":"me"}],"user_data":{"size_bytes":47,"parts":[{"content_type":"text/cloud-config","file_name":null,"compressed":false,"size_bytes":47}]},"vendor_data":null,"network_config":null,"files":[{"path":"meta-data","size_bytes":208},{"path":"user-data","size_bytes":47}],"loose_links":[],"problems":[]}
        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["seed", "show", "b.img", "--file", "/user-data"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        #cloud-config
        password: secret
        runcmd: [false]
        ----- stderr -----
    "#]],
    );
}

#[test]
fn fingerprints_are_those_of_ssh_keygen() {
    if !require_tool("ssh-keygen") {
        return;
    }
    let cli = seeds();
    let key = cli.work().join("key.pub");
    let shown = run(Command::new("ssh-keygen").arg("-lf").arg(key));
    let fingerprint = shown.split(' ').nth(1).unwrap();
    assert!(cli.run(["seed", "show", "a.iso"]).stdout.contains(fingerprint), "{shown}");
}

#[test]
fn an_image_in_another_format_is_shown_alike() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = seeds();
    let [raw, qcow2] = ["a.iso", "a.qcow2"].map(|name| cli.work().join(name));
    let [raw, qcow2] = [raw, qcow2].map(|path| path.display().to_string());
    qemu_img(["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &qcow2]);
    let [raw, qcow2] = ["a.iso", "a.qcow2"].map(|name| cli.run(["seed", "show", name]).stdout);
    assert_eq!(raw.replace("a.iso", "a.qcow2"), qcow2);
}

#[test]
fn files_are_extracted_for_their_owner_and_never_over_others() {
    let cli = seeds();
    let folder = cli.work().join("out");
    assert_eq!(cli.run(["seed", "show", "two.iso", "--extract", "out"]).code, Some(0));
    assert_eq!(fs_err::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let user_data = folder.join("openstack/latest/user_data");
    assert!(fs_err::read_to_string(user_data).unwrap().contains("#!/bin/sh\ntrue\n"));
    let before = fs_err::read_dir(cli.work()).unwrap().count();
    assert_eq!(cli.run(["seed", "show", "a.iso", "--extract", "out"]).code, Some(6));
    assert!(!folder.join("user-data").exists());
    assert_eq!(fs_err::read_dir(cli.work()).unwrap().count(), before, "nothing is left over");
}

#[test]
fn what_is_no_seed_is_named() {
    let cli = seeds();
    let image = fs_err::read(cli.work().join("a.iso")).unwrap();
    fs_err::write(cli.work().join("cut.iso"), &image[..45_000]).unwrap();
    fs_err::write(cli.work().join("zeros"), vec![0; 4096]).unwrap();
    fs_err::create_dir(cli.work().join("folder")).unwrap();
    let mut text = String::new();
    for arguments in [
        &["cut.iso"][..],
        &["zeros"],
        &["user.yaml"],
        &["folder"],
        &["missing"],
        &["volume:missing"],
        &["a.iso", "--file", "userdata"],
        &["zeros", "--json"],
    ] {
        text += &format!("{}\n\n", cli.run([&["seed", "show"], arguments].concat()));
    }
    expect![[r#"
        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: `cut.iso`: a Rock Ridge continuation has 237 bytes at offset 45056, but the image ends at 45056
        hint: the file seems to be cut short or damaged; copy it again, or make the seed anew with `bootyard seed build`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: `zeros`: expected ISO 9660 or FAT, got nothing but zeros
        hint: a seed is ISO 9660 or FAT; make one with `bootyard seed build`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: `user.yaml`: expected a disk image, got a text (at offset 0x0)

        exit code: 3
        ----- stdout -----

        ----- stderr -----
        error: `folder` is a folder: expected an image

        exit code: 3
        ----- stdout -----

        ----- stderr -----
        error: failed to open file `missing`: No such file or directory (os error 2)

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: there is no volume `missing`
        hint: make it: `bootyard import SOURCE --name missing`

        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: there is no file `userdata` on `a.iso`
        hint: it has meta-data, network-config, user-data

        exit code: 4
        ----- stdout -----
        {"event":"failed","exit_code":4,"message":"`zeros`: expected ISO 9660 or FAT, got nothing but zeros","causes":[],"hint":"a seed is ISO 9660 or FAT; make one with `bootyard seed build`"}
        ----- stderr -----
        error: `zeros`: expected ISO 9660 or FAT, got nothing but zeros
        hint: a seed is ISO 9660 or FAT; make one with `bootyard seed build`

    "#]].assert_eq(&text);
}

#[test]
fn seeds_are_compared_as_a_guest_sees_them() {
    let cli = seeds();
    check(
        &cli,
        &["seed", "diff", "a.iso", "same.img"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----

        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["seed", "diff", "a.iso", "b.img"],
        &expect![[r#"
            exit code: 1
            ----- stdout -----
            only on a.iso: network-config
            --- a.iso/user-data
            +++ b.img/user-data
            @@ -1,3 +1,3 @@
             #cloud-config
             password: secret
            -runcmd: [sync]
            +runcmd: [false]
            the instance-id is the same: a guest that has run takes over only what runs at every boot
            ----- stderr -----
        "#]],
    );
    check(
        &cli,
        &["seed", "diff", "-q", "a.iso", "two.iso"],
        &expect![[r#"
            exit code: 1
            ----- stdout -----
            data source: nocloud → configdrive
            only on a.iso: meta-data
            only on a.iso: network-config
            only on a.iso: user-data
            only on two.iso: openstack/latest/meta_data.json
            only on two.iso: openstack/latest/user_data
            the instance-id is the same: a guest that has run takes over only what runs at every boot
            ----- stderr -----
        "#]],
    );
    check(
        &cli,
        &["seed", "diff", "a.iso", "b.img", "--json"],
        &expect![[r#"
        exit code: 1
        ----- stdout -----
        {"same":false,"fields":[],"only_in_a":["network-config"],"only_in_b":[],"changed":["user-data"],"runs_again":false}
        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["seed", "diff", "a.iso", "missing"],
        &expect![[r#"
        exit code: 3
        ----- stdout -----

        ----- stderr -----
        error: failed to open file `missing`: No such file or directory (os error 2)"#]],
    );
    let build = ["seed", "build", "--hostname", "web-1", "--instance-id", "other", "-o", "c.iso"];
    assert_eq!(cli.run(build).code, Some(0));
    let output = cli.run(["seed", "diff", "-q", "a.iso", "c.iso"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stdout.ends_with("the instance-id is another one\n"), "{output}");
}
