//! YAML as PyYAML reads it, written as JSON that PyYAML reads as the same.

use serde_json::{Map, Number, Value as Json};

use bootyard_yaml::{self as yaml, Mark, Node, Value};

/// Why a text has no such JSON: the line, what stands there, and what helps.
#[derive(Debug)]
pub(crate) struct NoJson {
    pub(crate) line: usize,
    pub(crate) what: String,
    pub(crate) hint: Option<String>,
}

/// What a text in YAML says; null if it says nothing.
pub(crate) fn read(text: &str) -> Result<Json, NoJson> {
    let document = yaml::document(text).map_err(|flaw| NoJson {
        line: flaw.mark.line,
        what: flaw.what,
        hint: flaw.hint,
    })?;
    document.root.map_or(Ok(Json::Null), |root| json(&root))
}

fn json(node: &Node) -> Result<Json, NoJson> {
    match &node.value {
        Value::Null => Ok(Json::Null),
        Value::Bool(value) => Ok(Json::Bool(*value)),
        Value::Text(text) => Ok(Json::String(text.text.clone())),
        Value::Int(value) => {
            let signed = value.and_then(|value| i64::try_from(value).ok()).map(Number::from);
            let unsigned = value.and_then(|value| u64::try_from(value).ok()).map(Number::from);
            let number = signed.or(unsigned);
            number.map(Json::Number).ok_or_else(|| refused(node.mark, "a number beyond 64 bits"))
        }
        Value::Float(value) => {
            let number = Number::from_f64(*value).filter(is_plain);
            number.map(Json::Number).ok_or_else(|| refused(node.mark, "a number with an exponent"))
        }
        Value::List(items) => items.iter().map(|item| json(item)).collect(),
        Value::Map(entries) => {
            let mut map = Map::new();
            for entry in entries {
                let key = match &entry.key.value {
                    Value::Text(text) => text.text.clone(),
                    // Public keys are numbered; cloud-init minds their numbers as little as names.
                    Value::Int(Some(number)) => number.to_string(),
                    _ => {
                        let what = format!("{} as a key", entry.key.kind());
                        return Err(refused(entry.key.mark, &what));
                    }
                };
                map.insert(key, json(&entry.value)?);
            }
            Ok(Json::Object(map))
        }
        _ => Err(refused(node.mark, node.kind())),
    }
}

/// PyYAML takes `1e22` for a text.
fn is_plain(number: &Number) -> bool {
    !number.to_string().contains('e')
}

fn refused(mark: Mark, what: &str) -> NoJson {
    NoJson {
        line: mark.line,
        what: format!("{what}, which JSON has no form for"),
        hint: Some("put it in quotes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "PyYAML, which cloud-init uses, is the oracle")]

    use std::process::Command;

    use bootyard_testkit::{require_tool, run};

    use super::*;

    const SAME: &str = "import sys, yaml\n\
        print(yaml.safe_load(open(sys.argv[1])) == yaml.safe_load(open(sys.argv[2])))";

    #[test]
    fn pyyaml_reads_the_json_as_it_reads_the_yaml() {
        if !require_tool("python3") {
            return;
        }
        for text in [
            "mode: 0755\nhex: 0x10\nyesno: yes\noffs: [no, on, y, ~, null]\n",
            "f: 1.5\ng: 1.10\nh: -.5\nbig: 18446744073709551615\nneg: -9223372036854775808\n",
            "text: 0o17\nalso: 1e22\nsix: 1:30\nblock: |\n  a\n  b\n\"a\": \"\\u00e4\\t\"\n",
            "a: &x {b: 1}\nc: {<<: *x, d: 2}\nd: 1\nd: 2\n",
            "{\"uuid\": \"i-1\", \"n\": {\"a\": [true, false, null, 1.0]}}",
            "",
        ] {
            let file = |content: &str| {
                let file = tempfile::NamedTempFile::new().unwrap();
                fs_err::write(file.path(), content).unwrap();
                file
            };
            let (yaml, json) = (file(text), file(&read(text).unwrap().to_string()));
            let same =
                run(Command::new("python3").args(["-c", SAME]).args([yaml.path(), json.path()]));
            assert_eq!(same.trim(), "True", "{text}");
        }
    }

    #[test]
    fn what_json_cannot_say_is_refused_with_its_line() {
        for (text, line, what) in [
            ("a: 1\nb: 12345678901234567890123\n", 2, "a number beyond 64 bits"),
            ("a: 1.0e+22\n", 1, "a number with an exponent"),
            ("a: .inf\n", 1, "a number with an exponent"),
            ("a: 2026-01-02\n", 1, "a date"),
            ("a: !!binary aGk=\n", 1, "bytes"),
            ("\nno: a\n", 2, "a boolean as a key"),
            ("a: [\n", 1, ""),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.what.starts_with(what), "{text}: {}", error.what);
        }
    }
}
