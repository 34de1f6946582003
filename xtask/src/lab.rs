//! `cargo xtask lab`: a host with a complete `/dev/kvm`, in software.
//!
//! QEMU emulates an AMD processor with SVM, on which Debian's cloud kernel and an initial RAM disk
//! of busybox, the KVM modules and our own binary run one command. It is slow and needs nothing of
//! the real host: what works there works under a real KVM.
//!
//! Three serial ports keep things apart: the kernel's messages go to a log, the command talks on
//! our terminal, and its exit code comes back by itself.

mod cpio;
mod modules;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::TryLockError;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup::{self, Need};
use crate::{cache, deb, dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory of the lab, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Processors of the lab.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// The lab is ended by force after so many seconds.
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    timeout: u32,
    /// A raw disk: /dev/vda, /dev/vdb and so on. Written through, or `,ro` behind it; with `,4k` its
    /// sectors have 4096 bytes.
    #[arg(long = "disk", value_name = "RAW[,ro][,4k]")]
    disks: Vec<Disk>,
    /// A file to put into the lab's root directory.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A program of this host to put into `/bin`, with the libraries that it needs.
    #[arg(long = "program", value_name = "FILE")]
    programs: Vec<PathBuf>,
    /// Leave out `bootyard`, which is otherwise built and found there.
    #[arg(long)]
    bare: bool,
    /// This build of `bootyard`, with the libraries that it needs, instead of one made for the lab.
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    binary: Option<PathBuf>,
    /// What to run there; a shell, if absent.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What to run in a lab, and on what.
#[derive(Debug)]
pub(crate) struct Lab {
    /// MiB.
    pub(crate) memory: u32,
    /// Processors.
    pub(crate) cpus: u32,
    /// Seconds until it is ended by force.
    pub(crate) timeout: u32,
    /// Raw disks.
    pub(crate) disks: Vec<Disk>,
    /// Files, and where they lie inside (without the leading slash).
    pub(crate) files: Vec<(PathBuf, String)>,
    /// The command; empty for a shell on our terminal.
    pub(crate) command: Vec<String>,
    /// Where its logs go: `kernel.log` and `output.log`. No other lab has the same.
    pub(crate) logs: PathBuf,
}

/// A raw disk of the lab.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) is_read_only: bool,
    /// Bytes of a sector.
    pub(crate) sector: u32,
}

impl Disk {
    /// A disk with ordinary sectors.
    pub(crate) const fn new(path: PathBuf, is_read_only: bool) -> Self {
        Self { path, is_read_only, sector: 512 }
    }
}

impl From<&str> for Disk {
    /// `RAW[,ro][,4k]`.
    fn from(text: &str) -> Self {
        let (rest, sector) = match text.strip_suffix(",4k") {
            Some(rest) => (rest, 4096),
            None => (text, 512),
        };
        let (path, is_read_only) = match rest.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (rest, false),
        };
        Self { path: path.into(), is_read_only, sector }
    }
}

/// Names the build of `bootyard` that guests are run with. `cargo xtask test` sets it to the one that it
/// tests, which spares a build for release.
pub(crate) const BINARY: &str = "BOOTYARD_BINARY";

/// Exit code of `timeout` when it had to end its command.
const TIMED_OUT: i32 = 124;

/// How long QEMU may take to end when asked to, in seconds.
const GRACE_SECS: &str = "5";

/// The modules whose dependencies are the lab's modules. The last five mount seeds: the kernel's own
/// `modprobe` for the tables of characters finds nothing there.
const MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "kvm_amd",
    "tun",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
];

/// The lab's folders; the last two are for libraries.
const DIRS: [&str; 10] = [
    "bin",
    "dev",
    "lab",
    "lib",
    "lib/modules",
    "proc",
    "sys",
    "tmp",
    "lib/x86_64-linux-gnu",
    "lib64",
];

/// Changes whenever [`Parts`] are to be fetched anew.
const RECIPE: &str = "1";

/// The first process of the lab. /lab holds what differs between labs.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=vt100
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "/lib/modules/$module"; done </lab/modules
ip link set lo up
tries=0
until [ "$(ls /sys/block | grep -c '^vd')" -ge "$(cat /lab/disks)" ]; do
    tries=$((tries + 1))
    [ $tries -gt 100 ] && echo "lab: disks are missing" && break
    sleep 0.1
done
if [ -s /lab/command ]; then
    stty -F /dev/ttyS1 raw -echo
    sh /lab/command </dev/null >/dev/ttyS1 2>&1
else
    setsid sh -c 'exec sh </dev/ttyS1 >/dev/ttyS1 2>&1'
fi
echo "$?" >/dev/ttyS2
sync
poweroff -f
"#;

