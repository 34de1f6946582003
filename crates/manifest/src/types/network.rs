//! Interfaces, and the networks that they lead to.

use crate::read::{Accepted, Empty, object, words};

object! {
    /// A network interface.
    Interface {
        /// The network that it leads to.
        "name" name: String,
        /// The model of the card; virtio if absent.
        "model" model: Option<Model>,
        /// Behind the host's address: only on the pod network.
        "masquerade" masquerade: Option<Empty>,
        /// On a bridge of the host.
        "bridge" bridge: Option<Empty>,
        /// By `passt`.
        "passtBinding" passt_binding: Option<Empty>,
        /// By `passt`, as it was called before.
        "passt" passt: Option<Empty>,
        /// A function of a card of the host.
        "sriov" sriov: Option<Accepted>,
        /// A tap that another program has made.
        "macvtap" macvtap: Option<Accepted>,
        /// Another way, by the name of its plugin.
        "binding" binding: Option<PluginBinding>,
        /// The network that QEMU makes.
        "slirp" slirp: Option<Accepted>,
        /// Its hardware address; one is made from the machine's name if absent.
        "macAddress" mac_address: Option<String>,
        /// Ports of the guest that can be reached.
        "ports" ports: Vec<Port>,
        /// Ranges of such ports.
        "portRanges" port_ranges: Option<Accepted>,
        /// The place in the order in which the machine tries to boot, from 1.
        "bootOrder" boot_order: Option<u32>,
        /// Its PCI address.
        "pciAddress" pci_address: Option<Accepted>,
        /// What the guest is told by DHCP.
        "dhcpOptions" dhcp_options: Option<DhcpOptions>,
        /// The number by which the guest may call it.
        "acpiIndex" acpi_index: Option<Accepted>,
        /// `up`, `down` or `absent`.
        "state" state: Option<Accepted>,
        /// A word that is given to the guest with its address.
        "tag" tag: Option<Accepted>,
    }

    /// Another way to a network.
    PluginBinding {
        /// The plugin's name.
        "name" name: String,
    }

    /// A port of the guest.
    Port {
        /// What it is called.
        "name" name: Option<String>,
        /// TCP or UDP; TCP if absent.
        "protocol" protocol: Option<Protocol>,
        /// Its number.
        "port" port: u16,
    }

    /// What the guest is told by DHCP.
    DhcpOptions {
        /// The file that is booted from the network (option 67).
        "bootFileName" boot_file_name: Option<String>,
        /// The server of that file (option 66).
        "tftpServerName" tftp_server_name: Option<String>,
        /// Servers of the time (option 42).
        "ntpServers" ntp_servers: Option<Accepted>,
        /// Options from 224 on.
        "privateOptions" private_options: Option<Accepted>,
    }

    /// A network.
    Network {
        /// By which name interfaces lead to it.
        "name" name: String,
        /// The network of the host.
        "pod" pod: Option<PodNetwork>,
        /// A network by the name of its definition.
        "multus" multus: Option<MultusNetwork>,
        /// For the scheduler of a cluster.
        "resourceClaim" resource_claim: Option<Accepted>,
    }

    /// The network of the host, behind its address.
    PodNetwork {
        /// The addresses in it; 10.0.2.0/24 if absent.
        "vmNetworkCIDR" vm_network_cidr: Option<String>,
        /// The IPv6 addresses in it; fd10:0:2::/120 if absent.
        "vmIPv6NetworkCIDR" vm_ipv6_network_cidr: Option<String>,
    }

    /// A network by the name of its definition. Here the name of a tap interface.
    MultusNetwork {
        /// The name, which a namespace and `/` may stand before.
        "networkName" network_name: String,
        /// It takes the place of the pod network.
        "default" default: Option<bool>,
    }
}

words! {
    /// The model of a network card.
    Model {
        /// The fastest.
        Virtio = "virtio",
        /// Intel's PCI Express card.
        E1000e = "e1000e",
        /// Intel's older card.
        E1000 = "e1000",
        /// Intel's card with virtual functions.
        Igb = "igb",
        /// A card of the nineties.
        Ne2kPci = "ne2k_pci",
        /// AMD's card.
        Pcnet = "pcnet",
        /// Realtek's card.
        Rtl8139 = "rtl8139",
    }

    /// A protocol over IP.
    Protocol {
        /// TCP.
        Tcp = "TCP",
        /// UDP.
        Udp = "UDP",
    }
}
