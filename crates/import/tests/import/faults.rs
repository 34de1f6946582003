//! Bad input: one error with a hint and its class, and nothing left behind.
#![expect(clippy::disallowed_methods, reason = "makes images and mounts")]

use std::error::Error as StdError;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bootyard_import::{Cancel, Error, Event, Events, Phase};
use bootyard_spec::{Class, Explain, ImportRequest, OutputFormat, Target};
use bootyard_testkit::{
    FaultServer, Reply, announce, pseudo_random, require_tool, run, sparse_image,
};

use crate::{Names, Place, files_of};

/// The error, its causes and its hint as a user sees them, with the place's folder as `DIR` and
/// the server's address as `HOST`.
fn shown(place: &Place, server: Option<&FaultServer>, error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!("\n: {cause}"));
        next = cause.source();
    }
    text.push_str(&format!("\nhint: {}", error.hint().expect("a hint")));
    let port = server.map_or(0, FaultServer::port);
    text.replace(place.0.path().to_str().unwrap(), "DIR")
        .replace(&format!("127.0.0.1:{port}"), "HOST")
}

/// Serves `body` as `reply` says, imports it as `change` asks, and compares what the user sees.
fn check(
    body: &[u8],
    reply: Reply,
    change: impl Fn(&mut ImportRequest),
    class: Class,
    expected: &str,
) {
    let place = Place::new();
    let server = FaultServer::serve(body, [reply]);
    let mut request = place.request(&server.url("debian.qcow2"));
    change(&mut request);
    let error = place.import(&request).unwrap_err();
    assert_eq!(shown(&place, Some(&server), &error), expected);
    assert_eq!(error.class(), class);
    assert!(place.files().is_empty(), "{:?}", place.files());
}

const fn as_it_is(_request: &mut ImportRequest) {}

/// A file that `qemu-img` makes of an 8 MiB disk.
fn image(arguments: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [raw, image] = ["raw", "image"].map(|name| folder.path().join(name));
    sparse_image(&raw, 8 << 20, 1);
    let mut command = Command::new("qemu-img");
    run(command.args(["convert", "-f", "raw"]).args(arguments).args([&raw, &image]));
    fs_err::read(image).unwrap()
}

#[test]
fn a_source_that_fails_is_told() {
    let disk = pseudo_random(1 << 20, 1);
    check(
        &disk,
        Reply::status(404),
        as_it_is,
        Class::Source,
        "`http://HOST/debian.qcow2` answered with HTTP status 404\n\
         hint: check the URL: the server has nothing there",
    );
    check(
        &disk,
        Reply::honest().no_ranges().cut_after(700_000),
        as_it_is,
        Class::Source,
        "`http://HOST/debian.qcow2` broke off: received 700000 of 1048576 bytes\n\
         : end of file before message length reached\n\
         hint: run the command again",
    );
}

#[test]
fn bytes_that_are_not_what_the_checksum_says_are_not_published() {
    let expected = "md5:900150983cd24fb0d6963f7d28e17f72";
    check(
        &[0xa5; 4096],
        Reply::honest(),
        |request| request.checksum = Some(expected.parse().unwrap()),
        Class::Checksum,
        "`http://HOST/debian.qcow2` is not the file that was asked for\n\
         : checksum mismatch: expected md5:900150983cd24fb0d6963f7d28e17f72, \
         got md5:17575e1bed6cb8f7b7c5c215f5e8c304\n\
         hint: compare with the digest that the publisher shows for exactly this file; \
         if it is right, the file was changed or damaged on its way",
    );
}

#[test]
fn what_is_no_image_that_we_read_is_refused_by_name() {
    if !require_tool("qemu-img") {
        return;
    }
    let gzip = {
        let mut bytes = vec![0x1f, 0x8b, 8, 0];
        bytes.extend(pseudo_random(1 << 20, 2));
        bytes
    };
    for (body, reply, expected) in [
        (
            Vec::new(),
            Reply::html(),
            "cannot read `http://HOST/debian.qcow2` as a disk image\n\
             : expected a disk image, got an HTML page (at offset 0x0)\n\
             hint: open the URL in a browser: it may lead to a web page instead of the file; \
             use the direct download link",
        ),
        (
            gzip,
            Reply::honest(),
            "cannot read `http://HOST/debian.qcow2` as a disk image\n\
             : the gzip stream is damaged: invalid block type (at offset 0x0)\n\
             hint: get the whole file again; `gzip -t debian.qcow2` tells whether it is one",
        ),
        (
            b"\x1f\x9d\x90rest".to_vec(),
            Reply::honest(),
            "cannot read `http://HOST/debian.qcow2` as a disk image\n\
             : `compress` (.Z) files are not supported (at offset 0x0)\n\
             hint: unpack it first: `uncompress debian.qcow2`",
        ),
        (
            b"Bochs Virtual HD Image\0".to_vec(),
            Reply::honest(),
            "cannot read `http://HOST/debian.qcow2` as a disk image\n\
             : `bochs` images are not supported (at offset 0x0)\n\
             hint: convert it first: `qemu-img convert -O qcow2 debian.qcow2 new.qcow2`",
        ),
    ] {
        check(&body, reply, as_it_is, Class::Image, expected);
    }
}

