//! `cargo xtask fuzz`: every parser of images and every device of the machine against a
//! coverage-guided fuzzer (libFuzzer).
//!
//! It needs no nightly compiler: the counters are an LLVM pass that the stable one can be told to
//! run. Each target starts from the hostile set and from images that `qemu-img` makes, or
//! from a short script for a driver, and keeps what it learns in `target/fuzz/corpus`.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use bootyard_testkit::{hostile_files, sparse_image};

use crate::setup::{self, Need};
use crate::{dirs, sh};

#[path = "../../tests/fuzz/src/sparse.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "the fuzzers decode, this encodes"))]
#[expect(unreachable_pub, reason = "public for the fuzzers")]
mod sparse;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which targets; all, if none is named.
    targets: Vec<String>,
    /// How long each runs.
    #[arg(long, default_value_t = BRIEFLY)]
    seconds: u32,
}

/// How long CI lets each run, in seconds: some 20 targets, two at a time, and no more than 2 minutes for
/// all of them.
const BRIEFLY: u32 = 10;

/// What makes the compiler count the edges that are taken, as `cargo fuzz` does it.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Named explicitly, so that the flags are not for build scripts too.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// No input may take longer, in seconds: the limit of the hostile set.
const TIMEOUT: u32 = 5;
/// Memory of a fuzzer's process, in MiB: its corpus and 64 MiB for the reader.
const RSS_MAX: u32 = 640;
/// The longest input, in bytes.
const INPUT_MAX: usize = 1 << 18;
/// The longest script of a driver, in bytes: a few dozen steps.
const SCRIPT_MAX: usize = 4096;
/// The disk of the seeds that `qemu-img` makes, in bytes.
const SEED_DISK: u64 = 300 << 10;

/// One fuzzer.
struct Target {
    name: &'static str,
    /// Its parts of the hostile set.
    hostile: &'static [&'static str],
    /// What `qemu-img convert -O` is told, to make it other seeds.
    formats: &'static [&'static str],
    /// Whether inputs stand for files with holes.
    encoded: bool,
    /// Whether it starts from ISO 9660 and FAT images.
    small_disks: bool,
    /// Whether it starts from disks that boot.
    boots: bool,
    /// Texts from which it starts.
    texts: &'static [&'static str],
    /// Whether it starts from the documents of `testdata/lint`.
    documents: bool,
    /// Whether inputs are scripts of a driver (`tests/fuzz/src/machine.rs`), which have no disk.
    driver: bool,
}

/// Pieces of seeds, one after the other, behind a byte of flags.
const SEED_TEXTS: &[&str] = &[
    "0#cloud-config\nusers: [default, {name: bob, ssh_authorized_keys: []}]\n",
    "1#cloud-config-archive\n- {content: '#cloud-config\n', type: text/cloud-config}\n",
    "2Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\n\n#!\n--b--\n",
    "3mac=52:54:00:00:00:01,name=eth0,address=10.0.0.5/24,gateway=10.0.0.1,mtu=1500,dhcp6=true",
    "0instance-id: a\npublic-keys: [x]\nlocal-hostname: b\n",
    "0apiVersion: v1\nkind: Secret\ndata: {a: eA==}\nstringData: {b: x}\n",
    "0$6$salt$hash",
];

/// Pieces of boot menus (`tests/fuzz/src/boot.rs`), with a zero byte for each 0xff between them.
const MENU_TEXTS: &[&str] = &[
    "set default=\"${saved_entry}\"\nif [ x$a = x -o ! -f /k ]; then b=1; else b=2; fi\n\
     menuentry 'a' --id i { search --set=root --file /k\nlinux /k x=$b }\n\
     submenu s { menuentry c { chainloader +1 } }\0# GRUB Environment Block\nsaved_entry=s>0\n",
    "load_env\nblscfg\0# GRUB Environment Block\nkernelopts=a\n\0title a\nversion 1~rc\nlinux /k\n\
     initrd /k\noptions $kernelopts\nsort-key a\n",
    "function f { for x in $1 2; do set y=$x; done; }\nf 1\nsource /extlinux.conf\n\0\0\0default a*\n\
     \0DEFAULT b\nLABEL a\n LINUX k\n APPEND initrd=k a\nLABEL b\n MENU LABEL ^B\n KERNEL k\n",
    "\0\0title a\nefi /k\n\0default a*\n\0\0search.file /k root\nset prefix=($root)/grub\n\
     configfile $prefix/grub.cfg\n",
];

