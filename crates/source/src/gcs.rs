//! Google's object store: where an object is, and the bearer token that opens it. The token is
//! asked for with a service account's key (RFC 7523), with what `gcloud auth application-default
//! login` leaves, or of the machine's metadata server; without any the object must be public.
#![expect(clippy::disallowed_methods, reason = "tokens run out by the clock")]

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bootyard_spec::{ObjectName, SafeUrl, Secret};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, Url};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::origin::{Locating, Location, Origin, Refusal};
use crate::store::{Told, inexpressible, is_expressible, object_in};
use crate::{Error, Options, client};

/// The store, in its XML API.
const ENDPOINT: &str = "https://storage.googleapis.com";

/// Where tokens are had if the key does not say.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// All that a token shall allow.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// How long an assertion is good for: the longest that Google takes.
const ASSERTION: Duration = Duration::from_secs(3600);

/// A token that runs out sooner than this is renewed.
const MARGIN: Duration = Duration::from_secs(60);

/// How long a token may take.
const TOKEN_LIMIT: Duration = Duration::from_secs(30);

/// How long the machine's metadata server may take: elsewhere nobody answers at its address.
const METADATA_LIMIT: Duration = Duration::from_secs(1);
const METADATA_HOST: &str = "metadata.google.internal";
const METADATA_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

/// The header that a metadata server wants and sends, so that no other is taken for one.
const FLAVOR: (&str, &str) = ("Metadata-Flavor", "Google");

/// The longest answer with a token that is read.
const ANSWER_MAX: usize = 64 << 10;

/// How Google's object store is spoken to. The default is the machine's own account, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcsOptions {
    /// The text of a key file (JSON), as `GOOGLE_APPLICATION_CREDENTIALS` names it.
    pub key: Option<Secret>,
    /// Another server than Google's, such as an emulator.
    pub endpoint: Option<SafeUrl>,
    /// Another metadata server than Google's: `HOST[:PORT]`.
    pub metadata_host: Option<String>,
    /// Send no token: the object is public.
    pub anonymous: bool,
}

impl GcsOptions {
    /// Bucket and object of CDI's form, `https://HOST/BUCKET/OBJECT`.
    ///
    /// # Errors
    ///
    /// If the URL does not name them.
    pub fn locate(url: &SafeUrl) -> Result<ObjectName, Error> {
        object_in(url)
    }
}

/// An object of Google's store.
pub(crate) struct Gcs {
    object: ObjectName,
    url: SafeUrl,
    client: Client,
    identity: Identity,
    /// Held while a new one is asked for, so that requests at the same time share it.
    token: Mutex<Option<Token>>,
}

/// Who asks for tokens.
enum Identity {
    Nobody,
    Service(Box<ServiceAccount>),
    /// The form to send, and where to.
    User(SafeUrl, Secret),
    /// The metadata server's URL.
    Machine(SafeUrl),
}

struct ServiceAccount {
    email: String,
    key_id: Option<String>,
    key: RsaKeyPair,
    token_uri: SafeUrl,
}

struct Token {
    /// `None`: the machine has no account, and nobody is asked again.
    header: Option<HeaderValue>,
    until: SystemTime,
}

/// A key file (<https://cloud.google.com/iam/docs/keys-create-delete>).
#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    client_email: Option<String>,
    private_key: Option<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
    refresh_token: Option<String>,
}

/// The answer of a token server (RFC 6749 §5.1).
#[derive(Deserialize)]
struct Grant {
    access_token: String,
    expires_in: u64,
}

/// What a token server refuses with (RFC 6749 §5.2).
#[derive(Deserialize)]
struct Denial {
    error: String,
    #[serde(default)]
    error_description: String,
}

impl Gcs {
    pub(crate) fn new(object: ObjectName, options: &Options) -> Result<Self, Error> {
        if !is_expressible(&object.key) {
            return Err(inexpressible(&format!("gs://{object}")));
        }
        let url = url_of(&object, options.gcs.endpoint.as_ref())?;
        let client = client::new(options)?;
        let identity = identity(&options.gcs)?;
        Ok(Self { object, url, client, identity, token: Mutex::new(None) })
    }

