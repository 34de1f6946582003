//! Disks in container images: from a real registry, a folder and archives, by the real binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use bootyard_testkit::{
    Cli, ImageLayout, Registry, RegistryOptions, pseudo_random, qemu_img, require_tool, run,
    sha256_file, sparse_image,
};
use serde_json::Value;

use crate::assert_nothing_left;

const TOOLS: [&str; 4] = ["docker-registry", "skopeo", "umoci", "qemu-img"];

fn tools() -> bool {
    TOOLS.iter().all(|tool| require_tool(tool))
}

/// A raw disk, and files that hold it in other forms.
struct Disks {
    folder: tempfile::TempDir,
}

impl Disks {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        sparse_image(folder.path().join("disk.raw"), 6 << 20, 11);
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn raw(&self) -> PathBuf {
        self.path("disk.raw")
    }

    /// Makes `name` from the raw disk by what its extensions say.
    fn make(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        if path.exists() {
            return path;
        }
        let (inner, extension) = name.rsplit_once('.').expect("an extension");
        let packer = match extension {
            "qcow2" | "vmdk" => {
                let options: &[&str] = if extension == "qcow2" { &["-c"] } else { &[] };
                let [from, to] = [self.raw(), path.clone()].map(|path| path.display().to_string());
                let words = [&["convert", "-f", "raw", "-O", extension], options, &[&from, &to]];
                qemu_img(words.concat());
                return path;
            }
            "xz" => "xz",
            "gz" => "gzip",
            "zst" => "zstd",
            other => panic!("no way to make `.{other}`"),
        };
        let script = format!("{packer} -1 -c \"$0\" > \"$1\"");
        run(Command::new("sh").args(["-c", &script]).arg(self.make(inner)).arg(&path));
        path
    }
}

fn report(output: &bootyard_testkit::Output) -> Value {
    assert_eq!(output.code, Some(0), "{output}");
    let line = output.stdout.lines().last().expect("a report");
    serde_json::from_str(line).expect("a line of JSON")
}

/// Imports what must be `disk`.
#[track_caller]
fn lands(cli: &Cli, source: &str, flags: &[&str], disk: &Path) -> Value {
    let _ = fs_err::remove_file(cli.work().join("disk.raw"));
    let words = [&["import", source, "--to", "disk.raw", "--json"], flags].concat();
    let report = report(&cli.run(words));
    assert_eq!(sha256_file(cli.work().join("disk.raw")), sha256_file(disk), "{source}");
    report
}

/// An import that fails with this code, and says these words.
#[track_caller]
fn fails(cli: &Cli, source: &str, flags: &[&str], code: i32, words: &[&str]) {
    let output = cli.run([&["import", source, "--name", "v"], flags].concat());
    assert_eq!(output.code, Some(code), "{source}: {output}");
    for word in words {
        assert!(output.stderr.contains(word), "expected `{word}` in {output}");
    }
    assert_nothing_left(cli);
}

