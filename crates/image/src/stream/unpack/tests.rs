//! Every compressor that is installed, the corpus, and hostile files.
#![expect(clippy::disallowed_methods, reason = "compressors are the oracle of these tests")]

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use bootyard_testkit::{corpus_entries, pseudo_random, require_tool, sha256_file};

use super::*;
use crate::hostile;
use crate::stream::Head;
use crate::support::decode;

/// Some megabytes that compress, with zeros and with bytes that do not.
pub(super) fn disk() -> Vec<u8> {
    let mut disk = vec![0; 3 << 20];
    disk[..512].fill(b'\x90');
    disk[1 << 20..][..700_000].copy_from_slice(&pseudo_random(700_000, 1));
    for (index, byte) in disk[2 << 20..][..900_000].iter_mut().enumerate() {
        *byte = (index / 3000) as u8;
    }
    disk
}

/// Runs `command`, a program and its arguments, on `input`.
pub(super) fn filter(command: &str, input: &[u8]) -> Vec<u8> {
    let mut words = command.split_whitespace();
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command}");
    output.stdout
}

pub(super) fn tool(command: &str) -> bool {
    require_tool(command.split_whitespace().next().unwrap())
}

/// Decodes `file` in chunks of all lengths and compares.
pub(super) fn check(file: &[u8], disk: &[u8], chain: &[Format], what: &str) {
    let lens: [&[usize]; 4] = [&[1 << 20], &[65_536, 1], &[4095, 100_000], &[usize::MAX]];
    for lens in lens {
        let (decoded, summary) =
            decode(file, lens).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(decoded == disk, "{what}");
        assert_eq!(summary.chain, chain, "{what}");
    }
}

#[test]
fn reads_what_every_compressor_writes() {
    let disk = disk();
    for (command, format) in [
        ("gzip -1", Format::Gzip),
        ("gzip -9", Format::Gzip),
        ("xz -1", Format::Xz),
        ("xz -1 -T2 --block-size=200000", Format::Xz),
        ("xz -1 -T1 --block-size=300000 --check=sha256", Format::Xz),
        ("xz -1 --check=none", Format::Xz),
        ("xz -1 --check=crc32 --x86 --lzma2=preset=1", Format::Xz),
        ("xz -1 --format=lzma", Format::Lzma),
        ("zstd -1", Format::Zstd),
        ("zstd -3 -T2 --check", Format::Zstd),
        ("zstd -1 --no-check --long=27", Format::Zstd),
        ("bzip2 -1", Format::Bzip2),
        ("bzip2 -9", Format::Bzip2),
        ("lz4 -1", Format::Lz4),
        ("lz4 -9 -B4 -BD", Format::Lz4),
        ("lz4 -1 -B7 -BX --content-size", Format::Lz4),
        ("lz4 -1 --no-frame-crc", Format::Lz4),
    ] {
        if tool(command) {
            check(&filter(command, &disk), &disk, &[format, Format::Raw], command);
        }
    }
}

#[test]
fn streams_follow_each_other() {
    let disk = disk();
    for (commands, format) in [
        (["gzip -1", "gzip -6"], Format::Gzip),
        (["xz -1", "xz -0 -T2 --block-size=100000"], Format::Xz),
        (["zstd -1", "zstd -5"], Format::Zstd),
        (["bzip2 -1", "bzip2 -9"], Format::Bzip2),
        (["lz4 -1", "lz4 -B4"], Format::Lz4),
    ] {
        if !tool(commands[0]) {
            continue;
        }
        let skip: &[u8] = match format {
            Format::Zstd | Format::Lz4 => b"\x53\x2a\x4d\x18\x05\0\0\0hello",
            Format::Xz => &[0; 8],
            _ => b"",
        };
        let [a, b] = [(commands[0], &disk[..1_500_000]), (commands[1], &disk[1_500_000..])]
            .map(|(command, part)| filter(command, part));
        let mut file = [&a[..], skip, &b, skip].concat();
        if format == Format::Gzip {
            file.extend([0; 1000]);
        }
        check(&file, &disk, &[format, Format::Raw], commands[0]);
        if format == Format::Zstd {
            check(&[skip, &file].concat(), &disk, &[format, Format::Raw], "skipped first");
        }
    }
}

#[test]
fn single_bytes_lose_nothing() {
    let disk = &disk()[1_500_000..1_800_000];
    for command in ["gzip", "xz", "zstd", "bzip2", "lz4", "xz --format=lzma"] {
        if tool(command) {
            let file = filter(command, disk);
            let begin = &file[..file.len().min(3000)];
            let mut lens = vec![1; begin.len()];
            lens.push(usize::MAX);
            let (decoded, _) = decode(&file, &lens).unwrap();
            assert!(decoded[..disk.len()] == *disk, "{command}");
        }
    }
}

