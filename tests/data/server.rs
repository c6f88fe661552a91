//! A server on loopback that has one file, and does with each request as it is told.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use md5::{Digest, Md5};
use shadernet::data::download::Source;

use super::files::NAME;

pub(crate) fn payload() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub(crate) fn md5_of(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn part(folder: &Path) -> PathBuf {
    folder.join(format!("{NAME}.part"))
}

/// How the server treats one request.
pub(crate) enum Reply {
    /// As asked: 206 for a range, 416 for one past the end, 200 without.
    Ranged,
    /// 200 with everything, whatever was asked.
    Whole,
    /// As `Ranged`, but the connection closes after this many bytes of the body.
    Cut(usize),
    /// Only this status.
    Status(u16),
    /// 200 with this length, and no body.
    Claim(u64),
}

/// Serves one file on loopback, one scripted reply a connection, and then no more.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) md5: String,
    ranges: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Server {
    pub(crate) fn start(bytes: &[u8], script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{NAME}", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (log, file) = (Arc::clone(&ranges), bytes.to_vec());
        std::thread::spawn(move || {
            for reply in script {
                let (stream, _) = listener.accept().unwrap();
                serve(stream, &file, &reply, &log);
            }
        });
        Self { url, md5: md5_of(bytes), ranges }
    }

    pub(crate) fn source(&self) -> Source<'_> {
        Source { url: &self.url, md5: &self.md5, name: NAME }
    }

    /// The start of the range that each request asked for.
    pub(crate) fn ranges(&self) -> Vec<Option<u64>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, file: &[u8], reply: &Reply, log: &Mutex<Vec<Option<u64>>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
    assert!(request.contains("accept-encoding: identity"), "{request}");
    let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    log.lock().unwrap().push(range);
    let all = file.len();
    let start = range.unwrap_or(0) as usize;
    let (head, body) = match reply {
        Reply::Status(status) => (format!("{status} Reason\r\nContent-Length: 0"), &file[..0]),
        Reply::Claim(length) => (format!("200 OK\r\nContent-Length: {length}"), &file[..0]),
        Reply::Whole => (format!("200 OK\r\nContent-Length: {all}"), file),
        Reply::Ranged | Reply::Cut(_) if range.is_none() => (format!("200 OK\r\nContent-Length: {all}"), file),
        Reply::Ranged | Reply::Cut(_) if start >= all => {
            (format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{all}\r\nContent-Length: 0"), &file[..0])
        }
        Reply::Ranged | Reply::Cut(_) => {
            let head = format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{all}\r\nContent-Length: {}", all - 1, all - start);
            (head, &file[start..])
        }
    };
    let body = if let Reply::Cut(count) = reply { &body[..*count] } else { body };
    // The client may hang up first, when it has seen enough.
    let _ = write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").and_then(|()| stream.write_all(body));
}
