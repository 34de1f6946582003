//! What a registry wants with each request (distribution specification; docker's "Token
//! Authentication"): nothing, a name and a password, or a token that another server gives for them.
//!
//! Both servers are asked by our HTTP engine, so that its limits and proxies hold here too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bootyard_spec::{Credentials, SafeUrl, Secret};
use http_auth::parser::ChallengeParser;
use oci_client::Reference;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::timeout;

use super::auth::Login;
use super::read_all;
use crate::error::ErrorKind;
use crate::http::Http;
use crate::origin::{Locating, Location, Origin, Refusal};
use crate::store::Told;
use crate::{Error, Object, Options, Start};

/// The most bytes of an answer with a token. Real ones have a few KiB.
const TOKEN_MAX: u64 = 1 << 20;

/// How long a token is good whose server does not say (docker's "Token Authentication").
const LIFETIME: Duration = Duration::from_secs(60);

/// What a registry asks for (RFC 6750 §3).
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: Option<String>,
}

/// The answer of a token server, by either name.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds.
    expires_in: Option<u64>,
}

/// A server that is asked one thing. Notes the challenges of its refusal.
#[derive(Debug)]
struct Asked {
    url: SafeUrl,
    authorization: Option<HeaderValue>,
    form: Option<Secret>,
    challenges: Arc<Mutex<Vec<String>>>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

impl Access {
    const fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

/// What requests to a registry are sent with.
#[derive(Debug)]
pub(super) enum Granted {
    /// It wants nothing that we have.
    Nothing,
    Basic(Credentials),
    /// A token, and for how long it is good.
    Token(Secret, Duration),
}

impl Granted {
    pub(super) fn header(&self, image: &Reference) -> Result<Option<HeaderValue>, Error> {
        match self {
            Self::Nothing => Ok(None),
            Self::Basic(credentials) => basic(credentials, image).map(Some),
            Self::Token(token, _) => header(&format!("Bearer {}", token.expose()), image).map(Some),
        }
    }
}

/// What the registry whose address is `base`, `https://HOST/v2/`, wants requests sent with.
pub(super) async fn authorize(
    base: &SafeUrl,
    image: &Reference,
    login: &Login,
    access: Access,
    options: &Options,
) -> Result<Granted, Error> {
    let (challenged, challenges) = ask(base, None, None, options).await;
    match challenged {
        Err(error) if error.http_status().is_none() => return Err(error),
        // What it means if nothing is wanted here, only the image itself can tell.
        _ => {}
    }
    let Some(bearer) = challenges.iter().find_map(|text| bearer(text)) else {
        return Ok(match login {
            Login::Basic(credentials) => Granted::Basic(credentials.clone()),
            Login::Anonymous | Login::Identity(_) => Granted::Nothing,
        });
    };
    let realm = bearer.realm(image)?;
    let is_plain = |url: &SafeUrl| url.expose().scheme() == "http";
    let is_known = !matches!(login, Login::Anonymous);
    if is_known && is_plain(&realm) && !is_plain(base) && !options.image.insecure {
        let what = format!("`{base}` wants its credentials sent unencrypted to `{realm}`");
        return Err(Error::new(ErrorKind::Denied, what));
    }
    let mut words = vec![("scope", format!("repository:{}:{}", image.repository(), access.name()))];
    words.extend(bearer.service.map(|service| ("service", service)));
    let (url, basic, form) = match login {
        Login::Identity(token) => {
            // RFC 6749 §6, as docker's "OAuth2 Token Authentication" has it.
            words.push(("grant_type", "refresh_token".to_owned()));
            words.push(("client_id", "bootyard".to_owned()));
            words.push(("refresh_token", token.expose().to_owned()));
            (realm, None, Some(Secret::new(query(&words))))
        }
        login => {
            let mut url = realm.expose().clone();
            url.query_pairs_mut().extend_pairs(&words);
            let basic = match login {
                Login::Basic(credentials) => Some(basic(credentials, image)?),
                _ => None,
            };
            (SafeUrl::from(url), basic, None)
        }
    };
    let (opened, _) = ask(&url, basic, form, options).await;
    token(opened, &url, image, options).await
}

/// Words as a form.
fn query(words: &[(&str, String)]) -> String {
    let mut url = reqwest::Url::parse("form://form").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(words);
    url.query().unwrap_or_default().to_owned()
}

/// The token in the answer of the server that the registry has named.
async fn token(
    opened: Result<Object, Error>,
    url: &SafeUrl,
    image: &Reference,
    options: &Options,
) -> Result<Granted, Error> {
    let limit = options.connect_timeout + options.stall_timeout;
    let mut object = opened.map_err(|error| match error.kind() {
        ErrorKind::Denied | ErrorKind::NotFound => {
            let what = format!("no token for `{image}`");
            Error::new(ErrorKind::Denied, what).because(error)
        }
        _ => error,
    })?;
    let bytes = timeout(limit, read_all(&mut object, TOKEN_MAX)).await;
    let bytes = bytes.map_err(|_| Error::no_answer(&url.to_string(), limit))??;
    // The parser's error would repeat what it read.
    let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
    let token = answer.and_then(|answer| {
        let lifetime = answer.expires_in.map_or(LIFETIME, Duration::from_secs);
        Some(Granted::Token(Secret::new(answer.token.or(answer.access_token)?), lifetime))
    });
    token.ok_or_else(|| Error::bad_answer(&url.to_string(), "a token", "something else"))
}

async fn ask(
    url: &SafeUrl,
    authorization: Option<HeaderValue>,
    form: Option<Secret>,
    options: &Options,
) -> (Result<Object, Error>, Vec<String>) {
    let challenges = Arc::default();
    let asked =
        Asked { url: url.clone(), authorization, form, challenges: Arc::clone(&challenges) };
    let opened = Http::open_at(Box::new(asked), options, &Start::default()).await;
    let challenges = challenges.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (opened.map(Object::from), challenges)
}

/// The first challenge for a token in a header's value.
fn bearer(text: &str) -> Option<Bearer> {
    ChallengeParser::new(text).filter_map(Result::ok).find_map(|challenge| {
        let parameter = |name: &str| {
            let mut all = challenge.params.iter();
            all.find(|(own, _)| own.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_unescaped())
        };
        let realm = parameter("realm").filter(|_| challenge.scheme.eq_ignore_ascii_case("Bearer"));
        Some(Bearer { realm: realm?, service: parameter("service") })
    })
}

impl Bearer {
    /// The address of the server of tokens.
    fn realm(&self, image: &Reference) -> Result<SafeUrl, Error> {
        let url = reqwest::Url::parse(&self.realm).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| {
            Error::bad_answer(image.registry(), "the URL of a token server", "another realm")
        })?;
        Ok(SafeUrl::from(url))
    }
}

fn basic(credentials: &Credentials, image: &Reference) -> Result<HeaderValue, Error> {
    let pair = STANDARD.encode(format!("{}:{}", credentials.id, credentials.secret.expose()));
    header(&format!("Basic {pair}"), image)
}

fn header(text: &str, image: &Reference) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        let what = "its credentials or its token cannot be sent";
        Error::image(&image.to_string(), what)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Origin for Asked {
    fn name(&self) -> String {
        self.url.to_string()
    }

    fn locate(&self) -> Locating<'_> {
        let mut headers = HeaderMap::new();
        headers.extend(self.authorization.clone().map(|value| (AUTHORIZATION, value)));
        let location = Location { url: self.url.clone(), headers };
        Box::pin(std::future::ready(Ok(location)))
    }

