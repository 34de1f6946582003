//! A small HTTP/1.1 server that answers by a function of the test: token servers, metadata servers
//! and other services that no machine runs for us. Not for images and faults
//! ([`FaultServer`](crate::FaultServer)).

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long one read or write of a connection may take, so that no thread outlives its test.
const SOCKET_LIMIT: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// `GET`, `POST`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// As text.
    pub body: String,
}

impl Question {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status, 200 by default.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A status with a body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Answering = dyn Fn(&Question) -> Answer + Send + Sync;

/// A running server; stopped when dropped.
pub struct AnswerServer {
    address: SocketAddr,
    questions: Arc<Mutex<Vec<Question>>>,
    accepting: Option<JoinHandle<()>>,
    stop: Arc<Mutex<bool>>,
}

impl AnswerServer {
    /// Answers each request by this function, on a thread for each connection.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub fn serve(answer: impl Fn(&Question) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let questions: Arc<Mutex<Vec<Question>>> = Arc::default();
        let stop: Arc<Mutex<bool>> = Arc::default();
        let answer: Arc<Answering> = Arc::new(answer);
        let (asked, stopped) = (Arc::clone(&questions), Arc::clone(&stop));
        let accepting = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if *stopped.lock().expect("no thread panics with it") {
                    return;
                }
                let (answer, asked) = (Arc::clone(&answer), Arc::clone(&asked));
                // A client that goes away is none of the test's business.
                thread::spawn(move || drop(converse(&stream, &*answer, &asked)));
            }
        });
        Self { address, questions, accepting: Some(accepting), stop }
    }

    /// `http://127.0.0.1:PORT`, without a slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What has been asked so far.
    ///
    /// # Panics
    ///
    /// If the answering function panicked.
    pub fn questions(&self) -> Vec<Question> {
        self.questions.lock().expect("the function does not panic").clone()
    }
}

impl Drop for AnswerServer {
    fn drop(&mut self) {
        if let Ok(mut stop) = self.stop.lock() {
            *stop = true;
        }
        // The accepting thread sees the switch at the next connection.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl fmt::Debug for AnswerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerServer").field("address", &self.address).finish_non_exhaustive()
    }
}

fn converse(
    stream: &TcpStream,
    answer: &Answering,
    asked: &Mutex<Vec<Question>>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(SOCKET_LIMIT))?;
    stream.set_write_timeout(Some(SOCKET_LIMIT))?;
    let mut reader = BufReader::new(stream);
    while let Some(question) = read(&mut reader)? {
        let answer = answer(&question);
        let is_head = question.method == "HEAD";
        if let Ok(mut asked) = asked.lock() {
            asked.push(question);
        }
        let mut head =
            format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut writer = stream;
        writer.write_all(format!("{head}\r\n").as_bytes())?;
        writer.write_all(if is_head { &[] } else { &answer.body })?;
    }
    Ok(())
}

/// The next request; `None` where the client has closed.
fn read(reader: &mut impl BufRead) -> io::Result<Option<Question>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut question = Question { method, path, headers, body: String::new() };
    let len = question.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    reader.take(len).read_to_string(&mut question.body)?;
    Ok(Some(question))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_as_the_test_says() {
        let server = AnswerServer::serve(|question| {
            Answer::new(201, question.body.to_uppercase()).header("x-seen", &question.path)
        });
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(b"POST /a?b HTTP/1.1\r\nContent-Length: 3\r\nA: b\r\n\r\nxyz").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "HTTP/1.1 201 x\r\ncontent-length: 3\r\nx-seen: /a?b\r\n\r\nXYZ");
        assert_eq!(server.questions()[0].header("a"), Some("b"));
    }
}
