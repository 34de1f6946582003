//! One piece of user-data or vendor-data, and what cloud-init will take it for.
//!
//! cloud-init tells the kinds of user-data apart by how they begin, and silently ignores what it
//! does not know. Here that is an error, with the most likely remedy. The content behind the header
//! is not judged.

use std::fmt;

use crate::lint::{Code, guarded, is_bare};
use crate::{Error, ErrorKind};

/// What cloud-init does with a piece of user-data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// YAML for cloud-init's modules: `#cloud-config`.
    CloudConfig,
    /// A list of cloud-configs, scripts and others in YAML: `#cloud-config-archive`.
    CloudConfigArchive,
    /// A JSON patch to the cloud-config: `#cloud-config-jsonp`.
    CloudConfigPatch,
    /// A script that runs once, late in the first boot: `#!`.
    Script,
    /// A script that runs early in every boot: `#cloud-boothook`.
    Boothook,
    /// URLs whose contents are user-data: `#include`.
    Include,
    /// The same, fetched once per instance: `#include-once`.
    IncludeOnce,
    /// Python code that handles further formats: `#part-handler`.
    PartHandler,
    /// A Jinja template that becomes one of the others: `## template: jinja`.
    Jinja,
    /// A MIME document (RFC 2045), usually with several of the others in it.
    Mime,
    /// Any of the others, compressed with gzip.
    Gzip,
}

impl Format {
    /// The content type under which cloud-init knows it as a part of a MIME document. A MIME
    /// document has its own.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::CloudConfig => "text/cloud-config",
            Self::CloudConfigArchive => "text/cloud-config-archive",
            Self::CloudConfigPatch => "text/cloud-config-jsonp",
            Self::Script => "text/x-shellscript",
            Self::Boothook => "text/cloud-boothook",
            Self::Include => "text/x-include-url",
            Self::IncludeOnce => "text/x-include-once-url",
            Self::PartHandler => "text/part-handler",
            Self::Jinja => "text/jinja2",
            Self::Mime => "multipart/mixed",
            Self::Gzip => "application/gzip",
        }
    }

    /// The format that cloud-init knows by this content type.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        /// cloud-init's `DECOMP_TYPES`.
        const GZIP: [&str; 8] = [
            "application/gzip",
            "application/gzip-compressed",
            "application/gzipped",
            "application/x-compress",
            "application/x-compressed",
            "application/x-gunzip",
            "application/x-gzip",
            "application/x-gzip-compressed",
        ];
        if GZIP.contains(&content_type) {
            return Some(Self::Gzip);
        }
        HEADERS
            .into_iter()
            .map(|(_, format)| format)
            .chain([Self::Script])
            .find(|format| format.content_type() == content_type)
    }

    /// The format of a piece without a content type, by its beginning: cloud-init minds neither case
    /// nor white space before it.
    pub(crate) fn of_beginning(content: &[u8]) -> Option<Self> {
        let begin: Vec<u8> =
            content.trim_ascii_start().iter().take(64).map(u8::to_ascii_lowercase).collect();
        let headers = HEADERS.into_iter().chain([("#!", Self::Script)]);
        let known = headers.filter(|(header, _)| begin.starts_with(header.as_bytes()));
        known.max_by_key(|(header, _)| header.len()).map(|(_, format)| format)
    }
}

/// The headers that stand on a line of their own.
pub(crate) const HEADERS: [(&str, Format); 8] = [
    ("#cloud-config", Format::CloudConfig),
    ("#cloud-config-archive", Format::CloudConfigArchive),
    ("#cloud-config-jsonp", Format::CloudConfigPatch),
    ("#cloud-boothook", Format::Boothook),
    ("#include", Format::Include),
    ("#include-once", Format::IncludeOnce),
    ("#part-handler", Format::PartHandler),
    ("## template: jinja", Format::Jinja),
];

/// The first two bytes of a gzip member (RFC 1952 §2.3.1).
pub(crate) const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// The byte-order mark in UTF-8, which editors on Windows put first.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// cloud-init takes a text for a MIME document if `mime-version:` is within this many bytes of its
/// start.
const MIME_VERSION_WITHIN: usize = 4096;

/// A piece of user-data or vendor-data in a format that cloud-init knows. It may hold secrets, and is not
/// shown.
#[derive(Clone, PartialEq, Eq)]
pub struct UserData {
    /// How errors name it.
    input: String,
    content: Vec<u8>,
    format: Format,
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, content, format } = self;
        write!(f, "`{input}`: {format:?} of {} bytes", content.len())
    }
}

