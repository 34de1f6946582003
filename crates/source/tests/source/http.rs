//! HTTP sources against a real nginx and against a server that goes wrong on purpose.

use std::time::Duration;

use bootyard_source::{Error, ErrorKind, Options, Validator};
use bootyard_testkit::{FaultServer, Nginx, NginxOptions, Reply, pseudo_random, require_tool};

use crate::{impatient, open_url, options, read_all};

/// A body that takes several reads of a socket.
const LEN: usize = 2_000_001;

fn body() -> Vec<u8> {
    pseudo_random(LEN, 1)
}

/// What a whole read gives, and how many retries it took.
async fn fetch(url: &str, options: &Options) -> Result<(Vec<u8>, u32), Error> {
    let mut object = open_url(url, options).await?;
    let bytes = read_all(&mut object).await?;
    Ok((bytes, object.retries()))
}

async fn assert_fetches(server: &FaultServer, retries: u32) {
    let (bytes, made) = fetch(&server.url("disk"), &options()).await.unwrap();
    assert!(bytes == body(), "{} bytes came, and not the right ones", bytes.len());
    assert_eq!(made, retries);
}

async fn failure(server: &FaultServer, options: &Options) -> Error {
    fetch(&server.url("disk"), options).await.unwrap_err()
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("disk"), body()).unwrap();
    dir
}

mod nginx {
    use super::*;

    fn start(options: &NginxOptions) -> Option<(Nginx, tempfile::TempDir)> {
        let dir = folder();
        require_tool("nginx").then(|| (Nginx::serve_with(dir.path(), options), dir))
    }

    #[tokio::test]
    async fn streams_an_object_and_tells_its_facts() {
        let Some((nginx, _dir)) = start(&NginxOptions::default()) else { return };
        let mut object = open_url(&nginx.url("disk"), &options()).await.unwrap();
        assert_eq!(object.len(), Some(LEN as u64));
        assert!(matches!(object.validator(), Some(Validator::ETag(_))));
        assert!(object.accepts_ranges());
        assert_eq!(object.content_type(), Some("application/octet-stream"));
        assert_eq!(object.name(), nginx.url("disk"));
        assert!(read_all(&mut object).await.unwrap() == body());
        assert_eq!(object.next().await.unwrap(), None);
        assert_eq!(object.retries(), 0);
    }

    #[tokio::test]
    async fn reads_ranges_and_only_those() {
        let Some((nginx, _dir)) = start(&NginxOptions::default()) else { return };
        let object = open_url(&nginx.url("disk"), &options()).await.unwrap();
        let body = body();
        for (offset, len) in [(0, 1), (0, 65536), (1_000_000, 1_000_000), (LEN - 5, 100), (LEN, 1)]
        {
            let bytes = object.read_range(offset as u64, len as u64).await.unwrap();
            assert!(bytes == body[offset..LEN.min(offset + len)], "{offset}+{len}");
        }
        let log = nginx.access_log();
        assert_eq!(log.matches("206").count(), 5, "{log}");
    }

    #[tokio::test]
    async fn a_server_without_ranges_still_streams() {
        let options = NginxOptions { no_ranges: true, ..NginxOptions::default() };
        let Some((nginx, _dir)) = start(&options) else { return };
        let mut object = open_url(&nginx.url("disk"), &super::options()).await.unwrap();
        assert!(!object.accepts_ranges());
        assert_eq!(object.read_range(0, 10).await.unwrap_err().kind(), ErrorKind::NoRanges);
        assert!(read_all(&mut object).await.unwrap() == body());
    }

    #[tokio::test]
    async fn credentials_of_the_url_are_sent() {
        let basic_auth = Some(("us er".to_owned(), "p ss/".to_owned()));
        let Some((nginx, _dir)) = start(&NginxOptions { basic_auth, ..NginxOptions::default() })
        else {
            return;
        };
        let with = |user: &str| nginx.url("disk").replace("//", &format!("//{user}"));
        let (bytes, _) = fetch(&with("us%20er:p%20ss%2F@"), &options()).await.unwrap();
        assert!(bytes == body());
        for wrong in ["", "us%20er:wrong@"] {
            let error = fetch(&with(wrong), &options()).await.unwrap_err();
            assert_eq!((error.kind(), error.http_status()), (ErrorKind::Denied, Some(401)));
            assert!(!error.to_string().contains("wrong"), "{error}");
        }
    }

