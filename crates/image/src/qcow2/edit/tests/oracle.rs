//! `qemu-img` and `qemu-io` make images of every kind and judge what becomes of them.
#![expect(clippy::disallowed_methods, reason = "qemu-io is an oracle of these tests")]

use std::path::Path;
use std::process::Command;

use bootyard_testkit::{qemu_img, require_tool, run, sparse_image};
use fs_err as fs;

use super::model::{Model, Random};
use super::{Memory, backing, image, live, walk};
use crate::qcow2::{Backing, BackingFormat, Create, create, edit};
use crate::raw::FileAt;
use crate::{Disk, ErrorKind, ReadAt, conformance};

const SIZE: u64 = (2 << 20) + 512 * 9;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn qemu_io(path: &Path, commands: &[&str]) {
    let mut command = Command::new("qemu-io");
    commands.iter().for_each(|part| {
        command.args(["-c", part]);
    });
    run(command.arg(path));
}

/// Checks that `qemu-img` finds the image in `file` clean and holding `disk`.
fn judge(dir: &Path, file: &[u8], disk: &[u8]) {
    let [image, raw] = ["judged.qcow2", "judged.raw"].map(|name| dir.join(name));
    fs::write(&image, file).unwrap();
    fs::write(&raw, disk).unwrap();
    qemu_img(["check", "-q", "-f", "qcow2", text(&image)]);
    qemu_img(["compare", "-q", "-f", "raw", "-F", "qcow2", text(&raw), text(&image)]);
}

fn contents(image: &Path, dir: &Path, more: &[&str]) -> Vec<u8> {
    let raw = dir.join("contents.raw");
    let mut arguments = vec!["convert", "-O", "raw"];
    arguments.extend(more);
    arguments.extend([text(image), text(&raw)]);
    qemu_img(arguments);
    fs::read(&raw).unwrap()
}

const KINDS: [&str; 14] = [
    "-o cluster_size=512,refcount_bits=64",
    "-o cluster_size=512,refcount_bits=1",
    "-o cluster_size=1k,refcount_bits=2",
    "-o cluster_size=4k,refcount_bits=4",
    "-o cluster_size=8k,refcount_bits=8",
    "-o refcount_bits=32",
    "-o compat=0.10",
    "-o compat=0.10,cluster_size=512",
    "-o cluster_size=2M",
    "-o lazy_refcounts=on",
    "-o preallocation=metadata",
    "-c",
    "-c -o cluster_size=512",
    "-c -o compression_type=zstd,cluster_size=4k",
];

#[test]
fn images_of_every_kind_live_on() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    sparse_image(&raw, SIZE, 4);
    for (seed, options) in KINDS.iter().enumerate() {
        let path = dir.path().join("image.qcow2");
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options.split(' '));
        arguments.extend([text(&raw), text(&path)]);
        qemu_img(arguments);
        let memory = Memory::of(fs::read(&path).unwrap());
        let mut model = Model::new(fs::read(&raw).unwrap());
        live(&memory, &mut model, None, seed as u64, 60);
        judge(dir.path(), &memory.bytes(), &model.disk);
    }
}

#[test]
fn snapshots_stay_as_they_are() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    sparse_image(&raw, SIZE, 5);
    for (seed, options) in
        ["-o cluster_size=512", "-o compat=0.10,cluster_size=4k", "-c", "-c -o cluster_size=2k", ""]
            .iter()
            .enumerate()
    {
        let path = dir.path().join("image.qcow2");
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options.split_whitespace());
        arguments.extend([text(&raw), text(&path)]);
        qemu_img(arguments);
        qemu_img(["snapshot", "-c", "first", text(&path)]);
        qemu_io(&path, &["write -P 0x22 100k 300k", "write -P 0x33 77 1", "write -z 1M 64k"]);
        qemu_img(["snapshot", "-c", "second", text(&path)]);
        qemu_io(&path, &["write -P 0x44 200k 10k"]);
        let snapshots =
            ["first", "second"].map(|name| (name, contents(&path, dir.path(), &["-l", name])));
        let memory = Memory::of(fs::read(&path).unwrap());
        let mut model = Model::new(contents(&path, dir.path(), &[]));
        live(&memory, &mut model, None, seed as u64, 60);
        judge(dir.path(), &memory.bytes(), &model.disk);
        fs::write(&path, memory.bytes()).unwrap();
        for (name, expected) in &snapshots {
            assert!(contents(&path, dir.path(), &["-l", name]) == *expected, "{options}: {name}");
        }
        let before = memory.bytes();
        for seed in 0..5 {
            super::crash::cut(&before, None, seed);
        }
    }
}

