//! Serving: trained models behind the protocols that existing clients speak.
//!
//! ```text
//!  port ─► listener ─► router ─► oip, v1, picture ─┐
//!                        grpc ─────────────────────┴► version.infer ─► queue ─► instance: a thread with a Predictor
//! ```
//!
//! * A request is decoded, admitted to its model's queue or turned away, and joins a batch; nothing about an answer depends on
//!   the batch it was computed in.
//! * Everything a client states, a length, a shape, a number of things, is checked before memory is taken for it, and everything a
//!   client can keep waiting for has a bound in time: its head, its body, its reading of the answer, and its being idle.
//! * A model is replaced by a new one beside it, when that has computed; a failing device is opened again behind 503s.
//! * Where more is asked than can be answered, turning away must not cost the answers: it is done from a request's head, and at a pace.
//! * Metrics and the repository are answered on the admin port, which is the machine's own unless told otherwise.
//!
//! A [`Server`] has its own threads: the program around it needs no asynchronous runtime.

mod answer;
mod body;
mod clients;
mod coding;
mod drift;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod instance;
mod listener;
mod metrics;
mod numbers;
mod oip;
mod pace;
mod picture;
mod queue;
mod refusal;
mod repository;
mod router;
mod server;
mod stats;
pub mod storage;
mod stream;
mod tokens;
mod top;
#[cfg(feature = "otel")]
mod traces;
mod v1;
mod version;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::HeaderMap;
use tokio::sync::{Semaphore, watch};

pub use instance::Opener;
pub use repository::Source;
pub use server::Server;

use crate::error::Result;
use body::Budget;
use clients::{Client, Clients};
use listener::Stage;
use metrics::Answers;
use refusal::Refusal;
use repository::Repository;
use tokens::Tokens;

/// What a server serves, where, and within which bounds.
#[derive(Clone)]
pub struct Config {
    /// The models.
    pub models: Vec<Source>,
    /// Opens the device of an instance.
    pub open: Opener,
    /// Address of the HTTP port. Port 0 takes a free one.
    pub http: SocketAddr,
    /// Address of the gRPC port, if there is to be one.
    pub grpc: Option<SocketAddr>,
    /// Address of the port that answers what the HTTP port does, and metrics and the repository besides.
    pub admin: Option<SocketAddr>,
    /// Most images of a batch.
    pub max_batch: usize,
    /// How long the first request of a batch waits for others while it is not full.
    pub max_delay: Duration,
    /// Sizes at which a batch does not wait any longer; a larger one is cut to the largest of them.
    pub preferred_batches: Vec<usize>,
    /// Instances of each model: threads with a predictor.
    pub instances: usize,
    /// Most images of one model under way; more are turned away.
    pub queue: usize,
    /// Bounds on what clients can ask for and how long they can take.
    pub limits: Limits,
    /// A file with a bearer token in each line, one of which every request must have, except those for health and the page.
    pub tokens: Option<PathBuf>,
    /// PEM files with the certificates and the private key for TLS on all ports.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Further addresses, as cloud services set them.
    pub routes: Routes,
    /// The OpenTelemetry collector that hears of every request, as `http://127.0.0.1:4318`.
    #[cfg(feature = "otel")]
    pub otlp: Option<String>,
}

impl Config {
    /// Serves these models on the machine's own address, ports 8000 (HTTP), 8001 (gRPC) and 8002 (admin), as Triton does.
    pub fn new(models: Vec<Source>, open: Opener) -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            models,
            open,
            http: local(8000),
            grpc: Some(local(8001)),
            admin: Some(local(8002)),
            max_batch: 64,
            max_delay: Duration::ZERO,
            preferred_batches: Vec::new(),
            instances: 1,
            queue: 1024,
            limits: Limits::default(),
            tokens: None,
            tls: None,
            routes: Routes::default(),
            #[cfg(feature = "otel")]
            otlp: None,
        }
    }
}

