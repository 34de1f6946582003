//! Streams that come in segments over several connections.

use std::time::Duration;

use bootyard_source::{Error, ErrorKind, Object, Options};
use bootyard_testkit::{
    FaultServer, Nginx, NginxOptions, Reply, Request, pseudo_random, require_tool,
};

use crate::{open_url, options, read_all};

const SEGMENT: usize = 2 << 20;
const LEN: usize = 6 * SEGMENT + 7;

/// Repeats itself, because random bytes take as long as a test, but never at a segment's length.
fn body() -> Vec<u8> {
    let mut bytes = pseudo_random(65_537, 5).repeat(LEN / 65_537 + 1);
    bytes.truncate(LEN);
    bytes
}

/// The first byte that a request asks for.
fn start(request: &Request) -> usize {
    let range = request.header("range").expect("every request of these tests has a range");
    let (first, _) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    first.parse().unwrap()
}

async fn fetch(server: &FaultServer) -> Result<(Vec<u8>, Object), Error> {
    let mut object = open_url(&server.url("disk"), &options()).await?;
    let bytes = read_all(&mut object).await?;
    Ok((bytes, object))
}

#[tokio::test]
async fn a_slow_link_gets_several_connections_and_no_byte_twice() {
    if !require_tool("nginx") {
        return;
    }
    let (dir, body) = (tempfile::tempdir().unwrap(), body());
    fs_err::write(dir.path().join("disk"), &body).unwrap();
    let slow = NginxOptions { bytes_per_second: Some(8 << 20), ..NginxOptions::default() };
    let nginx = Nginx::serve_with(dir.path(), &slow);
    let mut object = open_url(&nginx.url("disk"), &options()).await.unwrap();
    assert!(object.is_ranged() && object.accepts_ranges() && object.ends_surely());
    assert_eq!((object.connections(), object.len()), (4, Some(LEN as u64)));
    let started = tokio::time::Instant::now();
    assert!(read_all(&mut object).await.unwrap() == body);
    // One connection would take 3 s.
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    assert_eq!(object.received(), LEN as u64);
    let log = nginx.access_log();
    let sent: usize =
        log.lines().map(|line| line.split(' ').nth(1).unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!((log.lines().count(), sent, object.retries()), (7, LEN, 0), "{log}");
}

#[tokio::test]
async fn one_connection_asks_once() {
    let (body, one) = (body(), Options { connections: 1, ..options() });
    let server = FaultServer::serve(body.clone(), []);
    let mut object = open_url(&server.url("disk"), &one).await.unwrap();
    assert!(!object.is_ranged() && object.accepts_ranges());
    assert!(read_all(&mut object).await.unwrap() == body);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].header("range"), None);
}

#[tokio::test]
async fn a_range_proves_what_no_header_says() {
    let body = body();
    let server = FaultServer::serve(body.clone(), [Reply::honest().silent_about_ranges()]);
    let (bytes, object) = fetch(&server).await.unwrap();
    assert!(bytes == body && object.is_ranged());
    assert_eq!(object.read_range(LEN as u64 - 3, 9).await.unwrap(), body[LEN - 3..]);
    assert!(server.requests().iter().all(|request| request.method == "GET"));
}

#[tokio::test]
async fn announced_ranges_that_do_not_come_are_one_stream() {
    let body = body();
    let liar = Reply::honest().no_ranges().header("Accept-Ranges", "bytes");
    let server = FaultServer::serve(body.clone(), [liar]);
    let (bytes, object) = fetch(&server).await.unwrap();
    assert!(bytes == body && !object.is_ranged() && !object.accepts_ranges());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn versions_that_nobody_can_tell_apart_are_not_put_together() {
    let body = body();
    let server = FaultServer::serve(body.clone(), [Reply::honest().etag(None)]);
    let (bytes, object) = fetch(&server).await.unwrap();
    assert!(bytes == body && !object.is_ranged());
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("range"), None);
}