    fn form(&self) -> Option<&Secret> {
        self.form.as_ref()
    }

    fn reads_refusals(&self) -> bool {
        true
    }

    fn explain(&self, refusal: &Refusal<'_>) -> Option<Told> {
        let values = refusal.headers.get_all(WWW_AUTHENTICATE).iter();
        let values = values.filter_map(|value| value.to_str().ok().map(str::to_owned));
        *self.challenges.lock().unwrap_or_else(PoisonError::into_inner) = values.collect();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_server_is_found_among_challenges() {
        let found = |realm: &str, service: Option<&str>| {
            Some(Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (text, expected) in [
            (r#"Bearer realm="https://a/t",service="s""#, found("https://a/t", Some("s"))),
            (r#"bearer Realm="https://a/t?x=\"y\"""#, found(r#"https://a/t?x="y""#, None)),
            (r#"Basic realm="b", Bearer realm="https://a/t""#, found("https://a/t", None)),
            (r#"Basic realm="b""#, None),
            (r#"Bearer service="s""#, None),
            ("", None),
        ] {
            assert_eq!(bearer(text), expected, "{text}");
        }
    }

    #[test]
    fn a_realm_is_an_address() {
        let image: Reference = "h.example/x/y:t".parse().unwrap();
        let bearer = |realm: &str| Bearer { realm: realm.to_owned(), service: None };
        let realm = "https://a/t?account=c";
        assert_eq!(bearer(realm).realm(&image).unwrap().expose().as_str(), realm);
        let words = [("scope", "repository:x/y:pull".to_owned()), ("service", "a b".to_owned())];
        assert_eq!(query(&words), "scope=repository%3Ax%2Fy%3Apull&service=a+b");
        for realm in ["", "/token", "file:///etc/passwd"] {
            assert_eq!(bearer(realm).realm(&image).unwrap_err().kind(), ErrorKind::BadAnswer);
        }
    }
}
