//! Who is asked, with which credentials, and through whom.

use bootyard_source::{ErrorKind, NoProxy, Options, ProxyOptions};
use bootyard_spec::{Credentials, Explain, Secret};
use bootyard_testkit::{
    FaultServer, Nginx, NginxOptions, ProxyServer, Reply, Request, require_tool,
};

use crate::{open_url, options, read_all};

async fn fetch(url: &str, options: &Options) -> Result<Vec<u8>, ErrorKind> {
    let read = async { read_all(&mut open_url(url, options).await?).await };
    read.await.map_err(|error: bootyard_source::Error| error.kind())
}

fn credentials(id: &str, secret: &str) -> Option<Credentials> {
    Some(Credentials { id: id.to_owned(), secret: Secret::new(secret.to_owned()) })
}

fn private() -> Options {
    let headers = ["X-Token: hunter2", "Cookie: a=hunter2"].map(|text| text.parse().unwrap());
    Options { headers: headers.into(), credentials: credentials("u", "hunter2"), ..options() }
}

fn has_secrets(request: &Request) -> [bool; 3] {
    ["authorization", "x-token", "cookie"].map(|name| request.header(name).is_some())
}

#[tokio::test]
async fn nothing_private_crosses_to_another_origin() {
    let back = FaultServer::serve("disk", [Reply::redirect("/inside"), Reply::honest()]);
    let away = FaultServer::serve("", [Reply::redirect(&back.url("/there"))]);
    for (url, given) in [
        (away.url("disk"), private()),
        (
            away.url("disk").replace("//", "//u:hunter2@"),
            Options { credentials: None, ..private() },
        ),
    ] {
        assert_eq!(fetch(&url, &given).await.unwrap(), b"disk");
        let first = away.requests().pop().unwrap();
        assert_eq!(has_secrets(&first), [true; 3]);
    }
    for request in back.requests() {
        assert_eq!(has_secrets(&request), [false; 3], "{request:?}");
        assert_eq!(request.header("referer"), None);
    }
    let inside = FaultServer::serve("disk", [Reply::redirect("/there"), Reply::honest()]);
    assert_eq!(fetch(&inside.url("disk"), &private()).await.unwrap(), b"disk");
    assert!(inside.requests().iter().all(|request| has_secrets(request) == [true; 3]));

    // The same host by another name is another origin.
    let renamed = inside.url("disk").replace("127.0.0.1", "localhost");
    let aliased = FaultServer::serve("disk", [Reply::redirect(&renamed)]);
    fetch(&aliased.url("disk"), &private()).await.unwrap();
    assert_eq!(has_secrets(&inside.requests().pop().unwrap()), [false; 3]);
}

#[tokio::test]
async fn every_segment_and_every_resumption_is_authorized() {
    let cut = |request: &Request, _| match request.header("if-range") {
        None => Reply::honest().cut_after(1_000_000),
        Some(_) => Reply::honest(),
    };
    let server = FaultServer::serve_with(vec![7; 9 << 20], cut);
    assert!(fetch(&server.url("disk"), &private()).await.unwrap() == vec![7; 9 << 20]);
    assert!(server.requests().len() >= 4);
    assert!(server.requests().iter().all(|request| has_secrets(request) == [true; 3]));
}

#[tokio::test]
async fn credentials_are_sent_as_they_are() {
    if !require_tool("nginx") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("disk"), "disk").unwrap();
    let (user, password) = ("us er%41", "p@ss/100%25?#\u{e9}");
    let basic_auth = Some((user.to_owned(), password.to_owned()));
    let nginx = Nginx::serve_with(dir.path(), &NginxOptions { basic_auth, ..Default::default() });
    let with = |password| Options { credentials: credentials(user, password), ..options() };
    assert_eq!(fetch(&nginx.url("disk"), &with(password)).await.unwrap(), b"disk");
    // They win over those of the URL.
    let url = nginx.url("disk").replace("//", "//other:wrong@");
    assert_eq!(fetch(&url, &with(password)).await.unwrap(), b"disk");
    let error = open_url(&nginx.url("disk"), &with("hunter2")).await.unwrap_err();
    assert_eq!((error.kind(), error.http_status()), (ErrorKind::Denied, Some(401)));
    assert!(!format!("{error:?} {error} {:?}", error.hint()).contains("hunter2"));
}

