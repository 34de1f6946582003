//! `bootyard import` of local files; transports are tested in the `import` binary.

use bootyard_testkit::{Cli, qemu_img, require_tool, sha256_file};
use expect_test::expect;

use crate::{check, small_qcow2};

#[test]
fn a_volume_is_reported_with_its_digest_and_place() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    small_qcow2(&cli, "small.qcow2");
    let output = cli.run(["import", "small.qcow2", "--name", "small"]);
    let digest = sha256_file(cli.work().join("small.qcow2"));
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout.contains(&format!("sha256:{digest} (nothing to compare with)")));
    assert!(output.stdout.contains("path     $TEST_ENV/store/volumes/small/disk.raw"), "{output}");
    let volume = cli.store().join("volumes/small/disk.raw");
    let raw = cli.root().join("small.raw");
    assert_eq!(sha256_file(volume), sha256_file(raw));
}

#[test]
fn events_and_report_are_json_lines() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    small_qcow2(&cli, "small.qcow2");
    let output = cli.run(["import", "small.qcow2", "--to", "out.raw", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output}");
    let lines: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events.first(), Some(&"phase"));
    assert!(events.contains(&"planned") && events.contains(&"progress"), "{events:?}");
    let report = lines.last().unwrap();
    assert_eq!(report["event"], "imported");
    assert_eq!(report["virtual_size_bytes"], 8 << 20);
    assert_eq!(report["spilled_bytes"], 0);
    assert_eq!(report["sha256"], sha256_file(cli.work().join("small.qcow2")));
}

