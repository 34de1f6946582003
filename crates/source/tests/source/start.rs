//! Reading on from where another reader stopped.

use std::time::{Duration, UNIX_EPOCH};

use bootyard_source::{Error, ErrorKind, Object, Start, Validator, open_at};
use bootyard_testkit::{FaultServer, Nginx, NginxOptions, Reply, pseudo_random, require_tool};

use crate::{open_url, options, read_all};

const LEN: u64 = 300_001;

fn body() -> Vec<u8> {
    pseudo_random(LEN as usize, 3)
}

async fn open_from(url: &str, at: u64, validator: Option<&Validator>) -> Result<Object, Error> {
    let start = Start { at, validator: validator.cloned() };
    open_at(&url.parse().unwrap(), &options(), &start).await
}

async fn rest(url: &str, at: u64, validator: Option<&Validator>) -> Result<Vec<u8>, ErrorKind> {
    let read = async {
        let mut object = open_from(url, at, validator).await?;
        assert_eq!((object.len(), object.received()), (Some(LEN), at));
        assert_eq!(object.validator(), validator);
        assert!(object.accepts_ranges() && object.ends_surely());
        let bytes = read_all(&mut object).await?;
        assert_eq!(object.received(), LEN);
        Ok(bytes)
    };
    read.await.map_err(|error: Error| error.kind())
}

async fn assert_reads_on(url: &str, other: &Validator) {
    let validator = open_url(url, &options()).await.unwrap().validator().cloned();
    let validator = validator.as_ref();
    for at in [0, 1, 200_000, LEN - 1, LEN] {
        assert!(rest(url, at, validator).await.unwrap() == body()[at as usize..], "from {at}");
        assert_eq!(rest(url, at, Some(other)).await, Err(ErrorKind::Changed), "from {at}");
    }
    for at in [LEN + 1, u64::MAX] {
        assert_eq!(rest(url, at, validator).await, Err(ErrorKind::Changed), "from {at}");
        assert_eq!(rest(url, at, None).await, Err(ErrorKind::Changed), "from {at}");
    }
}

#[tokio::test]
async fn a_file_is_read_on_only_in_the_same_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs_err::write(&path, body()).unwrap();
    let path = path.to_str().unwrap();
    let old = open_url(path, &options()).await.unwrap().validator().cloned().unwrap();
    fs_err::copy(path, dir.path().join("copy")).unwrap();
    fs_err::rename(dir.path().join("copy"), path).unwrap();
    assert_reads_on(path, &old).await;
}

#[tokio::test]
async fn an_object_of_nginx_is_read_on_only_in_the_same_version() {
    if !require_tool("nginx") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("disk"), body()).unwrap();
    for etag in ["on", "off"] {
        let directives = format!("etag {etag};");
        let options = NginxOptions { directives, ..NginxOptions::default() };
        let nginx = Nginx::serve_with(dir.path(), &options);
        let other = match etag {
            "on" => Validator::ETag("\"other\"".to_owned()),
            _ => Validator::LastModified("Mon, 02 Jun 2025 10:00:00 GMT".to_owned()),
        };
        // nginx knows the time to the second, and a time of this very second proves nothing.
        let file = fs_err::File::options().write(true).open(dir.path().join("disk")).unwrap();
        file.file().set_modified(UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
        assert_reads_on(&nginx.url("disk"), &other).await;
    }
}

#[tokio::test]
async fn a_server_without_ranges_cannot_be_read_on() {
    let v1 = Validator::ETag("\"v1\"".to_owned());
    let server = FaultServer::serve(body(), [Reply::honest().no_ranges()]);
    assert_eq!(rest(&server.url("disk"), 5, Some(&v1)).await, Err(ErrorKind::NoRanges));
    let v0 = Validator::ETag("\"v0\"".to_owned());
    assert_eq!(rest(&server.url("disk"), 5, Some(&v0)).await, Err(ErrorKind::Changed));
}

#[tokio::test]
async fn a_resumed_stream_that_breaks_is_resumed_again() {
    let v1 = Validator::ETag("\"v1\"".to_owned());
    let server = FaultServer::serve(body(), [Reply::honest().cut_after(100), Reply::honest()]);
    assert!(rest(&server.url("disk"), 1000, Some(&v1)).await.unwrap() == body()[1000..]);
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    assert_eq!(
        ranges,
        ["bytes=1000-2098151", "bytes=1100-300000"].map(|range| Some(range.to_owned()))
    );
}
