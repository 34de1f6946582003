//! A machine's network: the flags of `run`, and for the `machine` subcommand what they are on this host.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use bootyard_spec::{
    Binding, Class, MacAddress, Masquerade, ParseNetworkError, PortForward, VmNetwork,
};
use bootyard_vmm::net::{
    Backend, Capture, Forward, ForwardProtocol, Passt, Resolvers, Tap, UserConfig, UserNet,
};
use bootyard_vmm::{NETWORKS_MAX, NetworkConfig};
use clap::Args;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::Failure;

#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Network interface: masquerade (10.0.2.2 behind this user's sockets), passt[=SOCKET], bridge=TAP or
    /// none, with options behind it, such as masquerade,mac=52:54:00:12:34:56 [default: masquerade]
    #[arg(long = "net", value_name = "NETWORK[,OPTION=…]")]
    networks: Vec<NetworkArg>,
    /// Port of this host that leads into the guest: 2222:22, 0.0.0.0:8080:80 or 5353:53/udp; it listens
    /// on 127.0.0.1 unless an address is given
    #[arg(short = 'p', long = "forward", value_name = "[ADDRESS:]PORT:PORT")]
    forwards: Vec<PortForward>,
}

/// A value of `--net`.
#[derive(Debug, Clone)]
enum NetworkArg {
    None,
    Some(VmNetwork),
}

impl FromStr for NetworkArg {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        match text {
            "none" => Ok(Self::None),
            _ => text.parse().map(Self::Some),
        }
    }
}

impl NetworkArgs {
    /// The interfaces of the machine called `name`, with their addresses.
    pub(crate) fn networks(&self, name: &str) -> Result<Vec<VmNetwork>, Failure> {
        let mut networks = Vec::new();
        for network in &self.networks {
            match network {
                NetworkArg::None if self.networks.len() == 1 => {}
                NetworkArg::None => {
                    let what = "`--net none` is given, and another network";
                    return Err(Failure::new(Class::Usage, what));
                }
                NetworkArg::Some(network) => networks.push(network.clone()),
            }
        }
        if self.networks.is_empty() {
            networks.push(VmNetwork::new(Binding::Masquerade(Masquerade::default())));
        }
        if networks.len() > NETWORKS_MAX {
            let what = format!("expected at most {NETWORKS_MAX} `--net`, got {}", networks.len());
            return Err(Failure::new(Class::Usage, what));
        }
        self.forward(&mut networks)?;
        for (index, network) in networks.iter_mut().enumerate() {
            network.mac.get_or_insert_with(|| MacAddress::derived(name, index));
            if let Binding::Masquerade(masquerade) = &mut network.binding {
                masquerade.hostname = masquerade.hostname.take().or_else(|| hostname(name));
            }
        }
        Ok(networks)
    }

    /// Gives the forwards to the first interface that can have any.
    fn forward(&self, networks: &mut [VmNetwork]) -> Result<(), Failure> {
        let able = networks.iter_mut().find_map(|network| match &mut network.binding {
            Binding::Masquerade(Masquerade { forwards, .. })
            | Binding::Passt { socket: None, forwards } => Some(forwards),
            Binding::Passt { .. } | Binding::Bridge { .. } => None,
        });
        match able {
            Some(forwards) => forwards.extend(&self.forwards),
            None if self.forwards.is_empty() => {}
            None => {
                let what = "`--forward` is given, and no network that it could lead to";
                return Err(Failure::new(Class::Usage, what).with_hint(
                    "add `--net masquerade`, or forward ports where the network is made",
                ));
            }
        }
        Ok(())
    }
}

/// The name of a machine as a host's, where it can be one.
fn hostname(name: &str) -> Option<String> {
    let host: String = name.chars().map(|c| if c == '_' { '-' } else { c }).collect();
    let text = format!("masquerade,hostname={}", host.replace(',', ",,"));
    text.parse::<VmNetwork>().ok().map(|_| host)
}

/// The interfaces of a machine, ready to be used.
pub(crate) fn interfaces(
    name: &str,
    networks: &[VmNetwork],
) -> Result<Vec<NetworkConfig>, Failure> {
    let ours = |network: &&VmNetwork| matches!(network.binding, Binding::Masquerade(_));
    let sockets_max = sockets_max() / networks.iter().filter(ours).count().max(1);
    let interface = |(index, network): (usize, &VmNetwork)| {
        let mac = network.mac.unwrap_or_else(|| MacAddress::derived(name, index)).octets();
        let backend = backend(mac, &network.binding, sockets_max)?;
        Ok(NetworkConfig {
            name: format!("net{index}"),
            mac,
            backend: Arc::new(Mutex::new(backend)),
            capture: network.capture.as_deref().map(capture).transpose()?,
        })
    };
    networks.iter().enumerate().map(interface).collect()
}

/// Lets this process have as many descriptors as it may: each connection of the guest takes one, and a
/// shell's limit is most often 1024.
pub(crate) fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where the system refuses, the guest has fewer connections.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many sockets the guest's connections may take: the machine's own files, and those who ask for
/// it, find descriptors too.
fn sockets_max() -> usize {
    /// What is left to others where there is much.
    const OTHERS: u64 = 1024;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((limit / 2).max(limit.saturating_sub(OTHERS))).unwrap_or(usize::MAX)
}

