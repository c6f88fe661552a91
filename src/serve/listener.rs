//! Connections: how many there are, what they speak, how long they may take, and how they end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::Limits;
use super::pace::Pace;
use super::stream::{Phase, Stream};

/// How far a server has gone towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Stage {
    /// Serving.
    Open,
    /// Told to end: not ready any more, still answering, and asking clients to go elsewhere.
    Leaving,
    /// Taking no more connections or requests.
    Closed,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    /// gRPC's.
    Http2,
}

/// What the connections of a port have in common.
pub(super) struct Port {
    pub(super) protocol: Protocol,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) limits: Limits,
    pub(super) stage: watch::Receiver<Stage>,
    /// Of all ports.
    pub(super) pace: Arc<Pace>,
    /// Connections of all ports.
    pub(super) connections: Arc<AtomicUsize>,
    /// Kept by every connection; when all are dropped, all have ended.
    pub(super) alive: mpsc::Sender<()>,
}

/// Bytes the head of a request may have.
const HEAD_BYTES: usize = 32 << 10;

/// Answers on a port until the server is closed. What `answer` makes of a request is sent whatever it is.
pub(super) async fn listen<F, R, B>(listener: TcpListener, port: Port, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let port = Arc::new(port);
    let mut stage = port.stage.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut stage) => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the client left already: neither ends the server.
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (port, answer) = (port.clone(), answer.clone());
        tokio::spawn(async move {
            let counted = Counted::new(&port.connections);
            if port.connections.load(Ordering::Relaxed) > port.limits.connections {
                drop(counted);
                return turn_away(tcp, &port).await;
            }
            // Small answers must not wait for the acknowledgement of the ones before.
            let _ = tcp.set_nodelay(true);
            let Some(tls) = &port.tls else { return serve(tcp, peer, &port, answer).await };
            match tokio::time::timeout(port.limits.head_timeout, tls.accept(tcp)).await {
                Ok(Ok(stream)) => serve(stream, peer, &port, answer).await,
                Ok(Err(error)) => log::debug!("{peer}: TLS: {error}"),
                Err(_) => log::debug!("{peer}: TLS: no handshake in time"),
            }
        });
    }
}

/// One connection too many.
async fn turn_away(mut tcp: TcpStream, port: &Port) {
    const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\
        content-length: 50\r\n\r\n{\"error\":\"the server has no connections left now\"}";
    if port.protocol != Protocol::Http1 || port.tls.is_some() {
        return;
    }
    // Closing on bytes that were not read would take the answer back: read what comes at once, and no more.
    let tell = async {
        tcp.write_all(FULL).await?;
        tcp.shutdown().await?;
        let mut rest = [0; 4096];
        for _ in 0..16 {
            if tcp.read(&mut rest).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_millis(200), tell).await;
}

async fn serve<S, F, R, B>(stream: S, peer: SocketAddr, port: &Port, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _alive = port.alive.clone();
    let (limits, protocol) = (&port.limits, port.protocol);
    let phase = Arc::new(Phase::default());
    let io = TokioIo::new(Stream::new(stream, phase.clone(), limits.head_timeout, limits.write_timeout));
    let pace = port.pace.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        phase.busy();
        let asks = request.method() == Method::POST; // and not only whether the server is ready
        let (answer, phase, pace) = (answer(request, peer), phase.clone(), pace.clone());
        async move {
            let response = answer.await;
            // On HTTP/2 requests overlap, and pings find out who is gone.
            if protocol == Protocol::Http1 {
                let turned_away = matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
                phase.rest(if asks && turned_away { pace.pause() } else { Duration::ZERO });
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut stage = port.stage.clone();
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = closed(&mut stage) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                log::debug!("{peer}: {error}");
            }
        }};
    }
    match protocol {
        Protocol::Http1 => {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(limits.idle_timeout).max_buf_size(HEAD_BYTES).max_headers(64);
            drive!(http.serve_connection(io, service));
        }
        Protocol::Http2 => {
            let mut http = http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).keep_alive_interval(limits.idle_timeout).keep_alive_timeout(limits.head_timeout);
            http.max_concurrent_streams(256).max_header_list_size(HEAD_BYTES as u32);
            drive!(http.serve_connection(io, service));
        }
    }
}

/// Waits until the server is closed.
async fn closed(stage: &mut watch::Receiver<Stage>) {
    // The value that comes with it holds a lock.
    let _ = stage.wait_for(|stage| *stage == Stage::Closed).await.map(drop);
}

/// Counts while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
