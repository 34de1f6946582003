//! A text under scrutiny: where it stands in its file, and how findings about it are reported without
//! showing what is secret.

use std::cell::OnceCell;

use super::finding::{Code, Finding, Severity};
use bootyard_yaml::{Mark, Node, Value};

/// Where a text stands in the file that was given.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// Which piece of the file it is; `None` if it is the file.
    pub(super) part: Option<String>,
    /// How many lines and columns of the file come before it, as far as its lines are the file's.
    pub(super) lines: usize,
    pub(super) columns: usize,
}

/// What is said about a text.
#[derive(Debug)]
pub(super) struct Report {
    code: Code,
    severity: Severity,
    message: String,
    hint: Option<String>,
    mark: Option<Mark>,
    path: String,
}

impl Report {
    fn new(code: Code, severity: Severity, message: String) -> Self {
        Self { code, severity, message, hint: None, mark: None, path: String::new() }
    }

    pub(super) fn error(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, Severity::Error, message.into())
    }

    pub(super) fn warning(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, Severity::Warning, message.into())
    }

    pub(super) fn at(self, mark: Mark) -> Self {
        Self { mark: Some(mark), ..self }
    }

    pub(super) fn path(self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(super) fn hint_if(self, hint: Option<impl Into<String>>) -> Self {
        Self { hint: hint.map(Into::into), ..self }
    }
}

/// A text, its place, and the findings of its file.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) place: Place,
    pub(super) findings: &'a mut Vec<Finding>,
    /// Where secrets stand; as long as that is not known, they are looked for in each line.
    secrets: Option<Vec<Mark>>,
    /// The text's lines, once one of them is shown, and whether each belongs to a secret that began in
    /// a line before.
    lines: OnceCell<Vec<(&'a str, bool)>>,
}

impl<'a> Source<'a> {
    pub(super) const fn new(text: &'a str, place: Place, findings: &'a mut Vec<Finding>) -> Self {
        Self { text, place, findings, secrets: None, lines: OnceCell::new() }
    }

    /// A whole file that has to be text.
    pub(super) fn whole(
        content: &[u8],
        findings: &mut Vec<Finding>,
        check: impl FnOnce(&mut Source<'_>),
    ) {
        if let Some(text) = utf8(content, &Place::default(), findings) {
            check(&mut Source::new(text, Place::default(), findings));
        }
    }

    pub(super) fn push(&mut self, report: Report) {
        // The rest of a hostile file is not worth the memory.
        if self.findings.len() > 2 * super::FINDINGS_MAX {
            return;
        }
        let mark = report.mark;
        let excerpt = mark.and_then(|mark| self.excerpt(mark.line));
        self.findings.push(Finding {
            code: report.code,
            severity: report.severity,
            message: report.message,
            hint: report.hint,
            line: mark.map(|mark| mark.line + self.place.lines),
            column: mark.map(|mark| mark.column + self.place.columns),
            width: mark.map_or(1, |mark| mark.width),
            path: report.path,
            part: self.place.part.clone(),
            excerpt,
        });
    }

    /// The line's text without secrets, with as many columns as in the file.
    fn excerpt(&self, line: usize) -> Option<String> {
        let (text, is_hidden) = *self.lines.get_or_init(|| lines(self.text)).get(line - 1)?;
        if text.len() > LINE_MAX {
            return None;
        }
        let text = match &self.secrets {
            Some(marks) => without(text, line, marks),
            None if is_hidden => "…".to_owned(),
            None => guarded(text),
        };
        Some(format!("{}{text}", " ".repeat(self.place.columns)))
    }

    /// Nothing of the text is shown.
    pub(super) fn hide_all(&mut self) {
        self.secrets = Some(vec![Mark { last_line: usize::MAX, ..Mark::at(1, 1) }]);
    }

    /// Notes where the document has passwords and private keys.
    pub(super) fn hide_secrets(&mut self, document: &Node) {
        let mut marks = Vec::new();
        collect(document, false, &mut marks, &mut 0);
        self.secrets = Some(marks);
    }
}

/// Most bytes of a line that is shown. Nobody reads longer ones, and each finding would copy it.
const LINE_MAX: usize = 4096;

/// Whether a text begins with the byte-order mark of UTF-16, as PowerShell writes it.
pub fn is_utf16(content: &[u8]) -> bool {
    content.starts_with(&[0xff, 0xfe]) || content.starts_with(&[0xfe, 0xff])
}

/// The content as text; where it is none, that is reported.
pub(super) fn utf8<'a>(
    content: &'a [u8],
    place: &Place,
    findings: &mut Vec<Finding>,
) -> Option<&'a str> {
    match std::str::from_utf8(content) {
        Ok(text) => Some(text),
        Err(_) if is_utf16(content) => {
            let report = Report::error(Code::NotUtf8, "expected UTF-8, got UTF-16")
                .at(Mark::at(1, 1))
                .hint("convert it, for example with `iconv -f utf-16 -t utf-8`");
            Source::new("", place.clone(), findings).push(report);
            None
        }
        Err(error) => {
            let at = error.valid_up_to();
            let before = std::str::from_utf8(&content[..at]).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let what = format!("expected UTF-8, got the byte 0x{:02x} at offset {at}", content[at]);
            let report = Report::error(Code::NotUtf8, what).at(Mark::at(line, column)).hint(
                "convert it, for example with `iconv -f latin1 -t utf-8`; what is binary goes into \
                 `!!binary`, as base64",
            );
            Source::new("", place.clone(), findings).push(report);
            None
        }
    }
}

