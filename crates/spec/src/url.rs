//! URLs whose secrets cannot be printed by accident.

use std::fmt;
use std::str::FromStr;

/// A URL that shows `****` for its password, for a user name alone (some servers take a token for
/// it), for query values that are signatures or tokens and for its fragment, in `Display` and
/// `Debug` alike. [`SafeUrl::expose`] gives the real one to the code that sends it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SafeUrl(url::Url);

/// The text is not a URL. The text itself is not shown, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid URL: {0}")]
pub struct ParseUrlError(url::ParseError);

/// Parts of query-parameter names whose values are secrets: presigned S3 and GCS URLs
/// (`X-Amz-Signature`, `X-Amz-Credential`, `X-Amz-Security-Token`, `X-Goog-Signature`, `Signature`),
/// Azure SAS (`sig`) and the usual names of tokens.
const SECRET_PARAMETERS: [&str; 9] = [
    "signature",
    "credential",
    "token",
    "password",
    "secret",
    "accesskey",
    "access_key",
    "apikey",
    "api_key",
];

/// Words that are secrets as a parameter's whole name or as one of its words: `auth_key`, but not
/// `keyboard`.
const SECRET_WORDS: [&str; 9] =
    ["sig", "key", "auth", "pass", "passwd", "pwd", "hmac", "jwt", "authorization"];

const MASK: &str = "****";

impl SafeUrl {
    /// The URL with its secrets, for sending a request.
    pub const fn expose(&self) -> &url::Url {
        &self.0
    }

    /// The last part of the path: what a browser would name the file. `None` if it is empty.
    pub fn file_name(&self) -> Option<&str> {
        self.0.path_segments()?.next_back().filter(|name| !name.is_empty())
    }
}

impl From<url::Url> for SafeUrl {
    fn from(url: url::Url) -> Self {
        Self(url)
    }
}

impl FromStr for SafeUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, ParseUrlError> {
        text.parse().map(Self).map_err(ParseUrlError)
    }
}

fn is_secret(parameter: &str) -> bool {
    let parameter = parameter.to_ascii_lowercase();
    let mut words = parameter.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| SECRET_WORDS.contains(&word))
        || SECRET_PARAMETERS.iter().any(|secret| parameter.contains(secret))
}

impl fmt::Display for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        let masked = match (shown.username(), shown.password()) {
            (_, Some(_)) => shown.set_password(Some(MASK)),
            ("", None) => Ok(()),
            (_, None) => shown.set_username(MASK),
        };
        if masked.is_err() {
            return f.write_str(MASK);
        }
        shown.set_fragment(shown.fragment().map(|_| MASK));
        let masked = self.0.query().map(|query| {
            let parts = query.split('&').map(|pair| match pair.split_once('=') {
                Some((name, _)) if is_secret(name) => format!("{name}={MASK}"),
                _ => pair.to_owned(),
            });
            parts.collect::<Vec<_>>().join("&")
        });
        shown.set_query(masked.as_deref());
        f.write_str(shown.as_str())
    }
}

impl fmt::Debug for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafeUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<SafeUrl>().unwrap().to_string()
    }

    #[test]
    fn secrets_are_masked() {
        assert_eq!(shown("https://u:p@h.example/x"), "https://u:****@h.example/x");
        assert_eq!(
            shown("https://h.example/x?X-Amz-Signature=abc&X-Amz-Date=1&sig=q&part=2"),
            "https://h.example/x?X-Amz-Signature=****&X-Amz-Date=1&sig=****&part=2"
        );
        assert_eq!(shown("https://ghp_token@h.example/x"), "https://****@h.example/x");
        assert_eq!(shown("https://h.example/x#access=abc"), "https://h.example/x#****");
        assert_eq!(
            shown("http://h/?key=a&auth=b&Pass=c&pwd=d&x-hmac=e&jwt=f&auth_key=g&key"),
            "http://h/?key=****&auth=****&Pass=****&pwd=****&x-hmac=****&jwt=****&auth_key=****&key"
        );
        let debug = format!("{:?}", "http://u:p@h/".parse::<SafeUrl>().unwrap());
        assert_eq!(debug, "SafeUrl(http://u:****@h/)");
    }

    #[test]
    fn the_rest_is_untouched() {
        let plain =
            "http://127.0.0.1:8080/a%20b/debian-12.qcow2?x=1&keyboard=de&author=me&compass=n";
        assert_eq!(shown(plain), plain);
        let url: SafeUrl = plain.parse().unwrap();
        assert_eq!(url.file_name(), Some("debian-12.qcow2"));
    }

    #[test]
    fn a_refused_text_is_not_repeated() {
        let error = "http://u:hunter2@[/".parse::<SafeUrl>().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
