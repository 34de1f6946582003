//! The few documents that we write in YAML ourselves: block style, for people to read, and strings in
//! double quotes, for which every reader of every version of YAML agrees on what they are. Nothing
//! here reads YAML.

use std::fmt::Write as _;

/// A value of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Yaml {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Self>),
    /// In this order.
    Map(Vec<(String, Self)>),
}

impl Yaml {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn texts<T: ToString>(texts: &[T]) -> Self {
        Self::List(texts.iter().map(|text| Self::Text(text.to_string())).collect())
    }

    /// The document, with a line end at its end.
    pub(crate) fn document(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    /// Writes the value as lines that are indented by `depth` levels; a scalar stands on the line
    /// that was begun.
    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Self::Bool(value) => _ = writeln!(out, "{value}"),
            Self::Number(value) => _ = writeln!(out, "{value}"),
            Self::Text(text) => _ = writeln!(out, "{}", quoted(text)),
            Self::List(items) if items.is_empty() => out.push_str("[]\n"),
            Self::Map(entries) if entries.is_empty() => out.push_str("{}\n"),
            Self::List(items) => {
                for item in items {
                    indent(out, depth);
                    out.push_str("- ");
                    item.write_item(out, depth);
                }
            }
            Self::Map(entries) => {
                for (key, value) in entries {
                    indent(out, depth);
                    value.write_entry(key, out, depth);
                }
            }
        }
    }

    /// An item of a list whose `- ` is written: what the item begins with stands
    /// on the same line.
    fn write_item(&self, out: &mut String, depth: usize) {
        match self {
            Self::Map(entries) if !entries.is_empty() => {
                for (number, (key, value)) in entries.iter().enumerate() {
                    if number > 0 {
                        indent(out, depth + 1);
                    }
                    value.write_entry(key, out, depth + 1);
                }
            }
            Self::List(items) if !items.is_empty() => {
                for (number, item) in items.iter().enumerate() {
                    if number > 0 {
                        indent(out, depth + 1);
                    }
                    out.push_str("- ");
                    item.write_item(out, depth + 1);
                }
            }
            _ => self.write(out, depth),
        }
    }

    fn write_entry(&self, key: &str, out: &mut String, depth: usize) {
        if is_plain(key) {
            out.push_str(key);
        } else {
            out.push_str(&quoted(key));
        }
        out.push(':');
        let is_block = match self {
            Self::List(items) => !items.is_empty(),
            Self::Map(entries) => !entries.is_empty(),
            _ => false,
        };
        out.push(if is_block { '\n' } else { ' ' });
        self.write(out, depth + 1);
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// True for a key that is text without quotes, too.
fn is_plain(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    let is_word = key.starts_with(|c: char| c.is_ascii_lowercase()) && key.chars().all(allowed);
    is_word && !matches!(key, "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null")
}

/// A double-quoted scalar (YAML 1.1 §9.1.1). What PyYAML's reader refuses in a document, and what it
/// takes for a line end, is escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let is_printable = matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
            && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            _ if is_printable => out.push(c),
            _ => _ = write!(out, "\\U{:08X}", u32::from(c)),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "PyYAML, which cloud-init uses, is the oracle")]

    use std::process::Command;

    use bootyard_testkit::{require_tool, run};

    use super::*;

    fn map(entries: &[(&str, Yaml)]) -> Yaml {
        Yaml::Map(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
    }

    #[test]
    fn documents_are_blocks_with_quoted_strings() {
        let document = map(&[
            ("version", Yaml::Number(2)),
            (
                "users",
                Yaml::List(vec![
                    Yaml::text("default"),
                    map(&[
                        ("name", Yaml::text("bob")),
                        ("lock_passwd", Yaml::Bool(false)),
                        ("keys", Yaml::texts(&["a", "b"])),
                        ("none", Yaml::List(Vec::new())),
                    ]),
                    Yaml::texts(&["x", "y"]),
                ]),
            ),
            ("empty", map(&[("on", Yaml::Bool(true)), ("1e3", map(&[]))])),
        ]);
        expect_test::expect![[r#"
            version: 2
            users:
              - "default"
              - name: "bob"
                lock_passwd: false
                keys:
                  - "a"
                  - "b"
                none: []
              - - "x"
                - "y"
            empty:
              "on": true
              "1e3": {}
        "#]]
        .assert_eq(&document.document());
    }

    #[test]
    fn pyyaml_reads_every_string_as_it_was() {
        if !require_tool("python3") {
            return;
        }
        let mut texts: Vec<String> = [
            "yes",
            "no",
            "on",
            "null",
            "~",
            "0644",
            "1e3",
            "12:30:45",
            "2026-01-01",
            "",
            " a ",
            "#c",
            "a: b",
            "- a",
            "&a",
            "*a",
            "!t",
            "%d",
            "@x",
            "`",
            "'",
            "\"",
            "\\",
            "{a}",
            "[a]",
            "<<",
            "line\nline\n",
            "\ttab\t",
            "\r\n",
            "ends with \\",
            "Gr\u{fc}\u{df}e \u{1f600}",
            "$6$a$b",
        ]
        .map(str::to_owned)
        .to_vec();
        texts.extend((0..0x300).chain(0x2020..0x2030).filter_map(char::from_u32).map(String::from));
        texts.extend(['\u{feff}', '\u{fffd}', '\u{fffe}', '\u{10ffff}'].map(String::from));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), Yaml::texts(&texts).document()).unwrap();
        let script =
            "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1], 'rb'))))";
        let found = run(Command::new("python3").args(["-c", script]).arg(file.path()));
        assert_eq!(serde_json::from_str::<Vec<String>>(&found).unwrap(), texts);
    }
}
