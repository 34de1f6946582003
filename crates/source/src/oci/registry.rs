//! A registry (OCI distribution specification 1.1): its manifests, blobs and tokens by our HTTP engine;
//! what is pushed, by `oci-client`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bootyard_spec::{Credentials, Digest, SafeUrl, shell_word};
use bytes::Bytes;
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::{RegistryToken, RegistryTokenType};
use oci_client::{Reference, RegistryOperation};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};

use super::auth::Login;
use super::token::{Access, Granted};
use super::{DOCUMENT_MAX, auth, manifest, read_all, token, verify};
use crate::error::ErrorKind;
use crate::http::Http;
use crate::origin::{Locating, Location, Origin, Plain};
use crate::{Error, Object, Options, Start};

/// What a manifest may be.
const MANIFESTS: [&str; 4] = [
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];

/// One repository of a registry.
#[derive(Debug, Clone)]
pub(super) struct Registry(Arc<Inner>);

struct Inner {
    reference: Reference,
    /// `https://HOST/v2/`.
    root: SafeUrl,
    client: Client,
    login: Login,
    token: Mutex<Token>,
    options: Options,
}

/// What requests are sent with.
#[derive(Clone)]
enum Token {
    /// It is to be asked for.
    Unknown,
    Known(Option<HeaderValue>),
}

/// A manifest or a blob.
#[derive(Debug)]
struct Part {
    registry: Registry,
    url: SafeUrl,
    accept: bool,
}

impl Registry {
    /// Finds the registry of an image, and reads what the name leads to.
    pub(super) async fn resolve(
        name: &str,
        options: &Options,
    ) -> Result<(Self, (Bytes, Digest)), Error> {
        let registry = Self::connect(parse(name)?, options).await?;
        let Inner { reference, .. } = &*registry.0;
        let digest = reference.digest().map(|digest| {
            manifest::strong(digest)
                .ok_or_else(|| Error::image(name, "its digest is neither SHA-256 nor SHA-512"))
        });
        let digest = digest.transpose()?;
        let wanted = reference.digest().or(reference.tag()).unwrap_or("latest");
        let bytes = registry.manifest(wanted, None).await?;
        let document = verify(name, bytes, digest.as_ref())?;
        Ok((registry, document))
    }

    /// The registry of an image that will be pushed, to which its credentials have been shown; and how
    /// long they are good, if not for ever.
    pub(super) async fn for_push(
        name: &str,
        options: &Options,
    ) -> Result<(Self, Option<Duration>), Error> {
        let registry = Self::connect(parse(name)?, options).await?;
        let lifetime = registry.authorize_push().await?;
        Ok((registry, lifetime))
    }

    /// Gives the client that pushes what it sends its requests with, so that it never asks itself: it
    /// would wait for ever, and read whatever comes.
    pub(super) async fn authorize_push(&self) -> Result<Option<Duration>, Error> {
        let Inner { reference, root, client, login, options, .. } = &*self.0;
        let granted = token::authorize(root, reference, login, Access::Push, options).await;
        let (auth, token, lifetime) = match granted.map_err(|error| self.explain(error))? {
            Granted::Nothing => return Ok(None),
            Granted::Basic(Credentials { id, secret }) => {
                let (id, secret) = (id, secret.expose().to_owned());
                let auth = RegistryAuth::Basic(id.clone(), secret.clone());
                (auth, RegistryTokenType::Basic(id, secret), None)
            }
            Granted::Token(token, lifetime) => {
                let token = token.expose().to_owned();
                let auth = RegistryAuth::Bearer(token.clone());
                (auth, RegistryTokenType::Bearer(RegistryToken::Token { token }), Some(lifetime))
            }
        };
        client.store_auth_if_needed(reference.resolve_registry(), &auth).await;
        for operation in [RegistryOperation::Pull, RegistryOperation::Push] {
            client.tokens.insert(reference, operation, token.clone()).await;
        }
        Ok(lifetime)
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.0.reference
    }

