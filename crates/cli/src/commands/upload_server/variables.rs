//! The variables that CDI's controller gives its upload server, in place of flags that are absent.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootyard_spec::{ByteSize, Class, FilesystemOverhead};
use jiff::Timestamp;

use crate::args::UploadServerArgs;
use crate::error::Failure;

/// What of them is set.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct UploadVariables {
    listen: Option<SocketAddr>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    client_name: Option<String>,
    image_size: Option<ByteSize>,
    overhead: Option<FilesystemOverhead>,
    destination: Option<PathBuf>,
    deadline: Option<Timestamp>,
    preallocation: bool,
}

impl UploadVariables {
    /// The port of CDI's server.
    pub(crate) const DEFAULT_PORT: u16 = 8443;

    /// Reads them by `get`.
    pub(crate) fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let bad = |name: &str, expected: &str, value: &str| {
            let what = format!("`{name}` is wrong: expected {expected}, got `{value}`");
            Failure::new(Class::Usage, what)
        };
        let path = |name| get(name).map(PathBuf::from);
        let address: Option<IpAddr> = parsed(&get, "LISTEN_ADDRESS", "an address", bad)?;
        let port: Option<u16> = parsed(&get, "LISTEN_PORT", "a port", bad)?;
        let all = IpAddr::from([0, 0, 0, 0]);
        let listen = (address.is_some() || port.is_some())
            .then(|| SocketAddr::new(address.unwrap_or(all), port.unwrap_or(Self::DEFAULT_PORT)));
        let expected = "a part of 1 such as 0.06";
        let overhead = parsed(&get, "FILESYSTEM_OVERHEAD", expected, bad)?;
        Ok(Self {
            listen,
            tls_cert: path("TLS_CERT_FILE"),
            tls_key: path("TLS_KEY_FILE"),
            client_ca: path("CLIENT_CERT_FILE"),
            client_name: get("CLIENT_NAME"),
            image_size: parsed(&get, "UPLOAD_IMAGE_SIZE", "a quantity such as 10Gi", bad)?,
            overhead,
            destination: path("DESTINATION"),
            deadline: parsed(&get, "DEADLINE", "a time as in RFC 3339", bad)?,
            preallocation: parsed(&get, "PREALLOCATION", "true or false", bad)?.unwrap_or(false),
        })
    }

    /// The flags, and what is set where one is absent. The size is that of the volume (PVC): of one with
    /// a file system a part is not for the disk.
    pub(crate) fn fill(self, args: UploadServerArgs) -> Result<UploadServerArgs, Failure> {
        let has_target = args.name.is_some() || args.to.is_some();
        let to = args.to.or(self.destination.filter(|_| !has_target));
        let size = args.size.or_else(|| {
            let overhead = self.overhead.unwrap_or(FilesystemOverhead::NONE);
            let is_device = to.as_deref().is_some_and(is_block_device);
            self.image_size
                .filter(|_| !is_device)
                .map(|size| size.without_filesystem_overhead(overhead))
        });
        let deadline = match (args.deadline, self.deadline) {
            (None, Some(end)) => {
                let left = Timestamp::now().duration_until(end);
                let passed =
                    || Failure::new(Class::GuestTimeout, format!("the deadline {end} has passed"));
                Some(Duration::try_from(left).map_err(|_| passed())?)
            }
            (given, _) => given,
        };
        Ok(UploadServerArgs {
            to,
            size,
            deadline,
            max_size: args.max_size.or(self.image_size),
            listen: args.listen.or(self.listen),
            tls_cert: args.tls_cert.or(self.tls_cert),
            tls_key: args.tls_key.or(self.tls_key),
            client_ca: args.client_ca.or(self.client_ca),
            client_name: args.client_name.or(self.client_name),
            preallocation: args.preallocation || self.preallocation,
            ..args
        })
    }
}

fn parsed<T: std::str::FromStr>(
    get: impl Fn(&str) -> Option<String>,
    name: &str,
    expected: &str,
    bad: impl Fn(&str, &str, &str) -> Failure,
) -> Result<Option<T>, Failure> {
    let Some(value) = get(name) else { return Ok(None) };
    value.trim().parse().map(Some).map_err(|_| bad(name, expected, &value))
}

fn is_block_device(path: &Path) -> bool {
    fs_err::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<UploadVariables, String> {
        let get = |name: &str| {
            variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned())
        };
        UploadVariables::parse(get).map_err(|failure| failure.message())
    }

    #[test]
    fn cdis_variables_are_read() {
        let read = parse(&[
            ("LISTEN_PORT", "8443"),
            ("TLS_KEY_FILE", "/k"),
            ("UPLOAD_IMAGE_SIZE", "10Gi"),
            ("FILESYSTEM_OVERHEAD", "0.06"),
            ("DEADLINE", "2030-01-02T03:04:05Z"),
            ("PREALLOCATION", "true"),
        ]);
        let read = read.unwrap();
        assert_eq!(read.listen, Some("0.0.0.0:8443".parse().unwrap()));
        assert_eq!(read.tls_key, Some("/k".into()));
        assert!(read.preallocation && read.deadline.is_some() && read.tls_cert.is_none());
        assert_eq!(parse(&[]), Ok(UploadVariables::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in [
            ("LISTEN_ADDRESS", "here"),
            ("LISTEN_PORT", "http"),
            ("UPLOAD_IMAGE_SIZE", "big"),
            ("FILESYSTEM_OVERHEAD", "2"),
            ("DEADLINE", "soon"),
            ("PREALLOCATION", "maybe"),
        ] {
            let refused = parse(&[(name, value)]).unwrap_err();
            assert!(refused.starts_with(&format!("`{name}` is wrong: expected")), "{refused}");
        }
    }
}