fn digests(source: &str, key: &str) -> Vec<String> {
    let manifest = run(Command::new("skopeo").args([
        "--insecure-policy",
        "inspect",
        "--raw",
        "--tls-verify=false",
        source,
    ]));
    let manifest: Value = serde_json::from_str(&manifest).expect("a manifest");
    let entries = manifest[key].as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| entry["digest"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_form_of_a_disk_lands_from_a_registry_bit_for_bit() {
    if !tools() || !["xz", "zstd", "gzip"].iter().all(|tool| require_tool(tool)) {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let registry = Registry::start();
    for (index, (name, chain)) in [
        ("disk.raw", "gzip tar raw"),
        ("disk.qcow2", "gzip tar qcow2"),
        ("disk.qcow2.xz", "gzip tar xz qcow2"),
        ("disk.raw.gz", "gzip tar gzip raw"),
        ("disk.raw.zst", "gzip tar zstd raw"),
        ("disk.vmdk", "gzip tar vmdk"),
    ]
    .into_iter()
    .enumerate()
    {
        let tag = format!("v{index}");
        layout.add(&tag, &[&[(&format!("disk/{name}"), &disks.make(name))]]);
        layout.copy(&tag, &registry.image(&format!("x/y:{tag}")), &[]);
        let source = registry.image(&format!("x/y:{tag}"));
        let report = lands(&cli, &source, &["--insecure"], &disks.raw());
        assert_eq!(report["chain"], Value::from(chain.split(' ').collect::<Vec<_>>()), "{name}");
        assert_eq!(report["spilled_bytes"], 0, "{name}");
        let layers = digests(&source, "layers");
        assert_eq!(report["checked"], layers[0].as_str(), "{name}");
        // The layer was fetched once.
        let fetched = format!("GET /v2/x/y/blobs/{} ", layers[0]);
        assert_eq!(registry.log().matches(&fetched).count(), 1, "{name}");
    }
}

#[test]
fn an_image_lands_from_a_folder_and_from_archives_that_are_not_unpacked() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    layout.add("t", &[&[("disk/disk.qcow2", &disks.make("disk.qcow2"))]]);
    let label = "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.small";
    layout.configure("t", &["--config.env", label]);
    layout.add("other", &[&[("disk/disk.raw", &disks.raw())]]);
    let [oci, docker] = ["a.tar", "b.tar"].map(|name| disks.path(name).display().to_string());
    layout.copy("t", &format!("oci-archive:{oci}:t"), &[]);
    layout.copy("t", &format!("docker-archive:{docker}:x/y:v1"), &[]);
    let folder = layout.path().display().to_string();
    for source in [
        format!("oci:{folder}:t"),
        format!("oci-archive:{oci}"),
        format!("oci-archive:{oci}:t"),
        format!("docker-archive:{docker}"),
        format!("docker-archive:{docker}:x/y:v1"),
        format!("docker-archive:{docker}:docker.io/x/y:v1"),
    ] {
        let report = lands(&cli, &source, &[], &disks.raw());
        let labels = &report["image"]["labels"];
        assert_eq!(labels["instancetype.kubevirt.io/default-instancetype"], "u1.small", "{source}");
        assert!(report["checked"].as_str().is_some_and(|d| d.starts_with("sha256:")), "{source}");
    }
    fails(&cli, &format!("oci:{folder}"), &[], 4, &["got a choice of", "t, other"]);
    fails(&cli, &format!("oci-archive:{oci}:none"), &[], 4, &["got a choice of t"]);
    run(Command::new("gzip").arg(&docker));
    fails(&cli, &format!("docker-archive:{docker}.gz"), &[], 4, &["compressed", "gunzip"]);
}

#[test]
fn a_compressed_layer_of_a_docker_archive_is_verified_by_what_is_in_it() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let disk = disks.make("disk.qcow2");
    layout.add("t", &[&[("disk/disk.qcow2", &disk)]]);
    layout.add("other", &[&[("disk/disk.qcow2", &disk), ("disk/more", &disk)]]);
    let compressed = |tag: &str| {
        let folder = disks.path(tag);
        fs_err::create_dir(&folder).expect("a folder");
        layout.copy(tag, &format!("docker-archive:{}/a.tar:x:{tag}", folder.display()), &[]);
        let script = "tar -xf a.tar && rm a.tar && layer=$(ls | grep -v json | grep tar) && \
                      cat $layer | gzip > layer.gz && sed -i s/$layer/layer.gz/ manifest.json";
        run(Command::new("sh").args(["-ec", script]).current_dir(&folder));
        folder
    };
    let (folder, other) = (compressed("t"), compressed("other"));
    let archive = || {
        let mut tar = Command::new("tar");
        run(tar.args(["-cf", "../packed.tar", "."]).current_dir(&folder));
        format!("docker-archive:{}", disks.path("packed.tar").display())
    };
    let report = lands(&cli, &archive(), &[], &disks.raw());
    let stored = format!("sha256:{}", sha256_file(folder.join("layer.gz")));
    assert_eq!(report["checked"], stored);
    // Another layer, whole and well compressed.
    fs_err::copy(other.join("layer.gz"), folder.join("layer.gz")).expect("a layer");
    fails(&cli, &archive(), &[], 5, &["checksum mismatch"]);
    let mut bytes = fs_err::read(other.join("layer.gz")).expect("a layer");
    bytes.truncate(bytes.len() / 2);
    fs_err::write(folder.join("layer.gz"), bytes).expect("half a layer");
    fails(&cli, &archive(), &[], 4, &["docker-archive:"]);
}

#[test]
fn an_upper_layer_wins_and_whiteouts_hide() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let (old, note) = (disks.path("old.raw"), disks.path("note"));
    fs_err::write(&old, pseudo_random(1 << 20, 3)).expect("a disk");
    fs_err::write(&note, "a note").expect("a file");
    let raw = disks.raw();
    let source = |tag: &str| format!("oci:{}:{tag}", layout.path().display());

    layout.add("replaced", &[&[("disk/a.img", &old)], &[("disk/a.img", &raw)]]);
    lands(&cli, &source("replaced"), &[], &raw);
    layout.add("below", &[&[("disk/a.img", &raw)], &[("etc/note", &note)]]);
    lands(&cli, &source("below"), &[], &raw);
    layout.add("hidden", &[&[("disk/a.img", &raw), ("etc/x", &note)]]);
    layout.hide("hidden", "/disk/a.img");
    fails(&cli, &source("hidden"), &[], 4, &["holds no disk", "`disk`", "`etc`"]);
    layout.add("folder", &[&[("disk/a.img", &raw)]]);
    layout.hide("folder", "/disk");
    fails(&cli, &source("folder"), &[], 4, &["holds no disk"]);
    layout.add("moved", &[&[("disk/a.img", &old)]]);
    layout.hide("moved", "/disk");
    // What a layer hides is below it, not beside or above.
    let with = |tag: &str| {
        let image = format!("{}:{tag}", layout.path().display());
        let root = tempfile::tempdir().expect("a folder");
        fs_err::copy(&raw, root.path().join("b.img")).expect("a disk");
        run(Command::new("umoci")
            .args(["insert", "--image", &image])
            .arg(root.path())
            .arg("/disk"));
    };
    with("moved");
    lands(&cli, &source("moved"), &[], &raw);
}

