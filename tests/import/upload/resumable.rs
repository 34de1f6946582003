//! The resumable protocol, request by request, with curl.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use bootyard_testkit::{Cli, run, sha256_file};

use super::{Server, curl, missing, post, volume};
use crate::{Images, assert_nothing_visible};

/// Begins an upload, and gives its URL.
fn create(server: &Server, headers: &[&str]) -> (u16, String) {
    let mut arguments = vec!["-i", "-X", "POST"];
    headers.iter().for_each(|header| arguments.extend(["-H", *header]));
    let url = server.url("/v1/uploads");
    arguments.push(&url);
    let (status, head) = curl(&arguments);
    let location = head.lines().find_map(|line| line.strip_prefix("location: "));
    (status, server.url(location.unwrap_or_default().trim()))
}

/// Sends a part of `file` at `offset`; the status, and what came with it.
fn patch(url: &str, offset: u64, file: &str, headers: &[&str]) -> (u16, String) {
    let (offset, data) = (format!("Upload-Offset: {offset}"), format!("@{file}"));
    let kind = "Content-Type: application/offset+octet-stream";
    let mut arguments = vec!["-i", "-X", "PATCH", "-H", kind, "-H", &offset];
    headers.iter().for_each(|header| arguments.extend(["-H", *header]));
    arguments.extend(["--data-binary", &data, url]);
    curl(&arguments)
}

fn offset(url: &str) -> Option<String> {
    let (_, head) = curl(&["-I", url]);
    let offset = head.lines().find_map(|line| line.strip_prefix("upload-offset: "));
    offset.map(|offset| offset.trim().to_owned())
}

#[test]
fn an_upload_comes_in_parts() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]);
    let len = fs_err::metadata(&image).expect("the image").len();
    let shell =
        |line: &str| run(Command::new("sh").args(["-ec", line]).current_dir(images.folder.path()));
    shell("head -c 1000000 disk.qcow2 > a; tail -c +1000001 disk.qcow2 > b; : > none");
    let part = |name: &str| images.path(name).display().to_string();
    let server = Server::start(&cli, &["--name", "v", "--keep"]);
    let (length, metadata) = (format!("Upload-Length: {len}"), "Upload-Metadata: id YWJj,sha256");
    assert_eq!(create(&server, &[&length, "Tus-Resumable: 0.2.0"]).0, 412);
    assert_eq!(create(&server, &["Upload-Length: many"]).0, 400);
    assert_eq!(create(&server, &[&length, "Upload-Metadata: id !"]).0, 400);
    let (status, url) = create(&server, &[&length, metadata]);
    assert_eq!((status, url.rsplit('/').next()), (201, Some("abc")));

    assert_eq!(patch(&url, 5, &part("a"), &[]).0, 409);
    assert_eq!(patch(&url, 0, &part("a"), &[]).0, 204);
    assert_eq!(offset(&url).as_deref(), Some("1000000"));
    // The same upload once more is found; another one has to wait.
    assert_eq!(create(&server, &[&length, metadata]), (201, url.clone()));
    assert_eq!(create(&server, &[&length]).0, 503);
    assert_eq!(curl(&["-X", "POST", "-d", "x", &server.url("/v1beta1/upload")]).0, 503);
    assert_eq!(patch(&url, 1_000_000, &part("disk.raw"), &[]).0, 413);
    assert_nothing_visible(&cli);

    // What was taken of the part that was too long counts: it was as announced. Start over with another.
    let at: u64 = offset(&url).expect("an offset").parse().expect("a number");
    assert!((1_000_000..=len).contains(&at), "{at}");
    drop(server);
    let server = Server::start(&cli, &["--name", "v", "--keep"]);
    let (status, url) = create(&server, &[&length, "Upload-Metadata: id ZGVm,sha256"]);
    assert_eq!(status, 201);
    assert_eq!(patch(&url, 0, &part("a"), &[]).0, 204);
    assert_eq!(patch(&url, 1_000_000, &part("b"), &[]).0, 204);
    assert_nothing_visible(&cli);
    let digest = shell("openssl dgst -sha256 -binary disk.qcow2 | openssl base64 -A");
    let digest = format!("Repr-Digest: sha-256=:{digest}:");
    let (status, head) = patch(&url, len, &part("none"), &[&digest]);
    assert_eq!(status, 204, "{head}");
    assert!(head.contains(&digest.to_lowercase()[..20]), "{head}");
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));
    // A client that missed the answer asks again.
    assert_eq!(patch(&url, len, &part("none"), &[&digest]).0, 204);
    assert_eq!(offset(&url), Some(len.to_string()));
    assert_eq!(create(&server, &[&length, "Upload-Metadata: id ZGVm"]).0, 201);
    // What is not this upload is not said to be done.
    assert_eq!(patch(&url, 5, &part("none"), &[&digest]).0, 409);
    let wrong = format!("Repr-Digest: sha-256=:{}=:", "A".repeat(43));
    assert_eq!(patch(&url, len, &part("none"), &[&wrong]).0, 400);
    assert_eq!(patch(&url, len, &part("none"), &["Upload-Length: 5"]).0, 400);
    assert_eq!(create(&server, &["Upload-Length: 5", "Upload-Metadata: id ZGVm"]).0, 409);
    assert_eq!(create(&server, &[&length]).0, 409);
}

