//! `qemu-img` makes images and says what is in them; it also judges what [`Writer`] makes.
#![expect(clippy::disallowed_methods, reason = "qemu-io is an oracle of these tests")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bootyard_testkit::{
    corpus_entries, pseudo_random, qemu_img, require_tool, run, sha256_file, sparse_image,
};
use fs_err::File;

use crate::qcow2::{Compression, Writer, WriterOptions};
use crate::raw::FileAt;
use crate::support::{Memory, SIZE_MAX, decode, push};
use crate::{Body, Disk, ErrorKind, Piece, Sink, WriteAt, conformance, open};

pub(super) fn create(path: &Path) -> FileAt {
    let mut options = fs_err::OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).open(path).unwrap();
    FileAt::new(file.into()).unwrap()
}

pub(super) fn open_file(path: &Path) -> Box<dyn Disk> {
    open(FileAt::new(File::open(path).unwrap().into()).unwrap()).unwrap()
}

pub(super) fn strings(words: &str) -> Vec<&str> {
    words.split_whitespace().collect()
}

/// What `qemu-img` makes of the image at `path`.
pub(super) fn expected(path: &Path, options: &str) -> Vec<u8> {
    let raw = path.with_extension("expected");
    let mut arguments = vec!["convert", "-O", "raw"];
    arguments.extend(strings(options));
    arguments.extend([path.to_str().unwrap(), raw.to_str().unwrap()]);
    qemu_img(arguments);
    fs_err::read(&raw).unwrap()
}

/// Lets `qemu-io` do these things to the image at `path`.
pub(super) fn qemu_io(path: &Path, commands: &[impl AsRef<str>]) {
    let mut command = Command::new("qemu-io");
    for part in commands {
        command.args(["-c", part.as_ref()]);
    }
    run(command.arg(path));
}

/// Reads the image at `path` both ways and compares it with what `qemu-img` makes of it. Returns
/// how many bytes were spilled.
fn check(path: &Path, lens: &[usize]) -> u64 {
    let expected = expected(path, "");
    let disk = open_file(path);
    conformance::check(&*disk, expected.len() as u64);
    assert!(conformance::read_all(&*disk) == expected, "{} by random access", path.display());
    let (streamed, summary) = decode(&fs_err::read(path).unwrap(), lens).unwrap();
    assert!(streamed == expected, "{} as a stream", path.display());
    summary.spilled_bytes
}

pub(super) fn convert(dir: &Path, raw: &Path, options: &str) -> PathBuf {
    let path = dir.join(format!("{}.qcow2", options.replace([' ', '=', ','], "_")));
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(strings(options));
    arguments.extend([raw.to_str().unwrap(), path.to_str().unwrap()]);
    qemu_img(arguments);
    path
}

#[test]
fn reads_what_qemu_img_converts_without_spilling() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    sparse_image(&raw, (12 << 20) + 512 * 77, 1);
    let lens: [&[usize]; 4] = [&[1 << 20], &[65_536], &[1, 4095, 100_000], &[16 << 10]];
    for (index, options) in [
        "-o compat=0.10",
        "-o compat=1.1",
        "-o cluster_size=512",
        "-o cluster_size=4k",
        "-o cluster_size=2M",
        "-o refcount_bits=1",
        "-o refcount_bits=64",
        "-o lazy_refcounts=on",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
        "-W",
        "-W -m 16 -o cluster_size=8k",
        "-c",
        "-c -W -m 16",
        "-c -o compat=0.10",
        "-c -o cluster_size=512",
        "-c -W -o cluster_size=2M",
        "-c -o compression_type=zstd",
        "-c -W -o compression_type=zstd,cluster_size=4k",
        "-c -o compression_type=zstd,cluster_size=2M",
        "-S 0",
        "-o extended_l2=on",
        "-o extended_l2=on,cluster_size=16k",
        "-W -o extended_l2=on,cluster_size=2M",
        "-c -o extended_l2=on",
        "-o extended_l2=on,preallocation=metadata",
    ]
    .into_iter()
    .enumerate()
    {
        let path = convert(dir.path(), &raw, options);
        assert_eq!(check(&path, lens[index % lens.len()]), 0, "{options}");
    }
}

