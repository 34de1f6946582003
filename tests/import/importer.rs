//! `bootyard importer` as CDI's controller sees it: the environment that it makes, the exit code, the
//! termination message, the volume, and the metrics.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bootyard_testkit::{
    Cli, FaultServer, ImageLayout, LoopDevice, Nginx, NginxOptions, Output, Registry, Reply,
    S3Server, pseudo_random, require_tool, run, sha256_file,
};

use crate::Images;

const MIB: u64 = 1 << 20;

/// A pod with a volume.
struct Pod {
    cli: Cli,
}

impl Pod {
    /// A pod in which the source is of this kind.
    fn new(source: &str, endpoint: &str) -> Self {
        let cli = Cli::from_env();
        let root = cli.root().join("pod");
        for folder in ["data", "dev", "certs", "extraheaders/0"] {
            fs_err::create_dir_all(root.join(folder)).expect("a folder of the pod");
        }
        let cli = cli
            .env("BOOTYARD_IMPORTER_ROOT", &root.display().to_string())
            .env("BOOTYARD_IMPORTER_METRICS_PORT", "0")
            .env("IMPORTER_SOURCE", source)
            .env("IMPORTER_ENDPOINT", endpoint)
            .env("IMPORTER_CONTENTTYPE", "kubevirt")
            .env("OWNER_UID", "1111-1111")
            .env("FILESYSTEM_OVERHEAD", "0.06")
            .env("INSECURE_TLS", "false")
            .env("PREALLOCATION", "false");
        Self { cli }
    }

    fn env(self, name: &str, value: &str) -> Self {
        Self { cli: self.cli.env(name, value) }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.cli.root().join("pod").join(path)
    }

    fn disk(&self) -> PathBuf {
        self.path("data/disk.img")
    }

    fn run(&self) -> Output {
        self.cli.run(["importer"])
    }

    fn message(&self) -> String {
        fs_err::read_to_string(self.path("dev/termination-log")).expect("a termination message")
    }

    /// Runs to success, and gives the termination message.
    #[track_caller]
    fn succeed(&self) -> serde_json::Value {
        let output = self.run();
        assert_eq!(output.code, Some(0), "{output}");
        let message = serde_json::from_str(&self.message()).expect("a message in JSON");
        assert!(serde_json::Value::is_object(&message), "{message}");
        message
    }

    /// Runs to a failure, and gives the termination message.
    #[track_caller]
    fn fail(&self) -> String {
        let output = self.run();
        assert_eq!(output.code, Some(1), "{output}");
        assert!(!self.disk().exists(), "a disk stands there");
        self.message()
    }
}

/// The disk of the test images, which has 24 MiB, on a volume of 64 MiB: what CDI leaves for it.
const USABLE: u64 = 60 * MIB;