/// How user-data is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// It comes out of a secret: errors show nothing of it.
    pub is_secret: bool,
    /// What cloud-init takes is taken, be it nothing that a guest can run or not where people expect it.
    pub is_lenient: bool,
}

impl UserData {
    /// Recognises the format of `content`. `input` is how errors name it, usually its path.
    pub fn parse(input: &str, content: impl Into<Vec<u8>>) -> Result<Self, Error> {
        Self::read(input, content, Reading::default())
    }

    /// The same in another way.
    pub fn read(input: &str, content: impl Into<Vec<u8>>, reading: Reading) -> Result<Self, Error> {
        let content = content.into();
        let format = recognise(&content).or_else(|refusal| {
            let lenient = Format::of_beginning(&content).filter(|_| reading.is_lenient);
            lenient.ok_or_else(|| refusal.into_error(input, reading.is_secret))
        })?;
        Ok(Self { input: input.to_owned(), content, format })
    }

    /// A cloud-config of our own, header included.
    pub(crate) fn cloud_config(text: String) -> Self {
        let input = "the cloud-config of the users".to_owned();
        Self { input, content: text.into_bytes(), format: Format::CloudConfig }
    }

    /// How the caller named it, usually its path.
    pub fn input(&self) -> &str {
        &self.input
    }

    /// What cloud-init takes it for.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The bytes, as they were given.
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

/// True if it begins as one of the formats does.
pub(crate) fn is_known(content: &[u8]) -> bool {
    recognise(content).is_ok()
}

/// Why cloud-init would ignore a piece of user-data, with the likeliest remedy.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) what: String,
    pub(crate) line: Option<usize>,
    pub(crate) hint: &'static str,
}

impl Refusal {
    fn new(code: Code, what: impl Into<String>, hint: &'static str) -> Self {
        Self { code, what: what.into(), line: None, hint }
    }

    fn at_line(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }

    fn into_error(mut self, input: &str, is_secret: bool) -> Error {
        if let Some(at) = self.what.find(GOT).filter(|_| is_secret) {
            self.what.truncate(at);
        }
        let error = Error::new(ErrorKind::UserData, self.what).in_input(input).with_hint(self.hint);
        match self.line {
            Some(line) => error.at_line(line),
            None => error,
        }
    }
}

/// Which format it is by its beginning.
pub(crate) fn recognise(content: &[u8]) -> Result<Format, Refusal> {
    if content.starts_with(GZIP_MAGIC) {
        return Ok(Format::Gzip);
    }
    if content.starts_with(BOM) {
        return Err(Refusal::new(
            Code::Bom,
            "begins with a byte-order mark, behind which cloud-init sees no header",
            "save the file as UTF-8 without BOM",
        ));
    }
    let exact = format_of_line(first_line(content)).or_else(|| mime_of(content));
    let Some(format) = exact.or_else(|| loosely(content)) else {
        return Err(headless(content));
    };
    if format == Format::Mime && !has_mime_version(content) {
        return Err(Refusal::new(
            Code::Packing,
            "a MIME document without `MIME-Version`, which cloud-init ignores",
            "add the header line `MIME-Version: 1.0`",
        ));
    }
    Ok(format)
}

fn first_line(content: &[u8]) -> &[u8] {
    content.split(|b| *b == b'\n').next().unwrap_or_default()
}

fn format_of_line(line: &[u8]) -> Option<Format> {
    if line.starts_with(b"#!") {
        return Some(Format::Script);
    }
    let is = |header: &str| {
        let rest = line.strip_prefix(header.as_bytes());
        rest.is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
    };
    HEADERS.into_iter().find(|(header, _)| is(header)).map(|(_, format)| format)
}

/// The format of a header that is not written as documented, and is taken all the same: with white space
/// before it, in other letters, or with more behind it. What has to be the first line for a kernel, for
/// Jinja or for the handler of the format is not taken so.
fn loosely(content: &[u8]) -> Option<Format> {
    let trimmed = content.trim_ascii_start();
    let line = first_line(content).to_ascii_lowercase();
    Format::of_beginning(content).filter(|format| match format {
        Format::CloudConfig
        | Format::CloudConfigArchive
        | Format::Include
        | Format::IncludeOnce
        | Format::PartHandler => true,
        Format::CloudConfigPatch => trimmed.starts_with(b"#cloud-config-jsonp"),
        Format::Boothook => content.starts_with(b"#cloud-boothook"),
        Format::Jinja => format_of_line(&line) == Some(Format::Jinja),
        Format::Script | Format::Mime | Format::Gzip => false,
    })
}

