//! The origin of an S3 object: a presigned URL, kept while it is good.
#![expect(clippy::disallowed_methods, reason = "signatures and credentials run out by the clock")]

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, Credentials, ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use bootyard_spec::{ObjectName, SafeUrl};
use reqwest::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use tokio::time::timeout;

use super::look_up::LookUp;
use super::{S3Options, is_region};
use crate::origin::{Locating, Location, Origin, Refusal};
use crate::store::{Told, inexpressible, is_expressible};
use crate::{Error, Options};

/// How long a signature is good for. A request must begin within it, and may then take longer.
const SIGNED_FOR: Duration = Duration::from_secs(3600);

/// A signature that runs out sooner than this is renewed: the clocks may differ a little, and the
/// request has to arrive.
const MARGIN: Duration = Duration::from_secs(60);

/// How long the search for credentials may take. Where the machine has none to give (IMDS) it is
/// over in a few seconds.
const CREDENTIALS_LIMIT: Duration = Duration::from_secs(30);

/// Where a bucket is if nobody says so.
const REGION: &str = "us-east-1";

/// What to do where nobody knows who we are.
const FIND: &str = "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, name a profile with \
                    `--s3-profile`, or read a public object with `--s3-anonymous`";

/// The header in which a bucket tells its region.
const BUCKET_REGION: &str = "x-amz-bucket-region";

/// An object of S3.
pub(crate) struct S3 {
    object: ObjectName,
    /// All but region and credentials.
    config: Builder,
    /// `None` to sign nothing.
    credentials: Option<SharedCredentialsProvider>,
    state: Mutex<State>,
}

struct State {
    region: String,
    /// The region was corrected already; a second time would go round in circles.
    corrected: bool,
    signed: Option<Signed>,
}

struct Signed {
    location: Location,
    until: SystemTime,
}

impl S3 {
    /// Finds out who we are; asks no server for the object yet.
    pub(crate) async fn new(object: ObjectName, options: &Options) -> Result<Self, Error> {
        let S3Options { region, endpoint, path_style, profile, anonymous, .. } = &options.s3;
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(LookUp::new(options)?);
        if let Some(profile) = profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = region {
            loader = loader.region(Region::new(region.clone()));
        }
        loader = match static_credentials(options) {
            _ if *anonymous => loader.no_credentials(),
            Some(credentials) => loader.credentials_provider(credentials),
            None => loader,
        };
        let shared = loader.load().await;
        let mut config = Builder::from(&shared).force_path_style(*path_style);
        if let Some(endpoint) = endpoint {
            let text = endpoint.expose().as_str();
            config = config.endpoint_url(text.strip_suffix('/').unwrap_or(text));
        }
        let region = shared.region().map_or(REGION, Region::as_ref).to_owned();
        if !is_region(&region) {
            return Err(Error::unusable(format!("`{region}` is not the name of a region")));
        }
        let state = Mutex::new(State { region, corrected: false, signed: None });
        Ok(Self { object, config, credentials: shared.credentials_provider(), state })
    }

    /// A client for the bucket's region with the credentials of now, and how long these are good for
    /// a signature.
    pub(super) async fn client(&self) -> Result<(Client, Duration), Error> {
        let name = self.name();
        let now = SystemTime::now();
        let mut config = self.config.clone().region(Region::new(self.state().region.clone()));
        let mut good_for = SIGNED_FOR;
        match &self.credentials {
            None => config = config.allow_no_auth(),
            Some(provider) => {
                let found = timeout(CREDENTIALS_LIMIT, provider.provide_credentials()).await;
                let found = found.map_err(|late| Error::no_credentials(&name, late, FIND))?;
                let credentials =
                    found.map_err(|error| Error::no_credentials(&name, error, FIND))?;
                if let Some(expiry) = credentials.expiry() {
                    good_for = good_for.min(expiry.duration_since(now).unwrap_or_default());
                }
                config.set_credentials_provider(Some(SharedCredentialsProvider::new(credentials)));
            }
        }
        Ok((Client::from_conf(config.build()), good_for))
    }

    /// The object that is meant.
    pub(super) const fn object(&self) -> &ObjectName {
        &self.object
    }

    async fn sign(&self) -> Result<Location, Error> {
        let (name, now) = (self.name(), SystemTime::now());
        let (client, good_for) = self.client().await?;
        let request = client.get_object().bucket(&self.object.bucket).key(&self.object.key);
        let presigned = request.presigned(validity(&name)?).await;
        let presigned = presigned.map_err(|error| unsigned(&name, error))?;
        let location = self.location(&presigned)?;
        let until = now + good_for.saturating_sub(MARGIN);
        self.state().signed = Some(Signed { location: location.clone(), until });
        Ok(location)
    }

