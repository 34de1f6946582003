//! `bootyard doctor`: which engines work on this host and what else it has for machines; and for what
//! it has not, what to do about that.

mod finding;
mod host;

use std::process::ExitCode;

use bootyard_spec::EngineChoice;
use bootyard_supervise::{Choice, HostFacts, KvmFact, choose_engine, version_of};
use bootyard_vmm::doctor::{KvmVerdict, probe_kvm};

use self::finding::Finding;
use self::host::HostFiles;
use crate::args::DoctorArgs;
use crate::error::Failure;
use crate::json::{DoctorLine, FindingEntry};
use crate::{output, settings};

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let verdict = probe_kvm();
    let facts = crate::host::facts_of(&verdict);
    let choice = choose_engine(EngineChoice::Auto, &facts);
    let engine = match &choice {
        Ok((Choice::Kvm, _)) => Some("kvm"),
        Ok((Choice::Qemu { .. }, _)) => Some("qemu"),
        Err(_) => None,
    };
    let findings = findings(&verdict, &facts);
    if args.json {
        let kvm = match facts.kvm {
            KvmFact::Full => "full",
            KvmFact::Emulated => "emulated",
            KvmFact::Broken(_) => "broken",
        };
        let qemu = facts.qemu.as_ref().map(|path| path.display().to_string());
        let findings = findings.iter().map(entry).collect();
        let kvm_detail = verdict.to_string();
        output::json_line(&DoctorLine { kvm, kvm_detail, qemu, engine, findings })?;
    } else {
        let auto = match choice {
            Ok((_, why)) => Finding::ok("auto", format!("{} ({why})", engine.unwrap_or("none"))),
            Err(error) => Finding::missing("auto", format!("no engine: {error}")),
        };
        let lines: String = findings.iter().chain([&auto]).map(Finding::to_string).collect();
        output::result(&lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn entry(finding: &Finding) -> FindingEntry<'_> {
    FindingEntry {
        name: finding.name,
        state: finding.state.name(),
        detail: &finding.detail,
        remedy: finding.remedy.as_deref(),
    }
}

/// Everything that was looked at, the most important first.
fn findings(verdict: &KvmVerdict, facts: &HostFacts) -> Vec<Finding> {
    let host = HostFiles::of_this_host();
    let mut findings = vec![kvm(verdict), host.processor(), qemu(facts)];
    findings.extend([host.memory(), host.huge_pages(), io_uring(), landlock(), host.namespaces()]);
    findings.extend([host.tun(), passt(), host.firmware()]);
    findings.extend(settings::store_home().ok().map(|home| host::space(&home)));
    findings
}

fn kvm(verdict: &KvmVerdict) -> Finding {
    let detail = verdict.to_string();
    let nested = "this is the host's hypervisor; ask for nested virtualisation, or use QEMU";
    match verdict {
        KvmVerdict::Full => Finding::ok("kvm", detail),
        KvmVerdict::Emulated { .. } => Finding::limited("kvm", detail).with_remedy(nested),
        KvmVerdict::Broken { .. } => Finding::missing("kvm", detail).with_remedy(nested),
        KvmVerdict::Absent { .. } => Finding::missing("kvm", detail).with_remedy(
            "load the module (`modprobe kvm-intel` or `kvm-amd`), and let yourself use \
             `/dev/kvm` (group `kvm`)",
        ),
    }
}

fn qemu(facts: &HostFacts) -> Finding {
    match &facts.qemu {
        Some(path) => match version_of(path) {
            Ok(version) => Finding::ok("qemu", format!("{}: {version}", path.display())),
            Err(error) => Finding::limited("qemu", format!("{}: {error}", path.display()))
                .with_remedy("install it anew: `apt install --reinstall qemu-system-x86`"),
        },
        None => Finding::missing("qemu", "not installed".to_owned())
            .with_remedy("install it: `apt install qemu-system-x86`"),
    }
}

fn passt() -> Finding {
    match crate::host::find_program("passt") {
        Some(path) => Finding::ok("passt", path.display().to_string()),
        None => Finding::missing("passt", "not installed; user networks need no other program")
            .with_remedy("install it: `apt install passt`"),
    }
}

fn io_uring() -> Finding {
    match bootyard_vmm::doctor::probe_io_uring() {
        Ok(()) => Finding::ok("io_uring", "disks use it"),
        Err(error) => Finding::limited("io_uring", format!("disks do without it: {error}"))
            .with_remedy(
                "`sysctl kernel.io_uring_disabled` says whether it is forbidden; 0 allows it",
            ),
    }
}

fn landlock() -> Finding {
    /// Where signals and abstract sockets stay within the machine.
    const COMPLETE: u32 = 6;
    let newer = "Linux 6.12 and newer have all of it";
    match bootyard_vmm::doctor::landlock_version() {
        Some(version) if version >= COMPLETE => {
            Finding::ok("landlock", format!("version {version}"))
        }
        Some(version) => Finding::limited(
            "landlock",
            format!("version {version}: machines are confined to their files, less to themselves"),
        )
        .with_remedy(newer),
        None => Finding::missing(
            "landlock",
            "machines are confined by system calls and their user, not by files",
        )
        .with_remedy("boot with `lsm=landlock,…` (see /sys/kernel/security/lsm), on Linux 5.13 on"),
    }
}

#[cfg(test)]
mod tests;
