//! Network interfaces in QEMU's words.

use std::ffi::OsString;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use bootyard_spec::{Binding, MacAddress, Masquerade, PortForward, VmNetwork};

use super::qemu::escaped;
use crate::{Error, LaunchPlan};

/// Looks for what the interfaces of a machine on QEMU need of this host, before its first start. As root
/// QEMU makes a tap device that is not there; for a socket that is not there it waits without a word.
pub fn check_networks_for_qemu(networks: &[VmNetwork]) -> Result<(), Error> {
    networks.iter().try_for_each(|network| match &network.binding {
        Binding::Bridge { tap } => {
            let flags = Path::new("/sys/class/net").join(tap).join("tun_flags");
            fs_err::metadata(flags).map(drop).map_err(|source| {
                let what = format!("there is no tap device `{tap}`");
                let hint =
                    format!("make it with `sudo ip tuntap add {tap} mode tap user $USER vnet_hdr`");
                Error::NoNetwork { what, hint, source }
            })
        }
        Binding::Passt { socket: Some(socket), .. } => {
            fs_err::metadata(socket).map(drop).map_err(|source| {
                let socket = socket.display();
                let what = format!("no passt at `{socket}`");
                Error::NoNetwork {
                    what,
                    hint: format!("start it with `passt --socket {socket}`"),
                    source,
                }
            })
        }
        Binding::Passt { socket: None, .. } => Ok(()),
        Binding::Masquerade(masquerade) => masquerade.forwards.iter().try_for_each(listens),
    })
}

/// QEMU does not say why it cannot listen.
fn listens(forward: &PortForward) -> Result<(), Error> {
    let PortForward { udp, host, guest_port } = forward;
    let bound =
        if *udp { UdpSocket::bind(host).map(drop) } else { TcpListener::bind(host).map(drop) };
    bound.map_err(|source| {
        let what = format!("cannot forward {host} to port {guest_port}");
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => "ports below 1024 are the administrator's",
            _ => "take another port: `ss -ltnup` shows who has this one",
        };
        Error::NoNetwork { what, hint: hint.to_owned(), source }
    })
}

/// The options of all interfaces of `plan`, and their values.
pub(super) fn options(plan: &LaunchPlan) -> Result<Vec<(&'static str, OsString)>, Error> {
    let mut options = Vec::new();
    for (index, network) in plan.networks.iter().enumerate() {
        let (backend, mtu) = backend(index, network)?;
        options.push(("-netdev", backend));
        let mac = network.mac.unwrap_or_else(|| MacAddress::derived(&plan.name, index));
        let device = format!("virtio-net-pci,netdev=net{index},mac={mac}{mtu}");
        options.push(("-device", device.into()));
        if let Some(path) = &network.capture {
            let mut dump = OsString::from(format!("filter-dump,id=dump{index},netdev=net{index}"));
            dump.push(",file=");
            dump.push(escaped(path.as_os_str()));
            options.push(("-object", dump));
        }
    }
    Ok(options)
}

/// What is at the other end, and what of the device follows from it.
fn backend(index: usize, network: &VmNetwork) -> Result<(OsString, String), Error> {
    match &network.binding {
        Binding::Masquerade(masquerade) => {
            let mtu = format!(",host_mtu={}", masquerade.mtu);
            Ok((user(index, masquerade)?.into(), mtu))
        }
        Binding::Passt { socket: Some(socket), .. } => Ok((stream(index, socket), String::new())),
        Binding::Passt { socket: None, .. } => Err(Error::CannotNetwork("passt without a socket")),
        Binding::Bridge { tap } => {
            let mut option = OsString::from(format!("tap,id=net{index},ifname="));
            option.push(escaped(tap.as_ref()));
            option.push(",script=no,downscript=no");
            Ok((option, String::new()))
        }
    }
}

/// QEMU's own network with the addresses of ours, except that of IPv6 the guest makes one by itself:
/// QEMU's has no DHCP server for it.
fn user(index: usize, network: &Masquerade) -> Result<String, Error> {
    if !network.reach_host {
        return Err(Error::CannotNetwork("`host=off`"));
    }
    let mut option =
        format!("user,id=net{index},net=10.0.2.0/24,host=10.0.2.1,dhcpstart=10.0.2.2,dns=10.0.2.3");
    option.push_str(match network.ipv6 {
        true => ",ipv6-net=fd10:0:2::/64,ipv6-host=fd10:0:2::1",
        false => ",ipv6=off",
    });
    if let Some(name) = &network.hostname {
        option.push_str(",hostname=");
        option.push_str(name);
    }
    for PortForward { udp, host, guest_port } in &network.forwards {
        if host.is_ipv6() {
            return Err(Error::CannotNetwork("a forward from an address of IPv6"));
        }
        let protocol = if *udp { "udp" } else { "tcp" };
        option.push_str(&format!(",hostfwd={protocol}:{host}-:{guest_port}"));
    }
    Ok(option)
}

fn stream(index: usize, socket: &Path) -> OsString {
    let mut option =
        OsString::from(format!("stream,id=net{index},server=off,addr.type=unix,addr.path="));
    option.push(escaped(socket.as_os_str()));
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(network: &str) -> Result<String, String> {
        let backend = backend(0, &network.parse().unwrap());
        let (option, device) = backend.map_err(|error| error.to_string())?;
        Ok(format!("{}{device}", option.into_string().unwrap()))
    }

    #[test]
    fn interfaces_are_said_in_qemus_words() {
        for (network, expected) in [
            (
                "masquerade,hostname=web,forward=2222:22,forward=0.0.0.0:53:5353/udp",
                "user,id=net0,net=10.0.2.0/24,host=10.0.2.1,dhcpstart=10.0.2.2,dns=10.0.2.3,\
                 ipv6-net=fd10:0:2::/64,ipv6-host=fd10:0:2::1,hostname=web,\
                 hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:0.0.0.0:53-:5353,host_mtu=1500",
            ),
            ("bridge=vm0", "tap,id=net0,ifname=vm0,script=no,downscript=no"),
            (
                "passt=/run/a,,b.sock",
                "stream,id=net0,server=off,addr.type=unix,addr.path=/run/a,,b.sock",
            ),
        ] {
            assert_eq!(line(network).unwrap(), expected);
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap();
        let forward = PortForward { udp: false, host, guest_port: 22 };
        let error = listens(&forward).unwrap_err().to_string();
        assert_eq!(error, format!("cannot forward {host} to port 22"));
        drop(listener);
        listens(&forward).unwrap();
    }

    #[test]
    fn what_qemu_cannot_do_is_named() {
        for (network, expected) in [
            ("masquerade,host=off", "the qemu engine has no network with `host=off`"),
            ("masquerade,forward=[::1]:1:1", "a forward from an address of IPv6"),
            ("passt", "passt without a socket"),
        ] {
            assert!(line(network).unwrap_err().contains(expected), "{network}");
        }
    }
}
