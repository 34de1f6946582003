//! What the guest is told of its network, and what it may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// A guest's network. The addresses are those of KubeVirt's masquerade binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The guest's Ethernet address.
    pub guest_mac: MacAddress,
    /// The gateway's; KubeVirt's bridge has this one.
    pub gateway_mac: MacAddress,
    /// The guest's addresses.
    pub network: Network,
    /// Its addresses of IPv6, if it has any. There are none where the MTU is below 1280 (RFC 8200 §5).
    pub network6: Option<Network6>,
    /// Name servers of the host, to which queries to the gateway go. None: such queries are refused.
    pub resolvers: Vec<SocketAddr>,
    /// The name that the guest is given.
    pub hostname: Option<String>,
    /// Domains in which the guest looks for names.
    pub search: Vec<String>,
    /// Largest IP packet in bytes, of both directions. Packets are never fragmented: what is larger is
    /// dropped, so that this is as large as the device allows.
    pub mtu: u16,
    /// The guest takes frames whose TCP and UDP checksum is only begun (VIRTIO_NET_F_GUEST_CSUM).
    pub partial_checksums: bool,
    /// The guest takes TCP segments of up to 64 KiB whatever the MTU is (VIRTIO_NET_F_GUEST_TSO4).
    pub large_segments: bool,
    /// It takes them over IPv6 too (VIRTIO_NET_F_GUEST_TSO6).
    pub large_segments6: bool,
    /// What the guest sends to the gateway reaches the host's own services, on its loopback address.
    pub reach_host: bool,
    /// The most sockets of the host at a time. Fewer than there could be are shared out among
    /// connections and flows of datagrams.
    pub sockets_max: usize,
    /// What initial sequence numbers are made of.
    pub seed: u64,
}

/// The addresses on the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The gateway's, which is also the guest's name server and DHCP server.
    pub gateway: Ipv4Addr,
    /// How many bits of an address are the network's.
    pub prefix_len: u8,
}

/// The addresses on the guest's side, of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network6 {
    /// The guest's address.
    pub guest: Ipv6Addr,
    /// The gateway's, which is also the guest's name server.
    pub gateway: Ipv6Addr,
    /// How many bits of an address are the network's.
    pub prefix_len: u8,
}

/// Largest MTU that virtio-net can express with room for the Ethernet header (virtio v1.2 §5.1.4).
pub(crate) const MTU_MAX: u16 = 65520;
/// Smallest MTU that IPv4 hosts must handle without fragments (RFC 791 §3.2).
pub(crate) const MTU_MIN: u16 = 576;
/// Smallest MTU of a link with IPv6 (RFC 8200 §5).
pub(crate) const MTU_MIN6: u16 = 1280;

/// Where clouds hand out a host's credentials, beside the link-local 169.254.169.254: Alibaba's and
/// Azure's, and Amazon's of IPv6.
const METADATA: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

impl Default for Network {
    fn default() -> Self {
        Self {
            guest: Ipv4Addr::new(10, 0, 2, 2),
            gateway: Ipv4Addr::new(10, 0, 2, 1),
            prefix_len: 24,
        }
    }
}

impl Network {
    /// The mask of the network's bits.
    pub(crate) fn mask(self) -> Ipv4Addr {
        let bits = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0);
        Ipv4Addr::from_bits(bits)
    }

    /// Whether the address is one of the guest's network.
    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.gateway.to_bits()) & self.mask().to_bits() == 0
    }
}

impl Default for Network6 {
    fn default() -> Self {
        let address = |last| Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, last);
        Self { guest: address(2), gateway: address(1), prefix_len: 120 }
    }
}

impl Network6 {
    /// Whether the address is one of the guest's network.
    pub(crate) fn contains(self, address: Ipv6Addr) -> bool {
        let bits = 128 - u32::from(self.prefix_len.min(128));
        let mask = u128::MAX.checked_shl(bits).unwrap_or(0);
        (address.to_bits() ^ self.gateway.to_bits()) & mask == 0
    }
}

/// The address that an interface has on its link by its Ethernet address (RFC 4291 §2.5.1).
pub(crate) fn link_local(mac: MacAddress) -> Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

impl Config {
    /// The network of a guest with this Ethernet address.
    pub fn new(guest_mac: MacAddress) -> Self {
        Self {
            guest_mac,
            gateway_mac: [2, 0, 0, 0, 0, 0],
            network: Network::default(),
            network6: Some(Network6::default()),
            resolvers: Vec::new(),
            hostname: None,
            search: Vec::new(),
            mtu: 1500,
            partial_checksums: false,
            large_segments: false,
            large_segments6: false,
            reach_host: true,
            sockets_max: usize::MAX,
            seed: 0,
        }
    }

    /// Whether the address is one of the gateway's.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        match (address, self.network6) {
            (IpAddr::V4(address), _) => address == self.network.gateway,
            (IpAddr::V6(address), Some(network)) => {
                address == network.gateway || address == link_local(self.gateway_mac)
            }
            (IpAddr::V6(_), None) => false,
        }
    }

    /// The gateway's address for somebody with this one.
    pub(crate) fn gateway_for(&self, address: IpAddr) -> IpAddr {
        match (address, self.network6) {
            (IpAddr::V6(address), Some(network)) if !address.is_unicast_link_local() => {
                network.gateway.into()
            }
            (IpAddr::V6(_), _) => link_local(self.gateway_mac).into(),
            (IpAddr::V4(_), _) => self.network.gateway.into(),
        }
    }

    /// Where on the host, or beyond, a packet goes; `None` if nowhere.
    pub(crate) fn destination(&self, to: SocketAddr, failures: usize) -> Option<SocketAddr> {
        /// The port of name servers (RFC 1035 §4.2).
        const DNS: u16 = 53;
        if !self.is_gateway(to.ip()) {
            return self.is_elsewhere(to.ip()).then_some(to);
        }
        let loopback = match to.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        match to.port() {
            DNS => match self.resolvers.len() {
                0 => None,
                count => self.resolvers.get(failures % count).copied(),
            },
            port => self.reach_host.then_some((loopback, port).into()),
        }
    }

    /// Whether somebody beyond the guest's link may have the address. Nobody else is on that link, a
    /// guest's loopback is its own, and what is local to a link is not forwarded from it (RFC 3927 §2.7,
    /// RFC 4291 §2.5.6), where most clouds have the host's metadata; the others' are kept from the guest
    /// by name.
    fn is_elsewhere(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                !self.network.contains(address)
                    && !address.is_loopback()
                    && !address.is_link_local()
                    && !address.is_multicast()
                    && !address.is_broadcast()
                    && address.octets()[0] != 0
                    && !METADATA.contains(&address)
            }
            IpAddr::V6(address) => {
                self.network6.is_some_and(|network| !network.contains(address))
                    && !address.is_loopback()
                    && !address.is_unspecified()
                    && !address.is_unicast_link_local()
                    && !address.is_multicast()
                    && address != METADATA6
                    // The system takes these for addresses of IPv4.
                    && address.to_ipv4_mapped().is_none()
            }
        }
    }
}
