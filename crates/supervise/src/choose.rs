//! Which engine runs a machine on this host, and why: a pure function of what was asked for and of
//! what the host can do.

use std::path::PathBuf;

use bootyard_spec::EngineChoice;

use crate::Error;

/// What `/dev/kvm` is worth on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmFact {
    /// It runs ordinary kernels.
    Full,
    /// It is there, but interprets guest kernels in software, incompletely.
    Emulated,
    /// It cannot be used, and why.
    Broken(String),
}

/// What this host can do, found out by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// What a tiny guest found out about KVM.
    pub kvm: KvmFact,
    /// The path of `qemu-system-x86_64`, if it is installed.
    pub qemu: Option<PathBuf>,
}

/// The engine to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Our own machine.
    Kvm,
    /// QEMU.
    Qemu {
        /// Its program.
        program: PathBuf,
        /// With KVM; else in software.
        kvm: bool,
    },
}

/// Chooses an engine. The text beside it says why, for status and log.
pub fn choose_engine(wanted: EngineChoice, facts: &HostFacts) -> Result<(Choice, String), Error> {
    let kvm_fault = match &facts.kvm {
        KvmFact::Full => None,
        KvmFact::Emulated => Some("KVM here emulates guest kernels incompletely".to_owned()),
        KvmFact::Broken(why) => Some(why.clone()),
    };
    let on_qemu = |because: Option<String>| match facts.qemu.clone() {
        Some(program) => Ok(Choice::Qemu { program, kvm: facts.kvm == KvmFact::Full }),
        None => Err(Error::NoQemu { because }),
    };
    match (wanted, kvm_fault) {
        (EngineChoice::Auto, None) => Ok((Choice::Kvm, "KVM works here".to_owned())),
        (EngineChoice::Auto, Some(why)) => {
            let choice = on_qemu(Some(why.clone()))?;
            Ok((choice, format!("{why}; QEMU emulates in software")))
        }
        (EngineChoice::Kvm, None) => Ok((Choice::Kvm, "asked for".to_owned())),
        // Asked for by name, it gets its chance: some guests do run there.
        (EngineChoice::Kvm, Some(why)) if facts.kvm == KvmFact::Emulated => {
            Ok((Choice::Kvm, format!("asked for, although {why}")))
        }
        (EngineChoice::Kvm, Some(why)) => Err(Error::KvmUnusable(why)),
        (EngineChoice::Qemu, None) => Ok((on_qemu(None)?, "asked for; with KVM".to_owned())),
        (EngineChoice::Qemu, Some(why)) => {
            Ok((on_qemu(None)?, format!("asked for; in software, because {why}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: EngineChoice, kvm: &KvmFact, qemu: bool, expected: &str) {
        let qemu = qemu.then(|| PathBuf::from("/q"));
        let text = match choose_engine(wanted, &HostFacts { kvm: kvm.clone(), qemu }) {
            Ok((Choice::Kvm, why)) => format!("kvm: {why}"),
            Ok((Choice::Qemu { kvm: true, .. }, why)) => format!("qemu+kvm: {why}"),
            Ok((Choice::Qemu { kvm: false, .. }, why)) => format!("qemu+tcg: {why}"),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn every_wish_on_every_host() {
        use EngineChoice::{Auto, Kvm, Qemu};
        let (full, emulated) = (KvmFact::Full, KvmFact::Emulated);
        let broken = KvmFact::Broken("there is no /dev/kvm".to_owned());
        for (wanted, kvm, qemu, expected) in [
            (Auto, &full, true, "kvm: KVM works here"),
            (Auto, &full, false, "kvm: KVM works here"),
            (
                Auto,
                &emulated,
                true,
                "qemu+tcg: KVM here emulates guest kernels incompletely; QEMU emulates in software",
            ),
            (
                Auto,
                &emulated,
                false,
                "error: `qemu-system-x86_64` is not installed, and KVM here emulates guest kernels incompletely",
            ),
            (Auto, &broken, true, "qemu+tcg: there is no /dev/kvm; QEMU emulates in software"),
            (
                Auto,
                &broken,
                false,
                "error: `qemu-system-x86_64` is not installed, and there is no /dev/kvm",
            ),
            (Kvm, &full, true, "kvm: asked for"),
            (
                Kvm,
                &emulated,
                true,
                "kvm: asked for, although KVM here emulates guest kernels incompletely",
            ),
            (
                Kvm,
                &broken,
                true,
                "error: this host cannot run the kvm engine: there is no /dev/kvm",
            ),
            (Qemu, &full, true, "qemu+kvm: asked for; with KVM"),
            (Qemu, &full, false, "error: `qemu-system-x86_64` is not installed"),
            (
                Qemu,
                &emulated,
                true,
                "qemu+tcg: asked for; in software, because KVM here emulates guest kernels incompletely",
            ),
            (Qemu, &broken, true, "qemu+tcg: asked for; in software, because there is no /dev/kvm"),
            (Qemu, &broken, false, "error: `qemu-system-x86_64` is not installed"),
        ] {
            check(wanted, kvm, qemu, expected);
        }
    }
}