#[test]
fn reads_images_that_have_lived() {
    if !require_tool("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    sparse_image(&raw, 8 << 20, 2);
    for options in [
        "",
        "-c",
        "-o cluster_size=512",
        "-c -o compression_type=zstd",
        "-c -o extended_l2=on",
        "-o extended_l2=on,cluster_size=16k",
    ] {
        let path = convert(dir.path(), &raw, options);
        let file = path.to_str().unwrap();
        let io = |commands: &[&str]| qemu_io(&path, commands);
        io(&["write -P 0x11 1M 1100k", "write -z 3M 256k", "write -z -u 4M 128k", "discard 5M 1M"]);
        qemu_img(["snapshot", "-c", "first", file]);
        io(&["write -P 0x22 1100k 2M", "write -P 0x33 77 1"]);
        qemu_img(["bitmap", "--add", file, "changes"]);
        // The L1 table outgrows its place and moves behind the data.
        qemu_img(["resize", "-q", file, "40M"]);
        io(&["write -P 0x44 39M 64k"]);
        check(&path, &[50_000]);
    }
}

#[test]
fn reads_the_corpus() {
    for entry in corpus_entries().iter().filter(|entry| entry.format == "qcow2") {
        let name = entry.path.display();
        let file = fs_err::read(&entry.path).unwrap();
        let target = tempfile::NamedTempFile::new().unwrap();
        let sink = Arc::new(Target(create(target.path())));
        match push(&file, &[8192], sink) {
            Err(error) => {
                assert!(
                    entry.note.as_ref().is_some_and(|n| n.contains("must be refused")),
                    "{name}"
                );
                assert_eq!(error.kind(), ErrorKind::NeedsOtherFile, "{name}");
            }
            Ok(summary) => {
                target.as_file().set_len(summary.virtual_size).unwrap();
                assert_eq!(Some(sha256_file(target.path())), entry.sha256_raw, "{name}");
                if summary.virtual_size <= SIZE_MAX {
                    check_by_random_access(&entry.path, target.path());
                }
            }
        }
    }
}

fn check_by_random_access(image: &Path, raw: &Path) {
    let disk = open_file(image);
    conformance::check(&*disk, fs_err::metadata(raw).unwrap().len());
    assert!(conformance::read_all(&*disk) == fs_err::read(raw).unwrap(), "{}", image.display());
}

/// A raw file as a sink.
struct Target(FileAt);

impl Sink for Target {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        match piece.body {
            Body::Data(data) => self.0.write_all_at(data, piece.offset),
            Body::Zero(_) => Ok(()),
        }
    }
}

/// Judges the image at `path`, which must hold `raw`.
fn check_written(path: &Path, raw: &Path) {
    let [image, raw] = [path, raw].map(|path| path.to_str().unwrap());
    qemu_img(["check", "-q", "-f", "qcow2", image]);
    qemu_img(["compare", "-q", "-f", "raw", "-F", "qcow2", raw, image]);
    assert_eq!(check(path, &[1 << 20]), 0, "our own images stream without spilling");
}

const BOTH: [WriterOptions; 2] = [
    WriterOptions { compression: Compression::None },
    WriterOptions { compression: Compression::Zstd },
];

#[test]
fn writes_what_qemu_img_finds_clean_and_equal() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (len, options) in
        [0, 512, 65_536, (20 << 20) + 512].into_iter().flat_map(|len| BOTH.map(|both| (len, both)))
    {
        let raw = dir.path().join(format!("{len}.raw"));
        sparse_image(&raw, len, 3);
        let path = dir.path().join(format!("{len}.qcow2"));
        let writer = Arc::new(Writer::with(create(&path), len, options).unwrap());
        if len > 0 {
            push(&fs_err::read(&raw).unwrap(), &[1 << 20], writer.clone()).unwrap();
        }
        writer.finish().unwrap();
        check_written(&path, &raw);
    }
}

/// What can be compressed, what cannot, and zeros.
fn mixed(len: usize) -> Vec<u8> {
    let mut mixed = pseudo_random(len, 11);
    for (index, part) in mixed.chunks_mut(50_000).enumerate() {
        match index % 4 {
            0 | 1 => part.iter_mut().for_each(|byte| *byte = 0x80 | *byte & 3),
            2 => {}
            _ => part.fill(0),
        }
    }
    mixed
}

#[test]
fn compressed_images_are_as_small_as_those_of_qemu_img() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [raw, path] = ["raw", "ours.qcow2"].map(|name| dir.path().join(name));
    let disk = mixed(24 << 20);
    fs_err::write(&raw, &disk).unwrap();
    let theirs = convert(dir.path(), &raw, "-c -o compression_type=zstd");
    for lens in [&[1 << 20][..], &[65_536], &[999, 70_001]] {
        let writer = Arc::new(Writer::with(create(&path), 24 << 20, BOTH[1]).unwrap());
        push(&disk, lens, writer.clone()).unwrap();
        writer.finish().unwrap();
        check_written(&path, &raw);
        let [ours, theirs] = [&path, &theirs].map(|path| fs_err::metadata(path).unwrap().len());
        assert!(ours <= theirs + theirs / 50, "{ours} and {theirs} bytes");
    }
}

