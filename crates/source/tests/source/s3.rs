//! S3 against SeaweedFS, and against answers that it would never give.

use std::sync::OnceLock;

use bootyard_source::{ErrorKind, Options, S3Options, Validator, open};
use bootyard_spec::{Credentials, Explain, Secret, Source};
use bootyard_testkit::{Answer, AnswerServer, S3Server, pseudo_random, require_tool};

use crate::{options, read_all};

const KEY: &str = "folder/a disk+1.raw";

/// One server for all tests of this process: its start takes seconds.
fn server() -> Option<&'static S3Server> {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    if !require_tool("weed") || !require_tool("curl") {
        return None;
    }
    Some(SERVER.get_or_init(|| {
        let server = S3Server::start();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), data()).unwrap();
        for bucket in [S3Server::PRIVATE, S3Server::PUBLIC] {
            server.put(&format!("{bucket}/folder/a%20disk%2B1.raw"), file.path());
        }
        server
    }))
}

fn data() -> Vec<u8> {
    pseudo_random(3 << 20, 5)
}

fn with_keys(endpoint: &str, id: &str, secret: &str) -> Options {
    let secret = Secret::new(secret.to_owned());
    let credentials = Some(Credentials { id: id.to_owned(), secret });
    let s3 = S3Options {
        region: Some("us-east-1".to_owned()),
        endpoint: Some(endpoint.parse().unwrap()),
        path_style: true,
        ..S3Options::default()
    };
    Options { credentials, s3, ..options() }
}

fn anonymous(endpoint: &str) -> Options {
    let options = with_keys(endpoint, "", "");
    let s3 = S3Options { anonymous: true, ..options.s3 };
    Options { credentials: None, s3, ..options }
}

fn source(bucket: &str, key: &str) -> Source {
    format!("s3://{bucket}/{key}").parse().unwrap()
}

#[tokio::test]
async fn an_object_is_read_whole_and_in_parts() {
    let Some(server) = server() else { return };
    let signed = with_keys(&server.endpoint(), S3Server::KEY, S3Server::SECRET);
    for (bucket, options) in
        [(S3Server::PRIVATE, signed), (S3Server::PUBLIC, anonymous(&server.endpoint()))]
    {
        let mut object = open(&source(bucket, KEY), &options).await.unwrap();
        assert_eq!(object.name(), format!("s3://{bucket}/{KEY}"));
        assert_eq!(object.len(), Some(3 << 20));
        assert!(object.accepts_ranges());
        assert!(matches!(object.validator(), Some(Validator::ETag(_))));
        assert!(read_all(&mut object).await.unwrap() == data());
        let part = object.read_range(1000, 70_000).await.unwrap();
        assert!(part == data()[1000..71_000]);
    }
}

#[tokio::test]
async fn a_refusal_says_its_code_and_what_to_do() {
    let Some(server) = server() else { return };
    let endpoint = server.endpoint();
    let good = with_keys(&endpoint, S3Server::KEY, S3Server::SECRET);
    let bad_secret = with_keys(&endpoint, S3Server::KEY, "wrong");
    let bad_key = with_keys(&endpoint, "AKIANOBODY", S3Server::SECRET);
    for (options, bucket, key, kind, code, hint) in [
        (&good, "private", "nothing", ErrorKind::NotFound, "NoSuchKey", "check the key"),
        (&good, "no-bucket", KEY, ErrorKind::NotFound, "NoSuchBucket", "bucket's name"),
        (&bad_secret, "private", KEY, ErrorKind::Denied, "SignatureDoesNotMatch", "secret key"),
        (&bad_key, "private", KEY, ErrorKind::Denied, "InvalidAccessKeyId", "this access key"),
        (&anonymous(&endpoint), "private", KEY, ErrorKind::Denied, "AccessDenied", "not public"),
    ] {
        let error = open(&source(bucket, key), options).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(&format!("({code}")), "{error}");
        assert!(error.to_string().contains(&format!("s3://{bucket}/{key}")), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("X-Amz") && !shown.contains(S3Server::SECRET), "{shown}");
    }
}

#[tokio::test]
async fn the_url_of_cdi_names_server_and_object() {
    let Some(server) = server() else { return };
    let url = server.url("private/folder/a%20disk%2B1.raw").parse().unwrap();
    let options = with_keys(&server.endpoint(), S3Server::KEY, S3Server::SECRET);
    let (object, s3) = S3Options::default().locate(&url).unwrap();
    let options = Options { s3: S3Options { region: options.s3.region.clone(), ..s3 }, ..options };
    let mut object = open(&Source::S3(object), &options).await.unwrap();
    assert!(read_all(&mut object).await.unwrap() == data());
}

#[tokio::test]
async fn temporary_keys_send_their_token_in_the_url() {
    let server = AnswerServer::serve(|_| Answer::new(200, "disk"));
    let mut options = with_keys(&server.url(), "ASIAKEY", "secret");
    options.s3.session_token = Some(Secret::new("the/token".to_owned()));
    let mut object = open(&source("b", "k"), &options).await.unwrap();
    assert_eq!(read_all(&mut object).await.unwrap(), b"disk");
    let path = &server.questions()[0].path;
    assert!(path.starts_with("/b/k?"), "{path}");
    assert!(path.contains("X-Amz-Security-Token=the%2Ftoken"), "{path}");
}

#[tokio::test]
async fn a_bucket_that_is_elsewhere_is_asked_there() {
    let server = AnswerServer::serve(|question| {
        if question.path.contains("%2Feu-north-1%2Fs3") {
            return Answer::new(200, "disk");
        }
        let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region \
                    'us-east-1' is wrong; expecting 'eu-north-1'</Message>\
                    <Region>eu-north-1</Region></Error>";
        Answer::new(400, body)
    });
    let options = with_keys(&server.url(), "AKIAKEY", "secret");
    let mut object = open(&source("b", "k"), &options).await.unwrap();
    assert_eq!(read_all(&mut object).await.unwrap(), b"disk");
    assert_eq!(server.questions().len(), 2);
}

#[tokio::test]
async fn a_bucket_that_is_nowhere_ends_with_its_hint() {
    let server = AnswerServer::serve(|question| {
        // Each region names the other one.
        let other = if question.path.contains("us-east-1") { "eu-west-1" } else { "us-east-1" };
        let body = "<Error><Code>PermanentRedirect</Code><Message>Elsewhere.</Message></Error>";
        Answer::new(301, body).header("x-amz-bucket-region", other)
    });
    let options = with_keys(&server.url(), "AKIAKEY", "secret");
    let error = open(&source("b", "k"), &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Redirect);
    let text = "`s3://b/k` answered with HTTP status 301 (PermanentRedirect: Elsewhere)";
    assert_eq!(error.to_string(), text);
    assert!(error.hint().unwrap().contains("--s3-region"), "{:?}", error.hint());
    assert_eq!(server.questions().len(), 2);
}

#[tokio::test]
async fn a_key_that_no_url_can_hold_is_refused() {
    let options = with_keys("http://127.0.0.1:1", "AKIAKEY", "secret");
    let error = open(&source("b", "a/../k"), &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("s3://b/a/../k"), "{error}");
}
