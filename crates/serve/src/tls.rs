//! TLS of the server: its own certificate, and whether a client's is one that counts.

use std::error::Error as StdError;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use webpki::EndEntityCert;

use crate::{Error, Tls};

/// DER's tag of the type of a name's part, commonName (X.520 §6.2.2: 2.5.4.3), with its length.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

/// What accepts connections as `tls` says. A client without a certificate gets through as far as to a
/// proper answer; one with a certificate of somebody else does not.
pub(crate) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Error> {
    let failed = |what| move |error: Box<dyn StdError + Send + Sync>| Error::Tls { what, error };
    let certificates = certificates(&tls.certificates).map_err(failed("certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.expose().as_bytes());
    let key = key.map_err(|error| failed("key of the certificate")(error.into()))?;
    let builder = ServerConfig::builder();
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let what = "authorities of clients";
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(pem).map_err(failed(what))? {
                roots.add(certificate).map_err(|error| failed(what)(error.into()))?;
            }
            let verifier =
                WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
            let verifier = verifier.map_err(|error| failed(what)(error.into()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(certificates, key)
        .map_err(|error| failed("certificate with its key")(error.into()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Box<dyn StdError + Send + Sync>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    if certificates.is_empty() { Err("it holds no certificate".into()) } else { Ok(certificates) }
}

/// Whether a client's certificate, whose chain was verified, is in the name of `name`: its common
/// name, as CDI gives it, or one of its alternative names.
pub(crate) fn is_named(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
    let is_alternative = ServerName::try_from(name)
        .is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok());
    is_alternative || common_names(certificate.subject()).any(|own| own == name.as_bytes())
}

/// The values of the common names in a Name (RFC 5280 §4.1.2.4), which was parsed before: each is a
/// string right behind its type.
fn common_names(subject: &[u8]) -> impl Iterator<Item = &[u8]> {
    memchr::memmem::find_iter(subject, COMMON_NAME).filter_map(|at| {
        // Tag and length, below 128 in one byte: a common name has 64 characters at most.
        let [_, len, rest @ ..] = &subject[at + COMMON_NAME.len()..] else { return None };
        rest.get(..usize::from(*len)).filter(|_| *len < 128)
    })
}
