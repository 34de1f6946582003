//! Balloon, console and channels in QEMU's words.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use bootyard_spec::GuestServices;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::Error;
use crate::control::listen_at;

/// The sockets of console and channels. QEMU would delete whatever is at their paths; so it inherits ours.
/// They go away with this.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// The console's first.
    listeners: Vec<UnixListener>,
    paths: Vec<PathBuf>,
}

impl Sockets {
    pub(super) fn listen(services: &GuestServices) -> Result<Self, Error> {
        let mut sockets = Self::default();
        let channels = services.channels.iter().map(|channel| &channel.socket);
        for path in services.console.iter().chain(channels) {
            sockets.add(path).map_err(|source| Error::Socket { path: path.clone(), source })?;
        }
        Ok(sockets)
    }

    fn add(&mut self, path: &Path) -> std::io::Result<()> {
        let listener = listen_at(path)?;
        self.paths.push(path.to_owned());
        fcntl_setfd(&listener, FdFlags::empty())?;
        self.listeners.push(listener);
        Ok(())
    }

    /// The numbers of the descriptors that QEMU inherits.
    pub(super) fn numbers(&self) -> Vec<i32> {
        self.listeners.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Closes this process's copies, once QEMU has its own.
    pub(super) fn handed_over(&mut self) {
        self.listeners.clear();
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = fs_err::remove_file(path);
        }
    }
}

/// The options of all services, and their values. `sockets` are the numbers of [`Sockets`].
pub(super) fn options(
    services: &GuestServices,
    sockets: &[i32],
) -> Result<Vec<(&'static str, OsString)>, Error> {
    let mut sockets = sockets.iter();
    let mut options: Vec<(&str, OsString)> = Vec::new();
    if services.vsock.is_some() {
        return Err(Error::NoVsock);
    }
    if services.balloon {
        let device = "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on";
        options.push(("-device", device.into()));
    }
    if services.console.is_some() || !services.channels.is_empty() {
        options.push(("-device", "virtio-serial-pci".into()));
    }
    if services.console.is_some() {
        options.push(("-chardev", chardev("console", sockets.next())));
        options.push(("-device", "virtconsole,chardev=console".into()));
    }
    for (index, channel) in services.channels.iter().enumerate() {
        let id = format!("channel{index}");
        options.push(("-chardev", chardev(&id, sockets.next())));
        let device = format!("virtserialport,chardev={id},name={}", channel.name);
        options.push(("-device", device.into()));
    }
    Ok(options)
}

/// A socket at which clients are served, one after the other.
fn chardev(id: &str, socket: Option<&i32>) -> OsString {
    let number = socket.copied().unwrap_or(-1);
    format!("socket,id={id},fd={number},server=on,wait=off").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_said_in_qemus_words() {
        let services = GuestServices {
            console: Some("/run/console".into()),
            channels: vec!["org.qemu.guest_agent.0=/run/agent".parse().unwrap()],
            ..GuestServices::default()
        };
        let line: Vec<String> = options(&services, &[7, 8])
            .unwrap()
            .into_iter()
            .map(|(name, value)| format!("{name} {}", value.into_string().unwrap()))
            .collect();
        assert_eq!(
            line,
            [
                "-device virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on",
                "-device virtio-serial-pci",
                "-chardev socket,id=console,fd=7,server=on,wait=off",
                "-device virtconsole,chardev=console",
                "-chardev socket,id=channel0,fd=8,server=on,wait=off",
                "-device virtserialport,chardev=channel0,name=org.qemu.guest_agent.0",
            ]
        );
        let none = GuestServices { balloon: false, ..GuestServices::default() };
        assert_eq!(options(&none, &[]).unwrap(), []);
    }

    #[test]
    fn sockets_without_a_network_are_refused() {
        let vsock = Some("cid=3,socket=/run/vsock".parse().unwrap());
        let services = GuestServices { vsock, ..GuestServices::default() };
        let error = options(&services, &[]).unwrap_err();
        assert!(error.to_string().contains("`--vsock`"), "{error}");
    }

    #[test]
    fn what_is_at_the_path_of_a_socket_stays_there() {
        let folder = tempfile::tempdir().unwrap();
        let [console, file] = ["console", "file"].map(|name| folder.path().join(name));
        fs_err::write(&file, "precious").unwrap();
        let channel = format!("a={}", file.display()).parse().unwrap();
        let mut services = GuestServices { console: Some(console.clone()), ..Default::default() };
        let sockets = Sockets::listen(&services).unwrap();
        assert!(console.exists() && sockets.numbers().len() == 1);
        services = GuestServices { channels: vec![channel], ..services };
        assert!(
            matches!(Sockets::listen(&services), Err(Error::Socket { path, .. }) if path == console)
        );
        drop(sockets);
        assert!(
            matches!(Sockets::listen(&services), Err(Error::Socket { path, .. }) if path == file)
        );
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "precious");
        assert!(!console.exists());
    }
}
