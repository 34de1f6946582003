//! What lands is what `qemu-img convert` makes of the same file.
#![expect(clippy::disallowed_methods, reason = "attaches loop devices")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use bootyard_image::{ErrorKind, Format};
use bootyard_import::{Cancel, Error, inspect};
use bootyard_source::Options;
use bootyard_spec::{Explain, ImportRequest, OutputFormat, Target};
use bootyard_testkit::{
    FaultServer, Nginx, Reply, corpus_entries, pseudo_random, qemu_img, require_tool, run,
    sha256_file, skip, sparse_image,
};

use crate::faults::StopWhenVerifying;
use crate::{Names, Place};

const SIZE: u64 = (20 << 20) + 512;

/// The same disk in every way that `qemu-img` can store it in a qcow2 that we read, as arguments.
const QCOW2: [&[&str]; 7] = [
    &["-c"],
    &["-c", "-o", "compression_type=zstd"],
    &["-c", "-o", "compat=0.10"],
    &["-c", "-o", "cluster_size=4k"],
    &["-c", "-o", "cluster_size=2M"],
    &[],
    &["-o", "preallocation=metadata"],
];

fn qcow2(raw: &Path, image: &Path, arguments: &[&str]) {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).args(arguments).args([raw, image]);
    run(&mut command);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_format_lands_as_qemu_img_converts_it() {
    if !["qemu-img", "nginx"].into_iter().all(require_tool) {
        return;
    }
    let images = tempfile::tempdir().unwrap();
    let raw = images.path().join("raw");
    sparse_image(&raw, SIZE, 1);
    let expected = sha256_file(&raw);
    for (index, arguments) in QCOW2.iter().enumerate() {
        qcow2(&raw, &images.path().join(index.to_string()), arguments);
    }
    let server = Nginx::serve(images.path());
    for name in (0..QCOW2.len()).map(|index| index.to_string()).chain(["raw".to_owned()]) {
        let place = Place::new();
        let sha256 = format!("sha256:{}", sha256_file(images.path().join(&name)));
        let mut request = place.request(&server.url(&name));
        request.checksum = Some(sha256.parse().unwrap());
        let report = place.import(&request).unwrap();
        assert_eq!(sha256_file(&report.path), expected, "{name}");
        assert_eq!((report.virtual_size, report.volume_size), (SIZE, SIZE), "{name}");
        assert_eq!((report.spilled_bytes, report.retries), (0, 0), "{name}");
        assert_eq!(report.checked.unwrap().to_string(), sha256);
        let stored = fs_err::metadata(images.path().join(&name)).unwrap();
        assert_eq!(report.source_bytes, stored.len());
        assert_eq!(place.files(), ["disk"]);
        // Zeros that the source stores become holes, so we need no more than the data itself.
        let allocated = report.allocated_bytes.unwrap();
        assert_eq!(allocated, fs_err::metadata(&report.path).unwrap().blocks() * 512);
        let sparse = fs_err::metadata(&raw).unwrap().blocks() * 512;
        assert!(allocated <= sparse, "{name}: {allocated} of {sparse}");
        assert!(report.data_bytes <= allocated, "{name}: {}", report.data_bytes);
    }
}

#[test]
fn a_fixed_vhd_ends_before_its_footer() {
    if !["qemu-img", "nginx"].into_iter().all(require_tool) {
        return;
    }
    let images = tempfile::tempdir().unwrap();
    let (raw, image) = (images.path().join("raw"), images.path().join("fixed.vhd"));
    sparse_image(&raw, SIZE, 3);
    let options = ["-O", "vpc", "-o", "subformat=fixed,force_size=on"];
    let convert = ["convert", "-f", "raw"].into_iter().chain(options);
    qemu_img(convert.chain([path(&raw), path(&image)]));
    let server = Nginx::serve(images.path());
    let exact = Some(SIZE.to_string().parse().unwrap());
    for (size, max_size) in [(None, None), (None, exact), (exact, None)] {
        let place = Place::new();
        let mut request = place.request(&server.url("fixed.vhd"));
        (request.size, request.max_size) = (size, max_size);
        let report = place.import(&request).unwrap();
        assert_eq!((report.virtual_size, report.volume_size), (SIZE, SIZE));
        assert_eq!(report.chain, [Format::Vhd]);
        assert_eq!(sha256_file(&report.path), sha256_file(&raw));
    }
}

