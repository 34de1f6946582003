//! `bootyard doctor`: which engines work on this host, and what to do about those that don't.

use std::process::ExitCode;

use bootyard_spec::EngineChoice;
use bootyard_supervise::{Choice, HostFacts, KvmFact, choose_engine};
use bootyard_vmm::doctor::{KvmVerdict, probe_kvm};

use crate::args::DoctorArgs;
use crate::error::Failure;
use crate::json::DoctorLine;
use crate::{host, output};

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let verdict = probe_kvm();
    let facts = host::facts_of(&verdict);
    let choice = choose_engine(EngineChoice::Auto, &facts);
    let engine = match &choice {
        Ok((Choice::Kvm, _)) => Some("kvm"),
        Ok((Choice::Qemu { .. }, _)) => Some("qemu"),
        Err(_) => None,
    };
    let kvm = match facts.kvm {
        KvmFact::Full => "full",
        KvmFact::Emulated => "emulated",
        KvmFact::Broken(_) => "broken",
    };
    if args.json {
        let qemu = facts.qemu.as_ref().map(|path| path.display().to_string());
        output::json_line(&DoctorLine { kvm, kvm_detail: verdict.to_string(), qemu, engine })?;
    } else {
        output::result(&report(&verdict, &facts))?;
        let auto = match choice {
            Ok((_, why)) => format!("{} ({why})", engine.unwrap_or("none")),
            Err(error) => format!("none: {error}"),
        };
        output::result(&format!("{:<8}{auto}\n", "auto"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(verdict: &KvmVerdict, facts: &HostFacts) -> String {
    let mut text = format!("{:<8}{verdict}\n", "kvm");
    if let Some(remedy) = remedy(verdict) {
        text += &format!("{:<8}hint: {remedy}\n", "");
    }
    text += &match &facts.qemu {
        Some(path) => format!("{:<8}{}\n", "qemu", path.display()),
        None => format!(
            "{:<8}not installed\n{:<8}hint: install it: `apt install qemu-system-x86`\n",
            "qemu", ""
        ),
    };
    text
}

fn remedy(verdict: &KvmVerdict) -> Option<&'static str> {
    match verdict {
        KvmVerdict::Full => None,
        KvmVerdict::Emulated { .. } | KvmVerdict::Broken { .. } => {
            Some("this is the host's hypervisor; ask for nested virtualisation, or use QEMU")
        }
        KvmVerdict::Absent { .. } => Some(
            "load the module (`modprobe kvm-intel` or `kvm-amd`), and let yourself use \
             `/dev/kvm` (group `kvm`)",
        ),
    }
}