pub(crate) fn main(args: &Args) -> ExitCode {
    let run = || {
        let (folder, _lock) = claim_folder()?;
        lab(args, folder)?.run()
    };
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => crate::fail(&error),
    }
}

/// A folder that no other lab uses as long as the file is open.
fn claim_folder() -> Result<(PathBuf, fs_err::File)> {
    let folders = (0..).map(|number| dirs::target().join(format!("lab/{number}")));
    for folder in folders {
        fs_err::create_dir_all(&folder)?;
        let lock = fs_err::File::create(folder.join("lock"))?;
        match lock.file().try_lock() {
            Ok(()) => return Ok((folder, lock)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock `{}`", folder.display()));
            }
        }
    }
    unreachable!("there is always another number");
}

fn lab(args: &Args, folder: PathBuf) -> Result<Lab> {
    let has_terminal = std::io::stdin().is_terminal();
    ensure!(has_terminal || !args.command.is_empty(), "a shell in the lab needs a terminal");
    setup::ensure_installed(&[Need::Boot])?;
    let mut files = Vec::new();
    match &args.binary {
        Some(binary) => files.extend(with_libraries(binary, "bin/bootyard", &folder)?),
        None if args.bare => {}
        None => files.extend(with_libraries(&build()?, "bin/bootyard", &folder)?),
    }
    for path in &args.files {
        files.push((path.clone(), name(path)?.to_owned()));
    }
    for path in &args.programs {
        files.extend(with_libraries(path, &format!("bin/{}", name(path)?), &folder)?);
    }
    Ok(Lab {
        memory: args.memory,
        cpus: args.cpus,
        timeout: args.timeout,
        disks: args.disks.clone(),
        files,
        command: args.command.clone(),
        logs: folder,
    })
}

fn name(path: &Path) -> Result<&str> {
    path.file_name()
        .and_then(OsStr::to_str)
        .with_context(|| format!("`{}` has no name", path.display()))
}

/// Builds `bootyard` for release, unless [`BINARY`] names a build.
pub(crate) fn build() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os(BINARY) {
        return Ok(binary.into());
    }
    sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
    Ok(dirs::target().join("release/bootyard"))
}

