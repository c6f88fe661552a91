//! A connection that cannot be held open by doing nothing, or very little, for long.
//!
//! hyper bounds how long it waits for the head of a request, idle time before it included, and nothing else. Here the head has
//! a bound of its own, which runs from its first byte (for the first request, from the start of the connection), and so has
//! a write that the other side does not take. And it can be left alone for a time: see [`Pace`](super::pace::Pace).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// What a connection is doing, as the stream and the service that answers on it both know it.
#[derive(Debug, Default)]
pub(super) struct Phase {
    now: AtomicU8,
    /// How long nothing is to be read, in nanoseconds.
    pause: AtomicU64,
}

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

impl Phase {
    /// A request has arrived as far as its head.
    pub(super) fn busy(&self) {
        self.now.store(BUSY, Ordering::Relaxed);
    }

    /// It has been answered.
    pub(super) fn idle(&self) {
        self.now.store(IDLE, Ordering::Relaxed);
    }

    /// It has been answered, and the next one is to be read only after so long.
    pub(super) fn rest(&self, pause: Duration) {
        self.pause.store(pause.as_nanos() as u64, Ordering::Relaxed);
        self.idle();
    }
}

/// The stream of a connection.
pub(super) struct Stream<S> {
    inner: S,
    phase: Arc<Phase>,
    head_timeout: Duration,
    write_timeout: Duration,
    /// Runs out when the head takes too long; between requests, when a pause is over.
    head: Pin<Box<Sleep>>,
    resting: bool,
    write: Option<Pin<Box<Sleep>>>,
}

impl<S> Stream<S> {
    pub(super) fn new(inner: S, phase: Arc<Phase>, head_timeout: Duration, write_timeout: Duration) -> Self {
        Self { inner, phase, head_timeout, write_timeout, head: Box::pin(sleep(head_timeout)), resting: false, write: None }
    }

    /// Passes on what a write came to, unless it has been waiting for too long.
    fn stalled<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write = None;
            return written;
        }
        let write = self.write.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        ready!(write.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let pause = self.phase.pause.swap(0, Ordering::Relaxed);
        if pause > 0 {
            let until = Instant::now() + Duration::from_nanos(pause);
            self.head.as_mut().reset(until);
            self.resting = true;
        }
        if self.resting {
            ready!(self.head.as_mut().poll(context));
            self.resting = false;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        let phase = self.phase.now.load(Ordering::Relaxed);
        match read {
            Poll::Ready(Ok(())) if phase == IDLE && buffer.filled().len() > before => {
                let until = Instant::now() + self.head_timeout;
                self.head.as_mut().reset(until);
                self.phase.now.store(HEAD, Ordering::Relaxed);
            }
            Poll::Pending if phase == HEAD => {
                ready!(self.head.as_mut().poll(context));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of the request takes too long")));
            }
            _ => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.stalled(context, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.stalled(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.stalled(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(context);
        self.stalled(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_connection_that_rests_is_read_later_and_one_that_does_not_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(64);
            let phase = Arc::new(Phase::default());
            let mut stream = Stream::new(server, phase.clone(), Duration::from_secs(5), Duration::from_secs(5));
            let mut byte = [0];
            for pause in [0, 80, 0] {
                phase.rest(Duration::from_millis(pause));
                client.write_all(b"x").await.unwrap();
                let asked = Instant::now();
                stream.read_exact(&mut byte).await.unwrap();
                let waited = asked.elapsed().as_millis() as u64;
                assert!((pause..pause + 60).contains(&waited), "{waited} ms with a pause of {pause}");
            }
        });
    }
}
