//! Which crate may know which: the arrows of ARCHITECTURE.md.

use cargo_metadata::{DependencyKind, Metadata};

/// A dependency between two packages of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dependency {
    from: String,
    to: String,
    is_for_tests: bool,
}

/// A crate, and the crates of ours that it may depend on. The binary may depend on all but
/// [`TEST_ONLY`].
const ARROWS: &[(&str, &[&str])] = &[
    ("bootyard-spec", &[]),
    ("bootyard-image", &[]),
    ("bootyard-usernet", &[]),
    ("bootyard-source", &["bootyard-spec"]),
    ("bootyard-yaml", &[]),
    ("bootyard-cloudinit", &["bootyard-spec", "bootyard-yaml"]),
    ("bootyard-manifest", &["bootyard-spec", "bootyard-yaml"]),
    ("bootyard-volume", &["bootyard-image", "bootyard-spec"]),
    ("bootyard-bootload", &["bootyard-image"]),
    ("bootyard-import", &["bootyard-source", "bootyard-image", "bootyard-volume", "bootyard-spec"]),
    ("bootyard-vmm", &["bootyard-image", "bootyard-usernet", "bootyard-bootload"]),
    (
        "bootyard-supervise",
        &["bootyard-volume", "bootyard-cloudinit", "bootyard-bootload", "bootyard-spec"],
    ),
    (
        "bootyard-serve",
        &[
            "bootyard-import",
            "bootyard-supervise",
            "bootyard-manifest",
            "bootyard-source",
            "bootyard-volume",
            "bootyard-spec",
        ],
    ),
    (TEST_ONLY, &[]),
    ("bootyard-tests", &[]),
    ("xtask", &[TEST_ONLY]),
];

const BINARY: &str = "bootyard";

/// The crate that only tests and this automation may depend on.
const TEST_ONLY: &str = "bootyard-testkit";

/// The dependencies among the workspace's packages.
pub(super) fn dependencies(metadata: &Metadata) -> Vec<Dependency> {
    let ours: Vec<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let mut dependencies = Vec::new();
    for package in &metadata.packages {
        let inner = package.dependencies.iter().filter(|d| ours.contains(&d.name.as_str()));
        dependencies.extend(inner.map(|dependency| Dependency {
            from: package.name.to_string(),
            to: dependency.name.clone(),
            is_for_tests: dependency.kind == DependencyKind::Development,
        }));
    }
    dependencies
}

/// The dependencies that no arrow allows. A test may use any crate, but none below may use the
/// binary.
pub(super) fn findings(dependencies: &[Dependency]) -> Vec<String> {
    let mut findings = Vec::new();
    for Dependency { from, to, is_for_tests } in dependencies {
        let arrow = ARROWS.iter().find(|(name, _)| name == from);
        let is_allowed = match arrow {
            _ if *is_for_tests => to != BINARY,
            Some((_, allowed)) => allowed.contains(&to.as_str()),
            None => from == BINARY && to != TEST_ONLY,
        };
        if !is_allowed {
            let kind = if *is_for_tests { "its tests" } else { "it" };
            findings.push(format!("{from}: {kind} must not depend on `{to}` (ARCHITECTURE.md)"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, to: &str, is_for_tests: bool) -> usize {
        findings(&[Dependency { from: from.to_owned(), to: to.to_owned(), is_for_tests }]).len()
    }

    #[test]
    fn arrows_point_down() {
        for (from, to, findings) in [
            ("bootyard-import", "bootyard-volume", 0),
            ("bootyard-volume", "bootyard-import", 1),
            ("bootyard-supervise", "bootyard-vmm", 1),
            ("bootyard", "bootyard-vmm", 0),
            ("bootyard", "bootyard-testkit", 1),
            ("bootyard-unheard-of", "bootyard-spec", 1),
            ("xtask", "bootyard-spec", 1),
        ] {
            assert_eq!(check(from, to, false), findings, "{from} → {to}");
        }
    }

    #[test]
    fn tests_may_look_across() {
        assert_eq!(check("bootyard-volume", "bootyard-testkit", true), 0);
        assert_eq!(check("bootyard-volume", "bootyard-import", true), 0);
        assert_eq!(check("bootyard-volume", "bootyard", true), 1);
    }
}