#[test]
fn every_qcow2_of_the_corpus_lands_or_is_refused_by_name() {
    let entries = corpus_entries();
    if entries.is_empty() {
        skip!("no corpus");
    }
    let mut landed = 0;
    for entry in entries.iter().filter(|entry| entry.format == "qcow2") {
        let place = Place::new();
        match (place.import(&place.request(path(&entry.path))), &entry.sha256_raw) {
            (Ok(report), Some(expected)) => {
                assert_eq!(&sha256_file(&report.path), expected, "{entry:?}");
                landed += 1;
            }
            (Ok(_), None) => {}
            (Err(Error::Image(error)), _) => {
                let refused = !matches!(error.kind(), ErrorKind::Write | ErrorKind::Read);
                assert!(refused, "{entry:?}: {error:?}");
                let fair = matches!(
                    error.kind(),
                    ErrorKind::NeedsOtherFile | ErrorKind::Encrypted | ErrorKind::Unsupported
                );
                assert!(fair || entry.sha256_raw.is_none(), "{entry:?}: {error:?}");
                assert!(place.files().is_empty(), "{entry:?}");
            }
            (Err(error), _) => panic!("{entry:?}: {error:?}"),
        }
    }
    assert!(landed > 0);
}

#[test]
fn a_volume_may_be_larger_and_may_be_qcow2() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = tempfile::tempdir().unwrap();
    let (raw, image) = (images.path().join("raw"), images.path().join("image.qcow2"));
    sparse_image(&raw, SIZE, 2);
    qcow2(&raw, &image, &["-c"]);
    let place = Place::new();
    let mut request = place.request(path(&image));
    request.target = Target::Volume("debian".parse().unwrap());
    request.size = Some("32Mi".parse().unwrap());
    request.output_format = OutputFormat::Qcow2;
    let events = Names::default();
    let report = place.import_with(&request, &events, &Cancel::new()).unwrap();
    assert_eq!(report.path, place.path("home/volumes/debian/disk.qcow2"));
    assert_eq!((report.virtual_size, report.volume_size), (SIZE, 32 << 20));
    qemu_img(["check", path(&report.path)]);
    // Different sizes compare as equal where the longer one has only zeros more.
    qemu_img(["compare", "-f", "raw", "-F", "qcow2", path(&raw), path(&report.path)]);
    assert_eq!(
        events.take(),
        ["connecting", "planned qcow2", "transferring", "moved", "verifying", "publishing"]
    );
}

#[test]
fn a_block_device_gets_the_disk_and_zeros_behind_it() {
    if !["losetup", "qemu-img"].into_iter().all(require_tool) {
        return;
    }
    let place = Place::new();
    let (raw, image) = (place.path("raw"), place.path("image"));
    sparse_image(&raw, SIZE, 3);
    qcow2(&raw, &image, &["-c"]);
    let backing = place.path("device");
    fs_err::write(&backing, pseudo_random(24 << 20, 4)).unwrap();
    let attach = Command::new("losetup").args(["--find", "--show"]).arg(&backing).output().unwrap();
    if !attach.status.success() {
        skip!("cannot attach a loop device");
    }
    let device = String::from_utf8(attach.stdout).unwrap().trim().to_owned();
    let mut request = place.request(path(&image));
    request.target = Target::Path(device.clone().into());
    let result = place.import(&request);
    request.size = Some("25Mi".parse().unwrap());
    let too_small = place.import(&request);
    let itself =
        place.import(&ImportRequest { target: request.target.clone(), ..place.request(&device) });
    let stored = fs_err::read(&backing).unwrap();
    let cancel = Cancel::new();
    request.size = None;
    let stopped = place.import_with(&request, &StopWhenVerifying::new(&cancel), &cancel);
    run(Command::new("losetup").args(["--detach", &device]));

    assert_eq!(result.unwrap().volume_size, 24 << 20);
    let disk = fs_err::read(&raw).unwrap();
    assert!(stored[..disk.len()] == disk);
    assert!(stored[disk.len()..].iter().all(|byte| *byte == 0));
    let message = format!("block device `{device}` is too small: expected at least 25Mi, got 24Mi");
    assert_eq!(too_small.unwrap_err().to_string(), message);
    let message = format!("target `{device}` is the source itself");
    assert_eq!(itself.unwrap_err().to_string(), message);
    let hint = stopped.unwrap_err().hint().unwrap();
    assert!(hint.starts_with(&format!("the old contents of `{device}` are lost")), "{hint}");
}

