//! What a machine's guest and its host do together: the flags that `run` and the `machine` subcommand
//! share, and what they are in the KVM machine's words.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use bootyard_spec::{ByteSize, Class, GUEST_AGENT, GuestChannel, GuestServices, GuestVsock};
use bootyard_supervise::control::listen_at;
use bootyard_vmm::Services;
use bootyard_vmm::virtio::{BalloonControl, Channel, HostEnd, VsockEnd};
use clap::Args;

use crate::error::Failure;

#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    /// Leave the memory balloon out, through which the guest gives back memory that it does not use
    #[arg(long)]
    no_balloon: bool,
    /// Serve a console of its own, hvc0, at this socket
    #[arg(long, value_name = "SOCKET")]
    virtio_console: Option<PathBuf>,
    /// Serve a channel, /dev/virtio-ports/NAME in the guest, at this socket
    #[arg(long = "channel", value_name = "NAME=SOCKET")]
    channels: Vec<GuestChannel>,
    /// Serve the guest agent's channel at this socket
    #[arg(long, value_name = "SOCKET")]
    guest_agent: Option<PathBuf>,
    /// Connect stream sockets: clients say CONNECT PORT at this socket, and the guest reaches services
    /// that listen at it with _PORT behind
    #[arg(long, value_name = "cid=NUMBER,socket=PATH")]
    vsock: Option<GuestVsock>,
}

impl ServiceArgs {
    pub(crate) fn services(&self) -> GuestServices {
        let agent = self.guest_agent.clone();
        let agent = agent.map(|socket| GuestChannel { name: GUEST_AGENT.to_owned(), socket });
        GuestServices {
            balloon: !self.no_balloon,
            console: self.virtio_console.clone(),
            channels: self.channels.iter().cloned().chain(agent).collect(),
            vsock: self.vsock.clone(),
        }
    }
}

/// The services of a machine of this process, which go away with their sockets.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) balloon: Option<BalloonControl>,
    sockets: Vec<PathBuf>,
}

impl Served {
    /// Makes the sockets, for this user alone, and the balloon of a machine with so much memory.
    pub(crate) fn new(
        services: &GuestServices,
        memory: ByteSize,
    ) -> Result<(Self, Services), Failure> {
        let mut served = Self { balloon: None, sockets: Vec::new() };
        let other = |error: io::Error| Failure::new(Class::Other, error);
        if services.balloon {
            served.balloon = Some(BalloonControl::new(memory.bytes()).map_err(other)?);
        }
        let console = services.console.as_deref().map(|path| served.end(path)).transpose()?;
        let mut channels = Vec::new();
        for GuestChannel { name, socket } in &services.channels {
            channels.push(Channel { name: name.clone(), end: served.end(socket)? });
        }
        let mut vsock = None;
        if let Some(GuestVsock { cid, socket }) = &services.vsock {
            let listener = served.listen(socket)?;
            vsock = Some((*cid, VsockEnd::new(listener, socket).map_err(other)?));
        }
        let balloon = served.balloon.clone();
        Ok((served, Services { balloon, console, channels, vsock }))
    }

    fn end(&mut self, path: &Path) -> Result<HostEnd, Failure> {
        let listener = self.listen(path)?;
        HostEnd::listening(listener).map_err(|error| Failure::new(Class::Other, error))
    }

    fn listen(&mut self, path: &Path) -> Result<UnixListener, Failure> {
        let failed = |error| {
            let what = format!("cannot serve the socket `{}`: {error}", path.display());
            Failure::new(Class::Usage, what).with_hint("name another path")
        };
        let listener = listen_at(path).map_err(failed)?;
        self.sockets.push(path.to_owned());
        Ok(listener)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The sandbox forbids it: who started the machine removes what is left.
        for socket in &self.sockets {
            let _ = fs_err::remove_file(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        services: ServiceArgs,
    }

    fn services(flags: &[&str]) -> GuestServices {
        Flags::parse_from([&["run"], flags].concat()).services.services()
    }

    #[test]
    fn there_is_a_balloon_unless_it_is_left_out() {
        assert_eq!(services(&[]), GuestServices::default());
        assert!(!services(&["--no-balloon"]).balloon);
    }

    #[test]
    fn sockets_are_there_as_long_as_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let asked = services(&[
            "--virtio-console",
            &path("console"),
            "--guest-agent",
            &path("agent"),
            "--channel",
            &format!("org.example.0={}", path("channel")),
            "--vsock",
            &format!("cid=3,socket={}", path("vsock")),
        ]);
        let (served, made) = Served::new(&asked, ByteSize::from_mib(64)).unwrap();
        let names: Vec<_> = made.channels.iter().map(|channel| channel.name.as_str()).collect();
        assert_eq!(names, ["org.example.0", GUEST_AGENT]);
        assert!(made.console.is_some() && made.balloon.is_some());
        for name in ["console", "agent", "channel", "vsock"] {
            assert!(Path::new(&path(name)).exists(), "{name}");
        }
        let error = Served::new(&asked, ByteSize::from_mib(64)).unwrap_err();
        assert!(format!("{error:?}").contains("another machine serves it"), "{error:?}");
        drop(served);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }
}
