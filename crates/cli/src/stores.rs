//! Object stores: from flags and environment to the options of their sources.

use std::path::{Path, PathBuf};

use bootyard_source::{GcsOptions, Options, S3Options};
use bootyard_spec::{Class, SafeUrl, Secret, Source};
use clap::Args;

use crate::error::Failure;
use crate::flags::{For, refuse_others};
use crate::settings;

/// What S3 and GCS need beside the source's name.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Object stores")]
pub(crate) struct StoreArgs {
    /// S3 server [default: Amazon's]
    #[arg(long, value_name = "URL")]
    pub(crate) s3_endpoint: Option<SafeUrl>,
    /// Region of the bucket [default: the profile's or AWS_REGION]
    #[arg(long, value_name = "REGION")]
    pub(crate) s3_region: Option<String>,
    /// Profile of ~/.aws/config [default: AWS_PROFILE, or `default`]
    #[arg(long, value_name = "NAME")]
    pub(crate) s3_profile: Option<String>,
    /// Name the bucket in the path of the URL, as many servers but Amazon's want it
    #[arg(long)]
    pub(crate) s3_path_style: bool,
    /// Read a public object of S3, without credentials
    #[arg(long)]
    pub(crate) s3_anonymous: bool,
    /// Key of a Google account [default: GOOGLE_APPLICATION_CREDENTIALS, gcloud's, or the machine's]
    #[arg(long, value_name = "FILE")]
    pub(crate) gcs_key: Option<PathBuf>,
}

impl StoreArgs {
    /// Adds to the options what `source` needs, and refuses flags that are for another one. Who we are is found in the environment too: for S3
    /// the AWS SDK looks there by itself.
    pub(crate) fn apply(&self, source: &Source, options: &mut Options) -> Result<(), Failure> {
        let flags = [
            ("--s3-endpoint", self.s3_endpoint.is_some(), For::S3),
            ("--s3-region", self.s3_region.is_some(), For::S3),
            ("--s3-profile", self.s3_profile.is_some(), For::S3),
            ("--s3-path-style", self.s3_path_style, For::S3),
            ("--s3-anonymous", self.s3_anonymous, For::S3),
            ("--gcs-key", self.gcs_key.is_some(), For::Gcs),
        ];
        refuse_others(&flags, &[source])?;
        match source {
            Source::S3(_) => {
                options.s3 = S3Options {
                    region: self.s3_region.clone(),
                    endpoint: self.s3_endpoint.clone(),
                    path_style: self.s3_path_style,
                    profile: self.s3_profile.clone(),
                    anonymous: self.s3_anonymous,
                    session_token: None,
                };
            }
            Source::Gcs(_) => {
                let key = self.gcs_key.clone().or_else(settings::google_key);
                options.gcs = google(key.as_deref())?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The options for Google's store, with the key of this file.
pub(crate) fn google(key: Option<&Path>) -> Result<GcsOptions, Failure> {
    let key = key.map(fs_err::read_to_string).transpose();
    let key = key.map_err(|error| Failure::new(Class::Usage, error))?.map(Secret::new);
    Ok(GcsOptions {
        key,
        endpoint: settings::google_endpoint()?,
        metadata_host: settings::google_metadata_host(),
        anonymous: false,
    })
}