fn backend(
    mac: [u8; 6],
    binding: &Binding,
    sockets_max: usize,
) -> Result<Box<dyn Backend>, Failure> {
    Ok(match binding {
        Binding::Masquerade(network) => Box::new(masquerade(mac, network, sockets_max)?),
        Binding::Passt { socket: Some(socket), .. } => {
            let socket = socket.display();
            let failed = |error| {
                Failure::new(Class::Engine, format!("no passt at `{socket}`: {error}"))
                    .with_hint(format!("start it with `passt --socket {socket}`"))
            };
            Box::new(Passt::connect(socket.to_string().as_ref()).map_err(failed)?)
        }
        Binding::Passt { socket: None, forwards } => Box::new(start_passt(forwards)?),
        Binding::Bridge { tap } => {
            let failed = |error| {
                Failure::new(Class::Engine, format!("no tap device `{tap}`: {error}")).with_hint(
                    format!(
                        "make it with `sudo ip tuntap add {tap} mode tap user $USER vnet_hdr`, and add \
                         it to a bridge with `sudo ip link set {tap} master BRIDGE up`"
                    ),
                )
            };
            Box::new(Tap::open(tap).map_err(failed)?)
        }
    })
}

fn masquerade(mac: [u8; 6], network: &Masquerade, sockets_max: usize) -> Result<UserNet, Failure> {
    // Without the file, the name server is this host.
    let text = fs_err::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolvers = Resolvers::parse(&text, interface_index);
    let mut config = UserConfig::new(mac);
    config.network6 = config.network6.filter(|_| network.ipv6);
    config.resolvers = resolvers.servers;
    config.search = resolvers.search;
    config.hostname.clone_from(&network.hostname);
    config.mtu = network.mtu;
    config.reach_host = network.reach_host;
    config.sockets_max = sockets_max;
    let forward = |forward: &PortForward| Forward {
        protocol: if forward.udp { ForwardProtocol::Udp } else { ForwardProtocol::Tcp },
        host: forward.host,
        guest_port: forward.guest_port,
    };
    let forwards: Vec<_> = network.forwards.iter().map(forward).collect();
    UserNet::new(config, &forwards).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                Some("take another port: `ss -ltnup` shows who has this one")
            }
            io::ErrorKind::PermissionDenied => Some("ports below 1024 are the administrator's"),
            _ => None,
        };
        let failure = Failure::new(Class::Usage, format!("cannot forward {error}"));
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    })
}

/// The number of an interface of this host.
fn interface_index(name: &str) -> Option<u32> {
    let text = fs_err::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?;
    text.trim().parse().ok()
}

/// A passt of the machine's own, which ends with it.
#[expect(clippy::disallowed_methods, reason = "passt is a program")]
fn start_passt(forwards: &[PortForward]) -> Result<Passt, Failure> {
    let failed = |error: io::Error| {
        let failure = Failure::new(Class::Engine, format!("`passt` cannot be started: {error}"));
        match error.kind() {
            io::ErrorKind::NotFound => failure.with_hint("install it with `apt install passt`"),
            _ => failure,
        }
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(|error| failed(error.into()))?;
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet", "--fd"]).arg(theirs.as_raw_fd().to_string());
    for PortForward { udp, host, guest_port } in forwards {
        let option = if *udp { "--udp-ports" } else { "--tcp-ports" };
        command.arg(option).arg(format!("{}/{}:{guest_port}", host.ip(), host.port()));
    }
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(failed)?;
    Ok(Passt::new(ours).map_err(failed)?.kept(process))
}

fn capture(path: &Path) -> Result<Arc<Mutex<Capture>>, Failure> {
    let failed = |error: io::Error| Failure::new(Class::Other, error);
    let file = fs_err::File::create(path).map_err(failed)?;
    Ok(Arc::new(Mutex::new(Capture::new(Box::new(file)).map_err(failed)?)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        networks: NetworkArgs,
    }

    fn networks(line: &str) -> Result<String, String> {
        let line = Line::parse_from(std::iter::once("run").chain(line.split_whitespace()));
        let networks = line.networks.networks("web_1").map_err(|failure| failure.message())?;
        Ok(networks.iter().map(VmNetwork::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_machine_has_a_network_unless_it_shall_have_none() {
        let [first, second] = [0, 1].map(|index| MacAddress::derived("web_1", index));
        let rest = "ipv6=on,host=on,mtu=1500";
        for (line, expected) in [
            ("", format!("masquerade,hostname=web-1,{rest},mac={first}")),
            ("--net none", String::new()),
            (
                "--net bridge=vm0 --net user,hostname=a -p 2222:22 --forward 1:53/udp",
                format!(
                    "bridge=vm0,mac={first} masquerade,forward=127.0.0.1:2222:22,\
                     forward=127.0.0.1:1:53/udp,hostname=a,{rest},mac={second}"
                ),
            ),
            ("--net passt,mac=52:54:00:00:00:01", "passt,mac=52:54:00:00:00:01".to_owned()),
        ] {
            assert_eq!(networks(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn wishes_that_contradict_one_another_are_refused() {
        for (line, expected) in [
            ("--net none --net user", "`--net none` is given, and another network"),
            ("--net none -p 1:1", "`--forward` is given, and no network"),
            ("--net bridge=vm0 -p 1:1", "`--forward` is given, and no network"),
            (
                "--net user --net user --net user --net user --net user",
                "expected at most 4 `--net`",
            ),
        ] {
            let error = networks(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap();
        let forwards = vec![PortForward { udp: false, host, guest_port: 22 }];
        let network = Masquerade { forwards, ..Masquerade::default() };
        let error = masquerade([2; 6], &network, usize::MAX).unwrap_err().message();
        assert!(error.starts_with(&format!("cannot forward {host} to port 22")), "{error}");
    }
}