#[test]
fn pieces_may_have_any_place_and_order_and_the_target_old_contents() {
    if !require_tool("qemu-img") {
        return;
    }
    for (options, unit) in BOTH.into_iter().flat_map(|both| [(both, 100_001), (both, 4096)]) {
        let dir = tempfile::tempdir().unwrap();
        let [raw, path] = ["raw", "qcow2"].map(|name| dir.path().join(name));
        let size = 1_200_u64 << 20;
        fs_err::write(&path, [0xee; 1 << 20].repeat(8)).unwrap();
        let file = fs_err::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let writer = Writer::with(FileAt::new(file.into()).unwrap(), size, options).unwrap();
        let mut expected = mixed(3 << 20);
        expected.chunks_mut(unit).step_by(3).for_each(|part| part.fill(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (expected, writer) = (&expected, &writer);
                scope.spawn(move || {
                    let parts = expected.chunks(unit).enumerate().rev();
                    for (index, part) in parts.filter(|(index, _)| index % 4 == thread) {
                        let body = match index % 3 {
                            0 => Body::Zero(part.len() as u64),
                            _ => Body::Data(part),
                        };
                        let offset = (index * unit) as u64;
                        writer.put(Piece { offset, body }).unwrap();
                        writer.put(Piece { offset: offset + (900 << 20), body }).unwrap();
                    }
                });
            }
        });
        let beyond = Piece { offset: size - 1, body: Body::Data(&[1, 2]) };
        writer.put(beyond).unwrap_err();
        writer.finish().unwrap();
        let target = create(&raw);
        target.file().set_len(size).unwrap();
        let target = Target(target);
        for offset in [0, 900 << 20] {
            target.put(Piece { offset, body: Body::Data(&expected) }).unwrap();
        }
        let [image, raw] = [path, raw].map(|path| path.to_str().unwrap().to_owned());
        qemu_img(["check", "-q", "-f", "qcow2", &image]);
        qemu_img(["compare", "-q", "-f", "raw", "-F", "qcow2", &raw, &image]);
    }
}

#[test]
fn clusters_that_stay_incomplete_for_long_are_stored_as_they_are() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [raw, path] = ["raw", "qcow2"].map(|name| dir.path().join(name));
    let disk = mixed(40 << 20);
    fs_err::write(&raw, &disk).unwrap();
    let writer = Writer::with(create(&path), 40 << 20, BOTH[1]).unwrap();
    // First one half of each cluster, then the others.
    for half in [0, 1] {
        for (index, part) in disk.chunks(32 << 10).enumerate().skip(half).step_by(2) {
            let offset = (index << 15) as u64;
            writer.put(Piece { offset, body: Body::Data(part) }).unwrap();
        }
    }
    writer.finish().unwrap();
    check_written(&path, &raw);
}

#[test]
fn an_unfinished_image_is_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = Writer::new(create(file.path()), 1 << 20).unwrap();
    writer.put(Piece { offset: 0, body: Body::Data(&[1; 65_536]) }).unwrap();
    assert_ne!(&fs_err::read(file.path()).unwrap()[..4], b"QFI\xfb");
}

#[test]
fn a_sink_that_fails_ends_the_decoder_with_its_error() {
    struct Full;
    impl Sink for Full {
        fn put(&self, _: Piece<'_>) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let data = pseudo_random(40 << 20, 5);
    let error = push(&data, &[1 << 20], Arc::new(Full)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Write);
}

#[test]
fn raw_streams_are_their_own_disk() {
    for len in [512_usize, 513, 3 << 20, (5 << 20) + 1] {
        let mut data = pseudo_random(len, len as u64);
        data[len / 2..len / 2 + len / 4].fill(0);
        let (disk, summary) = decode(&data, &[7, 70_000]).unwrap();
        data.resize(len.next_multiple_of(512), 0);
        assert!(disk == data);
        assert_eq!(summary.spilled_bytes, 0);
    }
}

#[test]
fn a_dropped_decoder_ends_its_threads() {
    let sink = Arc::new(Memory::default());
    let mut head = crate::stream::Head::new();
    head.push(pseudo_random(1 << 20, 6).into()).unwrap();
    let mut decoder =
        crate::stream::Decoder::new(head, sink.clone(), crate::support::options(4)).unwrap();
    decoder.push(pseudo_random(8 << 20, 7).into()).unwrap();
    drop(decoder);
    assert!(Arc::into_inner(sink).is_some());
}
