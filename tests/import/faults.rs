//! Servers that fail, lie and hang: one error each with its own exit code, and nothing left.

use std::time::Duration;

use bootyard_testkit::{Cli, FaultServer, Reply, require_tool, sha256_file};

use crate::{Images, assert_nothing_left, assert_nothing_visible};

fn zlib_image() -> Vec<u8> {
    let images = Images::new();
    fs_err::read(images.convert("zlib.qcow2", &["-c"])).expect("the image")
}

/// Imports from a server that answers so, and checks the exit code and a part of what is said.
#[track_caller]
fn check(replies: impl IntoIterator<Item = Reply>, code: i32, said: &str) {
    let server = FaultServer::serve(zlib_image(), replies);
    let cli = Cli::from_env();
    let output = cli.run(["import", &server.url("disk.qcow2"), "--name", "disk"]);
    assert_eq!(output.code, Some(code), "{output}");
    assert!(output.stderr.contains(said), "{output}");
    assert!(output.stderr.contains("hint: "), "{output}");
    assert_nothing_left(&cli);
}

#[test]
fn what_a_server_refuses_or_mistakes_is_said() {
    if !require_tool("qemu-img") {
        return;
    }
    check([Reply::status(404)], 3, "HTTP status 404");
    check([Reply::status(403)], 3, "HTTP status 403");
    check([Reply::html()], 4, "expected a disk image, got an HTML page");
    check([Reply::honest().body("")], 4, "got an empty file");
    check([Reply::honest().content_length(1 << 30)], 3, "answered wrongly");
}

#[test]
fn a_connection_that_always_breaks_is_given_up() {
    if !require_tool("qemu-img") {
        return;
    }
    check([Reply::honest().no_ranges().cut_after(100_000)], 3, "100000 of ");
}

#[test]
fn a_connection_that_breaks_once_is_resumed() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let image = fs_err::read(images.convert("zlib.qcow2", &["-c"])).expect("the image");
    let server = FaultServer::serve(image, [Reply::honest().cut_after(300_000), Reply::honest()]);
    let cli = Cli::from_env();
    let output = cli.run(["import", &server.url("disk.qcow2"), "--name", "disk", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout.contains(r#""retries":1"#), "{output}");
    let volume = cli.store().join("volumes/disk/disk.raw");
    assert_eq!(sha256_file(volume), sha256_file(images.path("disk.raw")));
    let requests = server.requests();
    let mut ranges = requests.iter().filter_map(|request| request.header("range"));
    assert!(ranges.any(|range| range.starts_with("bytes=300000-")), "{requests:?}");
}

#[test]
fn an_object_that_changes_on_the_way_is_not_mixed() {
    if !require_tool("qemu-img") {
        return;
    }
    let changed = Reply::honest().etag(Some("\"v2\""));
    check([Reply::honest().cut_after(300_000), changed], 3, "changed");
}

#[test]
fn a_flipped_bit_is_caught_by_the_checksum() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let path = images.convert("plain.qcow2", &[]);
    let digest = sha256_file(&path);
    let mut image = fs_err::read(path).expect("the image");
    let last = image.len() - 1000;
    image[last] ^= 1;
    let server = FaultServer::serve(image, []);
    let cli = Cli::from_env();
    let checksum = format!("sha256:{digest}");
    let arguments =
        ["import", &server.url("disk.qcow2"), "--name", "disk", "--checksum", &checksum];
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(5), "{output}");
    assert_nothing_left(&cli);
}

#[test]
fn an_interrupted_import_hides_what_is_done_and_says_how_to_go_on() {
    if !require_tool("qemu-img") {
        return;
    }
    let slow = Reply::honest().drip(20_000, Duration::from_millis(100));
    let server = FaultServer::serve(zlib_image(), [slow]);
    let cli = Cli::from_env();
    let mut command = cli.command(["import", &server.url("disk.qcow2"), "--name", "disk"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().expect("the import");
    // Long enough to be in the middle of the transfer, which takes ten times as long.
    std::thread::sleep(Duration::from_millis(1500));
    bootyard_testkit::run(
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]),
    );
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("hint: "), "{said}");
    assert_nothing_visible(&cli);
}

#[test]
fn a_deadline_holds_for_the_list_of_checksums_and_for_a_dry_run() {
    let silent = || FaultServer::serve(vec![7; 4096], [Reply::honest().stall_after(0)]);
    let (image, list) = (FaultServer::serve(vec![7; 4096], []), silent());
    let (image, list, slow) = (image.url("disk.raw"), list.url("SHA256SUMS"), silent());
    let cli = Cli::from_env().limit(Duration::from_secs(20));
    for arguments in [
        &[&image, "--checksum-file", &list][..],
        &[&slow.url("disk.raw"), "--dry-run"],
        &[&slow.url("disk.raw")],
    ] {
        let words = [&["import", "--name", "v", "--deadline", "1s"], arguments].concat();
        let output = cli.run(words);
        assert_eq!(output.code, Some(10), "{output}");
        assert!(output.stderr.contains("took longer than 1s"), "{output}");
        assert_nothing_left(&cli);
    }
}
