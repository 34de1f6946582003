//! Several pieces of user-data as one MIME document (RFC 2046 §5.1), the form in which cloud-init
//! takes more than one.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use uuid::Uuid;

use crate::user_data::has_mime_version;
use crate::{Error, ErrorKind, Format, UserData};

/// Bytes of a compressed part that are looked at: as many as cloud-init looks at itself.
const START: u64 = 4096;

/// Longest line of base64 (RFC 2045 §6.8).
const BASE64_LINE: usize = 76;

/// Longest line of a part that is written as it is (RFC 5322 §2.1.1).
const LINE_MAX: usize = 998;

/// Refuses what cloud-init understands alone, and not beside others.
pub(crate) fn check_joined(parts: &[UserData]) -> Result<(), Error> {
    for part in parts.iter().filter(|part| part.format() == Format::Gzip) {
        let mut start = Vec::new();
        // What cannot be decompressed has no MIME header either.
        let _ = MultiGzDecoder::new(part.content()).take(START).read_to_end(&mut start);
        if has_mime_version(&start) {
            let what = "a compressed MIME document, which cloud-init opens only if it stands alone";
            let hint = "decompress it: `gunzip < FILE`, or leave out what is joined with it";
            let error = Error::new(ErrorKind::UserData, what).with_hint(hint);
            return Err(error.in_input(part.input()));
        }
    }
    Ok(())
}

/// Joins `parts`, in their order. The boundary is a digest of the parts: the same parts make the
/// same document, and no part can hold its own boundary.
pub(crate) fn join(parts: &[UserData]) -> Vec<u8> {
    let all: Vec<u8> = parts.iter().flat_map(UserData::content).copied().collect();
    let boundary = format!("bootyard-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, &all).simple());
    let mut document =
        format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n")
            .into_bytes();
    for part in parts {
        document.extend(format!("--{boundary}\n").bytes());
        push_part(&mut document, part);
        document.push(b'\n');
    }
    document.extend(format!("--{boundary}--\n").bytes());
    document
}

fn push_part(document: &mut Vec<u8>, part: &UserData) {
    // A MIME document begins with headers of its own and nests as it is.
    if part.format() == Format::Mime {
        document.extend(part.content());
        return;
    }
    let content_type = part.format().content_type();
    if is_plain(part.content()) {
        document.extend(format!("Content-Type: {content_type}; charset=\"us-ascii\"\n").bytes());
        document.extend(b"MIME-Version: 1.0\nContent-Transfer-Encoding: 7bit\n\n");
        document.extend(part.content());
        return;
    }
    let charset = if part.format() == Format::Gzip { "" } else { "; charset=\"utf-8\"" };
    document.extend(format!("Content-Type: {content_type}{charset}\n").bytes());
    document.extend(b"MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\n");
    for line in STANDARD.encode(part.content()).as_bytes().chunks(BASE64_LINE) {
        document.extend(line);
        document.push(b'\n');
    }
}

/// True for text that needs no encoding. Python's parser, and so cloud-init, spoils other text that
/// is marked as `8bit`, and changes lone carriage returns.
fn is_plain(content: &[u8]) -> bool {
    content.iter().all(|b| b.is_ascii() && !matches!(b, 0 | b'\r'))
        && content.split(|b| *b == b'\n').all(|line| line.len() <= LINE_MAX)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::disallowed_methods,
        reason = "Python's parser, which cloud-init uses, is the oracle"
    )]

    use std::io::Write as _;
    use std::process::Command;

    use bootyard_testkit::{require_tool, run};
    use flate2::write::GzEncoder;

    use super::*;

    /// Decodes every leaf as cloud-init does.
    const PARSE: &str = "import email, sys\n\
        for part in email.message_from_string(open(sys.argv[1]).read()).walk():\n \
        if part.get_content_maintype() != 'multipart':\n  \
        print(part.get_content_type(), part.get_payload(decode=True).hex())";

    #[test]
    fn python_finds_every_part_byte_for_byte() {
        if !require_tool("python3") {
            return;
        }
        let long = format!("#cloud-config\n# {}\n", "x".repeat(2000));
        let contents: [&[u8]; 8] = [
            b"#cloud-config\na: 1\n\n\n",
            b"#!/bin/sh\necho no line end",
            "#cloud-config\n# Gr\u{fc}\u{df}e\n".as_bytes(),
            long.as_bytes(),
            b"#cloud-config\r\nb: 2\r\n",
            b"\x1f\x8b\x00\xff",
            b"#cloud-config\n--bootyard\nFrom x\n",
            b"#include\nhttp://h/\n",
        ];
        let nested = b"MIME-Version: 1.0\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n";
        let parts: Vec<UserData> = contents
            .into_iter()
            .chain([nested.as_slice()])
            .map(|content| UserData::parse("u", content).unwrap())
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), join(&parts)).unwrap();

        let found = run(Command::new("python3").args(["-c", PARSE]).arg(file.path()));
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let mut expected: Vec<String> = parts[..contents.len()]
            .iter()
            .map(|part| format!("{} {}", part.format().content_type(), hex(part.content())))
            .collect();
        expected.push(format!("text/x-shellscript {}", hex(b"#!/bin/sh\n")));
        assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_compressed_mime_document_is_not_joined() {
        let part = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            UserData::parse("u.gz", encoder.finish().unwrap()).unwrap()
        };
        assert!(check_joined(&[part("#!a")]).is_ok());
        assert!(check_joined(&[UserData::parse("u", [0x1f, 0x8b, 0xff]).unwrap()]).is_ok());
        let error = check_joined(&[part("#!a"), part("MIME-Version: 1.0\n")]).unwrap_err();
        assert!(error.to_string().starts_with("`u.gz`: a compressed MIME document"), "{error}");
    }

    #[test]
    fn the_same_parts_make_the_same_document() {
        let part = |text: &str| UserData::parse("u", text).unwrap();
        let parts = [part("#!a"), part("#!b")];
        assert_eq!(join(&parts), join(&parts));
        assert_ne!(join(&parts), join(&[part("#!b"), part("#!a")]));
    }
}
