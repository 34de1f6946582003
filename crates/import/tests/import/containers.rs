//! Disks in containers: compressed, archived, and both.
#![expect(clippy::disallowed_methods, reason = "compressors are other programs")]

use std::path::Path;
use std::process::Command;

use bootyard_image::Format;
use bootyard_import::{Cancel, Error, inspect};
use bootyard_source::Options;
use bootyard_spec::{Class, Explain};
use bootyard_testkit::{Nginx, qemu_img, require_tool, run, sha256_file, sparse_image};

use crate::{Names, Place};

const SIZE: u64 = 6 << 20;

/// Makes `raw` and `qcow2`, and of each what `commands` make of them, which name what they write.
fn containers(dir: &Path, commands: &[&str]) {
    sparse_image(dir.join("raw"), SIZE, 1);
    let [raw, image] = ["raw", "qcow2"].map(|name| dir.join(name));
    qemu_img(["convert".as_ref(), "-cOqcow2".as_ref(), raw.as_os_str(), image.as_os_str()]);
    for command in commands {
        run(Command::new("sh").args(["-ec", command]).current_dir(dir));
    }
}

#[test]
fn a_disk_lands_out_of_every_container() {
    if !["qemu-img", "nginx", "gzip", "xz", "zstd", "bzip2", "lz4"].into_iter().all(require_tool) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let images: &[(&str, &str, &[Format])] = &[
        ("raw.gz", "gzip <raw >raw.gz", &[Format::Gzip, Format::Raw]),
        ("qcow2.gz", "gzip <qcow2 >qcow2.gz", &[Format::Gzip, Format::Qcow2]),
        ("raw.xz", "xz -0T2 --block-size=1MiB <raw >raw.xz", &[Format::Xz, Format::Raw]),
        ("qcow2.zst", "zstd -q <qcow2 >qcow2.zst", &[Format::Zstd, Format::Qcow2]),
        ("raw.bz2", "bzip2 <raw >raw.bz2", &[Format::Bzip2, Format::Raw]),
        ("raw.lz4", "lz4 -q <raw >raw.lz4", &[Format::Lz4, Format::Raw]),
        ("raw.lzma", "xz -0 --format=lzma <raw >raw.lzma", &[Format::Lzma, Format::Raw]),
        (
            "qcow2.gz.xz",
            "gzip <qcow2 | xz -0 >qcow2.gz.xz",
            &[Format::Xz, Format::Gzip, Format::Qcow2],
        ),
    ];
    let commands: Vec<&str> = images.iter().map(|(_, command, _)| *command).collect();
    containers(dir.path(), &commands);
    let expected = sha256_file(dir.path().join("raw"));
    let server = Nginx::serve(dir.path());
    for (name, _, chain) in images {
        let place = Place::new();
        let request = place.request(&server.url(name));
        let events = Names::default();
        let planned = place.rehearse(&request).unwrap();
        let report = place.import_with(&request, &events, &Cancel::new()).unwrap();
        assert_eq!(&report.chain, chain, "{name}");
        assert_eq!(sha256_file(&report.path), expected, "{name}");
        assert_eq!((report.virtual_size, report.volume_size), (SIZE, SIZE), "{name}");
        let sum = sha256_file(dir.path().join(name));
        assert_eq!(report.sha256.hex(), sum, "the digest is that of the file as it is");

        let info = inspect(&request.source, &Options::default()).unwrap();
        let size = (chain.last() != Some(&Format::Raw)).then_some(SIZE);
        assert_eq!((&planned.chain[..], planned.virtual_size), (*chain, size), "{name}");
        assert_eq!((&info.chain[..], info.virtual_size), (*chain, size), "{name}");
    }
}

#[test]
fn nothing_is_published_of_a_container_with_a_wrong_checksum_or_end() {
    if !["qemu-img", "gzip", "xz"].into_iter().all(require_tool) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    containers(
        dir.path(),
        &[
            "gzip <raw >good; (cat good; echo more) >followed; head -c -1 good >cut",
            "(head -c -8 good; printf 12345678) >sum",
        ],
    );
    for (name, message) in [
        ("followed", "the gzip stream is followed by other bytes"),
        ("cut", "the gzip stream is cut off"),
        ("sum", "the gzip stream is damaged: incorrect data check"),
    ] {
        let place = Place::new();
        let source = dir.path().join(name);
        let error = place.import(&place.request(source.to_str().unwrap())).unwrap_err();
        let Error::Image(why) = &error else { panic!("{error:?}") };
        assert!(why.to_string().starts_with(message), "{name}: {why}");
        assert_eq!(error.class(), Class::Image);
        assert!(place.files().is_empty(), "{name}: {:?}", place.files());
    }
}

#[test]
fn what_never_ends_is_cut_at_the_limit() {
    if !require_tool("zstd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // 100 GiB of zeros in 3 MB.
    let command =
        "head -c 1G /dev/zero | zstd -q1 >part; for i in $(seq 100); do cat part; done >bomb";
    run(Command::new("sh").args(["-ec", command]).current_dir(dir.path()));
    let place = Place::new();
    let mut request = place.request(dir.path().join("bomb").to_str().unwrap());
    request.max_size = Some("64Mi".parse().unwrap());
    let error = place.import(&request).unwrap_err();
    assert!(matches!(error, Error::BeyondLimit { .. }), "{error:?}");
    assert!(place.files().is_empty());
}
