//! Headers that the user adds to the requests for a URL.

use std::str::FromStr;

use bootyard_spec::Secret;
use reqwest::header::{HeaderName, HeaderValue};

/// One header, as CDI's `extraHeaders` and `secretExtraHeaders` have it: `Name: value`. Sent to the
/// URL's own scheme, host and port only, whatever redirects to elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    name: HeaderName,
    /// Valid as a header's value.
    value: Secret,
}

/// Why a text is no header. Shows the name at most, since the value may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseHeaderError {
    /// There is no colon.
    #[error("expected a header as `Name: value`, got a text without a colon")]
    NoColon,
    /// The name has characters that no name has (RFC 9110 §5.6.2), or none.
    #[error("`{0}` is not the name of a header")]
    Name(String),
    /// The header says how the request is sent or which bytes it is for.
    #[error("the header `{0}` cannot be set: it belongs to the transfer itself")]
    Ours(String),
    /// The value has control characters.
    #[error("the value of the header `{0}` has characters that cannot be sent")]
    Value(String),
}

/// What decides which bytes come and how: only this crate knows that.
const OURS: [&str; 11] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-range",
    "proxy-authorization",
    "range",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl Header {
    pub(crate) fn name(&self) -> HeaderName {
        self.name.clone()
    }

    pub(crate) fn value(&self) -> HeaderValue {
        let value = HeaderValue::from_str(self.value.expose());
        let mut value = value.expect("it was one when it was parsed");
        value.set_sensitive(true);
        value
    }
}

impl FromStr for Header {
    type Err = ParseHeaderError;

    fn from_str(text: &str) -> Result<Self, ParseHeaderError> {
        let (name, value) = text.split_once(':').ok_or(ParseHeaderError::NoColon)?;
        let (name, value) = (name.trim(), value.trim());
        let parsed = HeaderName::from_str(name);
        let parsed = parsed.map_err(|_| ParseHeaderError::Name(name.to_owned()))?;
        if OURS.contains(&parsed.as_str()) {
            return Err(ParseHeaderError::Ours(name.to_owned()));
        }
        if HeaderValue::from_str(value).is_err() {
            return Err(ParseHeaderError::Value(name.to_owned()));
        }
        Ok(Self { name: parsed, value: Secret::new(value.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_trimmed_value() {
        for (text, name, value) in [
            ("X-Key: hunter2", "x-key", "hunter2"),
            ("x-key:hunter2 \n", "x-key", "hunter2"),
            ("Authorization: Bearer a:b", "authorization", "Bearer a:b"),
            ("X-Empty:", "x-empty", ""),
        ] {
            let header: Header = text.parse().unwrap();
            assert_eq!((header.name().as_str(), header.value().to_str().unwrap()), (name, value));
            assert!(!format!("{header:?} {:?}", header.value()).contains("hunter2"));
        }
    }

    #[test]
    fn what_cannot_be_a_header_is_refused_without_its_value() {
        for (text, expected) in [
            ("hunter2", ParseHeaderError::NoColon),
            (": hunter2", ParseHeaderError::Name(String::new())),
            ("X Key: hunter2", ParseHeaderError::Name("X Key".to_owned())),
            ("X-Key: hun\nter2", ParseHeaderError::Value("X-Key".to_owned())),
            ("Range: bytes=0-1", ParseHeaderError::Ours("Range".to_owned())),
            ("HOST: h.example", ParseHeaderError::Ours("HOST".to_owned())),
        ] {
            let error = text.parse::<Header>().unwrap_err();
            assert_eq!(error, expected);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
