//! User-data taken apart, as cloud-init does it: what is compressed is opened, MIME documents are
//! split (RFC 2045, RFC 2046 §5.1), and every piece is given its format.
//!
//! The model is Python's `email`, which cloud-init uses, in its tolerance too: what it passes over
//! without a word is a problem here. URLs of `#include` and archives in YAML are left closed.

use std::io::Read as _;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use flate2::read::MultiGzDecoder;

use crate::Format;
use crate::user_data::{GZIP_MAGIC, has_mime_version};

/// Most bytes that something compressed may have when it is open.
const OPENED_MAX: u64 = 16 << 20;

/// Most pieces, and how deep documents in documents are looked into.
const PARTS_MAX: usize = 1024;
const DEPTH_MAX: usize = 8;

/// Most problems that are told.
const PROBLEMS_MAX: usize = 32;

/// A piece of user-data or vendor-data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What cloud-init takes it for; `None` if it does nothing with it.
    pub format: Option<Format>,
    /// The content type that it was given; `None` outside MIME documents.
    pub content_type: Option<String>,
    /// The name that it was given in a MIME document.
    pub file_name: Option<String>,
    /// It was compressed.
    pub was_compressed: bool,
    /// The bytes, decoded and decompressed.
    pub content: Vec<u8>,
}

/// What some data holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// The pieces in their order.
    pub parts: Vec<Part>,
    /// What cloud-init would ignore or could not read, in words.
    pub problems: Vec<String>,
}

impl Parts {
    /// Takes `data` apart. Whatever it is, there is a result.
    pub fn of(data: &[u8]) -> Self {
        let mut splitter = Splitter { all: Self::default(), opened_left: OPENED_MAX };
        splitter.whole(data);
        splitter.all
    }
}

/// Parts in the making.
struct Splitter {
    all: Parts,
    /// How many more bytes may come out of what is compressed.
    opened_left: u64,
}

impl Splitter {
    fn whole(&mut self, data: &[u8]) {
        let (data, was_compressed) = match self.opened(data) {
            Some(Ok(data)) => (data, true),
            Some(Err(problem)) => return self.problem(problem),
            None => (data.to_vec(), false),
        };
        if has_mime_version(&data) {
            self.walk(&data, 0);
        } else if !data.is_empty() {
            let format = Format::of_beginning(&data);
            if format.is_none() {
                self.problem("it has no header that cloud-init knows, and is ignored".into());
            }
            let (content_type, file_name) = (None, None);
            let part = Part { format, content_type, file_name, was_compressed, content: data };
            self.all.parts.push(part);
        }
    }

    /// Adds the pieces of a MIME document.
    fn walk(&mut self, document: &[u8], depth: usize) {
        if depth > DEPTH_MAX || self.all.parts.len() >= PARTS_MAX {
            let what = format!("more than {PARTS_MAX} parts, or nested deeper than {DEPTH_MAX}");
            return self.problem(what);
        }
        let (header, body) = Header::read(document);
        let content_type = header.content_type();
        if !content_type.starts_with("multipart/") {
            return self.leaf(&header, body, content_type);
        }
        let boundary = header.parameter("content-type", "boundary");
        let Some(boundary) = boundary.filter(|text| !text.is_empty()) else {
            return self.problem("a multipart document without a boundary".into());
        };
        let bodies = split(body, boundary.as_bytes());
        if bodies.is_empty() {
            self.problem(format!("the boundary `{boundary}` is nowhere"));
        }
        bodies.into_iter().for_each(|body| self.walk(body, depth + 1));
    }

