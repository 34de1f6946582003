//! Raw disks of servers that cast doubt on them.

use bootyard_spec::{Class, Digest, Explain};
use bootyard_testkit::{FaultServer, Reply, pseudo_random};

use crate::Place;

const LEN: usize = 1 << 20;

/// Imports what the server replies, with the digest or without. Returns the error with its hint.
fn import(reply: Reply, checksum: Option<&str>) -> Option<(Class, String)> {
    let place = Place::new();
    let server = FaultServer::serve(pseudo_random(LEN, 1), [reply]);
    let mut request = place.request(&server.url("disk"));
    request.checksum = checksum.map(|digest| digest.parse::<Digest>().unwrap());
    let error = place.import(&request).err()?;
    let text = format!("{error}\nhint: {}", error.hint().expect("a hint"));
    Some((error.class(), text.replace(&server.url(""), "http://HOST/")))
}

fn digest() -> String {
    let place = Place::new();
    let server = FaultServer::serve(pseudo_random(LEN, 1), []);
    place.import(&place.request(&server.url("disk"))).unwrap().sha256.to_string()
}

#[test]
fn a_disk_whose_end_is_not_marked_needs_a_digest() {
    // A transfer coding that is not chunked leaves the end to the connection (RFC 9112 §6.3).
    let reply = Reply::honest().no_ranges().header("Transfer-Encoding", "identity");
    let expected = "`http://HOST/disk` does not tell where it ends, so that a part of it would \
                    look whole\n\
                    hint: give the digest that the publisher shows with `--checksum`";
    for reply in [reply.clone(), reply.clone().cut_after(4096)] {
        assert_eq!(import(reply, None), Some((Class::Source, expected.to_owned())));
    }
    assert_eq!(import(reply.clone(), Some(&digest())), None);
    let (class, _) = import(reply.cut_after(4096), Some(&digest())).expect("a part");
    assert_eq!(class, Class::Checksum);
}

#[test]
fn a_disk_that_its_server_calls_a_text_needs_a_digest() {
    for (content_type, shown) in [
        ("text/html", Some("text/html")),
        ("Text/Plain; charset=utf-16", Some("text/plain")),
        ("application/octet-stream", None),
    ] {
        let reply = Reply::honest().header("Content-Type", content_type);
        let expected = shown.map(|shown| {
            let text = format!(
                "`http://HOST/disk` is a `{shown}` by its server; expected a disk image\n\
                 hint: open the URL in a browser: it may lead to a web page instead of the file; \
                 if it is the disk, give its digest with `--checksum`"
            );
            (Class::Image, text)
        });
        assert_eq!(import(reply.clone(), None), expected);
        assert_eq!(import(reply, Some(&digest())), None);
    }
}
