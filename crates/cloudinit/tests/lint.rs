//! cloud-init's own code as the oracle of the linter: the same documents are refused, and the same
//! keys are named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bootyard_cloudinit::lint::{self, Code, Finding, Kind, Severity};
use bootyard_testkit::{answer, cloud_init, skip, workspace_root};
use serde::Deserialize;

/// What cloud-init says about one document: key and message.
#[derive(Debug, Default, Deserialize)]
struct Verdict {
    errors: Vec<(String, String)>,
    deprecated: Vec<(String, String)>,
}

type Documents = BTreeMap<String, String>;

fn folder() -> PathBuf {
    workspace_root().join("testdata/lint")
}

/// The documents of a file: `### name`, and the lines up to the next.
fn documents(file: &str) -> Documents {
    let text = fs_err::read_to_string(folder().join(file)).expect("the cases");
    let cases =
        text.split("### ").skip(1).map(|case| case.split_once('\n').expect("a line with the name"));
    cases.map(|(name, document)| (name.to_owned(), document.to_owned())).collect()
}

/// Asks cloud-init, by one of our schemas or by its own.
fn ask(documents: &Documents, schema: Option<&str>) -> BTreeMap<String, Verdict> {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let schema = schema.map(|name| schemas.join(name));
    let request = serde_json::json!({ "documents": documents, "schema": schema }).to_string();
    let mut python = cloud_init().expect("the test is skipped without it");
    let answer = answer(python.arg(folder().join("oracle.py")), request.as_bytes());
    serde_json::from_slice(&answer).expect("verdicts as JSON")
}

/// A path as cloud-init writes it: `users.1.passwd`.
fn dotted(path: &str) -> String {
    path.replace('[', ".").replace(']', "").trim_start_matches('.').to_owned()
}

/// What the linter says by the schema: not what it finds besides.
fn found(kind: Kind, document: &str) -> Vec<Finding> {
    let header = if kind == Kind::UserData { "#cloud-config\n" } else { "" };
    let mut findings = lint::check(kind, format!("{header}{document}").as_bytes());
    findings.retain(|finding| finding.code != Code::PlainPassword);
    findings
}

fn paths(findings: &[Finding], severity: Severity) -> BTreeSet<String> {
    let meant = findings.iter().filter(|finding| finding.severity == severity);
    meant.map(|finding| dotted(&finding.path)).collect()
}

/// Whether both name the same keys. cloud-init names the mapping where a key in it is unknown or
/// missing, or where none of several forms fits; the linter then names that key, or one within.
fn agree(ours: &BTreeSet<String>, theirs: &[(String, String)]) -> bool {
    let covers = |outer: &str, inner: &str| {
        outer.is_empty() || inner == outer || inner.starts_with(&format!("{outer}."))
    };
    ours.is_empty() == theirs.is_empty()
        && theirs.iter().all(|(path, _)| ours.iter().any(|ours| covers(path, ours)))
        && ours.iter().all(|ours| theirs.iter().any(|(path, _)| covers(path, ours)))
}

/// The cases of `differences.tsv` in which cloud-init `by` a schema says something else.
fn differences(by: &str) -> BTreeSet<String> {
    let text = fs_err::read_to_string(folder().join("differences.tsv")).expect("the table");
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let rows = rows.map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter(|row| row[0] == by).map(|row| row[1].to_owned()).collect()
}

fn check(
    by: &str,
    kind: Kind,
    severity: Severity,
    documents: &Documents,
    verdicts: &BTreeMap<String, Verdict>,
) {
    let mut different = BTreeSet::new();
    let mut told = String::new();
    for (name, document) in documents {
        let findings = found(kind, document);
        let verdict = &verdicts[name];
        let theirs = match severity {
            Severity::Error => &verdict.errors,
            Severity::Warning => &verdict.deprecated,
        };
        if !agree(&paths(&findings, severity), theirs) {
            told += &format!("{name}: {findings:#?}\n{theirs:#?}\n");
            different.insert(name.clone());
        }
    }
    let known = differences(by);
    let known: BTreeSet<String> =
        known.into_iter().filter(|name| documents.contains_key(name)).collect();
    assert_eq!(different, known, "{told}");
}

#[test]
fn cloud_init_refuses_the_same_documents_for_the_same_keys() {
    if cloud_init().is_none() {
        skip!("no cloud-init; `cargo xtask setup` unpacks it");
    }
    let documents = documents("cloud-config.txt");
    assert!(documents.len() > 140);
    let shipped = ask(&documents, Some("schema-cloud-config-v1.json"));
    check("shipped", Kind::UserData, Severity::Error, &documents, &shipped);
    let debian = ask(&documents, None);
    check("debian", Kind::UserData, Severity::Error, &documents, &debian);
}

#[test]
fn cloud_init_calls_the_same_keys_deprecated() {
    if cloud_init().is_none() {
        skip!("no cloud-init; `cargo xtask setup` unpacks it");
    }
    let documents = documents("deprecated.txt");
    let debian = ask(&documents, None);
    check("debian", Kind::UserData, Severity::Warning, &documents, &debian);
    let shipped = ask(&documents, Some("schema-cloud-config-v1.json"));
    check("shipped", Kind::UserData, Severity::Warning, &documents, &shipped);
}

#[test]
fn cloud_init_refuses_the_same_network_configurations() {
    if cloud_init().is_none() {
        skip!("no cloud-init; `cargo xtask setup` unpacks it");
    }
    let (one, two): (Documents, Documents) =
        documents("network.txt").into_iter().partition(|(name, _)| name.starts_with("v1-"));
    for (documents, schema) in
        [(one, "schema-network-config-v1.json"), (two, "schema-network-config-v2.json")]
    {
        let verdicts = ask(&documents, Some(schema));
        check("shipped", Kind::NetworkConfig, Severity::Error, &documents, &verdicts);
    }
}