/// The program `binary`, whose place in the lab is `place`, and its shared libraries with theirs. What
/// is made of the program stays in `folder`.
pub(crate) fn with_libraries(
    binary: &Path,
    place: &str,
    folder: &Path,
) -> Result<Vec<(PathBuf, String)>> {
    let name = Path::new(place).file_name().context("a program without a name")?;
    // Line tables alone are half of a debug build.
    fs_err::create_dir_all(folder)?;
    let stripped = folder.join(name);
    sh::run(sh::cmd("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(binary))?;
    let needed = sh::output(sh::cmd("ldd").arg(binary))?;
    let libraries = needed.lines().filter_map(|line| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some((PathBuf::from(path), path.trim_start_matches('/').to_owned()))
    });
    Ok([(stripped, place.to_owned())].into_iter().chain(libraries).collect())
}

/// A guest for the machines that run in the lab: Debian's cloud kernel, and an initial RAM disk of busybox,
/// `modules` (listed in load order in `/modules`), `files` and the first process `init`.
pub(crate) fn small_guest(
    init: &str,
    modules: &[&str],
    files: &[(PathBuf, String)],
) -> Result<(PathBuf, Vec<u8>)> {
    let parts = Parts::fetch_once()?;
    let mut archive = cpio::Archive::default();
    DIRS.iter().for_each(|dir| archive.dir(dir));
    archive.file("init", 0o755, init.as_bytes());
    let order = add_programs(&mut archive, &parts, &parts.load_order(modules)?, files)?;
    archive.file("modules", 0o644, order.as_bytes());
    Ok((parts.kernel, archive.finish()))
}

/// Adds busybox, modules and other files; gives the modules' names, one a line.
fn add_programs(
    archive: &mut cpio::Archive,
    parts: &Parts,
    modules: &[PathBuf],
    files: &[(PathBuf, String)],
) -> Result<String> {
    archive.file("bin/busybox", 0o755, &fs_err::read(&parts.busybox)?);
    let mut order = String::new();
    for module in modules {
        let name = module.file_name().context("a module without a name")?.to_string_lossy();
        archive.file(&format!("lib/modules/{name}"), 0o644, &fs_err::read(module)?);
        writeln!(order, "{name}")?;
    }
    for (from, to) in files {
        archive.file(to, 0o755, &fs_err::read(from)?);
    }
    Ok(order)
}

impl Lab {
    /// Runs the command and gives its exit code.
    pub(crate) fn run(&self) -> Result<u8> {
        let parts = Parts::fetch_once()?;
        fs_err::create_dir_all(&self.logs)?;
        let work = tempfile::tempdir()?;
        let initrd = work.path().join("initrd");
        fs_err::write(&initrd, self.initrd(&parts)?)?;
        let status = work.path().join("status");
        let mut qemu = self.qemu(&parts, &initrd, &status);
        eprintln!(
            "starting the lab, which takes some seconds; kernel log in `{}`",
            self.logs.join("kernel.log").display()
        );
        let ended = self.talk(&mut qemu)?;
        let code = fs_err::read_to_string(&status).unwrap_or_default();
        if let Ok(code) = code.trim().parse() {
            return Ok(code);
        }
        eprintln!("{}", sh::tail(&self.logs.join("kernel.log")));
        ensure!(ended != Some(TIMED_OUT), "the lab did not end within {} s", self.timeout);
        bail!("the lab ended without an exit code (QEMU's is {ended:?})");
    }

    fn initrd(&self, parts: &Parts) -> Result<Vec<u8>> {
        let mut archive = cpio::Archive::default();
        DIRS.iter().for_each(|dir| archive.dir(dir));
        archive.file("init", 0o755, INIT.as_bytes());
        let modules = parts.load_order(&MODULES)?;
        let order = add_programs(&mut archive, parts, &modules, &self.files)?;
        archive.file("lab/modules", 0o644, order.as_bytes());
        archive.file("lab/disks", 0o644, self.disks.len().to_string().as_bytes());
        let command: Vec<String> = self.command.iter().map(|word| sh::quote(word)).collect();
        archive.file("lab/command", 0o644, command.join(" ").as_bytes());
        Ok(archive.finish())
    }

    /// QEMU, ended by force after the time limit even if we are gone by then.
    fn qemu(&self, parts: &Parts, initrd: &Path, status: &Path) -> Command {
        let mut qemu = sh::tied("timeout");
        qemu.args(["--foreground", "--kill-after", GRACE_SECS, &self.timeout.to_string()]);
        qemu.arg("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt", "-machine", "q35"]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"]);
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string()]);
        qemu.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(initrd);
        qemu.args(["-append", "console=ttyS0 panic=-1"]);
        qemu.arg("-serial").arg(format!("file:{}", self.logs.join("kernel.log").display()));
        qemu.args(["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal"]);
        qemu.arg("-serial").arg(format!("file:{}", status.display()));
        for (index, Disk { path, is_read_only, sector }) in self.disks.iter().enumerate() {
            let read_only = if *is_read_only { "on" } else { "off" };
            // Commas separate options; QEMU reads a doubled one as a comma of the path.
            let path = path.to_string_lossy().replace(',', ",,");
            qemu.arg("-drive").arg(format!(
                "file={path},format=raw,if=none,id=disk{index},readonly={read_only},discard=unmap"
            ));
            let sectors = format!("logical_block_size={sector},physical_block_size={sector}");
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=disk{index},{sectors}"));
        }
        qemu
    }

    /// Connects the shell, or what the command says, with our terminal, and waits for the end.
    fn talk(&self, qemu: &mut Command) -> Result<Option<i32>> {
        if self.command.is_empty() {
            return Ok(qemu.status()?.code());
        }
        Ok(sh::run_teed(qemu, &self.logs.join("output.log"))?.code())
    }
}

/// What every lab is made of, taken from Debian's packages.
#[derive(Debug)]
struct Parts {
    kernel: PathBuf,
    /// The folder of the kernel's modules.
    modules: PathBuf,
    busybox: PathBuf,
}

impl Parts {
    /// Unpacks Debian's cloud kernel and static busybox, unless it has been done. Installs nothing.
    fn fetch_once() -> Result<Self> {
        let dir = cache::once(&dirs::target().join("lab/parts"), RECIPE, |work| {
            deb::update_if_empty()?;
            let kernel = deb::dependency("linux-image-cloud-amd64", "linux-image-")?;
            let made = work.join("made");
            deb::unpack(&kernel, &made)?;
            deb::unpack("busybox-static", &made)?;
            sh::run(sh::cmd("depmod").arg("--basedir").arg(&made).arg(release(&made)?))?;
            Ok(made)
        })?;
        let release = release(&dir)?;
        Ok(Self {
            kernel: dir.join("boot").join(format!("vmlinuz-{release}")),
            modules: dir.join("lib/modules").join(&release),
            busybox: dir.join("bin/busybox"),
        })
    }

    /// These modules and all that they need, in the order in which they load.
    fn load_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let dep = fs_err::read_to_string(self.modules.join("modules.dep"))?;
        let order = modules::load_order(&dep, wanted)?;
        Ok(order.into_iter().map(|path| self.modules.join(path)).collect())
    }
}

/// The release of the kernel that lies unpacked in `dir`.
fn release(dir: &Path) -> Result<String> {
    let entry =
        fs_err::read_dir(dir.join("lib/modules"))?.next().context("no kernel modules")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}
