//! The devices through which guest and host work together: balloon, console with its channels, sockets.

use crate::config::Report;
use crate::error::Error;
use crate::report::Failures;
use crate::virtio::{
    Balloon, BalloonControl, CHANNELS_MAX, CIDS, Channel, Console, HostEnd, VirtioDevice, Vsock,
    VsockEnd,
};

/// What there is between guest and host besides disks and network. Whoever makes it keeps the ends.
#[derive(Debug, Default)]
pub struct Services {
    /// The balloon.
    pub balloon: Option<BalloonControl>,
    /// A console beside the serial one, `hvc0`.
    pub console: Option<HostEnd>,
    /// Channels with names, at most [`CHANNELS_MAX`].
    pub channels: Vec<Channel>,
    /// Stream sockets: the guest's context identifier, one of [`CIDS`], and the host's end.
    pub vsock: Option<(u32, VsockEnd)>,
}

/// A device, and where its failures go.
type Reported = (Box<dyn VirtioDevice>, Failures);

impl Services {
    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.channels.len() > CHANNELS_MAX {
            let count = self.channels.len();
            let what = format!("expected at most {CHANNELS_MAX} channels, got {count}");
            return Err(Error::Config(what));
        }
        match &self.vsock {
            Some((cid, _)) if !CIDS.contains(cid) => {
                let (first, last) = CIDS.into_inner();
                let what =
                    format!("expected a context identifier from {first} to {last}, got {cid}");
                Err(Error::Config(what))
            }
            _ => Ok(()),
        }
    }

    /// The devices in the order of their slots, and where their failures go.
    pub(crate) fn devices(&self, report: &Report) -> Result<Vec<Reported>, Error> {
        let mut devices: Vec<Reported> = Vec::new();
        if let Some(control) = &self.balloon {
            let failed = |error: std::io::Error| Error::Device {
                device: "memory balloon",
                source: error.into(),
            };
            let balloon = Balloon::new(control).map_err(failed)?;
            devices.push((Box::new(balloon), Failures::new(report, "memory balloon")));
        }
        if self.console.is_some() || !self.channels.is_empty() {
            let console = Console::new(self.console.clone(), self.channels.clone());
            devices.push((Box::new(console), Failures::new(report, "console device")));
        }
        if let Some((cid, end)) = &self.vsock {
            let failures = Failures::new(report, "socket device");
            let vsock = Vsock::new(*cid, end.clone()).telling(failures.clone());
            devices.push((Box::new(vsock), failures));
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Arc;

    use super::*;

    fn end() -> HostEnd {
        HostEnd::connected(UnixStream::pair().unwrap().0).unwrap()
    }

    #[test]
    fn each_service_has_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let vsock = VsockEnd::new(UnixListener::bind(&path).unwrap(), &path).unwrap();
        let report: Report = Arc::new(|_| {});
        let channel = || Channel { name: "a".to_owned(), end: end() };
        let kinds = |services: &Services| -> Vec<u16> {
            services.check().unwrap();
            services.devices(&report).unwrap().iter().map(|(device, _)| device.kind()).collect()
        };
        assert_eq!(kinds(&Services::default()), [0; 0]);
        let services = Services {
            balloon: Some(BalloonControl::new(1 << 30).unwrap()),
            console: Some(end()),
            channels: vec![channel()],
            vsock: Some((3, vsock.clone())),
        };
        assert_eq!(kinds(&services), [5, 3, 19]);
        assert_eq!(kinds(&Services { channels: vec![channel()], ..Services::default() }), [3]);
        let many = Services {
            channels: (0..=CHANNELS_MAX).map(|_| channel()).collect(),
            ..Services::default()
        };
        assert!(many.check().unwrap_err().to_string().contains("at most 15 channels, got 16"));
        let reserved = Services { vsock: Some((2, vsock)), ..Services::default() };
        assert!(reserved.check().unwrap_err().to_string().contains("identifier from 3"));
    }
}
