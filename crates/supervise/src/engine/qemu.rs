//! QEMU's q35 machine, which boots a disk as a PC with a BIOS does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use bootyard_spec::{
    Class, CpuModel, DiskBus, DiskCache, DiskDevice, GuestEnd, KernelBoot, RebootPolicy,
};

use super::child::{Child, Guest, Watched};
use super::qmp::Qmp;
use super::{Ended, Engine, Failure, Running, Serial};
use super::{hardware, network, services};
use crate::control::{OpenMedium, Remote};
use crate::{DiskFormat, DiskUsage, Error, LaunchPlan, PlanDisk};

/// Runs guests on QEMU.
#[derive(Debug, Clone)]
pub struct QemuEngine {
    /// `qemu-system-x86_64`. If util-linux's `setpriv` lies beside it, as in `/usr/bin`, it makes
    /// the kernel kill QEMU when the thread that spawned it ends, however that happens.
    pub program: PathBuf,
    /// With KVM; else in software (TCG).
    pub kvm: bool,
    /// Checks and locks what is put into a drive of a machine that runs.
    pub open_medium: OpenMedium,
}

impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn spawn(&self, plan: &LaunchPlan, serial: Serial) -> Result<Box<dyn Running>, Error> {
        let flag = [(&plan.boot.entry, "--entry"), (&plan.boot.append, "--append")]
            .into_iter()
            .find_map(|(value, flag)| value.as_ref().map(|_| flag));
        if let (Some(flag), None) = (flag, &plan.boot.kernel) {
            return Err(Error::BootsByFirmware { flag });
        }
        let mut qmp = Qmp::new(plan, self.open_medium).map_err(Error::system("making a socket"))?;
        let mut sockets = services::Sockets::listen(&plan.services)?;
        let arguments = arguments(plan, self.kvm, qmp.number(), &sockets.numbers())?;
        let guard = self.program.with_file_name("setpriv");
        let child = if guard.is_file() {
            Child::spawn(&guard, &guarded(&self.program, arguments), serial)?
        } else {
            Child::spawn(&self.program, &arguments, serial)?
        };
        qmp.handed_over();
        sockets.handed_over();
        Ok(Box::new(Watched { child, guest: Machine { qmp, ended: None, _sockets: sockets } }))
    }
}

/// The arguments with which `setpriv` becomes `program`, killed with its parent. QEMU has no
/// lifeline of its own: a monitor that hangs up does not end it.
fn guarded(program: &Path, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut guarded: Vec<OsString> = vec!["--pdeathsig".into(), "KILL".into(), "--".into()];
    guarded.push(program.into());
    guarded.extend(arguments);
    guarded
}

/// QEMU's command line. `qmp` is the descriptor of an inherited socket, as are those of the services.
fn arguments(
    plan: &LaunchPlan,
    kvm: bool,
    qmp: i32,
    sockets: &[i32],
) -> Result<Vec<OsString>, Error> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    let mut name = OsString::from("guest=");
    name.push(escaped(plan.name.as_ref()));
    option("-name", name);
    let (accelerator, cpu) = if kvm { ("kvm", "host") } else { ("tcg,thread=multi", "max") };
    let cpu = if plan.cpu_model == CpuModel::Minimal { hardware::MINIMAL_CPU } else { cpu };
    // Without graphics the BIOS, too, speaks on the serial port: a disk that does not boot says so.
    let pool = if plan.huge_pages.is_some() { hardware::MEMORY_BACKEND } else { "" };
    option("-machine", format!("q35,graphics=off{pool}").into());
    option("-accel", accelerator.into());
    option("-cpu", cpu.into());
    option("-smp", hardware::processors(plan.cpus).into());
    option("-m", format!("{}B", plan.memory.bytes()).into());
    if let Some(size) = plan.huge_pages {
        option("-object", hardware::huge_memory(plan.memory, size).into());
    }
    option("-uuid", plan.firmware.uuid.to_string().into());
    for structure in hardware::smbios(&plan.firmware) {
        option("-smbios", structure);
    }
    for (name, value) in disks(plan) {
        option(name, value);
    }
    if let Some(KernelBoot { kernel, initrd, .. }) = &plan.boot.kernel {
        option("-kernel", kernel.into());
        option("-append", plan.boot.cmdline().into());
        if let Some(initrd) = initrd {
            option("-initrd", initrd.into());
        }
    }
    for (name, value) in
        network::options(plan)?.into_iter().chain(services::options(&plan.services, sockets)?)
    {
        option(name, value);
    }
    option("-device", "virtio-rng-pci".into());
    option("-device", "pvpanic".into());
    option("-display", "none".into());
    // A Ctrl-C that is typed goes to the guest, not to QEMU.
    option("-chardev", "stdio,id=serial0,signal=off".into());
    option("-serial", "chardev:serial0".into());
    option("-chardev", format!("socket,id=qmp,fd={qmp}").into());
    option("-mon", "chardev=qmp,mode=control".into());
    if plan.sandbox {
        option("-sandbox", hardware::SANDBOX.into());
    }
    if plan.reboot_policy == RebootPolicy::Terminate {
        option("-action", "reboot=shutdown".into());
    }
    if plan.start_paused {
        arguments.push("-S".into());
    }
    // Neither the user's configuration nor devices that nobody named.
    arguments.extend(["-no-user-config".into(), "-nodefaults".into()]);
    Ok(arguments)
}

