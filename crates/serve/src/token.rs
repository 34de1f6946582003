//! Upload tokens as CDI's API server signs them: a JWT (RFC 7519) by PS256 that names the claim (PVC) it is
//! for.
//!
//! One algorithm is accepted, whatever the token's header asks for.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;
use webpki::RawPublicKeyEntity;
use webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY;

/// Who signs upload tokens.
const ISSUER: &str = "cdi-apiserver";
/// How far the clocks may be apart.
const LEEWAY: Duration = Duration::from_secs(10);
/// A token is a few hundred bytes; longer ones are not looked at.
const TOKEN_MAX: usize = 16 << 10;

/// The public key by which tokens are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKey(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// `PUBLIC KEY`, which CDI keeps.
    Spki(SubjectPublicKeyInfoDer<'static>),
    /// `RSA PUBLIC KEY`.
    Pkcs1(Vec<u8>),
}

/// The file holds no RSA public key in PEM form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an RSA public key of 2048 to 8192 bits, as `-----BEGIN PUBLIC KEY-----`")]
pub struct BadKey;

/// What a token must be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The namespace; any, if absent.
    pub namespace: Option<String>,
    /// The claim's name.
    pub name: String,
}

/// Why a token does not count. Says nothing of what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadToken {
    Malformed,
    Algorithm,
    Signature,
    Issuer,
    Expired,
    NotYet,
    /// It is good, but not one for uploads: CDI answers 400 to this alone.
    Operation,
    Subject,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// CDI's `token.Payload` with the registered claims that it sets.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    /// Seconds since 1970; go-jose may write a fraction.
    exp: Option<f64>,
    nbf: Option<f64>,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    resource: Resource,
}

#[derive(Deserialize, Default)]
struct Resource {
    #[serde(default)]
    resource: String,
}

impl TokenKey {
    /// Reads a key.
    ///
    /// # Errors
    ///
    /// If it is none that RSA signatures can be verified by.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadKey> {
        if let Ok(spki) = SubjectPublicKeyInfoDer::from_pem_slice(pem) {
            let key = Self(Form::Spki(spki));
            // Any key of another kind fails before it looks at the signature; this tells which.
            let is_rsa = pem_is_rsa(&key.0);
            return if is_rsa { Ok(key) } else { Err(BadKey) };
        }
        let text = std::str::from_utf8(pem).map_err(|_| BadKey)?;
        let (_, rest) = text.split_once("-----BEGIN RSA PUBLIC KEY-----").ok_or(BadKey)?;
        let (body, _) = rest.split_once("-----END RSA PUBLIC KEY-----").ok_or(BadKey)?;
        let body: String = body.split_whitespace().collect();
        STANDARD.decode(body).map(|der| Self(Form::Pkcs1(der))).map_err(|_| BadKey)
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Form::Spki(spki) => RawPublicKeyEntity::try_from(spki).is_ok_and(|key| {
                let algorithm = RSA_PSS_2048_8192_SHA256_LEGACY_KEY;
                key.verify_signature(algorithm, message, signature).is_ok()
            }),
            Form::Pkcs1(der) => UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, der)
                .verify(message, signature)
                .is_ok(),
        }
    }

    /// Whether `token` lets its bearer upload to `subject` at `now`, the time since 1970.
    pub(crate) fn check(
        &self,
        token: &str,
        subject: &Subject,
        now: Duration,
    ) -> Result<(), BadToken> {
        let claims = self.claims(token)?;
        let (now, leeway) = (now.as_secs_f64(), LEEWAY.as_secs_f64());
        if claims.iss != ISSUER {
            return Err(BadToken::Issuer);
        }
        // A token that never ends would be one for ever: CDI's have five minutes.
        if claims.exp.is_none_or(|exp| now - leeway > exp) {
            return Err(BadToken::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now + leeway < nbf) {
            return Err(BadToken::NotYet);
        }
        let is_complete = !claims.name.is_empty() && !claims.namespace.is_empty();
        let is_claim = claims.resource.resource == "persistentvolumeclaims";
        if claims.operation != "Upload" || !is_claim || !is_complete {
            return Err(BadToken::Operation);
        }
        let is_here = subject.namespace.as_ref().is_none_or(|own| *own == claims.namespace);
        if claims.name == subject.name && is_here { Ok(()) } else { Err(BadToken::Subject) }
    }

    fn claims(&self, token: &str) -> Result<Claims, BadToken> {
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| BadToken::Malformed);
        let (signed, signature) = token
            .rsplit_once('.')
            .filter(|_| token.len() <= TOKEN_MAX)
            .ok_or(BadToken::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(BadToken::Malformed)?;
        let header = serde_json::from_slice(&decode(header)?);
        let header: Header = header.map_err(|_| BadToken::Malformed)?;
        if header.alg != "PS256" {
            return Err(BadToken::Algorithm);
        }
        if !self.verify(signed.as_bytes(), &decode(signature)?) {
            return Err(BadToken::Signature);
        }
        serde_json::from_slice(&decode(claims)?).map_err(|_| BadToken::Malformed)
    }
}

/// Whether the key's algorithm is rsaEncryption (RFC 8017 appendix A.1: 1.2.840.113549.1.1.1).
fn pem_is_rsa(form: &Form) -> bool {
    const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    match form {
        Form::Spki(spki) => spki.windows(RSA.len()).take(16).any(|part| part == RSA),
        Form::Pkcs1(_) => true,
    }
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the token is not a JWT",
            Self::Algorithm => "the token is not signed by PS256",
            Self::Signature => "the token's signature is not by the key of this server",
            Self::Issuer => "the token was not issued by `cdi-apiserver`",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::Operation => "the token is not one for uploads to a PersistentVolumeClaim",
            Self::Subject => "the token is for another target",
        })
    }
}
