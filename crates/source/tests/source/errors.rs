//! What the user reads when a source fails: each message with its causes and its hint, from the
//! real failure.

use bootyard_source::{Error, Options};
use bootyard_spec::{Class, Explain};
use bootyard_testkit::{FaultServer, Nginx, NginxOptions, Reply, require_tool};

use crate::{impatient, open_url, options, read_all};

/// The failure of a whole read as the user sees it, with the port left out.
async fn shown(url: &str, options: &Options) -> String {
    let failure: Result<_, Error> =
        async { read_all(&mut open_url(url, options).await?).await }.await;
    let error = failure.unwrap_err();
    assert_eq!(error.class(), Class::Source);
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!("\ncaused by: {error}");
        cause = error.source();
    }
    if let Some(hint) = error.hint() {
        text += &format!("\nhint: {hint}");
    }
    let port = url.split(':').nth(2).and_then(|rest| rest.split('/').next());
    port.map_or(text.clone(), |port| text.replace(port, "PORT"))
}

#[tokio::test]
async fn each_fault_reads_well() {
    let two = Options { attempts: 2, ..options() };
    let cut = Reply::honest().cut_after(4);
    let changed = Reply::honest().etag(Some("\"v2\""));
    for (replies, expected) in [
        (
            vec![Reply::status(404)],
            "`http://127.0.0.1:PORT/disk` answered with HTTP status 404\n\
             hint: check the URL: the server has nothing there",
        ),
        (
            vec![Reply::status(401)],
            "`http://127.0.0.1:PORT/disk` answered with HTTP status 401\n\
             hint: give `--user NAME --password-file FILE`, or the credentials that the server wants",
        ),
        (
            vec![Reply::status(403)],
            "`http://127.0.0.1:PORT/disk` answered with HTTP status 403\n\
             hint: check that these credentials may read it, and that a signed URL has not expired",
        ),
        (
            vec![Reply::status(503)],
            "`http://127.0.0.1:PORT/disk` answered with HTTP status 503 in 2 attempts\n\
             hint: the server is overloaded or in trouble; run the command again later",
        ),
        (vec![Reply::status(400)], "`http://127.0.0.1:PORT/disk` answered with HTTP status 400"),
        (
            vec![Reply::hang_up()],
            "`http://127.0.0.1:PORT/disk` gave no answer in 2 attempts\n\
             caused by: connection closed before message completed\n\
             hint: run the command again",
        ),
        (
            vec![cut.clone(), cut.clone()],
            "`http://127.0.0.1:PORT/disk` broke off: received 8 of 10 bytes in 2 attempts\n\
             caused by: end of file before message length reached\n\
             hint: run the command again",
        ),
        (
            vec![cut.clone().no_ranges()],
            "`http://127.0.0.1:PORT/disk` broke off: received 4 of 10 bytes\n\
             caused by: end of file before message length reached\n\
             hint: run the command again",
        ),
        (
            vec![cut.clone(), Reply::status(404)],
            "`http://127.0.0.1:PORT/disk` broke off: received 4 of 10 bytes in 2 attempts\n\
             caused by: `http://127.0.0.1:PORT/disk` answered with HTTP status 404\n\
             hint: run the command again",
        ),
        (
            vec![Reply::honest().chunked().cut_after(4).no_ranges()],
            "`http://127.0.0.1:PORT/disk` broke off: received 4 bytes\n\
             caused by: unexpected EOF during chunk size line\n\
             hint: run the command again",
        ),
        (
            vec![cut.clone(), changed],
            "`http://127.0.0.1:PORT/disk` changed while it was read: was ETag \"v1\", is ETag \"v2\"\n\
             hint: run the command again to read the new version",
        ),
        (
            vec![cut.clone(), Reply::honest().shift_range(1)],
            "`http://127.0.0.1:PORT/disk` answered wrongly: expected bytes=4-9, got bytes 5-9/10 \
             in 5 bytes\n\
             hint: download it with another tool and give the file's path",
        ),
        (
            vec![Reply::redirect("/disk")],
            "`http://127.0.0.1:PORT/disk` redirects more than 10 times\n\
             hint: give the URL at which the redirects end",
        ),
        (
            vec![Reply::redirect("ftp://h.example/disk")],
            "cannot follow a redirect of `http://127.0.0.1:PORT/disk`\n\
             caused by: URL scheme is not allowed\n\
             hint: give the URL at which the redirects end",
        ),
        (
            vec![Reply::status(302)],
            "`http://127.0.0.1:PORT/disk` redirects to no URL, with HTTP status 302\n\
             hint: give the URL at which the redirects end",
        ),
        (
            vec![Reply::redirect("/there?token=t"), Reply::status(404)],
            "`http://127.0.0.1:PORT/disk` (redirected to `http://127.0.0.1:PORT/there?token=****`) \
             answered with HTTP status 404\n\
             hint: check the URL: the server has nothing there",
        ),
        (
            vec![Reply::redirect("http://127.0.0.1:1/there")],
            "cannot connect to `127.0.0.1:1`, to which `http://127.0.0.1:PORT/disk` redirects\n\
             caused by: Connection refused (os error 111)\n\
             hint: check the host and the port, that the server runs, and that no firewall is \
             between",
        ),
        (
            vec![Reply::honest().header("Content-Encoding", "gzip")],
            "`http://127.0.0.1:PORT/disk` answered wrongly: expected no `Content-Encoding`, got gzip\n\
             hint: download it with another tool and give the file's path",
        ),
    ] {
        let server = FaultServer::serve("0123456789", replies);
        assert_eq!(shown(&server.url("disk"), &two).await, expected);
    }
}