    #[tokio::test]
    async fn redirects_are_followed_but_not_for_ever() {
        let directives = "location = /old { return 301 /disk; }
            location /loop { return 302 /loop; } location /ftp { return 302 ftp://h.example/; }";
        let options = NginxOptions { directives: directives.into(), ..NginxOptions::default() };
        let Some((nginx, _dir)) = start(&options) else { return };
        let (bytes, _) = fetch(&nginx.url("old"), &super::options()).await.unwrap();
        assert!(bytes == body());
        for path in ["loop", "ftp"] {
            let error = fetch(&nginx.url(path), &super::options()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Redirect, "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_comes_back_is_waited_for() {
        let Some((nginx, _dir)) = start(&NginxOptions::default()) else { return };
        nginx.set_down(true);
        let url = nginx.url("disk");
        let waiting = Options { retry_delay: Duration::from_millis(100), ..options() };
        let fetching = tokio::spawn(async move { fetch(&url, &waiting).await });
        while nginx.access_log().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        nginx.set_down(false);
        let (bytes, retries) = fetching.await.unwrap().unwrap();
        assert!(bytes == body());
        assert!(retries > 0);
    }

    #[tokio::test]
    async fn a_server_that_sends_too_rarely_has_stalled() {
        let bytes_per_second = Some(1000);
        let Some((nginx, _dir)) =
            start(&NginxOptions { bytes_per_second, ..NginxOptions::default() })
        else {
            return;
        };
        let options = Options { attempts: 2, ..impatient() };
        let error = fetch(&nginx.url("disk"), &options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stalled, "{error:?}");
        assert!(error.to_string().ends_with("bytes in 2 attempts"), "{error}");
    }

    #[tokio::test]
    async fn https_needs_a_trusted_certificate() {
        let Some((nginx, _dir)) = start(&NginxOptions { tls: true, ..NginxOptions::default() })
        else {
            return;
        };
        let error = fetch(&nginx.url("disk"), &options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tls, "{error:?}");
        let trusting = Options { extra_ca: fs_err::read(nginx.ca()).unwrap(), ..options() };
        let (bytes, _) = fetch(&nginx.url("disk"), &trusting).await.unwrap();
        assert!(bytes == body());
    }
}

mod faults {
    use super::*;

    #[tokio::test]
    async fn a_cut_stream_is_resumed_where_it_broke() {
        let cut = Reply::honest().cut_after(900_000);
        let server = FaultServer::serve(body(), [cut.clone(), cut, Reply::honest()]);
        assert_fetches(&server, 2).await;
        let requests = server.requests();
        assert_eq!(requests[0].header("range"), Some("bytes=0-2097151"));
        assert_eq!(requests[0].header("if-range"), None);
        assert_eq!(requests[0].header("accept-encoding"), Some("identity"));
        assert_eq!(requests[1].header("range"), Some("bytes=900000-2000000"));
        assert_eq!(requests[1].header("if-range"), Some("\"v1\""));
        assert_eq!(requests[2].header("range"), Some("bytes=1800000-2000000"));
    }

    #[tokio::test]
    async fn a_stalled_stream_is_resumed() {
        let stall = Reply::honest().stall_after(1_000_000);
        let server = FaultServer::serve(body(), [stall, Reply::honest()]);
        let (bytes, retries) = fetch(&server.url("disk"), &impatient()).await.unwrap();
        assert!(bytes == body());
        assert_eq!(retries, 1);
    }

    #[tokio::test]
    async fn a_last_modified_time_resumes_too() {
        let plain = Reply::honest().etag(Some("W/\"weak\""));
        let plain = plain.header("Last-Modified", "Mon, 02 Jun 2025 10:00:00 GMT");
        let server = FaultServer::serve(body(), [plain.cut_after(1000), Reply::status(404)]);
        failure(&server, &options()).await;
        let requests = server.requests();
        assert_eq!(requests[1].header("if-range"), Some("Mon, 02 Jun 2025 10:00:00 GMT"));
    }

    #[tokio::test]
    async fn trouble_at_the_start_is_retried() {
        let trouble = [Reply::status(503), Reply::hang_up(), Reply::status(429), Reply::honest()];
        let server = FaultServer::serve(body(), trouble);
        assert_fetches(&server, 3).await;
    }

    #[tokio::test]
    async fn retry_after_is_honoured() {
        let busy = Reply::status(503).header("Retry-After", "1");
        let server = FaultServer::serve(body(), [busy, Reply::honest()]);
        let early = tokio::time::timeout(Duration::from_millis(900), assert_fetches(&server, 1));
        assert!(early.await.is_err(), "the second request came before a second had passed");
        assert_eq!(server.requests().len(), 1);
    }

    #[tokio::test]
    async fn a_break_before_the_first_byte_starts_again_without_ranges() {
        let plain = Reply::honest().etag(None).no_ranges();
        let server = FaultServer::serve(body(), [plain.clone().cut_after(0), plain]);
        assert_fetches(&server, 1).await;
        assert_eq!(server.requests()[1].header("range"), None);
    }

    #[tokio::test]
    async fn final_answers_are_not_asked_for_twice() {
        for status in [400, 401, 403, 404, 410, 501] {
            let server = FaultServer::serve("", [Reply::status(status)]);
            let error = failure(&server, &options()).await;
            assert_eq!(error.http_status(), Some(status));
            assert_eq!(server.requests().len(), 1, "{status}");
        }
    }

    #[tokio::test]
    async fn attempts_are_bounded() {
        for (reply, kind) in [
            (Reply::status(503), ErrorKind::Status),
            (Reply::hang_up(), ErrorKind::Broken),
            (Reply::honest().cut_after(10), ErrorKind::Broken),
        ] {
            let server = FaultServer::serve(body(), [reply]);
            assert_eq!(failure(&server, &options()).await.kind(), kind);
            assert_eq!(server.requests().len(), 5);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_resumed_is_not_asked_for_again() {
        for reply in [Reply::honest().no_ranges(), Reply::honest().etag(None)] {
            let server = FaultServer::serve(body(), [reply.cut_after(10), Reply::honest()]);
            assert_eq!(failure(&server, &options()).await.kind(), ErrorKind::Broken);
            assert_eq!(server.requests().len(), 1);
        }
    }

    #[tokio::test]
    async fn two_versions_are_never_mixed() {
        let first = Reply::honest().cut_after(10);
        let other = Reply::honest().etag(Some("\"v2\""));
        let server = FaultServer::serve(body(), [first, other]);
        let error = failure(&server, &options()).await;
        assert_eq!(error.kind(), ErrorKind::Changed, "{error:?}");
        assert_eq!(server.requests().len(), 2);
    }

    #[tokio::test]
    async fn a_lying_206_is_refused() {
        for lie in [Reply::honest().shift_range(1), Reply::honest().lie_about_total(1)] {
            let first = Reply::honest().cut_after(10);
            let server = FaultServer::serve(body(), [first, lie.clone()]);
            let error = failure(&server, &options()).await;
            assert_eq!(error.kind(), ErrorKind::BadAnswer, "{error:?}");

            let server = FaultServer::serve(body(), [Reply::honest(), lie]);
            let object = open_url(&server.url("disk"), &options()).await.unwrap();
            let error = object.read_range(5, 10).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadAnswer, "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_range_of_another_version_is_refused() {
        let other = Reply::honest().etag(Some("\"v2\""));
        let server = FaultServer::serve(body(), [Reply::honest(), other]);
        let object = open_url(&server.url("disk"), &options()).await.unwrap();
        assert_eq!(object.read_range(5, 10).await.unwrap_err().kind(), ErrorKind::Changed);
    }

    #[tokio::test]
    async fn a_broken_range_is_read_again() {
        let replies = [Reply::honest(), Reply::honest().cut_after(3), Reply::honest()];
        let server = FaultServer::serve(body(), replies);
        let object = open_url(&server.url("disk"), &options()).await.unwrap();
        assert_eq!(object.read_range(5, 10).await.unwrap(), body()[5..15]);
        assert_eq!(server.requests().len(), 3);
    }

    #[tokio::test]
    async fn an_announced_length_is_what_comes_or_an_error() {
        let wrong = |len| Reply::honest().content_length(len as u64);
        for (reply, kind) in [
            (wrong(LEN + 1).no_ranges(), ErrorKind::Broken),
            (wrong(LEN + 1), ErrorKind::BadAnswer),
            (wrong(LEN - 1), ErrorKind::BadAnswer),
        ] {
            let server = FaultServer::serve(body(), [reply.clone()]);
            assert_eq!(failure(&server, &options()).await.kind(), kind, "{reply:?}");
        }

        // HTTP ends where the announced length does; what follows is not the object's.
        let server = FaultServer::serve(body(), [wrong(LEN - 1).no_ranges()]);
        let mut object = open_url(&server.url("disk"), &options()).await.unwrap();
        assert_eq!(object.len(), Some(LEN as u64 - 1));
        assert!(read_all(&mut object).await.unwrap() == body()[..LEN - 1]);
    }

    #[tokio::test]
    async fn a_chunked_body_has_no_length_but_an_end() {
        let server = FaultServer::serve(body(), [Reply::honest().chunked().no_ranges()]);
        let mut object = open_url(&server.url("disk"), &options()).await.unwrap();
        assert_eq!(object.len(), None);
        assert!(read_all(&mut object).await.unwrap() == body());

        let cut = Reply::honest().chunked().cut_after(1_000_000);
        let server = FaultServer::serve(body(), [cut, Reply::honest()]);
        assert_fetches(&server, 1).await;
    }

    #[tokio::test]
    async fn a_dropped_read_loses_nothing() {
        let body = pseudo_random(40_000, 2);
        let drip = Reply::honest().chunked().drip(100, Duration::from_micros(50));
        let server = FaultServer::serve(body.clone(), [drip]);
        let mut object = open_url(&server.url("disk"), &options()).await.unwrap();
        let (mut bytes, mut dropped) = (Vec::new(), 0);
        loop {
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => dropped += 1,
                chunk = object.next() => match chunk.unwrap() {
                    Some(chunk) => bytes.extend_from_slice(&chunk),
                    None => break,
                },
            }
        }
        assert!(bytes == body, "{} bytes came", bytes.len());
        assert!(dropped > 0);
    }

    #[tokio::test]
    async fn a_slow_drip_is_read_to_its_end() {
        // Longer in all than may pass between two bytes.
        let drip = Reply::honest().body("0123456789").drip(1, Duration::from_millis(150));
        let server = FaultServer::serve("", [drip]);
        let (bytes, retries) = fetch(&server.url("disk"), &impatient()).await.unwrap();
        assert_eq!((bytes.as_slice(), retries), (&b"0123456789"[..], 0));
    }

    #[tokio::test]
    async fn an_encoded_body_is_not_taken_for_the_object() {
        for (coding, refused) in [("gzip", true), ("zstd", true), ("identity", false), ("", false)]
        {
            let reply = Reply::honest().header("Content-Encoding", coding);
            let server = FaultServer::serve(body(), [reply]);
            let fetched = fetch(&server.url("disk"), &options()).await;
            let kind = fetched.err().map(|error| error.kind());
            assert_eq!(kind, refused.then_some(ErrorKind::BadAnswer), "{coding}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_moves_on_may_break_more_often_than_attempts() {
        let cut = Reply::honest().cut_after(260_000);
        let server = FaultServer::serve(body(), [cut]);
        assert_fetches(&server, 7).await;
    }

    #[tokio::test]
    async fn an_end_that_only_the_connection_marks_is_not_sure() {
        // A transfer coding that is not chunked leaves the end to the connection, RFC 9112 §6.3.
        let closed = Reply::honest().header("Transfer-Encoding", "identity").no_ranges();
        for (reply, sure) in [
            (Reply::honest().no_ranges(), true),
            (Reply::honest().chunked().no_ranges(), true),
            (closed.clone(), false),
            (closed.cut_after(1000), false),
        ] {
            let server = FaultServer::serve(body(), [reply.clone()]);
            let object = open_url(&server.url("disk"), &options()).await.unwrap();
            assert_eq!(object.ends_surely(), sure, "{reply:?}");
        }
    }

    #[tokio::test]
    async fn a_total_that_shows_up_late_still_binds() {
        // A cache may serve ranges only once it has the object.
        let ranges = ("Accept-Ranges", "bytes");
        let first =
            Reply::honest().chunked().no_ranges().header(ranges.0, ranges.1).cut_after(1000);
        let silent = Reply::honest().header("Transfer-Encoding", "identity").cut_after(500);
        let server = FaultServer::serve(body(), [first, silent, Reply::honest()]);
        assert_fetches(&server, 2).await;
    }

    #[tokio::test]
    async fn a_web_page_tells_its_type() {
        let server = FaultServer::serve("", [Reply::html()]);
        let object = open_url(&server.url("disk"), &options()).await.unwrap();
        assert_eq!(object.content_type(), Some("text/html; charset=utf-8"));
    }

    #[tokio::test]
    async fn credentials_do_not_cross_to_another_host() {
        let target = FaultServer::serve(body(), []);
        let first = FaultServer::serve("", [Reply::redirect(&target.url("disk"))]);
        let url = first.url("disk").replace("//", "//user:hunter2@");
        let (bytes, _) = fetch(&url, &options()).await.unwrap();
        assert!(bytes == body());
        let [sent, crossed] = [&first, &target].map(|server| server.requests().remove(0));
        assert!(sent.header("authorization").is_some_and(|value| value.starts_with("Basic ")));
        assert_eq!(crossed.header("authorization"), None);
        assert_eq!(crossed.header("cookie"), None);
        assert_eq!(crossed.header("referer"), None);

        let inside = FaultServer::serve(body(), [Reply::redirect("/there"), Reply::honest()]);
        fetch(&inside.url("disk").replace("//", "//user:hunter2@"), &options()).await.unwrap();
        assert!(inside.requests()[1].header("authorization").is_some());
    }
}
