//! Who may upload: tokens as CDI signs them, a token in a file, certificates of clients.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use bootyard_testkit::{Cli, run, sha256_file};

use super::{Server, curl, missing, post, volume};
use crate::{Images, assert_nothing_left};

fn openssl(folder: &Path, line: &str) -> String {
    run(Command::new("sh").arg("-ec").arg(line).current_dir(folder))
}

/// Keys and certificates in a folder: an authority, a server, and clients with several names.
struct Keys(tempfile::TempDir);

impl Keys {
    fn make() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        openssl(folder.path(), CERTIFICATES);
        openssl(
            folder.path(),
            "openssl genrsa -out signer.key 2048 2>/dev/null
             openssl rsa -in signer.key -pubout -out signer.pub 2>/dev/null
             openssl rsa -in signer.key -RSAPublicKey_out -out signer.pkcs1 2>/dev/null
             openssl genrsa -out stranger.key 2048 2>/dev/null",
        );
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A token with these claims, signed as CDI does it.
    fn token(&self, key: &str, header: &str, claims: &str) -> String {
        let script = format!(
            "url() {{ openssl base64 -A | tr '+/' '-_' | tr -d '='; }}
             head=$(printf %s '{header}' | url).$(printf %s '{claims}' | url)
             sign=$(printf %s \"$head\" | openssl dgst -sha256 -sigopt rsa_padding_mode:pss \
                 -sigopt rsa_pss_saltlen:-1 -sign {key} | url)
             printf %s \"$head.$sign\""
        );
        openssl(self.0.path(), &script)
    }
}

const CERTIFICATES: &str = "
    new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $1.key \
        -subj \"/O=test/CN=$2\" -out $1.csr 2>/dev/null; }
    sign() { openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 2 \
        -extfile ext -out $1.pem 2>/dev/null; }
    for ca in ca other; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
            -subj /CN=$ca -keyout $ca.key -out $ca.pem 2>/dev/null
    done
    echo subjectAltName=IP:127.0.0.1 > ext
    new server localhost; sign server ca
    echo basicConstraints=CA:FALSE > ext
    new client client.upload-server.cdi.kubevirt.io; sign client ca
    new guest somebody.else; sign guest ca
    new forged client.upload-server.cdi.kubevirt.io; sign forged other
    echo subjectAltName=DNS:client.upload-server.cdi.kubevirt.io > ext
    new alternative somebody.else; sign alternative ca
    echo subjectAltName=DNS:*.upload-server.cdi.kubevirt.io > ext
    new wildcard somebody.else; sign wildcard ca";

const PS256: &str = r#"{"alg":"PS256"}"#;

/// The claims of an upload token, which is valid from and to these times, in seconds from now.
fn claims(from: i64, to: i64, changes: &[(&str, &str)]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let now = i64::try_from(now).expect("a time");
    let (from, to) = (now + from, now + to);
    let text = format!(
        r#"{{"exp":{to},"iat":{from},"iss":"cdi-apiserver","nbf":{from},"operation":"Upload","name":"v","namespace":"images","resource":{{"group":"","version":"v1","resource":"persistentvolumeclaims"}}}}"#
    );
    changes.iter().fold(text, |text, (old, new)| {
        assert!(text.contains(old), "{old}");
        text.replace(old, new)
    })
}

#[test]
fn a_token_counts_only_for_its_target_and_time() {
    if missing() {
        return;
    }
    let (keys, images, cli) = (Keys::make(), Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]);
    let key = keys.text("signer.pub");
    let subject = ["--token-key", &key, "--token-subject", "images/v"];
    let server = Server::start(&cli, &[&["--name", "v"][..], &subject].concat());
    let url = server.url("/v1beta1/upload");
    let signed = |claims: &str| keys.token("signer.key", PS256, claims);
    let good = signed(&claims(-5, 300, &[]));
    let unsigned = good.rsplit_once('.').expect("three parts").0.to_owned() + ".";
    for (token, expected, why) in [
        (unsigned.clone(), 401, "without its signature"),
        (format!("{unsigned}AAAA"), 401, "with another signature"),
        (good[..good.len() - 9].to_owned(), 401, "cut short"),
        ("abc".to_owned(), 401, "no token"),
        (keys.token("stranger.key", PS256, &claims(-5, 300, &[])), 401, "of another signer"),
        (keys.token("signer.key", r#"{"alg":"none"}"#, &claims(-5, 300, &[])), 401, "by none"),
        (keys.token("signer.key", r#"{"alg":"RS256"}"#, &claims(-5, 300, &[])), 401, "by RS256"),
        (signed(&claims(-400, -30, &[])), 401, "expired"),
        (signed(&claims(60, 300, &[])), 401, "not yet valid"),
        (signed(&claims(-5, 300, &[("cdi-apiserver", "me")])), 401, "of another issuer"),
        (signed(&claims(-5, 300, &[(r#""name":"v""#, r#""name":"w""#)])), 401, "another claim"),
        (signed(&claims(-5, 300, &[(r#""images""#, r#""other""#)])), 401, "another namespace"),
        (signed(&claims(-5, 300, &[("Upload", "Clone")])), 400, "for a clone"),
        (signed(&claims(-5, 300, &[("persistentvolumeclaims", "pods")])), 400, "for a pod"),
    ] {
        let header = format!("Authorization: Bearer {token}");
        let (status, body) = post(&url, &image, &["-H", &header]);
        assert_eq!(status, expected, "{why}: {body}");
        assert!(!body.contains(&token), "{body}");
    }
    assert_eq!(post(&url, &image, &[]).0, 400, "without a token");
    assert_eq!(post(&url, &image, &["-u", "user:password"]).0, 400, "with a password");
    assert_eq!(curl(&["-X", "POST", "-H", "Upload-Length: 1", &server.url("/v1/uploads")]).0, 400);
    assert_nothing_left(&cli);

    // Within what clocks may differ by.
    let late = signed(&claims(5, 300, &[]));
    let header = format!("Authorization: bearer {late}");
    assert_eq!(post(&url, &image, &["-H", &header]).0, 200);
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));

    // The key in its other form, and a token that has just expired.
    let cli = Cli::from_env();
    let server = Server::start(&cli, &["--name", "v", "--token-key", &keys.text("signer.pkcs1")]);
    let header = format!("Authorization: Bearer {}", signed(&claims(-300, -5, &[])));
    let (status, body) = post(&server.url("/v1beta1/upload"), &image, &["-H", &header]);
    assert_eq!(status, 200, "{body}");
}

#[test]
fn over_tls_only_clients_of_the_right_name_are_let_in() {
    if missing() {
        return;
    }
    let (keys, images, cli) = (Keys::make(), Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]);
    let text = |name: &str| keys.text(name);
    let cli = cli
        .env("TLS_CERT_FILE", &text("server.pem"))
        .env("TLS_KEY_FILE", &text("server.key"))
        .env("CLIENT_CERT_FILE", &text("ca.pem"))
        .env("CLIENT_NAME", "client.upload-server.cdi.kubevirt.io");
    let server = Server::start(&cli, &["--name", "v"]);
    let (url, ca) = (server.url("/v1beta1/upload"), text("ca.pem"));
    assert!(url.starts_with("https://"), "{url}");
    let send = |name: Option<&str>| {
        let mut arguments = vec!["--cacert".to_owned(), ca.clone()];
        if let Some(name) = name {
            let files = [text(&format!("{name}.pem")), text(&format!("{name}.key"))];
            let [certificate, key] = files;
            arguments.extend(["--cert".into(), certificate, "--key".into(), key]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        post(&url, &image, &arguments).0
    };
    assert_eq!(send(None), 401, "without a certificate");
    let file = image.display().to_string();
    let output = cli.run(["upload", &file, "--to", &server.url, "--ca-file", &ca]);
    assert!(output.stderr.contains("with `--client-cert`"), "{output}");
    assert_eq!(send(Some("guest")), 401, "in another name");
    assert_eq!(send(Some("wildcard")), 401, "in any name");
    assert_eq!(send(Some("forged")), 0, "of another authority");
    assert_eq!(post(&url, &image, &["--cacert", &text("other.pem")]).0, 0, "a server unknown");
    assert_eq!(curl(&["--cacert", &ca, &server.url("/healthz")]), (200, "OK".to_owned()));
    assert_nothing_left(&cli);
    assert_eq!(send(Some("client")), 200);
    assert_eq!(server.end().0, Some(0));
    assert_eq!(sha256_file(volume(&cli, "v")), sha256_file(images.path("disk.raw")));

    let server = Server::start(&cli, &["--name", "w"]);
    let [certificate, key] = ["alternative.pem", "alternative.key"].map(text);
    let arguments = ["--cacert", &ca, "--cert", &certificate, "--key", &key];
    assert_eq!(post(&server.url("/v1beta1/upload"), &image, &arguments).0, 200);
}

#[test]
fn a_token_in_a_file_lets_its_bearer_in() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]);
    let token = images.path("token");
    fs_err::write(&token, "hunter2\n").expect("a token");
    let server =
        Server::start(&cli, &["--name", "v", "--token-file", &token.display().to_string()]);
    let url = server.url("/v1beta1/upload");
    for (header, expected) in [
        ("X: y", 400),
        ("Authorization: Bearer hunter3", 401),
        ("Authorization: Bearer hunter2", 200),
    ] {
        assert_eq!(post(&url, &image, &["-H", header]).0, expected, "{header}");
    }
}

#[test]
fn a_page_in_a_browser_is_not_let_in() {
    if missing() {
        return;
    }
    let (images, cli) = (Images::new(), Cli::from_env());
    let image = images.convert("disk.qcow2", &[]);
    let server = Server::start(&cli, &["--name", "v"]);
    let url = server.url("/v1beta1/upload");
    for header in ["Origin: https://evil.example", "Origin: null", "Host: evil.example:8443"] {
        assert_eq!(post(&url, &image, &["-H", header]).0, 403, "{header}");
        let uploads = server.url("/v1/uploads");
        let begun = curl(&["-X", "POST", "-H", "Upload-Length: 1", "-H", header, &uploads]);
        assert_eq!(begun.0, 403, "{header}");
    }
    assert_nothing_left(&cli);
    assert_eq!(post(&url, &image, &["-H", "Host: localhost:1"]).0, 200);
}

#[test]
fn what_would_let_anyone_in_is_refused() {
    let cli = Cli::from_env();
    for (arguments, expected) in [
        (&["--name", "v", "--listen", "0.0.0.0:0"][..], "anyone who reaches"),
        (&["--listen", "127.0.0.1:0"], "expected either `--name` or `--to`"),
        (&["--name", "v", "--tls-cert", "x"], "TLS needs both"),
        (&["--name", "v", "--client-ca", "x"], "certificates of clients need TLS"),
        (&["--name", "v", "--client-name", "x"], "stands in a certificate"),
        (&["--to", "x", "--token-key", "/dev/null"], "holds no"),
    ] {
        let output = cli.run([&["upload-server"], arguments].concat());
        assert_eq!(output.code, Some(2), "{output}");
        assert!(
            output.stderr.contains(expected) || output.stderr.contains("RSA public key"),
            "{output}"
        );
    }
}
