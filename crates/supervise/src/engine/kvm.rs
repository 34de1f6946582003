//! Our own machine: this program again, with its hidden `machine` subcommand.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use bootyard_spec::{
    BootSpec, Class, DiskAttachment, GuestEnd, GuestServices, KernelBoot, RebootPolicy,
};

use super::child::{Child, Guest, Watched};
use super::{Ended, Engine, Failure, Running, Serial};
use crate::control::{Link, OpenMedium, Remote, clear};
use crate::lifeline::Lifeline;
use crate::plan::{backing_argument, disk_argument};
use crate::{Error, LaunchPlan, machine_exit};

/// Runs guests on `/dev/kvm`.
#[derive(Debug, Clone)]
pub struct KvmEngine {
    /// This program's executable file.
    pub program: PathBuf,
    /// Opens what is put into a drive of a machine that runs.
    pub open_medium: OpenMedium,
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn spawn(&self, plan: &LaunchPlan, serial: Serial) -> Result<Box<dyn Running>, Error> {
        let mut lifeline = Lifeline::new().map_err(Error::system("making a pipe"))?;
        let mut link = Link::new(self.open_medium).map_err(Error::system("making a socket"))?;
        let arguments = arguments(plan, lifeline.number(), link.number());
        let child = Child::spawn(&self.program, &arguments, serial)?;
        let sockets = Sockets::of(&plan.services);
        lifeline.handed_over();
        link.handed_over();
        Ok(Box::new(Watched { child, guest: Machine { sockets, link, _lifeline: lifeline } }))
    }
}

/// The command line of the `machine` subcommand.
fn arguments(plan: &LaunchPlan, lifeline: i32, link: i32) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["machine".into()];
    // In one word, because a value may begin with a dash.
    let mut option = |name: &str, value: &OsStr| {
        let mut option = OsString::from(name);
        option.push("=");
        option.push(value);
        arguments.push(option);
    };
    option("--name", plan.name.as_ref());
    option("--cpus", plan.cpus.to_string().as_ref());
    option("--cpu-model", plan.cpu_model.name().as_ref());
    option("--memory", plan.memory.bytes().to_string().as_ref());
    if let Some(size) = plan.huge_pages {
        option("--hugepages", size.name().as_ref());
    }
    option("--uuid", plan.firmware.uuid.to_string().as_ref());
    for text in &plan.firmware.texts {
        option("--smbios", text.to_string().as_ref());
    }
    for disk in &plan.disks {
        option("--disk", &disk_argument(disk));
    }
    for (index, disk) in plan.disks.iter().enumerate() {
        if let Some(backing) = &disk.backing {
            option("--backing", &backing_argument(index, backing));
        }
        if disk.attachment != DiskAttachment::default() {
            option("--attach", format!("{index}:{}", disk.attachment).as_ref());
        }
    }
    for network in &plan.networks {
        option("--net", network.to_string().as_ref());
    }
    for (name, value) in service_options(&plan.services) {
        option(name, &value);
    }
    let BootSpec { entry, append, kernel } = &plan.boot;
    if let Some(entry) = entry {
        option("--entry", entry.as_ref());
    }
    if let Some(append) = append {
        option("--append", append.as_ref());
    }
    if let Some(KernelBoot { kernel, initrd, cmdline }) = kernel {
        option("--kernel", kernel.as_ref());
        option("--cmdline", cmdline.as_ref());
        if let Some(initrd) = initrd {
            option("--initrd", initrd.as_ref());
        }
    }
    if plan.reboot_policy == RebootPolicy::Terminate {
        option("--reboot", "terminate".as_ref());
    }
    option("--link", link.to_string().as_ref());
    option("--lifeline", lifeline.to_string().as_ref());
    if plan.start_paused {
        arguments.push("--paused".into());
    }
    if !plan.sandbox {
        arguments.push("--no-sandbox".into());
    }
    if !plan.services.balloon {
        arguments.push("--no-balloon".into());
    }
    arguments
}

/// What there is between guest and host, but the balloon.
fn service_options(services: &GuestServices) -> Vec<(&'static str, OsString)> {
    let console = services.console.iter().map(|socket| ("--virtio-console", socket.into()));
    let channels =
        services.channels.iter().map(|channel| ("--channel", channel.to_string().into()));
    let vsock = services.vsock.iter().map(|vsock| ("--vsock", vsock.to_string().into()));
    console.chain(channels).chain(vsock).collect()
}

/// The sockets that a child makes, and cannot remove from inside its sandbox. They go away behind it.
#[derive(Debug)]
struct Sockets(Vec<PathBuf>);

impl Sockets {
    fn of(services: &GuestServices) -> Self {
        let channels = services.channels.iter().map(|channel| &channel.socket);
        let vsock = services.vsock.iter().map(|vsock| &vsock.socket);
        Self(services.console.iter().chain(channels).chain(vsock).cloned().collect())
    }

