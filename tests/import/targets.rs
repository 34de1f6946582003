//! Targets: block devices, full file systems, races.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bootyard_testkit::{
    Cli, FaultServer, LoopDevice, Mount, Reply, require_tool, run, sha256_file,
};
use fs_err::os::unix::fs::OpenOptionsExt;

use crate::Images;

#[test]
fn a_block_device_gets_the_disk_and_zeros_behind_it() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let source = images.convert("zlib.qcow2", &["-c"]).display().to_string();
    for sector in [512, 4096] {
        let backing = images.path("device");
        fs_err::write(&backing, vec![0xaa; 32 << 20]).expect("a file for the device");
        let Some(device) = LoopDevice::attach(&backing, sector) else { return };
        let cli = Cli::from_env();
        let output = cli.run(["import", &source, "--to", device.path().to_str().expect("a name")]);
        assert_eq!(output.code, Some(0), "{output}");
        drop(device);
        let written = fs_err::read(&backing).expect("the device's file");
        let disk = fs_err::read(images.path("disk.raw")).expect("the disk");
        let (front, tail) = written.split_at(disk.len());
        assert!(front == disk, "the device differs from the disk");
        assert!(tail.iter().all(|byte| *byte == 0), "old bytes are left behind the disk");
    }
}

#[test]
fn a_device_that_is_too_small_is_left_as_it_was() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let source = images.convert("zlib.qcow2", &["-c"]).display().to_string();
    let backing = images.path("device");
    fs_err::write(&backing, vec![0xaa; 1 << 20]).expect("a file for the device");
    let Some(device) = LoopDevice::attach(&backing, 512) else { return };
    let (cli, path) = (Cli::from_env(), device.path().to_str().expect("a name"));
    for flags in [&["--dry-run"][..], &[]] {
        let output = cli.run([&["import", &source, "--to", path], flags].concat());
        assert_eq!(output.code, Some(6), "{output}");
        assert!(
            output.stderr.contains("is too small: expected at least 24Mi, got 1Mi"),
            "{output}"
        );
    }
    // O_EXCL (asm-generic/fcntl.h): whoever opens a device so is its only user.
    let mut exclusive = fs_err::OpenOptions::new();
    let holder = exclusive.read(true).custom_flags(0o200).open(path).expect("the device");
    for flags in [&["--dry-run"][..], &[]] {
        let output = cli.run([&["import", &source, "--to", path], flags].concat());
        assert_eq!(output.code, Some(6), "{output}");
        assert!(output.stderr.contains("is in use"), "{output}");
    }
    drop((holder, device));
    let left = fs_err::read(&backing).expect("the device's file");
    assert!(left.iter().all(|byte| *byte == 0xaa));
}

#[test]
fn a_full_file_system_is_one_error_and_shows_nothing() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let source = images.convert("zlib.qcow2", &["-c"]).display().to_string();
    let Some(mount) = Mount::new("ext4", 8) else { return };
    let mount = mount.path();
    let cli = Cli::from_env().env("BOOTYARD_HOME", &mount.display().to_string());
    let output = cli.run(["import", &source, "--name", "disk"]);
    let left = run(Command::new("find").arg(&mount).args(["-name", "disk*", "-type", "f"]));
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("No space left") || output.stderr.contains("no space"));
    assert!(output.stderr.contains("hint: "), "{output}");
    assert_eq!(left, "");
}

#[test]
fn of_two_imports_into_one_name_one_wins() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let source = images.convert("zlib.qcow2", &["-c"]).display().to_string();
    let cli = Cli::from_env();
    let start = || cli.command(["import", &source, "--name", "disk"]).output().expect("an import");
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(start);
        (start(), other.join().expect("the other import"))
    });
    let mut codes = [first.status.code(), second.status.code()];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(6)]);
    let volume = cli.store().join("volumes/disk/disk.raw");
    assert_eq!(sha256_file(volume), sha256_file(images.path("disk.raw")));
}

#[test]
fn a_killed_import_shows_nothing_and_the_next_one_takes_over() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let source = images.convert("zlib.qcow2", &["-c"]);
    let image = fs_err::read(&source).expect("the image");
    let server =
        FaultServer::serve(image.clone(), [Reply::honest().stall_after(image.len() as u64 / 2)]);
    let cli = Cli::from_env();
    let url = server.url("disk.qcow2");
    // In segments no answer would be long enough to stall.
    let mut import = cli.command(["import", &url, "--name", "disk", "--connections", "1"]);
    let mut child = import.stderr(std::process::Stdio::null()).spawn().expect("an import");
    std::thread::sleep(Duration::from_millis(800));
    child.kill().expect("a child to kill");
    child.wait().expect("its end");
    assert!(!cli.store().join("volumes/disk/disk.raw").exists());
    let output = cli.run(["import", &source.display().to_string(), "--name", "disk"]);
    assert_eq!(output.code, Some(0), "{output}");
    let names: Vec<_> = fs_err::read_dir(cli.store().join("volumes/disk"))
        .expect("the volume")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["disk.raw"]);
}

