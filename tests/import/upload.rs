//! Uploads to the real server, with curl as the client: CDI's endpoints, who may send, and what happens
//! to an upload that fails.

mod access;
mod client;
mod resumable;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use bootyard_testkit::{Cli, pseudo_random, qemu_img, require_tool, run, sha256_file};
use serde_json::Value;

use crate::{Images, assert_nothing_left};

/// An upload server that listens; killed when dropped.
struct Server {
    child: Child,
    url: String,
    /// What it has printed since.
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one on a free port.
    fn start(cli: &Cli, arguments: &[&str]) -> Self {
        Self::start_at(cli, "127.0.0.1:0", arguments)
    }

    fn start_at(cli: &Cli, address: &str, arguments: &[&str]) -> Self {
        let words = ["upload-server", "--listen", address, "--json"];
        let mut command = cli.command([&words[..], arguments].concat());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the server");
        let mut stdout = BufReader::new(child.stdout.take().expect("a piped output"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("its first line");
        let first: Value = serde_json::from_str(&line).expect("where it listens");
        let url = first["url"].as_str().expect("an address").to_owned();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let read = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                read.lock().expect("the lines").push(line);
            }
        });
        Self { child, url, lines, reader: Some(reader) }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn address(&self) -> &str {
        self.url.split_once("//").expect("a URL").1
    }

    /// Waits until it prints a line that holds `text`.
    fn wait_for(&self, text: &str) {
        assert!(self.has_said(text, Duration::from_secs(30)), "no `{text}`");
    }

    /// Whether it has printed such a line, or does so in this time.
    fn has_said(&self, text: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.lines.lock().expect("the lines").iter().any(|line| line.contains(text)) {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(5));
        }
        true
    }

    /// Waits for its end: the exit code, and the last line that it printed.
    fn end(mut self) -> (Option<i32>, Value) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let status = loop {
            match self.child.try_wait().expect("its state") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("the server does not end"),
                None => sleep(Duration::from_millis(10)),
            }
        };
        self.reader.take().expect("once").join().expect("its output");
        let lines = self.lines.lock().expect("the lines");
        let last = lines.last().map_or("null", String::as_str);
        (status.code(), serde_json::from_str(last).expect("JSON"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status that curl gets, and the body.
fn curl(arguments: &[&str]) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "-w", "\n%{http_code}", "--max-time", "60"]).args(arguments);
    let output = command.stderr(Stdio::piped()).output().expect("curl");
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or(0), body.trim_end().to_owned())
}

/// Sends a file as the body of a POST.
fn post(url: &str, file: &Path, arguments: &[&str]) -> (u16, String) {
    let file = file.display().to_string();
    curl(&[&["-X", "POST", "-T", &file, url][..], arguments].concat())
}

fn missing() -> bool {
    !["curl", "qemu-img", "openssl"].into_iter().all(require_tool)
}

fn volume(cli: &Cli, name: &str) -> PathBuf {
    cli.store().join(format!("volumes/{name}/disk.raw"))
}

#[test]
fn every_format_becomes_the_disk_that_qemu_img_makes_of_it() {
    if missing() || !require_tool("xz") {
        return;
    }
    let images = Images::new();
    images.convert("disk.qcow2", &["-c"]);
    let shell =
        |line: &str| run(Command::new("sh").args(["-c", line]).current_dir(images.folder.path()));
    shell("xz -0 -k disk.qcow2 && gzip -1 -k disk.raw");
    let [raw, vmdk] = ["disk.raw", "disk.vmdk"].map(|name| images.path(name).display().to_string());
    let options = ["-o", "subformat=streamOptimized"];
    qemu_img([&["convert", "-O", "vmdk"][..], &options, &[&raw, &vmdk]].concat());
    let expected = sha256_file(images.path("disk.raw"));
    for name in ["disk.raw", "disk.qcow2", "disk.qcow2.xz", "disk.raw.gz", "disk.vmdk"] {
        let cli = Cli::from_env();
        let server = Server::start(&cli, &["--name", "v"]);
        let (status, body) = post(&server.url("/v1beta1/upload"), &images.path(name), &[]);
        assert_eq!(status, 200, "{name}: {body}");
        let (code, report) = server.end();
        assert_eq!((code, report["event"].as_str()), (Some(0), Some("imported")), "{name}");
        let sent = sha256_file(images.path(name));
        assert_eq!(report["sha256"], sent, "{name}");
        assert_eq!(sha256_file(volume(&cli, "v")), expected, "{name}");
    }
}

