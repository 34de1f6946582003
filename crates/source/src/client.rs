//! The HTTP client of one source: whom it trusts, and how it connects.

use reqwest::{Certificate, Client, ClientBuilder, Identity, redirect};

use crate::{Error, Options};

/// Makes a client that keeps no cookies, asks no environment for proxies and follows no redirect by
/// itself.
pub(crate) fn new(options: &Options) -> Result<Client, Error> {
    let certificates =
        |pem: &[u8]| Certificate::from_pem_bundle(pem).map_err(|error| Error::setup(&error));
    let mut extra = certificates(&options.extra_ca)?;
    extra.extend(certificates(&options.proxy.ca)?);
    let identity = options.client_identity.as_ref().map(|pem| {
        Identity::from_pem(pem.expose().as_bytes()).map_err(|error| Error::setup(&error))
    });
    let identity = identity.transpose()?;
    let builder = |builder: ClientBuilder| {
        let builder = match &identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        };
        builder
            .user_agent(&options.user_agent)
            .connect_timeout(options.connect_timeout)
            .redirect(redirect::Policy::none())
            // For one object HTTP/2 only adds frames: measured on loopback with TLS it took 1.6 to
            // 2.4 times as long. Ranged reads in parallel want connections of their own besides.
            .http1_only()
            .referer(false)
            .no_proxy()
            .proxy(options.proxy.proxy())
            .tls_danger_accept_invalid_certs(options.insecure_skip_verify)
            .retry(reqwest::retry::never())
            .build()
    };
    let system = Client::builder().tls_certs_merge(extra.clone());
    // A machine without any authorities can still read plain HTTP; HTTPS then fails by itself.
    builder(system)
        .or_else(|_| builder(Client::builder().tls_certs_only(extra)))
        .map_err(|error| Error::setup(&error))
}