#[test]
fn the_one_disk_is_chosen_or_named() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let (raw, other) = (disks.raw(), disks.path("other.raw"));
    fs_err::write(&other, pseudo_random(1 << 20, 3)).expect("a disk");
    let source = |tag: &str| format!("oci:{}:{tag}", layout.path().display());
    layout.add("two", &[&[("disk/a.img", &raw), ("disk/b.img", &other)]]);
    fails(&cli, &source("two"), &[], 4, &["expected one disk", "`disk/a.img` and `disk/b.img`"]);
    lands(&cli, &source("two"), &["--image-path", "/disk/a.img"], &raw);
    lands(&cli, &source("two"), &["--image-path", "disk/b.img"], &other);
    layout.add("elsewhere", &[&[("images/a.img", &raw), ("usr/x", &other)]]);
    fails(&cli, &source("elsewhere"), &[], 4, &["got `images`, `usr`", "--image-path"]);
    lands(&cli, &source("elsewhere"), &["--image-path", "images/a.img"], &raw);
    // A disk behind more than what is kept of a layer.
    let large = disks.path("large");
    fs_err::write(&large, pseudo_random(20 << 20, 5)).expect("a file");
    layout.add("deep", &[&[("a/large", &large), ("disk/a.img", &raw)]]);
    let deep = tempfile::tempdir().expect("a folder");
    fs_err::create_dir_all(deep.path().join("disk")).expect("a folder");
    fs_err::copy(&large, deep.path().join("disk/0.json")).expect("a file");
    fs_err::copy(&raw, deep.path().join("disk/1.img")).expect("a disk");
    let image = format!("{}:deep", layout.path().display());
    run(Command::new("umoci")
        .args(["insert", "--image", &image])
        .arg(deep.path().join("disk"))
        .arg("/disk"));
    lands(&cli, &source("deep"), &["--image-path", "disk/1.img"], &raw);
}

#[test]
fn nothing_lands_that_does_not_have_its_digest() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let registry = Registry::start();
    layout.add("t", &[&[("disk/disk.raw", &disks.raw())]]);
    let source = registry.image("x/y:t");
    layout.copy("t", &source, &[]);
    let layer = registry.blob(&digests(&source, "layers")[0]);
    let good = fs_err::read(&layer).expect("the layer");
    // In the tar archive's padding behind the gzip stream nothing else would notice: a header byte.
    let mut flipped = good.clone();
    flipped[4] ^= 1;
    fs_err::write(&layer, &flipped).expect("a damaged layer");
    fails(&cli, &source, &["--insecure"], 5, &["checksum mismatch"]);
    fs_err::write(&layer, &good[..good.len() / 2]).expect("a cut layer");
    fails(&cli, &source, &["--insecure"], 5, &["its manifest says"]);
    fs_err::write(&layer, [&good[..], &[0; 512]].concat()).expect("a longer layer");
    fails(&cli, &source, &["--insecure"], 5, &["its manifest says"]);
    fs_err::write(&layer, &good).expect("the layer");
    lands(&cli, &source, &["--insecure"], &disks.raw());

    let manifest = run(Command::new("skopeo").args([
        "--insecure-policy",
        "inspect",
        "--raw",
        "--tls-verify=false",
        &source,
    ]));
    let path = disks.path("manifest");
    fs_err::write(&path, &manifest).expect("a manifest");
    let digest = format!("sha256:{}", sha256_file(&path));
    let named = registry.image(&format!("x/y@{digest}"));
    let report = lands(&cli, &named, &["--insecure"], &disks.raw());
    assert_eq!(report["image"]["digest"], digest.as_str());
    fs_err::write(registry.blob(&digest), manifest.replace("size", "Size")).expect("another one");
    fails(&cli, &named, &["--insecure"], 5, &["not the one that its digest is of"]);
}

