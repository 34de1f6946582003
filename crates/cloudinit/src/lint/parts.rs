//! User-data of any format, taken apart as cloud-init's `user_data.py` does: gzip, MIME, archives and
//! templates are opened, and each piece is checked by what it is.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use super::finding::{Code, Finding};
use super::mime::{self, Entity};
use super::schema::shortened;
use super::text::{Place, Report, Source, guarded, is_bare, utf8};
use super::{cloud_config, script};
use crate::Format;
use crate::user_data::{GZIP_MAGIC, HEADERS, has_mime_version, loose_header, recognise};
use bootyard_yaml::{self as yaml, Mark, Node, PLACEHOLDER};

/// Deepest nesting of pieces: a template in gzip in MIME in gzip is four.
const DEPTH_MAX: usize = 8;

/// Most bytes that gzip may become. Clouds pass on 16 KiB to 64 KiB; NoCloud knows no limit.
const UNPACKED_MAX: u64 = 16 << 20;

/// Most pieces of one file.
const PIECES_MAX: usize = 1000;

/// Checks a whole file.
pub(super) fn check(content: &[u8], findings: &mut Vec<Finding>) {
    let mut parts = Parts { findings, pieces: 0 };
    parts.whole(content, Place::default(), DEPTH_MAX);
}

struct Parts<'a> {
    findings: &'a mut Vec<Finding>,
    pieces: usize,
}

/// What cloud-init does with a piece whose beginning says nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Headless {
    /// It is ignored.
    Ignored,
    /// It is taken for a cloud-config.
    CloudConfig,
}

