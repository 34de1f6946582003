//! What was imported once is not fetched again.

use bootyard_testkit::{Cli, Nginx, NginxOptions, require_tool, sha256_file};

use crate::Images;

#[test]
fn a_second_import_reads_nothing_from_the_network() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let image = images.convert("zlib.qcow2", &["-c"]);
    let (digest, disk) = (sha256_file(&image), sha256_file(images.path("disk.raw")));
    let nginx = Nginx::serve(images.folder.path());
    let (cli, url) = (Cli::from_env(), nginx.url("zlib.qcow2"));
    let checksum = format!("sha256:{digest}");
    let import = |name: &str, more: &[&str]| {
        let words = ["import", &url, "--name", name, "--cache", "cache", "--json"];
        let output = cli.run([&words[..], more].concat());
        assert_eq!(output.code, Some(0), "{output}");
        assert_eq!(sha256_file(cli.store().join(format!("volumes/{name}/disk.raw"))), disk);
        output.stdout.contains(r#""cached":true"#)
    };
    assert!(!import("a", &[]));
    let sent = nginx.bytes_sent();
    assert!(sent >= fs_err::metadata(&image).expect("the image").len());
    // By its digest it needs no server, by its version a look at it.
    assert!(import("b", &["--checksum", &checksum]));
    assert_eq!(nginx.bytes_sent(), sent);
    assert!(import("c", &[]));

    // Another version is another file.
    let mut bytes = fs_err::read(&image).expect("the image");
    let len = bytes.len();
    bytes.truncate(len);
    bytes.extend_from_slice(&[0; 512]);
    fs_err::write(&image, bytes).expect("another version");
    assert!(!import("d", &[]));

    // What was damaged is found by the digest, like on the network.
    let blob = cli.work().join(format!("cache/blobs/sha256-{digest}"));
    let mut bytes = fs_err::read(&blob).expect("the blob");
    bytes[len / 2] ^= 1;
    fs_err::write(&blob, bytes).expect("a damaged blob");
    let words = ["import", &url, "--name", "e", "--cache", "cache", "--checksum", &checksum];
    assert_ne!(cli.run(words).code, Some(0));
}

#[test]
fn a_cache_keeps_to_its_limit() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    images.convert("a.qcow2", &[]);
    images.convert("b.qcow2", &["-c"]);
    let nginx = Nginx::serve_with(images.folder.path(), &NginxOptions::default());
    let cli = Cli::from_env();
    let len = |name| fs_err::metadata(images.path(name)).expect("an image").len();
    let limit = len("a.qcow2").max(len("b.qcow2")).to_string();
    for name in ["a", "b"] {
        let url = nginx.url(&format!("{name}.qcow2"));
        let words = ["import", &url, "--name", name, "--cache", "cache", "--cache-size", &limit];
        let output = cli.run(words);
        assert_eq!(output.code, Some(0), "{output}");
        let blobs = fs_err::read_dir(cli.work().join("cache/blobs")).expect("the cache");
        let blobs: Vec<_> = blobs.map(|entry| entry.expect("a blob").file_name()).collect();
        let expected = format!("sha256-{}", sha256_file(images.path(&format!("{name}.qcow2"))));
        assert_eq!(blobs, [expected.as_str()]);
    }
}