#[test]
fn a_platform_is_chosen_from_an_index() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let other = disks.path("other.raw");
    fs_err::write(&other, pseudo_random(1 << 20, 3)).expect("a disk");
    layout.add("amd64", &[&[("disk/a.img", &disks.raw())]]);
    layout.configure("amd64", &["--architecture", "amd64"]);
    layout.add("arm64", &[&[("disk/a.img", &other)]]);
    layout.configure("arm64", &["--architecture", "arm64"]);
    let index_path = layout.path().join("index.json");
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs_err::read(path).expect("a file")).expect("JSON")
    };
    let mut index = read(&index_path);
    let entries = index["manifests"].as_array_mut().expect("manifests");
    for entry in entries.iter_mut() {
        let name = entry["annotations"]["org.opencontainers.image.ref.name"].clone();
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": name});
        entry.as_object_mut().expect("an object").remove("annotations");
    }
    let mut about = entries[0].clone();
    about["platform"] = serde_json::json!({"os": "unknown", "architecture": "unknown"});
    entries.insert(0, about);
    let inner = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    });
    let bytes = serde_json::to_vec(&inner).expect("JSON");
    let path = disks.path("inner");
    fs_err::write(&path, &bytes).expect("an index");
    let hex = sha256_file(&path);
    fs_err::copy(&path, layout.path().join("blobs/sha256").join(&hex)).expect("a blob");
    let outer = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{hex}"),
        "size": bytes.len(),
    }]});
    fs_err::write(&index_path, serde_json::to_vec(&outer).expect("JSON")).expect("an index");
    let registry = Registry::start();
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"])
        .arg(format!("oci:{}", layout.path().display()))
        .arg(registry.image("x/y:all")));
    let folder = format!("oci:{}", layout.path().display());
    for (source, flag) in [(registry.image("x/y:all"), "--insecure"), (folder, "--max-size=1Gi")] {
        lands(&cli, &source, &[flag, "--platform", "linux/amd64"], &disks.raw());
        lands(&cli, &source, &[flag, "--platform", "arm64"], &other);
        let words = ["expected one for linux/s390x, got linux/amd64, linux/arm64", "--platform"];
        fails(&cli, &source, &[flag, "--platform", "linux/s390x"], 4, &words);
    }
}