#[test]
fn every_endpoint_of_cdi_takes_an_upload() {
    if missing() {
        return;
    }
    let images = Images::new();
    let image = images.convert("disk.qcow2", &[]);
    let form = format!("file=@{}", image.display());
    let expected = sha256_file(images.path("disk.raw"));
    for version in ["v1beta1", "v1alpha1"] {
        for endpoint in ["upload", "upload-async", "upload-form", "upload-form-async"] {
            let cli = Cli::from_env();
            let server = Server::start(&cli, &["--name", "v"]);
            let url = server.url(&format!("/{version}/{endpoint}"));
            let (status, _) = curl(&["-I", &url]);
            assert_eq!(status, if endpoint.ends_with("async") { 200 } else { 404 }, "{url}");
            let (status, body) = if endpoint.contains("form") {
                curl(&["-F", "note=first", "-F", &form, &url])
            } else {
                post(&url, &image, &[])
            };
            assert_eq!(status, 200, "{url}: {body}");
            assert_eq!(server.end().0, Some(0));
            assert_eq!(sha256_file(volume(&cli, "v")), expected, "{url}");
        }
    }
}

#[test]
fn an_archive_becomes_a_folder() {
    if missing() {
        return;
    }
    let cli = Cli::from_env();
    let folder = tempfile::tempdir().expect("a folder");
    fs_err::create_dir(folder.path().join("in")).expect("a folder");
    fs_err::write(folder.path().join("in/a.txt"), "hello").expect("a file");
    let tar = folder.path().join("a.tar.gz");
    run(Command::new("tar").arg("-czf").arg(&tar).arg("-C").arg(folder.path().join("in")).arg("."));
    let target = folder.path().join("out").display().to_string();
    let server = Server::start(&cli, &["--to", &target]);
    let (status, body) = post(&server.url("/v1beta1/upload-archive"), &tar, &[]);
    assert_eq!(status, 200, "{body}");
    let (code, report) = server.end();
    assert_eq!((code, report["event"].as_str()), (Some(0), Some("unpacked")), "{report}");
    assert_eq!(fs_err::read_to_string(folder.path().join("out/a.txt")).expect("it"), "hello");

    let server = Server::start(&cli, &["--name", "v"]);
    assert_eq!(post(&server.url("/v1beta1/upload-archive"), &tar, &[]).0, 400);
}

#[test]
fn what_is_no_upload_has_cdis_codes() {
    if missing() {
        return;
    }
    let cli = Cli::from_env();
    let server = Server::start(&cli, &["--name", "v", "--keep"]);
    for (method, path, expected) in [
        ("GET", "/v1beta1/upload", 404),
        ("PUT", "/v1beta1/upload-async", 404),
        ("POST", "/v1beta1/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/healthz", 200),
        ("GET", "/v1/uploads", 404),
        ("HEAD", "/v1/uploads/unknown", 404),
        ("PATCH", "/v1/uploads/unknown", 415),
        ("POST", "/v1/uploads", 400),
    ] {
        let method: &[&str] = if method == "HEAD" { &["-I"] } else { &["-X", method] };
        let (status, _) = curl(&[method, &[&server.url(path)]].concat());
        assert_eq!(status, expected, "{method:?} {path}");
    }
    let url = server.url("/v1beta1/upload-form");
    assert_eq!(curl(&["-F", "other=1", &url]).0, 400);
    assert_eq!(curl(&["-d", "a=1", &url]).0, 400);
    assert_nothing_left(&cli);
}

#[test]
fn a_bad_upload_is_told_why_and_the_next_one_is_taken() {
    if missing() {
        return;
    }
    let images = Images::new();
    let image = images.convert("disk.qcow2", &[]);
    let cli = Cli::from_env();
    let server = Server::start(&cli, &["--name", "v", "--size", "24Mi", "--keep"]);
    let url = server.url("/v1beta1/upload");
    let digest = |text: &str| format!("Repr-Digest: {text}");
    let wrong = digest(&format!("sha-256=:{}=:", "A".repeat(43)));

    let (status, body) = post(&url, &image, &["-H", &wrong]);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("checksum mismatch"), "{body}");
    assert_eq!(post(&url, &image, &["-H", "Repr-Digest: sha-256=abc"]).0, 400);
    assert_eq!(post(&url, &image, &["-H", "x-cdi-content-type: unknown"]).0, 400);
    assert_nothing_left(&cli);

    let large = images.path("large.raw");
    fs_err::write(&large, pseudo_random(40 << 20, 3)).expect("an image");
    // With a length, and without one: then only its bytes tell.
    for transfer in ["Expect:", "Transfer-Encoding: chunked"] {
        let (status, body) = post(&url, &large, &["-H", transfer]);
        assert_eq!(status, 400, "{transfer}: {body}");
        assert!(body.contains("24Mi"), "{body}");
    }
    assert_nothing_left(&cli);

    assert_eq!(post(&url, &image, &[]).0, 200);
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));
    let (status, body) = post(&url, &image, &[]);
    assert_eq!(status, 409, "{body}");
}