    /// Removes those that the child has left, now that it has ended.
    fn remove(&mut self) {
        for path in self.0.drain(..) {
            // Another machine may serve it by now, or nobody ever has.
            let _ = clear(&path);
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What a child that runs a guest has besides its process.
#[derive(Debug)]
struct Machine {
    sockets: Sockets,
    link: Link,
    _lifeline: Lifeline,
}

impl Guest for Machine {
    fn remote(&self) -> Arc<dyn Remote> {
        self.link.remote()
    }

    fn ended(&mut self, child: &mut Child, status: ExitStatus) -> Ended {
        self.sockets.remove();
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        match code.map_or(Err(Class::Engine), machine_exit::end_of) {
            Ok(end) => {
                // After a power-off, words on standard error are no reason for anything.
                let said = (end != GuestEnd::PowerOff).then(|| child.last_words());
                Ended { end, failure: None, note: said.filter(|said| !said.is_empty()) }
            }
            Err(class) => {
                let (status, stderr) = (status.to_string(), child.last_words());
                let failure = Some(Failure { class, status, stderr });
                Ended { end: GuestEnd::EngineFailed, failure, note: None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bootyard_spec::{ByteSize, CpuModel, Firmware, HugePageSize, Uuid};

    use super::*;
    use crate::{DiskFormat, DiskUsage, PlanBacking, PlanDisk};

    #[test]
    fn sockets_that_a_child_has_left_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let listen = |name: &str| std::os::unix::net::UnixListener::bind(path(name)).unwrap();
        drop((listen("console"), listen("vsock")));
        let _other_machine = listen("channel");
        fs_err::write(path("file"), "").unwrap();
        let channel = |name: &str| format!("{name}={}", path(name).display()).parse().unwrap();
        drop(Sockets::of(&GuestServices {
            balloon: true,
            console: Some(path("console")),
            channels: ["channel", "file", "missing"].map(channel).to_vec(),
            vsock: Some(format!("cid=3,socket={}", path("vsock").display()).parse().unwrap()),
        }));
        let left = ["channel", "console", "file", "vsock"].map(|name| path(name).exists());
        assert_eq!(left, [true, false, true, false]);
    }

    #[test]
    fn the_child_is_told_everything_on_its_command_line() {
        let disk = |path: &str, read_only| PlanDisk {
            path: path.into(),
            usage: if read_only { DiskUsage::Read } else { DiskUsage::Write },
            format: DiskFormat::Raw,
            backing: None,
            attachment: DiskAttachment::default(),
        };
        let backing = PlanBacking { path: "/base,1".into(), format: DiskFormat::Raw };
        let attachment = "bus=scsi,serial=s-1".parse().unwrap();
        let overlay = PlanDisk { backing: Some(backing), attachment, ..disk("/o.qcow2", false) };
        let kernel = Some(KernelBoot {
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            cmdline: "root=/dev/vda ro".to_owned(),
        });
        let plan = LaunchPlan {
            name: "vm-1".to_owned(),
            cpus: "sockets=1,cores=2,threads=2".parse().unwrap(),
            cpu_model: CpuModel::Host,
            memory: ByteSize::from_bytes(512 << 20),
            huge_pages: Some(HugePageSize::Size2Mi),
            firmware: Firmware {
                uuid: Uuid::from_bytes([7; 16]),
                texts: vec!["serial=ds=nocloud".parse().unwrap()],
            },
            sandbox: false,
            disks: vec![disk("/a b", false), overlay, disk("/seed", true)],
            networks: vec!["bridge=vm0".parse().unwrap()],
            services: GuestServices {
                balloon: false,
                console: Some("/c".into()),
                channels: vec!["a=/b".parse().unwrap()],
                vsock: Some("cid=3,socket=/v".parse().unwrap()),
            },
            boot: BootSpec { entry: None, append: Some("-quiet splash".to_owned()), kernel },
            reboot_policy: RebootPolicy::Terminate,
            start_paused: true,
        };
        let line = arguments(&plan, 7, 8).join("|".as_ref());
        assert_eq!(
            line,
            "machine|--name=vm-1|--cpus=sockets=1,cores=2,threads=2|--cpu-model=host\
             |--memory=536870912|--hugepages=2Mi|--uuid=07070707-0707-0707-0707-070707070707\
             |--smbios=serial=ds=nocloud|--disk=/a b|--disk=/o.qcow2|--disk=/seed:ro\
             |--backing=1:/base,1|--attach=1:bus=scsi,serial=s-1|--net=bridge=vm0|--virtio-console=/c|--channel=a=/b\
             |--vsock=cid=3,socket=/v|--append=-quiet splash|--kernel=/k|--cmdline=root=/dev/vda ro|--initrd=/i\
             |--reboot=terminate|--link=8|--lifeline=7|--paused|--no-sandbox|--no-balloon"
        );
    }
}