const TARGETS: &[Target] = &[
    target(
        "qcow2",
        &["qcow2/*"],
        &[
            "qcow2",
            "qcow2 -c -o compat=0.10",
            "qcow2 -o cluster_size=512",
            "qcow2 -o cluster_size=16k,extended_l2=on",
            "qcow2 -c -o compression_type=zstd,refcount_bits=1",
        ],
    ),
    target("qcow2_edit", &["qcow2/*"], &["qcow2", "qcow2 -c", "qcow2 -o cluster_size=512"]),
    target("vmdk", &["vmdk/*"], &["vmdk", "vmdk -o subformat=streamOptimized"]),
    target("vdi", &["vdi/*"], &["vdi", "vdi -o static=on"]),
    target("vhd", &["vhd/*"], &["vpc", "vpc -o subformat=fixed"]),
    target("vhdx", &["vhdx/*"], &["vhdx", "vhdx -o block_size=1M"]),
    target("small", &["qcow1/*", "qed/*", "parallels/*", "raw/*"], &["qcow", "qed", "parallels"]),
    Target { encoded: false, ..target("container", &["compress/*", "tar/*"], &[]) },
    Target { small_disks: true, ..target("seed_image", &[], &[]) },
    Target { encoded: false, texts: SEED_TEXTS, ..target("seed_build", &[], &[]) },
    Target { documents: true, encoded: false, ..target("seed_lint", &[], &[]) },
    Target { boots: true, ..target("boot_disk", &[], &[]) },
    Target { encoded: false, texts: MENU_TEXTS, ..target("boot_menu", &[], &[]) },
    device("virtio_balloon"),
    device("virtio_blk"),
    device("virtio_console"),
    device("virtio_net"),
    device("virtio_rng"),
    device("virtio_scsi"),
    device("virtio_vsock"),
    device("pci_config"),
    device("legacy_ports"),
    Target { encoded: false, texts: NETWORK_SCRIPTS, ..target("usernet", &[], &[]) },
];

/// Scripts of a guest and its host: a connection and its bytes, datagrams, echoes, who comes in, time.
const NETWORK_SCRIPTS: &[&str] = &[
    "\x01\x01\0\0\x02\0\0\x40\0\x04\x01\x02\x08\x04\x01\0\0\x10\0\0\x40\x10\x05\x09\x09\x04\x01\x03\x08\x04\x08\x04\
     \x06\x10\x08\x04\x01\0\0\x11\0\0\x40\0\x08\x04\x05\x02\x02\x04\x01\x01\x08\x04",
    "\x0f\x01\x03\0\x02\0\0\x40\0\x04\x01\x02\x08\x04\x01\x03\0\x10\0\0\x40\x7f\x05\x01\x01\x04\x01\x03\x08\x04",
    "\x03\x05\x20\x20\x02\0\x01\0\x05hello\x04\x01\x01\x08\x03\x02\x03\x01\x02\x04\x01\0\0\0\x08\x03\x06\x7f\x06\x7f",
    "\0\x03\0\x08\x08\0\x78\x7f\x7f\x7f\0\x01\x08\x03\x03\x01\x08\x7f\0\0\0\0\x01\0\x02\x08\x03\x03\x01\x08\x05\0\0\0\0\0\0\0",
    "\x02\x05\x20\x20\x07\x16\x01\x07\x16\x01\x07\x35\x02\x08\x04\x08\x04\x08\x04\x06\x20\x08\x04",
];

