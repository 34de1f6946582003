//! Reads a source to its end and throws the bytes away: what the benchmark compares with
//! `curl -o /dev/null`. Usage: `throughput SOURCE`.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a tool for measurements")]

use std::time::Instant;

use bootyard_source::{Options, install_crypto_provider, open};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    install_crypto_provider();
    let source = std::env::args().nth(1).ok_or("usage: throughput SOURCE")?.parse()?;
    let options = Options::default();
    let start = Instant::now();
    let mut object = open(&source, &options).await?;
    let (mut bytes, mut chunks) = (0, 0);
    while let Some(chunk) = object.next().await? {
        bytes += chunk.len();
        chunks += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes as f64 / seconds / 1e6;
    println!("{bytes} bytes in {chunks} chunks, {seconds:.2} s, {rate:.0} MB/s");
    Ok(())
}
