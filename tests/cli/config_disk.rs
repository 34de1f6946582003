//! `bootyard create config-disk`, read back by isoinfo and blkid.

use std::os::unix::fs::symlink;
use std::process::Command;

use bootyard_testkit::{Cli, require_tool, run};
use expect_test::expect;
use serde_json::Value;

fn create(cli: &Cli, flags: &[&str]) {
    let output = cli.run([&["create", "config-disk", "disk.img"], flags].concat());
    assert_eq!(output.code, Some(0), "{output}");
}

fn label(cli: &Cli) -> String {
    let words = ["-p", "-o", "value", "-s", "LABEL"];
    run(Command::new("blkid").args(words).arg(cli.work().join("disk.img"))).trim().to_owned()
}

/// Every file of the disk with what is in it.
fn files(cli: &Cli) -> Vec<(String, String)> {
    let disk = cli.work().join("disk.img");
    let found = run(Command::new("isoinfo").args(["-R", "-f", "-i"]).arg(&disk));
    let content =
        |path: &str| run(Command::new("isoinfo").args(["-R", "-x", path, "-i"]).arg(&disk));
    let mut files: Vec<_> = found.lines().map(|path| (path.to_owned(), content(path))).collect();
    files.sort_unstable();
    files
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn files_literals_and_folders_become_files() {
    if !require_tool("isoinfo") || !require_tool("blkid") {
        return;
    }
    let cli = Cli::from_env();
    let work = cli.work();
    fs_err::write(work.join("a.conf"), "a\n").unwrap();
    create(
        &cli,
        &[
            "--type",
            "configmap",
            "--from-file",
            "a.conf",
            "--from-file",
            "b=a.conf",
            "--from-literal",
            "C=x=1",
        ],
    );
    assert_eq!(files(&cli), pairs(&[("/C", "x=1"), ("/a.conf", "a\n"), ("/b", "a\n")]));
    assert_eq!(label(&cli), "cfgdata");

    // As the kubelet mounts a Secret.
    let mount = work.join("mount");
    fs_err::create_dir_all(mount.join("..2026")).unwrap();
    fs_err::write(mount.join("..2026/token"), "t").unwrap();
    symlink("..2026", mount.join("..data")).unwrap();
    symlink("..data/token", mount.join("token")).unwrap();
    create(&cli, &["--type", "service-account", "--from-file", "mount", "--label", "SA"]);
    assert_eq!(files(&cli), pairs(&[("/token", "t")]));
    assert_eq!(label(&cli), "SA");

    create(&cli, &["--type", "downward-api", "--from-literal", "pod/labels=a"]);
    assert!(files(&cli).contains(&("/pod/labels".to_owned(), "a".to_owned())));
    create(
        &cli,
        &["--type", "sysprep", "--format", "fat", "--from-literal", "Autounattend.xml=<x/>"],
    );
    assert_eq!(label(&cli), "unattendCD");
}

#[test]
fn a_manifest_says_its_type() {
    if !require_tool("isoinfo") {
        return;
    }
    let cli = Cli::from_env();
    let manifest =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: dg==}\nstringData: {l: w}\n";
    fs_err::write(cli.work().join("s.yaml"), manifest).unwrap();
    let output = cli.run(["create", "config-disk", "disk.img", "-f", "s.yaml", "--json"]);
    let line: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&line["type"], &line["files"]), (&"secret".into(), &2.into()));
    assert_eq!(files(&cli), pairs(&[("/k", "v"), ("/l", "w")]));
}

#[test]
fn mistakes_are_told_with_their_remedies() {
    let cli = Cli::from_env();
    let manifest = "apiVersion: v1\nkind: ConfigMap\ndata: {a: x}\n";
    fs_err::write(cli.work().join("c.yaml"), manifest).unwrap();
    let mut text = String::new();
    for flags in [
        &["--type", "configmap"][..],
        &["--from-literal", "a=b"],
        &["--type", "secret", "-f", "c.yaml"],
        &["--type", "configmap", "-f", "c.yaml", "--from-literal", "a=y"],
        &["--type", "configmap", "--from-literal", "a/b=y"],
        &["--type", "sysprep", "-f", "c.yaml"],
        &["--type", "configmap", "--from-file", "-"],
        &["--type", "configmap", "--from-file", "k=."],
        &["--type", "configmap", "--from-file", "x=-", "--from-file", "y=-"],
        &["-f", "-", "--from-file", "y=-"],
        &["--type", "configmap", "--from-literal", "a=b", "--label", "l\u{e4}"],
    ] {
        let output = cli.run([&["create", "config-disk", "disk.img"], flags].concat());
        assert_eq!(output.code, Some(2), "{output}");
        text += &output.stderr;
    }
    assert!(!cli.work().join("disk.img").exists());
    expect![[r#"
        error: the disk would have no file
        hint: give `--from-file`, `--from-literal` or a manifest with `-f`
        error: the following required arguments were not provided:
          --type <TYPE>

        Usage: bootyard create config-disk --from-literal <KEY=TEXT> --type <TYPE> <FILE>

        For more information, try '--help'.
        error: `c.yaml` is a ConfigMap, which no `secret` disk is made of
        hint: leave out `--type`
        error: `a` is there twice
        error: `a/b` is not a key: expected 1 to 253 letters, digits, `-`, `_` and `.`, and not `..` first
        hint: name it otherwise: `KEY=…`
        error: a sysprep disk needs `autounattend.xml` or `unattend.xml`
        hint: name the file by its key: `--from-file autounattend.xml=FILE`
        error: `-` has no name that could be a key
        hint: give it one: `--from-file KEY=-`
        error: `.` is a folder, whose files have names of their own
        hint: leave out `k=`
        error: `-` is given more than once: expected one reader of standard input
        hint: put the others into files
        error: `-` is given more than once: expected one reader of standard input
        hint: put the others into files
        error: expected a label of 1 to 32 characters of ASCII, got `lä`
    "#]].assert_eq(&text);
}
