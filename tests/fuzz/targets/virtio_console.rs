//! The console with a channel, whose clients talk, listen and leave.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bootyard_fuzz::machine::drive;
use bootyard_vmm::virtio::{Channel, Console, HostEnd, Size};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let pair = || {
        let (ours, theirs) = UnixStream::pair().expect("descriptors");
        ours.set_nonblocking(true).expect("a socket");
        (Some(ours), HostEnd::connected(theirs).expect("descriptors"))
    };
    let ((terminal, console), (client, end)) = (pair(), pair());
    let mut clients = [terminal, client];
    let channel = Channel { name: "org.example.0".to_owned(), end };
    let device = Console::new(Some(console.clone()), vec![channel]);
    drive(device, input, &mut |bytes| {
        let Some((first, bytes)) = bytes.split_first() else { return };
        let client = &mut clients[usize::from(first & 1)];
        match first >> 1 {
            0x7f => *client = None,
            0x7e => console.resize(Size { columns: u16::from(*first), rows: 1 }),
            _ => {
                let Some(client) = client else { return };
                let _ = client.write(bytes);
                let _ = client.read(&mut [0; 4096]);
            }
        }
    });
});
