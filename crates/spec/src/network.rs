//! A machine's network interfaces. The words for what they are bound to are KubeVirt's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The smallest MTU, which is IPv4's (RFC 791 §3.2), and the largest that a device can have.
const MTU_MIN: u16 = 576;
const MTU_MAX: u16 = 65520;

/// The longest name of a host in DHCP's option for it.
const HOST_NAME_MAX: usize = 255;

/// The longest name of an interface of Linux (IFNAMSIZ without the zero).
const TAP_NAME_MAX: usize = 15;

/// One network interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNetwork {
    /// Its Ethernet address. None: one that follows from the machine's name, [`MacAddress::derived`].
    pub mac: Option<MacAddress>,
    /// What it is bound to.
    pub binding: Binding,
    /// The file into which what passes is written, in the format of pcap(5).
    pub capture: Option<PathBuf>,
}

/// What a network interface is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// A network of the machine's own behind ordinary sockets of this user (KubeVirt's `masquerade`).
    Masquerade(Masquerade),
    /// A process of passt(1).
    Passt {
        /// Its socket; none: it is started for the machine.
        socket: Option<PathBuf>,
        /// Ports of the host that lead into the guest, where it is started.
        forwards: Vec<PortForward>,
    },
    /// A tap device of the host, which its administrator made a port of a bridge.
    Bridge {
        /// Its name.
        tap: String,
    },
}

/// A network of the machine's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<PortForward>,
    /// The name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// The guest has IPv6, too.
    pub ipv6: bool,
    /// What the guest sends to its gateway reaches services that listen on the host's loopback address.
    pub reach_host: bool,
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

impl Default for Masquerade {
    fn default() -> Self {
        Self { forwards: Vec::new(), hostname: None, ipv6: true, reach_host: true, mtu: 1500 }
    }
}

/// A port of the host that leads into the guest: `[ADDRESS:]PORT:PORT[/udp]`, the host's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortForward {
    /// Datagrams instead of connections.
    pub udp: bool,
    /// Where the host listens. Port 0 is one that the system chooses.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// An Ethernet address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

/// The gateway's address in the machine's own network, which is that of KubeVirt's bridge.
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0];

/// Why a text is no network interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNetworkError {
    /// The first word is unknown.
    #[error("unknown network `{0}`; expected masquerade, passt, passt=SOCKET, bridge=TAP or none")]
    Binding(String),
    /// An option is unknown, or not one of this kind of network.
    #[error("unknown option `{0}` of a network bound to {1}")]
    Option(String, &'static str),
    /// A value is none of its option.
    #[error("`{option}={value}`: expected {expected}")]
    Value {
        /// The option.
        option: String,
        /// What it was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

const FORWARD_EXPECTED: &str =
    "[ADDRESS:]HOSTPORT:GUESTPORT[/udp], such as 2222:22 or [::1]:5353:53/udp";
const MAC_EXPECTED: &str = "an Ethernet address of one interface, such as 52:54:00:12:34:56";

impl MacAddress {
    /// The address of the interface `index` of the machine `name`, always the same: `02`, which is for
    /// addresses that no manufacturer gave, and the first five bytes of the SHA-256 of the name and the
    /// number in decimal with a zero byte behind each.
    pub fn derived(name: &str, index: usize) -> Self {
        let digest = Sha256::digest(format!("{name}\0{index}\0"));
        let mut bytes = [2; 6];
        bytes[1..].copy_from_slice(&digest[..5]);
        if bytes == GATEWAY {
            bytes[5] = 1;
        }
        Self(bytes)
    }

    /// The bytes as they stand in a frame.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let failed = || value_error("mac", text, MAC_EXPECTED);
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let is_hex = |part: &&str| part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = part.filter(is_hex).ok_or_else(failed)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| failed())?;
        }
        let is_group = bytes[0] & 1 != 0;
        if parts.next().is_some() || is_group || bytes == [0; 6] || bytes == GATEWAY {
            return Err(failed());
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

impl FromStr for PortForward {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let failed = || value_error("forward", text, FORWARD_EXPECTED);
        let (rest, udp) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
            Some((rest, "udp")) => (rest, true),
            Some(_) => return Err(failed()),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(failed)?;
        let (address, port) = match rest.rsplit_once(':') {
            Some((address, port)) => (address.parse_ip().ok_or_else(failed)?, port),
            // Others than this host come in only where that is asked for.
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        };
        let port: u16 = port.parse().map_err(|_| failed())?;
        let guest_port: u16 = guest.parse().map_err(|_| failed())?;
        if guest_port == 0 {
            return Err(failed());
        }
        Ok(Self { udp, host: (address, port).into(), guest_port })
    }
}

trait ParseIp {
    /// An address, of IPv6 in brackets.
    fn parse_ip(&self) -> Option<IpAddr>;
}

impl ParseIp for str {
    fn parse_ip(&self) -> Option<IpAddr> {
        match self.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(text) => text.parse().ok().map(IpAddr::V6),
            None => self.parse().ok().map(IpAddr::V4),
        }
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.udp { "/udp" } else { "" };
        write!(f, "{}:{}{protocol}", self.host, self.guest_port)
    }
}

