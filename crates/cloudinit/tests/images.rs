//! Images as other programs read them: isoinfo, xorriso, blkid, fsck.vfat and mtools.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the oracles are other programs, and helpers of tests fail them"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use bootyard_cloudinit::{
    Datasource, ErrorKind, Hostname, Image, ImageFormat, Seed, SshPublicKey, Tree, UserData,
};
use bootyard_testkit::{require_tool, run};

const KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIGyQ7aKqmHWdN8i4cRkXzdn3SuNOqmJLlyXhHKzsqzZg a@b";

/// 2026-01-02 03:04:06 UTC; FAT counts seconds by twos.
const TIME: i64 = 1_767_323_046;

type Files = BTreeMap<String, Vec<u8>>;

fn files<const N: usize>(files: [(&str, &[u8]); N]) -> Files {
    files.map(|(path, content)| (path.to_owned(), content.to_vec())).into()
}

fn build(files: &Files, format: ImageFormat) -> Vec<u8> {
    let mut tree = Tree::new();
    files.iter().for_each(|(path, content)| tree.insert(path, content.as_slice()).unwrap());
    Image { format, label: "CIDATA", timestamp: TIME }.build(&tree).unwrap().into_bytes()
}

/// The files below a directory.
fn read_back(root: &Path) -> Files {
    let mut found = Files::new();
    let mut queue = vec![root.to_owned()];
    while let Some(dir) = queue.pop() {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                queue.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs_err::read(&path).unwrap());
            }
        }
    }
    found
}

/// A tool that speaks UTF-8 wherever the tests run.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C.UTF-8").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// What xorriso unpacks, by the names of Rock Ridge (`any`) or of Joliet (`norock`). Its warnings fail the test.
fn xorriso(image: &[u8], names: &str) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (iso, out) = (dir.path().join("image.iso"), dir.path().join("out"));
    fs_err::write(&iso, image).unwrap();
    run(tool("xorriso")
        .args(["-return_with", "WARNING", "32", "-report_about", "WARNING"])
        .args(["-read_fs", names, "-osirrox", "on", "-indev"])
        .arg(&iso)
        .args(["-extract", "/"])
        .arg(&out)
        .args(["-chmod_r", "u+rwx", "/", "--", "-rollback"]));
    run(tool("chmod").args(["-R", "u+rwX"]).arg(&out));
    read_back(&out)
}

/// What mtools copies out, after fsck.vfat found nothing to repair.
fn mtools(image: &[u8]) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (fat, out) = (dir.path().join("image.fat"), dir.path().join("out"));
    fs_err::write(&fat, image).unwrap();
    run(tool("fsck.vfat").arg("-nv").arg(&fat));
    fs_err::create_dir(&out).unwrap();
    run(tool("mcopy").args(["-s", "-Q", "-m", "-i"]).arg(&fat).arg("::/").arg(&out));
    read_back(&out)
}

fn blkid(image: &[u8], tag: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), image).unwrap();
    run(tool("blkid").args(["-p", "-o", "value", "-s", tag]).arg(file.path())).trim().to_owned()
}

/// Trees that strain one thing each.
fn trees() -> Vec<(&'static str, Files)> {
    let long = |tail: &str| format!("{}{tail}", "long-name.".repeat(20));
    let many = (0..600).map(|n| (format!("file-{n:04}.txt"), vec![n as u8; n % 3000])).collect();
    let directories = (0..80).map(|n| (format!("d{n}/e/f{n}"), vec![n as u8])).collect();
    let alike = (0..150).map(|n| (format!("d/{}", long(&n.to_string())), vec![1])).collect();
    vec![
        ("nothing", Files::new()),
        ("an empty file", files([("user-data", b"")])),
        ("a seed", files([("meta-data", b"{}"), ("user-data", b"#cloud-config\n")])),
        ("3 MiB", files([("a", &[7; (3 << 20) + 1]), ("b", b"b"), ("c", b"")])),
        ("one block", files([("a", &[1; 2048]), ("b", &[2; 2049]), ("c", &[3; 4096])])),
        ("depth", files([("1/2/3/4/5/6/7/8", b"deep"), ("1/2/x", b"x"), ("y", b"y")])),
        ("long names", files([(&long("a"), b"a"), (&long("b"), b"b"), (&"n".repeat(255), b"n")])),
        (
            "names alike in short",
            files([("a b", b"1"), ("a+b", b"2"), ("a_b", b"3"), (".x", b"4")]),
        ),
        ("names beyond ASCII", files([("Grüße.txt", b"1"), ("日本語/ファイル", b"2")])),
        ("sort order", files([("a.b", b"1"), ("a.b0", b"2"), ("a", b"3"), ("a-b.c", b"4")])),
        ("many files", many),
        ("many directories", directories),
        ("many long names", alike),
    ]
}

