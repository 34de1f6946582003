//! Google's store against a server that checks tokens as Google's do. There is no real one to run.
#![expect(clippy::disallowed_methods, reason = "keys are made by openssl")]

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bootyard_source::{ErrorKind, GcsOptions, Options, open};
use bootyard_spec::{Explain, Secret, Source};
use bootyard_testkit::{Answer, AnswerServer, Question, require_tool, run};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

use crate::{options, read_all};

const EMAIL: &str = "importer@project.example";
const NO_KEY: &str = "<?xml version='1.0'?><Error><Code>NoSuchKey</Code>\
                      <Message>The specified key does not exist.</Message></Error>";
const DENIED: &str = "<Error><Code>AccessDenied</Code><Message>Access denied.</Message></Error>";

/// A pair of keys, made by openssl.
struct Keys {
    /// PKCS#8 in PEM, as in a key file.
    private: String,
    /// `RSAPublicKey` in DER.
    public: Vec<u8>,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        run(Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-out"])
            .arg(&file));
        let public = ["rsa", "-RSAPublicKey_out", "-in"];
        let public = run(Command::new("openssl").args(public).arg(&file));
        let lines = public.lines().filter(|line| !line.starts_with("--"));
        let public = STANDARD.decode(lines.collect::<String>()).unwrap();
        Self { private: fs_err::read_to_string(&file).unwrap(), public }
    }
}