#[tokio::test]
async fn a_stall_names_its_limit() {
    let once = Options { attempts: 1, ..impatient() };
    let server = FaultServer::serve("0123456789", [Reply::honest().stall_after(4)]);
    assert_eq!(
        shown(&server.url("disk"), &once).await,
        "`http://127.0.0.1:PORT/disk` broke off: received 4 of 10 bytes\n\
         caused by: nothing came for 1s\n\
         hint: run the command again"
    );
}

#[tokio::test]
async fn an_unreachable_server_reads_well() {
    let server = FaultServer::serve("", []);
    let url = server.url("disk");
    drop(server);
    assert_eq!(
        shown(&url, &options()).await,
        "cannot connect to `127.0.0.1:PORT`\n\
         caused by: Connection refused (os error 111)\n\
         hint: check the host and the port, that the server runs, and that no firewall is between"
    );
    let unknown = shown("http://user:hunter2@no-such-host.invalid/disk?token=t", &options()).await;
    let url = "http://user:****@no-such-host.invalid/disk?token=****";
    let [first, cause, hint] = unknown.lines().collect::<Vec<_>>()[..] else { panic!("{unknown}") };
    assert_eq!(first, format!("cannot find the address of `{url}`"));
    // What the resolver says depends on the network.
    assert!(cause.starts_with("caused by: failed to lookup address"), "{cause}");
    assert_eq!(hint, "hint: check the host's name and this machine's DNS");
}

#[tokio::test]
async fn an_untrusted_certificate_reads_well() {
    if !require_tool("nginx") || !require_tool("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let nginx = Nginx::serve_with(dir.path(), &NginxOptions { tls: true, ..Default::default() });
    assert_eq!(
        shown(&nginx.url("disk"), &options()).await,
        "no secure connection to `127.0.0.1:PORT`\n\
         caused by: invalid peer certificate: UnknownIssuer\n\
         hint: the certificate must be valid for this host, in date, and signed by an authority \
         that this machine trusts (Debian: package `ca-certificates`) or that `--ca-file FILE` names"
    );
}

#[tokio::test]
async fn a_local_path_reads_well() {
    for (path, expected) in [
        ("/no/such/disk", "`/no/such/disk` does not exist\nhint: check the path"),
        (
            "/dev",
            "`/dev` is a directory; expected a file or block device\n\
             hint: give the image file itself",
        ),
    ] {
        assert_eq!(shown(path, &options()).await, expected);
    }
}

#[tokio::test]
async fn unusable_authorities_read_well() {
    let extra_ca = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
    let text = shown("https://127.0.0.1:1/", &Options { extra_ca, ..options() }).await;
    assert!(text.starts_with("cannot set up the HTTP client\ncaused by: "), "{text}");
}
