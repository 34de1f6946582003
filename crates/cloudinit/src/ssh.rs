//! SSH public keys, as `authorized_keys` files and `.pub` files hold them (sshd(8)). Whether a key
//! is strong is not judged here, and private keys are refused unread.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::{Error, ErrorKind};

/// One public key: `[OPTIONS] TYPE BASE64 [COMMENT]`. The key's bytes have been checked against its
/// type, so that a key cut short by copying is found before the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshPublicKey {
    /// The line without its surrounding white space.
    line: String,
    /// Where the comment starts in it; its length if there is none.
    comment_at: usize,
}

/// What the type of every key begins with (OpenSSH's list in ssh-keygen(1), and certificates).
/// Anything else before a key is taken for `authorized_keys` options.
const TYPE_PREFIXES: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];

impl SshPublicKey {
    /// Reads every key of a text: one a line, empty lines and lines that begin with `#` left out.
    /// `input` is how errors name the text. A text without any key is an error.
    pub fn parse_all(input: &str, text: &[u8]) -> Result<Vec<Self>, Error> {
        refuse_other_formats(text).map_err(|e| e.in_input(input))?;
        let text = std::str::from_utf8(text)
            .map_err(|_| bad("expected text, got bytes that are not UTF-8").in_input(input))?;
        // Editors on Windows put a byte-order mark first.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().zip(1..).map(|(line, number)| (line.trim(), number));
        let keys = lines
            .filter(|(line, _)| !line.is_empty() && !line.starts_with('#'))
            .map(|(line, number)| {
                Self::parse_line(line).map_err(|e| e.in_input(input).at_line(number))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(bad("expected at least one SSH public key, got none").in_input(input));
        }
        Ok(keys)
    }

    fn parse_line(line: &str) -> Result<Self, Error> {
        let options = if is_type(line) { 0 } else { options_len(line) };
        let mut words = words_from(line, options);
        let Some((_, key_type)) = words.next().filter(|(_, word)| is_type(word)) else {
            return Err(bad("expected a key type such as `ssh-ed25519` at the start of the line")
                .with_hint(
                    "an SSH public key is one line: TYPE BASE64 COMMENT; see `ssh-keygen -y`",
                ));
        };
        let (_, encoded) = words
            .next()
            .ok_or_else(|| bad(format!("nothing follows the key type `{key_type}`")))?;
        let cut = "the key seems to be cut short or changed; copy the whole line of the .pub file";
        let blob = STANDARD
            .decode(encoded)
            .map_err(|_| bad(format!("the `{key_type}` key is not valid base64")).with_hint(cut))?;
        let fields = fields_of(&blob)
            .ok_or_else(|| bad(format!("the `{key_type}` key is incomplete")).with_hint(cut))?;
        if fields.first() != Some(&key_type.as_bytes()) || fields.len() < 2 {
            return Err(bad(format!("the key's bytes are not those of a `{key_type}` key")));
        }
        let comment_at = words.next().map_or(line.len(), |(at, _)| at);
        Ok(Self { line: line.to_owned(), comment_at })
    }

    /// The key's type, such as `ssh-ed25519`.
    pub fn key_type(&self) -> &str {
        self.words().next().unwrap_or_default()
    }

    /// The key's SHA-256, as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        let encoded = self.words().nth(1).unwrap_or_default();
        let blob = STANDARD.decode(encoded).expect("it was decoded when the key was read");
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob)))
    }

    /// Type, key and comment, without options before them.
    fn words(&self) -> impl Iterator<Item = &str> {
        let options = if is_type(&self.line) { 0 } else { options_len(&self.line) };
        words_from(&self.line, options).map(|(_, word)| word)
    }

    /// The comment, often `user@host`; empty if there is none.
    pub fn comment(&self) -> &str {
        &self.line[self.comment_at..]
    }
}

impl fmt::Display for SshPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

fn is_type(word: &str) -> bool {
    TYPE_PREFIXES.iter().any(|prefix| word.starts_with(prefix))
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::SshKey, what)
}