    /// The registry did not take a part of an image.
    pub(super) fn not_pushed(&self, error: &OciDistributionError) -> Error {
        let name = self.name();
        let (kind, why) = match error {
            OciDistributionError::RequestError(error) => {
                return self.explain(Error::request(&self.0.root, self.0.root.expose(), error));
            }
            OciDistributionError::UnauthorizedError { .. } => {
                (ErrorKind::Denied, "its registry wants other credentials".to_owned())
            }
            OciDistributionError::ServerError { code: code @ (401 | 403), .. } => {
                (ErrorKind::Denied, format!("its registry answered with HTTP status {code}"))
            }
            OciDistributionError::ServerError { code, .. } => {
                (ErrorKind::Status, format!("its registry answered with HTTP status {code}"))
            }
            other => (ErrorKind::BadAnswer, other.to_string()),
        };
        self.explain(Error::new(kind, format!("cannot push `{name}`: {why}")))
    }

    async fn connect(reference: Reference, options: &Options) -> Result<Self, Error> {
        let login = auth::find(&reference, options).await?;
        let insecure_skip_verify = options.insecure_skip_verify || options.image.insecure;
        let options = Options { insecure_skip_verify, ..options.clone() };
        let host = reference.resolve_registry().to_owned();
        let is_plain = options.image.insecure && !speaks_tls(root(&host, false)?, &options).await;
        let root = root(&host, is_plain)?;
        let client = client(&root, &options)?;
        let token = Mutex::new(Token::Unknown);
        Ok(Self(Arc::new(Inner { reference, root, client, login, token, options })))
    }

    /// A manifest or an index, by its tag or digest, as it came.
    pub(super) async fn manifest(&self, name: &str, size: Option<u64>) -> Result<Bytes, Error> {
        let http = self.open(&format!("manifests/{name}"), true, &Start::default()).await?;
        let http = match size {
            Some(size) => http.expect_len(size)?,
            None => http,
        };
        let limit = size.unwrap_or(DOCUMENT_MAX).min(DOCUMENT_MAX);
        read_all(&mut Object::from(http), limit).await
    }