#[test]
fn containers_stand_in_containers_up_to_a_depth() {
    let disk = disk();
    let commands = [
        ("gzip", Format::Gzip),
        ("xz -0", Format::Xz),
        ("zstd", Format::Zstd),
        ("gzip", Format::Gzip),
    ];
    if !commands.iter().all(|(command, _)| tool(command)) {
        return;
    }
    let (mut file, mut chain) = (disk.clone(), vec![Format::Raw]);
    for (command, format) in commands {
        file = filter(command, &file);
        chain.insert(0, format);
        check(&file, &disk, &chain, command);
    }
    let error = decode(&filter("lz4", &file), &[65_536]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let what = "expected at most 4 containers round a disk, got lz4 → gzip → zstd → xz → gzip (at ";
    assert!(error.to_string().starts_with(what), "{error}");
}

#[test]
fn a_disk_of_another_format_is_told_by_its_own_header() {
    if !(require_tool("qemu-img") && require_tool("gzip")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [raw, path] = ["raw", "qcow2"].map(|name| dir.path().join(name));
    fs_err::write(&raw, disk()).unwrap();
    let paths = [&raw, &path].map(|path| path.to_str().unwrap());
    bootyard_testkit::qemu_img(["convert", "-c", "-O", "qcow2", paths[0], paths[1]]);
    let file = filter("gzip", &fs_err::read(&path).unwrap());
    let mut head = Head::new();
    let probe = head.push(Bytes::copy_from_slice(&file)).unwrap().unwrap();
    assert_eq!(probe.chain, [Format::Gzip, Format::Qcow2]);
    assert_eq!(probe.virtual_size, Some(3 << 20));
    let info = crate::inspect(&file).unwrap();
    assert_eq!((&info.chain, info.format), (&probe.chain, Format::Qcow2));
    assert_eq!((info.virtual_size, info.compression), (Some(3 << 20), Some("zlib")));
    let message = crate::open(file.clone()).err().unwrap().to_string();
    assert_eq!(
        message,
        "a disk in a `gzip` file can only be read from its start to its end (at offset 0x0)"
    );
    check(&file, &disk(), &probe.chain, "qcow2 in gzip");
}

#[test]
fn damage_is_found_wherever_it_is() {
    let disk = disk();
    for command in
        ["gzip", "xz -1", "xz -1 -T2 --block-size=300000", "zstd --check", "bzip2", "lz4"]
    {
        if !tool(command) {
            continue;
        }
        let name = command.split_whitespace().next().unwrap();
        let good = filter(command, &disk);
        let len = good.len();
        for cut in [len - 1, len - 4, len - 9, len / 2, 600] {
            let error = decode(&good[..cut], &[100_000]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{command} cut at {cut}: {error}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("the {name} stream is cut off (at ")), "{text}");
            assert!(error.offset().is_some_and(|at| at <= cut as u64), "{text}");
        }
        // In the data and in the checksum at the end.
        for at in [len / 2, len / 3, len - 3] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let error = decode(&bad, &[100_000]).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Truncated),
                "{command} at {at}: {error}"
            );
            assert!(error.to_string().contains(name) && error.offset().is_some(), "{error}");
        }
        let error = decode(&[&good[..], b"rubbish"].concat(), &[100_000]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the {name} stream is followed by other bytes (at offset {len:#x})")
        );
    }
}

#[test]
fn what_is_not_read_is_refused_by_its_name() {
    let mut zstd_window = b"\x28\xb5\x2f\xfd\x00\xff".to_vec();
    zstd_window.resize(600, 0);
    for (file, kind, message) in [
        (&b"\x1f\x9d\x90"[..], ErrorKind::Unsupported, "`compress` (.Z) files are not supported"),
        (b"7z\xbc\xaf\x27\x1c", ErrorKind::Unsupported, "`7z` archives are not supported"),
        (
            b"\x02\x21\x4c\x18\0\0\0\0",
            ErrorKind::Unsupported,
            "legacy lz4 frames are not supported",
        ),
        (
            &zstd_window,
            ErrorKind::TooLarge,
            "the zstd frame asks for a window of 4123168604160 bytes; expected at most 134217728",
        ),
        (
            b"\xfd7zXZ\0\0\x03\0\0\0\0\0\0",
            ErrorKind::Unsupported,
            "the xz stream has a check of an unknown kind, 3",
        ),
    ] {
        let error = decode(file, &[100]).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (kind, format!("{message} (at offset 0x0)")));
    }
}

