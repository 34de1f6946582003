//! `bootyard upload`: to a server of ours, whatever is killed on the way, and to one that only knows CDI's
//! endpoints.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use bootyard_testkit::{
    Cli, Nginx, NginxOptions, pseudo_random, qemu_img, require_tool, run, sha256_file,
};
use serde_json::Value;

use super::{Server, curl, missing, volume};
use crate::{Images, assert_nothing_left, assert_nothing_visible};

const MIB: usize = 1 << 20;

/// A disk of noise and holes in `folder/disk.raw`, and as `folder/disk.qcow2`.
fn images(folder: &Path) {
    let mut disk = vec![0; 96 * MIB];
    for (index, part) in disk.chunks_mut(3 * MIB).enumerate() {
        if index % 4 != 3 {
            part.copy_from_slice(&pseudo_random(part.len(), index as u64));
        }
    }
    let [raw, qcow2] = ["disk.raw", "disk.qcow2"].map(|name| folder.join(name));
    fs_err::write(&raw, disk).expect("a disk");
    let [raw, qcow2] = [&raw, &qcow2].map(|path| path.to_str().expect("a path"));
    qemu_img(["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
}

/// Waits until the store holds this many MiB more or less whole, or the volume is there.
fn wait_until_stored(cli: &Cli, mib: usize) {
    for _ in 0..5000 {
        let mut files = Vec::new();
        crate::collect(&cli.store(), &mut files);
        let blocks = |path: &PathBuf| fs_err::metadata(path).map_or(0, |found| found.blocks());
        let stored: u64 = files.iter().map(blocks).sum();
        if stored * 512 >= (mib * MIB) as u64 || volume(cli, "v").exists() {
            return;
        }
        sleep(Duration::from_millis(2));
    }
    panic!("nothing is stored");
}

fn start(cli: &Cli, arguments: &[&str]) -> Child {
    let mut command = cli.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the upload")
}

/// The last line of what an upload with `--json` has printed.
fn report(stdout: &[u8]) -> Value {
    let text = String::from_utf8_lossy(stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a report")
}

#[test]
fn a_client_that_is_killed_goes_on_where_it_was() {
    if missing() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    images(folder.path());
    let expected = sha256_file(folder.path().join("disk.raw"));
    for name in ["disk.raw", "disk.qcow2"] {
        let (cli, file) = (Cli::from_env(), folder.path().join(name).display().to_string());
        let server = Server::start(&cli, &["--name", "v"]);
        let arguments = ["upload", &file, "--to", &server.url, "--json"];
        for round in 0..4 {
            let mut child = start(&cli, &arguments);
            wait_until_stored(&cli, 4 + 10 * round);
            child.kill().expect("SIGKILL");
            child.wait().expect("its end");
            assert_nothing_visible(&cli);
        }
        let output = start(&cli, &arguments).wait_with_output().expect("its end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let report = report(&output.stdout);
        assert!(report["resumed_bytes"].as_u64().expect("a number") > 0, "{name}: {report}");
        assert_eq!(report["sha256"], sha256_file(&file));
        assert_eq!(server.end().0, Some(0));
        assert_eq!(sha256_file(volume(&cli, "v")), expected, "{name}");
    }
}

#[test]
fn a_server_that_is_killed_goes_on_where_it_was() {
    if missing() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    images(folder.path());
    let expected = sha256_file(folder.path().join("disk.raw"));
    for name in ["disk.raw", "disk.qcow2"] {
        let (cli, file) = (Cli::from_env(), folder.path().join(name).display().to_string());
        let mut server = Server::start(&cli, &["--name", "v"]);
        let (address, url) = (server.address().to_owned(), server.url.clone());
        let client = start(&cli, &["upload", &file, "--to", &url, "--json", "--retries", "20"]);
        let mut resumed = false;
        for round in 0..3 {
            server.wait_for(r#""event":"upload""#);
            wait_until_stored(&cli, 10 + 10 * round);
            if volume(&cli, "v").exists() {
                break;
            }
            server.child.kill().expect("SIGKILL");
            server.child.wait().expect("its end");
            assert_nothing_visible(&cli);
            server = Server::start_at(&cli, &address, &["--name", "v"]);
            server.wait_for(r#""event":"upload""#);
            resumed |= server.has_said(r#""event":"resumed""#, Duration::from_millis(500));
        }
        let output = client.wait_with_output().expect("its end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let sent = report(&output.stdout);
        assert!(resumed && sent["retries"].as_u64().expect("a number") > 0, "{name}: {sent}");
        let (code, report) = server.end();
        assert_eq!((code, &report["checked"]), (Some(0), &report["checked"]));
        assert!(report["checked"].is_string(), "{report}");
        assert_eq!(sha256_file(volume(&cli, "v")), expected, "{name}");
    }
}

#[test]
fn a_file_that_has_changed_is_sent_anew() {
    if missing() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    images(folder.path());
    let disk = folder.path().join("disk.raw");
    let (cli, file) = (Cli::from_env(), disk.display().to_string());
    let server = Server::start(&cli, &["--name", "v"]);
    let mut child = start(&cli, &["upload", &file, "--to", &server.url]);
    wait_until_stored(&cli, 8);
    child.kill().expect("SIGKILL");
    child.wait().expect("its end");
    drop(server);
    let mut bytes = fs_err::read(&disk).expect("the disk");
    bytes[5] ^= 1;
    fs_err::write(&disk, bytes).expect("another disk");
    let server = Server::start(&cli, &["--name", "v"]);
    let output = cli.run(["upload", &file, "--to", &server.url, "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(report(output.stdout.as_bytes())["resumed_bytes"], 0);
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(&disk));
}

#[test]
fn a_pipe_is_sent_with_its_digest() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &["-c"]);
    let server = Server::start(&cli, &["--name", "v"]);
    let mut command = cli.command(["upload", "-", "--to", &server.url, "--json"]);
    let stdin = fs_err::File::open(&image).expect("the image").into_file();
    let output = command.stdin(stdin).output().expect("the upload");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sent = report(&output.stdout);
    assert_eq!((&sent["compared"], &sent["sha256"]), (&true.into(), &sha256_file(&image).into()));
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));
}

#[test]
fn cdis_proxy_gets_everything_in_one_request() {
    if missing() || !require_tool("nginx") {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]).display().to_string();
    let token = images.path("token");
    fs_err::write(&token, "hunter2\n").expect("a token");
    let token = token.display().to_string();
    let server = Server::start(&cli, &["--name", "v", "--token-file", &token]);
    // nginx passes CDI's paths on and knows no others, as CDI's proxy does.
    let directives = format!(
        "client_max_body_size 0; proxy_request_buffering off;\n\
         location /v1beta1/ {{ proxy_pass http://{}; }}\n\
         location /v1/ {{ return 404; }}",
        server.address()
    );
    let options = NginxOptions { directives, tls: true, ..NginxOptions::default() };
    let nginx = Nginx::serve_with(images.folder.path(), &options);
    let (url, ca) = (nginx.url(""), nginx.ca().display().to_string());
    let arguments = ["upload", &image, "--to", &url, "--ca-file", &ca, "--json"];

    let output = cli.run(arguments);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("expected `Authorization: Bearer TOKEN`"), "{output}");
    fs_err::write(images.path("bad"), "hunter3").expect("a token");
    let bad = images.path("bad").display().to_string();
    let output = cli.run([&arguments[..], &["--token-file", &bad]].concat());
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("401") && output.stderr.contains("--token-file"), "{output}");
    assert!(!output.to_string().contains("hunter3"), "{output}");
    assert_nothing_left(&cli);

    let cli = cli.env("BOOTYARD_UPLOAD_TOKEN", "hunter2");
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(0), "{output}");
    let sent = report(output.stdout.as_bytes());
    assert_eq!((&sent["event"], &sent["compared"]), (&"uploaded".into(), &true.into()));
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));
}

