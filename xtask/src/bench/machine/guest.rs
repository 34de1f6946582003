//! What runs in the guest that is measured: disk and network at work, as figures on standard output.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fs_err::OpenOptions;
use fs_err::os::unix::fs::OpenOptionsExt;

use super::figure;

/// `open(2)`: past the guest's page cache.
const O_DIRECT: i32 = 0o40_000;

/// What O_DIRECT wants of buffers.
const ALIGNMENT: usize = 4096;

/// One request of sequential work, and of random reads.
const LARGE: usize = 1 << 20;
const SMALL: usize = 4096;

/// Random reads under way at once.
const READERS: u64 = 8;

/// How long random reads go on.
const RANDOM: Duration = Duration::from_secs(4);

/// How long bytes go in each direction over the network. A time instead of an amount, since sides differ
/// by a factor.
const STREAM: Duration = Duration::from_secs(6);

/// Reads all of the disk, reads at random, and writes all of it.
pub(super) fn disk(path: &Path) -> Result<()> {
    let open = || OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path);
    let file = open()?;
    let size = fs_err::read_to_string("/sys/block/vda/size")?.trim().parse::<u64>()? * 512;
    ensure!(size >= LARGE as u64, "the disk has {size} bytes");
    let mut memory = vec![0; LARGE + ALIGNMENT];
    let buffer = aligned(&mut memory, LARGE);

    let rate = |start: Instant| size as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 20);
    let start = Instant::now();
    for offset in (0..size).step_by(LARGE) {
        file.file().read_exact_at(buffer, offset)?;
    }
    figure("read", rate(start));

    let reads = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let reader = |seed| {
            let (reads, file) = (&reads, &file);
            scope.spawn(move || read_at_random(file.file(), size, seed, start, reads))
        };
        let readers: Vec<_> = (1..=READERS).map(reader).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))
    })?;
    figure("iops", reads.into_inner() as f64 / start.elapsed().as_secs_f64());

    buffer.fill(0x5a);
    let start = Instant::now();
    for offset in (0..size).step_by(LARGE) {
        file.file().write_all_at(buffer, offset)?;
    }
    file.file().sync_all()?;
    figure("write", rate(start));
    Ok(())
}

fn read_at_random(
    file: &std::fs::File,
    size: u64,
    seed: u64,
    start: Instant,
    reads: &AtomicU64,
) -> Result<()> {
    let mut memory = vec![0; SMALL + ALIGNMENT];
    let buffer = aligned(&mut memory, SMALL);
    // Marsaglia's xorshift: any spread over the disk will do.
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while start.elapsed() < RANDOM {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let block = random % (size / SMALL as u64);
        file.read_exact_at(buffer, block * SMALL as u64)?;
        reads.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// `len` bytes of `memory` that begin where O_DIRECT likes it.
fn aligned(memory: &mut [u8], len: usize) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    &mut memory[skip..skip + len]
}

/// Sends to the sink, and takes from the source at the next port.
pub(super) fn net(sink: SocketAddr) -> Result<()> {
    let mut chunk = vec![7; 128 << 10];
    let rate = |bytes: u64, start: Instant| bytes as f64 / start.elapsed().as_secs_f64() / 1e6;

    let start = Instant::now();
    let mut stream = TcpStream::connect(sink).context("cannot reach the sink")?;
    let mut sent = 0;
    while start.elapsed() < STREAM {
        stream.write_all(&chunk)?;
        sent += chunk.len() as u64;
    }
    // What is on its way counts as soon as the sink says that it has come.
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer == sent.to_string(), "the sink got `{answer}` of {sent} bytes");
    figure("sent", rate(sent, start));

    let start = Instant::now();
    let source = SocketAddr::new(sink.ip(), sink.port() + 1);
    let mut stream = TcpStream::connect(source).context("cannot reach the source")?;
    let mut received = 0;
    while start.elapsed() < STREAM {
        let count = stream.read(&mut chunk)?;
        ensure!(count > 0, "the source ended after {received} bytes");
        received += count as u64;
    }
    figure("received", rate(received, start));
    Ok(())
}
