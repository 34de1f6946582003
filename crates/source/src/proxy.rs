//! Which requests go through a proxy, by the rules that curl and Go share.

use std::net::IpAddr;
use std::str::FromStr;

use bootyard_spec::SafeUrl;
use reqwest::{Proxy, Url};

/// The proxies, as CDI's importer and every command-line tool take them. Loopback is not special.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// For `http:` URLs. User and password stand in the URL.
    pub http: Option<SafeUrl>,
    /// For `https:` URLs, through a tunnel.
    pub https: Option<SafeUrl>,
    /// Where no proxy is asked.
    pub no_proxy: NoProxy,
    /// Certificates (PEM) of authorities that vouch for a proxy which breaks TLS open.
    pub ca: Vec<u8>,
}

/// A list as in `no_proxy`: host names and the domains below them, with or without a dot or `*.` in
/// front; addresses; networks as `10.0.0.0/8`; each of these but the last with `:PORT` if wanted;
/// `*` for all. What fits none of these never matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    All,
    /// The address's leading bits.
    Network(IpAddr, u32),
    /// The name in lower case; only what is below it if it began with a dot.
    Domain {
        name: String,
        below_only: bool,
        port: Option<u16>,
    },
    Address(IpAddr, Option<u16>),
}

impl ProxyOptions {
    /// What the client asks for each request.
    pub(crate) fn proxy(&self) -> Proxy {
        let options = self.clone();
        Proxy::custom(move |url| options.of(url).map(|proxy| proxy.expose().clone()))
    }

    /// The proxy for this URL.
    pub(crate) fn of(&self, url: &Url) -> Option<&SafeUrl> {
        let proxy = match url.scheme() {
            "https" => &self.https,
            _ => &self.http,
        };
        proxy.as_ref().filter(|_| !self.no_proxy.matches(url))
    }
}

impl From<&str> for NoProxy {
    fn from(list: &str) -> Self {
        let entries = list.split([',', ' ', '\t', '\n']).filter(|entry| !entry.is_empty());
        Self(entries.map(|entry| Rule::of(&entry.to_ascii_lowercase())).collect())
    }
}

impl NoProxy {
    pub(crate) fn matches(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let (address, port) = (host.parse().ok(), url.port_or_known_default());
        self.0.iter().any(|rule| rule.matches(host, address, port))
    }
}

impl Rule {
    fn of(entry: &str) -> Self {
        if entry == "*" {
            return Self::All;
        }
        if let Some((address, bits)) = entry.split_once('/')
            && let (Ok(address), Ok(bits)) = (IpAddr::from_str(address), bits.parse())
        {
            return Self::Network(address, bits);
        }
        if let Ok(address) = entry.parse() {
            return Self::Address(address, None);
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (entry, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse() {
            return Self::Address(address, port);
        }
        let name = host.strip_prefix('*').unwrap_or(host);
        let below_only = name.starts_with('.') && name.len() < host.len();
        let name = name.trim_matches('.').to_owned();
        Self::Domain { name, below_only, port }
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        let is_port = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match self {
            Self::All => true,
            Self::Network(network, bits) => {
                address.is_some_and(|address| shares_bits(*network, address, *bits))
            }
            Self::Address(wanted, port) => address == Some(*wanted) && is_port(port),
            Self::Domain { name, below_only, port } => {
                let rest = host.strip_suffix(name.as_str()).filter(|_| !name.is_empty());
                let fits = rest.is_some_and(|rest| match rest {
                    "" => !below_only,
                    rest => rest.ends_with('.'),
                });
                fits && is_port(port)
            }
        }
    }
}

/// Whether both addresses are of one kind and begin with the same `bits`.
fn shares_bits(a: IpAddr, b: IpAddr, bits: u32) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (bits == 0 || (a ^ b) >> (width - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_follows_the_rules_of_curl_and_go() {
        for (list, url, expected) in [
            ("", "http://h.example/", false),
            ("*", "http://127.0.0.1/", true),
            ("h.example", "http://h.example/", true),
            ("H.Example", "http://a.h.example/", true),
            ("h.example", "http://oh.example/", false),
            (".h.example", "http://a.h.example/", true),
            (".h.example", "http://h.example/", true),
            ("*.h.example", "http://a.h.example/", true),
            ("*.h.example", "http://h.example/", false),
            ("a.example, h.example", "https://h.example/", true),
            ("a.example h.example", "https://h.example./", true),
            ("h.example:8080", "http://h.example:8080/", true),
            ("h.example:8080", "http://h.example/", false),
            ("h.example:443", "https://h.example/", true),
            ("127.0.0.1", "http://127.0.0.1:81/", true),
            ("127.0.0.1:81", "http://127.0.0.1:81/", true),
            ("127.0.0.1:80", "http://127.0.0.1:81/", false),
            ("10.0.0.0/8", "http://10.9.8.7/", true),
            ("10.0.0.0/8", "http://11.9.8.7/", false),
            ("10.0.0.0/33", "http://10.9.8.7/", false),
            ("0.0.0.0/0", "http://10.9.8.7/", true),
            ("::/0", "http://10.9.8.7/", false),
            ("fd00::/8", "http://[fd12::1]/", true),
            ("[::1]:81", "http://[::1]:81/", true),
            ("::1", "http://[::1]:81/", true),
            ("localhost", "http://127.0.0.1/", false),
            (".", "http://h.example/", false),
        ] {
            let url: Url = url.parse().unwrap();
            assert_eq!(NoProxy::from(list).matches(&url), expected, "{list:?} for {url}");
        }
    }
}