impl Parts<'_> {
    fn report(&mut self, place: &Place, report: Report) {
        Source::new("", place.clone(), self.findings).push(report);
    }

    /// A piece that says by its beginning what it is.
    fn whole(&mut self, content: &[u8], place: Place, depth: usize) {
        self.begun(content, place, depth, Headless::Ignored);
    }

    fn begun(&mut self, content: &[u8], place: Place, depth: usize, headless: Headless) {
        match recognise(content) {
            Ok(Format::Gzip) => self.gzip(content, &place, depth, false),
            Ok(format) => {
                if let Some(text) = utf8(content, &place, self.findings) {
                    if let Some(line) = loose_header(content) {
                        let report = loose(format, text, line);
                        Source::new(text, place.clone(), self.findings).push(report);
                    }
                    self.format(format, text, &place, depth);
                }
            }
            Err(_) if headless == Headless::CloudConfig => {
                if let Some(text) = utf8(content, &place, self.findings) {
                    self.untyped(text, place);
                }
            }
            Err(refusal) => {
                let text = utf8(content, &place, self.findings);
                let Some(text) = text else { return };
                let report = match refusal.code {
                    Code::Empty => Report::warning(refusal.code, refusal.what),
                    _ => Report::error(refusal.code, refusal.what),
                };
                let report = report.hint(refusal.hint);
                let at = |line: usize| {
                    let width = text.lines().nth(line - 1).map_or(1, |text| text.chars().count());
                    Mark { width: width.max(1), ..Mark::at(line, 1) }
                };
                let is_first = refusal.code == Code::Bom;
                let line = refusal.line.or(is_first.then_some(1));
                let report = match line {
                    Some(line) if is_first => report.at(Mark::at(line, 1)),
                    Some(line) => report.at(at(line)),
                    None => report,
                };
                let mut source = Source::new(text, place, self.findings);
                if is_bare(text) {
                    source.hide_all();
                }
                source.push(report);
            }
        }
    }

    fn format(&mut self, format: Format, text: &str, place: &Place, depth: usize) {
        self.pieces += 1;
        if depth == 0 || self.pieces > PIECES_MAX {
            let what =
                format!("pieces within pieces, more than {DEPTH_MAX} deep or {PIECES_MAX} of them");
            return self.report(place, Report::error(Code::Packing, what));
        }
        let source = |findings| Source::new(text, place.clone(), findings);
        match format {
            Format::CloudConfig => cloud_config::check(&mut source(self.findings)),
            Format::CloudConfigPatch => cloud_config::check_patch(&mut source(self.findings)),
            Format::Script => script::check(&mut source(self.findings)),
            Format::Boothook => script::check_boothook(&mut source(self.findings)),
            Format::Include | Format::IncludeOnce => check_include(&mut source(self.findings)),
            Format::PartHandler => {}
            Format::CloudConfigArchive => self.archive(text, place, depth),
            Format::Jinja => self.template(text, place, depth),
            Format::Mime => self.mime(text, place, depth),
            // What is text is not compressed.
            Format::Gzip => {}
        }
    }

    /// `is_part` of what is within a MIME document or an archive.
    fn gzip(&mut self, content: &[u8], place: &Place, depth: usize, is_part: bool) {
        let mut bytes = Vec::new();
        let read = unpack(content, &mut bytes);
        let report = match read {
            Err(error) => format!("gzip that cannot be unpacked: {error}"),
            Ok(_) if bytes.len() as u64 > UNPACKED_MAX => {
                format!("gzip that unpacks to more than {} MiB", UNPACKED_MAX >> 20)
            }
            Ok(_) if depth == 0 || bytes.starts_with(GZIP_MAGIC) => {
                "gzip within gzip, which cloud-init does not open".to_owned()
            }
            Ok(_) if is_part && has_mime_version(&bytes) => {
                "a MIME document within gzip, which cloud-init opens only if it stands alone"
                    .to_owned()
            }
            Ok(_) => {
                let part = Some(within(place, "unpacked"));
                return self.whole(&bytes, Place { part, lines: 0, columns: 0 }, depth - 1);
            }
        };
        self.report(place, Report::error(Code::Packing, report));
    }

    /// A Jinja template: what it becomes is not known, but what stands round the expressions is.
    fn template(&mut self, text: &str, place: &Place, depth: usize) {
        let body = text.split_once('\n').map_or("", |(_, body)| body);
        let mut place = Place { lines: place.lines + 1, ..place.clone() };
        let remains = without_expressions(body);
        if let Some((mark, close)) = remains.unclosed {
            let what = "this has no end, and cloud-init renders nothing of such a template";
            let report = Report::error(Code::Template, what).at(mark);
            return Source::new(body, place, self.findings)
                .push(report.hint(format!("end it with `{close}`")));
        }
        let Remains { text: body, has_statements, .. } = remains;
        // What is left of statements and comments is blank, and cloud-init strips it.
        let blank = body.len() - body.trim_start().len();
        let skipped = body[..blank].matches('\n').count();
        place.lines += skipped;
        let body: String = body.split('\n').skip(skipped).collect::<Vec<_>>().join("\n");
        let is_config = matches!(recognise(body.as_bytes()), Ok(Format::CloudConfig));
        if has_statements && is_config {
            cloud_config::check_template(&mut Source::new(&body, place, self.findings));
        } else if body.contains(PLACEHOLDER) && !is_config {
            // A script that a template makes: its words are anyone's.
            let first = body.lines().next().unwrap_or_default();
            self.begun(first.as_bytes(), place, depth - 1, Headless::Ignored);
        } else {
            self.begun(body.as_bytes(), place, depth - 1, Headless::Ignored);
        }
    }

    /// `#cloud-config-archive`: a list of texts, or of mappings with `content` and `type`.
    fn archive(&mut self, text: &str, place: &Place, depth: usize) {
        let mut source = Source::new(text, place.clone(), self.findings);
        let Some(document) = cloud_config::read(&mut source) else { return };
        source.hide_secrets(&document);
        if !matches!(document.value, yaml::Value::List(_)) {
            let what = format!("expected a list of pieces, got {}", document.kind());
            return source.push(Report::error(Code::NotAMapping, what).at(document.mark));
        }
        for (number, item) in document.items().iter().enumerate().take(PIECES_MAX) {
            if let Some((wrong, mark)) = not_a_piece(item) {
                let report = Report::error(Code::Packing, wrong).at(mark);
                Source::new(text, place.clone(), self.findings)
                    .push(report.path(format!("[{number}]")));
                continue;
            }
            let content = item.get("content").unwrap_or(item);
            let Some(content_text) = content.text() else {
                if matches!(item.value, yaml::Value::Map(_))
                    || content.value == yaml::Value::Unknown
                {
                    continue;
                }
                let what =
                    format!("expected text or a mapping with `content`, got {}", item.kind());
                let report = Report::error(Code::WrongType, what).at(item.mark);
                Source::new(text, place.clone(), self.findings)
                    .push(report.path(format!("[{number}]")));
                continue;
            };
            let kind = item.get("type").and_then(Node::text).map(content_type);
            let kind = kind.as_deref();
            let label = kind.map_or_else(
                || format!("item {}", number + 1),
                |kind| format!("item {} ({kind})", number + 1),
            );
            let part = Some(within(place, &label));
            let inner = block_place(text, content, place)
                .map_or(Place { part: part.clone(), ..Place::default() }, |(lines, columns)| {
                    Place { part, lines, columns }
                });
            match kind {
                Some(kind) => self.typed(kind, content_text.as_bytes(), inner, depth),
                None => {
                    self.begun(content_text.as_bytes(), inner, depth - 1, Headless::CloudConfig);
                }
            }
        }
    }

    /// A piece of an archive that begins with no header: cloud-init takes it for a cloud-config.
    fn untyped(&mut self, text: &str, place: Place) {
        let is_mapping = yaml::document(text)
            .is_ok_and(|document| document.root.is_some_and(|root| !root.entries().is_empty()));
        if is_mapping {
            return cloud_config::check(&mut Source::new(text, place, self.findings));
        }
        let what = "this has no header and is no mapping: cloud-init does nothing with it";
        let report = Report::warning(Code::MissingHeader, what)
            .hint("begin it with `#!/bin/sh` or `#cloud-config`");
        Source::new(text, place, self.findings).push(report.at(Mark::at(1, 1)));
    }

    fn mime(&mut self, text: &str, place: &Place, depth: usize) {
        let document = mime::parse(text.as_bytes());
        if document.is_multipart && document.parts.is_empty() {
            let what = "a MIME document without a part: the `boundary` of its `Content-Type` stands nowhere";
            let report = Report::error(Code::Packing, what).at(Mark::at(1, 1));
            return Source::new(text, place.clone(), self.findings).push(report);
        }
        for (number, part) in document.parts.iter().enumerate().take(PIECES_MAX) {
            let label = match document.is_multipart {
                true => format!("part {} ({})", number + 1, shortened(&part.content_type)),
                false => part.content_type.clone(),
            };
            let part_label = Some(within(place, &label));
            let inner = match part.lines {
                Some(lines) => {
                    Place { part: part_label, lines: place.lines + lines, columns: place.columns }
                }
                None => Place { part: part_label, ..Place::default() },
            };
            self.part(part, inner, depth);
        }
    }

    fn part(&mut self, part: &Entity, place: Place, depth: usize) {
        match &part.content {
            Ok(content) => self.typed(&part.content_type, content, place, depth),
            Err(what) => self.report(&place, Report::error(Code::Packing, what.clone())),
        }
    }

    /// A piece whose content type is given.
    fn typed(&mut self, content_type: &str, content: &[u8], place: Place, depth: usize) {
        if depth == 0 {
            let what = format!("pieces within pieces, more than {DEPTH_MAX} deep");
            return self.report(&place, Report::error(Code::Packing, what));
        }
        let format = match content_type {
            "text/plain" | "text/x-not-multipart" => {
                return self.begun(content, place, depth - 1, Headless::Ignored);
            }
            "text/x-shellscript-per-boot"
            | "text/x-shellscript-per-instance"
            | "text/x-shellscript-per-once" => {
                return self.script(content, place);
            }
            _ => Format::of_content_type(content_type),
        };
        let format = match format {
            Some(Format::Script) => {
                return match recognise(content) {
                    Ok(_) => self.begun(content, place, depth - 1, Headless::Ignored),
                    Err(_) => self.script(content, place),
                };
            }
            Some(Format::Gzip) => return self.gzip(content, &place, depth - 1, true),
            Some(format) => format,
            None if ["multipart/", "message/"].iter().any(|it| content_type.starts_with(it)) => {
                Format::Mime
            }
            None => {
                let what = format!(
                    "the content type `{}`, which cloud-init leaves to part handlers",
                    shortened(content_type)
                );
                return self.report(&place, Report::warning(Code::WrongValue, what));
            }
        };
        if let Some(text) = utf8(content, &place, self.findings) {
            self.format(format, text, &place, depth - 1);
        }
    }

    fn script(&mut self, content: &[u8], place: Place) {
        if let Some(text) = utf8(content, &place, self.findings) {
            script::check(&mut Source::new(text, place, self.findings));
        }
    }
}

