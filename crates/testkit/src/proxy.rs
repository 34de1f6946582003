//! A small HTTP proxy: tunnels (`CONNECT`) and requests with a whole URL, each on a connection of its
//! own. Wants user and password if it was given them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A running proxy; it takes no further connection once it is dropped.
#[derive(Debug)]
pub struct ProxyServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
    /// The request lines, and whether to stop.
    state: Mutex<(Vec<String>, bool)>,
}

impl ProxyServer {
    /// Starts a proxy that wants this value of `Proxy-Authorization`, if any.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub fn start(authorization: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let authorization = authorization.map(str::to_owned);
        let shared = Arc::new(Shared { authorization, state: Mutex::default() });
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if for_thread.lock().1 {
                    return;
                }
                let (Ok(client), shared) = (client, Arc::clone(&for_thread)) else { continue };
                // An error is the end of one of the two connections.
                thread::spawn(move || serve(client, &shared));
            }
        });
        Self { address, shared }
    }

    /// The proxy's URL, with `userinfo` as `USER:PASSWORD@` or nothing.
    pub fn url(&self, userinfo: &str) -> String {
        format!("http://{userinfo}{}", self.address)
    }

    /// The request lines so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().0.clone()
    }
}

impl Drop for ProxyServer {
    fn drop(&mut self) {
        self.shared.lock().1 = true;
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        lines.push(line);
    }
    let first = lines.first().cloned().unwrap_or_default();
    shared.lock().0.push(first.trim_end().to_owned());
    let header = |line: &&String| line.to_ascii_lowercase().starts_with("proxy-authorization:");
    let given = lines.iter().find(header).and_then(|line| Some(line.split_once(':')?.1.trim()));
    if shared.authorization.is_some() && given != shared.authorization.as_deref() {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
        return client.write_all(refusal.as_bytes());
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let mut server = if first.starts_with("CONNECT ") {
        let server = TcpStream::connect(target)?;
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        server
    } else {
        let (host, path) = target.trim_start_matches("http://").split_once('/').unwrap_or_default();
        let mut server = TcpStream::connect(host)?;
        write!(server, "GET /{path} HTTP/1.1\r\nConnection: close\r\n")?;
        lines
            .iter()
            .skip(1)
            .filter(|line| !header(line))
            .try_for_each(|line| server.write_all(line.as_bytes()))?;
        server.write_all(b"\r\n")?;
        server
    };
    let (mut back, mut to_client) = (server.try_clone()?, client);
    thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    io::copy(&mut reader, &mut server)?;
    server.shutdown(Shutdown::Write)
}