#[test]
fn a_digest_that_follows_is_compared_before_anything_is_visible() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]).display().to_string();
    let len = fs_err::metadata(&image).expect("the image").len();
    fs_err::write(images.path("none"), "").expect("a file");
    let none = images.path("none").display().to_string();
    let server = Server::start(&cli, &["--name", "v"]);
    let length = format!("Upload-Length: {len}");
    let (_, url) = create(&server, &[&length, "Upload-Metadata: id YWJj,sha256"]);
    assert_eq!(patch(&url, 0, &image, &[]).0, 204);
    let wrong = format!("Repr-Digest: sha-256=:{}=:", "A".repeat(43));
    let (status, body) = patch(&url, len, &none, &[&wrong]);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("checksum mismatch"), "{body}");
    assert!(!volume(&cli, "v").exists());
    assert_eq!(offset(&url), None);
    // One that was told before, and a length that was told last.
    let digest = sha256_file(&image);
    let digest =
        run(Command::new("sh").args(["-c", &format!("printf {digest} | openssl base64 -A")]));
    let metadata = format!("Upload-Metadata: sha256 {digest}");
    let (status, url) = create(&server, &["Upload-Defer-Length: 1", &metadata]);
    assert_eq!(status, 201);
    assert_eq!(patch(&url, 0, &image, &[&length]).0, 204);
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));
}

#[test]
fn requests_for_another_upload_do_not_cut_one() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.path("disk.raw").display().to_string();
    let len = fs_err::metadata(&image).expect("the image").len();
    let server = Server::start(&cli, &["--name", "v"]);
    let length = format!("Upload-Length: {len}");
    let (_, url) = create(&server, &[&length, "Upload-Metadata: id YWJj"]);
    let sending = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (rate, data) = ((len / 2).to_string(), format!("@{image}"));
            let kind = "Content-Type: application/offset+octet-stream";
            let head = ["-X", "PATCH", "-H", kind, "-H", "Upload-Offset: 0"];
            let body = ["--limit-rate", &rate, "--data-binary", &data, &url];
            curl(&[&head[..], &body].concat()).0
        });
        sleep(Duration::from_millis(400));
        let other = server.url("/v1/uploads/other");
        assert_eq!(offset(&other), None);
        assert_eq!(patch(&other, 0, &image, &[]).0, 404);
        assert_eq!(create(&server, &[&length, "Upload-Metadata: id ZGVm"]).0, 503);
        sending.join().expect("curl")
    });
    assert_eq!(sending, 204);
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn an_upload_whose_client_is_gone_makes_way() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]);
    for is_resumable in [true, false] {
        let name = format!("v{is_resumable}").to_lowercase();
        let server = Server::start(&cli, &["--name", &name, "--stall-timeout", "1s"]);
        assert_eq!(create(&server, &["Upload-Length: 1000000", "Upload-Metadata: id YWJj"]).0, 201);
        let next = || match is_resumable {
            true => create(&server, &["Upload-Length: 5", "Upload-Metadata: id ZGVm"]).0,
            false => post(&server.url("/v1beta1/upload"), &image, &[]).0,
        };
        assert_eq!(next(), 503);
        sleep(Duration::from_millis(1100));
        assert_eq!(next(), if is_resumable { 201 } else { 200 });
    }
    assert_eq!(sha256_file(volume(&cli, "vfalse")), sha256_file(images.path("disk.raw")));
}