    fn leaf(&mut self, header: &Header, body: &[u8], content_type: String) {
        let file_name = header
            .parameter("content-disposition", "filename")
            .or_else(|| header.parameter("content-type", "name"));
        let number = self.all.parts.len() + 1;
        let name = file_name.clone().unwrap_or_else(|| format!("part {number}"));
        let mut content = header.decode(body).unwrap_or_else(|problem| {
            self.problem(format!("{name}: {problem}"));
            body.to_vec()
        });
        let mut format = Format::of_content_type(&content_type);
        let mut was_compressed = false;
        if format == Some(Format::Gzip) {
            match self.opened(&content).unwrap_or_else(|| Err("it is not gzip".into())) {
                Ok(data) => (content, was_compressed) = (data, true),
                Err(problem) => self.problem(format!("{name}: {problem}")),
            }
        }
        let is_vague =
            ["text/plain", "text/x-not-multipart", "text/x-shellscript"].contains(&&*content_type);
        if was_compressed || is_vague {
            format = Format::of_beginning(&content).or(format.filter(|_| !was_compressed));
        }
        if format.is_none() {
            self.problem(format!("{name}: cloud-init does nothing with `{content_type}`"));
        }
        let content_type = Some(content_type);
        self.all.parts.push(Part { format, content_type, file_name, was_compressed, content });
    }

    /// What is in `data` if it is compressed.
    fn opened(&mut self, data: &[u8]) -> Option<Result<Vec<u8>, String>> {
        if !data.starts_with(GZIP_MAGIC) {
            return None;
        }
        let mut content = Vec::new();
        let left = self.opened_left;
        let read = MultiGzDecoder::new(data).take(left + 1).read_to_end(&mut content);
        Some(match read {
            Ok(_) if content.len() as u64 <= left => {
                self.opened_left -= content.len() as u64;
                Ok(content)
            }
            Ok(_) => Err(format!("it has more than {} MiB when decompressed", OPENED_MAX >> 20)),
            Err(error) => Err(format!("it is compressed and cannot be read: {error}")),
        })
    }

    fn problem(&mut self, problem: String) {
        let problems = &mut self.all.problems;
        if problems.len() < PROBLEMS_MAX && !problems.contains(&problem) {
            problems.push(problem);
        }
    }
}

/// The header of a document or of a part: names in small letters, with their values.
pub(crate) struct Header(Vec<(String, String)>);

impl Header {
    /// Reads the header; what follows the empty line is the body. A line that is no field ends the
    /// header as well, and belongs to the body.
    pub(crate) fn read(document: &[u8]) -> (Self, &[u8]) {
        let mut fields: Vec<(String, String)> = Vec::new();
        let mut rest = document;
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
            let (line, after) = rest.split_at(end);
            let text = String::from_utf8_lossy(line);
            let text = text.trim_end_matches(['\r', '\n']);
            match (text.split_once(':'), fields.last_mut()) {
                // The line of an envelope, as mailboxes have it.
                _ if text.starts_with("From ") && rest.len() == document.len() => {}
                _ if text.is_empty() => return (Self(fields), after),
                (_, Some((_, value))) if text.starts_with([' ', '\t']) => value.push_str(text),
                (Some((name, value)), _) if !name.contains([' ', '\t']) && !name.is_empty() => {
                    fields.push((name.to_ascii_lowercase(), value.to_owned()));
                }
                _ => break,
            }
            rest = after;
        }
        (Self(fields), rest)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.trim())
    }

    /// The content type without its parameters; what is none counts as text (RFC 2045 §5.2).
    pub(crate) fn content_type(&self) -> String {
        let value = self.field("content-type").unwrap_or_default();
        let value = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if value.matches('/').count() == 1 { value } else { "text/plain".to_owned() }
    }

    /// A parameter of a field, with or without quotes (RFC 2045 §5.1).
    pub(crate) fn parameter(&self, field: &str, name: &str) -> Option<String> {
        let mut rest = self.field(field)?;
        loop {
            rest = rest[end_of_parameter(rest)..].strip_prefix(';')?;
            let (found, value) = rest[..end_of_parameter(rest)].split_once('=').unwrap_or_default();
            if found.trim().eq_ignore_ascii_case(name) {
                return Some(unquoted(value.trim()));
            }
        }
    }

    /// The body without its transfer encoding (RFC 2045 §6).
    pub(crate) fn decode(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let encoding = self.field("content-transfer-encoding").unwrap_or("7bit");
        match encoding.to_ascii_lowercase().as_str() {
            "base64" => base64(body).ok_or_else(|| "it is not valid base64".into()),
            "quoted-printable" => Ok(quoted_printable(body)),
            "7bit" | "8bit" | "binary" | "" => Ok(body.to_vec()),
            other => Err(format!("unknown transfer encoding `{other}`")),
        }
    }
}