/// What Google's token server checks: the signature, and that it is for itself.
fn grant(question: &Question, public: &[u8], host: &str, lifetime: u64) -> Answer {
    let denied = |why: &str| {
        Answer::new(400, format!(r#"{{"error": "invalid_grant", "error_description": "{why}"}}"#))
    };
    let (form, assertion) = question.body.split_once("&assertion=").unwrap_or_default();
    assert_eq!(form, "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer");
    let (text, signature) = assertion.rsplit_once('.').unwrap_or_default();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
    if key.verify(text.as_bytes(), &signature).is_err() {
        return denied("Invalid JWT Signature.");
    }
    let claims = URL_SAFE_NO_PAD.decode(text.split_once('.').unwrap().1).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let lasts = claims["exp"].as_u64().zip(claims["iat"].as_u64());
    if claims["iss"] != EMAIL
        || claims["aud"] != format!("http://{host}/token")
        || claims["scope"] != "https://www.googleapis.com/auth/devstorage.read_only"
        || lasts.is_none_or(|(exp, iat)| exp - iat > 3600)
    {
        return denied("Invalid claims.");
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Answer::new(200, format!(r#"{{"access_token": "good-{count}", "expires_in": {lifetime}}}"#))
}

/// Token server and store in one; `b/public` needs no token.
fn google(public: Vec<u8>, lifetime: u64) -> AnswerServer {
    AnswerServer::serve(move |question| {
        let token = question.header("authorization").unwrap_or_default();
        match question.path.as_str() {
            "/token" => grant(question, &public, question.header("host").unwrap(), lifetime),
            "/b/public" => Answer::new(200, "disk"),
            "/b/a%20folder/disk" if token.starts_with("Bearer good-") => {
                Answer::new(200, "disk").header("etag", "\"1\"").header("accept-ranges", "bytes")
            }
            "/b/a%20folder/disk" => Answer::new(403, DENIED),
            _ => Answer::new(404, NO_KEY),
        }
    })
}

fn key_file(keys: &Keys, server: &AnswerServer) -> Secret {
    let file = serde_json::json!({
        "type": "service_account",
        "client_email": EMAIL,
        "private_key": keys.private,
        "private_key_id": "1",
        "token_uri": format!("{}/token", server.url()),
    });
    Secret::new(file.to_string())
}

fn at(server: &AnswerServer, gcs: GcsOptions) -> Options {
    let endpoint = Some(server.url().parse().unwrap());
    Options { gcs: GcsOptions { endpoint, ..gcs }, ..options() }
}

fn source(name: &str) -> Source {
    format!("gs://b/{name}").parse().unwrap()
}

fn tokens_asked(server: &AnswerServer) -> usize {
    server.questions().iter().filter(|question| question.path == "/token").count()
}

#[tokio::test]
async fn a_service_account_gets_a_token_and_keeps_it_while_it_is_good() {
    if !require_tool("openssl") {
        return;
    }
    let keys = Keys::new();
    for (lifetime, requests) in [(3600, 1), (30, 3)] {
        let server = google(keys.public.clone(), lifetime);
        let key = Some(key_file(&keys, &server));
        // Over one connection the announced ranges are believed.
        let options = at(&server, GcsOptions { key, ..GcsOptions::default() });
        let options = Options { connections: 1, ..options };
        let mut object = open(&source("a folder/disk"), &options).await.unwrap();
        assert_eq!(read_all(&mut object).await.unwrap(), b"disk");
        // The server ignores ranges; what counts is that each part comes with a token.
        let parts = tokio::join!(object.read_range(0, 1), object.read_range(1, 1));
        assert_eq!(parts.0.unwrap_err().kind(), ErrorKind::NoRanges);
        assert_eq!(parts.1.unwrap_err().kind(), ErrorKind::NoRanges);
        assert_eq!(tokens_asked(&server), requests, "tokens good for {lifetime} s");
        let shown = format!("{options:?} {object:?}");
        assert!(!shown.contains("PRIVATE") && !shown.contains("good-"), "{shown}");
    }
}

#[tokio::test]
async fn without_a_token_only_public_objects_are_there() {
    let server = google(Vec::new(), 0);
    let options = at(&server, GcsOptions { anonymous: true, ..GcsOptions::default() });
    let mut object = open(&source("public"), &options).await.unwrap();
    assert_eq!(read_all(&mut object).await.unwrap(), b"disk");
    let error = open(&source("a folder/disk"), &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = "`gs://b/a folder/disk` answered with HTTP status 403 (AccessDenied: Access denied)";
    assert_eq!(error.to_string(), text);
    assert!(error.hint().unwrap().contains("--gcs-key"), "{:?}", error.hint());
    let error = open(&source("nothing"), &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("NoSuchKey"), "{error}");
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_told() {
    if !require_tool("openssl") {
        return;
    }
    let (keys, others) = (Keys::new(), Keys::new());
    let server = google(others.public, 3600);
    let key = Some(key_file(&keys, &server));
    let options = at(&server, GcsOptions { key, ..GcsOptions::default() });
    let error = open(&source("a folder/disk"), &options).await.unwrap_err();
    assert!(error.to_string().contains("invalid_grant: Invalid JWT Signature"), "{error}");
    assert!(error.hint().unwrap().contains("clock"), "{:?}", error.hint());
}

#[tokio::test]
async fn the_machine_has_an_account_or_it_has_none() {
    let token = r#"{"access_token": "good-machine", "expires_in": 3600, "token_type": "Bearer"}"#;
    for (flavored, name) in [(true, "a folder/disk"), (false, "public")] {
        let metadata = AnswerServer::serve(move |question| {
            assert_eq!(question.header("metadata-flavor"), Some("Google"));
            let answer = Answer::new(200, token);
            if flavored { answer.header("Metadata-Flavor", "Google") } else { answer }
        });
        let server = google(Vec::new(), 0);
        let metadata_host = Some(metadata.host());
        let options = at(&server, GcsOptions { metadata_host, ..GcsOptions::default() });
        let mut object = open(&source(name), &options).await.unwrap();
        assert_eq!(read_all(&mut object).await.unwrap(), b"disk");
        let header = server.questions()[0].header("authorization").map(str::to_owned);
        assert_eq!(header.as_deref(), flavored.then_some("Bearer good-machine"));
        assert_eq!(
            metadata.questions()[0].path,
            "/computeMetadata/v1/instance/service-accounts/default/token"
        );
    }
}

#[tokio::test]
async fn a_users_login_is_renewed() {
    let server = AnswerServer::serve(|question| match question.path.as_str() {
        "/token" => {
            assert_eq!(
                question.body,
                "client_id=i&client_secret=a%2Fb&refresh_token=r&grant_type=refresh_token"
            );
            Answer::new(200, r#"{"access_token": "t", "expires_in": 3600}"#)
        }
        _ => Answer::new(200, question.header("authorization").unwrap_or_default()),
    });
    let key = serde_json::json!({
        "type": "authorized_user",
        "client_id": "i", "client_secret": "a/b", "refresh_token": "r",
        "token_uri": format!("{}/token", server.url()),
    });
    let key = Some(Secret::new(key.to_string()));
    let options = at(&server, GcsOptions { key, ..GcsOptions::default() });
    let mut object = open(&source("x"), &options).await.unwrap();
    assert_eq!(read_all(&mut object).await.unwrap(), b"Bearer t");
}

#[tokio::test]
async fn a_broken_key_is_told_without_showing_it() {
    for (text, expected) in [
        ("hunter2", "no JSON"),
        (r#"{"type": "service_account"}"#, "no `client_email`"),
        (
            r#"{"type": "service_account", "client_email": "a", "private_key": "hunter2"}"#,
            "no PKCS#8 key",
        ),
        (r#"{"type": "external_account"}"#, "the type `external_account`"),
        (r#"{"type": "authorized_user", "client_id": "a"}"#, "no `client_secret`"),
    ] {
        let key = Some(Secret::new(text.to_owned()));
        let gcs = GcsOptions { key, ..GcsOptions::default() };
        let error = open(&source("x"), &Options { gcs, ..options() }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Setup);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