impl VmNetwork {
    /// An interface without wishes.
    pub const fn new(binding: Binding) -> Self {
        Self { mac: None, binding, capture: None }
    }

    /// An option of the interface, by its name.
    fn set(&mut self, name: &str, value: &str) -> Result<(), ParseNetworkError> {
        let kind = self.binding.name();
        match (name, &mut self.binding) {
            ("mac", _) => self.mac = Some(value.parse()?),
            ("pcap", _) if !value.is_empty() => self.capture = Some(value.into()),
            (
                "forward",
                Binding::Masquerade(Masquerade { forwards, .. })
                | Binding::Passt { socket: None, forwards },
            ) => forwards.push(value.parse()?),
            ("hostname", Binding::Masquerade(network)) => {
                let fits = (1..=HOST_NAME_MAX).contains(&value.len())
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
                let expected = "letters, digits, `-` and `.`, at most 255";
                fits.then_some(()).ok_or_else(|| value_error(name, value, expected))?;
                network.hostname = Some(value.to_owned());
            }
            ("ipv6", Binding::Masquerade(network)) => network.ipv6 = switch(name, value)?,
            ("host", Binding::Masquerade(network)) => network.reach_host = switch(name, value)?,
            ("mtu", Binding::Masquerade(network)) => {
                let mtu = value.parse().ok().filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu));
                let expected = "a number of bytes from 576 to 65520";
                network.mtu = mtu.ok_or_else(|| value_error(name, value, expected))?;
            }
            _ => return Err(ParseNetworkError::Option(name.to_owned(), kind)),
        }
        Ok(())
    }
}

impl Binding {
    /// KubeVirt's word for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Masquerade(_) => "masquerade",
            Self::Passt { .. } => "passt",
            Self::Bridge { .. } => "bridge",
        }
    }

    fn parse(text: &str) -> Result<Self, ParseNetworkError> {
        let passt = |socket| Self::Passt { socket, forwards: Vec::new() };
        match text.split_once('=') {
            None if matches!(text, "masquerade" | "user") => {
                Ok(Self::Masquerade(Masquerade::default()))
            }
            None if text == "passt" => Ok(passt(None)),
            Some(("passt", socket)) if !socket.is_empty() => Ok(passt(Some(socket.into()))),
            Some(("bridge" | "tap", tap)) => {
                // What the kernel takes for the name of an interface.
                let fits = (1..=TAP_NAME_MAX).contains(&tap.len())
                    && tap.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b))
                    && !matches!(tap, "." | "..");
                let expected = "the name of a tap device, at most 15 characters";
                fits.then_some(()).ok_or_else(|| value_error("bridge", tap, expected))?;
                Ok(Self::Bridge { tap: tap.to_owned() })
            }
            _ => Err(ParseNetworkError::Binding(text.to_owned())),
        }
    }
}

/// What it is bound to, and options behind it, with commas between; a comma in a value is written twice.
impl FromStr for VmNetwork {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let mut words = words(text).into_iter();
        let binding = Binding::parse(&words.next().unwrap_or_default())?;
        let mut network = Self::new(binding);
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => network.set(name, value)?,
                None => return Err(ParseNetworkError::Option(word, network.binding.name())),
            }
        }
        Ok(network)
    }
}