#[test]
fn a_cut_upload_leaves_nothing_and_a_second_one_waits() {
    if missing() {
        return;
    }
    let images = Images::new();
    let large = images.path("large.raw");
    fs_err::write(&large, pseudo_random(24 << 20, 3)).expect("an image");
    let cli = Cli::from_env();
    let server = Server::start(&cli, &["--name", "v"]);
    let url = server.url("/v1beta1/upload");
    let mut slow = Command::new("curl");
    slow.args(["-sS", "--limit-rate", "2M", "-X", "POST", "-T"]).arg(&large).arg(&url);
    let mut slow = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("curl");
    server.wait_for(r#""event":"upload""#);
    let (status, body) = curl(&["-X", "POST", "-d", "x", &url]);
    assert_eq!(status, 503, "{body}");
    slow.kill().expect("SIGKILL");
    slow.wait().expect("its end");
    let mut answer = (503, String::new());
    for _ in 0..200 {
        answer = post(&url, &large, &[]);
        if answer.0 != 503 {
            break;
        }
        assert!(!volume(&cli, "v").exists());
        sleep(Duration::from_millis(20));
    }
    assert_eq!(answer.0, 200, "{answer:?}");
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(&large));
}

#[test]
fn a_silent_client_and_a_deadline_end_an_upload() {
    if missing() {
        return;
    }
    let cli = Cli::from_env();
    let server = Server::start(&cli, &["--name", "v", "--stall-timeout", "1s", "--deadline", "3s"]);
    let url = server.url("/v1beta1/upload");
    let line = format!("(head -c 2000000 /dev/zero; sleep 20) | curl -sS -X POST -T - {url}");
    let mut stalled = Command::new("sh");
    let mut stalled = stalled
        .args(["-c", &line])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    sleep(Duration::from_millis(1800));
    // The first one has been let go, so that this one is read; and found to be no disk.
    let (status, body) = curl(&["-X", "POST", "-d", "", &url]);
    assert_eq!(status, 400, "{body}");
    let (code, last) = server.end();
    assert_eq!(code, Some(10), "{last}");
    stalled.kill().expect("SIGKILL");
    stalled.wait().expect("its end");
    assert_nothing_left(&cli);
}

#[test]
fn a_deadline_without_a_client_says_so() {
    let cli = Cli::from_env();
    let output = cli.run("upload-server --name v --listen 127.0.0.1:0 --deadline 1s".split(' '));
    assert_eq!(output.code, Some(10), "{output}");
    assert!(output.stderr.contains("error: no upload came within 1s"), "{output}");
    assert!(!output.stderr.contains("kept"), "{output}");
}

/// In snappy's frames, as CDI's cloner packs what it sends; the bytes as they are, with their checksum.
fn snappy(data: &[u8]) -> Vec<u8> {
    let mut file = b"\xff\x06\0\0sNaPpY".to_vec();
    for part in data.chunks(65_536) {
        let len = u32::try_from(part.len() + 4).expect("a chunk").to_le_bytes();
        let sum = crc32c::crc32c(part).rotate_right(15).wrapping_add(0xa282_ead8);
        file.extend([&[1], &len[..3], &sum.to_le_bytes(), part].concat());
    }
    file
}

#[test]
fn what_cdis_cloner_sends_is_taken() {
    if missing() {
        return;
    }
    let images = Images::new();
    let line = "cp disk.raw disk.img && tar -cSf files.tar ./disk.img";
    run(Command::new("sh").args(["-ec", line]).current_dir(images.folder.path()));
    let expected = sha256_file(images.path("disk.raw"));
    for (kind, file) in [("blockdevice-clone", "disk.raw"), ("filesystem-clone", "files.tar")] {
        let packed = images.path("packed");
        let data = fs_err::read(images.path(file)).expect("the file");
        fs_err::write(&packed, snappy(&data)).expect("it in frames");
        let cli = Cli::from_env();
        let server = Server::start(&cli, &["--name", "v"]);
        let header = format!("x-cdi-content-type: {kind}");
        let url = server.url("/v1beta1/upload");
        let (status, body) = post(&url, &packed, &["-H", &header]);
        assert_eq!(status, 200, "{kind}: {body}");
        assert_eq!(server.end().0, Some(0));
        assert_eq!(sha256_file(volume(&cli, "v")), expected, "{kind}");
    }
}