/// The options of all disks, and their values.
fn disks(plan: &LaunchPlan) -> Vec<(&'static str, OsString)> {
    let mut options = Vec::new();
    if plan.disks.iter().any(|disk| disk.attachment.bus == DiskBus::Scsi) {
        options.push(("-device", "virtio-scsi-pci,id=scsi".into()));
    }
    let mut cdroms = 0..;
    for (index, disk) in plan.disks.iter().enumerate() {
        options.push(("-drive", drive(index, disk)));
        // QEMU boots a kernel that is given before everything else, and by the same number.
        let is_booted = index == 0 && plan.boot.kernel.is_none();
        let mut device = device(index, disk, is_booted);
        if disk.attachment.device == DiskDevice::Cdrom {
            // By this name its medium is changed.
            device.extend(cdroms.next().map(|number| format!(",id=cdrom{number}")));
        }
        options.push(("-device", device.into()));
    }
    options
}

fn drive(index: usize, disk: &PlanDisk) -> OsString {
    let format = driver(disk.format);
    let access = match disk.usage {
        DiskUsage::Read => ",readonly=on",
        DiskUsage::Write | DiskUsage::Share => ",discard=unmap",
    };
    // A full host disk is an error that the guest sees, not a guest that stops without a word.
    let cache = match disk.attachment.cache {
        DiskCache::WriteBack => "",
        DiskCache::WriteThrough => ",cache=writethrough",
    };
    let mut drive = OsString::from(format!(
        "if=none,id=disk{index},format={format},werror=report,rerror=report{access}{cache},file="
    ));
    push_path(&mut drive, &disk.path);
    if let Some(backing) = &disk.backing {
        let format = driver(backing.format);
        drive.push(format!(",backing.driver={format},backing.read-only=on,backing.file.filename="));
        push_path(&mut drive, &backing.path);
    }
    drive
}

