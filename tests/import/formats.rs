//! Every way in which a converter writes an image lands bit for bit as the disk that it was.

use std::os::unix::fs::MetadataExt;

use bootyard_testkit::{Cli, Nginx, NginxOptions, qemu_img, require_tool, sha256_file};

use crate::Images;

const VARIANTS: [(&str, &[&str]); 8] = [
    ("zlib.qcow2", &["-c"]),
    ("zstd.qcow2", &["-c", "-o", "compression_type=zstd"]),
    ("plain.qcow2", &[]),
    ("unordered.qcow2", &["-W", "-m", "16"]),
    ("v2.qcow2", &["-c", "-o", "compat=0.10"]),
    ("small-clusters.qcow2", &["-c", "-o", "cluster_size=512"]),
    ("large-clusters.qcow2", &["-c", "-o", "cluster_size=2M"]),
    ("preallocated.qcow2", &["-o", "preallocation=metadata"]),
];

#[test]
fn over_http_every_image_becomes_the_disk_that_it_was() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let (digest, cli) = (sha256_file(images.path("disk.raw")), Cli::from_env());
    let nginx = Nginx::serve(images.folder.path());
    let stored = |path| fs_err::metadata(path).expect("an image").blocks() * 512;
    let data = stored(images.path("disk.raw"));
    let names = VARIANTS.map(|(name, options)| {
        images.convert(name, options);
        name
    });
    let mut fingerprints = std::collections::BTreeSet::new();
    for (index, name) in names.into_iter().chain(["disk.raw"]).enumerate() {
        let checksum = format!("sha256:{}", sha256_file(images.path(name)));
        let (url, volume) = (nginx.url(name), format!("v{index}"));
        let output =
            cli.run(["import", &url, "--name", &volume, "--checksum", &checksum, "--json"]);
        assert_eq!(output.code, Some(0), "{name}: {output}");
        let report = output.stdout.lines().last().expect("a report");
        let report: serde_json::Value = serde_json::from_str(report).expect("a line of JSON");
        assert_eq!(report["spilled_bytes"], 0, "{name}");
        assert_eq!(report["checked"], checksum, "{name}");
        fingerprints.insert(report["fingerprint"].as_str().expect("a fingerprint").to_owned());
        let volume = cli.store().join(format!("volumes/{volume}/disk.raw"));
        assert_eq!(sha256_file(&volume), digest, "{name}");
        assert!(stored(volume) <= data + (1 << 20), "{name} lost its holes");
    }
    assert_eq!(fingerprints.len(), 1, "what is stored is the same disk");
}

#[test]
fn a_server_without_ranges_will_do() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    images.convert("zlib.qcow2", &["-c"]);
    let options = NginxOptions { no_ranges: true, ..NginxOptions::default() };
    let nginx = Nginx::serve_with(images.folder.path(), &options);
    let cli = Cli::from_env();
    let output = cli.run(["import", &nginx.url("zlib.qcow2"), "--to", "disk.raw"]);
    assert_eq!(output.code, Some(0), "{output}");
    let made = cli.work().join("disk.raw");
    assert_eq!(sha256_file(made), sha256_file(images.path("disk.raw")));
}

#[test]
fn the_qcow2_that_is_written_is_one_by_the_book() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let source = images.convert("zlib.qcow2", &["-c"]).display().to_string();
    for (format, compression) in [("qcow2", "zlib"), ("qcow2-zstd", "zstd")] {
        let cli = Cli::from_env();
        let output = cli.run([
            "import",
            &source,
            "--name",
            "q",
            "--output-format",
            format,
            "--size",
            "32Mi",
        ]);
        assert_eq!(output.code, Some(0), "{output}");
        let made = cli.store().join("volumes/q/disk.qcow2").display().to_string();
        qemu_img(["check", "-q", &made]);
        let info: serde_json::Value =
            serde_json::from_str(&qemu_img(["info", "--output=json", &made])).expect("JSON");
        assert_eq!(info["virtual-size"], 32 << 20);
        assert_eq!(info["format-specific"]["data"]["compression-type"], compression);
        qemu_img(["compare", "-q", &made, &source]);
    }
}