#[test]
fn a_blank_volume_is_zeros_of_the_asked_size() {
    let cli = Cli::from_env();
    let output = cli.run(["import", "blank", "--name", "b", "--size", "3Mi", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    let disk = cli.store().join("volumes/b/disk.raw");
    assert_eq!(fs_err::read(&disk).expect("the volume"), vec![0; 3 << 20]);
    assert_eq!(fs_err::metadata(&disk).expect("the volume").blocks(), 0);
    let output = cli.run(["import", "blank", "--name", "p", "--size", "3Mi", "--preallocation"]);
    assert_eq!(output.code, Some(0), "{output}");
    let disk = cli.store().join("volumes/p/disk.raw");
    assert_eq!(fs_err::metadata(&disk).expect("the volume").blocks() * 512, 3 << 20);
    let output = cli.run(["import", "blank", "--name", "n"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("hint: name it: `--size 10Gi`"), "{output}");
}

#[test]
fn a_raw_volume_as_source_is_never_taken_for_anything_else() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let cli = Cli::from_env();
    // What the guest wrote into its disk is a qcow2 image.
    let inner = images.convert("inner.qcow2", &[]);
    let folder = cli.store().join("volumes/a");
    fs_err::create_dir_all(&folder).expect("a folder");
    fs_err::copy(&inner, folder.join("disk.raw")).expect("a volume");
    let output = cli.run(["import", "volume:a", "--name", "b"]);
    assert_eq!(output.code, Some(0), "{output}");
    let copy = cli.store().join("volumes/b/disk.raw");
    assert_eq!(sha256_file(copy), sha256_file(inner));
    let output = cli.run(["import", "volume:none", "--name", "c"]);
    assert_eq!(output.code, Some(6), "{output}");
}

#[test]
fn the_backup_of_a_partition_table_moves_to_the_end() {
    if !require_tool("sgdisk") {
        return;
    }
    let cli = Cli::from_env();
    let disk = cli.work().join("gpt.raw");
    fs_err::File::create(&disk).expect("a disk").set_len(16 << 20).expect("its size");
    let sgdisk =
        |arguments: &[&str], disk: &Path| run(Command::new("sgdisk").args(arguments).arg(disk));
    sgdisk(&["-n", "1:2048:0"], &disk);
    let path = disk.display().to_string();
    for (name, grown) in [("same", "16Mi"), ("grown", "24Mi")] {
        let arguments =
            ["import", &path, "--name", name, "--size", grown, "--relocate-gpt", "--json"];
        let output = cli.run(arguments);
        assert_eq!(output.code, Some(0), "{output}");
        let volume = cli.store().join(format!("volumes/{name}/disk.raw"));
        let said = sgdisk(&["-v"], &volume);
        assert!(said.contains("No problems found"), "{said}");
    }
}

#[test]
fn an_archive_becomes_a_folder_and_time_has_a_limit() {
    let cli = Cli::from_env();
    let tree = cli.work().join("tree/deep");
    fs_err::create_dir_all(&tree).expect("a folder");
    fs_err::write(tree.join("file"), "content").expect("a file");
    run(Command::new("tar").current_dir(cli.work()).args(["-czf", "tree.tar.gz", "tree"]));
    let words = ["import", "tree.tar.gz", "--content-type", "archive"];
    let output = cli.run([&words[..], &["--to", "out", "--json"]].concat());
    assert_eq!(output.code, Some(0), "{output}");
    let copy = fs_err::read_to_string(cli.work().join("out/tree/deep/file")).expect("the file");
    assert_eq!(copy, "content");
    let output = cli.run([&words[..], &["--name", "a"]].concat());
    assert_eq!(output.code, Some(2), "{output}");

    let slow = Reply::honest().drip(1000, Duration::from_millis(100));
    let server = FaultServer::serve(vec![7; 1 << 20], [slow]);
    let words = ["import", &server.url("disk"), "--name", "a", "--deadline", "1s"];
    let output = cli.run(words);
    assert_eq!(output.code, Some(10), "{output}");
    assert!(output.stderr.contains("took longer than 1s"), "{output}");
}
