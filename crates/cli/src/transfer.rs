//! How a source is read over a network: from flags, files and environment to `source::Options`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bootyard_source::{Header, Options};
use bootyard_spec::{Class, Credentials, Secret, Source};
use clap::{Args, value_parser};

use crate::args::parse_duration;
use crate::error::{Failure, read_input};
use crate::flags::{For, refuse_others};
use crate::settings;

/// What a network source needs beside its name.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Transfer")]
pub(crate) struct SourceArgs {
    /// Header to send to the URL, as `Name: value`; may be repeated
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<Header>,
    /// File with such headers, one a line, that must not be seen; may be repeated
    #[arg(long = "secret-header-file", value_name = "FILE")]
    secret_header_files: Vec<PathBuf>,
    /// User of the server or registry; for S3 the access key's id
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// File with the password or secret key; `-` reads standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Certificates of authorities to trust besides the system's: a PEM file, or a folder of them
    #[arg(long = "ca-file", value_name = "FILE")]
    ca_files: Vec<PathBuf>,
    /// Believe any server, whatever its certificate: only for tests
    #[arg(long)]
    insecure_skip_verify: bool,
    /// Requests at once for one source, 64 at most; each takes 4 MiB of memory [default: 4]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=64))]
    connections: Option<u16>,
    /// Failed requests in a row that are made again [default: 4]
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// How long a server may send nothing, such as 90s or 10m [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    stall_timeout: Option<Duration>,
}

impl SourceArgs {
    /// Refuses flags that would have no effect on `source`, nor on the list of its checksums if that
    /// comes over a network.
    pub(crate) fn check(&self, source: &Source, list: Option<&Source>) -> Result<(), Failure> {
        let sources: Vec<&Source> = [source].into_iter().chain(list).collect();
        let flags = [
            ("--header", !self.headers.is_empty(), For::Http),
            ("--secret-header-file", !self.secret_header_files.is_empty(), For::Http),
            ("--user", self.user.is_some(), For::Users),
        ];
        // These are for the server of the source itself.
        refuse_others(&flags, &sources[..1])?;
        let flags = [
            ("--ca-file", !self.ca_files.is_empty(), For::Network),
            ("--insecure-skip-verify", self.insecure_skip_verify, For::Network),
            ("--connections", self.connections.is_some(), For::Network),
            ("--retries", self.retries.is_some(), For::Network),
            ("--stall-timeout", self.stall_timeout.is_some(), For::Network),
        ];
        refuse_others(&flags, &sources)
    }

    /// How many of the files that the flags name are standard input.
    pub(crate) fn stdin_readers(&self) -> usize {
        let files = self.secret_header_files.iter().chain(&self.ca_files);
        files.chain(&self.password_file).filter(|path| *path == Path::new("-")).count()
    }

    /// Reads the files that the flags name.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        let defaults = Options::default();
        let mut headers = self.headers.clone();
        for path in &self.secret_header_files {
            headers.extend(secret_headers(path)?);
        }
        let mut extra_ca = Vec::new();
        for path in &self.ca_files {
            extra_ca.extend(authorities(path)?);
        }
        Ok(Options {
            headers,
            credentials: self.credentials()?,
            extra_ca,
            insecure_skip_verify: self.insecure_skip_verify,
            connections: self.connections.map_or(defaults.connections, usize::from),
            attempts: self.retries.map_or(defaults.attempts, |retries| retries.saturating_add(1)),
            stall_timeout: self.stall_timeout.unwrap_or(defaults.stall_timeout),
            proxy: settings::proxies()?,
            ..defaults
        })
    }

    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let (Some(user), Some(path)) = (&self.user, &self.password_file) else { return Ok(None) };
        let text = text_of(path)?;
        // Editors end the last line; no password ends so.
        let secret = Secret::new(text.trim_end_matches(['\r', '\n']).to_owned());
        Ok(Some(Credentials { id: user.clone(), secret }))
    }
}

fn text_of(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read_input(path)?)
        .map_err(|_| Failure::new(Class::Usage, format!("`{}` is not a text", path.display())))
}

fn secret_headers(path: &Path) -> Result<Vec<Header>, Failure> {
    let text = text_of(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let headers = lines.map(|(index, line)| {
        line.parse().map_err(|error| {
            let what = format!("`{}`, line {}: {error}", path.display(), index + 1);
            Failure::new(Class::Usage, what)
        })
    });
    headers.collect()
}

/// The certificates of a file, or of the files of a folder that are named as certificates are.
fn authorities(path: &Path) -> Result<Vec<u8>, Failure> {
    const MARK: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let failed = |error| Failure::new(Class::Usage, error);
    let mut pem = Vec::new();
    if fs_err::metadata(path).map_err(failed)?.is_dir() {
        let entries: Result<Vec<_>, _> = fs_err::read_dir(path).map_err(failed)?.collect();
        let mut files: Vec<PathBuf> =
            entries.map_err(failed)?.iter().map(fs_err::DirEntry::path).collect();
        files.retain(|file| file.extension().is_some_and(|name| name == "crt" || name == "pem"));
        files.sort();
        for file in files {
            pem.extend(read_input(&file)?);
            pem.push(b'\n');
        }
    } else {
        pem = read_input(path)?;
    }
    if !pem.windows(MARK.len()).any(|part| part == MARK) {
        let what = format!("`{}` holds no certificate in PEM form", path.display());
        return Err(Failure::new(Class::Usage, what).with_hint(
            "expected a file with `-----BEGIN CERTIFICATE-----`, or a folder of *.crt or *.pem",
        ));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_authorities_is_read_by_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
        write("README", "not a certificate");
        let refused = authorities(dir.path()).unwrap_err().message();
        assert!(refused.ends_with("holds no certificate in PEM form"), "{refused}");
        write("b.pem", "-----BEGIN CERTIFICATE-----\nb");
        write("a.crt", "-----BEGIN CERTIFICATE-----\na");
        let pem = String::from_utf8(authorities(dir.path()).unwrap()).unwrap();
        let line = "-----BEGIN CERTIFICATE-----";
        assert_eq!(pem, format!("{line}\na\n{line}\nb\n"));
    }

    #[test]
    fn a_bad_secret_header_is_named_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("headers");
        fs_err::write(&path, "X-A: 1\n\nX-B: 2\r\n").unwrap();
        assert_eq!(secret_headers(&path).unwrap().len(), 2);
        fs_err::write(&path, "X-A: 1\nhunter2\n").unwrap();
        let refused = secret_headers(&path).unwrap_err().message();
        assert!(refused.contains("line 2: ") && !refused.contains("hunter2"), "{refused}");
    }
}