    /// The header with a token that is good for a while; `None` for nobody.
    async fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let mut kept = self.token.lock().await;
        let now = SystemTime::now();
        if let Some(token) = kept.as_ref().filter(|token| token.until > now + MARGIN) {
            return Ok(token.header.clone());
        }
        let token = match &self.identity {
            Identity::Nobody => return Ok(None),
            Identity::Service(account) => {
                let form = format!(
                    "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={}",
                    account.assertion(now)?
                );
                self.grant(&account.token_uri, form, now).await?
            }
            Identity::User(uri, form) => self.grant(uri, form.expose().to_owned(), now).await?,
            Identity::Machine(url) => self.machine_token(url, now).await,
        };
        Ok(kept.insert(token).header.clone())
    }

    /// Asks a token server.
    async fn grant(&self, uri: &SafeUrl, form: String, now: SystemTime) -> Result<Token, Error> {
        let request = self.client.post(uri.expose().clone()).body(form);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let asked = timeout(TOKEN_LIMIT, fetch(request)).await;
        let answer = asked.map_err(|_| Error::no_answer(&uri.to_string(), TOKEN_LIMIT))?;
        let (answer, body) = answer.map_err(|error| Error::request(uri, uri.expose(), &error))?;
        if !answer.status().is_success() {
            let error = Error::status(uri, answer.url(), answer.status().as_u16(), None);
            return Err(match serde_json::from_slice(&body) {
                Ok(denial) => error.told(&uri.to_string(), &told(&denial)),
                Err(_) => error,
            });
        }
        let grant: Grant = serde_json::from_slice(&body).map_err(|_| {
            Error::bad_answer(&uri.to_string(), "an access token", "something else")
        })?;
        Token::new(&grant, now)
            .ok_or_else(|| Error::bad_answer(&uri.to_string(), "an access token", "a broken one"))
    }

    /// The token of the machine's account. Where there is none, nobody is asked again.
    async fn machine_token(&self, url: &SafeUrl, now: SystemTime) -> Token {
        let request = self.client.get(url.expose().clone()).header(FLAVOR.0, FLAVOR.1);
        let asked = timeout(METADATA_LIMIT, fetch(request)).await;
        let token = asked.ok().and_then(Result::ok).and_then(|(answer, body)| {
            let flavor = answer.headers().get(FLAVOR.0)?;
            let is_right = answer.status().is_success() && flavor == FLAVOR.1;
            let grant = is_right.then(|| serde_json::from_slice(&body).ok()).flatten()?;
            Token::new(&grant, now)
        });
        let nobody = Token { header: None, until: now + Duration::from_secs(u32::MAX.into()) };
        token.unwrap_or(nobody)
    }

    fn hint(&self, code: &str) -> Option<String> {
        let is_known = matches!(self.identity, Identity::Service(_) | Identity::User(..));
        let hint = match code {
            "NoSuchKey" => "check the object's name",
            "NoSuchBucket" => "check the bucket's name",
            "AccessDenied" | "InvalidAuthentication" | "AuthenticationRequired" if is_known => {
                "this account may not read the object: it needs `storage.objects.get`"
            }
            "AccessDenied" | "InvalidAuthentication" | "AuthenticationRequired" => {
                "the object is not public; give a key with `--gcs-key FILE`"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl Origin for Gcs {
    fn name(&self) -> String {
        format!("gs://{}", self.object)
    }

    fn locate(&self) -> Locating<'_> {
        Box::pin(async {
            let mut headers = HeaderMap::new();
            if let Some(value) = self.authorization().await? {
                headers.insert(AUTHORIZATION, value);
            }
            Ok(Location { url: self.url.clone(), headers })
        })
    }

    fn renew(&self) -> bool {
        // Whoever holds it is about to have another one.
        self.token
            .try_lock()
            .map_or(true, |mut token| token.take_if(|token| token.header.is_some()).is_some())
    }

    fn reads_refusals(&self) -> bool {
        true
    }

    fn explain(&self, refusal: &Refusal<'_>) -> Option<Told> {
        let told = Told::read(refusal.body)?;
        Some(Told { hint: self.hint(&told.code), ..told })
    }
}

impl ServiceAccount {
    fn new(file: &KeyFile) -> Result<Self, Error> {
        let email = file.client_email.clone().ok_or_else(|| broken_key("no `client_email`"))?;
        let pem = file.private_key.as_deref().ok_or_else(|| broken_key("no `private_key`"))?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| broken_key("a `private_key` that is no PKCS#8 key in PEM"))?;
        let key = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|_| broken_key("a `private_key` that is no RSA key"))?;
        Ok(Self { email, key_id: file.private_key_id.clone(), key, token_uri: token_uri(file)? })
    }

    /// A JSON Web Token that says who we are (RFC 7523 §3), signed with RS256 (RFC 7518 §3.3).
    fn assertion(&self, now: SystemTime) -> Result<String, Error> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = json!({
            "iss": self.email,
            "scope": SCOPE,
            "aud": self.token_uri.expose().as_str(),
            "iat": since.as_secs(),
            "exp": (since + ASSERTION).as_secs(),
        });
        let [header, claims] = [header, claims].map(|v| URL_SAFE_NO_PAD.encode(v.to_string()));
        let text = format!("{header}.{claims}");
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| broken_key("a `private_key` that does not sign"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl Token {
    /// `None` if it cannot stand in a header.
    fn new(grant: &Grant, now: SystemTime) -> Option<Self> {
        let mut header = HeaderValue::try_from(format!("Bearer {}", grant.access_token)).ok()?;
        header.set_sensitive(true);
        let until = now.checked_add(Duration::from_secs(grant.expires_in))?;
        Some(Self { header: Some(header), until })
    }
}

impl fmt::Debug for Gcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gcs").field("url", &self.url).finish_non_exhaustive()
    }
}

