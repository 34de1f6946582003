//! nginx on loopback, serving one folder for as long as the value lives.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// A running server.
#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    address: SocketAddr,
}

/// How often another port is tried when someone takes the chosen one first.
const TRIES: u32 = 5;

/// How often and how long we wait for the server to listen.
const POLLS: u32 = 100;
const POLL: Duration = Duration::from_millis(50);

impl Nginx {
    /// Serves the files below `root`; configuration, logs and temporary files lie in `work`.
    pub(crate) fn serve(root: &Path, work: &Path) -> Result<Self> {
        fs_err::create_dir_all(work)?;
        for _ in 0..TRIES {
            if let Some(nginx) = Self::start(root, work)? {
                return Ok(nginx);
            }
        }
        bail!("nginx does not start:\n{}", sh::tail(&work.join("error.log")));
    }

    /// The address of a file.
    pub(crate) fn url(&self, file: &str) -> String {
        format!("http://{}/{file}", self.address)
    }

    fn start(root: &Path, work: &Path) -> Result<Option<Self>> {
        // nginx takes no port 0: the kernel chooses one for us, and we let it go again.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = work.join("nginx.conf");
        fs_err::write(&config, configuration(address, root, work))?;
        let mut command = sh::tied("nginx");
        command.arg("-c").arg(&config).arg("-e").arg(work.join("error.log"));
        let null = Stdio::null;
        let child = command.stdin(null()).stdout(null()).stderr(null()).spawn();
        let mut nginx = Self { child: child.context("cannot start nginx")?, address };
        for _ in 0..POLLS {
            if nginx.child.try_wait()?.is_some() {
                return Ok(None);
            }
            if TcpStream::connect(address).is_ok() {
                return Ok(Some(nginx));
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process, in the foreground, as the user that we are.
fn configuration(address: SocketAddr, root: &Path, work: &Path) -> String {
    let (root, work) = (root.display(), work.display());
    format!(
        "daemon off;\n\
         master_process off;\n\
         pid \"{work}/nginx.pid\";\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
         \taccess_log \"{work}/access.log\";\n\
         \tclient_body_temp_path \"{work}/body\";\n\
         \tproxy_temp_path \"{work}/proxy\";\n\
         \tfastcgi_temp_path \"{work}/fastcgi\";\n\
         \tuwsgi_temp_path \"{work}/uwsgi\";\n\
         \tscgi_temp_path \"{work}/scgi\";\n\
         \tsendfile on;\n\
         \tserver {{ listen {address}; root \"{root}\"; }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn serves_ranges_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("two words");
        fs_err::create_dir(&root).unwrap();
        fs_err::write(root.join("file"), "0123456789").unwrap();
        let nginx = Nginx::serve(&root, &dir.path().join("work")).unwrap();
        let address = nginx.address;
        let mut stream = TcpStream::connect(address).unwrap();
        let request =
            "GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=2-4\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 206 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n234"), "{answer}");
        drop(nginx);
        assert!(TcpStream::connect(address).is_err());
    }
}
