//! S3: where an object is, and a signature for it. The AWS SDK finds the credentials (variables,
//! profiles, web identity, assumed roles, SSO, the machine's own), keeps the rules of regions and
//! endpoints and signs; the bytes come through our HTTP engine by presigned URL. Not in builds
//! without the feature `s3`.

use bootyard_spec::{ObjectName, SafeUrl, Secret};

use crate::Error;
use crate::store::object_in;

#[cfg(feature = "s3")]
mod look_up;
#[cfg(feature = "s3")]
mod put;
#[cfg(feature = "s3")]
mod sign;

#[cfg(feature = "s3")]
pub use put::NewObject;
#[cfg(feature = "s3")]
pub(crate) use sign::S3;

/// How S3 is spoken to. The default is what the AWS tools do without options: everything comes from
/// the environment, the profile and the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The bucket's region. Default: the profile's or the environment's, else `us-east-1`; a bucket
    /// that says that it is elsewhere is believed.
    pub region: Option<String>,
    /// Another server than Amazon's, such as `https://minio.example:9000`.
    pub endpoint: Option<SafeUrl>,
    /// Name the bucket in the path and not in the host.
    pub path_style: bool,
    /// The profile of `~/.aws/config` to use. Default: `AWS_PROFILE`'s, or `default`.
    pub profile: Option<String>,
    /// Send no credentials: the object is public.
    pub anonymous: bool,
    /// The token that belongs to temporary keys in [`Options::credentials`](crate::Options).
    pub session_token: Option<Secret>,
}

impl S3Options {
    /// Splits CDI's form, `https://HOST/BUCKET/KEY`, into the object and the server: path style, the
    /// region guessed from a host of Amazon's, `http` without TLS. Other options stay.
    ///
    /// # Errors
    ///
    /// If the URL names no bucket and key.
    pub fn locate(mut self, url: &SafeUrl) -> Result<(ObjectName, Self), Error> {
        let object = object_in(url)?;
        let mut endpoint = url.expose().clone();
        endpoint.set_path("");
        endpoint.set_query(None);
        endpoint.set_fragment(None);
        let region = endpoint.host_str().and_then(region_of).map(str::to_owned);
        self.region = self.region.or(region);
        self.endpoint = Some(SafeUrl::from(endpoint));
        self.path_style = true;
        Ok((object, self))
    }
}

/// `eu-north-1` of `s3.eu-north-1.amazonaws.com` and of the older `s3-eu-north-1.amazonaws.com`.
fn region_of(host: &str) -> Option<&str> {
    let front = host.strip_suffix(".amazonaws.com.cn").or(host.strip_suffix(".amazonaws.com"))?;
    let region = front.rsplit('.').next()?;
    let region = region.strip_prefix("s3-").unwrap_or(region);
    (region.contains('-') && is_region(region)).then_some(region)
}

/// The name of a region becomes part of a host's: nothing else may.
fn is_region(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=32).contains(&text.len()) && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_stands_in_a_host_of_amazon() {
        for (host, region) in [
            ("s3.eu-north-1.amazonaws.com", Some("eu-north-1")),
            ("s3-us-west-2.amazonaws.com", Some("us-west-2")),
            ("s3.dualstack.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("s3.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("s3.amazonaws.com", None),
            ("s3.eu-north-1.example.com", None),
            ("10.0.0.1", None),
        ] {
            assert_eq!(region_of(host), region, "{host}");
        }
    }

    #[test]
    fn a_url_of_cdi_names_server_bucket_and_key() {
        let options = S3Options::default();
        let url = "http://127.0.0.1:8333/images/a%20b/disk.qcow2".parse().unwrap();
        let (object, options) = options.locate(&url).unwrap();
        assert_eq!(object.to_string(), "images/a b/disk.qcow2");
        assert_eq!(options.endpoint.unwrap().to_string(), "http://127.0.0.1:8333/");
        assert!(options.path_style);
        for text in ["https://h/", "https://h/bucket", "https://h/bucket/", "https://h//key"] {
            let error = S3Options::default().locate(&text.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains("BUCKET"), "{error}");
        }
    }
}