#[test]
fn a_registry_with_a_password_and_its_own_authority_is_read() {
    if !tools() || !require_tool("htpasswd") || !require_tool("openssl") {
        return;
    }
    let (disks, layout) = (Disks::new(), ImageLayout::new());
    let options = RegistryOptions {
        basic_auth: Some(("user".to_owned(), "hunter2".to_owned())),
        tls: true,
        ..RegistryOptions::default()
    };
    let registry = Registry::start_with(&options);
    layout.add("t", &[&[("disk/disk.raw", &disks.raw())]]);
    let source = registry.image("team/disk:t");
    layout.copy("t", &source, &["--dest-creds", "user:hunter2"]);
    let cli = Cli::from_env();
    fails(&cli, &source, &[], 3, &["no secure connection", "--insecure"]);
    fails(&cli, &source, &["--insecure"], 3, &["401", "--registry-auth"]);
    let auth = |key: &str, password: &str| {
        let encoded = run(Command::new("sh")
            .args(["-c", "printf %s \"$0\" | base64"])
            .arg(format!("user:{password}")));
        let file = serde_json::json!({"auths": {key: {"auth": encoded.trim()}}});
        let path = disks.path("auth.json");
        fs_err::write(&path, file.to_string()).expect("credentials");
        path.display().to_string()
    };
    let good = auth(&format!("{}/team", registry.host()), "hunter2");
    lands(&cli, &source, &["--insecure", "--registry-auth", &good], &disks.raw());
    let bad = auth(&registry.host(), "wrong");
    fails(&cli, &source, &["--insecure", "--registry-auth", &bad], 3, &["401"]);
    fails(&cli, &source, &["--insecure", "--registry-auth", "/none"], 3, &["`/none`"]);
    // The same by the environment, and by docker's own file.
    let good = auth(&registry.host(), "hunter2");
    let cli = Cli::from_env().env("REGISTRY_AUTH_FILE", &good);
    lands(&cli, &source, &["--insecure"], &disks.raw());
    let cli = Cli::from_env().env("DOCKER_CONFIG", &disks.folder.path().display().to_string());
    fs_err::copy(&good, disks.path("config.json")).expect("credentials");
    lands(&cli, &source, &["--insecure"], &disks.raw());
    // A credential helper.
    let bin = disks.path("bin");
    fs_err::create_dir(&bin).expect("a folder");
    let helper = bin.join("docker-credential-test");
    let answer =
        "#!/bin/sh\ncat > /dev/null\necho '{\"Username\":\"user\",\"Secret\":\"hunter2\"}'\n";
    fs_err::write(&helper, answer).expect("a helper");
    run(Command::new("chmod").arg("+x").arg(&helper));
    let file = serde_json::json!({"credHelpers": {registry.host(): "test"}});
    fs_err::write(disks.path("config.json"), file.to_string()).expect("credentials");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let cli = cli.env("PATH", &path);
    lands(&cli, &source, &["--insecure"], &disks.raw());
}

#[test]
fn what_is_pushed_is_pulled_by_others_and_by_us() {
    if !tools() {
        return;
    }
    let (disks, cli) = (Disks::new(), Cli::from_env());
    let registry = Registry::start();
    let disk = disks.raw().display().to_string();
    let pushed = |target: &str, flags: &[&str]| {
        let words = [&["push", &disk, target, "--json", "--insecure"], flags].concat();
        report(&cli.run(words))
    };
    for (index, (flags, file)) in [
        (&[][..], "disk.qcow2"),
        (&["--format", "raw"], "disk.img"),
        (&["--format", "raw", "--compression", "zstd"], "disk.img"),
        (&["--format", "raw", "--compression", "none"], "disk.img"),
        (&["--format", "qcow2", "--compression", "gzip"], "disk.qcow2"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = registry.image(&format!("x/y:p{index}"));
        let made = pushed(&source, flags);
        let report = lands(&cli, &source, &["--insecure"], &disks.raw());
        assert_eq!(report["image"]["digest"], made["digest"], "{flags:?}");
        assert_eq!(report["checked"], made["layer"], "{flags:?}");
        // The same once more is the same, and the layer is there already.
        let uploads = || registry.log().matches("PATCH /v2/x/y/blobs/uploads/").count();
        let before = uploads();
        assert!(before > 0, "{}", registry.log());
        assert_eq!(pushed(&source, flags)["digest"], made["digest"], "{flags:?}");
        assert_eq!(uploads(), before, "{flags:?}");
        if flags.contains(&"zstd") {
            continue; // This skopeo does not read it.
        }
        let copy = disks.path(&format!("copy{index}"));
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &source])
            .arg(format!("dir:{}", copy.display())));
        let layer = made["layer"].as_str().expect("a digest").trim_start_matches("sha256:");
        let out = disks.path(&format!("out{index}"));
        fs_err::create_dir(&out).expect("a folder");
        let list =
            run(Command::new("tar").arg("-tvf").arg(copy.join(layer)).arg("--numeric-owner"));
        assert!(list.contains("-r--r----- 107/107") && list.contains(file), "{list}");
        run(Command::new("tar").arg("-xf").arg(copy.join(layer)).arg("-C").arg(&out));
        let got = out.join("disk").join(file).display().to_string();
        qemu_img(["compare", "-q", &got, &disk]);
    }
}