#[test]
fn a_failure_in_json_is_the_last_line_and_on_standard_error() {
    let cli = Cli::from_env();
    check(
        &cli,
        &["import", "missing.qcow2", "--to", "out.raw", "--json"],
        &expect![[r#"
        exit code: 3
        ----- stdout -----
        {"event":"phase","phase":"connecting"}
        {"event":"failed","exit_code":3,"message":"`missing.qcow2` does not exist","causes":[],"hint":"check the path"}
        ----- stderr -----
        error: `missing.qcow2` does not exist
        hint: check the path"#]],
    );
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk.raw"), vec![7; 1 << 20]).unwrap();
    let wrong = format!("md5:{}", "0".repeat(32));
    let arguments = ["import", "disk.raw", "--name", "a", "--checksum", &wrong];
    check(
        &cli,
        &arguments,
        &expect![[r#"
            exit code: 5
            ----- stdout -----

            ----- stderr -----
            error: `disk.raw` is not the file that was asked for
              caused by: checksum mismatch: expected md5:00000000000000000000000000000000, got md5:24c8b42e9f4d53ef58987e469baaad49
            hint: compare with the digest that the publisher shows for exactly this file; if it is right, the file was changed or damaged on its way"#]],
    );
    let left: Vec<_> = fs_err::read_dir(cli.store().join("volumes"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_refused_is_refused_by_name() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    let work = cli.work();
    small_qcow2(&cli, "base.qcow2");
    let create = |arguments: &[&str], name: &str| {
        let path = work.join(name).display().to_string();
        qemu_img([&["create", "-q"], arguments, &[&path, "8M"]].concat());
    };
    let base = work.join("base.qcow2").display().to_string();
    create(&["-f", "qcow2", "-F", "qcow2", "-b", &base], "overlay.qcow2");
    let data = format!("data_file={}", work.join("data.raw").display());
    create(&["-f", "qcow2", "-o", &data], "external.qcow2");
    create(
        &[
            "-f",
            "qcow2",
            "--object",
            "secret,id=k,data=x",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=k",
        ],
        "luks.qcow2",
    );
    fs_err::write(work.join("disk.7z"), b"7z\xbc\xaf\x27\x1c\0\x04").unwrap();
    fs_err::write(work.join("page.html"), "<!DOCTYPE html><html><body>404</body></html>").unwrap();
    fs_err::write(work.join("empty"), "").unwrap();
    let mut text = String::new();
    for name in ["overlay.qcow2", "external.qcow2", "luks.qcow2", "disk.7z", "page.html", "empty"] {
        text += &format!("{}\n\n", cli.run(["import", name, "--name", "x"]));
    }
    expect![[r#"
        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot read `overlay.qcow2` as a disk image
          caused by: the image is an overlay over another file, `$TEST_ENV/work/base.qcow2` (at offset 0x8)
        hint: name what it needs with `--backing FILE` or `--data-file FILE`, or flatten it first: `qemu-img convert -O qcow2 overlay.qcow2 flat.qcow2`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot read `external.qcow2` as a disk image
          caused by: the guest's data is in another file, `$TEST_ENV/work/data.raw` (at offset 0x48)
        hint: name what it needs with `--backing FILE` or `--data-file FILE`, or flatten it first: `qemu-img convert -O qcow2 external.qcow2 flat.qcow2`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot read `luks.qcow2` as a disk image
          caused by: the disk is encrypted with LUKS (at offset 0x20)
        hint: decrypt it first with `qemu-img convert`, which takes the passphrase from an `--object secret`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot read `disk.7z` as a disk image
          caused by: `7z` archives are not supported (at offset 0x0)
        hint: unpack it first: `7z x disk.7z`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot read `page.html` as a disk image
          caused by: expected a disk image, got an HTML page (at offset 0x0)
        hint: see what it is: `file page.html`

        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: cannot read `empty` as a disk image
          caused by: expected a disk image, got an empty file (at offset 0x0)
        hint: see what it is: `file empty`

    "#]].assert_eq(&text);
}

#[test]
fn a_target_that_exists_is_kept() {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("disk.raw"), vec![7; 1 << 20]).unwrap();
    fs_err::write(cli.work().join("mine"), "mine").unwrap();
    check(
        &cli,
        &["import", "disk.raw", "--to", "mine"],
        &expect![[r#"
        exit code: 6
        ----- stdout -----

        ----- stderr -----
        error: target `./mine` exists
        hint: name another target, or remove it first: `rm ./mine`"#]],
    );
    assert_eq!(fs_err::read(cli.work().join("mine")).unwrap(), b"mine");
}

#[test]
fn sizes_are_checked_against_the_image() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    small_qcow2(&cli, "small.qcow2");
    check(
        &cli,
        &["import", "small.qcow2", "--name", "a", "--size", "4Mi"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: the asked size 4Mi is too small: the image holds a disk of 8Mi
        hint: ask for at least `--size 8Mi`, or leave `--size` away"#]],
    );
    check(
        &cli,
        &["import", "small.qcow2", "--name", "a", "--max-size", "4Mi"],
        &expect![[r#"
        exit code: 4
        ----- stdout -----

        ----- stderr -----
        error: the image holds a disk of 8Mi; expected at most 4Mi
        hint: if that is what you want, allow it with `--max-size 8Mi`"#]],
    );
    let output = cli.run(["import", "small.qcow2", "--name", "a", "--size", "16Mi"]);
    assert_eq!(output.code, Some(0), "{output}");
    let volume = cli.store().join("volumes/a/disk.raw");
    assert_eq!(fs_err::metadata(volume).unwrap().len(), 16 << 20);
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    qemu_img([
        "create",
        "-q",
        "-f",
        "qcow2",
        &cli.work().join("e.qcow2").display().to_string(),
        "1G",
    ]);
    check(
        &cli,
        &["import", "e.qcow2", "--name", "a", "--size", "2Gi", "--dry-run"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            source    e.qcow2
            format    qcow2
            strategy  stream: every byte is fetched once and hashed on its way
            fetch     196624
            write     at most 2Gi
            space     at most 2Gi
            resume    goes on where it was stopped
            checksum  none given
            disk      1Gi
            volume    a, raw, 2Gi
            ----- stderr -----
        "#]],
    );
    assert!(!cli.store().join("volumes").exists());
}

#[test]
fn a_dry_run_looks_at_the_target_too() {
    let cli = Cli::from_env();
    let work = cli.work();
    fs_err::write(work.join("disk.raw"), vec![7; 4096]).unwrap();
    fs_err::create_dir_all(cli.store().join("volumes/a")).unwrap();
    fs_err::write(cli.store().join("volumes/a/disk.raw"), "a").unwrap();
    for (source, target, code, said) in [
        ("disk.raw", ["--to", "none/new.raw"], 6, "there is no folder `none`"),
        ("disk.raw", ["--to", "."], 6, "target `.` is a folder"),
        ("disk.raw", ["--to", "disk.raw"], 2, "is the source itself"),
        ("blank", ["--to", "disk.raw"], 6, "disk.raw` exists"),
        ("disk.raw", ["--name", "a"], 6, "volume `a` exists"),
        ("disk.raw", ["--name", "c"], 0, ""),
        ("blank", ["--name", "b"], 2, "a blank volume needs a size"),
        ("blank", ["--to", "new.raw"], 2, "a blank volume needs a size"),
    ] {
        let arguments = [&["import", source], &target[..]].concat();
        let rehearsed = cli.run([&arguments[..], &["--dry-run"]].concat());
        assert_eq!(rehearsed.code, Some(code), "{rehearsed}");
        assert!(rehearsed.stderr.contains(said), "{rehearsed}");
        let done = cli.run(arguments);
        assert_eq!((done.code, &done.stderr), (rehearsed.code, &rehearsed.stderr));
    }
}

#[test]
fn flags_that_would_do_nothing_for_an_archive_are_refused() {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("a.tar"), [0; 1024]).unwrap();
    for flags in [
        &["--dry-run"][..],
        &["--size", "1Gi"],
        &["--output-format", "qcow2"],
        &["--preallocation"],
        &["--relocate-gpt"],
        &["--cache", "cache"],
    ] {
        let archive = ["import", "a.tar", "--content-type", "archive", "--to", "out"];
        let output = cli.run(archive.iter().chain(flags));
        let expected = format!("error: `{}` is for disks", flags[0]);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.starts_with(&expected), "{output}");
        assert!(!cli.work().join("out").exists() && !cli.work().join("cache").exists());
    }
}

#[test]
fn standard_input_is_read_for_one_thing_only() {
    let cli = Cli::from_env();
    for flags in [
        &["-", "--user", "u", "--password-file", "-"][..],
        &["-", "--checksum-file", "-"],
        &[
            "http://127.0.0.1:9/x",
            "--user",
            "u",
            "--password-file",
            "-",
            "--secret-header-file",
            "-",
        ],
    ] {
        let output = cli.run(["import", "--to", "out"].iter().chain(flags));
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.starts_with("error: standard input can be read once"), "{output}");
    }
}

#[test]
fn headers_that_would_not_be_sent_are_refused() {
    let cli = Cli::from_env();
    for command in [
        &["import", "docker://h.example/x", "--to", "out"][..],
        &["import", "s3://bucket/key", "--to", "out"],
        &["import", "x.img", "--to", "out"],
        &["inspect", "x.img"],
        &["push", "./x.img", "docker://h.example/x:y"],
    ] {
        let output = cli.run(command.iter().chain(&["--header", "X-Token: hunter2"]));
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains(" is for http:// and https://, "), "{output}");
        assert!(!output.stderr.contains("hunter2"), "{output}");
    }
}

#[test]
fn flags_for_another_kind_of_source_are_refused() {
    let cli = Cli::from_env();
    let network = "for http://, https://, s3://, gs:// and docker://, and";
    for (source, flags, used) in [
        ("x.img", &["--s3-region", "eu-west-1"][..], "for s3://, and"),
        ("https://h.example/x", &["--s3-anonymous"], "for s3://, and"),
        ("s3://b/k", &["--gcs-key", "key.json"], "for gs://, and"),
        (
            "gs://b/k",
            &["--user", "u", "--password-file", "p"],
            "https://, s3:// and docker://, and",
        ),
        ("-", &["--connections", "8"], network),
        ("x.img", &["--retries", "8"], network),
        ("oci:folder", &["--stall-timeout", "8s"], network),
        ("volume:v", &["--ca-file", "ca.pem"], network),
        ("x.img", &["--insecure-skip-verify"], network),
        ("https://h.example/x", &["--insecure"], "for docker://, and"),
        ("oci:folder", &["--registry-auth", "auth.json"], "for docker://, and"),
        (
            "x.img",
            &["--platform", "arm64"],
            "for docker://, oci:, oci-archive: and docker-archive:",
        ),
        ("s3://b/k", &["--image-path", "disk/x"], "for docker://, oci:, "),
    ] {
        for command in [&["import", "--to", "out"][..], &["inspect"]] {
            let output = cli.run(command.iter().chain(&[source]).chain(flags));
            let begin = format!("error: `{}` is ", flags[0]);
            assert_eq!(output.code, Some(2), "{output}");
            assert!(output.stderr.starts_with(&begin) && output.stderr.contains(used), "{output}");
            assert!(output.stderr.contains(&format!("hint: leave out `{}`", flags[0])), "{output}");
        }
    }
    for (source, flags) in [("x.img", ["--cache", "c"]), ("blank", ["--checksum-file", "x"])] {
        let output = cli.run([&["import", source, "--to", "out"][..], &flags].concat());
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.starts_with(&format!("error: `{}` is for ", flags[0])), "{output}");
    }
    let push = ["push", "./x.img", "docker://h.example/x:y", "--image-path", "x"];
    assert_eq!(cli.run(push).code, Some(2));
}

#[test]
fn a_text_in_a_pipe_is_not_looked_up_in_a_browser() {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("text"), "Permission denied (publickey).\n".repeat(99)).unwrap();
    let pipe = fs_err::File::open(cli.work().join("text")).unwrap();
    let mut command = cli.command(["import", "-", "--name", "v"]);
    let output = command.stdin(pipe.into_file()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("hint: see what comes through the pipe"), "{said}");
}