#[test]
fn rock_ridge_gives_every_file_back() {
    if !require_tool("xorriso") {
        return;
    }
    for (what, files) in trees() {
        let image = build(&files, ImageFormat::Iso);
        assert_eq!(image.len() % (1 << 20), 0, "{what}");
        assert!(xorriso(&image, "any") == files, "{what}");
    }
}

#[test]
fn joliet_gives_every_content_back_under_the_name_or_the_start_of_it() {
    if !require_tool("xorriso") {
        return;
    }
    for (what, files) in trees() {
        let found = xorriso(&build(&files, ImageFormat::Iso), "norock");
        let is_short = |path: &String| path.split('/').all(|part| part.chars().count() <= 64);
        assert_eq!(found.len(), files.len(), "{what}");
        for (path, content) in files.iter().filter(|(path, _)| is_short(path)) {
            assert!(found.get(path) == Some(content), "{what}: {path}");
        }
        let sorted = |files: &Files| {
            let mut contents: Vec<Vec<u8>> = files.values().cloned().collect();
            contents.sort();
            contents
        };
        assert!(sorted(&found) == sorted(&files), "{what}");
    }
}

#[test]
fn isoinfo_sees_all_three_names() {
    if !require_tool("isoinfo") {
        return;
    }
    let files = files([("openstack/latest/meta_data.json", b"{}"), ("user-data", b"#!\n")]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), build(&files, ImageFormat::Iso)).unwrap();
    let isoinfo = |args: &[&str]| run(tool("isoinfo").args(args).arg("-i").arg(file.path()));
    assert_eq!(
        isoinfo(&["-f"]),
        "/OPENSTACK\n/USER_DATA.;1\n/OPENSTACK/LATEST\n/OPENSTACK/LATEST/META_DATA.JSO;1\n"
    );
    let real = "/openstack\n/user-data\n/openstack/latest\n/openstack/latest/meta_data.json\n";
    assert_eq!(isoinfo(&["-f", "-R"]), real);
    assert_eq!(isoinfo(&["-f", "-J"]), real);
    assert_eq!(isoinfo(&["-x", "/USER_DATA.;1"]), "#!\n");
    assert_eq!(isoinfo(&["-R", "-x", "/user-data"]), "#!\n");
    assert_eq!(isoinfo(&["-J", "-x", "/openstack/latest/meta_data.json"]), "{}");
    let listing = isoinfo(&["-l", "-R"]);
    assert!(listing.contains("-r--r--r--   1    0    0               3 Jan  2 2026"), "{listing}");
    assert!(listing.contains("dr-xr-xr-x   3    0    0            2048 Jan  2 2026"), "{listing}");
    let table = isoinfo(&["-p"]);
    assert!(table.contains("2:    1") && table.contains("3:    2"), "{table}");
    let volume = isoinfo(&["-d"]);
    for line in [
        "Volume id: CIDATA",
        "Volume size is: 512",
        "Joliet with UCS level 3 found",
        "Rock Ridge signatures version 1 found",
    ] {
        assert!(volume.contains(line), "{volume}");
    }
}

#[test]
fn fat_gives_every_file_back() {
    if !require_tool("fsck.vfat") || !require_tool("mcopy") {
        return;
    }
    for (what, files) in trees() {
        let image = build(&files, ImageFormat::Fat);
        assert_eq!(image.len() % (1 << 20), 0, "{what}");
        assert!(mtools(&image) == files, "{what}");
    }
}

#[test]
fn fat_opens_with_the_reader_that_we_use_elsewhere() {
    let files = files([("openstack/latest/meta_data.json", b"{}"), ("日本", b"x")]);
    let image = std::io::Cursor::new(build(&files, ImageFormat::Fat));
    let volume = fatfs::FileSystem::new(image, fatfs::FsOptions::new()).unwrap();
    assert_eq!(volume.volume_label(), "CIDATA");
    for (path, content) in files {
        let mut found = Vec::new();
        volume.root_dir().open_file(&path).unwrap().read_to_end(&mut found).unwrap();
        assert_eq!(found, content);
    }
}

