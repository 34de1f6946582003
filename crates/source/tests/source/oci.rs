//! A registry that wants tokens, lets them run out and redirects its blobs; and what a registry may
//! not do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bootyard_source::oci::{Image, ImageOptions, resolve};
use bootyard_source::{Error, ErrorKind, Options, Start};
use bootyard_spec::{Credentials, Digest, Secret, Verifier};
use bootyard_testkit::{
    Answer, AnswerServer, FaultServer, Question, Reply, Request, pseudo_random,
};

use crate::{options, read_all};

fn insecure() -> Options {
    let image = ImageOptions { insecure: true, ..ImageOptions::default() };
    let id = "user".to_owned();
    let credentials = Some(Credentials { id, secret: Secret::new("hunter2".to_owned()) });
    Options { image, credentials, connections: 1, ..options() }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut verifier = Verifier::new(Vec::new());
    verifier.update(bytes);
    verifier.finish().unwrap().sha256().clone()
}

const CONFIG: &str = r#"{"architecture":"","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;

/// A manifest with one layer.
fn manifest(layer: &[u8]) -> String {
    let descriptor = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (digest(bytes), bytes.len());
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
    };
    let config = descriptor("application/vnd.oci.image.config.v1+json", CONFIG.as_bytes());
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar", layer);
    format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#)
}

async fn image(server: &FaultServer, options: &Options) -> Result<Image, Error> {
    let name = format!("docker://127.0.0.1:{}/x/y:t", server.port());
    resolve(&name.parse().unwrap(), options).await
}

/// What the registry answers to a request for a part of the image; `None` if it is for the layer.
fn part(request: &Request, manifest: &str) -> Option<Reply> {
    let config = digest(CONFIG.as_bytes()).to_string();
    match request.path.as_str() {
        path if path.contains("/manifests/") => Some(Reply::honest().body(manifest)),
        path if path.ends_with(&config) => Some(Reply::honest().body(CONFIG)),
        _ => None,
    }
}

#[tokio::test]
async fn a_token_is_renewed_in_mid_transfer_and_never_shown_to_another_host() {
    let body = pseudo_random(300_000, 9);
    let manifest = manifest(&body);
    let cuts = [Reply::honest().cut_after(100_000), Reply::honest()];
    let elsewhere = FaultServer::serve(body.clone(), cuts);
    let location = elsewhere.url("/bucket/blob?signature=s");
    let given = Arc::new(AtomicUsize::new(0));
    let registry = FaultServer::serve_with("", move |request, _| {
        let own = format!("Bearer t{}", given.load(Ordering::SeqCst));
        if request.path == "/v2/" {
            let host = request.header("host").unwrap();
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
            return Reply::status(401).header("WWW-Authenticate", &challenge);
        }
        if request.path.starts_with("/token") {
            let next = given.fetch_add(1, Ordering::SeqCst) + 1;
            let basic = request.header("authorization") == Some("Basic dXNlcjpodW50ZXIy");
            let pull = request.path.contains("repository%3Ax%2Fy%3Apull");
            assert!(basic && pull, "{request:?}");
            return Reply::honest().body(format!("{{\"token\":\"t{next}\"}}"));
        }
        if request.header("authorization") != Some(&own) {
            return Reply::status(401);
        }
        part(request, &manifest).unwrap_or_else(|| {
            if request.header("range").is_none() {
                // Good for this one request.
                let _ = given.fetch_add(1, Ordering::SeqCst);
            }
            Reply::redirect(&location)
        })
    });
    let options = insecure();
    let image = image(&registry, &options).await.unwrap();
    let layer = &image.layers()[0];
    let mut object = image.open_layer(layer, &Start::default()).await.unwrap();
    assert_eq!(object.digest(), Some(&digest(&body)));
    assert!(read_all(&mut object).await.unwrap() == body);
    let tokens = registry.requests().iter().filter(|r| r.path.starts_with("/token")).count();
    assert_eq!(tokens, 2);
    let foreign = elsewhere.requests();
    assert_eq!(foreign.len(), 2);
    assert!(foreign.iter().all(|request| request.header("authorization").is_none()), "{foreign:?}");
}

