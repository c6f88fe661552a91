//! Bodies of requests: how large, how long in coming, and how much memory all of them may hold together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};

use super::refusal::Refusal;

/// Memory for the bodies of all requests under way.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes) }
    }

    /// A share of nothing, to be grown.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// Takes so many bytes more.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let taken = self.budget.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map_err(|_| Refusal::unavailable("the requests under way hold all the memory that bodies may have"))?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Share {
    /// Takes another share over.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that are read of a body nobody wants. After a longer one the connection ends.
const DISCARDED: usize = 64 << 10;

/// Reads a body and keeps nothing of it, so that the connection can go on. Whether that was all of it.
pub(super) async fn discard(mut body: Incoming, timeout: Duration) -> bool {
    if body.size_hint().lower() > DISCARDED as u64 {
        return false;
    }
    let whole = async {
        let mut left = DISCARDED;
        while let Some(frame) = body.frame().await {
            let len = frame.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(len)?;
        }
        Some(())
    };
    tokio::time::timeout(timeout, whole).await.is_ok_and(|whole| whole.is_some())
}

/// Reads a body of at most `limit` bytes within `timeout`. A length that the head states is held against the limit before
/// anything is read, and memory is taken as bytes arrive, never because a length was stated.
pub(super) async fn read(mut body: Incoming, limit: usize, timeout: Duration, share: &mut Share) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::too_large(format!("the body is larger than {limit} bytes"));
    let stated = body.size_hint().lower();
    if stated > limit as u64 {
        return Err(too_large());
    }
    let whole = async {
        let (mut first, mut all) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::bad(format!("the body does not arrive: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + all.len() + data.len() > limit {
                return Err(too_large());
            }
            share.grow(data.len())?;
            // A body that arrives in one piece is not copied.
            if first.is_empty() && all.is_empty() {
                first = data;
                continue;
            }
            if !first.is_empty() {
                all.reserve((stated as usize).min(4 * (first.len() + data.len())));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    };
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("the body takes longer than {} s", timeout.as_secs_f64()));
    tokio::time::timeout(timeout, whole).await.map_err(late)?
}
