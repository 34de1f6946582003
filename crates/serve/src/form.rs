//! The one file out of a form (`multipart/form-data`, RFC 7578), as it passes. Nothing of it is kept
//! but what may be the beginning of a boundary.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem::Finder;

/// The field that holds the image.
const FIELD: &str = "file";
/// The most bytes of one part's header lines.
const HEADER_MAX: usize = 16 << 10;
/// RFC 2046 §5.1.1: a boundary has 1 to 70 characters.
const BOUNDARY_MAX: usize = 70;

/// Why a body is no such form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadForm {
    #[error("expected `Content-Type: multipart/form-data; boundary=…`")]
    ContentType,
    #[error("the form's lines are not made as they should be, in part {0}")]
    Malformed(u32),
    #[error("the form has no field `{FIELD}`")]
    NoFile,
}

/// Reads a form.
#[derive(Debug)]
pub(crate) struct FormReader {
    /// CR, LF, two hyphens and the boundary.
    delimiter: Finder<'static>,
    buffer: BytesMut,
    state: State,
    parts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a part, or before the first.
    Data {
        is_file: bool,
    },
    /// Behind a boundary.
    Boundary,
    Header,
    /// The file has been read; what follows is of no interest.
    Done,
}

impl FormReader {
    /// A reader for a body of this type.
    pub(crate) fn new(content_type: &str) -> Result<Self, BadForm> {
        let mut parts = parameters(content_type);
        let kind = parts.next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("multipart/form-data") {
            return Err(BadForm::ContentType);
        }
        let boundary = parts.find_map(|part| parameter(part, "boundary"));
        let boundary = boundary.filter(|text| (1..=BOUNDARY_MAX).contains(&text.len()));
        let boundary = boundary.ok_or(BadForm::ContentType)?;
        let delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        // The first boundary may stand at the very beginning, without a line before it.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { delimiter, buffer, state: State::Data { is_file: false }, parts: 0 })
    }

    /// Takes the next bytes of the body; gives the next of the file.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Bytes>, BadForm> {
        let mut file = Vec::new();
        if self.state == State::Done {
            return Ok(file);
        }
        self.buffer.extend_from_slice(chunk);
        while self.step(&mut file)? {}
        Ok(file)
    }

    /// Whether the whole file has been given; else the body ended too early.
    pub(crate) fn end(&self) -> Result<(), BadForm> {
        match self.state {
            State::Done => Ok(()),
            State::Data { is_file: true } => Err(BadForm::Malformed(self.parts)),
            _ => Err(BadForm::NoFile),
        }
    }

    /// Goes on by one token; `false` if that needs more bytes.
    fn step(&mut self, file: &mut Vec<Bytes>) -> Result<bool, BadForm> {
        match self.state {
            State::Data { is_file } => {
                let delimiter = self.delimiter.needle().len();
                let found = self.delimiter.find(&self.buffer);
                // What may be the beginning of a boundary stays.
                let len = found.unwrap_or((self.buffer.len() + 1).saturating_sub(delimiter));
                let data = self.buffer.split_to(len).freeze();
                if is_file && !data.is_empty() {
                    file.push(data);
                }
                if found.is_some() {
                    self.buffer.advance(delimiter);
                    self.state = if is_file { State::Done } else { State::Boundary };
                }
                Ok(found.is_some() && !is_file)
            }
            State::Boundary => match &self.buffer[..] {
                [b'-', b'-', ..] => Err(BadForm::NoFile),
                [b'\r', b'\n', ..] => {
                    // The line's end is also the first of the header's.
                    self.state = State::Header;
                    self.parts = self.parts.saturating_add(1);
                    Ok(true)
                }
                // RFC 2046 §5.1.1: blanks may follow a boundary.
                [b' ' | b'\t', ..] => {
                    self.buffer.advance(1);
                    Ok(true)
                }
                [] | [b'-' | b'\r'] => Ok(false),
                _ => Err(BadForm::Malformed(self.parts)),
            },
            State::Header => match memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                Some(len) if len <= HEADER_MAX => {
                    let header = self.buffer.split_to(len + 4);
                    self.state = State::Data { is_file: names_the_file(&header) };
                    Ok(true)
                }
                None if self.buffer.len() <= HEADER_MAX => Ok(false),
                _ => Err(BadForm::Malformed(self.parts)),
            },
            State::Done => Ok(false),
        }
    }
}

