//! A server's life: ports, then models, then requests, then an orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::listener::{Port, Protocol, Stage, listen};
use super::pace::Pace;
use super::queue::Batching;
use super::repository::Repository;
use super::tokens::{Tokens, acceptor};
use super::version::Running;
use super::{Config, Door, State, grpc, router};
use crate::error::{Error, Result};

/// A server that is running.
pub struct Server {
    runtime: Runtime,
    state: Arc<State>,
    stage: watch::Sender<Stage>,
    /// Ends when the last connection has.
    ended: mpsc::Receiver<()>,
    addresses: Addresses,
}

/// Where a server answers.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    http: SocketAddr,
    grpc: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Server {
    /// Opens the ports, loads the models, and answers. While models load, the ports are open and say that they are not ready.
    ///
    /// # Errors
    /// A setting out of its bounds, an address that cannot be had, or a model that cannot be loaded.
    pub fn start(config: Config) -> Result<Self> {
        check(&config)?;
        let tokens = Tokens::open(config.tokens.clone())?;
        let mut preferred = config.preferred_batches.clone();
        preferred.sort_unstable();
        let batching = Batching { max: config.max_batch, delay: config.max_delay, preferred };
        let running = Running { batching, queue: config.queue, instances: config.instances, open: config.open.clone() };
        let repository = Arc::new(Repository::new(config.models.clone(), running));
        let (stage, watched) = watch::channel(Stage::Open);
        let state = Arc::new(State::new(&config, repository, tokens, watched.clone())?);

        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("serve").on_thread_start(give_way).enable_all().build();
        let runtime = runtime.map_err(|e| Error::invalid("threads of the server", e, "threads the system can start"))?;
        let pace = Arc::new(Pace::new(std::thread::available_parallelism().map_or(1, usize::from)));
        let (alive, ended) = mpsc::channel(1);
        let port = |address: SocketAddr, protocol: Protocol| -> Result<(TcpListener, Port)> {
            let listener = runtime.block_on(TcpListener::bind(address));
            let listener = listener.map_err(|e| Error::invalid(format!("address {address}"), e, "one that is free"))?;
            let protocols: &[&[u8]] = if protocol == Protocol::Http2 { &[b"h2"] } else { &[b"http/1.1"] };
            let tls = config.tls.as_ref().map(|(certificates, key)| acceptor(certificates, key, protocols)).transpose()?;
            let (limits, connections) = (config.limits.clone(), state.connections.clone());
            Ok((listener, Port { protocol, tls, limits, stage: watched.clone(), pace: pace.clone(), connections, alive: alive.clone() }))
        };
        let http = port(config.http, Protocol::Http1)?;
        let admin = config.admin.map(|address| port(address, Protocol::Http1)).transpose()?;
        let grpc = config.grpc.map(|address| port(address, Protocol::Http2)).transpose()?;
        let at = |(listener, _): &(TcpListener, Port)| {
            listener.local_addr().map_err(|e| Error::invalid("address of a port", e, "one that the system tells"))
        };
        let addresses =
            Addresses { http: at(&http)?, grpc: grpc.as_ref().map(at).transpose()?, admin: admin.as_ref().map(at).transpose()? };

        for (port, door) in [(Some(http), Door::Public), (admin, Door::Admin)] {
            let Some((listener, port)) = port else { continue };
            let state = state.clone();
            runtime.spawn(listen(listener, port, move |request, peer| router::answer(state.clone(), door, request, peer)));
        }
        if let Some((listener, port)) = grpc {
            let state = state.clone();
            runtime.spawn(listen(listener, port, move |request, peer| grpc::answer(state.clone(), request, peer)));
        }
        state.repository.load_all()?;
        Ok(Self { runtime, state, stage, ended, addresses })
    }

    /// Where it answers HTTP.
    pub fn http(&self) -> SocketAddr {
        self.addresses.http
    }

    /// Where it answers gRPC.
    pub fn grpc(&self) -> Option<SocketAddr> {
        self.addresses.grpc
    }

    /// Where it answers about metrics and the repository.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.addresses.admin
    }

    /// Waits for something on the server's own threads, a signal for instance.
    pub fn wait_for<F: Future>(&self, something: F) -> F::Output {
        self.runtime.block_on(something)
    }

    /// Reads the models and the tokens again. What cannot be read stays as it was, and the log says why.
    pub fn reload(&self) {
        if let Err(error) = self.state.tokens.reload() {
            log::error!("tokens stay as they were: {error}");
        }
        self.state.repository.reload_all();
    }

    /// Ends in order: says that it is not ready any more, and for `delay` goes on answering, so that whoever sends requests can
    /// notice; then takes no new ones, and answers those under way, at most for `limit`. Whether all were answered.
    pub fn stop(mut self, delay: Duration, limit: Duration) -> bool {
        self.stage.send_replace(Stage::Leaving);
        let connections = self.state.connections.clone();
        self.runtime.block_on(async {
            let until = Instant::now() + delay;
            while Instant::now() < until && connections.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        self.stage.send_replace(Stage::Closed);
        let deadline = Instant::now() + limit;
        let ended = self.runtime.block_on(async { tokio::time::timeout_at(deadline.into(), self.ended.recv()).await.is_ok() });
        self.state.repository.close(deadline.max(Instant::now() + Duration::from_millis(100)));
        #[cfg(feature = "otel")]
        self.state.traces.iter().for_each(super::traces::Traces::flush);
        self.runtime.shutdown_background();
        ended
    }
}

/// Lets the threads that compute go before this one, which answers connections: else, where there is far more asked than can be
/// answered, turning requests away would take the processor from answering the others.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 5) {
        log::debug!("the threads for connections keep their priority: {error}");
    }
}

/// Settings that have bounds.
fn check(config: &Config) -> Result<()> {
    let within = |what: &str, value: usize, least: usize, most: usize| match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(Error::invalid(what, value, format!("{least} to {most}"))),
    };
    within("images of a batch", config.max_batch, 1, 65_536)?;
    within("instances of a model", config.instances, 1, 64)?;
    within("images of the queue", config.queue, config.max_batch, 1 << 24)?;
    within("connections", config.limits.connections, 1, 1 << 20)?;
    within("bytes of a body", config.limits.body, 1, config.limits.memory)?;
    config.preferred_batches.iter().try_for_each(|&size| within("a preferred batch", size, 1, config.max_batch))
}