/// Scripts of a driver: start, requests to each virtqueue, something from the host's end, resets.
const SCRIPTS: &[&str] = &[
    "s\0\0\0c\0\0\0@\0\x05c\x01\0\0@\0\x05c\x02\0\0@\0\x05h\x04hostr",
    "s\0\0\0c\0\x02\0\x10\0\x020123456789abcdef\0\x02\x05\x01\0\x07s\0\0\0",
    "s\x01\0\x1dc\x01\x01\x01\x08\0\x04hostile!\x40\0\x05Rs\0\0\0c\x03\0\0\x08\0\x04gueststr",
    "p\x01\x04\x01\0\0p\x01\x10\x02\0\0\x08\x40p\x02\x04\x01\x02\x04g\x01\x10b\0\x14\0\0\x0fR",
    // A guest's request to the host's port 1, a service's answer, and a client's greeting.
    "s\0\0\0c\0\0\0\0\x10\x05c\0\0\0\0\x10\x05c\x01\0\0,\0\x08\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\
     \x09\0\0\0\x01\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0\x10\0\0\0\0\0\0h\x06\x01helloh\x0b\0CONNECT 1\nh\x01\x02",
];

const fn target(
    name: &'static str,
    hostile: &'static [&'static str],
    formats: &'static [&'static str],
) -> Target {
    Target {
        name,
        hostile,
        formats,
        encoded: true,
        small_disks: false,
        boots: false,
        texts: &[],
        documents: false,
        driver: false,
    }
}

/// One that drives a device.
const fn device(name: &'static str) -> Target {
    Target { encoded: false, driver: true, texts: SCRIPTS, ..target(name, &[], &[]) }
}

pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure_installed(&[Need::Test])?;
    run(&chosen(&args.targets)?, args.seconds)
}

/// Runs every target for so long as finds what is easily found.
pub(crate) fn briefly() -> Result<()> {
    run(&chosen(&[])?, BRIEFLY)
}

fn run(targets: &[&'static Target], seconds: u32) -> Result<()> {
    let programs = build()?;
    let jobs = std::thread::available_parallelism()?.get();
    let mut broken = Vec::new();
    for some in targets.chunks(jobs) {
        let start = |target: &&'static Target| Fuzzer::start(target, &programs, seconds);
        let fuzzers = some.iter().map(start).collect::<Result<Vec<_>>>()?;
        for fuzzer in fuzzers {
            broken.extend(fuzzer.end()?);
        }
    }
    ensure!(
        broken.is_empty(),
        "found inputs that break a parser or a device:\n{}",
        broken.join("\n")
    );
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.with_context(|| format!("no target `{name}`; there are {}", all.join(", ")))
    };
    names.iter().map(find).collect()
}

fn dir() -> PathBuf {
    dirs::target().join("fuzz")
}

/// Builds all targets with counters. Returns the folder of the programs.
fn build() -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--release", "--locked", "--target", TRIPLE, "--manifest-path"]);
    cargo.arg(dirs::root().join("tests/fuzz/Cargo.toml"));
    cargo.env("CARGO_TARGET_DIR", dir()).env("RUSTFLAGS", FLAGS);
    sh::run(&mut cargo)?;
    Ok(dir().join(TRIPLE).join("release"))
}

/// A target that runs.
struct Fuzzer {
    target: &'static Target,
    process: Child,
    log: PathBuf,
    artifacts: PathBuf,
}

