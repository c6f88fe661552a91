//! A plain HTTP client, which can also misbehave, and a server with a small network to talk to.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::files::{NamedTensor, save_model};
use shadernet::graph::Graph;
use shadernet::nn::{Layer, Model, initial_values};
use shadernet::predict::Predictor;
use shadernet::serve::{Config, Limits, Opener, Server, Source};

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The error it tells of.
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error in {self:?}")).to_owned()
    }

    /// Floats of the binary tensor behind the JSON.
    pub(crate) fn floats(&self) -> Vec<f32> {
        let start: usize = self.header("inference-header-content-length").unwrap_or_else(|| panic!("{self:?}")).parse().unwrap();
        self.body[start..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// A connection.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        self.raw(format!("{text}\r\n").as_bytes());
        self.raw(body);
    }

    /// Sends bytes as they are. The other side may have closed.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next answer, or `None` if the connection is closed before one.
    pub(crate) fn receive(&mut self) -> Option<Reply> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.0.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Ok(_) => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if [ErrorKind::ConnectionReset, ErrorKind::NotConnected].contains(&error.kind()) => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
        let headers = String::from_utf8(head).unwrap();
        let status = headers[9..12].parse().unwrap();
        let mut reply = Reply { status, headers, body: Vec::new() };
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        reply.body = vec![0; length];
        self.0.read_exact(&mut reply.body).ok()?;
        Some(reply)
    }

    /// Whether the other side closes within so long, whatever it sends before.
    pub(crate) fn closes_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut rest = [0; 1024];
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.0.set_read_timeout(Some(left)).unwrap();
            match self.0.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

pub(crate) fn call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut client = Client::new(address);
    client.send(method, path, headers, body);
    client.receive().expect("an answer")
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Reply {
    call(address, "GET", path, &[], b"")
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &[u8]) -> Reply {
    call(address, "POST", path, &[], body)
}

/// A number of the metrics that an admin port tells.
pub(crate) fn metric(admin: SocketAddr, line: &str) -> f64 {
    let text = String::from_utf8(get(admin, "/metrics").body).unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {line} in {text}")).parse().unwrap()
}

/// Images as the body, nothing around them.
pub(crate) fn infer_raw(address: SocketAddr, images: &[u8]) -> Reply {
    call(address, "POST", "/v2/models/m/infer", &[("inference-header-content-length", "0")], images)
}

/// Height, width and channels of the small network's images.
pub(crate) const INPUT: [usize; 3] = [6, 5, 3];
/// Bytes of one.
pub(crate) const IMAGE: usize = 6 * 5 * 3;
/// Its classes.
pub(crate) const CLASSES: usize = 4;

pub(crate) fn small_model() -> Model {
    Model {
        name: "small".to_owned(),
        input: INPUT,
        layers: vec![Layer::conv2d(5, 3), Layer::Flatten, Layer::dense(CLASSES, None)],
        classes: ["ant", "bee", "\"cat\"", "dog"].map(str::to_owned).to_vec(),
    }
}

/// Weights from a seed.
pub(crate) fn weights(model: &Model, seed: u64) -> Vec<NamedTensor> {
    let mut graph = Graph::new();
    model.build(&mut graph).unwrap();
    let tensor = |(param, data)| {
        let (name, extents) = (graph.node(param).label.clone(), graph.shape(param).inner().to_vec());
        NamedTensor { name, extents, data }
    };
    initial_values(&graph, seed).into_iter().map(tensor).collect()
}

pub(crate) fn save(path: &Path, model: &Model, seed: u64) {
    save_model(path, model, &weights(model, seed)).unwrap();
}

/// Different images for each `start`.
pub(crate) fn images(start: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| ((i + 31 * start).wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

pub(crate) fn cpu() -> Opener {
    Arc::new(|| Ok(Box::new(CpuExecutor::new(Some(1))?)))
}

/// Probabilities that the small network gives, computed image by image.
pub(crate) fn expected(model: &Model, seed: u64, images: &[u8]) -> Vec<f32> {
    let mut predictor = Predictor::new(cpu()().unwrap(), model.clone(), &weights(model, seed), 1).unwrap();
    predictor.predict(images).unwrap()
}

/// A server of the small network under the name `m`, its weights of seed 1.
pub(crate) struct Served {
    pub(crate) server: Option<Server>,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With settings changed.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(vec![Source::File { name: "m".to_owned(), path }], cpu());
        config.http = any;
        config.admin = Some(any);
        config.grpc = Some(any);
        config.max_batch = 8;
        change(&mut config);
        let server = Server::start(config).unwrap();
        let (http, admin) = (server.http(), server.admin().unwrap());
        Self { server: Some(server), http, admin, folder }
    }

    /// Whether everything under way was answered.
    pub(crate) fn stop(mut self, delay: Duration, limit: Duration) -> bool {
        self.server.take().unwrap().stop(delay, limit)
    }

    /// A number of the metrics.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        metric(self.admin, line)
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sets a flag at its end, even if that is a panic: threads that go on until then do not keep a test that failed from ending.
pub(crate) struct AtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Milliseconds as a [`Duration`].
pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Bounds short enough for tests.
pub(crate) fn impatient() -> Limits {
    Limits { head_timeout: ms(300), body_timeout: ms(300), idle_timeout: ms(600), write_timeout: ms(300), ..Limits::default() }
}

/// A gate that executors wait at.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    pub(crate) fn pass(&self) {
        drop(self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
    }
}