/// The value of a header and its parameters, which semicolons divide; those in quotes do not
/// (RFC 9110 §5.6.4).
fn parameters(value: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |c| {
        let literal = std::mem::take(&mut escaped);
        match c {
            '\\' if quoted && !literal => escaped = true,
            '"' if !literal => quoted = !quoted,
            ';' => return !quoted,
            _ => {}
        }
        false
    })
}

/// The value of `name=value` or `name="value"`.
fn parameter<'a>(part: &'a str, name: &str) -> Option<&'a str> {
    let (own, value) = part.split_once('=')?;
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    own.trim().eq_ignore_ascii_case(name).then_some(value)
}

fn names_the_file(header: &[u8]) -> bool {
    let text = String::from_utf8_lossy(header);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let disposition =
        lines.find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"));
    disposition
        .is_some_and(|(_, value)| parameters(value).any(|p| parameter(p, "name") == Some(FIELD)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"xyz\"";

    /// Reads `body` in parts of each length; all must agree.
    fn check(body: &str, expected: &Result<&str, BadForm>) {
        for len in 1..=body.len() {
            let mut reader = FormReader::new(TYPE).unwrap();
            let mut file = Vec::new();
            let mut read = || {
                for chunk in body.as_bytes().chunks(len) {
                    file.extend(reader.push(chunk)?);
                }
                reader.end()
            };
            let read = read().map(|()| String::from_utf8(file.concat()).unwrap());
            assert_eq!(read, expected.clone().map(str::to_owned), "in parts of {len}: {body:?}");
        }
    }

    fn part(name: &str, data: &str) -> String {
        format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{data}\r\n")
    }

    #[test]
    fn the_file_is_found_among_other_fields() {
        let (token, file) = (part("token", "abc"), part("file", "a\r\n--xy\r\n\r\nz\r\n"));
        check(&format!("{token}{file}--xyz--\r\n"), &Ok("a\r\n--xy\r\n\r\nz\r\n"));
        check(&format!("preamble\r\n{file}--xyz--"), &Ok("a\r\n--xy\r\n\r\nz\r\n"));
        check(&format!("{}--xyz--\r\n", part("file", "")), &Ok(""));
    }

    #[test]
    fn semicolons_in_quotes_divide_nothing() {
        let of = |disposition: &str| {
            format!("--xyz\r\nContent-Disposition: form-data; {disposition}\r\n\r\nabc\r\n--xyz--")
        };
        let named = r#"filename="a\"; name=\"x; name=other"; name="file""#;
        check(&of(named), &Ok("abc"));
        check(&of(r#"filename="; name=file""#), &Err(BadForm::NoFile));
        let kind = r#"multipart/form-data; charset="; boundary=no"; boundary="a;b""#;
        let reader = FormReader::new(kind).unwrap();
        assert_eq!(reader.delimiter.needle(), b"\r\n--a;b");
    }

    #[test]
    fn what_is_no_whole_form_is_refused() {
        check(&format!("{}--xyz--\r\n", part("other", "abc")), &Err(BadForm::NoFile));
        check(part("file", "abc").trim_end(), &Err(BadForm::Malformed(1)));
        check("--xyzabc\r\n\r\n", &Err(BadForm::Malformed(0)));
        check("no boundary at all", &Err(BadForm::NoFile));
        for kind in ["text/plain", "multipart/form-data", "multipart/form-data; boundary="] {
            assert_eq!(FormReader::new(kind).unwrap_err(), BadForm::ContentType, "{kind}");
        }
    }
}