/// Where the next semicolon outside quotes is, or the end.
fn end_of_parameter(text: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

fn unquoted(text: &str) -> String {
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(inner) => inner.replace("\\\\", "\\").replace("\\\"", "\""),
        None => text.to_owned(),
    }
}

/// The bodies between the boundary's lines; the line end before such a line belongs to it. Without the
/// last line the rest is a body as well.
pub(crate) fn split<'a>(body: &'a [u8], boundary: &[u8]) -> Vec<&'a [u8]> {
    let mut bodies = Vec::new();
    let (mut begin, mut at) = (None, 0);
    for line in body.split_inclusive(|b| *b == b'\n') {
        let text = line.strip_prefix(b"--").and_then(|rest| rest.strip_prefix(boundary));
        let is_last = text.is_some_and(|rest| rest.starts_with(b"--"));
        let text = text.map(|rest| if is_last { &rest[2..] } else { rest });
        if text.is_some_and(|rest| rest.trim_ascii().is_empty()) {
            bodies.extend(begin.map(|begin| without_line_end(&body[begin..at])));
            begin = Some(at + line.len());
            if is_last {
                return bodies;
            }
        }
        at += line.len();
    }
    bodies.extend(begin.map(|begin| &body[begin.min(body.len())..]));
    bodies
}

fn without_line_end(body: &[u8]) -> &[u8] {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    body.strip_suffix(b"\r").unwrap_or(body)
}

/// Base64 in lines, with or without filling at the end.
fn base64(body: &[u8]) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let text: Vec<u8> = body.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    LENIENT.decode(text).ok()
}

