//! The socket device, with a service that answers and clients that come and go.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use bootyard_fuzz::machine::drive;
use bootyard_vmm::virtio::{Vsock, VsockEnd};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let folder = std::env::temp_dir().join(format!("vsock-fuzz-{}", std::process::id()));
    let _ = std::fs::create_dir_all(&folder);
    let (path, service) = (folder.join("s"), folder.join("s_1"));
    let bind = |path| {
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path).expect("a socket")
    };
    let (listener, service) = (bind(&path), bind(&service));
    service.set_nonblocking(true).expect("a socket");
    let mut streams: Vec<UnixStream> = Vec::new();
    let device = Vsock::new(3, VsockEnd::new(listener, &path).expect("a socket"));
    drive(device, input, &mut |bytes| {
        let Some((first, bytes)) = bytes.split_first() else { return };
        let at = usize::from(first >> 2);
        match first & 3 {
            0 => streams.extend(UnixStream::connect(&path)),
            1 => streams.extend(service.accept().map(|(stream, _)| stream)),
            2 if at < streams.len() => drop(streams.remove(at)),
            _ => {}
        }
        if let Some(stream) = streams.last_mut() {
            stream.set_nonblocking(true).expect("a socket");
            let _ = stream.write(bytes);
            let _ = stream.read(&mut [0; 4096]);
        }
    });
});
