//! Balloon, console and channels in QEMU's words.

use std::ffi::OsString;
use std::path::Path;

use bootyard_spec::GuestServices;

use super::qemu::escaped;
use crate::Error;

/// The options of all services, and their values.
pub(super) fn options(services: &GuestServices) -> Result<Vec<(&'static str, OsString)>, Error> {
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
    if let Some(socket) = &services.console {
        options.push(("-chardev", chardev("console", socket)));
        options.push(("-device", "virtconsole,chardev=console".into()));
    }
    for (index, channel) in services.channels.iter().enumerate() {
        let id = format!("channel{index}");
        options.push(("-chardev", chardev(&id, &channel.socket)));
        let device = format!("virtserialport,chardev={id},name={}", channel.name);
        options.push(("-device", device.into()));
    }
    Ok(options)
}

/// A socket at which clients are served, one after the other.
fn chardev(id: &str, socket: &Path) -> OsString {
    let mut option = OsString::from(format!("socket,id={id},server=on,wait=off,path="));
    option.push(escaped(socket.as_os_str()));
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_said_in_qemus_words() {
        let services = GuestServices {
            console: Some("/run/a,b".into()),
            channels: vec!["org.qemu.guest_agent.0=/run/agent".parse().unwrap()],
            ..GuestServices::default()
        };
        let line: Vec<String> = options(&services)
            .unwrap()
            .into_iter()
            .map(|(name, value)| format!("{name} {}", value.into_string().unwrap()))
            .collect();
        assert_eq!(
            line,
            [
                "-device virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on",
                "-device virtio-serial-pci",
                "-chardev socket,id=console,server=on,wait=off,path=/run/a,,b",
                "-device virtconsole,chardev=console",
                "-chardev socket,id=channel0,server=on,wait=off,path=/run/agent",
                "-device virtserialport,chardev=channel0,name=org.qemu.guest_agent.0",
            ]
        );
        let none = GuestServices { balloon: false, ..GuestServices::default() };
        assert_eq!(options(&none).unwrap(), []);
    }

    #[test]
    fn sockets_without_a_network_are_refused() {
        let vsock = Some("cid=3,socket=/run/vsock".parse().unwrap());
        let error = options(&GuestServices { vsock, ..GuestServices::default() }).unwrap_err();
        assert!(error.to_string().contains("`--vsock`"), "{error}");
    }
}
