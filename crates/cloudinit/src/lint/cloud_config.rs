//! cloud-config: read, held against the schema, and then looked at for what no schema sees.

use std::rc::Rc;

use super::finding::Code;
use super::schema::{self, Schema};
use super::text::{Report, Source};
use super::words;
use bootyard_yaml::{self as yaml, Entry, FlawKind, Mark, Node, Value};

/// A cloud-config.
pub(super) fn check(source: &mut Source<'_>) {
    if let Some(document) = read(source) {
        check_document(source, &document);
    }
}

/// What is left of a template with statements: both branches of each `if`, and each loop's body once.
/// That it is no YAML then means nothing.
pub(super) fn check_template(source: &mut Source<'_>) {
    match yaml::document(source.text) {
        Ok(document) => {
            if let Some(root) = document.root {
                check_document(source, &root);
            }
        }
        Err(flaw) => {
            let what = "this template cannot be judged before it is rendered";
            let report = Report::warning(Code::Template, what).at(flaw.mark);
            source.push(
                report.hint(
                    "render it, with `cloud-init devel render FILE` in a guest, and lint that",
                ),
            );
        }
    }
}

/// The document, unless there is none; what is wrong with the YAML is reported.
pub(super) fn read(source: &mut Source<'_>) -> Option<Rc<Node>> {
    let document = match yaml::document(source.text) {
        Ok(document) => document,
        Err(flaw) => {
            source.push(flawed(&flaw));
            return None;
        }
    };
    if let Some(root) = &document.root {
        source.hide_secrets(root);
    }
    for flaw in &document.flaws {
        source.push(flawed(flaw));
    }
    let root = document.root.filter(|root| root.value != Value::Null);
    if root.is_none() {
        let report = Report::warning(Code::Empty, "there is nothing in it").at(Mark::at(1, 1));
        source.push(report);
    }
    root
}

fn flawed(flaw: &yaml::Flaw) -> Report {
    let report = match flaw.kind {
        FlawKind::Syntax => Report::error(Code::Yaml, flaw.what.clone()),
        FlawKind::Tab => Report::error(Code::Tab, flaw.what.clone()),
        FlawKind::Duplicate => Report::warning(Code::DuplicateKey, flaw.what.clone()),
    };
    report.at(flaw.mark).hint_if(flaw.hint.clone())
}

fn check_document(source: &mut Source<'_>, document: &Node) {
    source.hide_secrets(document);
    if !matches!(document.value, Value::Map(_)) {
        let what =
            format!("expected a mapping of keys such as `packages`, got {}", document.kind());
        return source.push(Report::error(Code::NotAMapping, what).at(document.mark));
    }
    for problem in schema::check(Schema::CloudConfig, document) {
        source.push(words::report(&problem, Schema::CloudConfig));
    }
    check_passwords(source, document);
    check_private_keys(source, document);
    check_templates(source, document);
}

/// `#cloud-config-jsonp`: a JSON patch (RFC 6902).
pub(super) fn check_patch(source: &mut Source<'_>) {
    // Blank lines may come before the header.
    let blank = source.text.lines().take_while(|line| line.trim().is_empty()).count();
    let before = blank + 1;
    let text = source.text.splitn(before + 1, '\n').nth(before).unwrap_or_default();
    let report = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Array(_)) => return,
        Ok(_) => Report::error(Code::NotAMapping, "expected a list of operations")
            .at(Mark::at(before + 1, 1)),
        Err(error) => {
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default().to_owned();
            let mark = Mark::at(error.line() + before, error.column().max(1));
            Report::error(Code::Yaml, format!("a JSON patch has to be JSON: {what}")).at(mark)
        }
    };
    source.push(report);
}

const READABLE: &str = "everyone who sees the seed can read it";

fn check_passwords(source: &mut Source<'_>, document: &Node) {
    let hash_it = "give its hash, as `mkpasswd --method=SHA-512` prints it, or use SSH keys";
    if let Some(entry) = plain_under(document, "password") {
        let what = format!("`password` is given in plain text: {READABLE}");
        source.push(password(entry, "password", what).hint(hash_it));
    }
    let users = document.get("users").map_or(&[][..], Node::items);
    let users =
        users.iter().enumerate().map(|(number, user)| (format!("users[{number}]"), &**user));
    let user = document.get("user").map(|user| ("user".to_owned(), user));
    for (path, user) in users.chain(user) {
        for key in ["plain_text_passwd", "plain-text-passwd"] {
            if let Some(entry) = plain_under(user, key) {
                let path = format!("{path}.{key}");
                let what = format!("`{path}` is a password in plain text: {READABLE}");
                source.push(
                    password(entry, &path, what).hint("give its hash as `passwd`, or use SSH keys"),
                );
            }
        }
        for key in ["passwd", "hashed_passwd", "hashed-passwd"] {
            if let Some(entry) = plain_under(user, key) {
                let path = format!("{path}.{key}");
                let what =
                    format!("`{path}` is no hash: nobody can log in with it, and {READABLE}");
                source.push(password(entry, &path, what).hint(hash_it));
            }
        }
    }
    if let Some(chpasswd) = document.get("chpasswd") {
        check_chpasswd(source, chpasswd, hash_it);
    }
}