#[test]
fn a_qcow2_that_is_not_whole_is_refused() {
    if !require_tool("qemu-img") {
        return;
    }
    let whole = image(&["-O", "qcow2"]);
    check(
        &whole[..0x11_0000],
        Reply::honest(),
        as_it_is,
        Class::Image,
        "cannot read `http://HOST/debian.qcow2` as a disk image\n\
         : the file ends before the data cluster at 0x100000 (at offset 0x110000)\n\
         hint: get the whole file again; `qemu-img check debian.qcow2` tells whether it is one",
    );
    let overlay = {
        let place = Place::new();
        sparse_image(place.path("base"), 1 << 20, 1);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "overlay"]);
        run(command.current_dir(place.0.path()));
        fs_err::read(place.path("overlay")).unwrap()
    };
    check(
        &overlay,
        Reply::honest(),
        as_it_is,
        Class::Image,
        "cannot read `http://HOST/debian.qcow2` as a disk image\n\
         : the image is an overlay over another file, `base` (at offset 0x8)\n\
         hint: flatten it first: `qemu-img convert -O qcow2 debian.qcow2 flat.qcow2`",
    );
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let disk = pseudo_random(1 << 20, 1);
    let size = |text: &'static str| {
        move |request: &mut ImportRequest| request.size = Some(text.parse().unwrap())
    };
    let max_size = |text: &'static str| {
        move |request: &mut ImportRequest| request.max_size = Some(text.parse().unwrap())
    };
    check(
        &disk,
        Reply::honest(),
        size("512Ki"),
        Class::Usage,
        "the asked size 512Ki is too small: the image holds a disk of 1Mi\n\
         hint: ask for at least `--size 1Mi`, or leave `--size` away",
    );
    check(
        &disk,
        Reply::honest(),
        max_size("512Ki"),
        Class::Image,
        "the image holds a disk of 1Mi; expected at most 512Ki\n\
         hint: if that is what you want, allow it with `--max-size 1Mi`",
    );
    check(
        &disk,
        Reply::honest().no_ranges().chunked(),
        max_size("512Ki"),
        Class::Image,
        "`http://HOST/debian.qcow2` holds more than the 512Ki that are accepted\n\
         hint: if that is what you want, allow it with larger `--size` and `--max-size`, \
         or a larger device",
    );
    check(
        &disk,
        Reply::honest().no_ranges().chunked(),
        |request| request.output_format = OutputFormat::Qcow2,
        Class::Usage,
        "`http://HOST/debian.qcow2` does not tell its length, which a qcow2 volume needs\n\
         hint: name the size with `--size`, or use `--output-format raw`",
    );
}

#[test]
fn an_existing_target_is_refused_before_the_source_is_asked() {
    let place = Place::new();
    let server = FaultServer::serve(b"disk", []);
    fs_err::write(place.path("disk"), "precious").unwrap();
    let error = place.import(&place.request(&server.url("disk"))).unwrap_err();
    assert_eq!(
        shown(&place, None, &error),
        "target `DIR/disk` exists\nhint: name another target, or remove it first: `rm DIR/disk`"
    );
    assert_eq!(error.class(), Class::Target);
    assert!(server.requests().is_empty());
    assert_eq!(fs_err::read_to_string(place.path("disk")).unwrap(), "precious");
}

#[test]
fn a_full_file_system_is_told_in_its_own_words() {
    if !["mount", "umount"].into_iter().all(require_tool) {
        return;
    }
    let place = Place::new();
    let (mount, file) = (place.path("mount"), place.path("image"));
    fs_err::create_dir(&mount).unwrap();
    fs_err::write(&file, pseudo_random(8 << 20, 1)).unwrap();
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&mount);
    if !command.status().is_ok_and(|status| status.success()) {
        return announce(format_args!("cannot mount a tmpfs"));
    }
    let errors = [OutputFormat::Raw, OutputFormat::Qcow2].map(|format| {
        let mut request = place.request(file.to_str().unwrap());
        request.target = Target::Path(mount.join("disk"));
        request.output_format = format;
        place.import(&request).unwrap_err()
    });
    let left = files_of(&mount);
    run(Command::new("umount").arg(&mount));
    assert!(left.is_empty(), "{left:?}");
    for error in errors {
        let text = shown(&place, None, &error);
        assert!(text.starts_with("no space for `DIR/mount/disk`: expected at least "), "{text}");
        assert!(text.contains("hint: see what is free with `df -h DIR/mount`"), "{text}");
        assert_eq!(error.class(), Class::Target);
    }
}