#[test]
fn an_image_is_pushed_into_layouts_with_its_words() {
    if !tools() {
        return;
    }
    let (disks, cli) = (Disks::new(), Cli::from_env());
    let qcow2 = disks.make("disk.qcow2").display().to_string();
    let [folder, archive] = ["layout", "a.tar"].map(|name| disks.path(name).display().to_string());
    let flags = ["--env", "X_KUBEVIRT_IO_Y=v", "--label", "a=b", "--platform", "linux/arm64"];
    let mut digests = Vec::new();
    for target in [
        format!("oci:{folder}:one"),
        format!("oci:{folder}:two"),
        format!("oci-archive:{archive}:one"),
    ] {
        let words = [&["push", qcow2.as_str(), &target, "--json"], &flags[..]].concat();
        digests.push(report(&cli.run(words))["digest"].clone());
        let report = lands(&cli, &target, &["--platform", "arm64"], &disks.raw());
        assert_eq!(report["image"]["labels"]["x.kubevirt.io/y"], "v", "{target}");
        let inspected = run(Command::new("skopeo").args(["inspect", "--config", &target]));
        let config: Value = serde_json::from_str(&inspected).expect("a configuration");
        assert_eq!(config["config"]["Labels"]["a"], "b", "{target}");
        assert_eq!(config["architecture"], "arm64", "{target}");
        assert_eq!(config["created"], "1970-01-01T00:00:00Z", "{target}");
    }
    assert_eq!(digests[0], digests[2]);
    fails(&cli, &format!("oci:{folder}"), &["--platform", "arm64"], 4, &["one, two"]);
    // What is there stays, be it no image at all.
    let output = cli.run(["push", &qcow2, &format!("oci-archive:{qcow2}:one")]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("exists already"), "{output}");
    for index in ["[]", "{}", "no JSON"] {
        fs_err::write(disks.path("layout/index.json"), index).expect("a file");
        let output = cli.run(["push", &qcow2, &format!("oci:{folder}:one")]);
        assert_eq!(output.code, Some(3), "{output}");
        let kept = fs_err::read(disks.path("layout/index.json")).expect("a file");
        assert_eq!(kept, index.as_bytes());
    }
    let output = cli.run(["push", &qcow2, "s3://bucket/key"]);
    assert_eq!(output.code, Some(2), "{output}");
    let output = cli.run(["push", &qcow2, "docker://127.0.0.1:1/x:y"]);
    assert_eq!(output.code, Some(3), "{output}");
}

/// Adds a manifest to a layout by hand, as `oras` makes them.
fn add_artifact(layout: &ImageLayout, tag: &str, files: &[(&str, &Path)]) {
    let store = |path: &Path| {
        let (hex, len) = (sha256_file(path), fs_err::metadata(path).expect("a file").len());
        fs_err::copy(path, layout.path().join("blobs/sha256").join(&hex)).expect("a blob");
        (format!("sha256:{hex}"), len)
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text");
    let store_text = |text: &str| {
        fs_err::write(&path, text).expect("a file");
        store(&path)
    };
    let (config, config_len) = store_text("{}");
    let layers: Vec<Value> = files
        .iter()
        .map(|(title, path)| {
            let (digest, size) = store(path);
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest,
                "size": size,
                "annotations": {"org.opencontainers.image.title": title},
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": config,
            "size": config_len,
        },
        "layers": layers,
    });
    let (digest, size) = store_text(&manifest.to_string());
    let path = layout.path().join("index.json");
    let mut index: Value =
        serde_json::from_slice(&fs_err::read(&path).expect("an index")).expect("JSON");
    let entry = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": size,
        "annotations": {"org.opencontainers.image.ref.name": tag},
    });
    match index["manifests"].as_array_mut() {
        Some(manifests) => manifests.push(entry),
        None => index["manifests"] = Value::from(vec![entry]),
    }
    fs_err::write(&path, index.to_string()).expect("an index");
}

#[test]
fn an_artifact_s_file_is_the_disk() {
    if !tools() {
        return;
    }
    let (disks, layout, cli) = (Disks::new(), ImageLayout::new(), Cli::from_env());
    let (raw, packed) = (disks.raw(), disks.make("disk.qcow2"));
    add_artifact(&layout, "one", &[("disk.qcow2", &packed)]);
    add_artifact(&layout, "two", &[("a.qcow2", &packed), ("b.raw", &raw)]);
    let source = |tag: &str| format!("oci:{}:{tag}", layout.path().display());
    let report = lands(&cli, &source("one"), &[], &raw);
    assert_eq!(report["chain"], serde_json::json!(["qcow2"]));
    assert_eq!(report["image"]["platform"], Value::Null);
    lands(&cli, &source("two"), &["--image-path", "b.raw"], &raw);
    fails(&cli, &source("two"), &[], 4, &["got `a.qcow2`, `b.raw`", "--image-path"]);
}