#[track_caller]
fn assert_grown(pod: &Pod, images: &Images) {
    let disk = fs_err::read(pod.disk()).expect("the disk");
    let raw = fs_err::read(images.path("disk.raw")).expect("the image");
    assert_eq!(disk.len() as u64, USABLE);
    assert!(disk[..raw.len()] == raw, "the disk is another one");
    assert!(disk[raw.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn an_image_over_https_fills_the_volume_as_cdi_does() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    let image = images.convert("disk.qcow2", &["-c"]);
    let options = NginxOptions {
        tls: true,
        basic_auth: Some(("user".into(), "password".into())),
        directives: "if ($http_x_token != \"a secret\") { return 403; }\n\
                     if ($http_x_plain != \"one\") { return 403; }"
            .into(),
        ..NginxOptions::default()
    };
    let nginx = Nginx::serve_with(images.folder.path(), &options);
    let checksum = format!("sha256:{}", sha256_file(image));
    let pod = Pod::new("http", &nginx.url("disk.qcow2"))
        .env("IMPORTER_IMAGE_SIZE", "64Mi")
        .env("IMPORTER_ACCESS_KEY_ID", "user")
        .env("IMPORTER_SECRET_KEY", "password")
        .env("IMPORTER_CERT_DIR", "/certs")
        .env("IMPORTER_EXTRA_HEADER_0", "X-Plain: one")
        .env("IMPORTER_CHECKSUM", &checksum)
        .env("IMPORTER_DONE_FILE", "/data/../done")
        .env("IMPORTER_UNHEARD_OF", "1");
    fs_err::copy(nginx.ca(), pod.path("certs/ca.crt")).expect("a certificate");
    fs_err::write(pod.path("extraheaders/0/key"), "X-Token: a secret").expect("a secret header");
    let output = pod.run();
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(
        pod.message(),
        r#"{"scratchSpaceRequired":false,"preallocationApplied":false,"message":"Import Complete"}"#
    );
    assert!(output.stderr.contains("`IMPORTER_UNHEARD_OF` is ignored"), "{output}");
    assert!(!output.stderr.contains("a secret") && !output.stderr.contains("password"), "{output}");
    assert_grown(&pod, &images);
    let found = fs_err::metadata(pod.disk()).expect("the disk");
    assert_eq!(found.permissions().mode() & 0o7777, 0o660);
    assert!(found.blocks() * 512 < 30 * MIB, "the disk is not sparse");
    assert!(pod.path("done").exists());
}

#[test]
fn what_an_attempt_before_has_left_is_replaced() {
    let images = Images::new();
    let server = FaultServer::serve(fs_err::read(images.path("disk.raw")).expect("an image"), []);
    let pod = Pod::new("http", &server.url("disk.img")).env("IMPORTER_IMAGE_SIZE", "64Mi");
    fs_err::write(pod.disk(), "half of a disk").expect("an old disk");
    pod.succeed();
    assert_grown(&pod, &images);
}

#[test]
fn a_wrong_checksum_is_fatal_and_leaves_nothing() {
    let server = FaultServer::serve(pseudo_random(MIB as usize, 1), []);
    let checksum = format!("md5:{}", "0".repeat(32));
    let pod = Pod::new("http", &server.url("disk.img"))
        .env("IMPORTER_IMAGE_SIZE", "64Mi")
        .env("IMPORTER_CHECKSUM", &checksum);
    let message = pod.succeed();
    // What the controller looks for.
    let text = message["message"].as_str().expect("a text");
    assert!(text.starts_with("Unable to process data: checksum mismatch: "), "{text}");
    assert!(text.contains(&checksum), "{text}");
    assert!(message.get("preallocationApplied").is_none(), "{message}");
    let left: Vec<_> = fs_err::read_dir(pod.path("data")).expect("the volume").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_disk_that_does_not_fit_is_refused_in_cdis_words() {
    if !require_tool("qemu-img") {
        return;
    }
    let images = Images::new();
    images.convert("disk.qcow2", &["-c"]);
    for name in ["disk.raw", "disk.qcow2"] {
        let image = fs_err::read(images.path(name)).expect("an image");
        let server = FaultServer::serve(image, []);
        let pod = Pod::new("http", &server.url(name)).env("IMPORTER_IMAGE_SIZE", "20Mi");
        assert_eq!(
            pod.fail(),
            "Unable to process data: virtual image size 25165824 is larger than the reported \
             available storage 20971520. A larger PVC is required"
        );
    }
    // Not more than fits, but more than is sure to fit: CDI takes it and does not grow it.
    let image = fs_err::read(images.path("disk.qcow2")).expect("an image");
    let server = FaultServer::serve(image, []);
    let pod = Pod::new("http", &server.url("disk")).env("IMPORTER_IMAGE_SIZE", "24Mi");
    pod.succeed();
    assert_eq!(sha256_file(pod.disk()), sha256_file(images.path("disk.raw")));
}

#[test]
fn a_failure_says_why_and_lets_kubelet_try_again() {
    let server = FaultServer::serve(Vec::new(), [Reply::status(404)]);
    let pod = Pod::new("http", &server.url("disk.img"));
    let message = pod.fail();
    assert!(message.starts_with("Unable to process data: `http://127.0.0.1:"), "{message}");
    assert!(message.ends_with("answered with HTTP status 404"), "{message}");
}

#[test]
fn what_is_refused_is_not_called_ignored() {
    let pod = Pod::new("http", "http://127.0.0.1:9/x").env("IMPORTER_PREVIOUS_CHECKPOINT", "1");
    let output = pod.run();
    assert!(output.stderr.contains("imports in several stages"), "{output}");
    assert!(!output.stderr.contains("ignored"), "{output}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (source, name, value, expected) in [
        ("imageio", "X", "", "sources of kind `imageio` are not supported"),
        ("vddk", "X", "", "sources of kind `vddk` are not supported"),
        ("http", "IMPORTER_CURRENT_CHECKPOINT", "1", "imports in several stages"),
        ("ftp", "X", "", "Unknown data source: ftp"),
        ("http", "PREALLOCATION", "perhaps", "`PREALLOCATION` is not `true` or `false`"),
        ("http", "IMPORTER_IMAGE_SIZE", "many", "`IMPORTER_IMAGE_SIZE` is not a quantity"),
        ("http", "IMPORTER_EXTRA_HEADER_1", "hunter2", "`IMPORTER_EXTRA_HEADER_1`: expected"),
        ("none", "IMPORTER_CONTENTTYPE", "archive", "Cannot create empty disk"),
        ("registry", "IMPORTER_CONTENTTYPE", "archive", "Unsupported content type archive"),
    ] {
        let endpoint = if source == "registry" { "docker://h/x" } else { "http://127.0.0.1:9/x" };
        let message = Pod::new(source, endpoint).env(name, value).fail();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn an_object_of_s3_is_named_as_cdi_names_it() {
    let Some(server) = crate::s3::server() else { return };
    let images = Images::new();
    server.put("private/importer/disk.raw", &images.path("disk.raw"));
    let pod = Pod::new("s3", &server.url("private/importer/disk.raw"))
        .env("IMPORTER_IMAGE_SIZE", "64Mi")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("IMPORTER_ACCESS_KEY_ID", S3Server::KEY)
        .env("IMPORTER_SECRET_KEY", S3Server::SECRET);
    pod.succeed();
    assert_grown(&pod, &images);
}

#[test]
fn a_container_disk_lands_with_its_labels() {
    if !["docker-registry", "skopeo", "umoci", "qemu-img"].into_iter().all(require_tool) {
        return;
    }
    let (images, layout, registry) = (Images::new(), ImageLayout::new(), Registry::start());
    layout.add("t", &[&[("disk/disk.qcow2", &images.convert("disk.qcow2", &["-c"]))]]);
    let label = "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small";
    layout.configure("t", &["--config.env", label]);
    let image = registry.image("x/y:v1");
    layout.copy("t", &image, &[]);
    let pod = Pod::new("registry", &image)
        .env("INSECURE_TLS", "true")
        .env("IMPORTER_IMAGE_SIZE", "64Mi")
        .env("IMPORTER_REGISTRY_IMAGE_ARCHITECTURE", "amd64");
    let message = pod.succeed();
    assert_eq!(message["labels"]["instancetype.kubevirt.io/default-instancetype"], "u1.small");
    assert_eq!(message["message"], "Import Complete");
    assert_grown(&pod, &images);
}

#[test]
fn a_blank_disk_fills_what_is_usable_of_the_volume() {
    for (preallocation, blocks) in [("false", 0), ("true", USABLE / 512)] {
        let pod = Pod::new("none", "")
            .env("IMPORTER_IMAGE_SIZE", "64Mi")
            .env("PREALLOCATION", preallocation);
        let message = pod.succeed();
        assert_eq!(message["preallocationApplied"].to_string(), preallocation);
        let found = fs_err::metadata(pod.disk()).expect("the disk");
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (USABLE, 0o660));
        assert!(found.blocks() >= blocks, "{} blocks", found.blocks());
        assert!(preallocation == "true" || found.blocks() < 100, "{} blocks", found.blocks());
        let disk = fs_err::read(pod.disk()).expect("the disk");
        assert!(disk.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn an_archive_becomes_the_files_of_the_volume() {
    if !require_tool("tar") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs_err::create_dir_all(folder.path().join("tree/etc")).expect("a tree");
    fs_err::write(folder.path().join("tree/etc/motd"), "hello").expect("a file");
    let data = pseudo_random(3 << 20, 9);
    fs_err::write(folder.path().join("tree/data"), &data).expect("a file");
    let archive = folder.path().join("tree.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(folder.path().join("tree")).arg("-czf").arg(&archive).arg(".");
    run(&mut tar);
    let checksum = format!("sha256:{}", sha256_file(&archive));
    let server = FaultServer::serve(fs_err::read(&archive).expect("the archive"), []);
    let pod = || {
        Pod::new("http", &server.url("tree.tar.gz"))
            .env("IMPORTER_CONTENTTYPE", "archive")
            .env("IMPORTER_IMAGE_SIZE", "64Mi")
    };
    let good = pod().env("IMPORTER_CHECKSUM", &checksum);
    fs_err::create_dir(good.path("data/lost+found")).expect("what mkfs makes");
    fs_err::write(good.path("data/old"), "of an attempt before").expect("a left-over");
    assert_eq!(good.succeed()["message"], "Import Complete");
    assert_eq!(fs_err::read_to_string(good.path("data/etc/motd")).expect("a file"), "hello");
    assert!(fs_err::read(good.path("data/data")).expect("a file") == data);
    assert!(!good.path("data/old").exists());
    let bad = pod().env("IMPORTER_CHECKSUM", &format!("md5:{}", "0".repeat(32)));
    let message = bad.succeed();
    assert!(message["message"].as_str().is_some_and(|text| text.contains("checksum mismatch")));
    let left: Vec<_> = fs_err::read_dir(bad.path("data")).expect("the volume").collect();
    assert!(left.is_empty(), "{left:?}");
    let gone = FaultServer::serve(Vec::new(), [Reply::status(404)]);
    let message = pod().env("IMPORTER_ENDPOINT", &gone.url("tree.tar")).fail();
    assert!(message.ends_with("HTTP status 404"), "{message}");
    let message = pod().env("IMPORTER_IMAGE_SIZE", "1Mi").fail();
    assert!(message.contains("more than 1048576 bytes"), "{message}");
}

#[test]
fn the_files_of_an_image_that_the_node_pulled_come_over_http() {
    let images = Images::new();
    let server = FaultServer::serve(fs_err::read(images.path("disk.raw")).expect("an image"), []);
    let pod = Pod::new("http", &server.url("disk.img"))
        .env("IMPORTER_IMAGE_SIZE", "64Mi")
        .env("IMPORTER_PULL_METHOD", "node")
        .env("IMPORTER_READY_FILE", "/ready")
        .env("IMPORTER_DONE_FILE", "/done");
    fs_err::write(pod.path("ready"), "fedora.qcow2").expect("the other container's file");
    pod.succeed();
    assert_grown(&pod, &images);
    assert!(server.requests().iter().all(|request| request.path == "/fedora.qcow2"));
    assert!(pod.path("done").exists());
}

#[test]
fn a_block_device_takes_the_disk() {
    let images = Images::new();
    let backing = images.path("device");
    fs_err::write(&backing, vec![0xaa; 32 << 20]).expect("a file for the device");
    let Some(device) = LoopDevice::attach(&backing, 512) else { return };
    let server = FaultServer::serve(fs_err::read(images.path("disk.raw")).expect("an image"), []);
    let pod = Pod::new("http", &server.url("disk.img")).env("IMPORTER_IMAGE_SIZE", "10Mi");
    fs_err::os::unix::fs::symlink(device.path(), pod.path("dev/cdi-block-volume")).expect("a link");
    pod.succeed();
    drop(device);
    let written = fs_err::read(&backing).expect("the device's file");
    let disk = fs_err::read(images.path("disk.raw")).expect("the disk");
    assert!(written[..disk.len()] == disk);
}

#[test]
fn the_progress_is_served_over_https_and_only_rises() {
    if !require_tool("curl") || !require_tool("nginx") {
        return;
    }
    let images = Images::new();
    fs_err::write(images.path("data.raw"), pseudo_random(8 << 20, 3)).expect("an image");
    let options =
        NginxOptions { bytes_per_second: Some(1 << 20), no_ranges: true, ..Default::default() };
    let nginx = Nginx::serve_with(images.folder.path(), &options);
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("an address").port().to_string();
    drop(free);
    let pod = Pod::new("http", &nginx.url("data.raw"))
        .env("IMPORTER_IMAGE_SIZE", "64Mi")
        .env("BOOTYARD_IMPORTER_METRICS_PORT", &port);
    let mut importer = pod.cli.command(["importer"]);
    let mut importer = importer.stderr(Stdio::null()).spawn().expect("an importer");
    let url = format!("https://127.0.0.1:{port}/metrics");
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while importer.try_wait().expect("a child").is_none() && Instant::now() < deadline {
        let output = Command::new("curl").args(["-sk", "--max-time", "2", &url]).output();
        let text = String::from_utf8_lossy(&output.expect("curl").stdout).into_owned();
        // The expression by which CDI's controller finds it.
        let name = "kubevirt_cdi_import_progress_total{ownerUID=\"1111-1111\"} ";
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        seen.extend(value.map(|value| value.parse::<f64>().expect("a number")));
        sleep(Duration::from_millis(200));
    }
    assert!(importer.wait().expect("its end").success());
    assert!(seen.is_sorted() && seen.len() > 3, "{seen:?}");
    let between = seen.iter().filter(|value| **value > 10.0 && **value < 100.0).count();
    assert!(between > 2, "{seen:?}");
}