const fn driver(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

fn push_path(option: &mut OsString, path: &Path) {
    // Without a slash before it, a colon would make the path a URL.
    option.push(if path.is_absolute() { "" } else { "./" });
    option.push(escaped(path.as_os_str()));
}

/// The disk that is booted is the only one that the BIOS tries. One that is shared gets no lock of QEMU's own.
fn device(index: usize, disk: &PlanDisk, is_booted: bool) -> String {
    let model = match (disk.attachment.bus, disk.attachment.device) {
        (DiskBus::Virtio, _) => "virtio-blk-pci",
        (DiskBus::Scsi, DiskDevice::Disk) => "scsi-hd,bus=scsi.0",
        (DiskBus::Scsi, DiskDevice::Cdrom) => "scsi-cd,bus=scsi.0",
    };
    let boot = if is_booted { ",bootindex=0" } else { "" };
    let share = if disk.usage == DiskUsage::Share { ",share-rw=on" } else { "" };
    let serial = disk.attachment.serial.as_ref();
    let serial = serial.map_or(String::new(), |serial| format!(",serial={}", serial.as_str()));
    format!("{model},drive=disk{index}{boot}{share}{serial}")
}

/// A value within a comma-separated option, where a comma is written twice.
pub(super) fn escaped(value: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

/// What a running QEMU has besides its process.
#[derive(Debug)]
struct Machine {
    qmp: Qmp,
    ended: Option<Ended>,
    _sockets: services::Sockets,
}

impl Guest for Machine {
    fn remote(&self) -> Arc<dyn Remote> {
        self.qmp.remote()
    }

    fn ended(&mut self, child: &mut Child, status: ExitStatus) -> Ended {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let heard = self.qmp.heard();
        let end = heard.end.filter(|_| status.success());
        let failure = end.is_none().then(|| Failure {
            class: Class::Engine,
            status: status.to_string(),
            stderr: child.last_words(),
        });
        let ended =
            Ended { end: end.unwrap_or(GuestEnd::EngineFailed), failure, note: heard.disk_error };
        self.ended.insert(ended).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use bootyard_spec::{BootSpec, ByteSize, CpuTopology, DiskAttachment, Firmware, Uuid};

    use super::*;
    use crate::PlanBacking;

    fn plan(disks: &[(&str, bool, DiskFormat)]) -> LaunchPlan {
        let disk = |&(path, read_only, format): &(&str, bool, DiskFormat)| PlanDisk {
            path: path.into(),
            usage: if read_only { DiskUsage::Read } else { DiskUsage::Write },
            format,
            backing: None,
            attachment: DiskAttachment::default(),
        };
        LaunchPlan {
            name: "a,b".to_owned(),
            cpus: CpuTopology::of_cores(NonZeroU32::MIN),
            cpu_model: CpuModel::Host,
            memory: ByteSize::from_bytes(1 << 30),
            huge_pages: None,
            firmware: Firmware { uuid: Uuid::from_bytes([7; 16]), texts: Vec::new() },
            sandbox: true,
            disks: disks.iter().map(disk).collect(),
            networks: vec!["bridge=vm0,mac=52:54:00:00:00:01,pcap=/p".parse().unwrap()],
            services: bootyard_spec::GuestServices { balloon: false, ..Default::default() },
            boot: BootSpec::default(),
            reboot_policy: RebootPolicy::Reboot,
            start_paused: false,
        }
    }

    fn line(plan: &LaunchPlan, kvm: bool) -> String {
        arguments(plan, kvm, 5, &[]).unwrap().join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn the_whole_command_line() {
        let disks = [("/vm.qcow2", false, DiskFormat::Qcow2), ("seed.iso", true, DiskFormat::Raw)];
        assert_eq!(
            line(&plan(&disks), false),
            "-name guest=a,,b -machine q35,graphics=off -accel tcg,thread=multi -cpu max \
             -smp 1,sockets=1,cores=1,threads=1 \
             -m 1073741824B -uuid 07070707-0707-0707-0707-070707070707 \
             -drive if=none,id=disk0,format=qcow2,werror=report,rerror=report,discard=unmap,\
             file=/vm.qcow2 \
             -device virtio-blk-pci,drive=disk0,bootindex=0 \
             -drive if=none,id=disk1,format=raw,werror=report,rerror=report,readonly=on,\
             file=./seed.iso \
             -device virtio-blk-pci,drive=disk1 \
             -netdev tap,id=net0,ifname=vm0,script=no,downscript=no \
             -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01 \
             -object filter-dump,id=dump0,netdev=net0,file=/p \
             -device virtio-rng-pci -device pvpanic -display none \
             -chardev stdio,id=serial0,signal=off -serial chardev:serial0 \
             -chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -no-user-config -nodefaults"
        );
    }

    #[test]
    fn the_backing_disk_is_named_by_us_and_not_by_the_overlay() {
        let mut plan = plan(&[("/run/disk-0.qcow2", false, DiskFormat::Qcow2)]);
        for (path, format, expected) in [
            (
                "/a,b",
                DiskFormat::Raw,
                "backing.driver=raw,backing.read-only=on,backing.file.filename=/a,,b",
            ),
            (
                "c:d",
                DiskFormat::Qcow2,
                "backing.driver=qcow2,backing.read-only=on,backing.file.filename=./c:d",
            ),
        ] {
            plan.disks[0].backing = Some(PlanBacking { path: path.into(), format });
            let line = line(&plan, false);
            assert!(line.contains(&format!("file=/run/disk-0.qcow2,{expected} ")), "{line}");
        }
    }

    #[test]
    fn hardware_is_what_the_plan_says() {
        let mut plan = plan(&[]);
        plan.cpus = "sockets=2,cores=3,threads=2".parse().unwrap();
        plan.cpu_model = CpuModel::Minimal;
        plan.huge_pages = Some(bootyard_spec::HugePageSize::Size2Mi);
        let texts = ["serial=a", "chassis-asset=7", "serial=ds=nocloud;h=a,b"];
        plan.firmware.texts = texts.map(|text| text.parse().unwrap()).to_vec();
        let line = line(&plan, true);
        for part in [
            "-machine q35,graphics=off,memory-backend=memory -accel kvm -cpu qemu64,-pni,-cx16,-svm ",
            "-smp 12,sockets=2,cores=3,threads=2 ",
            "-object memory-backend-memfd,id=memory,size=1073741824,hugetlb=on,\
             hugetlbsize=2097152,prealloc=on ",
            "-smbios type=1,serial=ds=nocloud;;h=a,,b ",
            "-smbios type=3,asset=7 ",
        ] {
            assert!(line.contains(&part.replace(";;", ";")), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_kernel_that_is_given_is_started_by_qemu_itself() {
        let mut plan = plan(&[("/a", false, DiskFormat::Raw)]);
        plan.boot.kernel = Some(KernelBoot {
            kernel: "/k,1".into(),
            initrd: Some("/i".into()),
            cmdline: "a=b".to_owned(),
        });
        plan.boot.append = Some("console=ttyS0".to_owned());
        let line = line(&plan, false);
        assert!(line.contains("-kernel /k,1 -append a=b console=ttyS0 -initrd /i"), "{line}");
        // QEMU refuses a disk that wants to be booted in its place.
        assert!(!line.contains("bootindex"), "{line}");
    }

    #[test]
    fn how_it_starts_and_restarts_is_told() {
        let plan =
            LaunchPlan { reboot_policy: RebootPolicy::Terminate, start_paused: true, ..plan(&[]) };
        let line = line(&plan, false);
        assert!(line.contains(" -action reboot=shutdown -S "), "{line}");
    }

    #[test]
    fn disks_are_attached_as_they_are_told_to() {
        let disks = [("/a", false, DiskFormat::Raw), ("/b", true, DiskFormat::Raw)];
        let mut plan = plan(&disks);
        plan.disks[0].attachment = "bus=scsi,cache=writethrough,serial=s1".parse().unwrap();
        plan.disks[1].attachment = DiskAttachment::cdrom();
        let line = line(&plan, false);
        for expected in [
            "-device virtio-scsi-pci,id=scsi -drive if=none,id=disk0,",
            ",discard=unmap,cache=writethrough,file=/a ",
            "-device scsi-hd,bus=scsi.0,drive=disk0,bootindex=0,serial=s1 ",
            "-device scsi-cd,bus=scsi.0,drive=disk1,id=cdrom0 ",
        ] {
            assert!(line.contains(expected), "{expected}: {line}");
        }
        assert_eq!(line.matches("virtio-scsi-pci").count(), 1);
    }

    #[test]
    fn kvm_is_used_if_it_works() {
        assert!(line(&plan(&[]), true).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn paths_are_never_options_or_urls() {
        for (path, expected) in [
            ("/a,readonly=on", "file=/a,,readonly=on"),
            ("nbd:host:1", "file=./nbd:host:1"),
            ("/json:{}", "file=/json:{}"),
        ] {
            let line = line(&plan(&[(path, false, DiskFormat::Raw)]), false);
            assert!(line.contains(&format!("{expected} ")), "{line}");
        }
    }
}
