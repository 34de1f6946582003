//! `bootyard create`: empty disks and blank ones, judged by `qemu-img`.

use bootyard_testkit::{Cli, qemu_img, require_tool};
use expect_test::expect;

use crate::check;

/// What `qemu-img` says of an image, without what only the running of it decides.
fn described(cli: &Cli, name: &str) -> String {
    let path = cli.work().join(name).display().to_string();
    let text = qemu_img(["info", "--output=json", &path]);
    let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    if info["format"] == "qcow2" {
        qemu_img(["check", "-q", &path]);
    }
    format!(
        "{} {} {}",
        info["format"],
        info["virtual-size"],
        info.get("backing-filename").is_some()
    )
}

#[test]
fn an_empty_disk_has_its_capacity_in_whole_mebibytes() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    for (name, capacity, size) in
        [("a.qcow2", "10Gi", 10_u64 << 30), ("b.qcow2", "1.5Mi", 1 << 20), ("c.img", "2M", 1 << 20)]
    {
        let output = cli.run(["create", "empty-disk", name, "--capacity", capacity]);
        assert_eq!(output.code, Some(0), "{output}");
        assert_eq!(described(&cli, name), format!("\"qcow2\" {size} false"), "{name}");
    }
    assert_eq!(fs_err::read_dir(cli.work()).unwrap().count(), 3, "nothing else is left");
}

#[test]
fn a_capacity_is_needed_and_large_enough() {
    let cli = Cli::from_env();
    let mut text = String::new();
    for capacity in ["0", "1048575", "-1", "8Ei"] {
        let capacity = format!("--capacity={capacity}");
        text += &format!("{}\n", cli.run(["create", "empty-disk", "scratch.qcow2", &capacity]));
    }
    let missing = cli.run(["create", "empty-disk", "scratch.qcow2"]);
    assert_eq!(missing.code, Some(2), "{missing}");
    assert_eq!(fs_err::read_dir(cli.work()).unwrap().count(), 0);
    expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: the size for volume scratch is too low
        hint: the capacity is rounded down to whole MiB: got 0, expected 1Mi
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: the size for volume scratch is too low
        hint: the capacity is rounded down to whole MiB: got 1048575, expected 1Mi
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: invalid value '-1' for '--capacity <QTY>': `-1` is negative

        For more information, try '--help'.
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: invalid value '8Ei' for '--capacity <QTY>': `8Ei` is larger than 2^63 - 1 bytes

        For more information, try '--help'.
    "#]]
    .assert_eq(&text);
}

#[test]
fn what_is_there_is_refused_or_kept() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    let path = cli.work().join("a.qcow2");
    let create = |capacity: &str, keep: &[&str]| {
        let words = ["create", "empty-disk", "a.qcow2", "--capacity", capacity];
        cli.run([&words, keep].concat())
    };
    assert_eq!(create("1Gi", &["--keep"]).code, Some(0));
    let output = bootyard_testkit::run(
        std::process::Command::new("qemu-io").args(["-c", "write -P 7 1M 64k"]).arg(&path),
    );
    assert!(output.contains("wrote 65536"), "{output}");
    let used = fs_err::read(&path).unwrap();
    let mut text = String::new();
    for (capacity, keep) in [("1Gi", &[][..]), ("1Gi", &["--keep", "--json"]), ("2Gi", &["--keep"])]
    {
        text += &format!("{}\n\n", create(capacity, keep));
    }
    assert!(fs_err::read(&path).unwrap() == used, "what a guest wrote stays");
    fs_err::write(&path, vec![0; 1 << 20]).unwrap();
    text += &format!("{}\n", create("1Mi", &["--keep"]));
    fs_err::remove_file(&path).unwrap();
    bootyard_testkit::run(std::process::Command::new("mkfifo").arg(&path));
    let pipe = create("1Mi", &["--keep"]);
    assert!(pipe.stderr.contains("expected an empty disk of 1Mi, got something else"), "{pipe}");
    expect![[r#"
        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: target `./a.qcow2` exists
        hint: name another target, or remove it first: `rm ./a.qcow2`

        exit code: 0
        ----- stdout -----
        {"event":"kept","path":"a.qcow2","format":"qcow2","size_bytes":1073741824,"allocated_bytes":null,"kept":true}
        ----- stderr -----


        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: `a.qcow2`: expected an empty disk of 2Gi, got one of 1Gi
        hint: name another file, or remove it first: `rm a.qcow2`

        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: `a.qcow2`: expected an empty disk of 1Mi, got something else
        hint: name another file, or remove it first: `rm a.qcow2`
    "#]].assert_eq(&text);
}

#[test]
fn a_blank_disk_is_a_file_or_a_volume() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    check(
        &cli,
        &["create", "blank", "--name", "data", "--size", "1Gi"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        created $TEST_ENV/store/volumes/data/disk.raw: raw of 1Gi, 0 B stored
        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["create", "blank", "--name", "data", "--size", "1Gi"],
        &expect![[r#"
        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: volume `data` exists
        hint: choose another name, or remove it first: `bootyard volume rm data`"#]],
    );
    check(
        &cli,
        &["create", "blank", "z.raw", "--size", "0", "--json"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----
        {"event":"failed","exit_code":2,"message":"a blank volume needs a size","causes":[],"hint":"name it: `--size 10Gi`"}
        ----- stderr -----
        error: a blank volume needs a size
        hint: name it: `--size 10Gi`"#]],
    );
    let words = ["create", "blank", "--size", "8Mi", "--json"];
    let run = |more: &[&str]| cli.run([&words, more].concat());
    for (name, more, format) in [
        ("a.raw", &["--preallocation"][..], "raw"),
        ("b.qcow2", &["--output-format", "qcow2"], "qcow2"),
    ] {
        let output = run(&[&[name], more].concat());
        assert_eq!(output.code, Some(0), "{output}");
        assert_eq!(described(&cli, name), format!("\"{format}\" {} false", 8 << 20), "{name}");
    }
    let allocated = |name: &str| {
        std::os::unix::fs::MetadataExt::blocks(&fs_err::metadata(cli.work().join(name)).unwrap())
            * 512
    };
    assert!(allocated("a.raw") >= 8 << 20);
    check(
        &cli,
        &["create", "blank", "--size", "1Gi"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: the following required arguments were not provided:
          <FILE|BLOCKDEV|--name <NAME>>

        Usage: bootyard create blank --size <QTY> <FILE|BLOCKDEV|--name <NAME>>

        For more information, try '--help'."#]],
    );
}
