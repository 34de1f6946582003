//! What a registry wants with each request (distribution specification; docker's "Token
//! Authentication"): nothing, a name and a password, or a token that another server gives for them.
//!
//! Both servers are asked by our HTTP engine, so that its limits and proxies hold here too.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bootyard_spec::SafeUrl;
use http_auth::parser::ChallengeParser;
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::timeout;

use super::read_all;
use crate::error::ErrorKind;
use crate::http::Http;
use crate::origin::{Locating, Location, Origin, Refusal};
use crate::store::Told;
use crate::{Error, Object, Options, Start};

/// The most bytes of an answer with a token. Real ones have a few KiB.
const TOKEN_MAX: u64 = 1 << 20;

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
}

/// A server that is asked one thing. Notes the challenges of its refusal.
#[derive(Debug)]
struct Asked {
    url: SafeUrl,
    authorization: Option<HeaderValue>,
    challenges: Arc<Mutex<Vec<String>>>,
}

/// The `Authorization` for reading from the registry whose address is `base`, `https://HOST/v2/`.
pub(super) async fn authorization(
    base: &SafeUrl,
    image: &Reference,
    auth: &RegistryAuth,
    options: &Options,
) -> Result<Option<HeaderValue>, Error> {
    let basic = match auth {
        RegistryAuth::Bearer(token) => return header(&format!("Bearer {token}"), image).map(Some),
        RegistryAuth::Basic(user, password) => {
            let pair = STANDARD.encode(format!("{user}:{password}"));
            Some(header(&format!("Basic {pair}"), image)?)
        }
        RegistryAuth::Anonymous => None,
    };
    // Who wants the image's parts asks again, and would multiply the requests otherwise.
    let options = Options { connections: 1, attempts: 1, ..options.clone() };
    let (challenged, challenges) = ask(base, None, &options).await;
    match challenged {
        Err(error) if error.http_status().is_none() => return Err(error),
        // What it means if nothing is wanted here, only the image itself can tell.
        _ => {}
    }
    let Some(bearer) = challenges.iter().find_map(|text| bearer(text)) else { return Ok(basic) };
    let url = bearer.url(image)?;
    let is_plain = |url: &SafeUrl| url.expose().scheme() == "http";
    if basic.is_some() && is_plain(&url) && !is_plain(base) && !options.image.insecure {
        let what = format!("`{base}` wants its credentials sent unencrypted to `{url}`");
        return Err(Error::new(ErrorKind::Denied, what));
    }
    let token = token(&url, basic, image, &options).await?;
    header(&format!("Bearer {token}"), image).map(Some)
}

/// A token from the server that the registry has named.
async fn token(
    url: &SafeUrl,
    basic: Option<HeaderValue>,
    image: &Reference,
    options: &Options,
) -> Result<String, Error> {
    let limit = options.connect_timeout + options.stall_timeout;
    let (opened, _) = ask(url, basic, options).await;
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
    answer
        .and_then(|answer| answer.token.or(answer.access_token))
        .ok_or_else(|| Error::bad_answer(&url.to_string(), "a token", "something else"))
}

async fn ask(
    url: &SafeUrl,
    authorization: Option<HeaderValue>,
    options: &Options,
) -> (Result<Object, Error>, Vec<String>) {
    let challenges = Arc::default();
    let asked = Asked { url: url.clone(), authorization, challenges: Arc::clone(&challenges) };
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
    fn url(&self, image: &Reference) -> Result<SafeUrl, Error> {
        let host = image.registry();
        let mut url = reqwest::Url::parse(&self.realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| Error::bad_answer(host, "the URL of a token server", "another realm"))?;
        let scope = format!("repository:{}:pull", image.repository());
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &self.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        Ok(SafeUrl::from(url))
    }
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
    fn a_realm_is_asked_for_one_repository() {
        let image: Reference = "h.example/x/y:t".parse().unwrap();
        let bearer = |realm: &str| Bearer { realm: realm.to_owned(), service: Some("a b".into()) };
        let url = bearer("https://a/t?account=c").url(&image).unwrap();
        let expected = "https://a/t?account=c&scope=repository%3Ax%2Fy%3Apull&service=a+b";
        assert_eq!(url.expose().as_str(), expected);
        for realm in ["", "/token", "file:///etc/passwd"] {
            assert_eq!(bearer(realm).url(&image).unwrap_err().kind(), ErrorKind::BadAnswer);
        }
    }
}
