//! What the files of `/proc`, `/sys` and `/dev` tell of this host.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bootyard_spec::ByteSize;

use super::finding::Finding;

/// Less available memory than this hardly runs one guest of the default size.
const MEMORY_LOW: u64 = 1 << 30;
/// Less free space than this hardly takes one distribution's image.
const SPACE_LOW: u64 = 4 << 30;

/// A host's files: `/`, and in tests a folder that looks like it.
#[derive(Debug)]
pub(super) struct HostFiles {
    root: PathBuf,
}

impl HostFiles {
    pub(super) fn of_this_host() -> Self {
        Self::at(Path::new("/"))
    }

    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs_err::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The first value of `key` in a file of lines such as `key : value`.
    fn value(&self, path: &str, key: &str) -> Option<String> {
        let text = self.text(path)?;
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(found, _)| found.trim() == key)?;
        Some(value.trim().to_owned())
    }

    /// The processor, and whether guests can have guests.
    pub(super) fn processor(&self) -> Finding {
        let value = |key| self.value("proc/cpuinfo", key).unwrap_or_default();
        let flags = value("flags");
        let has = |flag: &str| flags.split(' ').any(|found| found == flag);
        let (extension, module) = match (has("vmx"), has("svm")) {
            (true, _) => ("VT-x", Some("kvm_intel")),
            (_, true) => ("SVM", Some("kvm_amd")),
            _ => ("no virtualisation", None),
        };
        let nested =
            module.and_then(|name| self.text(&format!("sys/module/{name}/parameters/nested")));
        let nested = match nested.as_deref() {
            Some("1" | "Y") => ", nested on",
            Some(_) => ", nested off",
            None => "",
        };
        let inside = if has("hypervisor") { ", itself a guest" } else { "" };
        let (model, vendor) = (value("model name"), value("vendor_id"));
        let detail = format!("{model} ({vendor}): {extension}{nested}{inside}");
        match module {
            Some(_) => Finding::ok("processor", detail),
            None if has("hypervisor") => Finding::limited("processor", detail).with_remedy(
                "turn nested virtualisation on in the hypervisor that this host runs on",
            ),
            None => Finding::limited("processor", detail)
                .with_remedy("turn virtualisation (VT-x, SVM) on in the firmware's set-up"),
        }
    }

    pub(super) fn memory(&self) -> Finding {
        let size = |key| {
            let text = self.value("proc/meminfo", key)?;
            let kib: u64 = text.strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        let (Some(available), Some(total)) = (size("MemAvailable"), size("MemTotal")) else {
            return Finding::limited("memory", "/proc/meminfo does not tell");
        };
        let detail = format!("{} of {} available", rounded(available), rounded(total));
        if available < MEMORY_LOW {
            return Finding::limited("memory", detail)
                .with_remedy("end other programs, or give guests less with `--memory`");
        }
        Finding::ok("memory", detail)
    }

    /// The pools that `--hugepages` takes memory from.
    pub(super) fn huge_pages(&self) -> Finding {
        const FOLDER: &str = "sys/kernel/mm/hugepages";
        let pool = |(kib, name): (u32, &str)| {
            let file = |which| format!("{FOLDER}/hugepages-{kib}kB/{which}_hugepages");
            let (free, total) = (self.number(&file("free"))?, self.number(&file("nr"))?);
            Some((format!("{free} of {total} pages of {name} free"), free))
        };
        let pools: Vec<(String, u64)> =
            [(2 << 10, "2Mi"), (1 << 20, "1Gi")].into_iter().filter_map(pool).collect();
        let detail: Vec<&str> = pools.iter().map(|(text, _)| text.as_str()).collect();
        match pools.iter().map(|(_, free)| free).sum() {
            0_u64 if pools.is_empty() => {
                Finding::missing("hugepages", "this kernel has none (CONFIG_HUGETLBFS)")
            }
            0 => Finding::missing("hugepages", detail.join(", ")).with_remedy(
                "only for `run --hugepages`: `sysctl vm.nr_hugepages=512` sets aside 1 GiB",
            ),
            _ => Finding::ok("hugepages", detail.join(", ")),
        }
    }

    /// User namespaces, in which users without rights have networks of their own.
    pub(super) fn namespaces(&self) -> Finding {
        let switches = [
            ("proc/sys/user/max_user_namespaces", "user.max_user_namespaces", "100000"),
            ("proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", "1"),
        ];
        for (path, name, value) in switches {
            if self.number(path) == Some(0) {
                return Finding::missing("userns", format!("forbidden: {name} is 0"))
                    .with_remedy(format!("`sysctl {name}={value}`"));
            }
        }
        let restricted = "kernel.apparmor_restrict_unprivileged_userns";
        match self.number("proc/sys/user/max_user_namespaces") {
            None => Finding::missing("userns", "this kernel has none (CONFIG_USER_NS)"),
            Some(_)
                if self.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                    == Some(1) =>
            {
                Finding::limited("userns", "only for programs that AppArmor names")
                    .with_remedy(format!("`sysctl {restricted}=0`"))
            }
            Some(_) => Finding::ok("userns", "allowed"),
        }
    }

    /// What tap devices come from.
    pub(super) fn tun(&self) -> Finding {
        let device = self.root.join("dev/net/tun");
        let opened = fs_err::OpenOptions::new().read(true).write(true).open(device);
        match opened.map_err(|error| error.kind()) {
            Ok(_) => Finding::ok("tun", "/dev/net/tun can be opened"),
            Err(ErrorKind::NotFound) => {
                Finding::missing("tun", "there is no /dev/net/tun; user networks do without it")
                    .with_remedy("`modprobe tun`")
            }
            Err(kind) => Finding::limited("tun", format!("/dev/net/tun: {kind}"))
                .with_remedy("`chmod 666 /dev/net/tun`, as distributions have it, or be root"),
        }
    }

    /// OVMF, with which QEMU boots as a PC with UEFI.
    pub(super) fn firmware(&self) -> Finding {
        const PLACES: [&str; 4] = [
            "usr/share/OVMF/OVMF_CODE_4M.fd",
            "usr/share/OVMF/OVMF_CODE.fd",
            "usr/share/edk2/x64/OVMF_CODE.4m.fd",
            "usr/share/edk2/ovmf/OVMF_CODE.fd",
        ];
        match PLACES.into_iter().find(|path| self.root.join(path).is_file()) {
            Some(path) => Finding::ok("ovmf", format!("/{path}")),
            None => Finding::missing("ovmf", "not installed; only QEMU's machines use it")
                .with_remedy("install it: `apt install ovmf`"),
        }
    }
}

/// The free space of the file system on which the store is, or will be.
pub(super) fn space(home: &Path) -> Finding {
    let there = home.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} free at {}", rounded(free), home.display());
            if free < SPACE_LOW {
                return Finding::limited("store", detail)
                    .with_remedy("`bootyard volume list` shows what takes the space; `BOOTYARD_HOME` moves the store");
            }
            Finding::ok("store", detail)
        }
        Err(errno) => Finding::limited("store", format!("{}: {errno}", there.display())),
    }
}

/// In whole MiB, or with one digit of GiB: what people compare.
fn rounded(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB {
        return ByteSize::from_mib(bytes >> 20).to_string();
    }
    let tenths = bytes / (GIB / 10);
    format!("{}.{}Gi", tenths / 10, tenths % 10)
}