fn check_chpasswd(source: &mut Source<'_>, chpasswd: &Node, hash_it: &str) {
    let users = chpasswd.get("users").map_or(&[][..], Node::items);
    for (number, user) in users.iter().enumerate() {
        let is_text = user.get("type").and_then(Node::text) == Some("text");
        let Some(entry) = plain_under(user, "password") else { continue };
        let path = format!("chpasswd.users[{number}].password");
        let what = match is_text {
            true => format!("`{path}` is given in plain text: {READABLE}"),
            false => format!("`{path}` is no hash, but `type` does not say `text`; and {READABLE}"),
        };
        source.push(password(entry, &path, what).hint(hash_it));
    }
    let Some(list) = chpasswd.entry("list") else { return };
    let lines: Vec<&str> = match &list.value.value {
        Value::Text(text) => text.text.lines().collect(),
        _ => list.value.items().iter().filter_map(|item| item.text()).collect(),
    };
    let is_plain = |line: &&&str| {
        let password = line.split_once(':').map(|(_, password)| password.trim());
        password.is_some_and(|password| !matches!(password, "R" | "RANDOM") && is_plain(password))
    };
    match lines.iter().filter(is_plain).count() {
        0 => {}
        count => {
            let words = if count == 1 { "a password" } else { "passwords" };
            let what = format!("`chpasswd.list` has {words} in plain text: {READABLE}");
            source.push(password(list, "chpasswd.list", what).hint(hash_it));
        }
    }
}

/// The mark is the key's: the line shown then needs no secret.
fn password(entry: &Entry, path: &str, what: String) -> Report {
    Report::warning(Code::PlainPassword, what).at(entry.key.mark).path(path)
}

fn plain_under<'a>(node: &'a Node, key: &str) -> Option<&'a Entry> {
    let entry = node.entry(key)?;
    let is_password = match &entry.value.value {
        Value::Text(text) => is_plain(&text.text) && !matches!(text.text.as_str(), "R" | "RANDOM"),
        Value::Int(_) | Value::Float(_) => true,
        _ => false,
    };
    is_password.then_some(entry)
}

/// What crypt(5) gives begins with `$` or `_`, or has 13 characters of its alphabet; `*` and `!` lock
/// an account (shadow(5)).
fn is_plain(password: &str) -> bool {
    let is_des = password.len() == 13
        && password.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/')
        // A word of 13 letters is none of DES's.
        && password.bytes().any(|b| !b.is_ascii_lowercase());
    let is_modular = password.starts_with('$') && password.matches('$').count() >= 2;
    !(password.is_empty() || is_des || is_modular || password.starts_with(['*', '!', '_']))
}

fn check_private_keys(source: &mut Source<'_>, document: &Node) {
    let users = document.get("users").map_or(&[][..], Node::items);
    let users =
        users.iter().enumerate().map(|(number, user)| (format!("users[{number}]."), &**user));
    for (prefix, holder) in users.chain([(String::new(), document)]) {
        for key in ["ssh_authorized_keys", "ssh-authorized-keys"] {
            let Some(keys) = holder.get(key) else { continue };
            for (number, item) in keys.items().iter().enumerate() {
                if item.text().is_some_and(|text| text.contains("PRIVATE KEY")) {
                    let path = format!("{prefix}{key}[{number}]");
                    let what =
                        format!("`{path}` is a private key, which must not leave your machine");
                    let report = Report::error(Code::PrivateKey, what).at(item.mark).path(path);
                    source.push(report.hint("give the public half, usually the file with `.pub`"));
                }
            }
        }
    }
}

/// Names with which instance data begins: nothing else is likely to mean `{{ v1.…`.
const INSTANCE_DATA: [&str; 4] = ["v1.", "ds.", "v1[", "ds["];

fn check_templates(source: &mut Source<'_>, document: &Node) {
    let text = source.text;
    let found = text.lines().zip(1..).find_map(|(line, number)| {
        if line.trim_start().starts_with('#') {
            return None;
        }
        let at = line.match_indices("{{").find(|(at, _)| {
            let inner = line[at + 2..].trim_start_matches(['-', ' ']);
            INSTANCE_DATA.iter().any(|name| inner.starts_with(name))
        })?;
        Some((number, line[..at.0].chars().count() + 1))
    });
    // In the remains of a template there are none.
    let (Some((line, column)), Value::Map(_)) = (found, &document.value) else { return };
    let what = "an expression of Jinja, which is not rendered without the header";
    let report =
        Report::warning(Code::Template, what).at(Mark { width: 2, ..Mark::at(line, column) });
    source.push(report.hint("make `## template: jinja` the first line, before `#cloud-config`"));
}
