//! What is said about each problem that a schema has with a document, and what helps.

use bootyard_spec::near_word;

use super::finding::Code;
use super::schema::{Problem, Schema, What, shortened};
use super::text::Report;

/// The report of a problem. `schema` is asked where a misplaced key would belong.
pub(super) fn report(problem: &Problem, schema: Schema) -> Report {
    let path = &problem.path;
    let named = |what: &str| match path.is_empty() {
        true => what.to_owned(),
        false => format!("`{path}`: {what}"),
    };
    let report = match &problem.what {
        What::UnknownKey { key, known } => unknown_key(key, known, path, schema),
        What::KeyType { got } => {
            Report::error(Code::WrongType, format!("expected text as a key, got {got}"))
                .hint("quote the key")
        }
        What::Type { expected, got } => {
            let types = list(expected.iter().map(|name| type_name(name).to_owned()), "or");
            Report::error(Code::WrongType, named(&format!("expected {types}, got {got}")))
                .hint_if(type_hint(expected, got))
        }
        What::Value { expected, got } => {
            let values = list(expected.iter().cloned(), "or");
            let near = near_word(
                got.trim_matches('`'),
                expected.iter().map(|value| value.trim_matches('`')),
            );
            Report::error(Code::WrongValue, named(&format!("expected {values}, got {got}")))
                .hint_if(near.map(|near| format!("did you mean `{near}`?")))
        }
        What::MissingKey { keys } => {
            let keys = list(keys.iter().map(|key| format!("`{key}`")), "or");
            Report::error(Code::MissingKey, named(&format!("the key {keys} is missing")))
        }
        What::TooManyKeys { keys } => {
            let keys = list(keys.iter().map(|key| format!("`{key}`")), "and");
            Report::error(Code::TooManyKeys, named(&format!("{keys} exclude each other")))
        }
        What::Pattern { pattern } => Report::error(
            Code::WrongValue,
            named(&format!("expected a text of the form `{pattern}`")),
        ),
        What::Range { expected, unit } => {
            let plural = if unit.is_empty() || expected.ends_with(" 1") { "" } else { "s" };
            let words = format!("expected {expected} {unit}{plural}");
            Report::error(Code::WrongValue, named(words.trim_end()))
        }
        What::Repeated => Report::error(Code::WrongValue, named("this stands twice in its list")),
        What::Refused => Report::error(Code::WrongValue, named("this value is not allowed here")),
        What::Deprecated { version, description } => deprecated(path, version, description),
    };
    report.at(problem.mark).path(path.clone())
}

fn unknown_key(key: &str, known: &[&str], path: &str, schema: Schema) -> Report {
    let shown = shortened(key);
    let parent = path.strip_suffix(&shown).unwrap_or_default().trim_end_matches('.');
    let what = match parent.is_empty() {
        true => format!("cloud-init knows no key `{shown}`"),
        false => format!("`{parent}` takes no key `{shown}`"),
    };
    let report = Report::error(Code::UnknownKey, what);
    if let Some(near) = near_word(key, known.iter().copied()) {
        return report.hint(format!("did you mean `{near}`?"));
    }
    let top = schema.root().get("properties");
    if schema == Schema::CloudConfig
        && !parent.is_empty()
        && top.is_some_and(|top| top.get(key).is_some())
    {
        return report.hint(format!("`{key}` belongs to the top level: indent it less"));
    }
    const LISTED: usize = 12;
    if (1..=LISTED).contains(&known.len()) {
        return report
            .hint(format!("it takes {}", list(known.iter().map(|key| format!("`{key}`")), "and")));
    }
    report
}

fn deprecated(path: &str, version: &str, description: &str) -> Report {
    let since = match version {
        "" => String::new(),
        version => format!(" since cloud-init {version}"),
    };
    let report = Report::warning(Code::Deprecated, format!("`{path}` is deprecated{since}"));
    match plain(description) {
        hint if hint.is_empty() => report,
        hint => report.hint(hint),
    }
}

/// The schemas' descriptions are reStructuredText.
fn plain(description: &str) -> String {
    let text = description.replace("``", "`").replace("**", "`");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    bootyard_yaml::lower(&text)
}

fn type_name(name: &str) -> &str {
    match name {
        "string" => "text",
        "array" => "a list",
        "object" => "a mapping",
        "boolean" => "a boolean",
        "integer" => "a whole number",
        "number" => "a number",
        "null" => "nothing",
        other => other,
    }
}

/// What YAML makes of things written without quotes or dashes.
fn type_hint(expected: &[&str], got: &str) -> Option<&'static str> {
    let takes = |name| expected.contains(&name);
    match got {
        "a boolean" if takes("string") => {
            Some("quote it: without quotes YAML takes it for true or false")
        }
        "a number" | "a date" if takes("string") => {
            Some("quote it: without quotes YAML takes it for something else than text")
        }
        "text" if takes("array") => Some("make it a list: begin each item with `- `"),
        "text" if takes("boolean") => Some("write `true` or `false` without quotes"),
        "text" if takes("integer") => Some("write the number without quotes"),
        "a mapping" if takes("array") => Some("make it a list: begin each item with `- `"),
        "a mapping" if takes("string") => Some("a text with `: ` in it needs quotes"),
        "nothing" => Some("give it a value, or remove the key"),
        _ => None,
    }
}

/// `a`, `b` or `c`.
fn list(words: impl Iterator<Item = String>, last: &str) -> String {
    let words: Vec<String> = words.collect();
    match words.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [many @ .., end] => format!("{} {last} {end}", many.join(", ")),
    }
}

/// Whether one of the words was likely meant.
pub(super) fn is_near(word: &str, known: &[&str]) -> bool {
    near_word(word, known.iter().copied()).is_some()
}
