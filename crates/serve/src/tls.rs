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

/// The type of a name's part, commonName (X.520 §6.2.2: 2.5.4.3).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// DER's tags (X.690 §8), and those of strings whose bytes are their text: UTF8String,
/// PrintableString, TeletexString, IA5String.
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const STRINGS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];

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
/// name, as CDI gives it, or one of its alternative names, letter by letter.
pub(crate) fn is_named(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
    let is_alternative = match ServerName::try_from(name) {
        Ok(address @ ServerName::IpAddress(_)) => {
            certificate.verify_is_valid_for_subject_name(&address).is_ok()
        }
        // A wildcard in the certificate is not this name.
        _ => certificate.valid_dns_names().any(|own| own.eq_ignore_ascii_case(name)),
    };
    is_alternative || common_names(certificate.subject()).contains(&name.as_bytes())
}

/// The values of the common names in a Name without its own tag and length (RFC 5280 §4.1.2.4): SETs
/// of SEQUENCEs of a type and a value. What is made otherwise has none.
fn common_names(mut subject: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    while !subject.is_empty() {
        let Some((SET, mut parts, rest)) = element(subject) else { return Vec::new() };
        subject = rest;
        while !parts.is_empty() {
            let Some((SEQUENCE, part, rest)) = element(parts) else { return Vec::new() };
            parts = rest;
            let Some((OBJECT_IDENTIFIER, kind, value)) = element(part) else { return Vec::new() };
            let Some((tag, value, [])) = element(value) else { return Vec::new() };
            if kind == COMMON_NAME && STRINGS.contains(&tag) {
                names.push(value);
            }
        }
    }
    names
}

/// Splits DER into the tag and the contents of its first element, and what is behind it (X.690 §8.1).
/// A length of more than two bytes is none that a name needs.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, len, rest) = match der {
        [tag, 0x81, len, rest @ ..] if *len >= 0x80 => (*tag, usize::from(*len), rest),
        [tag, 0x82, high, low, rest @ ..] if *high > 0 => {
            (*tag, usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        [tag, len, rest @ ..] if *len < 0x80 => (*tag, usize::from(*len), rest),
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element whose contents are short.
    fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(contents.len()).unwrap()], contents].concat()
    }

    fn part(kind: u8, tag: u8, value: &[u8]) -> Vec<u8> {
        let kind = der(OBJECT_IDENTIFIER, &[0x55, 4, kind]);
        der(SEQUENCE, &[kind, der(tag, value)].concat())
    }

    #[test]
    fn a_common_name_is_found_where_it_is_one() {
        let name = |value| part(3, 0x0c, value);
        // The value of an organization that holds what looks like a common name.
        let forged = der(SET, &part(10, 0x0c, &der(SET, &name(b"admin"))));
        assert_eq!(common_names(&forged), [b""; 0]);
        let whole = [der(SET, &part(10, 0x13, b"test")), der(SET, &name(b"web"))].concat();
        assert_eq!(common_names(&whole), [b"web"]);
        let joined = der(SET, &[name(b"a"), name(b"b")].concat());
        assert_eq!(common_names(&joined), [b"a", b"b"]);
        for cut in 1..whole.len() {
            common_names(&whole[..cut]);
        }
        // Half of two-byte letters is no name of one-byte letters.
        assert_eq!(common_names(&der(SET, &part(3, 0x1e, b"web"))), [b""; 0]);
        let long = [&[SET, 0x81, 0x80][..], &[0; 0x80]].concat();
        assert_eq!(element(&long).unwrap().1.len(), 0x80);
        assert_eq!(element(&[SET, 0x80, 0, 0]), None);
    }
}