#[test]
fn a_decoder_that_is_dropped_ends_its_thread() {
    if !require_tool("gzip") {
        return;
    }
    // As much as fills all queues, of which nothing is stored.
    struct Never;
    impl crate::Sink for Never {
        fn put(&self, _: crate::Piece<'_>) -> io::Result<()> {
            Ok(())
        }
    }
    let file = Bytes::from(filter("gzip -1", &vec![0; 200 << 20]));
    for pushed in [file.len(), file.len() / 2, 2000] {
        let sink: Arc<dyn crate::Sink> = Arc::new(Never);
        let mut head = Head::new();
        head.push(file.slice(..pushed)).unwrap();
        let decoder =
            crate::stream::Decoder::new(head, sink.clone(), crate::support::options(2)).unwrap();
        drop(decoder);
        assert_eq!(Arc::strong_count(&sink), 1, "nobody holds the sink");
    }
}

#[test]
fn a_bomb_ends_where_the_sink_does() {
    if !require_tool("gzip") {
        return;
    }
    let bomb = filter("gzip -1", &vec![1; 100 << 20]);
    let error = decode(&filter("gzip -1", &bomb), &[65_536]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Write);
}

/// The bytes that come out of all containers of the file at `path`, `max` at most.
fn unpacked(path: &std::path::Path, max: u64) -> Result<Vec<u8>, Error> {
    let gauge = Arc::new(Gauge::new(u64::MAX));
    let file = fs_err::File::open(path).unwrap();
    let threads = NonZeroUsize::new(2).unwrap();
    let mut bytes = Vec::new();
    open(Box::new(file), &gauge, threads)
        .and_then(|opened| opened.reader.take(max).read_to_end(&mut bytes))
        .map_err(|error| own(error, gauge.position()))?;
    Ok(bytes)
}

#[test]
fn the_corpus_unpacks_to_its_listed_digests() {
    /// Three of the corpus are larger. They are not worth the seconds.
    const LEN_MAX: u64 = 128 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for entry in corpus_entries() {
        let Some((container, inner)) = entry.format.split_once('(') else { continue };
        let name = entry.path.display();
        let bytes =
            unpacked(&entry.path, LEN_MAX).unwrap_or_else(|error| panic!("{name}: {error}"));
        if bytes.len() as u64 == LEN_MAX {
            continue;
        }
        let path = dir.path().join("inner");
        fs_err::write(&path, &bytes).unwrap();
        assert_eq!(Some(sha256_file(&path)), entry.sha256_inner, "{name}");
        checked += 1;
        if bytes.len() as u64 > crate::support::SIZE_MAX {
            continue;
        }
        match decode(&fs_err::read(&entry.path).unwrap(), &[65_536]) {
            // Disks of many gigabytes are the matter of their formats' own tests.
            Err(error) if error.kind() == ErrorKind::Write => {}
            Ok((disk, summary)) => {
                assert_eq!(summary.chain.len(), 2, "{name}");
                // The manifest says `bz2`, and the format's name is `bzip2`.
                assert!(summary.chain[0].name().starts_with(&container[..2]), "{name}");
                fs_err::write(&path, &disk).unwrap();
                assert_eq!(Some(sha256_file(&path)), entry.sha256_raw, "{name}");
            }
            Err(error) => {
                let refused = matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Encrypted);
                let readable = entry.sha256_raw.as_ref().is_some_and(|digest| digest.len() == 64);
                assert!(refused || !readable, "{name}: {inner}: {error}");
            }
        }
    }
    assert!(checked >= 20 || corpus_entries().is_empty(), "{checked} files");
    for entry in corpus_entries().iter().filter(|entry| entry.format == "gz-corrupt") {
        assert!(unpacked(&entry.path, LEN_MAX).is_err());
    }
}

#[test]
fn hostile_containers_meet_what_is_expected() {
    hostile::check_streams("compress/*");
}