/// Refuses files that are keys, but not public keys in OpenSSH's one-line form. Nothing of a private
/// key gets into the message.
fn refuse_other_formats(text: &[u8]) -> Result<(), Error> {
    let has = |mark: &str| text.windows(mark.len()).any(|window| window == mark.as_bytes());
    if has("PRIVATE KEY-----") || has("PuTTY-User-Key-File-") {
        let hint = "give the public half, usually the file of the same name with `.pub`; a private \
                    key must not leave your machine";
        return Err(Error::new(ErrorKind::PrivateKey, "this is a private key").with_hint(hint));
    }
    if has("---- BEGIN SSH2 PUBLIC KEY ----") {
        return Err(bad("expected OpenSSH's format, got an RFC 4716 public key")
            .with_hint("convert it with `ssh-keygen -i -f FILE`"));
    }
    if has("PUBLIC KEY-----") {
        return Err(bad("expected OpenSSH's format, got a PEM public key")
            .with_hint("convert it with `ssh-keygen -i -m PKCS8 -f FILE`"));
    }
    Ok(())
}

/// The length of the options at the start of an `authorized_keys` line: up to the first white space
/// that is not within double quotes (sshd(8)).
fn options_len(line: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => return at,
            _ => {}
        }
    }
    line.len()
}

/// The words of `line` after byte `from`, with where they start.
fn words_from(line: &str, from: usize) -> impl Iterator<Item = (usize, &str)> {
    let rest = &line[from..];
    rest.split_ascii_whitespace()
        .map(move |word| (word.as_ptr() as usize - line.as_ptr() as usize, word))
}

/// The strings of a key blob (RFC 4251 §5), each with a 32-bit length before it; `None` if they do
/// not end where the blob does.
fn fields_of(mut blob: &[u8]) -> Option<Vec<&[u8]>> {
    let mut fields = Vec::new();
    while !blob.is_empty() {
        let (len, rest) = blob.split_first_chunk()?;
        let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        fields.push(field);
        blob = rest;
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use bootyard_spec::Explain as _;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGyQ7aKqmHWdN8i4cRkXzdn3SuNOqmJLlyXhHKzsqzZg";

    #[test]
    fn takes_every_key_of_a_file() {
        let text = format!(
            "# mine\r\n\n{KEY}\r\n  {KEY} a b@c \nrestrict,command=\"echo \\\"hi there\\\"\" {KEY} z\n"
        );
        let keys = SshPublicKey::parse_all("keys", text.as_bytes()).unwrap();
        let comments: Vec<&str> = keys.iter().map(SshPublicKey::comment).collect();
        assert_eq!(comments, ["", "a b@c", "z"]);
        assert_eq!(keys[0].to_string(), KEY);
        assert_eq!(keys[2].key_type(), "ssh-ed25519");
        assert_eq!(keys[2].fingerprint(), keys[0].fingerprint());
        assert!(keys[2].to_string().starts_with("restrict,command="));
    }

    #[test]
    fn refuses_what_is_no_public_key() {
        let cut = &KEY[..KEY.len() - 4];
        for (text, message) in [
            ("\n# none\n", "`k`: expected at least one SSH public key, got none"),
            ("\nssh-ed25519", "`k` line 2: nothing follows the key type `ssh-ed25519`"),
            ("ssh-ed25519 a$", "`k` line 1: the `ssh-ed25519` key is not valid base64"),
            (cut, "`k` line 1: the `ssh-ed25519` key is incomplete"),
            (
                &KEY.replacen("ed25519", "rsa", 1),
                "`k` line 1: the key's bytes are not those of a `ssh-rsa` key",
            ),
            (
                "hello world",
                "`k` line 1: expected a key type such as `ssh-ed25519` at the start of the line",
            ),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret", "`k`: this is a private key"),
            ("PuTTY-User-Key-File-3: ssh-ed25519", "`k`: this is a private key"),
            (
                "---- BEGIN SSH2 PUBLIC KEY ----",
                "`k`: expected OpenSSH's format, got an RFC 4716 public key",
            ),
            ("-----BEGIN PUBLIC KEY-----", "`k`: expected OpenSSH's format, got a PEM public key"),
        ] {
            let error = SshPublicKey::parse_all("k", text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let error = SshPublicKey::parse_all("k", b"-----BEGIN RSA PRIVATE KEY-----").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PrivateKey);
        assert!(error.hint().unwrap().contains(".pub"));
    }
}