#[tokio::test]
async fn a_certificate_is_not_looked_at_if_so_asked() {
    if !require_tool("nginx") || !require_tool("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("disk"), "disk").unwrap();
    let nginx = Nginx::serve_with(dir.path(), &NginxOptions { tls: true, ..Default::default() });
    assert_eq!(fetch(&nginx.url("disk"), &options()).await, Err(ErrorKind::Tls));
    let trusting = Options { insecure_skip_verify: true, ..options() };
    assert_eq!(fetch(&nginx.url("disk"), &trusting).await.unwrap(), b"disk");

    // Through a tunnel the certificate is still the server's.
    let proxy = ProxyServer::start(None);
    let https = Some(proxy.url("").parse().unwrap());
    let through = |options| {
        let proxy = ProxyOptions { https: https.clone(), ..ProxyOptions::default() };
        Options { proxy, ..options }
    };
    assert_eq!(fetch(&nginx.url("disk"), &through(options())).await, Err(ErrorKind::Tls));
    let extra_ca = fs_err::read(nginx.ca()).unwrap();
    let trusting = through(Options { extra_ca, ..options() });
    assert_eq!(fetch(&nginx.url("disk"), &trusting).await.unwrap(), b"disk");
    let tunnel = format!("CONNECT 127.0.0.1:{} HTTP/1.1", nginx.port());
    assert_eq!(proxy.requests(), [tunnel.clone(), tunnel]);
}

#[tokio::test]
async fn a_proxy_is_asked_unless_the_list_says_no() {
    let server = FaultServer::serve("disk", []);
    let proxy = ProxyServer::start(Some("Basic dTpwIHM="));
    let through = |userinfo: &str, no_proxy: &str| {
        let http = Some(proxy.url(userinfo).parse().unwrap());
        let no_proxy = NoProxy::from(no_proxy);
        let proxy = ProxyOptions { http, no_proxy, ..ProxyOptions::default() };
        Options { proxy, ..options() }
    };
    let url = server.url("disk");
    assert_eq!(fetch(&url, &through("u:p%20s@", "h.example")).await.unwrap(), b"disk");
    assert_eq!(proxy.requests(), [format!("GET {url} HTTP/1.1")]);
    assert_eq!(server.requests()[0].header("proxy-authorization"), None);
    assert_eq!(fetch(&url, &through("u:wrong@", "h.example")).await, Err(ErrorKind::Denied));
    assert_eq!(fetch(&url, &through("", "127.0.0.0/8")).await.unwrap(), b"disk");
    assert_eq!(proxy.requests().len(), 2);
}

#[tokio::test]
async fn who_is_to_blame_is_named() {
    let away = FaultServer::serve("", [Reply::status(401), Reply::status(401)]);
    let first = FaultServer::serve("", [Reply::redirect(&away.url("/there"))]);
    for (url, words) in [
        (first.url("disk"), "the URL at which the redirects end"),
        (away.url("disk"), "give `--user NAME"),
    ] {
        let error = open_url(&url, &private()).await.unwrap_err();
        assert_eq!(error.http_status(), Some(401));
        let hint = error.hint().unwrap();
        assert!(hint.contains(words), "{hint}");
    }
    let http = Some("http://u:hunter2@127.0.0.1:1".parse().unwrap());
    let https = Some("http://proxy.invalid".parse().unwrap());
    let proxy = ProxyOptions { http, https, ..ProxyOptions::default() };
    let given = Options { proxy, attempts: 1, ..options() };
    for (url, proxy) in [
        ("http://disks.example/a", "through the proxy `http://u:****@127.0.0.1:1/`"),
        ("https://disks.example/a", "through the proxy `http://proxy.invalid/`"),
    ] {
        let error = open_url(url, &given).await.unwrap_err();
        assert!(error.to_string().ends_with(proxy), "{error}");
        assert!(error.hint().unwrap().contains("`no_proxy`"));
    }
}