/// Quoted-printable (RFC 2045 §6.7); what is not quite that stays as it is.
fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'=' {
            content.push(*byte);
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (digit(0), digit(1)) {
            (Some(high), Some(low)) => {
                content.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ if after.starts_with(b"\r\n") => rest = &after[2..],
            _ if after.starts_with(b"\n") => rest = &after[1..],
            _ => content.push(b'='),
        }
    }
    content
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::disallowed_methods,
        reason = "Python's parser, which cloud-init uses, is the oracle"
    )]

    use std::io::Write as _;
    use std::process::Command;

    use bootyard_testkit::{require_tool, run};
    use flate2::write::GzEncoder;

    use super::*;
    use crate::{UserData, mime};

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Type, name and content of each leaf, with what Python knows of them.
    const PARSE: &str = "import email, sys\n\
        for part in email.message_from_string(open(sys.argv[1], newline='').read()).walk():\n \
        if part.get_content_maintype() != 'multipart':\n  \
        print(part.get_content_type(), part.get_filename(), part.get_payload(decode=True).hex())";

    #[test]
    fn documents_are_split_as_python_splits_them() {
        if !require_tool("python3") {
            return;
        }
        let head = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B;=1\"\n";
        let nested = "Content-Type: multipart/alternative;\n\tboundary=C\n\npreamble\n--C\n\n\
            a\n--C\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n\n--C--\nafter\n";
        for document in [
            format!(
                "{head}\nx\n--B;=1\nContent-Type: text/cloud-config\n\n#cloud-config\n--B;=1--\n"
            ),
            format!("{head}\n--B;=1\n{nested}\n--B;=1  \n\nlast\n\n--B;=1--\nepilogue"),
            format!("{head}\n--B;=1\n{nested}"),
            format!("{head}\r\n--B;=1\r\nX: y\r\n\r\none\r\ntwo\r\n--B;=1--\r\n"),
            format!("{head}\n--B;=1\n\n--B;=1x\n--B;=1--\n"),
            "MIME-Version: 1.0\nContent-type: Text/Cloud-Config\n\n#cloud-config\n".to_owned(),
            format!("From nobody Mon Nov 23 00:51:48 2026\n{head}\n--B;=1\n\na\n--B;=1--\n"),
            format!(
                "{head}\n--B;=1\nContent-Disposition: attachment; filename=\"a \\\"b.sh\"\n\
                 Content-Transfer-Encoding: base64\n\nIyEvYmlu\nL3No\nCg==\n--B;=1\n\
                 Content-Transfer-Encoding: quoted-printable\n\n#!=2Fbin=\n/sh =C3=BC\n--B;=1--"
            ),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs_err::write(file.path(), &document).unwrap();
            let expected = run(Command::new("python3").args(["-c", PARSE]).arg(file.path()));
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let line = |part: &Part| {
                let name = part.file_name.as_deref().unwrap_or("None");
                let content_type = part.content_type.as_deref().unwrap_or_default();
                format!("{content_type} {name} {}\n", hex(&part.content))
            };
            let found: String = Parts::of(document.as_bytes()).parts.iter().map(line).collect();
            assert_eq!(found, expected, "{document}");
        }
    }

    #[test]
    fn what_we_join_is_split_again() {
        let contents: [&[u8]; 6] = [
            b"#cloud-config\na: 1\n\n\n",
            b"#!/bin/sh\necho no line end",
            "#cloud-config\n# Gr\u{fc}\u{df}e\n".as_bytes(),
            b"#cloud-config\r\nb: 2\r\n",
            b"#include\nhttp://h/\n",
            b"## template: jinja\n#cloud-config\n",
        ];
        let data: Vec<UserData> =
            contents.iter().map(|content| UserData::parse("u", *content).unwrap()).collect();
        let packed = UserData::parse("u", gzip(b"#!/bin/sh\ntrue\n")).unwrap();
        let all = Parts::of(&mime::join(&[data.clone(), vec![packed]].concat()));
        assert_eq!(all.problems, Vec::<String>::new());
        let found: Vec<_> = all.parts.iter().map(|part| (part.format, &part.content[..])).collect();
        let given = data.iter().map(|part| (Some(part.format()), part.content()));
        let opened = (Some(Format::Script), &b"#!/bin/sh\ntrue\n"[..]);
        assert_eq!(found, given.chain([opened]).collect::<Vec<_>>());
        assert!(all.parts.last().unwrap().was_compressed);
    }

    #[test]
    fn what_cloud_init_would_ignore_is_said() {
        let bomb = gzip(&vec![0; (16 << 20) + 1]);
        let level = |n| {
            format!("MIME-Version: 1\nContent-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n")
        };
        let deep: String = (0..99).map(level).collect();
        for (data, problem) in [
            (b"runcmd: []".to_vec(), "it has no header that cloud-init knows"),
            (bomb, "it has more than 16 MiB when decompressed"),
            (b"\x1f\x8bxx".to_vec(), "it is compressed and cannot be read"),
            (
                b"MIME-Version: 1.0\nContent-Type: multipart/mixed\n\nx".to_vec(),
                "without a boundary",
            ),
            (b"mime-version: 1\ncontent-type: image/png\n\nx".to_vec(), "nothing with `image/png`"),
            (
                b"Mime-Version: 1\nContent-Transfer-Encoding: base64\n\n$$$".to_vec(),
                "part 1: it is not valid base64",
            ),
            (deep.into_bytes(), "nested deeper than 8"),
        ] {
            let all = Parts::of(&data);
            assert!(all.problems.iter().any(|found| found.contains(problem)), "{:?}", all.problems);
        }
        assert_eq!(Parts::of(b""), Parts::default());
    }
}