/// Text that [`VmNetwork::from_str`] reads back.
impl fmt::Display for VmNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |path: &PathBuf| path.to_string_lossy().replace(',', ",,");
        f.write_str(self.binding.name())?;
        match &self.binding {
            Binding::Masquerade(network) => {
                network.forwards.iter().try_for_each(|forward| write!(f, ",forward={forward}"))?;
                if let Some(name) = &network.hostname {
                    write!(f, ",hostname={name}")?;
                }
                let word = |on| if on { "on" } else { "off" };
                write!(f, ",ipv6={},host={}", word(network.ipv6), word(network.reach_host))?;
                write!(f, ",mtu={}", network.mtu)?;
            }
            Binding::Passt { socket, forwards } => {
                if let Some(socket) = socket {
                    write!(f, "={}", escaped(socket))?;
                }
                forwards.iter().try_for_each(|forward| write!(f, ",forward={forward}"))?;
            }
            Binding::Bridge { tap } => write!(f, "={}", tap.replace(',', ",,"))?,
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        match &self.capture {
            Some(path) => write!(f, ",pcap={}", escaped(path)),
            None => Ok(()),
        }
    }
}

/// The parts between single commas; a double one stands for a comma.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(char);
        }
    }
    words
}

fn switch(name: &str, value: &str) -> Result<bool, ParseNetworkError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(value_error(name, value, "on or off")),
    }
}

fn value_error(option: &str, value: &str, expected: &'static str) -> ParseNetworkError {
    ParseNetworkError::Value { option: option.to_owned(), value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_parse_back() {
        for (text, expected) in [
            ("masquerade", "masquerade,ipv6=on,host=on,mtu=1500"),
            ("user,ipv6=off,host=off,mtu=9000", "masquerade,ipv6=off,host=off,mtu=9000"),
            (
                "masquerade,forward=2222:22,forward=0.0.0.0:53:53/udp,hostname=web-1.a",
                "masquerade,forward=127.0.0.1:2222:22,forward=0.0.0.0:53:53/udp,\
                 hostname=web-1.a,ipv6=on,host=on,mtu=1500",
            ),
            ("passt", "passt"),
            ("passt,forward=[::1]:0:80/tcp", "passt,forward=[::1]:0:80"),
            ("passt=/run/a,,b,mac=52-54-00-AB-cd-ef", "passt=/run/a,,b,mac=52:54:00:ab:cd:ef"),
            ("tap=vm0,pcap=/tmp/a,,b.pcap", "bridge=vm0,pcap=/tmp/a,,b.pcap"),
        ] {
            let network: VmNetwork = text.parse().unwrap();
            assert_eq!(network.to_string(), expected);
            assert_eq!(network.to_string().parse(), Ok(network), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (
                "",
                "unknown network ``; expected masquerade, passt, passt=SOCKET, bridge=TAP or none",
            ),
            ("bridge", "unknown network `bridge`"),
            ("passt=", "unknown network `passt=`"),
            ("bridge=a/b", "`bridge=a/b`: expected the name of a tap device"),
            ("bridge=vm0,mtu=1500", "unknown option `mtu` of a network bound to bridge"),
            ("masquerade,fast", "unknown option `fast` of a network bound to masquerade"),
            ("passt=/a,forward=1:1", "unknown option `forward` of a network bound to passt"),
            ("user,ipv6=yes", "`ipv6=yes`: expected on or off"),
            ("user,mtu=100", "`mtu=100`: expected a number of bytes from 576 to 65520"),
            ("user,hostname=a b", "`hostname=a b`: expected letters"),
            ("user,mac=01:00:00:00:00:01", "`mac=01:00:00:00:00:01`: expected an Ethernet"),
            ("user,mac=02:00:00:00:00:00", "`mac=02:00:00:00:00:00`: expected an Ethernet"),
            ("user,mac=+2:00:00:00:00:01", "`mac=+2:00:00:00:00:01`: expected an Ethernet"),
            ("user,forward=22", "`forward=22`: expected [ADDRESS:]HOSTPORT:GUESTPORT[/udp]"),
            ("user,forward=::1:22:22", "`forward=::1:22:22`: expected"),
            ("user,forward=22:22/sctp", "`forward=22:22/sctp`: expected"),
            ("user,forward=22:0", "`forward=22:0`: expected"),
            ("user,forward=99999:22", "`forward=99999:22`: expected"),
        ] {
            let error = text.parse::<VmNetwork>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn derived_addresses_are_stable_and_our_own() {
        // printf 'web-1\0000\000' | sha256sum
        assert_eq!(MacAddress::derived("web-1", 0).to_string(), "02:cb:c1:12:e8:68");
        assert_ne!(MacAddress::derived("web-1", 0), MacAddress::derived("web-1", 1));
        assert_ne!(MacAddress::derived("web-1", 0), MacAddress::derived("web-10", 0));
    }
}