impl Fuzzer {
    fn start(target: &'static Target, programs: &Path, seconds: u32) -> Result<Self> {
        let name = target.name;
        let folder = |kind: &str| -> Result<PathBuf> {
            let folder = dir().join(kind).join(name);
            fs_err::create_dir_all(&folder)?;
            Ok(folder)
        };
        let (corpus, seeds, artifacts) =
            (folder("corpus")?, folder("seeds")?, folder("artifacts")?);
        make_seeds(target, &seeds)?;
        let log = dir().join(format!("{name}.log"));
        // As what Rust does before `main`, which is libFuzzer's here: who hangs up is told by an error.
        let mut command = sh::tied("env");
        command
            .arg("--ignore-signal=PIPE")
            .arg(programs.join(name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .arg(format!("-rss_limit_mb={RSS_MAX}"))
            .arg(format!("-max_len={}", if target.driver { SCRIPT_MAX } else { INPUT_MAX }))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args([corpus, seeds]);
        eprintln!("$ {}", sh::line(&command));
        let file = fs_err::File::create(&log)?.into_parts().0;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process =
            command.spawn().with_context(|| format!("cannot start the target `{name}`"))?;
        Ok(Self { target, process, log, artifacts })
    }

    /// Waits for it, and tells what it did. Returns what it found, if anything.
    fn end(mut self) -> Result<Option<String>> {
        let status = self.process.wait()?;
        let name = self.target.name;
        let text = fs_err::read_to_string(&self.log)?;
        let done = text.lines().rev().find(|line| line.starts_with("Done ")).unwrap_or("no end");
        println!("{name:<14} {done}");
        if status.success() {
            return Ok(None);
        }
        let (log, artifacts) = (self.log.display(), self.artifacts.display());
        Ok(Some(format!(
            "  {name}: {status}\n{}\n  log `{log}`, input in `{artifacts}`",
            sh::tail(&self.log)
        )))
    }
}

/// Writes what the target starts from: the hostile files, and images of a small disk.
fn make_seeds(target: &Target, seeds: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let raw = work.path().join("raw");
    let mut files = Vec::new();
    if !target.driver {
        sparse_image(&raw, SEED_DISK, 1);
        files.push(raw.clone());
    }
    for (index, format) in target.formats.iter().enumerate() {
        let file = work.path().join(format!("made-{index}"));
        let mut convert = sh::cmd("qemu-img");
        convert.args(["convert", "-f", "raw", "-O"]).args(format.split(' ')).args([&raw, &file]);
        sh::output(&mut convert)?;
        files.push(file);
    }
    if target.small_disks {
        files.extend(small_disks(work.path())?);
    }
    if target.boots {
        files.extend(boot_disks(work.path())?);
    }
    if target.documents {
        files.extend(documents(work.path())?);
    }
    let hostile: Vec<_> = target.hostile.iter().filter_map(|only| hostile_files(only)).collect();
    files.extend(hostile.iter().flat_map(|set| &set.files).map(|file| file.path.clone()));
    for (index, path) in files.iter().enumerate() {
        let file = fs_err::read(path)?;
        let input = if target.encoded { sparse::encode(&file) } else { file };
        fs_err::write(seeds.join(index.to_string()), input)?;
    }
    for (index, text) in target.texts.iter().enumerate() {
        let zero_or = |byte| if target.name == "boot_menu" && byte == 0 { 0xff } else { byte };
        let text: Vec<u8> = text.bytes().map(zero_or).collect();
        fs_err::write(seeds.join(format!("text-{index}")), text)?;
    }
    Ok(())
}

/// Disks that boot, one of each file system, without checksums behind which damage would hide.
fn boot_disks(work: &Path) -> Result<Vec<PathBuf>> {
    let tree = work.join("boot-tree");
    fs_err::create_dir_all(tree.join("grub"))?;
    fs_err::write(tree.join("grub/grub.cfg"), "menuentry a { linux /l/k\ninitrd /k\n}")?;
    fs_err::write(tree.join("k"), "kernel")?;
    fs_err::os::unix::fs::symlink("/", tree.join("l"))?;
    let tree_path = tree.display();
    // XFS takes its files from a list.
    let list = work.join("list");
    let text = format!(
        "/\n0 0\nd--755 0 0\ngrub d--755 0 0\ngrub.cfg ---644 0 0 {tree_path}/grub/grub.cfg\n$\n\
         k ---644 0 0 {tree_path}/k\nl l--777 0 0 /\n$\n"
    );
    fs_err::write(&list, text)?;
    let (tree_path, list) = (tree_path.to_string(), list.display().to_string());
    let btrfs = ["--mixed", "-n", "4096", "--csum", "xxhash", "-m", "single", "-d", "single"];
    let mut images = Vec::new();
    for (name, mib, words) in [
        ("mkfs.ext4", 2, &["-q", "-O", "^metadata_csum,^has_journal", "-d", &tree_path][..]),
        ("mkfs.xfs", 300, &["-q", "-m", "crc=0", "-p", &list]),
        ("mkfs.btrfs", 24, &[&["-q", "--rootdir", &tree_path][..], &btrfs].concat()),
        ("mkfs.vfat", 1, &["-n", "ESP"]),
    ] {
        let image = work.join(name);
        fs_err::File::create(&image)?.set_len(mib << 20)?;
        sh::output(sh::cmd(name).args(words).arg(&image))?;
        images.push(image);
    }
    let mut copy = sh::cmd("mcopy");
    copy.args(["-s", "-Q", "-i"]).arg(&images[3]).arg(tree.join("grub")).arg(tree.join("k"));
    sh::output(copy.arg("::/"))?;
    Ok(images)
}

/// Each document on which the linter is tested, as a file.
fn documents(work: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (name, header) in
        [("cloud-config", "#cloud-config\n"), ("deprecated", "#cloud-config\n"), ("network", "")]
    {
        let path = dirs::root().join("testdata/lint").join(name).with_extension("txt");
        for (number, case) in fs_err::read_to_string(path)?.split("### ").enumerate().skip(1) {
            let document = case.split_once('\n').map_or("", |(_, document)| document);
            let file = work.join(format!("{name}-{number}"));
            fs_err::write(&file, format!("{header}{document}"))?;
            files.push(file);
        }
    }
    Ok(files)
}

/// Seeds as other programs make them: with each kind of names, and each width of FAT.
fn small_disks(work: &Path) -> Result<Vec<PathBuf>> {
    let folder = work.join("files");
    let write = |name: &str, text: &str| fs_err::write(folder.join(name), text);
    fs_err::create_dir_all(folder.join("openstack/latest"))?;
    write("meta-data", "instance-id: a\npublic-keys: [x]\n")?;
    write(
        "user-data",
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n#!\n",
    )?;
    write("network-config", "version: 2\n")?;
    write("openstack/latest/meta_data.json", "{\"uuid\": \"a\", \"public_keys\": {\"a\": \"x\"}}")?;
    write(&"long".repeat(60), "x")?;
    fs_err::os::unix::fs::symlink("user-data", folder.join("link"))?;
    let mut images = Vec::new();
    for (number, options) in
        [&["-rock"][..], &["-joliet", "-joliet-long"], &["-rock", "-joliet"], &[]]
            .iter()
            .enumerate()
    {
        let image = work.join(format!("iso-{number}"));
        let mut make = sh::cmd("genisoimage");
        make.args(["-quiet", "-V", "cidata"]).args(*options).arg("-o").args([&image, &folder]);
        sh::output(&mut make)?;
        images.push(image);
    }
    for (number, kib) in ["256", "4400", "34000"].into_iter().enumerate() {
        let image = work.join(format!("fat-{number}"));
        let bits = if number == 2 { "32" } else { ["12", "16"][number] };
        let make = ["-s", "1", "-F", bits, "-n", "CONFIG-2", "-C"];
        sh::output(sh::cmd("mkfs.vfat").args(make).arg(&image).arg(kib))?;
        for name in ["meta-data", "user-data", "openstack"] {
            let mut copy = sh::cmd("mcopy");
            copy.args(["-s", "-Q", "-i"]).args([&image, &folder.join(name)]).arg("::/");
            sh::output(&mut copy)?;
        }
        images.push(image);
    }
    Ok(images)
}