#[test]
fn what_the_server_refuses_is_one_error() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]).display().to_string();
    let server = Server::start(&cli, &["--name", "v", "--size", "1Mi", "--keep"]);
    let output = cli.run(["upload", &image, "--to", &server.url]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("too small"), "{output}");
    let output = cli.run(["upload", "missing.qcow2", "--to", &server.url]);
    assert_eq!(output.code, Some(3), "{output}");
    let output = cli.run(["upload", &image, "--to", "ftp://127.0.0.1"]);
    assert_eq!(output.code, Some(2), "{output}");
    let address = server.url.clone();
    drop(server);
    let output = cli.run(["upload", &image, "--to", &address]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("cannot connect"), "{output}");
    assert_nothing_left(&cli);
}

#[test]
fn what_is_tried_again_says_why() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.path("disk.raw").display().to_string();
    let server = Server::start(&cli, &["--name", "v"]);
    let busy = curl(&["-X", "POST", "-H", "Upload-Length: 5", &server.url("/v1/uploads")]);
    assert_eq!(busy.0, 201, "{busy:?}");
    let output = cli.run(["upload", &image, "--to", &server.url, "--retries", "1"]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("refused the upload with 503; trying again"), "{output}");
}

#[test]
fn without_a_server_an_upload_is_an_import() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]).display().to_string();
    let output = cli.run(["upload", &image, "v", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(report(output.stdout.as_bytes())["event"], "imported");
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));
}

#[test]
fn an_archive_is_sent_whole() {
    if missing() {
        return;
    }
    let (folder, cli) = (tempfile::tempdir().expect("a folder"), Cli::from_env());
    fs_err::create_dir(folder.path().join("in")).expect("a folder");
    fs_err::write(folder.path().join("in/a.txt"), "hello").expect("a file");
    let tar = folder.path().join("a.tar");
    run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(folder.path().join("in")).arg("."));
    let out = folder.path().join("out").display().to_string();
    let server = Server::start(&cli, &["--to", &out]);
    let tar = tar.display().to_string();
    let output = cli.run(["upload", &tar, "--to", &server.url, "--content-type", "archive"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(server.end().0, Some(0));
    assert_eq!(fs_err::read_to_string(folder.path().join("out/a.txt")).expect("it"), "hello");
}

#[test]
fn what_is_uploaded_gets_its_class() {
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.path("disk.raw").display().to_string();
    let folder = cli.root().join("fast").display().to_string();
    let add = ["storage-class", "add", "fast", "--driver", "directory", "--path", &folder];
    assert_eq!(cli.run(add).code, Some(0));
    let here = cli.run(["upload", &image, "a", "--storage-class", "fast"]);
    assert_eq!(here.code, Some(0), "{here}");
    let server = Server::start(&cli, &["--name", "b", "--storage-class", "fast"]);
    let sent = cli.run(["upload", &image, "--to", &server.url("")]);
    assert_eq!(sent.code, Some(0), "{sent}");
    assert_eq!(server.end().0, Some(0));
    for name in ["a", "b"] {
        let disk = cli.root().join(format!("fast/{name}/disk.raw"));
        assert_eq!(sha256_file(disk), sha256_file(images.path("disk.raw")));
    }
    let refused =
        cli.run(["upload", &image, "--to", "http://127.0.0.1:1", "--volume-mode", "Block"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(refused.stderr.contains("`--volume-mode` is for volumes of the store"), "{refused}");
}
