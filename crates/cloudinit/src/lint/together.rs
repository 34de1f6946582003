//! What the cloud-configs of one seed take from each other: cloud-init replaces, key by key, what the
//! parts before said, unless a part says how to merge (`merge_how`, `Merge-Type`).

use std::collections::HashMap;
use std::rc::Rc;

use super::finding::{Code, Finding, Severity};
use crate::Format;
use crate::parts::Parts;
use bootyard_yaml::{self as yaml, Node, Value};

/// What was said under each key before: the name of the piece, and the value.
type Said = HashMap<String, (String, Value)>;

/// Lists and mappings of the earlier pieces that are lost to the later ones, as findings of the later
/// piece, by its number.
pub fn check_together(pieces: &[(&str, &[u8])]) -> Vec<(usize, Finding)> {
    let mut found = Vec::new();
    let mut said = Said::new();
    for (number, (name, content)) in pieces.iter().enumerate() {
        let parts = Parts::of(content).parts;
        let is_alone = parts.len() == 1 && parts[0].content == **content;
        let says_how = content.to_ascii_lowercase().windows(11).any(|word| word == b"merge-type:");
        let configs = parts.iter().zip(1..);
        for (part, at) in configs.filter(|(part, _)| part.format == Some(Format::CloudConfig)) {
            let Some(root) = read(&part.content) else { continue };
            let place = (!is_alone).then(|| format!("part {at}"));
            let label = place.as_ref().map_or((*name).to_owned(), |part| format!("{name}, {part}"));
            let lost = replaced(&root, &label, &mut said);
            if !says_how && root.get("merge_how").or(root.get("merge_type")).is_none() {
                let lost = lost.into_iter().map(|lost| Finding { part: place.clone(), ..lost });
                found.extend(
                    lost.map(|lost| (number, if is_alone { lost } else { placeless(lost) })),
                );
            }
        }
    }
    found.truncate(super::FINDINGS_MAX);
    found
}

fn read(content: &[u8]) -> Option<Rc<Node>> {
    yaml::document(std::str::from_utf8(content).ok()?).ok()?.root
}

/// The keys that replace a list or mapping of an earlier piece.
fn replaced(root: &Node, label: &str, said: &mut Said) -> Vec<Finding> {
    let mut found = Vec::new();
    for entry in root.entries() {
        let (Some(key), value) = (entry.key.text(), &entry.value.value) else { continue };
        let before = said.insert(key.to_owned(), (label.to_owned(), value.clone()));
        let Some((first, lost)) = before.filter(|(_, lost)| is_lost(lost, value)) else { continue };
        let what = if matches!(lost, Value::List(_)) { "list" } else { "mapping" };
        found.push(Finding {
            code: Code::DuplicateKey,
            severity: Severity::Warning,
            message: format!("`{key}` stands in `{first}` too: the {what} there is lost"),
            hint: Some(HINT.to_owned()),
            line: Some(entry.key.mark.line),
            column: Some(entry.key.mark.column),
            width: entry.key.mark.width,
            path: key.to_owned(),
            part: None,
            excerpt: None,
        });
    }
    found
}

/// The lines of a part are not those of its file.
fn placeless(finding: Finding) -> Finding {
    Finding { line: None, column: None, ..finding }
}

const HINT: &str =
    "join the two, or add the line `merge_how: dict(no_replace,recurse_list)+list(append)+str()`";

/// A scalar that is said again is meant to be replaced.
fn is_lost(before: &Value, now: &Value) -> bool {
    match before {
        Value::List(items) => !items.is_empty() && before != now,
        Value::Map(entries) => !entries.is_empty() && before != now,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pieces: &[&str]) -> Vec<String> {
        let names = ["a", "b", "c"];
        let pieces: Vec<_> =
            names.iter().zip(pieces).map(|(name, text)| (*name, text.as_bytes())).collect();
        let found = check_together(&pieces);
        found
            .into_iter()
            .map(|(number, finding)| format!("{number}:{:?} {}", finding.line, finding.message))
            .collect()
    }

    #[test]
    fn a_list_that_a_later_piece_replaces_is_told() {
        let (a, b) = ("#cloud-config\nruncmd: [a]\n", "#cloud-config\nx: 1\nruncmd: [b]\n");
        let lost = "1:Some(3) `runcmd` stands in `a` too: the list there is lost";
        assert_eq!(said(&[a, b]), [lost]);
        assert_eq!(said(&[a, "#!/bin/sh\n", b])[0], lost.replacen('1', "2", 1));
        for second in [
            a,
            "#cloud-config\nbootcmd: [b]\n",
            "#cloud-config\nmerge_how: list(append)+dict()+str()\nruncmd: [b]\n",
            "#!/bin/sh\nruncmd: [b]\n",
        ] {
            assert_eq!(said(&[a, second]), [""; 0], "{second}");
        }
        let scalars = ["#cloud-config\ntimezone: UTC\n", "#cloud-config\ntimezone: CET\n"];
        assert_eq!(said(&scalars), [""; 0]);
    }

    #[test]
    fn the_parts_of_one_document_replace_each_other_too() {
        let part = "Content-Type: text/cloud-config\n";
        let document = |header: &str| {
            format!(
                "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n{part}\n\
                 #cloud-config\nusers: [{{name: a}}]\n--b\n{part}{header}\n#cloud-config\n\
                 users: [{{name: b}}]\n--b--\n"
            )
        };
        assert_eq!(
            said(&[&document("")]),
            ["0:None `users` stands in `a, part 1` too: the list there is lost"]
        );
        assert_eq!(
            said(&[&document("Merge-Type: list(append)+dict(recurse_array)+str()\n")]),
            [""; 0]
        );
    }
}