/// The line of the header, counted from 1, if that is not written as documented.
pub(crate) fn loose_header(content: &[u8]) -> Option<usize> {
    let is_exact = format_of_line(first_line(content)).is_some() || mime_of(content).is_some();
    if is_exact || loosely(content).is_none() {
        return None;
    }
    let blank = content.len() - content.trim_ascii_start().len();
    Some(content[..blank].iter().filter(|b| **b == b'\n').count() + 1)
}

/// MIME, if the first line is a header field of such a document, or the envelope's line before it.
fn mime_of(content: &[u8]) -> Option<Format> {
    let line = first_line(content);
    if line.starts_with(b"From ") && has_mime_version(content) {
        return Some(Format::Mime);
    }
    let field = &line[..line.iter().position(|b| *b == b':')?];
    let is_mime = field.eq_ignore_ascii_case(b"content-type")
        || (is_field_name(field) && has_mime_version(content));
    is_mime.then_some(Format::Mime)
}

/// The name of a header field (RFC 5322 §2.2) has no spaces.
fn is_field_name(field: &[u8]) -> bool {
    !field.is_empty() && field.iter().all(u8::is_ascii_graphic)
}

pub(crate) fn has_mime_version(content: &[u8]) -> bool {
    let start = &content[..content.len().min(MIME_VERSION_WITHIN)];
    let name = b"mime-version:";
    start.windows(name.len()).any(|window| window.eq_ignore_ascii_case(name))
}

/// The refusal of user-data that begins with no known header, with the likeliest remedy.
fn headless(content: &[u8]) -> Refusal {
    if content.trim_ascii().is_empty() {
        let hint = "leave it out, or begin it with `#cloud-config`";
        return Refusal::new(Code::Empty, "the user-data is empty", hint);
    }
    let mut lines = content.split(|b| *b == b'\n').zip(1..);
    let (first, number) =
        lines.find(|(line, _)| !line.trim_ascii().is_empty()).unwrap_or((content, 1));
    if format_of_line(first.trim_ascii()).is_some() {
        let what = "the header is not at the very start";
        let hint = "remove the empty lines or spaces before it";
        return Refusal::new(Code::MisspeltHeader, what, hint).at_line(number);
    }
    // It may be a line with a password.
    let shown = guarded(String::from_utf8_lossy(first).trim());
    let shown = match is_bare(&String::from_utf8_lossy(content)) {
        true => ", got one line of text".to_owned(),
        false => format!("{GOT}{}`", shown.chars().take(40).collect::<String>()),
    };
    let what = format!("expected a header such as `#cloud-config`{shown}");
    let (code, hint) = remedy(first);
    let later = lines.zip(0..HEADER_WITHIN).find(|((line, _), _)| format_of_line(line).is_some());
    if let (Code::MissingHeader, Some(((_, line), _))) = (code, later) {
        let what = format!("the header is on line {line}, where cloud-init does not look");
        let hint = "make it the first line of the file";
        return Refusal::new(Code::MisspeltHeader, what, hint).at_line(line);
    }
    Refusal::new(code, what, hint).at_line(number)
}

/// Begins what a message shows of the content.
const GOT: &str = ", got `";

/// A header that stands lower is not looked for in more lines than a comment on top has.
const HEADER_WITHIN: usize = 50;

fn remedy(line: &[u8]) -> (Code, &'static str) {
    let is_letter = |b: &&u8| b.is_ascii_alphabetic();
    let letters: Vec<u8> = line.iter().filter(is_letter).map(u8::to_ascii_lowercase).collect();
    let letters = String::from_utf8_lossy(&letters);
    let is_comment = line.trim_ascii_start().starts_with(b"#");
    let nearly = |word: &str| {
        letters == word || (is_comment && bootyard_spec::word_distance(&letters, word) <= 2)
    };
    if nearly("cloudconfig") {
        (Code::MisspeltHeader, "write the first line exactly as `#cloud-config`")
    } else if nearly("templatejinja") {
        (Code::MisspeltHeader, "write the first line exactly as `## template: jinja`")
    } else if nearly("cloudboothook") {
        (Code::MisspeltHeader, "write the first line exactly as `#cloud-boothook`")
    } else {
        let hint = "cloud-init ignores user-data without a header: begin a cloud-config with the \
                    line `#cloud-config`, a script with `#!/bin/sh`";
        (Code::MissingHeader, hint)
    }
}

#[cfg(test)]
mod tests {
    use bootyard_spec::Explain as _;

    use super::*;