#[test]
fn power_cuts_leave_nothing_that_qemu_img_calls_corrupt() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("left.qcow2");
    for (seed, options) in KINDS.iter().enumerate().take(8) {
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        arguments.extend(options.split(' '));
        arguments.extend([text(&path), "300032"]);
        qemu_img(arguments);
        let file = fs::read(&path).unwrap();
        for seed in 100 * seed as u64..100 * seed as u64 + 20 {
            let left = super::crash::cut(&file, None, seed);
            if seed % 10 == 0 {
                fs::write(&path, left).unwrap();
                let judged = Command::new("qemu-img").args(["check", "-q"]).arg(&path).output();
                let code = judged.unwrap().status.code();
                assert!(matches!(code, Some(0 | 3)), "{options}: {code:?}, and 3 is for leaks");
            }
        }
    }
}

#[test]
fn overlays_are_what_qemu_img_makes() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [base, path] = ["base", "over.qcow2"].map(|name| dir.path().join(name));
    for (len, cluster_bits) in [(600_064, 9), (600_064, 16), (1 << 20, 21)] {
        let (mut bytes, _) = backing(len);
        fs::write(&base, &bytes).unwrap();
        let format = BackingFormat::Raw;
        let options = Create {
            cluster_bits,
            backing: Some(Backing { name: "base".to_owned(), format }),
            ..Create::new(SIZE)
        };
        let memory = Memory::default();
        create(&memory, &options).unwrap();
        bytes.resize(SIZE as usize, 0);
        judge(dir.path(), &memory.bytes(), &bytes);
        let mut model = Model::new(bytes);
        live(&memory, &mut model, Some(len), cluster_bits.into(), 60);
        judge(dir.path(), &memory.bytes(), &model.disk);
        fs::write(&path, memory.bytes()).unwrap();
        let info = qemu_img(["info", "--output=json", text(&path)]);
        assert!(info.contains("\"backing-filename-format\": \"raw\""), "{info}");
        assert!(info.contains(&format!("\"cluster-size\": {}", 1 << cluster_bits)), "{info}");
    }
}

#[test]
fn new_images_are_clean_at_any_size() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.qcow2");
    for (size, cluster_bits) in
        [(0, 16), (1, 16), (1 << 30, 9), (1 << 30, 12), (64 << 40, 16), (64 << 40, 21)]
    {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let target = FileAt::new(file.into()).unwrap();
        create(&target, &Create { cluster_bits, ..Create::new(size) }).unwrap();
        qemu_img(["check", "-q", text(&path)]);
        let info = qemu_img(["info", "--output=json", text(&path)]);
        let size = crate::raw::round_up(size);
        assert!(info.contains(&format!("\"virtual-size\": {size}")), "{info}");
        if size > 0 {
            let editor = edit(target, None).unwrap();
            editor.writer().unwrap().write_at(&[7; 300], size - 300).unwrap();
            editor.writer().unwrap().flush().unwrap();
            qemu_img(["check", "-q", text(&path)]);
        }
    }
}