/// Names of keys whose values nobody needs to see.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["passw", "secret", "token", "private", "credential"].iter().any(|word| key.contains(word))
        && !key.contains("lock")
        && key != "chpasswd"
}

/// Most nodes that are looked at for secrets; the checks have the same limit.
const LOOKED_AT_MAX: usize = 1 << 20;

fn collect(node: &Node, is_hidden: bool, marks: &mut Vec<Mark>, seen: &mut usize) {
    *seen += 1;
    if *seen > LOOKED_AT_MAX {
        return;
    }
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let key = entry.key.text().unwrap_or_default();
                let is_list = key == "list" && !matches!(entry.value.value, Value::Map(_));
                collect(&entry.key, is_hidden, marks, seen);
                collect(&entry.value, is_hidden || is_secret(key) || is_list, marks, seen);
            }
        }
        Value::List(items) => items.iter().for_each(|item| collect(item, is_hidden, marks, seen)),
        Value::Text(text) if is_hidden || has_credential(&text.text) => marks.push(node.mark),
        Value::Null | Value::Bool(_) | Value::Text(_) => {}
        _ if is_hidden => marks.push(node.mark),
        _ => {}
    }
}

/// Whether a text has a secret within, as commands and configuration files have.
fn has_credential(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let mut before = "";
    lower.contains("private key")
        || ["authorization:", "bearer "].iter().any(|word| lower.contains(word))
        || (is_secret(&lower) && lower.contains([':', '=']))
        || lower.split_whitespace().any(|word| {
            let is_login = matches!(std::mem::replace(&mut before, word), "-u" | "--user");
            let authority = word.split_once("://").map_or(word, |(_, rest)| rest);
            let user = authority.split_once('@').map_or("", |(user, _)| user);
            (is_login && word.contains(':')) || user.contains(':')
        })
}

/// The lines of a text that could not be read as YAML, and which of them continue a private key or the
/// value of a key whose values are secret.
fn lines(text: &str) -> Vec<(&str, bool)> {
    let mut in_key = false;
    // The column of the key whose value goes on below it.
    let mut above = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(column) = above {
            let is_below = indent > column || (indent == column && content.starts_with('-'));
            above = above.filter(|_| is_below || content.is_empty());
        }
        lines.push((line, in_key || above.is_some()));
        if line.contains("PRIVATE KEY") {
            in_key = !line.contains("END ");
        }
        if above.is_none() {
            let key = content.trim_start_matches(['-', ' ']);
            let is_meant =
                key.split_once(':').is_some_and(|(key, _)| is_secret(key) || key == "list");
            above = is_meant.then(|| line.len() - key.len());
        }
    }
    lines
}

/// True of a file with one line that is neither a comment nor a key: likely a password.
pub(crate) fn is_bare(text: &str) -> bool {
    text.trim().lines().count() == 1 && !text.contains([':', '#', '<'])
}

/// A line without what the marks cover.
fn without(text: &str, line: usize, marks: &[Mark]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for mark in
        marks.iter().filter(|mark| (mark.line..=mark.last_line.max(mark.line)).contains(&line))
    {
        let (begin, end) = match mark.line == line {
            true if mark.last_line == line => (mark.column - 1, mark.column - 1 + mark.width),
            true => (mark.column - 1, usize::MAX),
            false => (0, usize::MAX),
        };
        for c in chars.iter_mut().take(end).skip(begin).filter(|c| !c.is_whitespace()) {
            *c = '*';
        }
    }
    chars.into_iter().collect()
}

/// A line without what looks secret, for text that could not be read as YAML.
pub(crate) fn guarded(text: &str) -> String {
    if text.contains("PRIVATE KEY") {
        return "…".to_owned();
    }
    if has_credential(text) || (is_secret(text) && !text.starts_with('#')) {
        return match text.find([':', '=']) {
            Some(at) => format!("{}…", &text[..=at]),
            None => "…".to_owned(),
        };
    }
    let Some((key, value)) = text.split_once(':') else { return text.to_owned() };
    let name = key.rsplit([' ', '{', ',']).next().unwrap_or(key);
    let is_pair = !value.is_empty() && !value.starts_with([' ', '/']) && !name.contains(['"', '/']);
    if is_pair && !text.starts_with('#') {
        return format!("{key}:…");
    }
    text.to_owned()
}
