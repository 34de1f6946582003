//! Every transport against real files and servers.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod access;
mod errors;
mod file;
mod gcs;
mod http;
mod oci;
mod ranged;
#[cfg(feature = "s3")]
mod s3;
mod start;

use std::time::Duration;

use bootyard_source::{Error, Object, Options, install_crypto_provider, open};

/// As patient as the defaults, but quick.
fn options() -> Options {
    install_crypto_provider();
    Options {
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(5),
        retry_delay: Duration::from_millis(1),
        ..Options::default()
    }
}

fn impatient() -> Options {
    Options { stall_timeout: Duration::from_secs(1), ..options() }
}

async fn open_url(url: &str, options: &Options) -> Result<Object, Error> {
    open(&url.parse().unwrap(), options).await
}

async fn read_all(object: &mut Object) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = object.next().await? {
        assert!(!chunk.is_empty());
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
