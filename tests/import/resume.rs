//! Imports that are killed: the same command goes on, nothing half-made is ever visible, and little
//! is fetched twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use bootyard_testkit::{
    Cli, FaultServer, Mount, Nginx, NginxOptions, Reply, pseudo_random, qemu_img, require_tool,
    run, sha256_file,
};
use serde_json::Value;

use crate::assert_nothing_visible;

const MIB: u64 = 1 << 20;
/// What a process may have in hand when it dies: a segment for each of four connections, and what
/// waits for the digest, the decoder and its workers.
const IN_HAND: u64 = (4 * 4 + 16) * MIB;

/// A disk of noise and holes in `folder/disk.raw`, and as `folder/disk.qcow2`.
fn images(folder: &Path) {
    let mut disk = vec![0; 72 * MIB as usize];
    for (index, part) in disk.chunks_mut(3 * MIB as usize).enumerate() {
        if index % 4 != 3 {
            part.copy_from_slice(&pseudo_random(part.len(), index as u64));
        }
    }
    let [raw, qcow2] = ["disk.raw", "disk.qcow2"].map(|name| folder.join(name));
    fs_err::write(&raw, disk).expect("a disk");
    let [raw, qcow2] = [&raw, &qcow2].map(|path| path.to_str().expect("a path"));
    qemu_img(["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
}

fn start(cli: &Cli, arguments: &[&str]) -> Child {
    let mut command = cli.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the import")
}

/// The last line of what an import with `--json` has printed.
fn report(stdout: &[u8]) -> Value {
    let text = String::from_utf8_lossy(stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a report")
}

/// Kills imports of `name` until `kills` are over, each a little later than the one before; every
/// import is repeated until it is done. Returns how many were killed.
fn kill_and_repeat(name: &str, kills: u32) -> u32 {
    let folder = tempfile::tempdir().expect("a folder");
    images(folder.path());
    let options = NginxOptions { bytes_per_second: Some(24 * MIB), ..NginxOptions::default() };
    let nginx = Nginx::serve_with(folder.path(), &options);
    let len = fs_err::metadata(folder.path().join(name)).expect("the image").len();
    let expected = sha256_file(folder.path().join("disk.raw"));
    let checksum = format!("sha256:{}", sha256_file(folder.path().join(name)));
    let (cli, url) = (Cli::from_env(), nginx.url(name));
    let (mut killed, mut started, mut fingerprints) = (0, 0, BTreeSet::new());
    for round in 0.. {
        if killed >= kills {
            break;
        }
        let volume = format!("v{round}");
        let arguments = ["import", &url, "--name", &volume, "--json", "--checksum", &checksum];
        let disk = cli.store().join(format!("volumes/{volume}/disk.raw"));
        let before = nginx.bytes_sent();
        let mut here = 0;
        let output = loop {
            let mut child = start(&cli, &arguments);
            // Spread over the import, without a pattern in common with its own steps.
            sleep(Duration::from_millis(15 + started * 37 % 161));
            started += 1;
            if killed >= kills || child.try_wait().expect("its state").is_some() {
                break Some(child.wait_with_output().expect("its end"));
            }
            child.kill().expect("SIGKILL");
            child.wait().expect("its end");
            (killed, here) = (killed + 1, here + 1);
            if disk.exists() {
                // It had given its verdict, and was killed before it said so.
                break None;
            }
            assert_nothing_visible(&cli);
        };
        assert_eq!(sha256_file(&disk), expected, "{name} after {killed} kills");
        fs_err::remove_dir_all(disk.parent().expect("a folder")).expect("it is removed");
        let Some(output) = output else { continue };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} after {killed} kills: {said}");
        let fetched = nginx.bytes_sent() - before;
        let most = len + here * IN_HAND;
        assert!(fetched <= most, "{name}: {fetched} bytes for {len} with {here} kills");
        let report = report(&output.stdout);
        assert!(report["resumed_bytes"].as_u64().is_some_and(|resumed| resumed <= len));
        fingerprints.insert(report["fingerprint"].as_str().expect("a fingerprint").to_owned());
    }
    assert!(fingerprints.len() <= 1, "{fingerprints:?}");
    killed
}

#[test]
fn an_import_that_is_killed_goes_on_where_it_was() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let killed = kill_and_repeat("disk.raw", 25) + kill_and_repeat("disk.qcow2", 25);
    assert_eq!(killed, 50);
}

#[test]
fn a_source_that_has_changed_is_fetched_anew() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    images(folder.path());
    let disk = folder.path().join("disk.raw");
    let options = NginxOptions { bytes_per_second: Some(16 * MIB), ..NginxOptions::default() };
    let nginx = Nginx::serve_with(folder.path(), &options);
    let (cli, url) = (Cli::from_env(), nginx.url("disk.raw"));
    // One connection, since each request has a burst before its rate is limited.
    let mut child = start(&cli, &["import", &url, "--name", "v", "--connections", "1"]);
    sleep(Duration::from_millis(700));
    child.kill().expect("SIGKILL");
    child.wait().expect("its end");
    let mut bytes = fs_err::read(&disk).expect("the disk");
    bytes[5] ^= 1;
    fs_err::write(&disk, bytes).expect("another disk");
    run(Command::new("touch").arg("-d").arg("2 hours ago").arg(&disk));
    let output = cli.run(["import", &url, "--name", "v", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout.contains(r#""event":"started_over""#), "{output}");
    assert_eq!(report(output.stdout.as_bytes())["resumed_bytes"], 0);
    assert_eq!(sha256_file(cli.store().join("volumes/v/disk.raw")), sha256_file(&disk));
}

#[test]
fn an_import_that_was_interrupted_or_broke_off_goes_on() {
    let disk = pseudo_random(24 * MIB as usize, 5);
    let expected = disk.clone();
    let server = FaultServer::serve(
        disk,
        [Reply::honest().cut_after(2 * MIB), Reply::status(404), Reply::honest()],
    );
    let cli = Cli::from_env();
    let url = server.url("disk.raw");
    let arguments = ["import", &url, "--name", "v", "--json"];
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stderr.contains("go on from there"), "{output}");
    assert_nothing_visible(&cli);
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(0), "{output}");
    let resumed = report(output.stdout.as_bytes())["resumed_bytes"].as_u64().expect("a number");
    assert!((MIB..=4 * MIB).contains(&resumed), "{resumed}");
    let stored = fs_err::read(cli.store().join("volumes/v/disk.raw")).expect("the volume");
    assert!(stored == expected);
}

#[test]
fn what_a_killed_import_left_outlives_refused_ones() {
    let disk = pseudo_random(24 * MIB as usize, 6);
    let cut = Reply::honest().cut_after(4 * MIB);
    let server = FaultServer::serve(disk.clone(), [cut, Reply::status(404), Reply::honest()]);
    let gone = FaultServer::serve("", [Reply::status(404)]);
    let (cli, url, other) = (Cli::from_env(), server.url("disk.raw"), gone.url("disk.raw"));
    let import = |arguments: &[&str]| cli.run([&["import"], arguments].concat());
    // One connection, so that the second request is the one that goes on.
    let output = import(&[&url, "--name", "v", "--connections", "1"]);
    assert!(output.stderr.contains("go on from there"), "{output}");
    for (arguments, code, said) in [
        (&[&url, "--name", "v", "--max-size", "1Mi"][..], 4, "expected at most 1Mi"),
        (&[&url, "--name", "v", "--size", "1Mi"], 2, "the asked size 1Mi is too small"),
        (
            &[&url, "--name", "v", "--output-format", "qcow2", "--relocate-gpt"],
            2,
            "cannot be changed",
        ),
        (&[&other, "--name", "v"], 3, "404"),
        (&["missing.raw", "--name", "v"], 3, "does not exist"),
        (&["blank", "--name", "v"], 2, "needs a size"),
    ] {
        let output = import(arguments);
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(said), "{output}");
    }
    let output = import(&[&url, "--name", "v", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    let resumed = report(output.stdout.as_bytes())["resumed_bytes"].as_u64().expect("a number");
    assert!((MIB..=6 * MIB).contains(&resumed), "{resumed}");
    assert!(fs_err::read(cli.store().join("volumes/v/disk.raw")).expect("the volume") == disk);
    // Nothing is kept of what cannot be right.
    let server = FaultServer::serve(disk.clone(), [Reply::honest()]);
    let wrong = format!("sha256:{}", "0".repeat(64));
    let output = import(&[&server.url("disk.raw"), "--name", "w", "--checksum", &wrong]);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(!cli.store().join("volumes/w").exists());
}

#[test]
fn an_import_into_a_full_file_system_goes_on_once_there_is_room() {
    let Some(mount) = Mount::new("ext4", 64) else { return };
    let disk = pseudo_random(40 * MIB as usize, 8);
    let server = FaultServer::serve(disk.clone(), [Reply::honest()]);
    let (filler, target) = (mount.path().join("filler"), mount.path().join("d.raw"));
    fs_err::write(&filler, vec![1; 30 * MIB as usize]).expect("a large file");
    let (cli, url) = (Cli::from_env(), server.url("disk.raw"));
    let arguments = ["import", &url, "--to", target.to_str().expect("a path"), "--json"];
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(6), "{output}");
    let hints = ["df -h", " % is done: run the same command again to go on from there"];
    assert!(hints.iter().all(|hint| output.stderr.contains(hint)), "{output}");
    assert!(!target.exists());
    // Again, without room: what is done stays.
    assert_eq!(cli.run(arguments).code, Some(6));
    fs_err::remove_file(filler).expect("it is removed");
    let output = cli.run(arguments);
    assert_eq!(output.code, Some(0), "{output}");
    let resumed = report(output.stdout.as_bytes())["resumed_bytes"].as_u64().expect("a number");
    assert!((4 * MIB..32 * MIB).contains(&resumed), "{resumed}");
    assert!(fs_err::read(&target).expect("the disk") == disk);
}
