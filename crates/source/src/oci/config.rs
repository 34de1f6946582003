//! An image's configuration (OCI image configuration): read leniently, because all that counts here
//! is for which machine it is and what its maker wrote on it.

use std::collections::BTreeMap;

use bootyard_spec::Platform;
use serde::Deserialize;

use crate::Error;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    config: Option<Container>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Default, Deserialize)]
struct Container {
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

impl Config {
    pub(super) fn parse(image: &str, bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::image(image, &format!("its configuration is malformed: {error}"))
        })
    }

    pub(super) fn platform(&self) -> Option<Platform> {
        let word = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Some(Platform {
            os: word(&self.os).unwrap_or_else(|| "linux".to_owned()),
            architecture: word(&self.architecture)?,
            variant: word(&self.variant),
        })
    }

    pub(super) fn env(&self) -> &[String] {
        let env = self.config.as_ref().and_then(|container| container.env.as_deref());
        env.unwrap_or_default()
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.config.iter().filter_map(|container| container.labels.as_ref());
        labels.flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The digests of the layers' tar archives, uncompressed, the lowest first.
    pub(super) fn diff_ids(&self) -> &[String] {
        self.rootfs.as_ref().and_then(|rootfs| rootfs.diff_ids.as_deref()).unwrap_or_default()
    }
}