    /// A blob of this length.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        start: &Start,
    ) -> Result<Http, Error> {
        self.open(&format!("blobs/{digest}"), false, start).await?.expect_len(size)
    }

    async fn open(&self, path: &str, accept: bool, start: &Start) -> Result<Http, Error> {
        let path = format!("{}/{path}", self.0.reference.repository());
        let url = self.0.root.expose().join(&path);
        let url = url.map_err(|_| Error::image(&self.name(), "its name fits in no URL"))?.into();
        let part = Part { registry: self.clone(), url, accept };
        let opened = Http::open_at(Box::new(part), &self.0.options, start).await;
        opened.map_err(|error| self.explain(error))
    }

    fn name(&self) -> String {
        self.0.reference.to_string()
    }

    /// The error with what helps with registries.
    fn explain(&self, error: Error) -> Error {
        let host = shell_word(self.0.reference.registry());
        let hint = match error.kind() {
            ErrorKind::NotFound => format!("check the name and the tag of `{}`", self.name()),
            ErrorKind::Denied => format!(
                "check the name; if it is right, log in with `skopeo login {host}`, or give a file \
                 with credentials with `--registry-auth`"
            ),
            ErrorKind::Tls | ErrorKind::Connect if !self.0.options.image.insecure => format!(
                "if `{host}` has no certificate that this machine trusts, or speaks plain HTTP, \
                 allow that with `--insecure`"
            ),
            _ => return error,
        };
        error.with_hint(hint)
    }

    /// What the next request is sent with.
    async fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        if let Token::Known(header) = self.token() {
            return Ok(header);
        }
        let Inner { reference, root, login, options, .. } = &*self.0;
        // Who wants the image's parts asks again, and would multiply the requests otherwise.
        let options = Options { connections: 1, attempts: 1, ..options.clone() };
        let granted = token::authorize(root, reference, login, Access::Pull, &options).await;
        let granted = granted.map_err(|error| self.explain(error))?;
        let header = granted.header(reference)?;
        *self.lock() = Token::Known(header.clone());
        Ok(header)
    }

    fn token(&self) -> Token {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Token> {
        self.0.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(name: &str) -> Result<Reference, Error> {
    let repository = repository(name);
    if repository.chars().any(char::is_uppercase) {
        let what =
            format!("`{name}` is no name of an image: `{repository}` has upper-case letters");
        let lower = shell_word(name.replacen(repository, &repository.to_lowercase(), 1));
        let hint = format!("names in registries are in lower case: `docker://{lower}`");
        return Err(Error::new(ErrorKind::Setup, what).with_hint(hint));
    }
    name.parse().map_err(|error| {
        let what = format!("`{name}` is no name of an image: {error}");
        Error::new(ErrorKind::Setup, what)
            .with_hint("expected [HOST[:PORT]/]NAME[:TAG][@DIGEST]".to_owned())
    })
}

/// The part of an image's name between its host, if it has one, and its tag or digest.
fn repository(name: &str) -> &str {
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let path = match name.split_once('/') {
        Some((first, path)) if is_host(first) => path,
        _ => name,
    };
    let path = path.split('@').next().unwrap_or_default();
    match path.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => path,
    }
}

/// Whether the registry answers by HTTPS, whatever it answers.
async fn speaks_tls(url: SafeUrl, options: &Options) -> bool {
    let once = Options { attempts: 1, ..options.clone() };
    let origin = Box::new(Plain::bare(&url));
    let asked = Http::open_at(origin, &once, &Start::default()).await;
    let kind = asked.err().map(|error| error.kind());
    !matches!(kind, Some(ErrorKind::Tls | ErrorKind::Connect | ErrorKind::Broken))
}

/// The address of a registry's API.
fn root(host: &str, is_plain: bool) -> Result<SafeUrl, Error> {
    let scheme = if is_plain { "http" } else { "https" };
    let url = format!("{scheme}://{host}/v2/").parse();
    url.map_err(|_| Error::new(ErrorKind::Setup, format!("`{host}` is no host")))
}

/// The client that pushes.
fn client(root: &SafeUrl, options: &Options) -> Result<Client, Error> {
    const END: &str = "-----END CERTIFICATE-----";
    let bundle = String::from_utf8_lossy(&options.extra_ca).into_owned();
    let certificates = bundle.split_inclusive(END).filter(|part| part.contains(END));
    let certificate = |part: &str| Certificate {
        encoding: CertificateEncoding::Pem,
        data: part.as_bytes().to_vec(),
    };
    let is_direct = options.proxy.no_proxy.matches(root.expose());
    let proxy = |proxy: &Option<SafeUrl>| {
        proxy.as_ref().filter(|_| !is_direct).map(|url| url.expose().to_string())
    };
    let config = ClientConfig {
        protocol: match root.expose().scheme() {
            "http" => ClientProtocol::Http,
            _ => ClientProtocol::Https,
        },
        accept_invalid_certificates: options.insecure_skip_verify,
        extra_root_certificates: certificates.map(certificate).collect(),
        read_timeout: Some(options.stall_timeout),
        connect_timeout: Some(options.connect_timeout),
        http_proxy: proxy(&options.proxy.http),
        https_proxy: proxy(&options.proxy.https),
        user_agent: concat!("bootyard/", env!("CARGO_PKG_VERSION")),
        // Until it gets another one.
        default_token_expiration_secs: 24 * 60 * 60,
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| {
        let what = "cannot set up the registry's client".to_owned();
        Error::new(ErrorKind::Setup, what).because(error)
    })
}

impl Origin for Part {
    fn name(&self) -> String {
        self.url.to_string()
    }

    fn locate(&self) -> Locating<'_> {
        Box::pin(async {
            let mut headers = HeaderMap::new();
            if let Some(header) = self.registry.authorization().await? {
                headers.insert(AUTHORIZATION, header);
            }
            if self.accept {
                for media_type in MANIFESTS {
                    headers.append(ACCEPT, HeaderValue::from_static(media_type));
                }
            }
            Ok(Location { url: self.url.clone(), headers })
        })
    }

    fn renew(&self) -> bool {
        *self.registry.lock() = Token::Unknown;
        true
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("root", &self.root).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_in_upper_case_is_named() {
        for (name, repository, lower) in [
            ("UPPER/x", "UPPER/x", "upper/x"),
            ("quay.io/Team/x:V1", "Team/x", "quay.io/team/x:V1"),
            ("Host.example:5000/a/B@sha256:00", "a/B", "Host.example:5000/a/b@sha256:00"),
            ("localhost/X", "X", "localhost/x"),
        ] {
            let error = parse(name).unwrap_err();
            let what =
                format!("`{name}` is no name of an image: `{repository}` has upper-case letters");
            assert_eq!(error.to_string(), what);
            let hint = bootyard_spec::Explain::hint(&error).unwrap();
            assert!(hint.ends_with(&format!("`docker://{lower}`")), "{hint}");
        }
        for name in ["Host.example:5000/x:Tag", "x:Tag", "quay.io/x/y"] {
            assert!(parse(name).is_ok(), "{name}");
        }
    }
}
