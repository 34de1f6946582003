//! Finding an image's digest in the file that is published beside it: `SHA256SUMS` and its like.
//!
//! Takes the lines of GNU's tools (`HASH  NAME`, `HASH *NAME`), those of BSD's (`SHA256 (NAME) =
//! HASH`), a hash alone, and all of these inside a PGP-signed text, whose signature is not checked:
//! what the file says is as good as the way that it came.

use bootyard_spec::Digest;

/// How many names an error repeats.
const SHOWN: usize = 5;

/// Why a file of checksums does not tell an image's digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumsError {
    /// No line is one of a checksum. Holds the beginning of the first line.
    #[error("expected lines such as `HASH  NAME`, got `{0}`")]
    NoChecksums(String),
    /// Other files are listed.
    #[error("no checksum for `{name}`, only for {}", listed(found))]
    NotListed {
        /// Which file was looked for.
        name: String,
        /// Which files are listed.
        found: Vec<String>,
    },
    /// Two different digests of one kind.
    #[error("two different checksums for `{name}`: {first} and {second}")]
    Ambiguous {
        /// Which file was looked for.
        name: String,
        /// The one digest.
        first: Digest,
        /// The other one.
        second: Digest,
    },
}

/// A line: the digest, and the file's name unless it stands alone.
struct Entry<'a> {
    digest: Digest,
    name: Option<&'a str>,
}

/// The digest that `text` gives for the file `name`: the strongest one, if there are several.
///
/// # Errors
///
/// If there is none, or if it is not clear which.
pub fn find(text: &str, name: &str) -> Result<Digest, ChecksumsError> {
    let entries: Vec<Entry<'_>> = signed_part(text).filter_map(entry).collect();
    if let [Entry { digest, name: None }] = &entries[..] {
        return Ok(digest.clone());
    }
    let is_it = |entry: &&Entry<'_>| entry.name.is_some_and(|path| file_name(path) == name);
    let mut best: Option<&Digest> = None;
    for Entry { digest, .. } in entries.iter().filter(is_it) {
        best = match best {
            Some(best) if best.algorithm() == digest.algorithm() && best != digest => {
                return Err(ChecksumsError::Ambiguous {
                    name: name.to_owned(),
                    first: best.clone(),
                    second: digest.clone(),
                });
            }
            Some(best) if best.algorithm().digest_len() >= digest.algorithm().digest_len() => {
                Some(best)
            }
            _ => Some(digest),
        };
    }
    best.cloned().ok_or_else(|| missing(text, name, &entries))
}

fn missing(text: &str, name: &str, entries: &[Entry<'_>]) -> ChecksumsError {
    if entries.is_empty() {
        let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        return ChecksumsError::NoChecksums(first.chars().take(60).collect());
    }
    let found = entries.iter().filter_map(|entry| entry.name).map(str::to_owned).collect();
    ChecksumsError::NotListed { name: name.to_owned(), found }
}

/// The lines that a PGP signature (RFC 9580 §7) is for, or all lines.
fn signed_part(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim_start_matches('\u{feff}');
    let text = text.split("-----BEGIN PGP SIGNATURE-----").next().unwrap_or_default();
    text.lines().map(|line| line.strip_prefix("- ").unwrap_or(line).trim())
}

fn entry(line: &str) -> Option<Entry<'_>> {
    if let Some((tag, rest)) = line.split_once(" (")
        && let Some((name, hash)) = rest.rsplit_once(") = ")
    {
        let algorithm = tag.replace('-', "").to_ascii_lowercase();
        let digest = format!("{algorithm}:{hash}").parse().ok()?;
        return Some(Entry { digest, name: Some(name) });
    }
    let (hash, name) = match line.split_once([' ', '\t']) {
        // One more blank, or a star for what was read as binary, stands before the name.
        Some((hash, name)) => (hash, Some(name.trim_start().trim_start_matches('*'))),
        None => (line, None),
    };
    Some(Entry { digest: by_length(hash)?, name })
}

/// A digest whose algorithm only its length tells.
fn by_length(hash: &str) -> Option<Digest> {
    let algorithm = match hash.len() {
        32 => "md5",
        40 => "sha1",
        64 => "sha256",
        128 => "sha512",
        _ => return None,
    };
    format!("{algorithm}:{hash}").parse().ok()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 if names.is_empty() => "files without a name".to_owned(),
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
    const SHA1: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
    const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const OTHER: &str = "a3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(text: &str, expected: Result<&str, &str>) {
        let found = find(text, "disk.img").map(|digest| digest.to_string());
        let found = found.map_err(|error| error.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{text}");
    }

    #[test]
    fn every_published_form_is_read() {
        let sha256 = format!("sha256:{SHA256}");
        let sha512 = format!("sha512:{SHA256}{SHA256}");
        let good = Ok(sha256.as_str());
        check(&format!("{OTHER}  a\n{SHA256}  disk.img\n"), good);
        check(&format!("{OTHER} *a\r\n{SHA256} *disk.img\r\n"), good);
        check(&format!("{SHA256}\t./folder/disk.img"), good);
        check(&format!("{}  disk.img", SHA256.to_ascii_uppercase()), good);
        check(&format!("# disk.img: 0 bytes\nSHA256 (disk.img) = {SHA256}\n"), good);
        check(&format!("{SHA256}\n"), good);
        check(&format!("{MD5}  disk.img\n{SHA256}  disk.img\n{SHA1}  disk.img"), good);
        check(&format!("SHA2-256 (a) = x\nSHA512 (disk.img) = {SHA256}{SHA256}"), Ok(&sha512));
        check(&format!("{MD5}  disk.img"), Ok(&format!("md5:{MD5}")));
        check(&format!("{SHA1}  disk.img"), Ok(&format!("sha1:{SHA1}")));
        let signed = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# disk.img: 0 bytes\n\
             SHA256 (disk.img) = {SHA256}\n-----BEGIN PGP SIGNATURE-----\n\n{OTHER}  disk.img\n"
        );
        check(&signed, good);
    }

    #[test]
    fn a_file_without_the_checksum_says_what_it_has() {
        check("", Err("expected lines such as `HASH  NAME`, got ``"));
        check("<html>\n", Err("expected lines such as `HASH  NAME`, got `<html>`"));
        check(&format!("{SHA256}  a\n"), Err("no checksum for `disk.img`, only for `a`"));
        check(
            &format!("{SHA256}  a-disk.img"),
            Err("no checksum for `disk.img`, only for `a-disk.img`"),
        );
        let many: String = (0..7).map(|n| format!("{SHA256}  {n}\n")).collect();
        let listed = "no checksum for `disk.img`, only for `0`, `1`, `2`, `3`, `4` and 2 more";
        check(&many, Err(listed));
        let two = format!("{SHA256}  disk.img\n{OTHER}  disk.img\n");
        let both = format!("sha256:{SHA256} and sha256:{OTHER}");
        check(&two, Err(&format!("two different checksums for `disk.img`: {both}")));
        check(
            &format!("{SHA256}\n{OTHER}\n"),
            Err("no checksum for `disk.img`, only for files without a name"),
        );
    }
}