    pub(super) fn location(&self, presigned: &PresignedRequest) -> Result<Location, Error> {
        let url: SafeUrl = presigned
            .uri()
            .parse()
            .map_err(|error: bootyard_spec::ParseUrlError| unsigned(&self.name(), error))?;
        let mut headers = HeaderMap::new();
        for (name, value) in presigned.headers() {
            let pair = (name.parse::<HeaderName>(), value.parse::<HeaderValue>());
            if let (Ok(name), Ok(value)) = pair
                && name != HOST
            {
                headers.insert(name, value);
            }
        }
        Ok(Location { url, headers })
    }

    /// Takes over the region that an answer names as the right one.
    fn correct(&self, refusal: &Refusal<'_>, told: &Told) -> bool {
        let header = refusal.headers.get(BUCKET_REGION).and_then(|value| value.to_str().ok());
        let Some(region) = header.or(told.region.as_deref()).filter(|text| is_region(text)) else {
            return false;
        };
        let mut state = self.state();
        if state.corrected || state.region == region {
            return false;
        }
        *state = State { region: region.to_owned(), corrected: true, signed: None };
        true
    }

    /// Drops a signature that the server's clock calls too old.
    fn forget_if_expired(&self, told: &Told) -> bool {
        let is_expired = told.code == "ExpiredToken" || told.message.contains("has expired");
        is_expired && self.state().signed.take().is_some()
    }

    fn hint(&self, told: &Told) -> Option<String> {
        let anonymous = self.credentials.is_none();
        let hint = match told.code.as_str() {
            "NoSuchKey" => "check the key: `aws s3 ls s3://BUCKET/` shows what is there",
            "NoSuchBucket" => "check the bucket's name, and `--s3-endpoint` if it is not Amazon's",
            "AccessDenied" if anonymous => {
                "the object is not public; give credentials, and no `--s3-anonymous`"
            }
            "AccessDenied" => {
                "these credentials may not read it (`s3:GetObject`; without `s3:ListBucket` a \
                 missing object looks like this too); for a public object give `--s3-anonymous`"
            }
            "InvalidAccessKeyId" => {
                "the server does not know this access key; check the credentials, `--s3-profile` \
                 and `--s3-endpoint`"
            }
            "SignatureDoesNotMatch" => {
                "the secret key does not belong to the access key; check the credentials"
            }
            "ExpiredToken" | "InvalidToken" => "renew the session, as by `aws sso login`",
            "RequestTimeTooSkewed" => "set this machine's clock",
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect" => {
                return Some(match &told.region {
                    Some(region) => format!("give the bucket's region: `--s3-region {region}`"),
                    None => "give the bucket's region with `--s3-region`".to_owned(),
                });
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin for S3 {
    fn name(&self) -> String {
        format!("s3://{}", self.object)
    }

    fn locate(&self) -> Locating<'_> {
        Box::pin(async {
            if !is_expressible(&self.object.key) {
                return Err(inexpressible(&self.name()));
            }
            let now = SystemTime::now();
            let kept = self
                .state()
                .signed
                .as_ref()
                .filter(|signed| signed.until > now)
                .map(|signed| signed.location.clone());
            match kept {
                Some(location) => Ok(location),
                None => self.sign().await,
            }
        })
    }

    fn reads_refusals(&self) -> bool {
        true
    }

    fn explain(&self, refusal: &Refusal<'_>) -> Option<Told> {
        let mut told = Told::read(refusal.body)?;
        told.again = self.correct(refusal, &told) || self.forget_if_expired(&told);
        told.hint = self.hint(&told);
        Some(told)
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("object", &self.object).finish_non_exhaustive()
    }
}

/// From now on.
pub(super) fn validity(name: &str) -> Result<PresigningConfig, Error> {
    let now = SystemTime::now();
    let validity = PresigningConfig::builder().start_time(now).expires_in(SIGNED_FOR).build();
    validity.map_err(|error| unsigned(name, error))
}

pub(super) fn unsigned(name: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unusable(format!("cannot sign a request for `{name}`")).because(error)
}

/// The keys that were given to us, which come before all that is found.
fn static_credentials(options: &Options) -> Option<Credentials> {
    let given = options.credentials.as_ref()?;
    let token = options.s3.session_token.as_ref().map(|token| token.expose().to_owned());
    Some(Credentials::new(&given.id, given.secret.expose(), token, None, "given"))
}