#[test]
fn refcounts_that_are_out_of_date_are_counted_anew() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dirty.qcow2");
    for options in ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512,refcount_bits=2"] {
        qemu_img(["create", "-q", "-f", "qcow2", "-o", options, text(&path), "3M"]);
        qemu_io(&path, &["write -P 1 0 300k"]);
        qemu_img(["snapshot", "-c", "kept", text(&path)]);
        // The tool ends as if the power had failed.
        let arguments = ["-c", "write -P 2 100k 800k", "-c", "flush", "-c", "sigraise 9"];
        let _killed = Command::new("qemu-io").args(arguments).arg(&path).output().unwrap();
        let before = contents(&path, dir.path(), &[]);
        let file = fs::read(&path).unwrap();
        assert_eq!(file[79] & 1, 1, "the image says that it is dirty");
        let memory = Memory::of(file);
        let editor = edit(memory.clone(), None).unwrap();
        assert!(conformance::read_all(&editor) == before);
        judge(dir.path(), &memory.bytes(), &before);
        let mut model = Model::new(before);
        live(&memory, &mut model, None, 1, 60);
        judge(dir.path(), &memory.bytes(), &model.disk);
    }
}

#[test]
fn bitmaps_are_not_to_be_trusted_after_a_write() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", text(&path), "1M"]);
    qemu_img(["bitmap", "--add", text(&path), "changes"]);
    let memory = Memory::of(fs::read(&path).unwrap());
    let editor = edit(memory.clone(), None).unwrap();
    assert_eq!(memory.bytes()[95], 1, "reading changes nothing");
    editor.writer().unwrap().write_at(&[1], 0).unwrap();
    assert_eq!(memory.bytes()[95], 0);
}

#[test]
fn the_refcount_table_moves_when_the_file_outgrows_it() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let options = "cluster_size=512,refcount_bits=64";
    qemu_img(["create", "-q", "-f", "qcow2", "-o", options, text(&path), "12M"]);
    let memory = Memory::of(fs::read(&path).unwrap());
    let table = |memory: &Memory| memory.bytes()[48..60].to_vec();
    let before = table(&memory);
    let editor = edit(memory.clone(), None).unwrap();
    let disk = bootyard_testkit::pseudo_random(12 << 20, 3);
    for (index, part) in disk.chunks(1 << 20).enumerate() {
        editor.writer().unwrap().write_at(part, (index as u64) << 20).unwrap();
    }
    editor.writer().unwrap().flush().unwrap();
    assert_ne!(table(&memory), before);
    assert_eq!(walk(&memory.bytes()).leaks, 0);
    judge(dir.path(), &memory.bytes(), &disk);
    let mut random = Random::new(1);
    let mut model = Model::new(disk);
    (0..50).for_each(|_| model.step(&editor, &mut random));
    editor.writer().unwrap().flush().unwrap();
    judge(dir.path(), &memory.bytes(), &model.disk);
    assert!(memory.len() < 16 << 20, "old tables are used for other things");
}

/// What `qemu-img` finds in an image that we have made larger, and what it reads from it.
#[test]
fn a_disk_that_has_grown_is_whole() {
    if !require_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (cluster_bits, before, after) in [
        (16, 1 << 20, 3 << 20),
        (16, 1 << 20, 1 << 40),
        (9, 64 << 10, 8 << 20),
        (12, 1 << 20, 1 << 33),
    ] {
        let memory = image(before, cluster_bits);
        let editor = edit(memory.clone(), None).unwrap();
        let writer = editor.writer().unwrap();
        writer.write_at(&[7; 3000], before / 2).unwrap();
        writer.flush().unwrap();
        drop(editor);
        edit(memory.clone(), None).unwrap().grow(after).unwrap();
        let path = folder.path().join("grown.qcow2");
        fs::write(&path, memory.bytes()).unwrap();
        let file = path.to_str().unwrap();
        qemu_img(["check", file]);
        assert!(qemu_img(["info", file]).contains(&format!("({after} bytes)")), "{after}");
        // It is written on, at its old and at its new end.
        let editor = edit(memory.clone(), None).unwrap();
        let mut found = [0; 3000];
        editor.read_at(&mut found, before / 2).unwrap();
        assert_eq!(found, [7; 3000]);
        editor.writer().unwrap().write_at(&[9; 512], after - 512).unwrap();
        editor.writer().unwrap().flush().unwrap();
        fs::write(&path, memory.bytes()).unwrap();
        qemu_img(["check", file]);
        let error = edit(memory, None).unwrap().grow(before).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    }
}
