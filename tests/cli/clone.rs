//! `bootyard clone`.

use std::fs::File;

use bootyard_testkit::{Cli, qemu_img, require_tool, sha256_file, sparse_image};
use expect_test::expect;

use crate::check;

/// The volume `golden`, 8 MiB raw.
fn golden(cli: &Cli) {
    let raw = cli.work().join("golden.raw");
    sparse_image(&raw, 8 << 20, 1);
    let output = cli.run(["import", "golden.raw", "--name", "golden"]);
    assert_eq!(output.code, Some(0), "{output}");
}

#[test]
fn a_volume_becomes_two_and_its_fingerprint_stays() {
    let cli = Cli::from_env();
    golden(&cli);
    let output = cli.run(["clone", "golden", "web-1", "--verify"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout.contains("path     $TEST_ENV/store/volumes/web-1/disk.raw"), "{output}");
    let content = |text: &str| text.split("content  ").nth(1).map(|text| text[..78].to_owned());
    let imported = cli.run(["import", "volume:golden", "--to", "again.raw"]);
    assert_eq!(content(&output.stdout), content(&imported.stdout), "{output}{imported}");
    let clone = cli.store().join("volumes/web-1/disk.raw");
    assert_eq!(sha256_file(clone), sha256_file(cli.work().join("golden.raw")));
}

#[test]
fn a_snapshot_is_for_readers_and_knows_its_volume() {
    let cli = Cli::from_env();
    golden(&cli);
    let output = cli.run(["volume", "snapshot", "golden", "golden-monday"]);
    assert_eq!(output.code, Some(0), "{output}");
    let shown = cli.run(["volume", "show", "golden-monday", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("a JSON object");
    assert_eq!(shown["parent"], "golden");
    assert_eq!(shown["access_modes"], serde_json::json!(["ReadOnlyMany"]));
    let disk = cli.store().join("volumes/golden/disk.raw");
    fs_err::write(&disk, vec![7; 8 << 20]).unwrap();
    let output = cli.run(["clone", "golden-monday", "restored", "--from-snapshot"]);
    assert_eq!(output.code, Some(0), "{output}");
    let restored = cli.store().join("volumes/restored/disk.raw");
    assert_eq!(sha256_file(restored), sha256_file(cli.work().join("golden.raw")));
    check(
        &cli,
        &["clone", "golden", "other", "--from-snapshot"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `golden` is no snapshot
        hint: make one: `bootyard volume snapshot VOLUME SNAPSHOT`; or leave out the flag"#]],
    );
}

#[test]
fn a_disk_that_may_be_written_to_is_not_read_as_it_stands() {
    let cli = Cli::from_env();
    golden(&cli);
    let output = cli.run(["clone", "golden", "shared", "--access-mode", "RWX"]);
    assert_eq!(output.code, Some(0), "{output}");
    // As a machine holds it: one of several that write, and the only one.
    let open = |name: &str| {
        let path = cli.store().join(format!("volumes/{name}/disk.raw"));
        File::open(path).unwrap()
    };
    let (shared, alone) = (open("shared"), open("golden"));
    shared.lock_shared().unwrap();
    alone.lock().unwrap();
    for name in ["shared", "golden"] {
        let source = format!("volume:{name}");
        for arguments in [
            &["clone", name, "other"][..],
            &["volume", "snapshot", name, "other"],
            &["export", name, "out.raw"],
            &["volume", "export", name, "out.raw"],
            &["push", name, "oci:image:latest"],
            &["import", &source, "--name", "other"],
            &["run", "--engine", "qemu", "--disk", &format!("{name},ephemeral")],
        ] {
            let output = cli.run(arguments);
            assert_eq!(output.code, Some(6), "{output}");
            assert!(output.stderr.contains("is attached to another machine"), "{output}");
        }
    }
    drop(shared);
    let output = cli.run(["export", "shared", "out.raw"]);
    assert_eq!(output.code, Some(0), "{output}");
}

#[test]
fn the_report_is_a_json_line() {
    let cli = Cli::from_env();
    golden(&cli);
    let output = cli.run(["clone", "golden", "--to", "big.raw", "--size", "16Mi", "--json"]);
    let last = output.stdout.lines().last().unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(last).expect(last);
    assert_eq!((&report["event"], &report["source"]), (&"cloned".into(), &"golden".into()));
    assert_eq!(report["volume_size_bytes"], 16 << 20);
    assert_eq!(report["path"], "big.raw");
    assert_eq!(fs_err::metadata(cli.work().join("big.raw")).unwrap().len(), 16 << 20);
}

#[test]
fn other_formats_and_larger_qcow2_disks() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    golden(&cli);
    let raw = cli.work().join("golden.raw").display().to_string();
    let same = |disk: &str| {
        let disk = cli.store().join("volumes").join(disk).display().to_string();
        qemu_img(["compare", &raw, &disk]);
    };
    for arguments in [
        &["clone", "golden", "packed", "--output-format", "qcow2-zstd"][..],
        &["clone", "packed", "copy"],
        &["clone", "copy", "large", "--size", "32Mi"],
    ] {
        let output = cli.run(arguments);
        assert_eq!(output.code, Some(0), "{output}");
        same(&format!("{}/disk.qcow2", arguments[2]));
    }
}

#[test]
fn what_is_refused() {
    let cli = Cli::from_env();
    golden(&cli);
    check(
        &cli,
        &["clone", "golden", "small", "--size", "4Mi"],
        &expect![[r#"
        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: a clone of `$TEST_ENV/store/volumes/golden/disk.raw` needs at least 8Mi, got 4Mi
        hint: name a larger one, `--size 8Mi`, or none"#]],
    );
    check(
        &cli,
        &["clone", "golden", "--to", "./x.qcow2"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `./x.qcow2` is not named like what it would hold
        hint: name a qcow2 file `….qcow2` and a raw one otherwise: a disk's format is told by its name"#]],
    );
    check(
        &cli,
        &["clone", "./golden.raw", "--to", "./golden.raw"],
        &expect![[r#"
        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: `./golden.raw` is the disk that is to be cloned
        hint: name another target"#]],
    );
    check(
        &cli,
        &["clone", "./golden.raw", "packed", "--output-format", "qcow2"],
        &expect![[r#"
            exit code: 2
            ----- stdout -----

            ----- stderr -----
            error: a clone of the file `./golden.raw` has its format and, in qcow2, its size
            hint: import it: `bootyard import ./golden.raw --output-format qcow2 …`"#]],
    );
    check(
        &cli,
        &["clone", "silver", "other"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: there is no volume `silver`
        hint: make it: `bootyard import SOURCE --name silver`"#]],
    );
    let file = File::open(cli.store().join("volumes/golden/disk.raw")).unwrap();
    file.lock().unwrap();
    check(
        &cli,
        &["clone", "golden", "other"],
        &expect![[r#"
        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: disk `$TEST_ENV/store/volumes/golden/disk.raw` is attached to another machine
        hint: see which with `fuser -v $TEST_ENV/store/volumes/golden/disk.raw`"#]],
    );
    assert!(!cli.store().join("volumes/other").exists());
}
