//! What object stores have in common: the form of a URL, and refusals in XML (S3's, which GCS
//! speaks as well).

use bootyard_spec::{ObjectName, SafeUrl};
use percent_encoding::percent_decode_str;

use crate::Error;

/// The longest code and message that are shown.
const CODE_MAX: usize = 64;
const MESSAGE_MAX: usize = 200;

/// What a refusal says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The store's word for it: `NoSuchKey`.
    pub(crate) code: String,
    /// Its sentence, without the full stop.
    pub(crate) message: String,
    /// The region that would be right.
    pub(crate) region: Option<String>,
    pub(crate) hint: Option<String>,
    /// The origin has learned from it: another request may do.
    pub(crate) again: bool,
}

impl Told {
    /// Reads the start of a body; `None` if it has no code.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let body = String::from_utf8_lossy(body);
        let told =
            Self::new(element(&body, "Code")?, element(&body, "Message").unwrap_or_default());
        let region = element(&body, "Region").map(str::to_owned);
        (!told.code.is_empty()).then_some(Self { region, ..told })
    }

    /// Makes a stranger's text fit to be shown.
    pub(crate) fn new(code: &str, message: &str) -> Self {
        let fits = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        let code = code.chars().filter(fits).take(CODE_MAX).collect();
        let message = message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX);
        let message = message.collect::<String>().trim().trim_end_matches('.').to_owned();
        Self { code, message, ..Self::default() }
    }
}

/// The text of the first element of this name. A body that is cut off still has the first ones.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Bucket and key of `scheme://HOST/BUCKET/KEY`.
pub(crate) fn object_in(url: &SafeUrl) -> Result<ObjectName, Error> {
    let path = percent_decode_str(url.expose().path()).decode_utf8().ok();
    let parts = path.as_deref().and_then(|path| path.strip_prefix('/')?.split_once('/'));
    match parts.filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty()) {
        Some((bucket, key)) => Ok(ObjectName { bucket: bucket.to_owned(), key: key.to_owned() }),
        None => Err(Error::unusable(format!("expected https://HOST/BUCKET/KEY, got `{url}`"))),
    }
}

/// Whether a key survives in a URL: those with a part `.` or `..` name another object there
/// (RFC 3986 §5.2.4).
pub(crate) fn is_expressible(key: &str) -> bool {
    !key.split('/').any(|part| matches!(part, "." | ".."))
}

/// The failure of a key that is not [`is_expressible`].
pub(crate) fn inexpressible(name: &str) -> Error {
    Error::unusable(format!("`{name}` has a part `.` or `..`, which no URL can hold"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_as_far_as_it_came() {
        let body = "<?xml version=\"1.0\"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>\
                    the region 'a' is wrong; expecting 'b'.</Message><Region>b</Region><Host";
        let told = Told::read(body.as_bytes()).unwrap();
        assert_eq!(told.code, "AuthorizationHeaderMalformed");
        assert_eq!(told.message, "the region 'a' is wrong; expecting 'b'");
        assert_eq!(told.region.as_deref(), Some("b"));
        for body in ["", "<html>no</html>", "<Code>cut", "<Code></Code>", "<Code>\u{1b}[2J</Code"] {
            assert_eq!(Told::read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn only_keys_that_stay_themselves_fit_into_a_url() {
        assert!(is_expressible("a//b/c..d/.e"));
        assert!(!is_expressible("a/../b") && !is_expressible("."));
    }
}
