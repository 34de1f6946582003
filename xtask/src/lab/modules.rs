//! In which order kernel modules load: a reading of depmod's `modules.dep` (modules.dep(5)).

use anyhow::{Context as _, Result};

/// The paths of the modules and of all that they need, each behind what it needs.
pub(super) fn load_order<'a>(dep: &'a str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for name in wanted {
        let (path, needs) = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| is_named(path, name))
            .with_context(|| format!("the kernel has no module `{name}`"))?;
        // The file lists a module's needs so that each stands before its own needs.
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// Whether the file at `path` is the module `name`; hyphen and underscore are the same to Linux.
fn is_named(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/kvm-amd.ko: kernel/a/kvm.ko kernel/b/irqbypass.ko kernel/c/ccp.ko\n\
                       kernel/a/kvm.ko: kernel/b/irqbypass.ko\n\
                       kernel/b/irqbypass.ko:\n\
                       kernel/d/tun.ko.xz:\n";

    #[test]
    fn each_module_stands_once_and_behind_its_needs() {
        let order = load_order(DEP, &["tun", "kvm_amd", "kvm"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/d/tun.ko.xz",
                "kernel/c/ccp.ko",
                "kernel/b/irqbypass.ko",
                "kernel/a/kvm.ko",
                "kernel/a/kvm-amd.ko"
            ]
        );
    }

    #[test]
    fn an_absent_module_is_named() {
        let error = load_order(DEP, &["kv"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module `kv`");
    }
}
