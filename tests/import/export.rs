//! `bootyard export`: what leaves is what was there, by the word of the tools that read it and of an
//! import of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bootyard_testkit::{
    Cli, S3Server, pseudo_random, qemu_img, require_tool, run, sha256_file, sparse_image,
};
use serde_json::Value;

const FORMATS: [(&str, &str); 6] = [
    ("raw", "out.raw"),
    ("raw.gz", "out.raw.gz"),
    ("raw.zst", "out.raw.zst"),
    ("raw.xz", "out.raw.xz"),
    ("qcow2", "out.qcow2"),
    ("qcow2-zstd", "out.qcow2"),
];

fn tools() -> bool {
    ["qemu-img", "gzip", "zstd", "xz"].iter().all(|tool| require_tool(tool))
}

/// A disk that is no multiple of any block, with holes and data.
fn disk(cli: &Cli) -> PathBuf {
    let path = cli.work().join("disk.raw");
    sparse_image(&path, (9 << 20) + 512 * 3, 5);
    path
}

/// No part of an export is left beside the disk.
#[track_caller]
fn assert_nothing_hidden(cli: &Cli) {
    let entries = fs_err::read_dir(cli.work()).expect("the folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let hidden: Vec<_> = names.filter(|name| name.as_encoded_bytes()[0] == b'.').collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

/// The last JSON line of an output.
fn report(text: &str) -> Value {
    serde_json::from_str(text.trim_end().lines().last().expect("a line")).expect("JSON")
}

/// The raw disk or qcow2 in what was exported, by the tool of its packing.
fn unpacked(cli: &Cli, path: &Path, format: &str) -> PathBuf {
    let tool = match format.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "gz" => "gzip",
        "zst" => "zstd",
        "xz" => "xz",
        _ => return path.to_owned(),
    };
    let to = cli.root().join(format!("unpacked.{tool}"));
    run(Command::new("sh").args(["-c", r#""$0" -qdc < "$1" > "$2""#, tool]).arg(path).arg(&to));
    to
}

/// Compares with `qemu-img`, and by the fingerprint of an import.
#[track_caller]
fn assert_is_the_disk(cli: &Cli, made: &Path, format: &str, report: &Value) {
    let disk = cli.work().join("disk.raw").display().to_string();
    assert_eq!(report["sha256"], sha256_file(made), "{format}");
    assert_eq!(report["bytes"], fs_err::metadata(made).expect("a file").len(), "{format}");
    let plain = unpacked(cli, made, format);
    let kind = if format.starts_with("qcow2") { "qcow2" } else { "raw" };
    qemu_img(["compare", "-f", "raw", "-F", kind, &disk, &plain.display().to_string()]);
    let (path, again) = (made.display().to_string(), cli.root().join("again.raw"));
    let words = ["import", &path, "--to", &again.display().to_string(), "--json"];
    let output = cli.run(words);
    fs_err::remove_file(again).expect("the import");
    assert_eq!(output.code, Some(0), "{format}: {output}");
    let again = self::report(&output.stdout);
    assert_eq!(again["fingerprint"], report["fingerprint"], "{format}");
}

#[test]
fn every_format_is_the_same_disk_again() {
    if !tools() {
        return;
    }
    let cli = Cli::from_env();
    let raw = disk(&cli);
    // The same disk as a volume, stored otherwise.
    let words = ["import", "./disk.raw", "--name", "web", "--output-format", "qcow2-zstd"];
    assert_eq!(cli.run(words).code, Some(0));
    for source in ["./disk.raw", "web"] {
        for (format, name) in FORMATS {
            let output = cli.run(["export", source, name, "--format", format, "--json"]);
            assert_eq!(output.code, Some(0), "{format}: {output}");
            let made = cli.work().join(name);
            assert_is_the_disk(&cli, &made, format, &report(&output.stdout));
            fs_err::remove_file(made).expect("the file");
        }
    }
    let allocated = |path: &Path| {
        std::os::unix::fs::MetadataExt::blocks(&fs_err::metadata(path).expect("a file"))
    };
    assert_eq!(cli.run(["export", "web", "sparse.raw"]).code, Some(0));
    let sparse = cli.work().join("sparse.raw");
    assert!(allocated(&sparse) <= allocated(&raw), "holes are kept");
    fs_err::remove_file(sparse).expect("the file");
    assert_nothing_hidden(&cli);
}

#[test]
fn the_name_tells_the_format() {
    if !tools() {
        return;
    }
    let cli = Cli::from_env();
    disk(&cli);
    for (name, format) in [
        ("a.img", "raw"),
        ("a.gz", "raw.gz"),
        ("a.zst", "raw.zst"),
        ("a.xz", "raw.xz"),
        ("a.qcow2", "qcow2"),
    ] {
        let output = cli.run(["export", "./disk.raw", name, "--json"]);
        assert_eq!(report(&output.stdout)["format"], format, "{output}");
    }
}

#[test]
fn a_stream_is_the_same_bytes() {
    if !tools() {
        return;
    }
    let cli = Cli::from_env();
    disk(&cli);
    for (format, _) in FORMATS {
        let made = cli.work().join("stream");
        let words = ["export", "./disk.raw", "-", "--format", format, "--json"];
        let file = fs_err::File::create(&made).expect("a file").into_file();
        let mut command = cli.command(words);
        let output = command.stdout(file).stderr(Stdio::piped()).output().expect("a run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{format}: {stderr}");
        let named = cli.work().join(if format.starts_with("qcow2") { "s.qcow2" } else { "s" });
        fs_err::rename(&made, &named).expect("a new name");
        assert_is_the_disk(&cli, &named, format, &report(&stderr));
        fs_err::remove_file(named).expect("the file");
    }
    // A reader that has enough is no failure.
    let script = r#""$@" | head -c 100000 | wc -c; exit "${PIPESTATUS[0]}""#;
    let command = cli.command(["export", "./disk.raw", "-"]);
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.current_dir(cli.work()).env("BOOTYARD_HOME", cli.store());
    let output = shell.output().expect("bash");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"100000\n"[..]));
}

#[test]
fn images_are_pushed() {
    let cli = Cli::from_env();
    disk(&cli);
    let output = cli.run(["export", "./disk.raw", "oci:images:web", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    let pushed = cli.run(["push", "./disk.raw", "oci:others:web", "--json"]);
    assert_eq!(report(&output.stdout)["digest"], report(&pushed.stdout)["digest"]);
    let output = cli.run(["import", "oci:images:web", "--to", "again.raw"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(sha256_file(cli.work().join("again.raw")), sha256_file(cli.work().join("disk.raw")));
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let cli = Cli::from_env();
    let path = disk(&cli);
    fs_err::write(cli.work().join("there.raw"), "mine").expect("a file");
    for (words, code, message) in [
        (["export", "./disk.raw", "there.raw"], 6, "exists"),
        (["export", "./disk.raw", "disk.raw"], 2, "is the source itself"),
        (["export", "./disk.raw", "https://host/a"], 2, "is no place for an export"),
        (["export", "./disk.raw", "volume:a"], 2, "`bootyard clone`"),
        (["export", "./disk.raw", "no/such/a.raw"], 6, "there is no folder"),
        (["export", "missing", "a.raw"], 2, "there is no volume"),
    ] {
        let output = cli.run(words);
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(message), "{output}");
    }
    assert_eq!(fs_err::read(cli.work().join("there.raw")).expect("a file"), b"mine");
    // A machine has it.
    let file = fs_err::File::options().read(true).write(true).open(&path).expect("the disk");
    file.file().lock().expect("a lock");
    let output = cli.run(["export", "./disk.raw", "a.raw", "--json"]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("is attached to another machine"), "{output}");
    assert_eq!(report(&output.stdout)["event"], "failed");
    assert!(!cli.work().join("a.raw").exists());
    assert_nothing_hidden(&cli);
}

/// A command line that knows the server's key.
fn with_key(server: &S3Server) -> Cli {
    Cli::from_env()
        .env("AWS_ACCESS_KEY_ID", S3Server::KEY)
        .env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET)
        .env("AWS_ENDPOINT_URL_S3", &server.endpoint())
        .env("AWS_EC2_METADATA_DISABLED", "true")
}

#[test]
fn an_object_is_the_same_disk_again() {
    let Some(server) = crate::s3::server() else { return };
    let cli = with_key(server);
    // Three parts, as it is and hardly packed.
    let path = cli.work().join("disk.raw");
    fs_err::write(&path, pseudo_random(40 << 20, 3)).expect("a disk");
    let mut fingerprints = Vec::new();
    for name in ["a.raw", "a.raw.gz", "a.raw.zst", "a.qcow2", "with space + ä.raw"] {
        let target = format!("s3://private/exports/{name}");
        let output = cli.run(["export", "./disk.raw", &target, "--json"]);
        assert_eq!(output.code, Some(0), "{output}");
        let sent = report(&output.stdout);
        let output = cli.run(["import", &target, "--to", "again.raw", "--json"]);
        assert_eq!(output.code, Some(0), "{output}");
        let got = report(&output.stdout);
        assert_eq!(got["sha256"], sent["sha256"], "{name}");
        assert_eq!(got["source_bytes"], sent["bytes"], "{name}");
        assert_eq!(got["fingerprint"], sent["fingerprint"], "{name}");
        fs_err::remove_file(cli.work().join("again.raw")).expect("the import");
        fingerprints.push(sent["fingerprint"].to_string());
    }
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 1);
}

#[test]
fn an_object_that_fails_is_never_seen() {
    let Some(server) = crate::s3::server() else { return };
    let cli = with_key(server);
    fs_err::write(cli.work().join("disk.raw"), pseudo_random(40 << 20, 4)).expect("a disk");
    let [raw, torn] = ["disk.raw", "torn.qcow2"].map(|name| cli.work().join(name));
    let names = [&raw, &torn].map(|path| path.display().to_string());
    qemu_img(["convert", "-f", "raw", "-O", "qcow2", &names[0], &names[1]]);
    let file = fs_err::File::options().write(true).open(&torn).expect("the image");
    file.set_len(36 << 20).expect("a cut");
    let broken = cli.run(["export", "./torn.qcow2", "s3://private/torn.raw"]);
    assert_eq!(broken.code, Some(4), "{broken}");
    assert!(broken.stderr.contains("ends beyond the file"), "{broken}");
    let dots = cli.run(["export", "./disk.raw", "s3://private/a/../b.raw"]);
    assert_eq!(dots.code, Some(3), "{dots}");
    let anonymous = Cli::from_env();
    fs_err::write(anonymous.work().join("disk.raw"), "x".repeat(512)).expect("a disk");
    let endpoint = server.endpoint();
    let words = ["export", "./disk.raw", "s3://public/a.raw", "--s3-anonymous", "--s3-endpoint"];
    let denied = anonymous.run([&words[..], &[&endpoint]].concat());
    assert_eq!(denied.code, Some(3), "{denied}");
    assert!(denied.stderr.contains("hint: give credentials that may write there"), "{denied}");
    let there = cli.run(["import", "s3://private/torn.raw", "--to", "again.raw"]);
    assert_eq!(there.code, Some(3), "{there}");
    let uploads = server.get("private?uploads=");
    assert!(uploads.contains("ListMultipartUploadsResult"), "{uploads}");
    assert!(!uploads.contains("torn.raw"), "{uploads}");
}
