//! Images that are read with other files, or in an earlier state: what lands is what `qemu-img` reads.

use std::path::Path;
use std::process::Command;

use bootyard_testkit::{Cli, qemu_img, require_tool, run, sha256_file};
use serde_json::Value;

use crate::{Images, assert_nothing_left};

/// Writes 2 MiB of this byte at this MiB.
fn write(image: &Path, byte: u8, mib: u64) {
    let command = format!("write -q -P {byte} {mib}M 2M");
    run(Command::new("qemu-io").args(["-c", &command]).arg(image));
}

/// Files, with the paths of those that are in the working directory of `cli`.
struct Files<'a> {
    cli: &'a Cli,
    images: Images,
}

impl<'a> Files<'a> {
    fn new(cli: &'a Cli) -> Option<Self> {
        let tools = ["qemu-img", "qemu-io"].into_iter().all(require_tool);
        tools.then(|| Self { cli, images: Images::new() })
    }

    fn path(&self, name: &str) -> String {
        self.cli.work().join(name).display().to_string()
    }

    fn convert(&self, name: &str, options: &[&str]) {
        let (raw, path) = (self.images.path("disk.raw").display().to_string(), self.path(name));
        qemu_img([&["convert", "-f", "raw", "-O", "qcow2"], options, &[&raw, &path]].concat());
    }

    /// Imports `image`, which must be what `qemu-img` reads with its own flags. Returns the report.
    #[track_caller]
    fn lands(&self, image: &str, flags: &[&str], theirs: &[&str]) -> Value {
        let (image_path, expected) = (self.path(image), self.path("expected"));
        qemu_img([&["convert", "-O", "raw"], theirs, &[&image_path, &expected]].concat());
        let words = [&["import", image, "--to", "landed", "--json"], flags].concat();
        let output = self.cli.run(words);
        assert_eq!(output.code, Some(0), "{output}");
        let landed = self.path("landed");
        assert_eq!(qemu_img(["compare", &landed, &expected]), "Images are identical.\n");
        fs_err::remove_file(landed).expect("it is removed");
        let report: Value = output
            .stdout
            .lines()
            .last()
            .and_then(|l| serde_json::from_str(l).ok())
            .expect("a report");
        assert_eq!(report["sha256"], sha256_file(image_path));
        report
    }
}

#[test]
fn an_overlay_lands_with_all_that_is_under_it() {
    let cli = Cli::from_env();
    let Some(files) = Files::new(&cli) else { return };
    files.convert("base.qcow2", &["-c"]);
    fs_err::copy(files.images.path("disk.raw"), cli.work().join("base.raw")).expect("a copy");
    let overlay = |name: &str, format: &str, base: &str| {
        let (base, path) = (files.path(base), files.path(name));
        qemu_img(["create", "-q", "-f", "qcow2", "-F", format, "-b", &base, &path, "40M"]);
        write(Path::new(&path), 7, if name == "top.qcow2" { 5 } else { 4 });
    };
    overlay("middle.qcow2", "qcow2", "base.qcow2");
    overlay("top.qcow2", "qcow2", "middle.qcow2");
    overlay("on-raw.qcow2", "raw", "base.raw");
    let both = ["--backing", "middle.qcow2", "--backing", "base.qcow2"];
    let raw = files.lands("top.qcow2", &both, &[]);
    assert_eq!((&raw["virtual_size_bytes"], &raw["format"]), (&(40 << 20).into(), &"qcow2".into()));
    let checksum = format!("sha256:{}", sha256_file(cli.work().join("top.qcow2")));
    let more = ["--output-format", "qcow2-zstd", "--checksum", &checksum, "--size", "40Mi"];
    let stored = files.lands("top.qcow2", &[&both[..], &more].concat(), &[]);
    assert_eq!(
        (&stored["fingerprint"], &stored["checked"]),
        (&raw["fingerprint"], &checksum.into())
    );
    files.lands("on-raw.qcow2", &["--backing", "base.raw"], &[]);
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (flags, code, said) in [
        (&[][..], 4, "--backing FILE"),
        (&both[..2], 4, "needs"),
        (&[&both[..], &["--backing", "base.raw"]].concat(), 2, "is no overlay"),
        (&["--backing", "./top.qcow2"], 2, "is named twice"),
        (&["--backing", "none.qcow2"], 3, "`none.qcow2` does not exist"),
        (&[&both[..], &["--checksum", &wrong]].concat(), 5, "checksum mismatch"),
        (&[&both[..], &["--size", "1Mi"]].concat(), 2, "is too small"),
    ] {
        for dry in [&["--dry-run"][..], &[]] {
            let words = [&["import", "top.qcow2", "--name", "v"], flags, dry].concat();
            let output = cli.run(words);
            if code == 5 && !dry.is_empty() {
                continue;
            }
            assert_eq!(output.code, Some(code), "{output}");
            assert!(output.stderr.contains(said), "{output}");
            assert_nothing_left(&cli);
        }
    }
    let output = cli.run([&["inspect", "top.qcow2"], &both[..]].concat());
    assert!(output.stdout.contains("importable    yes"), "{output}");
    let plan = cli.run([&["import", "top.qcow2", "--name", "v", "--dry-run"], &both[..]].concat());
    assert!(plan.stdout.contains("not read from its start to its end"), "{plan}");
}