/// Stops the import once bytes have moved.
struct StopWhenMoving(Cancel);

impl Events for StopWhenMoving {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::Moved(_)) {
            let cancel = self.0.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                cancel.cancel();
            });
        }
    }
}

#[test]
fn a_stopped_import_leaves_nothing_even_while_the_source_is_silent() {
    let server =
        FaultServer::serve(pseudo_random(1 << 20, 1), [Reply::honest().stall_after(300_000)]);
    let place = Place::new();
    let cancel = Cancel::new();
    let request = place.request(&server.url("disk"));
    let events = StopWhenMoving(cancel.clone());
    let error = place.import_with(&request, &events, &cancel).unwrap_err();
    assert_eq!(
        shown(&place, None, &error),
        "the import was stopped\nhint: nothing was left behind; run the same command again"
    );
    assert_eq!(error.class(), Class::Interrupted);
    assert!(place.files().is_empty());
    // A switch that is on stops the next one before it begins.
    assert!(matches!(
        place.import_with(&request, &(), &cancel),
        Err(Error::Cancelled { device: None, .. })
    ));
}

/// Stops the import once its source has ended, and notes when.
pub(crate) struct StopWhenVerifying(Cancel, Mutex<Option<Instant>>);

impl StopWhenVerifying {
    pub(crate) fn new(cancel: &Cancel) -> Self {
        Self(cancel.clone(), Mutex::default())
    }
}

impl Events for StopWhenVerifying {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::Phase(Phase::Verifying)) {
            *self.1.lock().unwrap() = Some(Instant::now());
            self.0.cancel();
        }
    }
}

/// A qcow2 image of 10 MiB, all of whose `clusters` clusters of 2 MiB are the same one.
fn bomb(clusters: usize) -> Vec<u8> {
    const CLUSTER: usize = 2 << 20;
    let mut image = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(20, &21_u32.to_be_bytes());
    put(24, &((clusters * CLUSTER) as u64).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(CLUSTER as u64).to_be_bytes());
    put(48, &(3 * CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for index in 0..clusters {
        put(2 * CLUSTER + index * 8, &(4 * CLUSTER as u64).to_be_bytes());
    }
    image.extend(pseudo_random(CLUSTER, 1));
    image
}

#[test]
fn an_import_is_stopped_while_its_decoder_works() {
    let place = Place::new();
    fs_err::write(place.path("bomb"), bomb(8 << 10)).unwrap();
    let cancel = Cancel::new();
    let events = StopWhenVerifying::new(&cancel);
    let request = place.request(place.path("bomb").to_str().unwrap());
    let error = place.import_with(&request, &events, &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled { device: None, .. }), "{error:?}");
    let stopped = events.1.lock().unwrap().expect("the source ended before the import");
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
    assert_eq!(place.files(), ["bomb"]);
}

#[test]
fn a_target_that_is_the_source_is_refused() {
    let place = Place::new();
    let (disk, link) = (place.path("disk"), place.path("link"));
    fs_err::write(&disk, pseudo_random(4096, 1)).unwrap();
    fs_err::hard_link(&disk, &link).unwrap();
    for target in [disk.clone(), link] {
        let target = Target::Path(target);
        let request = ImportRequest { target, ..place.request(disk.to_str().unwrap()) };
        let error = place.import(&request).unwrap_err();
        assert!(error.to_string().ends_with("is the source itself"), "{error}");
        assert_eq!(error.class(), Class::Usage);
    }
    assert!(fs_err::read(&disk).unwrap() == pseudo_random(4096, 1));
}

#[test]
fn a_source_that_breaks_off_once_is_read_on() {
    let disk = pseudo_random(2 << 20, 1);
    let replies = [Reply::honest().cut_after(1 << 20), Reply::honest()];
    let server = FaultServer::serve(disk.clone(), replies);
    let place = Place::new();
    let events = Names::default();
    let request = place.request(&server.url("disk"));
    let report = place.import_with(&request, &events, &Cancel::new()).unwrap();
    assert_eq!(report.retries, 1);
    assert!(fs_err::read(report.path).unwrap() == disk);
    assert!(events.take().contains(&"retried 1".to_owned()));
}
