//! `Content-Range` (RFC 9110 §14.4), and whether a server's 206 is what was asked for.

use std::ops::Range;
use std::str::FromStr;

/// `bytes FIRST-LAST/TOTAL`, with `*` for an unknown total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// The bytes that follow, the end excluded.
    pub(crate) bytes: Range<u64>,
    pub(crate) total: Option<u64>,
}

/// The text is not a satisfied byte range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParseContentRangeError;

impl FromStr for ContentRange {
    type Err = ParseContentRangeError;

    fn from_str(text: &str) -> Result<Self, ParseContentRangeError> {
        parse(text).ok_or(ParseContentRangeError)
    }
}

fn parse(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.split_once(' ')?;
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let end = last.checked_add(1)?;
    let fits = first < end && total.is_none_or(|total| end <= total);
    let bytes = unit.eq_ignore_ascii_case("bytes");
    (bytes && fits).then_some(ContentRange { bytes: first..end, total })
}

/// The length of the object in the `Content-Range` of a 416: `bytes */TOTAL`.
pub(crate) fn total_of_unsatisfied(text: &str) -> Option<u64> {
    let (unit, rest) = text.split_once(' ')?;
    let total = number(rest.strip_prefix("*/")?)?;
    unit.eq_ignore_ascii_case("bytes").then_some(total)
}

/// Digits only: `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl ContentRange {
    /// Whether these are exactly the bytes `wanted`, as far as the object has them, and the object is
    /// `len` bytes long, as far as that is known.
    pub(crate) fn answers(&self, wanted: Wanted, len: Option<u64>) -> bool {
        let total = self.total.or(len);
        let end = match (wanted.end, total) {
            (Some(end), Some(total)) => Some(end.min(total)),
            (end, total) => end.or(total),
        };
        let same_total = match (self.total, len) {
            (Some(total), Some(len)) => total == len,
            _ => true,
        };
        same_total
            && self.bytes.start == wanted.start
            && end.is_none_or(|end| self.bytes.end == end)
    }
}

/// The bytes that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) start: u64,
    /// The byte behind the last one; `None` for the rest of the object.
    pub(crate) end: Option<u64>,
}

impl Wanted {
    /// The value of the `Range` header, none for the whole object.
    pub(crate) fn header(self) -> Option<String> {
        let Self { start, end } = self;
        match end {
            None if start == 0 => None,
            None => Some(format!("bytes={start}-")),
            Some(end) => Some(format!("bytes={start}-{}", end - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_well_formed_ranges() {
        let range = |bytes, total| Ok(ContentRange { bytes, total });
        for (text, expected) in [
            ("bytes 0-0/1", range(0..1, Some(1))),
            ("Bytes 2-4/10", range(2..5, Some(10))),
            ("bytes 2-4/*", range(2..5, None)),
            ("bytes 4-2/10", Err(ParseContentRangeError)),
            ("bytes 2-10/10", Err(ParseContentRangeError)),
            ("bytes */10", Err(ParseContentRangeError)),
            ("bytes=2-4/10", Err(ParseContentRangeError)),
            ("lines 2-4/10", Err(ParseContentRangeError)),
            ("bytes +2-4/10", Err(ParseContentRangeError)),
            ("bytes -4/10", Err(ParseContentRangeError)),
            ("bytes 0-18446744073709551615/*", Err(ParseContentRangeError)),
            ("", Err(ParseContentRangeError)),
        ] {
            assert_eq!(text.parse::<ContentRange>(), expected, "{text}");
        }
    }

    #[test]
    fn reads_the_total_of_an_unsatisfied_range() {
        for (text, expected) in [
            ("bytes */10", Some(10)),
            ("Bytes */0", Some(0)),
            ("bytes */*", None),
            ("bytes */-1", None),
            ("bytes 0-1/10", None),
            ("lines */10", None),
        ] {
            assert_eq!(total_of_unsatisfied(text), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_must_be_exactly_what_was_asked() {
        let middle = Wanted { start: 2, end: Some(5) };
        let rest = Wanted { start: 2, end: None };
        for (text, wanted, len, good) in [
            ("bytes 2-4/10", middle, Some(10), true),
            ("bytes 2-4/*", middle, Some(10), true),
            ("bytes 2-4/10", middle, None, true),
            ("bytes 2-3/10", middle, Some(10), false),
            ("bytes 3-5/10", middle, Some(10), false),
            ("bytes 2-4/11", middle, Some(10), false),
            ("bytes 2-3/4", middle, None, true),
            ("bytes 2-3/5", middle, None, false),
            ("bytes 2-5/10", middle, None, false),
            ("bytes 2-9/10", rest, Some(10), true),
            ("bytes 2-9/10", rest, None, true),
            ("bytes 2-9/*", rest, Some(10), true),
            ("bytes 2-8/10", rest, Some(10), false),
            ("bytes 2-8/*", rest, Some(10), false),
            ("bytes 2-8/*", rest, None, true),
        ] {
            let range: ContentRange = text.parse().unwrap();
            assert_eq!(range.answers(wanted, len), good, "{text} for {wanted:?} of {len:?}");
        }
    }

    #[test]
    fn a_request_names_its_last_byte() {
        assert_eq!(Wanted { start: 0, end: None }.header(), None);
        assert_eq!(Wanted { start: 5, end: None }.header().as_deref(), Some("bytes=5-"));
        assert_eq!(Wanted { start: 0, end: Some(1) }.header().as_deref(), Some("bytes=0-0"));
    }
}