#[tokio::test]
async fn a_registry_is_held_to_what_it_says() {
    let long = format!("{{\"schemaVersion\":2,\"layers\":[{}", " ".repeat(5 << 20));
    let both = r#"{"schemaVersion":2,"layers":[],"config":{},"manifests":[]}"#;
    for (reply, kind, words) in [
        (Reply::honest().body(long.clone()), ErrorKind::Image, "too large"),
        (Reply::honest().body(long).chunked(), ErrorKind::Image, "too large"),
        (Reply::honest().body("{}"), ErrorKind::Image, "expected `schemaVersion` 2"),
        (Reply::honest().body("<html>"), ErrorKind::Image, "malformed"),
        (Reply::honest().body(both), ErrorKind::Image, "both an index and an image"),
        (Reply::status(404), ErrorKind::NotFound, "404"),
        (Reply::status(403), ErrorKind::Denied, "403"),
    ] {
        let server = FaultServer::serve_with("", move |request, _| match request.path.as_str() {
            "/v2/" => Reply::honest(),
            _ => reply.clone(),
        });
        let error = image(&server, &insecure()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_name_that_means_another_image_meanwhile_is_told() {
    let manifest = manifest(b"layer");
    let image_digest = digest(manifest.as_bytes());
    let server = FaultServer::serve_with("", move |request, _| {
        part(request, &manifest).unwrap_or_else(Reply::honest)
    });
    let mut options = insecure();
    options.image.digest = Some(image_digest);
    image(&server, &options).await.unwrap();
    options.image.digest = Some(digest(b"another"));
    let error = image(&server, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
}

#[tokio::test]
async fn a_layer_has_the_length_that_its_manifest_says() {
    let body = pseudo_random(100_000, 9);
    for (more, chunked) in [(true, false), (true, true), (false, false), (false, true)] {
        let manifest = manifest(&body);
        let sent = if more { [&body[..], b"x"].concat() } else { body[1..].to_vec() };
        let server = FaultServer::serve_with("", move |request, _| {
            part(request, &manifest).unwrap_or_else(|| {
                let reply = Reply::honest().body(sent.clone()).no_ranges();
                if chunked { reply.chunked() } else { reply }
            })
        });
        let image = image(&server, &insecure()).await.unwrap();
        let error = match image.open_layer(&image.layers()[0], &Start::default()).await {
            Ok(mut object) => read_all(&mut object).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(
            matches!(error.kind(), ErrorKind::Digest | ErrorKind::BadAnswer | ErrorKind::Broken),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_token_server_is_held_to_the_limits_of_any_other() {
    let endless = "x".repeat(2 << 20);
    let token = || Reply::honest().body("{\"access_token\":\"t\"}");
    for (replies, expected) in [
        (vec![Reply::status(503), Reply::status(429), token()], Ok(3)),
        (vec![Reply::status(503); 5], Err((ErrorKind::Status, 5))),
        (vec![Reply::status(401)], Err((ErrorKind::Denied, 1))),
        (vec![Reply::honest().body(endless).chunked()], Err((ErrorKind::Image, 1))),
        (vec![Reply::honest().body("{\"token\":7}")], Err((ErrorKind::BadAnswer, 1))),
        (vec![token().cut_after(3), token()], Ok(2)),
    ] {
        let asked = AtomicUsize::new(0);
        let manifest = manifest(b"layer");
        let server = FaultServer::serve_with("", move |request, _| {
            let host = request.header("host").unwrap();
            if request.path.starts_with("/token") {
                return replies[asked.fetch_add(1, Ordering::SeqCst)].clone();
            }
            let challenge = format!("Bearer realm=\"http://{host}/token\"");
            match request.header("authorization") {
                Some("Bearer t") => part(request, &manifest).unwrap(),
                _ => Reply::status(401).header("WWW-Authenticate", &challenge),
            }
        });
        let found = image(&server, &insecure()).await.map_err(|error| error.kind());
        let tokens = server.requests().iter().filter(|r| r.path.starts_with("/token")).count();
        match expected {
            Ok(count) => assert!(found.is_ok() && tokens == count, "{found:?} {tokens}"),
            Err(expected) => assert_eq!((found.unwrap_err(), tokens), expected),
        }
    }
}

/// A registry with one image that wants a token `t`, which `grant` gives.
fn with_tokens(grant: impl Fn(&Question) -> Answer + Send + Sync + 'static) -> AnswerServer {
    let manifest = manifest(b"layer");
    AnswerServer::serve(move |question| {
        let host = question.header("host").unwrap();
        if question.path.starts_with("/token") {
            return grant(question);
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s s\"");
        match (question.header("authorization"), question.method.as_str()) {
            (Some("Bearer t"), "GET") if question.path.contains("/manifests/") => {
                Answer::new(200, manifest.clone())
            }
            (Some("Bearer t"), "GET") => Answer::new(200, CONFIG),
            (Some("Bearer t"), "HEAD") => Answer::new(200, ""),
            (Some("Bearer t"), "PUT") => Answer::new(201, "").header("Location", "/v2/x/y/z"),
            _ => Answer::new(401, "").header("WWW-Authenticate", &challenge),
        }
    })
}

fn tokens(server: &AnswerServer) -> Vec<Question> {
    server.questions().into_iter().filter(|asked| asked.path.starts_with("/token")).collect()
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_shown_to_nobody_else() {
    let server = with_tokens(|asked| match asked.method.as_str() {
        "POST" => Answer::new(200, r#"{"access_token":"t","expires_in":300}"#),
        _ => Answer::new(401, ""),
    });
    let folder = tempfile::tempdir().unwrap();
    let auth_file = folder.path().join("auth.json");
    let entry = r#"{"auth":"MDAwMDow","identitytoken":"hunter2/+="}"#;
    let auths = format!("{{\"auths\":{{\"{}\":{entry}}}}}", server.host());
    fs_err::write(&auth_file, auths).unwrap();
    let mut options = Options { credentials: None, ..insecure() };
    options.image.auth_file = Some(auth_file);
    resolve(&format!("docker://{}/x/y:t", server.host()).parse().unwrap(), &options).await.unwrap();
    let asked = tokens(&server);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].path.as_str(), asked[0].header("authorization")), ("/token", None));
    let kind = asked[0].header("content-type");
    assert_eq!(kind, Some("application/x-www-form-urlencoded"));
    assert_eq!(
        asked[0].body,
        "scope=repository%3Ax%2Fy%3Apull&service=s+s&grant_type=refresh_token&\
         client_id=bootyard&refresh_token=hunter2%2F%2B%3D"
    );
    let others = server.questions().into_iter().filter(|asked| !asked.path.starts_with("/token"));
    assert!(!format!("{:?}", others.collect::<Vec<_>>()).contains("hunter2"));
}

#[tokio::test]
async fn what_is_pushed_needs_a_token_from_a_server_with_limits() {
    let content = bootyard_source::oci::Content {
        len: 5,
        read: Arc::new(|at, len| Ok(b"layer"[at as usize..at as usize + len].to_vec().into())),
    };
    let image = bootyard_source::oci::NewImage {
        layer: content,
        digest: digest(b"layer"),
        media_type: "application/vnd.oci.image.layer.v1.tar",
        diff_id: digest(b"layer"),
        platform: "linux/amd64".parse().unwrap(),
        env: Vec::new(),
        labels: std::collections::BTreeMap::default(),
        created: "1970-01-01T00:00:00Z".to_owned(),
    };
    let push = async |server: &AnswerServer| {
        let target = format!("docker://{}/x/y:t", server.host()).parse().unwrap();
        bootyard_source::oci::push(&target, &image, &insecure()).await
    };
    let failed = AtomicUsize::new(0);
    let server = with_tokens(move |_| match failed.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::new(429, "").header("Retry-After", "1"),
        _ => Answer::new(200, r#"{"token":"t"}"#),
    });
    let started = tokio::time::Instant::now();
    push(&server).await.unwrap();
    assert!(started.elapsed() >= std::time::Duration::from_secs(1));
    let asked = tokens(&server);
    let scope = "/token?scope=repository%3Ax%2Fy%3Apull%2Cpush&service=s+s";
    assert!(asked.len() == 2 && asked[1].path == scope, "{asked:?}");
    assert_eq!(asked[1].header("authorization"), Some("Basic dXNlcjpodW50ZXIy"));
    // Endless answers, and refusals that repeat what was sent.
    let server = with_tokens(|_| Answer::new(200, vec![b' '; 2 << 20]));
    assert_eq!(push(&server).await.unwrap_err().kind(), ErrorKind::Image);
    let server = with_tokens(|asked| Answer::new(401, format!("{asked:?}")));
    let error = push(&server).await.unwrap_err();
    assert_eq!((error.kind(), tokens(&server).len()), (ErrorKind::Denied, 1));
    assert!(!format!("{error:?}").contains("dXNlcjpodW50ZXIy"), "{error:?}");
}