/// Makes an archive with `command` in a folder where `files` are.
pub(super) fn archive(files: &[(&str, &[u8])], command: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }
    let script = format!("{command} && cat /dev/fd/3 3<archive");
    let output =
        Command::new("sh").args(["-ec", &script]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn one_disk_is_found_in_archives() {
    if !(require_tool("tar") && require_tool("gzip")) {
        return;
    }
    let disk = disk();
    let long = format!("{0}/{0}/disk.raw", "d".repeat(90));
    let ovf = OVF.as_bytes();
    for (name, command, chain) in [
        ("disk.raw", "tar --format=ustar -cf archive disk.raw", &[Format::Tar][..]),
        ("disk.raw", "tar --format=gnu -cf archive notes.txt disk.raw", &[Format::Tar]),
        (&long, "tar --format=gnu -cf archive notes.txt d*", &[Format::Tar]),
        (&long, "tar --format=pax -cf archive d* notes.txt", &[Format::Tar]),
        (
            "disk.raw",
            "cp --sparse=always disk.raw s && mv s disk.raw && tar --format=oldgnu -Scf archive disk.raw",
            &[Format::Tar],
        ),
        ("disk.raw", "tar -cf archive a.ovf disk.raw", &[Format::Ova]),
        ("disk.raw", "tar -czf archive ./disk.raw", &[Format::Gzip, Format::Tar]),
        (
            "disk.raw",
            "gzip -1 disk.raw && tar -cf archive disk.raw.gz",
            &[Format::Tar, Format::Gzip],
        ),
    ] {
        let files = [(name, &disk[..]), ("notes.txt", b"text"), ("a.ovf", ovf)];
        let file = archive(&files, command);
        check(&file, &disk, &[chain, &[Format::Raw]].concat(), command);
        let mut head = Head::new();
        head.push(Bytes::from(file)).unwrap();
        let size = (chain.last() != Some(&Format::Gzip)).then_some(disk.len() as u64);
        assert_eq!(head.end().unwrap().virtual_size, size, "{command}");
    }
}

/// An appliance with the disk `disk.raw`.
const OVF: &str = "<?xml version='1.0'?><Envelope><References><File href='disk.raw' id='1'/>\
    </References><DiskSection><Disk diskId='d' fileRef='1'/></DiskSection></Envelope>";

#[test]
fn a_manifest_is_held_against_the_disk() {
    if !(require_tool("tar") && require_tool("sha256sum")) {
        return;
    }
    let disk = &disk()[..200 << 10];
    let files = [("f/disk.raw", disk), ("f/a.ovf", OVF.as_bytes())];
    for (order, kind) in [
        ("f/a.ovf f/a.mf f/disk.raw", "SHA256"),
        ("-C f a.ovf disk.raw a.mf", "SHA1"),
        ("-C f a.mf a.ovf disk.raw", "SHA512"),
        ("./f/a.ovf ./f/disk.raw ./f/a.mf", "SHA512"),
    ] {
        let sum = kind.to_lowercase();
        let lines = format!(
            "for i in disk.raw a.ovf; do
               echo \"{kind}($i)= $({sum}sum <f/$i | cut -d' ' -f1)\" >>f/a.mf
             done"
        );
        let not_the_one =
            |name: &str| (format!("the {kind} digest of `"), format!("{name}` is not the one in"));
        for (change, message) in [
            ("true", None),
            ("printf x >>f/disk.raw", Some(not_the_one("disk.raw"))),
            ("echo >>f/a.ovf", Some(not_the_one("a.ovf"))),
            (
                "sed -i /disk/d f/a.mf",
                Some(("the manifest `".to_owned(), "a.mf` has no digest of `disk.raw`".to_owned())),
            ),
        ] {
            let file = archive(&files, &format!("{lines}; {change}; tar -cf archive {order}"));
            match (decode(&file, &[65_536]), message) {
                (Ok((decoded, _)), None) => assert!(decoded == disk),
                (Err(error), Some((begin, rest))) => {
                    let text = error.to_string();
                    assert!(text.starts_with(&begin) && text.contains(&rest), "{text}");
                }
                (result, _) => panic!("{order}: {change}: {:?}", result.map(drop)),
            }
        }
    }
}

#[test]
fn an_archive_without_one_disk_is_refused_with_names() {
    if !require_tool("tar") {
        return;
    }
    let disk = disk();
    let files = [("a.raw", &disk[..]), ("b.img", &disk), ("c.txt", b"text"), ("d/._x", b"x")];
    for (command, message) in [
        (
            "tar -cf archive a.raw c.txt b.img",
            "expected one disk in the archive, got `a.raw` and `b.img`",
        ),
        ("tar -cf archive c.txt d", "expected a disk in the archive, got only `c.txt`, `d/._x`"),
        ("ln -s /etc/passwd l && tar -cf archive l", "the member `l` is no file"),
        ("tar -Pcf archive \"$PWD/a.raw\"", "the member `/"),
        ("tar -cf whole a.raw && head -c 1000000 whole >archive", "the tar archive is cut off"),
        ("tar -cf whole a.raw && head -c 3146240 whole >archive", "the tar archive is cut off"),
    ] {
        let error = decode(&archive(&files, command), &[65_536]).map(drop).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}, expected {message}");
        assert!(error.offset().is_some());
    }
}

#[test]
fn hostile_archives_meet_what_is_expected() {
    hostile::check_streams("tar/*");
}
