//! The host's name servers, from the text of its `/etc/resolv.conf` (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

/// The port of name servers (RFC 1035 §4.2).
const PORT: u16 = 53;

/// How many servers and domains count (MAXNS, MAXDNSRCH of glibc before 2.26).
const SERVERS_MAX: usize = 3;
const DOMAINS_MAX: usize = 6;

/// Where names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolvers {
    /// The servers, the first one preferred.
    pub servers: Vec<SocketAddr>,
    /// Domains in which names are looked for.
    pub search: Vec<String>,
}

impl Resolvers {
    /// What the file says; without servers, as without the file, the host's own. `index` gives the number
    /// of an interface by its name, for servers that are local to a link.
    pub fn parse(text: &str, index: impl Fn(&str) -> Option<u32>) -> Self {
        let (mut servers, mut search) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().and_then(|w| server(w, &index))),
                // The last line counts, and a domain is a list of one.
                Some("search") => search = words.map(str::to_owned).collect(),
                Some("domain") => search = words.take(1).map(str::to_owned).collect(),
                _ => {}
            }
        }
        servers.truncate(SERVERS_MAX);
        // A period stands for the root, in which everything is looked for anyway.
        search.retain(|domain| domain != ".");
        search.truncate(DOMAINS_MAX);
        if servers.is_empty() {
            servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        Self { servers, search }
    }
}

fn server(word: &str, index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, scope)) = word.split_once('%') else {
        return word.parse::<IpAddr>().ok().map(|address| (address, PORT).into());
    };
    let scope = scope.parse().ok().or_else(|| index(scope))?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_resolvers_read_it() {
        let index = |name: &str| (name == "eth0").then_some(7);
        for (text, servers, search) in [
            ("", &["127.0.0.1:53"][..], &[][..]),
            ("# nameserver 1.1.1.1\nnameserver x\n", &["127.0.0.1:53"], &[]),
            (
                "domain a.example\nnameserver 9.9.9.9 # Quad9\nsearch corp.example . b.example\n",
                &["9.9.9.9:53"],
                &["corp.example", "b.example"],
            ),
            (
                "nameserver fe80::1%eth0\nnameserver fe80::1%wlan9\nnameserver 2620:fe::fe\n\
                 nameserver 127.0.0.53\nnameserver 1.1.1.1\noptions edns0\n",
                &["[fe80::1%7]:53", "[2620:fe::fe]:53", "127.0.0.53:53"],
                &[],
            ),
        ] {
            let found = Resolvers::parse(text, index);
            let servers: Vec<SocketAddr> = servers.iter().map(|s| s.parse().unwrap()).collect();
            assert_eq!(
                (found.servers, found.search),
                (servers, search.iter().map(|s| s.to_string()).collect())
            );
        }
    }
}