/// Bounds on what clients can ask for and how long they can take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of a body.
    pub body: usize,
    /// Most bytes of the bodies of all requests under way, with what is made of them.
    pub memory: usize,
    /// Most connections of all ports.
    pub connections: usize,
    /// Most requests to a model a second of one client, which is its token where tokens are asked for, and else its address; more
    /// are answered 429. Without it there is no such bound.
    pub client_rate: Option<u32>,
    /// Longest time from a request to its answer; a request may ask for less.
    pub timeout: Duration,
    /// Longest time for the head of a request, a TLS handshake included.
    pub head_timeout: Duration,
    /// Longest time for a body.
    pub body_timeout: Duration,
    /// Longest time that a connection does nothing.
    pub idle_timeout: Duration,
    /// Longest time that a client does not take what is sent to it.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 16 << 20,
            memory: 256 << 20,
            connections: 4096,
            client_rate: None,
            timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Addresses of the default model besides those of the protocols.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Whether it can answer: Google Cloud's `AIP_HEALTH_ROUTE`.
    pub health: Option<String>,
    /// TensorFlow Serving's body: Google Cloud's `AIP_PREDICT_ROUTE`.
    pub predict: Option<String>,
}

impl Routes {
    fn is_health(&self, path: &str) -> bool {
        self.health.as_deref() == Some(path)
    }

    fn is_predict(&self, path: &str) -> bool {
        self.predict.as_deref() == Some(path)
    }
}

/// Which port a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Public,
    Admin,
}

/// What all requests share.
struct State {
    repository: Arc<Repository>,
    tokens: Tokens,
    clients: Clients,
    limits: Limits,
    routes: Routes,
    budget: Arc<Budget>,
    /// For what takes long: as many as there are cores.
    workers: Arc<Semaphore>,
    answers: Answers,
    connections: Arc<AtomicUsize>,
    stage: watch::Receiver<Stage>,
    ids: AtomicU64,
    #[cfg(feature = "otel")]
    traces: Option<traces::Traces>,
}

impl State {
    fn new(config: &Config, repository: Arc<Repository>, tokens: Tokens, stage: watch::Receiver<Stage>) -> Result<Self> {
        Ok(Self {
            repository,
            tokens,
            clients: Clients::new(config.limits.client_rate),
            limits: config.limits.clone(),
            routes: config.routes.clone(),
            budget: Arc::new(Budget::new(config.limits.memory)),
            workers: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
            answers: Answers::default(),
            connections: Arc::default(),
            stage,
            ids: AtomicU64::new(RandomState::new().build_hasher().finish()),
            #[cfg(feature = "otel")]
            traces: config.otlp.as_deref().map(traces::Traces::new).transpose()?,
        })
    }

    /// Turns a request to a model away if its client asks too often.
    fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> std::result::Result<(), Refusal> {
        let client = || self.tokens.given(headers).map_or_else(|| Client::at(peer), Client::Token);
        if !self.clients.are_bounded() || self.clients.admit(client()) {
            return Ok(());
        }
        let rate = self.limits.client_rate.unwrap_or_default();
        let message = format!("more than {rate} requests a second of this client");
        Err(Refusal::new(hyper::StatusCode::TOO_MANY_REQUESTS, message))
    }

    /// Whether the server was told to end.
    fn is_leaving(&self) -> bool {
        *self.stage.borrow() > Stage::Open
    }

    /// Whether every model can answer, and the server is to stay.
    fn is_ready(&self) -> bool {
        !self.is_leaving() && self.repository.is_ready()
    }

    /// The id a client gave its request, if it can stand in a log, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let given = given.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'));
        // An odd number has an inverse: ids that look nothing alike, and none twice.
        let new = || self.ids.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        given.map_or_else(|| format!("{:016x}", new()), str::to_owned)
    }

    /// Does what takes long away from the threads that answer, on no more threads than there are cores: a client that leaves
    /// meanwhile does not make room for another one. `None` if it panics or the server is ending.
    async fn away<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let permit = self.workers.clone().acquire_owned().await.ok()?;
        let work = move || {
            let done = work();
            drop(permit);
            done
        };
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Loads a model, away from the threads that answer.
    async fn load(&self, name: String) -> std::result::Result<(), Refusal> {
        if !self.repository.index().iter().any(|line| line.name == name) {
            return Err(Refusal::not_found(format_args!("model {}", repository::printable(&name))));
        }
        let repository = self.repository.clone();
        let loaded = tokio::task::spawn_blocking(move || repository.load(&name)).await;
        match loaded {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Refusal::bad(format!("not loaded: {error}"))),
            Err(_) => Err(Refusal::internal("not loaded: a panic while loading")),
        }
    }
}
