//! What the guest is told of its network, and what it may reach.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
    /// What the guest sends to the gateway reaches the host's own services, on its loopback address.
    pub reach_host: bool,
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

/// Largest MTU that virtio-net can express with room for the Ethernet header (virtio v1.2 §5.1.4).
pub(crate) const MTU_MAX: u16 = 65520;
/// Smallest MTU that IPv4 hosts must handle without fragments (RFC 791 §3.2).
pub(crate) const MTU_MIN: u16 = 576;

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

impl Config {
    /// The network of a guest with this Ethernet address.
    pub fn new(guest_mac: MacAddress) -> Self {
        Self {
            guest_mac,
            gateway_mac: [2, 0, 0, 0, 0, 0],
            network: Network::default(),
            resolvers: Vec::new(),
            hostname: None,
            search: Vec::new(),
            mtu: 1500,
            partial_checksums: false,
            large_segments: false,
            reach_host: true,
            seed: 0,
        }
    }

    /// Where on the host, or beyond, a packet goes; `None` if nowhere.
    pub(crate) fn destination(&self, to: SocketAddr, failures: usize) -> Option<SocketAddr> {
        /// The port of name servers (RFC 1035 §4.2).
        const DNS: u16 = 53;
        let IpAddr::V4(address) = to.ip() else { return None };
        if address == self.network.gateway {
            return match to.port() {
                DNS => match self.resolvers.len() {
                    0 => None,
                    count => self.resolvers.get(failures % count).copied(),
                },
                port if self.reach_host => Some((Ipv4Addr::LOCALHOST, port).into()),
                _ => None,
            };
        }
        // Nobody else is on the guest's network, and a guest's loopback is its own.
        let is_elsewhere = !self.network.contains(address)
            && !address.is_loopback()
            && !address.is_unspecified()
            && !address.is_multicast()
            && !address.is_broadcast();
        is_elsewhere.then_some(to)
    }
}