#[test]
fn data_in_a_file_of_its_own_lands() {
    let cli = Cli::from_env();
    let Some(files) = Files::new(&cli) else { return };
    let data = format!("data_file={}", files.path("data.raw"));
    files.convert("external.qcow2", &["-o", &data]);
    files.lands("external.qcow2", &["--data-file", "data.raw"], &[]);
    let output =
        cli.run(["import", "external.qcow2", "--to", "data.raw", "--data-file", "data.raw"]);
    assert_eq!(output.code, Some(2), "{output}");
    let output = cli.run(["import", "external.qcow2", "--name", "v"]);
    assert!(output.code == Some(4) && output.stderr.contains("--data-file FILE"), "{output}");
    files.convert("whole.qcow2", &[]);
    for (image, flags, said) in [
        ("whole.qcow2", ["--data-file", "data.raw"], "has its data in itself"),
        ("whole.qcow2", ["--backing", "data.raw"], "is no overlay"),
        ("data.raw", ["--snapshot", "x"], "has no internal snapshots"),
        ("https://h.example/x.qcow2", ["--snapshot", "x"], "for files of this machine, and"),
        ("-", ["--backing", "x"], "for files of this machine, and"),
    ] {
        for command in [&["import", "--name", "v"][..], &["inspect"]] {
            let output = cli.run([command, &[image], &flags[..]].concat());
            assert_eq!(output.code, Some(2), "{output}");
            assert!(output.stderr.contains(said), "{output}");
        }
    }
    assert_nothing_left(&cli);
}

#[test]
fn a_snapshot_lands_as_it_was() {
    let cli = Cli::from_env();
    let Some(files) = Files::new(&cli) else { return };
    files.convert("disk.qcow2", &[]);
    let path = files.path("disk.qcow2");
    for (name, byte) in [("before", 1), ("after", 2)] {
        write(Path::new(&path), byte, 3);
        qemu_img(["snapshot", "-c", name, &path]);
    }
    write(Path::new(&path), 9, 3);
    let names = ["before", "after"].map(|name| {
        let report = files.lands(
            "disk.qcow2",
            &["--snapshot", name],
            &["-l", &format!("snapshot.name={name}")],
        );
        report["fingerprint"].as_str().expect("a fingerprint").to_owned()
    });
    assert_ne!(names[0], names[1]);
    let by_id = files.lands("disk.qcow2", &["--snapshot", "2"], &["-l", "snapshot.id=2"]);
    assert_eq!(by_id["fingerprint"], names[1]);
    let output = cli.run(["import", "disk.qcow2", "--name", "v", "--snapshot", "never"]);
    assert_ne!(output.code, Some(0), "{output}");
    assert!(output.stderr.contains("never"), "{output}");
    assert_nothing_left(&cli);
}
