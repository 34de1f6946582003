//! A guest's network interfaces, as the configuration that names them by their MAC addresses. A text
//! of the user's is taken as it is; what is in it is not judged here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::yaml::Yaml;
use crate::{Error, ErrorKind};

/// Longest name of an interface on Linux (`IFNAMSIZ` less its end).
const NAME_MAX: usize = 15;

/// Packets that Linux takes on an interface: IPv4's least (RFC 791) and Ethernet drivers' most.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// The network configuration of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A text as it is: cloud-init's version 1 or 2 for NoCloud, OpenStack's `network_data.json` for a
    /// config drive.
    Text(Vec<u8>),
    /// Made from the machine's interfaces: version 2 for NoCloud, `network_data.json` for a config
    /// drive.
    Interfaces(Vec<Interface>),
}

/// The address of a network card: six bytes, not a group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |what: &str| {
            let what = format!("`{text}` is not a MAC address: {what}");
            Error::new(ErrorKind::NetworkConfig, what)
        };
        let byte = |part: &str| {
            let is_hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| bad("expected six bytes such as 52:54:00:12:34:56"))?;
        if bytes[0] & 1 == 1 {
            return Err(bad("its first byte is odd, which is a group's"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNetwork {
    /// The interface's own address.
    address: IpAddr,
    /// Bits that it shares with its network, as many as the address has at most.
    prefix: u8,
}

impl IpNetwork {
    /// Whether the address is in the network.
    fn holds(&self, address: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.checked_shr(32 - prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.checked_shr(128 - prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for IpNetwork {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let address = address.parse::<IpAddr>().ok()?;
            let max = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= max)?;
            Some(Self { address, prefix })
        });
        parsed.ok_or_else(|| {
            let what = format!("expected an address such as 10.0.0.5/24, got `{text}`");
            Error::new(ErrorKind::NetworkConfig, what)
        })
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One interface: `mac=52:54:00:…[,name=eth0][,dhcp4=true][,dhcp6=true][,address=10.0.0.5/24]
/// [,gateway=10.0.0.1][,nameserver=10.0.0.1][,mtu=1500]`, of which `address`, `gateway` and `nameserver`
/// may be repeated. One with no address and no word of DHCP asks by DHCP for IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// How the guest finds it.
    pub mac: MacAddress,
    /// What the guest calls it: `eth` and its number, from 0, if absent.
    pub name: Option<String>,
    /// Asks by DHCP for an IPv4 address.
    pub dhcp4: bool,
    /// Asks by DHCP for an IPv6 address.
    pub dhcp6: bool,
    /// Its own addresses.
    pub addresses: Vec<IpNetwork>,
    /// Where everything goes that no network of an interface holds: at most one for each of IPv4 and
    /// IPv6.
    pub gateways: Vec<IpAddr>,
    /// Servers for names.
    pub nameservers: Vec<IpAddr>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
}

impl FromStr for Interface {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |what: String| Error::new(ErrorKind::NetworkConfig, what);
        let (mut mac, mut dhcp4, mut seen) = (None, None, BTreeSet::new());
        let mut found = Self {
            mac: MacAddress([0; 6]),
            name: None,
            dhcp4: false,
            dhcp6: false,
            addresses: Vec::new(),
            gateways: Vec::new(),
            nameservers: Vec::new(),
            mtu: None,
        };
        for word in text.split(',') {
            let Some((key, value)) = word.split_once('=') else {
                return Err(bad(format!("expected KEY=VALUE, got `{word}`")));
            };
            let is_list = matches!(key, "address" | "gateway" | "nameserver");
            if !seen.insert(key) && !is_list {
                return Err(bad(format!("`{key}` is given twice")));
            }
            match key {
                "mac" => mac = Some(value.parse()?),
                "name" => found.name = Some(interface_name(value)?),
                "dhcp4" => dhcp4 = Some(switch(key, value)?),
                "dhcp6" => found.dhcp6 = switch(key, value)?,
                "address" => found.addresses.push(value.parse()?),
                "gateway" => found.gateways.push(ip(key, value)?),
                "nameserver" => found.nameservers.push(ip(key, value)?),
                "mtu" => found.mtu = Some(mtu(value)?),
                _ => {
                    let keys = "mac, name, dhcp4, dhcp6, address, gateway, nameserver, mtu";
                    return Err(bad(format!("unknown key `{key}`; expected one of {keys}")));
                }
            }
        }
        found.mac = mac.ok_or_else(|| {
            bad("`mac` is missing, by which the guest finds the interface".to_owned())
        })?;
        found.dhcp4 = dhcp4.unwrap_or(found.addresses.is_empty() && !found.dhcp6);
        found.check_gateways()?;
        Ok(found)
    }
}

impl Interface {
    fn check_gateways(&self) -> Result<(), Error> {
        let bad = |what: String| Err(Error::new(ErrorKind::NetworkConfig, what));
        for (number, gateway) in self.gateways.iter().enumerate() {
            let same = |other: &IpAddr| other.is_ipv4() == gateway.is_ipv4();
            if !self.addresses.iter().any(|own| same(&own.address)) {
                return bad(format!("gateway `{gateway}` has no `address` of its kind beside it"));
            }
            if self.addresses.iter().any(|own| own.address == *gateway) {
                return bad(format!("gateway `{gateway}` is the interface's own address"));
            }
            let is_link_local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
            if !is_link_local && !self.addresses.iter().any(|own| own.holds(*gateway)) {
                let what = format!("gateway `{gateway}` is in no network of an `address`");
                return Err(Error::new(ErrorKind::NetworkConfig, what).with_hint(
                    "mend the prefix; a gateway outside goes into a `--network-config` FILE, as a \
                     route with `on-link: true`",
                ));
            }
            if self.gateways[..number].iter().any(same) {
                return bad(format!("gateway `{gateway}` is the second of its kind"));
            }
        }
        Ok(())
    }

    /// The entry of `ethernets` in version 2. A default route is written as `gateway4` and `gateway6`,
    /// which all of cloud-init's renderers understand: up to 22.4 at least, some spoil `::/0` in
    /// `routes`, and none but netplan's finds an interface whose key is not its name.
    fn version_2(&self, name: &str) -> Yaml {
        let entry = |key: &str, value| (key.to_owned(), value);
        let mac = entry("macaddress", Yaml::text(self.mac.to_string()));
        let mut entries = vec![
            entry("match", Yaml::Map(vec![mac])),
            entry("set-name", Yaml::text(name)),
            entry("dhcp4", Yaml::Bool(self.dhcp4)),
            entry("dhcp6", Yaml::Bool(self.dhcp6)),
        ];
        if !self.addresses.is_empty() {
            entries.push(entry("addresses", Yaml::texts(&self.addresses)));
        }
        for gateway in &self.gateways {
            let key = if gateway.is_ipv4() { "gateway4" } else { "gateway6" };
            entries.push(entry(key, Yaml::text(gateway.to_string())));
        }
        if !self.nameservers.is_empty() {
            let addresses = entry("addresses", Yaml::texts(&self.nameservers));
            entries.push(entry("nameservers", Yaml::Map(vec![addresses])));
        }
        if let Some(mtu) = self.mtu {
            entries.push(entry("mtu", Yaml::Number(mtu.into())));
        }
        Yaml::Map(entries)
    }

    /// Its share of OpenStack's `networks`; the default route goes with the first address of its kind.
    fn openstack_networks(&self, link: &str) -> Vec<Value> {
        let mut networks = Vec::new();
        for (is_on, kind) in [(self.dhcp4, "ipv4_dhcp"), (self.dhcp6, "ipv6_dhcp")] {
            if is_on {
                networks.push(json!({"type": kind, "link": link}));
            }
        }
        let mut gateways = self.gateways.clone();
        for own in &self.addresses {
            let (kind, any) = match own.address {
                IpAddr::V4(_) => ("ipv4", IpAddr::from(Ipv4Addr::UNSPECIFIED)),
                IpAddr::V6(_) => ("ipv6", IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            };
            let routes: Vec<Value> = gateways
                .extract_if(.., |gateway| gateway.is_ipv4() == own.address.is_ipv4())
                .map(|gateway| json!({"network": any, "netmask": any, "gateway": gateway}))
                .collect();
            networks.push(json!({
                "type": kind,
                "link": link,
                "ip_address": own.address,
                "netmask": netmask(own),
                "routes": routes,
            }));
        }
        networks
    }
}

/// Version 2 of cloud-init's network configuration (netplan's, without its outermost key).
pub(crate) fn version_2(interfaces: &[Interface]) -> Result<Vec<u8>, Error> {
    let named = names(interfaces)?.into_iter().zip(interfaces);
    let ethernets =
        named.map(|(name, interface)| (name.clone(), interface.version_2(&name))).collect();
    let document = Yaml::Map(vec![
        ("version".to_owned(), Yaml::Number(2)),
        ("ethernets".to_owned(), Yaml::Map(ethernets)),
    ]);
    Ok(document.document().into_bytes())
}

/// OpenStack's `network_data.json`.
pub(crate) fn network_data(interfaces: &[Interface]) -> Result<Value, Error> {
    let (mut links, mut networks, mut services) = (Vec::new(), Vec::new(), Vec::new());
    for (name, interface) in names(interfaces)?.iter().zip(interfaces) {
        // OpenStack has no `name`: cloud-init takes it all the same.
        let mut link = json!({
            "id": name,
            "name": name,
            "type": "phy",
            "ethernet_mac_address": interface.mac.to_string(),
        });
        if let Some(mtu) = interface.mtu {
            link["mtu"] = json!(mtu);
        }
        links.push(link);
        networks.extend(interface.openstack_networks(name));
        let service = |address| json!({"type": "dns", "address": address});
        services.extend(interface.nameservers.iter().map(service));
    }
    for (number, network) in networks.iter_mut().enumerate() {
        network["id"] = json!(format!("network{number}"));
    }
    services.dedup();
    Ok(json!({"links": links, "networks": networks, "services": services}))
}

/// What the guest calls the interfaces. Two of the same card or name are an error.
fn names(interfaces: &[Interface]) -> Result<Vec<String>, Error> {
    let (mut macs, mut names) = (BTreeSet::new(), Vec::new());
    for (number, interface) in interfaces.iter().enumerate() {
        let name = interface.name.clone().unwrap_or_else(|| format!("eth{number}"));
        let twice = match macs.insert(interface.mac) {
            false => Some(format!("the card `{}` is given twice", interface.mac)),
            true if names.contains(&name) => Some(format!("two interfaces are called `{name}`")),
            true => None,
        };
        if let Some(what) = twice {
            let hint =
                "each interface has its own `mac=` and `name=`; without, the second is `eth1`";
            return Err(Error::new(ErrorKind::NetworkConfig, what).with_hint(hint));
        }
        names.push(name);
    }
    Ok(names)
}

fn netmask(network: &IpNetwork) -> IpAddr {
    let prefix = u32::from(network.prefix);
    match network.address {
        IpAddr::V4(_) => Ipv4Addr::from(u32::MAX.checked_shl(32 - prefix).unwrap_or(0)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(u128::MAX.checked_shl(128 - prefix).unwrap_or(0)).into(),
    }
}

fn interface_name(name: &str) -> Result<String, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = (1..=NAME_MAX).contains(&name.len()) && name.chars().all(allowed);
    if is_name && !name.starts_with(['.', '-']) {
        return Ok(name.to_owned());
    }
    let what = format!("`{name}` is not an interface's name: expected 1 to 15 letters and digits");
    Err(Error::new(ErrorKind::NetworkConfig, what))
}

fn switch(key: &str, value: &str) -> Result<bool, Error> {
    value.parse().map_err(|_| {
        let what = format!("expected `{key}=true` or `{key}=false`, got `{value}`");
        Error::new(ErrorKind::NetworkConfig, what)
    })
}

fn ip(key: &str, value: &str) -> Result<IpAddr, Error> {
    value.parse().map_err(|_| {
        let what = format!("expected an IP address for `{key}`, got `{value}`");
        Error::new(ErrorKind::NetworkConfig, what)
    })
}

fn mtu(value: &str) -> Result<u32, Error> {
    value.parse().ok().filter(|mtu| MTU.contains(mtu)).ok_or_else(|| {
        let what = format!("expected `mtu` from {} to {}, got `{value}`", MTU.start(), MTU.end());
        Error::new(ErrorKind::NetworkConfig, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces(texts: &[&str]) -> Vec<Interface> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    const STATIC: &str = "mac=52-54-00-AB-cd-01,name=eth0,address=10.0.0.5/24,address=2001:db8::5/64,\
        gateway=10.0.0.1,gateway=2001:db8::1,nameserver=10.0.0.1,nameserver=9.9.9.9,mtu=1400";

    #[test]
    fn version_2_matches_by_mac() {
        let text = version_2(&interfaces(&[STATIC, "mac=52:54:00:ab:cd:02"])).unwrap();
        expect_test::expect![[r#"
            version: 2
            ethernets:
              eth0:
                match:
                  macaddress: "52:54:00:ab:cd:01"
                set-name: "eth0"
                dhcp4: false
                dhcp6: false
                addresses:
                  - "10.0.0.5/24"
                  - "2001:db8::5/64"
                gateway4: "10.0.0.1"
                gateway6: "2001:db8::1"
                nameservers:
                  addresses:
                    - "10.0.0.1"
                    - "9.9.9.9"
                mtu: 1400
              eth1:
                match:
                  macaddress: "52:54:00:ab:cd:02"
                set-name: "eth1"
                dhcp4: true
                dhcp6: false
        "#]]
        .assert_eq(std::str::from_utf8(&text).unwrap());
    }

    #[test]
    fn a_config_drive_has_openstacks_links_networks_and_services() {
        let found =
            network_data(&interfaces(&[STATIC, "mac=52:54:00:ab:cd:02,dhcp6=true"])).unwrap();
        let expected = json!({
            "links": [
                {"id": "eth0", "type": "phy", "ethernet_mac_address": "52:54:00:ab:cd:01", "name": "eth0", "mtu": 1400},
                {"id": "eth1", "name": "eth1", "type": "phy", "ethernet_mac_address": "52:54:00:ab:cd:02"},
            ],
            "networks": [
                {"id": "network0", "type": "ipv4", "link": "eth0", "ip_address": "10.0.0.5", "netmask": "255.255.255.0",
                 "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}]},
                {"id": "network1", "type": "ipv6", "link": "eth0", "ip_address": "2001:db8::5", "netmask": "ffff:ffff:ffff:ffff::",
                 "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}]},
                {"id": "network2", "type": "ipv6_dhcp", "link": "eth1"},
            ],
            "services": [{"type": "dns", "address": "10.0.0.1"}, {"type": "dns", "address": "9.9.9.9"}],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn netmasks_follow_from_prefixes() {
        for (network, mask) in [
            ("10.0.0.1/0", "0.0.0.0"),
            ("10.0.0.1/20", "255.255.240.0"),
            ("10.0.0.1/32", "255.255.255.255"),
            ("::1/0", "::"),
            ("::1/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(netmask(&network.parse().unwrap()).to_string(), mask);
        }
    }

    #[test]
    fn what_is_no_interface_is_refused() {
        for (text, message) in [
            ("", "expected KEY=VALUE, got ``"),
            ("name=eth0", "`mac` is missing"),
            ("mac=52:54:00:12:34", "`52:54:00:12:34` is not a MAC address: expected six bytes"),
            ("mac=52:54:00:12:34:+6", "is not a MAC address"),
            ("mac=01:54:00:12:34:56", "its first byte is odd"),
            ("mac=52:54:00:12:34:56,mac=52:54:00:12:34:57", "`mac` is given twice"),
            (
                "mac=52:54:00:12:34:56,dhcp=true",
                "unknown key `dhcp`; expected one of mac, name, dhcp4",
            ),
            (
                "mac=52:54:00:12:34:56,dhcp4=yes",
                "expected `dhcp4=true` or `dhcp4=false`, got `yes`",
            ),
            ("mac=52:54:00:12:34:56,address=10.0.0.5", "expected an address such as 10.0.0.5/24"),
            (
                "mac=52:54:00:12:34:56,address=10.0.0.5/33",
                "expected an address such as 10.0.0.5/24",
            ),
            ("mac=52:54:00:12:34:56,gateway=10.0.0.1", "gateway `10.0.0.1` has no `address`"),
            (
                "mac=52:54:00:12:34:56,address=::1/64,gateway=10.0.0.1",
                "has no `address` of its kind",
            ),
            (
                "mac=52:54:00:12:34:56,address=10.0.0.5/8,gateway=10.0.0.1,gateway=10.0.0.2",
                "gateway `10.0.0.2` is the second of its kind",
            ),
            ("mac=52:54:00:12:34:56,nameserver=dns", "expected an IP address for `nameserver`"),
            ("mac=52:54:00:12:34:56,name=a/b", "`a/b` is not an interface's name"),
            ("mac=52:54:00:12:34:56,name=sixteen-letters-", "is not an interface's name"),
            ("mac=52:54:00:12:34:56,mtu=67", "expected `mtu` from 68 to 65535, got `67`"),
        ] {
            let error = text.parse::<Interface>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
        let twice = interfaces(&["mac=52:54:00:12:34:56,name=a", "mac=52:54:00:12:34:56,name=b"]);
        let error = version_2(&twice).unwrap_err().to_string();
        assert_eq!(error, "the card `52:54:00:12:34:56` is given twice");
        let twice = interfaces(&["mac=52:54:00:12:34:56,name=eth1", "mac=52:54:00:12:34:57"]);
        let error = version_2(&twice).unwrap_err().to_string();
        assert_eq!(error, "two interfaces are called `eth1`");
    }

    #[test]
    fn a_gateway_has_to_be_in_reach() {
        for (own, gateway, is_in_reach) in [
            ("10.0.0.5/24", "10.0.0.1", true),
            ("10.0.0.5/24", "10.0.1.1", false),
            ("10.0.0.5/24", "10.0.0.5", false),
            ("1.2.3.4/32", "172.31.1.1", false),
            ("10.0.0.5/0", "172.31.1.1", true),
            ("2001:db8::5/64", "2001:db8::1", true),
            ("2001:db8::5/64", "2001:db8:1::1", false),
            ("2001:db8::5/128", "fe80::1", true),
            ("2001:db8::5/0", "2002::1", true),
        ] {
            let text = format!("mac=52:54:00:12:34:56,address={own},gateway={gateway}");
            assert_eq!(text.parse::<Interface>().is_ok(), is_in_reach, "{text}");
        }
    }
}