#[test]
fn fat_fits_at_every_size_around_the_step_from_12_to_16_bits() {
    if !require_tool("fsck.vfat") || !require_tool("mcopy") {
        return;
    }
    for kib in (15 * 1024..17 * 1024).step_by(500) {
        let files = files([("user-data", &vec![1; kib << 10])]);
        assert!(mtools(&build(&files, ImageFormat::Fat)) == files, "{kib} KiB");
    }
}

#[test]
fn blkid_finds_label_and_type() {
    if !require_tool("blkid") {
        return;
    }
    let seed = Seed::new("a".parse().unwrap());
    for (datasource, label) in
        [(Datasource::NoCloud, "CIDATA"), (Datasource::ConfigDrive, "config-2")]
    {
        for (format, fs_type) in [(ImageFormat::Iso, "iso9660"), (ImageFormat::Fat, "vfat")] {
            let image = seed.build(datasource, format, 0).unwrap().into_bytes();
            assert_eq!(blkid(&image, "LABEL"), label);
            assert_eq!(blkid(&image, "TYPE"), fs_type);
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_time_others() {
    let mut seed = Seed::new("a".parse::<Hostname>().unwrap());
    seed.ssh_keys = SshPublicKey::parse_all("k", KEY.as_bytes()).unwrap();
    seed.user_data =
        ["#!/bin/sh\n", "#cloud-config\n"].map(|text| UserData::parse("u", text).unwrap()).into();
    for datasource in [Datasource::NoCloud, Datasource::ConfigDrive] {
        for format in [ImageFormat::Iso, ImageFormat::Fat] {
            let build = |time| seed.build(datasource, format, time).unwrap().into_bytes();
            assert!(build(0) == build(0));
            assert!(build(0) != build(TIME));
        }
    }
}

#[test]
fn times_are_the_given_one() {
    if !require_tool("mdir") {
        return;
    }
    let files = files([("d/user-data", b"x")]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), build(&files, ImageFormat::Fat)).unwrap();
    let listing = run(tool("mdir").arg("-/").arg("-i").arg(file.path()).arg("::/"));
    assert_eq!(listing.matches("2026-01-02   3:04").count(), 4, "{listing}");
    let content = run(tool("mtype").arg("-i").arg(file.path()).arg("::/D/USER-DATA"));
    assert_eq!(content, "x");
}

#[test]
fn refuses_what_the_format_cannot_hold() {
    let mut tree = Tree::new();
    tree.insert("a", "1").unwrap();
    let image = |format, label, timestamp| Image { format, label, timestamp };
    let kind = |image: Image<'_>, tree: &Tree| image.build(tree).map_err(|e| e.kind()).err();
    for (format, label, time, expected) in [
        (ImageFormat::Iso, "", 0, ErrorKind::Value),
        (ImageFormat::Iso, "ä", 0, ErrorKind::Value),
        (ImageFormat::Fat, "123456789012", 0, ErrorKind::Value),
        (ImageFormat::Iso, "x", -1, ErrorKind::Timestamp),
        (ImageFormat::Fat, "x", 4_354_819_200, ErrorKind::Timestamp),
    ] {
        assert_eq!(kind(image(format, label, time), &tree), Some(expected));
    }
    assert_eq!(kind(image(ImageFormat::Fat, "x", 4_354_819_199), &tree), None);
    assert_eq!(kind(image(ImageFormat::Iso, "x", 4_354_819_199), &tree), None);

    tree.insert("A", "2").unwrap();
    assert_eq!(kind(image(ImageFormat::Iso, "x", 0), &tree), None);
    assert_eq!(kind(image(ImageFormat::Fat, "x", 0), &tree), Some(ErrorKind::FileName));

    let mut tree = Tree::new();
    tree.insert("large", vec![0; 241 << 20]).unwrap();
    for format in [ImageFormat::Iso, ImageFormat::Fat] {
        assert_eq!(kind(image(format, "x", 0), &tree), Some(ErrorKind::TooLarge));
    }
}
