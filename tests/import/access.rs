//! What a source needs to be read: credentials, headers, authorities, lists of checksums, a pipe.

use bootyard_testkit::{Cli, FaultServer, Nginx, NginxOptions, Reply, require_tool, sha256_file};

use crate::{Images, assert_nothing_left};

/// A folder with the image `disk.qcow2`, as a server has it.
fn folder(cli: &Cli) -> std::path::PathBuf {
    let dir = cli.work().join("www");
    fs_err::create_dir_all(&dir).expect("a folder");
    let images = Images::new();
    let image = images.convert("zlib.qcow2", &["-c"]);
    fs_err::copy(image, dir.join("disk.qcow2")).expect("the image");
    dir
}

#[test]
fn a_password_and_an_authority_come_from_files() {
    if !require_tool("nginx") || !require_tool("openssl") || !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    let basic_auth = Some(("user".to_owned(), "hunter2".to_owned()));
    let options = NginxOptions { basic_auth, tls: true, ..NginxOptions::default() };
    let nginx = Nginx::serve_with(folder(&cli), &options);
    fs_err::write(cli.work().join("password"), "hunter2\n").unwrap();
    fs_err::copy(nginx.ca(), cli.work().join("ca.pem")).unwrap();
    let url = nginx.url("disk.qcow2");
    let import = |more: &[&str]| cli.run([&["import", &url, "--name", "disk"], more].concat());

    let output = import(&[]);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(
        output.stderr.contains("UnknownIssuer") && output.stderr.contains("--ca-file"),
        "{output}"
    );
    let output = import(&["--ca-file", "ca.pem"]);
    assert!(output.stderr.contains("401") && output.stderr.contains("--password-file"), "{output}");
    assert_nothing_left(&cli);
    let output = import(&["--ca-file", "ca.pem", "--user", "user", "--password-file", "password"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(!format!("{output}").contains("hunter2"), "{output}");
}

#[test]
fn the_published_checksum_is_looked_up_and_kept() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    let dir = folder(&cli);
    let digest = sha256_file(dir.join("disk.qcow2"));
    let list = format!("{}  other.qcow2\n{digest} *disk.qcow2\n", "0".repeat(64));
    fs_err::write(dir.join("SHA256SUMS"), list).unwrap();
    fs_err::write(dir.join("WRONG"), format!("{}  disk.qcow2\n", "0".repeat(64))).unwrap();
    fs_err::write(dir.join("OTHER"), format!("{digest}  other.qcow2\n")).unwrap();
    let nginx = Nginx::serve(&dir);
    let import = |list: &str, name: &str| {
        let (image, list) = (nginx.url("disk.qcow2"), nginx.url(list));
        cli.run(["import", &image, "--name", name, "--checksum-file", &list])
    };
    let output = import("SHA256SUMS", "good");
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout.contains(&format!("sha256:{digest} (as expected)")), "{output}");
    let output = import("WRONG", "wrong");
    assert_eq!(output.code, Some(5), "{output}");
    let output = import("OTHER", "other");
    assert_eq!(output.code, Some(5), "{output}");
    assert!(
        output.stderr.contains("no checksum for `disk.qcow2`, only for `other.qcow2`"),
        "{output}"
    );
    let output = import("disk.qcow2", "image");
    assert!(output.stderr.contains("expected lines such as `HASH  NAME`"), "{output}");
    assert_eq!(import("none", "none").code, Some(3));
}

#[test]
fn a_list_elsewhere_is_asked_for_without_what_is_private() {
    let cli = Cli::from_env();
    let (image, list) = (FaultServer::serve("", [Reply::status(404)]), FaultServer::serve("", []));
    let import = |list: &str| {
        let url = image.url("disk.qcow2");
        let arguments = ["--header", "X-Token: hunter2", "--checksum-file", list];
        let output = cli.run([&["import", &url, "--name", "disk"], &arguments[..]].concat());
        assert_ne!(output.code, Some(0), "{output}");
    };
    import(&list.url("SHA256SUMS"));
    assert_eq!(list.requests()[0].header("x-token"), None);
    import(&image.url("SHA256SUMS"));
    assert_eq!(image.requests()[0].header("x-token"), Some("hunter2"));
}

#[test]
fn a_web_page_is_no_disk_whatever_its_type() {
    if !require_tool("nginx") {
        return;
    }
    let cli = Cli::from_env();
    let dir = cli.work().join("www");
    fs_err::create_dir_all(&dir).unwrap();
    let page = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n".repeat(100);
    for name in ["disk.img", "disk.html"] {
        fs_err::write(dir.join(name), &page).unwrap();
    }
    // nginx gives the first one out as application/octet-stream.
    let nginx = Nginx::serve(&dir);
    for name in ["disk.img", "disk.html"] {
        let output = cli.run(["import", &nginx.url(name), "--name", "disk"]);
        assert_eq!(output.code, Some(4), "{output}");
        assert!(output.stderr.contains("got an HTML page"), "{output}");
        assert_nothing_left(&cli);
    }
}
