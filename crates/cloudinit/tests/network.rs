//! cloud-init's own code turns the interfaces of a seed into files of a guest, the same ones for either
//! data source.

use bootyard_cloudinit::{Datasource, Network, Seed};
use bootyard_testkit::{answer, cloud_init, skip};
use expect_test::{Expect, expect};

/// Prints `/etc/network/interfaces` of a network-config, or of a config drive's `network_data.json`.
const RENDER: &str = r#"
import sys
from cloudinit import safeyaml
from cloudinit.net import eni, network_state
from cloudinit.sources.helpers import openstack

config = safeyaml.load(sys.stdin.read())
if "links" in config:
    config = openstack.convert_net_json(config, known_macs={})
state = network_state.parse_net_config_data(config)
print(eni.Renderer()._render_interfaces(state, render_hwaddress=True))
"#;

#[track_caller]
fn check(datasource: Datasource, expected: &Expect) {
    let mut seed = Seed::new("web".parse().expect("a host name"));
    let interfaces = [
        "mac=52:54:00:00:00:01,address=10.0.0.5/24,address=2001:db8::5/64,gateway=10.0.0.1,\
         gateway=2001:db8::1,mtu=1400",
        "mac=52:54:00:00:00:02,name=lan0",
    ];
    let interfaces = interfaces.map(|text| text.parse().expect("an interface"));
    seed.network = Some(Network::Interfaces(interfaces.into()));
    let files = seed.files(datasource).expect("a seed");
    let path = match datasource {
        Datasource::NoCloud => "network-config",
        Datasource::ConfigDrive => "openstack/latest/network_data.json",
    };
    let text = files.get(path).expect("a network");
    let mut python = cloud_init().expect("the test is skipped without it");
    let found = answer(python.args(["-c", RENDER]), text);
    expected.assert_eq(&String::from_utf8(found).expect("text"));
}

#[test]
fn a_guest_has_every_address_and_route() {
    if cloud_init().is_none() {
        skip!("no cloud-init; `cargo xtask setup` unpacks it");
    }
    check(
        Datasource::NoCloud,
        &expect![[r#"
        auto lo
        iface lo inet loopback

        auto eth0
        iface eth0 inet static
            hwaddress 52:54:00:00:00:01
            address 10.0.0.5/24
            gateway 10.0.0.1
            mtu 1400

        # control-alias eth0
        iface eth0 inet6 static
            hwaddress 52:54:00:00:00:01
            address 2001:db8::5/64
            gateway 2001:db8::1

        auto lan0
        iface lan0 inet dhcp
            hwaddress 52:54:00:00:00:02

    "#]],
    );
    check(
        Datasource::ConfigDrive,
        &expect![[r#"
        auto lo
        iface lo inet loopback

        auto eth0
        iface eth0 inet static
            hwaddress 52:54:00:00:00:01
            address 10.0.0.5/24
            mtu 1400
            post-up route add default gw 10.0.0.1 || true
            pre-down route del default gw 10.0.0.1 || true

        # control-alias eth0
        iface eth0 inet6 static
            hwaddress 52:54:00:00:00:01
            address 2001:db8::5/64
            post-up route add -A inet6 default gw 2001:db8::1 || true
            pre-down route del -A inet6 default gw 2001:db8::1 || true

        auto lan0
        iface lan0 inet dhcp
            hwaddress 52:54:00:00:00:02

    "#]],
    );
}