#[tokio::test]
async fn a_server_that_refuses_the_range_itself_is_one_stream() {
    let body = body();
    let refusing = |request: &Request, _| match request.header("range") {
        Some(_) => Reply::status(416),
        None => Reply::honest().no_ranges(),
    };
    let server = FaultServer::serve_with(body.clone(), refusing);
    let (bytes, object) = fetch(&server).await.unwrap();
    assert!(bytes == body && !object.is_ranged());
}

#[tokio::test]
async fn an_empty_object_has_no_bytes() {
    for reply in [Reply::honest(), Reply::honest().no_ranges()] {
        let server = FaultServer::serve("", [reply]);
        let (bytes, object) = fetch(&server).await.unwrap();
        assert!(bytes.is_empty() && object.is_empty() && object.ends_surely());
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn each_segment_is_resumed_where_it_broke() {
    let body = body();
    // Whole segments break after 1 MB, what is left of them does not.
    let cut = |request: &Request, _| match start(request) % SEGMENT {
        0 => Reply::honest().cut_after(1_000_000),
        _ => Reply::honest(),
    };
    let server = FaultServer::serve_with(body.clone(), cut);
    let (bytes, object) = fetch(&server).await.unwrap();
    assert!(bytes == body);
    assert_eq!(object.retries(), 6, "the last segment is too short to break");
    let requests = server.requests();
    for resumed in requests.iter().filter(|request| !start(request).is_multiple_of(SEGMENT)) {
        assert_eq!(start(resumed) % SEGMENT, 1_000_000);
        assert_eq!(resumed.header("if-range"), Some("\"v1\""));
    }
    assert_eq!(requests.len(), 13);
}

#[tokio::test]
async fn a_server_that_fails_three_times_of_four_is_read_to_the_end() {
    let body = body();
    let flaky = |_: &Request, index| match index % 4 {
        3 => Reply::honest(),
        _ => Reply::status(503),
    };
    let server = FaultServer::serve_with(body.clone(), flaky);
    let (bytes, object) = fetch(&server).await.unwrap();
    assert!(bytes == body);
    assert_eq!(object.retries(), 21);
    assert_eq!(object.connections(), 1, "a server that complains gets fewer requests at once");
}

#[tokio::test]
async fn a_segment_that_never_comes_ends_the_stream_before_it() {
    let body = body();
    for (reply, kind) in [
        (Reply::status(500), ErrorKind::Broken),
        (Reply::status(404), ErrorKind::Broken),
        (Reply::hang_up(), ErrorKind::Broken),
        (Reply::honest().etag(Some("\"v2\"")), ErrorKind::Changed),
        (Reply::honest().no_ranges(), ErrorKind::Broken),
        (Reply::honest().shift_range(1), ErrorKind::BadAnswer),
        (Reply::honest().lie_about_total(1), ErrorKind::BadAnswer),
        (Reply::honest().content_length(SEGMENT as u64 + 1), ErrorKind::BadAnswer),
        (Reply::honest().chunked().stretch_range(1), ErrorKind::BadAnswer),
    ] {
        let shown = format!("{reply:?}");
        let bad = move |request: &Request, _| match start(request) / SEGMENT {
            3 => reply.clone(),
            _ => Reply::honest(),
        };
        let server = FaultServer::serve_with(body.clone(), bad);
        let mut object = open_url(&server.url("disk"), &options()).await.unwrap();
        let mut bytes = Vec::new();
        let error = loop {
            match object.next().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => panic!("{shown}: the stream ended after {} bytes", bytes.len()),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), kind, "{shown}: {error:?}");
        assert!(bytes.len() >= 3 * SEGMENT && bytes == body[..bytes.len()], "{shown}");
        assert_eq!(object.next().await.unwrap(), None, "{shown}");
    }
}

#[tokio::test]
async fn a_dropped_read_loses_nothing() {
    let body = body();
    let server = FaultServer::serve(body.clone(), []);
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
    assert!(bytes == body && dropped > 0, "{} bytes came", bytes.len());
}

#[tokio::test]
async fn who_reads_slowly_is_not_sent_more_than_fits() {
    let server = FaultServer::serve(vec![1; 12 * SEGMENT], []);
    let mut object = open_url(&server.url("disk"), &options()).await.unwrap();
    object.next().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(server.requests().len() <= 4, "{:?}", server.requests());
}