    #[test]
    fn recognises_every_format_by_its_start() {
        for (content, format) in [
            ("#cloud-config", Format::CloudConfig),
            ("#cloud-config \r\na: 1", Format::CloudConfig),
            ("#cloud-config-archive\n", Format::CloudConfigArchive),
            ("#cloud-config-jsonp\n", Format::CloudConfigPatch),
            ("#!/bin/sh\n", Format::Script),
            ("#cloud-boothook\n", Format::Boothook),
            ("#include\nhttp://h/", Format::Include),
            ("#include-once\n", Format::IncludeOnce),
            ("#part-handler\n", Format::PartHandler),
            ("## template: jinja\n#cloud-config\n", Format::Jinja),
            ("Content-Type: text/x-shellscript\nMIME-Version: 1.0\n\n", Format::Mime),
            ("MIME-Version: 1.0\n", Format::Mime),
            ("Subject: x\nmime-version: 1.0\n", Format::Mime),
            ("From nobody Mon Nov 23\nMIME-Version: 1.0\n", Format::Mime),
            ("#!/bin/sh\r\n", Format::Script),
            ("\n\n#cloud-config", Format::CloudConfig),
            (" #Cloud-Config:\na: 1", Format::CloudConfig),
            ("#cloud-configuration\n", Format::CloudConfig),
            ("#cloud-config-Archive\n", Format::CloudConfigArchive),
            ("\n#cloud-config-jsonp\n", Format::CloudConfigPatch),
            ("## Template: Jinja\n", Format::Jinja),
        ] {
            assert_eq!(UserData::parse("u", content).unwrap().format(), format, "{content}");
        }
        assert_eq!(UserData::parse("u", [0x1f, 0x8b, 8]).unwrap().format(), Format::Gzip);
    }

    #[test]
    fn of_a_secret_nothing_is_shown() {
        let reading = Reading { is_secret: true, is_lenient: false };
        for content in ["hunter2", "#Cloud_Config hunter2", "hunter2: hunter2, got `hunter2`"] {
            let error = UserData::read("u", content, reading).unwrap_err();
            assert!(error.to_string().contains("line 1: expected a header"), "{error}");
            let shown = format!("{error} {error:?} {:?}", error.hint());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    /// cloud-init's `type_from_starts_with` strips the text and minds no case.
    #[test]
    fn a_lenient_reader_takes_what_cloud_init_takes() {
        let reading = Reading { is_secret: false, is_lenient: true };
        for (content, format) in [
            ("\n\n#cloud-config\n", Some(Format::CloudConfig)),
            ("#Cloud-Config\n", Some(Format::CloudConfig)),
            (" #!/bin/sh\n", Some(Format::Script)),
            ("#!/bin/sh\r\n", Some(Format::Script)),
            ("packages: [vim]\n", None),
            ("\u{feff}#cloud-config\n", None),
            ("", None),
        ] {
            let read = UserData::read("u", content, reading);
            assert_eq!(read.ok().map(|data| data.format()), format, "{content}");
        }
    }

    #[test]
    fn refuses_what_cloud_init_would_ignore() {
        for (content, message, hint) in [
            ("", "`u`: the user-data is empty", "leave it out"),
            (
                "packages: [vim]\n",
                "`u` line 1: expected a header such as `#cloud-config`, got `packages: [vim]`",
                "begin a cloud-config with the line `#cloud-config`",
            ),
            (
                "# cloud-config\n",
                "`u` line 1: expected a header such as `#cloud-config`, got `# cloud-config`",
                "exactly as `#cloud-config`",
            ),
            (
                "#Cloud_Config\n",
                "`u` line 1: expected a header such as `#cloud-config`, got `#Cloud_Config`",
                "exactly as `#cloud-config`",
            ),
            (
                "##template:jinja\n",
                "`u` line 1: expected a header such as `#cloud-config`, got `##template:jinja`",
                "exactly as `## template: jinja`",
            ),
            ("\n\n#!/bin/sh", "`u` line 3: the header is not at the very start", "remove"),
            ("\n## template: jinja", "`u` line 2: the header is not at the very start", "remove"),
            (" #cloud-boothook", "`u` line 1: the header is not at the very start", "remove"),
            (" #!/bin/sh", "`u` line 1: the header is not at the very start", "remove"),
            (
                "\u{feff}#cloud-config",
                "`u`: begins with a byte-order mark, behind which cloud-init sees no header",
                "without BOM",
            ),
            (
                "Content-Type: multipart/mixed\n",
                "`u`: a MIME document without `MIME-Version`, which cloud-init ignores",
                "`MIME-Version: 1.0`",
            ),
        ] {
            let error = UserData::parse("u", content).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert!(error.hint().unwrap().contains(hint), "{content}");
        }
    }
}