#[test]
fn a_raw_disk_of_unknown_length_lands_whole() {
    let disk = pseudo_random((3 << 20) + 1, 5);
    let server = FaultServer::serve(disk.clone(), [Reply::honest().no_ranges().chunked()]);
    let place = Place::new();
    let mut request = place.request(&server.url("disk"));
    let report = place.import(&request).unwrap();
    let stored = fs_err::read(&report.path).unwrap();
    assert!(stored.starts_with(&disk));
    assert_eq!(stored.len(), (3 << 20) + 512);
    assert_eq!((report.virtual_size, report.source_bytes), ((3 << 20) + 512, (3 << 20) + 1));

    let place = Place::new();
    request.target = Target::Path(place.path("disk"));
    request.size = Some("4Mi".parse().unwrap());
    let report = place.import(&request).unwrap();
    assert_eq!(fs_err::metadata(&report.path).unwrap().len(), 4 << 20);
}

#[test]
fn an_image_is_described_from_its_head_also_where_it_would_be_refused() {
    if !require_tool("qemu-img") {
        return;
    }
    let place = Place::new();
    let raw = place.path("raw");
    sparse_image(&raw, SIZE, 6);
    qcow2(&raw, &place.path("image"), &["-c", "-o", "compression_type=zstd"]);
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "raw", "overlay"]);
    run(create.current_dir(place.path("")));

    let info = |name| inspect(&place.request(path(&place.path(name))).source, &Options::default());
    let image = info("image").unwrap();
    assert_eq!((image.format, image.virtual_size), (Format::Qcow2, Some(SIZE)));
    assert_eq!((image.compression, image.refused), (Some("zstd"), None));
    let overlay = info("overlay").unwrap();
    assert_eq!(overlay.backing_file.as_deref(), Some("raw"));
    assert!(overlay.refused.is_some());
    assert_eq!(info("raw").unwrap().virtual_size, Some(SIZE));

    let server =
        FaultServer::serve(fs_err::read(&raw).unwrap(), [Reply::honest().no_ranges().chunked()]);
    let request = place.request(&server.url("raw"));
    assert_eq!(inspect(&request.source, &Options::default()).unwrap().virtual_size, None);
    let planned = place.rehearse(&request).unwrap();
    assert_eq!(
        (planned.format, planned.virtual_size, planned.fetch_bytes),
        (Format::Raw, None, None)
    );
}

#[test]
fn an_image_on_a_server_is_described_by_a_few_ranges() {
    if !require_tool("qemu-img") {
        return;
    }
    let place = Place::new();
    let (raw, image) = (place.path("raw"), place.path("image"));
    sparse_image(&raw, SIZE, 9);
    qcow2(&raw, &image, &["-c"]);
    let bytes = fs_err::read(&image).unwrap();
    let len = bytes.len();
    assert!(len > 4 << 20, "a download would show");
    let server = FaultServer::serve(bytes, [Reply::honest()]);
    let source = place.request(&server.url("image")).source;
    let info = inspect(&source, &Options::default()).unwrap();
    assert_eq!(info.virtual_size, Some(SIZE));
    let requests = server.requests();
    let ranged = requests.iter().filter(|request| request.header("range").is_some()).count();
    assert!(ranged == requests.len() && ranged < 9, "{requests:?}");
}