fn url_of(object: &ObjectName, endpoint: Option<&SafeUrl>) -> Result<SafeUrl, Error> {
    let own = || ENDPOINT.parse().expect("the constant is a URL");
    let mut url: Url = endpoint.map_or_else(own, |endpoint| endpoint.expose().clone());
    let shown = SafeUrl::from(url.clone());
    url.path_segments_mut()
        .map_err(|()| Error::unusable(format!("`{shown}` cannot be a server")))?
        .pop_if_empty()
        .push(&object.bucket)
        .extend(object.key.split('/'));
    Ok(SafeUrl::from(url))
}

fn identity(options: &GcsOptions) -> Result<Identity, Error> {
    let machine = |host: &str| {
        let url = format!("http://{host}{METADATA_PATH}").parse();
        let broken = |_| Error::unusable(format!("`{host}` cannot be a metadata server"));
        url.map(Identity::Machine).map_err(broken)
    };
    match (&options.key, &options.metadata_host) {
        _ if options.anonymous => Ok(Identity::Nobody),
        (Some(key), _) => identity_of(key),
        (None, Some(host)) => machine(host),
        // An emulator asks nobody who they are.
        (None, None) if options.endpoint.is_some() => Ok(Identity::Nobody),
        (None, None) => machine(METADATA_HOST),
    }
}

fn identity_of(key: &Secret) -> Result<Identity, Error> {
    // The error's text would quote the key.
    let file: KeyFile =
        serde_json::from_str(key.expose()).map_err(|_| broken_key("no JSON with a `type`"))?;
    match file.kind.as_str() {
        "service_account" => Ok(Identity::Service(Box::new(ServiceAccount::new(&file)?))),
        "authorized_user" => {
            let mut form: Url = TOKEN_URI.parse().expect("the constant is a URL");
            for (name, value) in [
                ("client_id", &file.client_id),
                ("client_secret", &file.client_secret),
                ("refresh_token", &file.refresh_token),
            ] {
                let value = value.as_deref().ok_or_else(|| broken_key(&format!("no `{name}`")))?;
                form.query_pairs_mut().append_pair(name, value);
            }
            form.query_pairs_mut().append_pair("grant_type", "refresh_token");
            let form = Secret::new(form.query().unwrap_or_default().to_owned());
            Ok(Identity::User(token_uri(&file)?, form))
        }
        kind => {
            let kind: String = kind.chars().filter(|c| !c.is_control()).take(40).collect();
            Err(broken_key(&format!("the type `{kind}`; expected `service_account`")))
        }
    }
}

fn token_uri(file: &KeyFile) -> Result<SafeUrl, Error> {
    let uri = file.token_uri.as_deref().unwrap_or(TOKEN_URI).parse();
    uri.map_err(|_| broken_key("a `token_uri` that is no URL"))
}

fn broken_key(found: &str) -> Error {
    Error::unusable(format!("the Google key cannot be used: it has {found}"))
}

fn told(denial: &Denial) -> Told {
    let hint = (denial.error == "invalid_grant").then(|| {
        "the key may have been deleted, or this machine's clock is wrong; make a new key".to_owned()
    });
    Told { hint, ..Told::new(&denial.error, &denial.error_description) }
}

/// Sends a request and reads the whole of a short answer.
async fn fetch(request: RequestBuilder) -> Result<(Response, Vec<u8>), reqwest::Error> {
    let mut answer = request.send().await?;
    let mut body = Vec::new();
    while body.len() < ANSWER_MAX
        && let Some(bytes) = answer.chunk().await?
    {
        body.extend_from_slice(&bytes);
    }
    Ok((answer, body))
}