/// What cloud-init breaks off at, with all of the user-data, in an item of an archive.
fn not_a_piece(item: &Node) -> Option<(String, Mark)> {
    const ALL: &str = "cloud-init gives up all of the user-data";
    let is_open = |node: &Node| matches!(node.value, yaml::Value::Unknown);
    if let Some(kind) = item.get("type").filter(|kind| !is_open(kind)) {
        let is_none = matches!(kind.value, yaml::Value::Null) || kind.text() == Some("");
        let is_type = kind.text().is_some_and(|text| text.contains('/'));
        if !is_none && !is_type {
            let got = kind.text().map_or_else(|| kind.kind().to_owned(), |_| "one word".to_owned());
            let what = format!("expected a `type` such as `text/cloud-config`, got {got}: {ALL}");
            return Some((what, kind.mark));
        }
    }
    let content = item.get("content").filter(|content| !is_open(content))?;
    let is_content = content.text().is_some() || matches!(content.value, yaml::Value::Binary);
    let what = || format!("expected text as `content`, got {}: {ALL}", content.kind());
    (!is_content).then(|| (what(), content.mark))
}

/// A content type as Python's `email` compares it: without parameters, in lower case.
fn content_type(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Of a header that is taken, and not written as documented.
fn loose(format: Format, text: &str, line: usize) -> Report {
    let header = HEADERS.into_iter().find(|(_, other)| *other == format).map_or("", |(it, _)| it);
    let width = text.lines().nth(line - 1).map_or(1, |text| text.chars().count());
    let what = format!("this is not quite `{header}`: cloud-init takes it for that, others do not");
    Report::warning(Code::MisspeltHeader, what)
        .at(Mark { width: width.max(1), ..Mark::at(line, 1) })
        .hint(format!("write the first line exactly as `{header}`"))
}

/// Unpacks gzip, which zeros may follow: Python passes over them. A member may end in zeros, too.
fn unpack(content: &[u8], bytes: &mut Vec<u8>) -> std::io::Result<usize> {
    let unpacked = MultiGzDecoder::new(content).take(UNPACKED_MAX + 1).read_to_end(bytes);
    let end = content.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    if unpacked.is_ok() || end == content.len() {
        return unpacked;
    }
    // The length at a member's end is most often less than 16 MiB: its last byte is zero.
    for end in end..=(end + 8).min(content.len()) {
        bytes.clear();
        let cut = MultiGzDecoder::new(&content[..end]).take(UNPACKED_MAX + 1).read_to_end(bytes);
        if cut.is_ok() {
            return cut;
        }
    }
    unpacked
}

fn within(place: &Place, label: &str) -> String {
    match &place.part {
        Some(outer) => format!("{outer}, {label}"),
        None => label.to_owned(),
    }
}

/// How many lines and columns come before the content of a block scalar, whose lines are the file's.
fn block_place(text: &str, node: &Node, place: &Place) -> Option<(usize, usize)> {
    let yaml::Value::Text(block) = &node.value else { return None };
    if !block.is_literal {
        return None;
    }
    // The mark is at the first line that is not blank.
    let line = text.lines().nth(node.mark.line - 1)?;
    let blank = block.text.lines().take_while(|line| line.trim().is_empty()).count();
    let first = (node.mark.line - 1).checked_sub(blank)?;
    let indent = line.chars().take_while(|c| *c == ' ').count();
    let own = block.text.lines().find(|line| !line.trim().is_empty())?;
    let own = own.chars().take_while(|c| *c == ' ').count();
    Some((place.lines + first, place.columns + indent.checked_sub(own)?))
}

/// What is left of a template.
pub(super) struct Remains {
    /// The text with each `{{ … }}` as placeholders and each `{% … %}` and `{# … #}` blank, at the same
    /// lines and columns.
    pub(super) text: String,
    pub(super) has_statements: bool,
    /// Where an expression, statement or comment begins that has no end, and what ends it.
    unclosed: Option<(Mark, &'static str)>,
}

pub(super) fn without_expressions(text: &str) -> Remains {
    let mut remains =
        Remains { text: String::with_capacity(text.len()), has_statements: false, unclosed: None };
    let mut rest = text;
    while let Some(at) = opening(rest) {
        let (close, filler) = match &rest[at..at + 2] {
            "{{" => ("}}", PLACEHOLDER),
            "{%" => ("%}", ' '),
            _ => ("#}", ' '),
        };
        remains.has_statements |= close == "%}";
        let end = rest[at + 2..].find(close).map(|end| at + 2 + end + 2);
        if end.is_none() {
            let before = &text[..text.len() - rest.len() + at];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
            remains.unclosed = Some((Mark { width: 2, ..Mark::at(line, column) }, close));
        }
        let end = end.unwrap_or(rest.len());
        remains.text.push_str(&rest[..at]);
        remains.text.extend(rest[at..end].chars().map(|c| if c == '\n' { c } else { filler }));
        rest = &rest[end..];
    }
    remains.text.push_str(rest);
    remains
}

/// Where the next `{{`, `{%` or `{#` is.
fn opening(text: &str) -> Option<usize> {
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// `#include`: a URL a line.
fn check_include(source: &mut Source<'_>) {
    let mut urls = 0;
    let text = source.text;
    for (line, number) in text.lines().zip(1..) {
        let lower = line.to_ascii_lowercase();
        let header =
            ["#include-once", "#include"].into_iter().find(|header| lower.starts_with(header));
        let url = line[header.map_or(0, str::len)..].trim();
        if url.is_empty() || url.starts_with('#') {
            continue;
        }
        urls += 1;
        if !url.contains("://") && !url.starts_with('/') {
            let report = Report::error(
                Code::WrongValue,
                format!("expected a URL, got `{}`", shortened(&guarded(url))),
            );
            source.push(report.at(Mark { width: line.chars().count(), ..Mark::at(number, 1) }));
        }
    }
    if urls == 0 {
        source.push(Report::warning(Code::Empty, "an `#include` without a URL").at(Mark::at(1, 1)));
    }
}
